"""`python -m aios_jupyter VERB`: the same as `aios VERB`, by a Python that is named."""

from __future__ import annotations

from .commands import main

main()
