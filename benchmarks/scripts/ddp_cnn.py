"""A plain torchrun script: a small CNN on random digits, DistributedDataParallel on gloo.

It knows nothing of this package. With --record FILE rank 0 writes when its first step ended (seconds
since the epoch) and how many steps a second it made after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", required=True)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=20)
    options = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    model = DistributedDataParallel(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
    )
    optimizer = torch.optim.Adam(model.parameters())
    images = torch.rand(512, 1, 28, 28)
    labels = torch.randint(0, 10, (512,))

    def step(number: int) -> None:
        batch = slice(number * 64 % 512, number * 64 % 512 + 64)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(0)
    record = {"first_step": time.time()}
    if options.steps > 1:
        for number in range(options.warmup):
            step(number)
        dist.barrier()
        started = time.perf_counter()
        for number in range(options.steps):
            step(number)
        dist.barrier()
        record["steps_per_second"] = options.steps / (time.perf_counter() - started)
    if dist.get_rank() == 0:
        with open(options.record, "w") as file:  # noqa: PTH123  # as such scripts do
            json.dump(record, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
