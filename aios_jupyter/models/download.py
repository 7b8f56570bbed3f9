"""`python -m aios_jupyter.models.download REF…`: print where versions' files are, JSON lines.

The endpoint process asks in this way, so that it need not hold MLflow in memory. An error is one
line `{"kind", "message"}` with exit status 1.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from ..errors import AiosError
from .registry import fetch


def main(argv: list[str]) -> int:
    """Print the package of each version, all or none."""
    try:
        packages = [fetch(ref) for ref in argv]
    except AiosError as error:
        _answer({"kind": error.kind, "message": str(error)})
        return 1
    for package in packages:
        _answer(package)
    return 0


def _answer(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
