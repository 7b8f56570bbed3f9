"""Loading the extension is cheap, and brings none of the frameworks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

FRAMEWORKS = ("torch", "tensorflow", "mlflow", "distributed", "pandas", "cv2", "onnxruntime")
LOAD = """
import json, sys, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
start = time.perf_counter()
import aios_jupyter
told = shell.extension_manager.load_extension("aios_jupyter")
seconds = time.perf_counter() - start
assert told is None, told
assert "aios" in shell.magics_manager.magics["line"]
assert "aios" in shell.magics_manager.magics["cell"]
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""


def load() -> dict:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_loading_the_extension_imports_no_framework() -> None:
    modules = {name.partition(".")[0] for name in load()["modules"]}
    assert not modules & set(FRAMEWORKS)


def test_loading_the_extension_takes_under_300_ms() -> None:
    # The best of several: a busy machine can only make it slower.
    assert min(load()["seconds"] for _ in range(5)) < 0.3


def test_importing_the_package_starts_nothing() -> None:
    code = "import threading, aios_jupyter; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr
