"""Run the quickstart from end to end on a cluster of its own, and say in a few lines what happened.

The notebook's cell with the tag `summary` displays one JSON object (`IPython.display.JSON`) with the
keys of `LINES`. Everything the demo makes lies in `build/demo`; its cluster ends with it.

Exit status: 0 when the notebook ran and its figures hold, 1 with a sentence otherwise.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "01_quickstart.ipynb"
WORK = ROOT / "build" / "demo"
LEAST_ACCURACY = 0.97

LINES = {
    "leases": "leases",
    "images_augmented": "images augmented",
    "world_size": "world size",
    "train_seconds": "training, seconds",
    "test_accuracy": "test accuracy",
    "version": "published version",
    "endpoint": "served at",
    "served": "served prediction",
    "own": "the model's own",
    "labels": "true labels",
}


class DemoError(Exception):
    """The demo did not do what it is to show; the message says what."""


def main() -> int:
    """Run the demo; the exit status."""
    environment = private_environment()
    output = WORK / "quickstart.ipynb"
    started = time.monotonic()
    try:
        run_notebook(output, environment)
        summary = read_summary(output)
        show(summary, time.monotonic() - started, output)
        check(summary)
    except DemoError as failure:
        print(f"\nThe demo failed: {failure}", file=sys.stderr)
        return 1
    finally:
        subprocess.run([aios(), "down"], env=environment, stdout=subprocess.DEVNULL, timeout=120)
    return 0


def private_environment() -> dict[str, str]:
    """The environment of a cluster whose state lies in `build/demo`, empty at the start."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    directories = {
        "JUPYTER_RUNTIME_DIR": WORK / "runtime",
        "JUPYTER_DATA_DIR": WORK / "jupyter",
        "JUPYTER_CONFIG_DIR": WORK / "config",
        "IPYTHONDIR": WORK / "ipython",
        "AIOS_STATE_DIR": WORK / "state",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIOS_")}
    return kept | {key: str(path) for key, path in directories.items()}


def run_notebook(output: Path, environment: dict[str, str]) -> None:
    """Run the quickstart under papermill, in the AIOS kernel, with a progress bar."""
    command = [sys.executable, "-m", "papermill", "--kernel", "aios", "--cwd", str(WORK)]
    command += ["--execution-timeout", "900", "--no-log-output", str(NOTEBOOK), str(output)]
    print(f"Running {NOTEBOOK.relative_to(ROOT)} under papermill", flush=True)
    done = subprocess.run(command, env=environment)
    if done.returncode != 0:
        raise DemoError(
            f"papermill ended with status {done.returncode}; the notebook as it ran, with the "
            f"error in it, is {output.relative_to(ROOT)}."
        )


def read_summary(output: Path) -> dict[str, Any]:
    """What the cell with the tag `summary` displayed."""
    import nbformat

    for cell in nbformat.read(output, as_version=4).cells:
        if "summary" in cell.metadata.get("tags", ()):
            for shown in cell.outputs:
                if "application/json" in shown.get("data", {}):
                    return dict(shown.data["application/json"])
    raise DemoError(f"no cell with the tag 'summary' displayed JSON in {output.relative_to(ROOT)}.")


def show(summary: dict[str, Any], seconds: float, output: Path) -> None:
    """Print the summary for people."""
    width = max(map(len, LINES.values()))
    print()
    for key, label in LINES.items():
        print(f"  {label:<{width}}  {readable(summary.get(key, 'not told'))}")
    print(f"  {'whole notebook':<{width}}  {seconds:.0f} s, kept as {output.relative_to(ROOT)}")


def readable(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, list):
        return ", ".join(map(readable, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def check(summary: dict[str, Any]) -> None:
    """Hold the figures to what the demo is to show."""
    missing = [key for key in LINES if key not in summary]
    if missing:
        raise DemoError(f"the notebook's summary lacks {', '.join(missing)}.")
    if summary["test_accuracy"] < LEAST_ACCURACY:
        raise DemoError(
            f"the accuracy on the held-out digits is {summary['test_accuracy']:.4f}, and at least "
            f"{LEAST_ACCURACY} is expected."
        )
    if summary["served"] != summary["own"]:
        raise DemoError("the served prediction is not the model's own.")


def aios() -> str:
    """The `aios` command of this environment."""
    return str(Path(sys.executable).with_name("aios"))


if __name__ == "__main__":
    sys.exit(main())
