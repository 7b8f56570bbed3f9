"""Whether a network learns as well from fused augmentation as from one operation after the other.

A small network on 8,000 digits of MNIST for a few epochs, with the same values drawn for the same
images, three seeds each; `accuracy_difference` is the mean of ours less that of the reference, on
2,000 other digits, and `seed_deviation` how far seeds differ by themselves.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from peers import one_by_one
from report import report
from torch import nn

from aios_jupyter.data import Catalog, split
from aios_jupyter.data.pipeline import Pipeline

POLICY = (
    "rotate(15), shift(0.1), scale(0.9, 1.1), shear(8), crop(0.9), brightness(0.1), contrast(0.2)"
)
SEEDS, EPOCHS, BATCH = (0, 1, 2), 4, 64


def fused(pipeline, images, indices, copy):
    return pipeline.apply(images, indices=indices, copy=copy)


def reference(pipeline, images, indices, copy):
    return one_by_one.augment(images, pipeline, indices, copy)


def plain(_pipeline, images, _indices, _copy):
    return images


def accuracy(augment, seed: int, data) -> float:
    """Percent right on the digits held out."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    pipeline = Pipeline(POLICY, seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(1, EPOCHS + 1):
        for picked in np.array_split(order.permutation(len(x)), len(x) // BATCH):
            images = augment(pipeline, x[picked], picked, epoch)
            loss = nn.functional.cross_entropy(model(scaled(images)), torch.from_numpy(y[picked]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = model(scaled(x_test)).argmax(1).numpy() == y_test
    return 100 * float(right.mean())


def scaled(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images[:, None].astype(np.float32) / 255)


def main() -> None:
    torch.set_num_threads(1)
    x, y = Catalog().load("mnist")
    x, y, x_test, y_test = split(x, y.astype(np.int64), holdout=0.2)
    found = {
        function.__name__: [accuracy(function, seed, (x, y, x_test, y_test)) for seed in SEEDS]
        for function in (fused, reference, plain)
    }
    for name, values in found.items():
        print(
            f"{name:10}{statistics.mean(values):7.2f} %  ({', '.join(f'{v:.2f}' for v in values)})"
        )
    means = {name: statistics.mean(values) for name, values in found.items()}
    report(
        "augment_accuracy",
        {
            "fused_percent": means["fused"],
            "reference_percent": means["reference"],
            "without_percent": means["plain"],
            "accuracy_difference": means["fused"] - means["reference"],
            "seed_deviation": statistics.stdev(found["reference"]),
        },
        ["opencv-python-headless", "torch"],
    )


if __name__ == "__main__":
    main()
