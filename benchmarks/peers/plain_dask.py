"""Dask without anything beside it: see `peers/__init__.py`.

`lock`: a distributed.Lock, acquired. `submit`: a task that asks for one GPU of a worker's
`resources`, until its result is there.
"""

from __future__ import annotations

import sys
import time

import distributed
from distributed import Client, LocalCluster, Lock


def main() -> None:
    what = sys.argv[1]
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=8, resources={"GPU": 8}, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        print("ready", distributed.__version__, flush=True)
        for turn, _ in enumerate(sys.stdin):
            started = time.perf_counter()
            if what == "lock":
                lock = Lock(f"gpu{turn % 8}")
                lock.acquire()
            else:
                client.submit(int, turn, resources={"GPU": 1}, pure=False).result()
            print(time.perf_counter() - started, flush=True)
            if what == "lock":
                lock.release()


if __name__ == "__main__":
    main()
