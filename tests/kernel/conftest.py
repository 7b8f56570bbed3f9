"""Kernels that a real Jupyter starts, on a real cluster."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster, session
from fake_nvml import fake_nvml, nvml_library
from front_end import opened
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from serving import DIRECTORIES, served

from aios_jupyter.kernel import specs

__all__ = ["cluster", "fake_nvml", "nvml_library", "opened", "session"]

# It has a kernel's arguments, outlives whoever started it, and computes nothing.
SLEEPER = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def directories(cluster: None) -> dict[str, str]:
    """Where the module's cluster and kernelspecs are."""
    return {name: os.environ[name] for name in DIRECTORIES}


@pytest.fixture
def jp_server_config() -> dict[str, Any]:
    return {
        "ServerApp": {"jpserver_extensions": {"aios_jupyter": True}},
        "AsyncIOLoopKernelRestarter": {"time_to_dead": 0.1},
    }


@pytest.fixture
def server(
    jp_environ: None,
    directories: dict[str, str],
    kernels: None,
    request: pytest.FixtureRequest,
    jp_asyncio_loop: asyncio.AbstractEventLoop,
) -> Iterator[Any]:
    """A Jupyter server on the module's cluster."""
    with served(request, directories, jp_asyncio_loop) as app:
        yield app


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
