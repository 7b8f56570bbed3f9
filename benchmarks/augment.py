"""Augmentation: the fused pipeline against libraries that do it operation by operation.

Rotate, flip, random crop, resize and color jitter of real photographs (427 x 640 to 224 x 224) and
of 32 x 32 pieces of them, uint8 in memory; images per CPU-second, one thread, each library in a
process of its own, the passes of all taking turns; then ours and the best one in two processes at
once. `over_raw_warp` is the cost over that of one `cv2.warpAffine` with the same matrices.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from peers import HERE, Peer
from report import report
from sklearn.datasets import load_sample_images

PASSES = 5
NOT_ALIKE = """Not like for like:
- fused resamples once, bilinearly, after halving what shrinks to less than half; the others
  resample two or three times; PIL and torchvision antialias exactly, the others not at all
- its colors are one linear step, clipped once; the others clip after each operation
- it turns hue in YIQ, the others in HSV
- keras zooms about the middle in place of a random crop, and works in float32, as kornia does
- torchvision_batch draws once for a whole batch, the others once for each image"""
OWN = ("fused", "warp", "pil", "opencv")
OTHERS = ("albumentations", "torchvision_pil", "torchvision_tensor", "kornia", "keras")
# OpenCV by hand is a bound rather than a library.
NO_LIBRARY = ("fused", "warp", "opencv")


def peer(stack: contextlib.ExitStack, python: str, name: str, *arguments: str) -> Peer:
    return stack.enter_context(Peer(python, str(HERE / "augmenting.py"), name, *arguments))


def measure(
    images: np.ndarray, side: int, seconds: float, names: dict[str, str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Images per CPU-second of each, medians of passes in turn; `NAME_twice` in two processes."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        path = Path(directory) / "images.npy"
        np.save(path, images)
        rest = (str(path), str(side), str(seconds / PASSES))
        running = {name: peer(stack, python, name, *rest) for name, python in names.items()}
        found: dict[str, list[float]] = {name: [] for name in running}
        for _ in range(PASSES):
            for name, process in running.items():
                found[name].append(process.take())
        rates = {name: statistics.median(values) for name, values in found.items()}
        best = max((name for name in rates if name not in NO_LIBRARY), key=rates.__getitem__)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        for name in ("fused", best):
            pair = [running[name], peer(stack, names[name], name, *rest)]
            sums = [sum(pool.map(Peer.take, pair)) for _ in range(PASSES)]
            rates[f"{name}_twice"] = statistics.median(sums)
        rates["best"], rates["best_twice"] = rates[best], rates[f"{best}_twice"]
        return rates, {name: process.version for name, process in running.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peers",
        metavar="PYTHON",
        help="an interpreter that has albumentations, torchvision, kornia and keras",
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for each library")
    chosen = parser.parse_args()
    names = dict.fromkeys(OWN, sys.executable)
    if chosen.peers:
        names |= dict.fromkeys(OTHERS, chosen.peers)
    else:
        print(f"{', '.join(OTHERS)} are left out: give --peers PYTHON, which has them")
    photos = np.stack(load_sample_images().images)
    pieces = np.concatenate(
        [photos[:, r : r + 32, c : c + 32] for r in range(0, 390, 32) for c in range(0, 600, 32)]
    )
    figures: dict[str, float] = {}
    versions: dict[str, str] = {}
    for label, images, side in (
        ("photos", np.concatenate([photos] * 8), 224),
        ("small", pieces, 32),
    ):
        here = names | ({"torchvision_batch": chosen.peers} if chosen.peers and side == 32 else {})
        rates, found = measure(images, side, chosen.seconds, here)
        versions |= found
        print(f"{label}: {images.shape[1]} x {images.shape[2]} to {side} x {side}")
        for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
            if not name.startswith("best"):
                print(f"  {name:22}{rate:10.0f} images per CPU-second")
        figures[f"{label}_speedup"] = rates["fused"] / rates["best"]
        figures[f"{label}_speedup_twice"] = rates["fused_twice"] / rates["best_twice"]
        figures[f"{label}_over_opencv"] = rates["fused"] / rates["opencv"]
        figures[f"{label}_per_cpu_second"] = rates["fused"]
        if label == "photos":
            figures["over_raw_warp"] = rates["warp"] / rates["fused"]
    print(NOT_ALIKE)
    del versions["fused"], versions["warp"]
    report("augment", figures, versions)


if __name__ == "__main__":
    main()
