"""From the command to the end of the first optimizer step, against torchrun: same script, ranks and
run, the two in turn.

`cold_speedup`: nothing is preloaded; a session in a running kernel starts the script on the lease
that it holds.
"""

from __future__ import annotations

import statistics

from report import report
from steps_per_second import RANKS, cluster, ours, torchrun

ROUNDS = 4


def main() -> None:
    mine, theirs = [], []
    with cluster() as session:
        for number in range(ROUNDS):
            turns = [(mine, lambda: ours(session)), (theirs, torchrun)]
            for seconds, launch in turns[:: 1 if number % 2 == 0 else -1]:
                record = launch()
                seconds.append(record["first_step"] - record["launch"])
    # The first of each reads the libraries from disk.
    mine_median, theirs_median = statistics.median(mine[1:]), statistics.median(theirs[1:])
    report(
        "time_to_first_step",
        {
            "cold_speedup": theirs_median / mine_median,
            "cold_seconds": mine_median,
            "torchrun_seconds": theirs_median,
            "ranks": RANKS,
        },
        ["torch"],
    )


if __name__ == "__main__":
    main()
