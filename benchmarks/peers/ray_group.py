"""Ray: a placement group of one GPU, from the call until it is ready; see `peers/__init__.py`.

Runs in an interpreter that has Ray, which need not be the benchmark's own.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.util import placement_group, remove_placement_group


def main() -> None:
    ray.init(num_cpus=2, num_gpus=8, include_dashboard=False, log_to_driver=False)
    print("ready", ray.__version__, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        group = placement_group([{"GPU": 1}])
        ray.get(group.ready())
        print(time.perf_counter() - started, flush=True)
        remove_placement_group(group)
    ray.shutdown()


if __name__ == "__main__":
    main()
