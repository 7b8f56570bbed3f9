from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fake_nvml import fake_nvml, nvml_library

__all__ = ["fake_nvml", "nvml_library"]


@pytest.fixture
def run_python() -> Callable[..., Any]:
    """Run a snippet in a child process (NVML loads once a process); gives what it prints as JSON."""

    def run(code: str, env: dict[str, str] | None = None) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
