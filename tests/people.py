"""Sessions of other people on one cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios_jupyter.config import settings
from aios_jupyter.session import Session, connect


def session_of(directory: Path, label: str = "") -> Session:
    """A session of whoever that bundle is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIOS_BUNDLE", str(directory))
        settings.cache_clear()
        try:
            return connect(label=label)
        finally:
            settings.cache_clear()
