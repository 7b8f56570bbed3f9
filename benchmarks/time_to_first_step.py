"""From the command to the end of the first optimizer step, against torchrun: same script, ranks and
run, taken in turn.

`cold_speedup`: nothing is preloaded; a session in a running kernel starts the script on the lease
that it holds. `warm_speedup`: the same, when the node has run torch before and so has a zygote.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

from report import report
from steps_per_second import RANKS, cluster, ours, torchrun

COLD_ROUNDS = 4
WARM_ROUNDS = 6
WARM_EACH = 3
WARM_TIMEOUT = 60.0


def main() -> None:
    cold, theirs = [], []
    os.environ["AIOS_ZYGOTE_IDLE"] = "0"
    with cluster() as session:
        for number in range(COLD_ROUNDS):
            turns = [(cold, lambda: ours(session)), (theirs, torchrun)]
            for seconds, launch in turns[:: 1 if number % 2 == 0 else -1]:
                seconds.append(first_step(launch()))
    warm, beside = [], []
    os.environ["AIOS_ZYGOTE_IDLE"] = "600"
    with cluster() as session:
        ours(session)
        wait_for_zygote()
        for _ in range(WARM_ROUNDS):
            # They are short: several for each of torchrun's see as much of the machine's moods.
            for _ in range(WARM_EACH):
                warm.append(first_step(ours(session)))
                # As long as it takes to look at the result; the next run's processes are forked.
                time.sleep(1.0)
            beside.append(first_step(torchrun()))
    # The first of each reads the libraries from disk.
    cold_median, theirs_median = statistics.median(cold[1:]), statistics.median(theirs[1:])
    report(
        "time_to_first_step",
        {
            "warm_speedup": statistics.median(beside) / statistics.median(warm),
            "cold_speedup": theirs_median / cold_median,
            "warm_seconds": statistics.median(warm),
            "warm_seconds_least": min(warm),
            "warm_seconds_most": max(warm),
            "cold_seconds": cold_median,
            "torchrun_seconds": statistics.median(beside),
            "torchrun_seconds_least": min(beside),
            "ranks": RANKS,
        },
        ["torch"],
    )


def first_step(record: dict[str, float]) -> float:
    return record["first_step"] - record["launch"]


def wait_for_zygote() -> None:
    """Until the node's log says that it has one."""
    from aios_jupyter.config import settings

    log = Path(settings().cluster_dir / "node.log")
    deadline = time.monotonic() + WARM_TIMEOUT
    while "has imported torch" not in log.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"there is no zygote after {WARM_TIMEOUT:g} s")
        time.sleep(0.2)
    time.sleep(2.0)


if __name__ == "__main__":
    main()
