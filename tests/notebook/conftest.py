from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_session import FakeSession
from IPython.core.interactiveshell import InteractiveShell
from IPython.testing.globalipapp import start_ipython

import aios_jupyter.session
from aios_jupyter.notebook import display, magics


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    """What `connect` gives."""
    fake = FakeSession()
    monkeypatch.setattr(aios_jupyter.session, "connect", lambda **_: fake)
    monkeypatch.setattr(display, "cluster_exists", lambda: True)
    return fake


@pytest.fixture
def shell(session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """An IPython shell with the extension loaded, its variables empty, its faces plain."""
    monkeypatch.setenv("AIOS_DISPLAY", "plain")
    ip = start_ipython() or InteractiveShell.instance()
    ip.reset()
    magics.load(ip)
    yield ip
    magics.unload(ip)
