"""What int8 gains: the quickstart's network and a ResNet-18 on the same digits, measured by `optimize`.

Each figure is a ratio over the network's own float32 ONNX file, one thread, both taking turns.
`NAME_int8_quicker` is 1 where the turns do not clearly show a gain (for one sample;
`NAME_int8_throughput` is in batches of 32), `NAME_loss_points` what the accuracy fell by on digits
that were not trained on, in points. `digits_pruned_…` has half of the channels taken out before
int8, and two epochs of training after it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any

import numpy as np
import torch
from report import report
from torch import nn

from aios_jupyter.data import Catalog, split
from aios_jupyter.models.optimize import FLOAT, Optimized, Wish, optimize


class Scaled(nn.Module):
    """A network on images of bytes."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels.unsqueeze(1).float() / 255)


def digits_network() -> nn.Module:
    """The network of `notebooks/01_quickstart.ipynb`."""
    return Scaled(
        nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 7 * 7, 96), nn.ReLU(), nn.Linear(96, 10),
        )
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions and the way around them."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.straight = nn.Sequential(
            nn.Conv2d(width, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU(),
            nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider),
        )  # fmt: skip
        self.around: nn.Module = nn.Identity()
        if stride != 1 or width != wider:
            self.around = nn.Sequential(
                nn.Conv2d(width, wider, 1, stride, bias=False), nn.BatchNorm2d(wider)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.straight(x) + self.around(x))


def resnet() -> nn.Module:
    """ResNet-18's blocks behind a stem for small images: 11 million weights."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
    ]  # fmt: skip
    width = 64
    for wider, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(width, wider, stride), Block(wider, wider, 1)]
        width = wider
    return Scaled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)))


def fit(net: nn.Module, x: np.ndarray, y: np.ndarray, epochs: int) -> None:
    """Train as the quickstart does, without augmentation."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), 64):
            some = order[start : start + 64]
            optimizer.zero_grad()
            scores = net(torch.from_numpy(x[some]))
            nn.functional.cross_entropy(scores, torch.from_numpy(y[some]).long()).backward()
            optimizer.step()


def figures(prefix: str, found: Optimized, name: str) -> dict[str, float]:
    """Ratios of the first variant whose name begins with `name` and holds."""
    base = found.of(FLOAT)
    fitting = [row for row in found.rows if row.name.startswith(name)]
    row = next((row for row in fitting if row.holds), fitting[-1])
    return {
        f"{prefix}_smaller": base.size / row.size,
        f"{prefix}_quicker": row.gain if row.clear else min(1.0, row.gain),
        f"{prefix}_throughput": row.per_second / base.per_second,
        f"{prefix}_loss_points": 100 * row.loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4, help="of the quickstart's network")
    parser.add_argument("--resnet-epochs", type=int, default=1)
    options = parser.parse_args()
    import onnxruntime

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["AIOS_STATE_DIR"] = scratch
        x, y = Catalog().load("mnist")
    assert y is not None
    x_train, y_train, x_test, y_test = split(x, y, holdout=0.2, seed=0)
    torch.manual_seed(0)
    small = digits_network()
    fit(small, x_train, y_train, options.epochs)

    def again(net: Any) -> None:
        fit(net, x_train, y_train, 2)

    wish = Wish(int8=True, prune=0.5, finetune=again)
    found = optimize(small, (x_test, y_test), wish, calibrate=x_train)
    result = {"digits_accuracy": found.of(FLOAT).score}
    result |= figures("digits_int8", found, "int8")
    result |= figures("digits_pruned_int8", found, "50% fewer channels, int8")
    large = resnet()
    fit(large, x_train, y_train, options.resnet_epochs)
    found = optimize(large, (x_test, y_test), Wish(int8=True), calibrate=x_train)
    result["resnet_accuracy"] = found.of(FLOAT).score
    result |= figures("resnet_int8", found, "int8")
    report("optimize", result, {"float32 in onnxruntime": onnxruntime.__version__})


if __name__ == "__main__":
    main()
