"""Kernels of AIOS.

"Python (AIOS)" is IPython with `%aios` loaded from the start; "Python (AIOS, 1 device)" leases a
device before it starts (`provisioner.py`), and `aios kernel add` makes more like it (`specs.py`).
`spec/` and `spec-device/` are the first two; a wheel installs them in `share/jupyter/kernels`.

>>> from aios_jupyter import kernel
>>> kernel.add(gpus=2, time="4h")["name"]
'aios-2-gpus-4-h'
"""

from __future__ import annotations

from pathlib import Path

from .specs import add, ls, rm

NAME = "aios"
SPEC = Path(__file__).parent / "spec"

__all__ = ["NAME", "SPEC", "add", "ls", "rm"]
