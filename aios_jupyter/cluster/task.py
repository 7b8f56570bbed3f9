"""A task of a Slurm job as a node of the cluster: `python -m aios_jupyter.cluster.task JOBS GPUS`.

The bundles of a job are made when Slurm has given it its number, so that one which starts at once
may be a moment before its own.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ..config import settings
from ..errors import AiosError, ClusterError
from . import joined, slurm

# As long as a file system of many machines may not tell one what another has written (s).
PATIENCE = 120.0


def bundle(jobs: Path, job: str, task: str, patience: float = PATIENCE) -> Path:
    """The task's own bundle.

    Raises
    ------
    ClusterError
        There is none in time.
    """
    found = jobs / job / task
    deadline = time.monotonic() + patience
    # Written last.
    while not (found / "connection.json").exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"There is no bundle in {found}: this machine has to see the files of the one on "
                "which the cluster was started; set AIOS_STATE_DIR there to a directory that all "
                "machines see."
            )
        time.sleep(0.1)
    return found


def main() -> None:
    """Become the node's agent; its log is the task's."""
    jobs, simulate_gpus = Path(sys.argv[1]), int(sys.argv[2])
    job = os.environ["SLURM_JOB_ID"]
    try:
        own = bundle(jobs, job, os.environ["SLURM_PROCID"])
        end = slurm.end_of(job)
        until = slurm.drains(end, time.time(), settings().end_grace) if end else None
        joined.serve(own, simulate_gpus=simulate_gpus, until=until)
    except AiosError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
