"""Two accounts of this machine in which tests run people's code: services', which every Linux has.

Nobody logs into these, and their homes are the tests'. Import the fixtures to use them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aios_jupyter.node.accounts import Account, popen

PEOPLE = {"ana": "games", "bob": "daemon"}
SITE = Path(np.__file__).parents[1]
PACKAGE = Path(__file__).parents[1]
REASON = "only root can run others' code in their accounts, with a Python that they may execute"


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter of this version that others than root may execute."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip(REASON)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    account = Account.named("games")
    for program in filter(None, (sys.executable, shutil.which(version, path="/usr/bin"))):
        with contextlib.suppress(PermissionError):
            subprocess.run(
                [program, "-c", "import aios_jupyter, msgspec, numpy"],
                env=account.environment({}, {"PYTHONPATH": f"{PACKAGE}:{SITE}"}),
                cwd="/",
                check=True,
                **popen(account),
            )
            return program
    pytest.skip(REASON)


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder that everybody may enter, with the homes and a file for root alone."""
    root = Path(tempfile.mkdtemp(prefix="aios-accounts-"))
    root.chmod(0o755)
    for person, account in PEOPLE.items():
        home = root / person
        home.mkdir(mode=0o700)
        shutil.chown(home, account)
    (root / "secret").write_text("of root alone\n")
    (root / "secret").chmod(0o600)
    yield root
    shutil.rmtree(root)
