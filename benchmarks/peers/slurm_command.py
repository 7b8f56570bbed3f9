"""Slurm: `salloc` or `srun` with one GPU around `true`, from start to end of the command; see
`peers/__init__.py`.
"""

from __future__ import annotations

import subprocess
import sys
import time

COMMANDS = {
    "salloc": ("salloc", "--quiet", "--gres=gpu:1", "-n1", "true"),
    "srun": ("srun", "--quiet", "--gres=gpu:1", "-n1", "true"),
}


def main() -> None:
    command = COMMANDS[sys.argv[1]]
    version = subprocess.run((command[0], "--version"), check=True, capture_output=True, text=True)
    print("ready", version.stdout.split()[-1], flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
