"""Encryption at rest, against pyrage called directly on the same file: one stream of 256 MB.

Each figure is the library's seconds over ours, the median of rounds in turn. The library reads a
file and writes another one; ours also hashes what it has written, for the catalogue (blocks of it on
all processors), and moves it into place. `…_without_hash` leaves that out of ours: hashing while the
library works takes longer still, since that keeps Python's lock.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import report

SIZE = 256 * 2**20
ROUNDS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AIOS_STATE_DIR"] = f"{directory}/state"
        report("age", measured(Path(directory)), ["pyrage"])


def measured(directory: Path) -> dict[str, float]:
    import numpy as np
    import pyrage

    from aios_jupyter.data import Catalog, layout, vault

    random = np.random.default_rng(0)
    plain = directory / "noise.npy"
    np.save(plain, random.integers(0, 256, SIZE, np.uint8))
    catalog = Catalog()
    entry = catalog.add("noise", plain)
    public = pyrage.x25519.Recipient.from_str(vault.key("me"))
    secret = vault._identities()
    sealed, opened = directory / "noise.age", directory / "noise.back"

    def stream(source: Path, target: Path, work: Callable[..., Any], keys: Any) -> None:
        with source.open("rb") as reading, target.open("wb") as writing:
            work(reading, writing, keys)

    locked = vault.encrypt(entry, ["me"], "locked")
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]] = {
        "encrypt": (
            lambda: stream(plain, sealed, pyrage.encrypt_io, [public]),
            lambda: vault.encrypt(entry, ["me"], "locked"),
            lambda: layout.content(str(sealed), "npy"),
        ),
        "decrypt": (
            lambda: stream(sealed, opened, pyrage.decrypt_io, secret),
            lambda: vault.decrypt(locked, "plain"),
            lambda: layout.content(str(opened), "npy"),
        ),
    }
    figures = {}
    for name, (theirs, ours, hashing) in pairs.items():
        seconds: dict[str, list[float]] = {"theirs": [], "ours": [], "hashing": []}
        for _ in range(ROUNDS):
            for who, work in (("theirs", theirs), ("ours", ours), ("hashing", hashing)):
                start = time.perf_counter()
                work()
                seconds[who].append(time.perf_counter() - start)
        middle = {who: statistics.median(found) for who, found in seconds.items()}
        figures[name] = middle["theirs"] / middle["ours"]
        figures[f"{name}_without_hash"] = middle["theirs"] / (middle["ours"] - middle["hashing"])
        figures[f"{name}_library_mb_per_second"] = SIZE / 1e6 / middle["theirs"]
    return figures


if __name__ == "__main__":
    main()
