"""The kernel "Python (AIOS)": IPython with `%aios` loaded from the start.

`spec/` is its kernelspec; a wheel installs it as `share/jupyter/kernels/aios`.
"""

from __future__ import annotations

from pathlib import Path

NAME = "aios"
SPEC = Path(__file__).parent / "spec"

__all__ = ["NAME", "SPEC"]
