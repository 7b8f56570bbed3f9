"""Real systems on loopback, each started once for the tests of its module."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from aios_jupyter.data.catalog import Catalog

HERE = Path(__file__).parent
# A machine that has such systems shall not start them in every run of the tests.
ASKED_FOR = Path(os.environ.get("HADOOP_JARS", "-")).is_dir()


@contextmanager
def system(script: str) -> Iterator[int]:
    """A system that its script starts in a directory of its own; the port it was given."""
    with started(script) as (_, port):
        yield port


@contextmanager
def started(script: str) -> Iterator[tuple[Path, int]]:
    """The same, with its directory."""
    # The name of a socket within may be a hundred characters long, and no more.
    directory = Path(tempfile.mkdtemp(prefix="aios-"))
    port = free_ports()
    try:
        subprocess.run([str(HERE / script), directory, str(port)], check=True, timeout=240)
        yield directory, port
    finally:
        subprocess.run([str(HERE / script), directory, "stop"], check=True, timeout=120)
        shutil.rmtree(directory, ignore_errors=True)


def free_ports() -> int:
    """The first of eight ports in a row that nobody has, below those that are given out.

    Not always the same: what has just been closed cannot be opened again at once.
    """
    while True:
        first = random.randrange(20_000, 30_000, 8)
        if all(map(is_free, range(first, first + 8))):
            return first


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIOS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """Three hundred images of noise, 24 MB: several blocks, and several ranges."""
    path = tmp_path / "noise.npz"
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (300, 160, 160, 3), np.uint8)
    np.savez(path, x=x, y=np.arange(300) % 3)
    return path
