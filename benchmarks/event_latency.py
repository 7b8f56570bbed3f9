"""From a rank to the notebook: how long a metric takes, and what a rank that prints a lot pays.

`median_ms` is over events of two ranks that send 50 each a second. For `log_slowdown` two ranks
count while they print 10,000 lines a second each, in turn to their output and to a file of their own;
it is how much less they count in the first case. `lines_lost` must be 0.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from report import report
from steps_per_second import cluster

RANKS = 2
RATE = 50
SECONDS = 15
LINES = 10_000
TURNS = 12
TURN_SECONDS = 2.0

SENDER = f"""
import time
from aios_jupyter import train
start = time.monotonic()
for number in range({RATE * SECONDS}):
    time.sleep(max(0.0, start + number / {RATE} - time.monotonic()))
    train.log(number=number)
"""

PRINTER = f"""
import os, sys, tempfile, time

def turn(out, number):
    counted = printed = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < {TURN_SECONDS}:
        while printed < passed * {LINES}:
            out.write(f"line {{printed}} of turn {{number}}: what training prints\\n")
            printed += 1
        counted += sum(range(200)) > 0
    return counted, printed

def median(values):
    return sorted(values)[len(values) // 2]

counts = {{"output": [], "file": []}}
lines = 0
with tempfile.TemporaryFile("w", buffering=1) as file:
    for number in range({TURNS}):
        counted, printed = turn(sys.stdout, number)
        counts["output"].append(counted)
        lines += printed
        time.sleep(0.3)     # what is still on its way does not count against the other
        counts["file"].append(turn(file, number)[0])
from aios_jupyter import train
train.log(lines=lines, slowdown=1 - median(counts["output"]) / median(counts["file"]))
"""


def main() -> None:
    with cluster() as session:
        delays = latency(session)
        lost, slowdowns = printing(session)
    report(
        "event_latency",
        {
            "median_ms": 1000 * statistics.median(delays),
            "p99_ms": 1000 * statistics.quantiles(delays, n=100)[-1],
            "events": len(delays),
            "lines_lost": lost,
            "log_slowdown": max(slowdowns),
            "ranks": RANKS,
        },
        {},
    )


def latency(session: Any) -> list[float]:
    """Seconds that each event took."""
    handle = session.start(SENDER, cell=True)
    delays = [
        time.time() - event["time"]
        for event in handle.events()
        if event["type"] == "metrics" and "number" in event["values"]
    ]
    handle.wait()
    if len(delays) < 0.9 * RANKS * RATE * SECONDS:
        raise SystemExit(f"only {len(delays)} events came")
    return delays


def printing(session: Any) -> tuple[int, list[float]]:
    """Lines that did not arrive, and how much slower each rank was."""
    handle = session.start(PRINTER, cell=True)
    arrived = 0
    told: list[dict[str, float]] = []
    for event in handle.events():
        if event["type"] == "log" and event["stream"] == "stdout":
            arrived += event["text"].count("\n")
        elif event["type"] == "metrics" and "lines" in event["values"]:
            told.append(event["values"])
    handle.wait()
    if len(told) != RANKS:
        raise SystemExit(f"{len(told)} ranks have told what they printed")
    printed = sum(int(values["lines"]) for values in told)
    return printed - arrived, [values["slowdown"] for values in told]


if __name__ == "__main__":
    main()
