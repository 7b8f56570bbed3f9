"""`aios_jupyter.record(name, value)`: a result of a notebook that `aios batch` puts in its table."""

from __future__ import annotations

import json
from typing import Any

from .errors import UsageError

RECORD = "application/vnd.aios.record+json"


def record(name: str, value: Any) -> None:
    """Keep a value with the notebook: a number, a text, or lists and dictionaries of such.

    In a notebook it becomes an output of the cell, which is saved with the others; elsewhere it is
    printed. A later value of the same name takes the place of the first.

    Raises
    ------
    UsageError
        The value cannot be written as JSON.
    """
    plain = value.tolist() if hasattr(value, "tolist") else value
    try:
        json.dumps(plain, allow_nan=True)
    except (TypeError, ValueError):
        raise UsageError(
            f"record({name!r}, …) takes a number, a text, or lists of such, not a "
            f"{type(value).__name__}."
        ) from None
    text = f"{name} = {plain}"
    shell = _shell()
    if shell is None:
        print(text)  # noqa: T201  # outside a notebook that is where people look
        return
    from IPython.display import display

    data = {RECORD: {"name": str(name), "value": plain}, "text/plain": text}
    display(data, raw=True)  # type: ignore[no-untyped-call]


def _shell() -> Any:
    import sys

    if "IPython" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython

    return get_ipython()


def records(outputs: list[Any]) -> dict[str, Any]:
    """The values among the outputs of a notebook, also those that scrapbook has left there."""
    found: dict[str, Any] = {}
    for output in outputs:
        data = output.get("data", {})
        if RECORD in data:
            found[str(data[RECORD]["name"])] = data[RECORD]["value"]
        scrap = data.get("application/scrapbook.scrap.json+json")
        if scrap:
            found[str(scrap["name"])] = scrap["data"]
    return found
