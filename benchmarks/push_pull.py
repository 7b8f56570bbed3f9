"""A large array to a rank on the same node and back, against `memcpy` of as much in the same run.

`of_memcpy` is without what the same run takes with an empty array (starting a process, the broker);
`of_memcpy_whole` is with it. A warm copy, into memory that has been written to before, is the peer;
`of_fresh_memcpy` is against a copy into memory that is new, as each of ours has to be: on a virtual
machine whose host takes free memory back that is where nearly all of the time goes.
`over_tls` is how many times shorter it is than through the node's port, as from another machine.
"""

from __future__ import annotations

import statistics
import time
from typing import Any
from unittest import mock

import numpy as np
from report import report
from steps_per_second import cluster

SIZE = 1_000_000_000
ROUNDS = 5
# The node writes what was pulled to the disk after a while, which would disturb the next round.
REST = 10.0
CELL = "back = data"


def main() -> None:
    data = np.arange(SIZE, dtype=np.uint8)
    empty = np.zeros(1, dtype=np.uint8)
    copies, fresh, large, small = [], [], [], []
    with cluster() as session:
        there_and_back(session, empty)
        for _ in range(ROUNDS):
            copies.append(copied(data, np.ones_like(data)))
            fresh.append(copied(data, np.empty_like(data)))
            small.append(there_and_back(session, empty))
            large.append(there_and_back(session, data))
            time.sleep(REST)
        remote = through_tls(session, data)
    memcpy, fresh_memcpy = (SIZE / statistics.median(times) for times in (copies, fresh))
    whole = statistics.median(large)
    moved = 2 * SIZE / (whole - statistics.median(small))
    report(
        "push_pull",
        {
            "of_memcpy": moved / memcpy,
            "of_memcpy_whole": 2 * SIZE / whole / memcpy,
            "of_fresh_memcpy": moved / fresh_memcpy,
            "gb_per_second": moved / 1e9,
            "memcpy_gb_per_second": memcpy / 1e9,
            "fresh_memcpy_gb_per_second": fresh_memcpy / 1e9,
            "over_tls": remote / whole,
            "whole_seconds": whole,
            "empty_seconds": statistics.median(small),
        },
        ["numpy"],
    )


def copied(data: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> float:
    """Seconds that one copy of the array takes."""
    start = time.perf_counter()
    np.copyto(target, data)
    return time.perf_counter() - start


def there_and_back(session: Any, data: np.ndarray[Any, Any]) -> float:
    """Seconds from the call to the array's being back."""
    start = time.perf_counter()
    handle = session.start(CELL, cell=True, devices=1, push={"data": data}, pull=["back"])
    back = handle.wait().pulled["back"]
    seconds = time.perf_counter() - start
    if not np.array_equal(back[:: 1 + len(data) // 1000], data[:: 1 + len(data) // 1000]):
        raise SystemExit("the array came back changed")
    return seconds


def through_tls(session: Any, data: np.ndarray[Any, Any]) -> float:
    """Seconds where this process does not see the node's memory."""
    from aios_jupyter.runs import packed

    with mock.patch.object(packed, "_is_it", return_value=False):
        return there_and_back(session, data)


if __name__ == "__main__":
    main()
