"""Kernels that a real Jupyter starts, on a real cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster, session
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager

from aios_jupyter.kernel import specs

__all__ = ["cluster", "session"]

DIRECTORIES = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")
# It has a kernel's arguments, outlives whoever started it, and computes nothing.
SLEEPER = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def directories(cluster: None) -> dict[str, str]:
    """Where the module's cluster and kernelspecs are."""
    return {name: os.environ[name] for name in DIRECTORIES}


@pytest.fixture(scope="module")
def kernels(cluster: None) -> None:
    """`two` devices, `four` of them, too many, and kernels that sleep and that die at once."""
    specs.add(devices=2, name="two")
    specs.add(devices=4, name="four")
    specs.add(gpus=99, name="many")
    add_program("sleeper", SLEEPER)
    add_program("dier", "raise SystemExit(1)")


def add_program(name: str, code: str) -> None:
    """A kernel with one device that is no kernel at all."""
    row = specs.add(devices=1, name=name)
    path = Path(row["path"], "kernel.json")
    spec = json.loads(path.read_text())
    spec["argv"] = [spec["argv"][0], "-c", code, "{connection_file}"]
    path.write_text(json.dumps(spec))


@pytest.fixture
def manager(kernels: None) -> Iterator[Any]:
    """Makes kernel managers; what they have started is ended after the test."""
    made: list[KernelManager] = []

    def make(name: str) -> KernelManager:
        # The directories of the specs are those of now.
        made.append(KernelManager(kernel_name=name, kernel_spec_manager=KernelSpecManager()))
        return made[-1]

    yield make
    for one in made:
        if one.has_kernel:
            one.shutdown_kernel(now=True)
