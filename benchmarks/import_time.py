"""What the extension adds to the start of a kernel.

Each sample is a new process with a bare IPython shell in it; timed are `import aios_jupyter` and
`%load_ext aios_jupyter` together, in seconds of wall time, and beside them the import of IPython
and the making of the shell, which every kernel pays anyway.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

from report import report

SAMPLES = 9
HEAVY = ("torch", "tensorflow", "mlflow", "distributed")

SAMPLE = f"""
import json, sys, time
start = time.perf_counter()
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
ready = time.perf_counter()
shell.extension_manager.load_extension("aios_jupyter")
done = time.perf_counter()
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps({{"shell": ready - start, "extension": done - ready, "heavy": heavy}}))
"""


def sample() -> dict[str, object]:
    """Load the extension once in a new process."""
    # The extension's byte code is cached, as it is for a person's second kernel.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    sample()  # fills the byte-code and disk caches
    samples = [sample() for _ in range(SAMPLES)]
    extension = statistics.median(float(s["extension"]) for s in samples)
    shell = statistics.median(float(s["shell"]) for s in samples)
    print(f"{extension:.3f} s for the extension, {shell:.3f} s for IPython's shell")
    report("import_time", {"seconds": extension, "over_shell": extension / shell}, ["ipython"])


if __name__ == "__main__":
    main()
