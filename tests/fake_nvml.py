"""GPUs that are not there, for child processes: import `nvml_library` and `fake_nvml` in a conftest."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "fakenvml" / "fakenvml.c"


@dataclass
class FakeNvml:
    """A fake NVML for child processes: `env` loads it, `state` is what it says."""

    env: dict[str, str]
    state: Path

    def write(self, *lines: str) -> None:
        """Set what the next query sees. Moved into place, for it is read at each query."""
        aside = self.state.with_suffix(".new")
        aside.write_text("".join(f"{line}\n" for line in lines))
        aside.replace(self.state)


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with a freshly built fake `libnvidia-ml.so.1`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the fake NVML with")
    directory = tmp_path_factory.mktemp("nvml")
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(
        [
            compiler,
            *("-O1", "-w", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1"),
            *("-o", str(library), str(SOURCE)),
        ],
        check=True,
        timeout=60,
    )
    return directory


@pytest.fixture
def fake_nvml(nvml_library: Path, tmp_path: Path) -> FakeNvml:
    state = tmp_path / "nvml-state"
    env = {**os.environ, "LD_LIBRARY_PATH": str(nvml_library), "FAKE_NVML_STATE": str(state)}
    fake = FakeNvml(env, state)
    fake.write()
    return fake
