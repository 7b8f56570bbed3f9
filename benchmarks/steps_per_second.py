"""Steps a second of a training script with our telemetry on, against torchrun: same script, ranks,
threads and run, the two in turn.

Ranks keep memory that they freed (`node/ranks.py`), which torchrun leaves to its user; what that
gains is seen in `ratio_same_allocator`, where torchrun's ranks have the same setting.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from report import report

SCRIPT = Path(__file__).parent / "scripts" / "ddp_cnn.py"
RANKS = 2
ROUNDS = 5
STEPS = 150


def main() -> None:
    from aios_jupyter.node.ranks import KEEP_MEMORY

    mine: list[float] = []
    theirs: list[float] = []
    same: list[float] = []
    with cluster() as session:
        for number in range(ROUNDS):
            turns = [
                (mine, functools.partial(ours, session)),
                (theirs, torchrun),
                (same, functools.partial(torchrun, environment=KEEP_MEMORY)),
            ]
            # Who goes first alternates, as the machine's speed drifts.
            for rates, launch in turns[:: 1 if number % 2 == 0 else -1]:
                rates.append(launch("--steps", str(STEPS))["steps_per_second"])
    report(
        "steps_per_second",
        {
            "ratio": statistics.median(mine) / statistics.median(theirs),
            "ratio_same_allocator": statistics.median(mine) / statistics.median(same),
            "ours": statistics.median(mine),
            "torchrun": statistics.median(theirs),
            "ranks": RANKS,
        },
        ["torch"],
    )


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """A session with a cluster of its own, which holds a lease of `RANKS` devices."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["JUPYTER_RUNTIME_DIR"] = f"{directory}/runtime"
        os.environ["JUPYTER_DATA_DIR"] = f"{directory}/data"
        from aios_jupyter.session import connect, down

        try:
            with connect() as session:
                session.alloc(cpus=RANKS)
                yield session
        finally:
            down()


def torchrun(*arguments: str, environment: Mapping[str, str] = {}) -> dict[str, float]:
    """Run the script with torchrun; what it recorded, and `launch`: when that began."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with recorded() as (file, record):
        # Without it torchrun sets one thread a rank, and so do we on CPU slots.
        ended = subprocess.run(
            [*command, f"--nproc-per-node={RANKS}", str(SCRIPT), "--record", file, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        # torch 2.13's gloo now and then aborts a rank that has done all its work, at its exit.
        if ended.returncode and not Path(file).exists():
            ended.check_returncode()
    return record


def ours(session: Any, *arguments: str) -> dict[str, float]:
    """Run the script on the held lease; what it recorded, and `launch`: when that began."""
    with recorded() as (file, record):
        session.start(SCRIPT, argv=("--record", file, *arguments)).wait()
    return record


@contextlib.contextmanager
def recorded() -> Iterator[tuple[str, dict[str, float]]]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "record.json")
        record = {"launch": time.time()}
        yield str(file), record
        record.update(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
