"""Batches from WebDataset shards: 100,000 images of 28 x 28 as PNG files, each with its label.

Raw is reading the shards from their beginning to their end, in blocks of a MiB; all is in images a
second, from the page cache, so that no disk hides what the loader costs. `samples` gives each
image's file and label as bytes, without decoding it. `first_epoch` begins with nothing but the
shards: it finds the images, decodes them and keeps them. `later_epochs` are shuffled batches of 256,
as tensors. `raw_cold` and `first_epoch_cold` drop the shards from the page cache before. `first_epoch_over_decoding`
is what that is of decoding alone on these cores, which no loader goes past.

`photos_first_epoch_over_decoding` is the same of JPEG files of 224 x 224.

`bucket` is an epoch from the same shards in a bucket, whose copy is in this machine's cache, over an
epoch from the local ones: `bucket_shards` reads and decodes them anew, `bucket_epoch` does not.
"""

from __future__ import annotations

import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from report import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

IMAGES = 100_000
IN_A_SHARD = 10_000
PHOTOS = 4_000
BATCH = 256
ROUNDS = 5


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AIOS_STATE_DIR"] = f"{directory}/state"
        shards = Path(directory) / "served" / "lab" / "shards"
        blobs = write(shards)
        figures = local(shards, blobs) | bucket(Path(directory) / "served")
        figures |= photos(Path(directory) / "photos")
    report("loader", figures, ["torch", "opencv-python-headless"])


def write(shards: Path) -> list[bytes]:
    """The digits of MNIST, ten times over, each moved by a few pixels; the files of the first shard."""
    import numpy as np

    from aios_jupyter.data import Catalog
    from aios_jupyter.data.formats import encode_image

    shards.mkdir(parents=True)
    x, y = Catalog().load("mnist")
    blobs = []
    for shard in range(IMAGES // IN_A_SHARD):
        moved = np.roll(x, (shard // 3 - 1, shard % 3 - 1), (1, 2))
        files = [encode_image(image) for image in moved]
        blobs = blobs or files
        pack(shards / f"{shard:03}.tar", files, "png", y)
    os.sync()
    return blobs


def local(shards: Path, blobs: list[bytes]) -> dict[str, float]:
    from aios_jupyter.data import Catalog, feed
    from aios_jupyter.data.shards import samples

    Catalog().add("small", shards)
    raw = rate(lambda: read_all(shards))
    found = {"raw_mb_per_second": raw * size_of(shards) / IMAGES / 1e6}
    decoding = decoded(blobs)
    found["samples"] = rate(lambda: use(samples(str(shards)))) / raw
    first = rate(lambda: use(feed.loader("small", BATCH)), before=forget)
    later = rate(lambda: use(feed.loader("small", BATCH)))
    raw_cold = rate(lambda: read_all(shards), before=lambda: drop(shards))
    cold = rate(lambda: use(feed.loader("small", BATCH)), before=lambda: (forget(), drop(shards)))
    found |= {
        "first_epoch": first / raw,
        "first_epoch_over_decoding": first / decoding,
        "later_epochs": later / raw,
        "later_epochs_images_per_second": later,
        "raw_cold_mb_per_second": raw_cold * size_of(shards) / IMAGES / 1e6,
        "first_epoch_cold": cold / raw_cold,
        "later_epochs_over_raw_cold": later / raw_cold,
    }
    return found


def pack(path: Path, blobs: list[bytes], ending: str, labels: Any) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for row, blob in enumerate(blobs):
            for end, data in ((ending, blob), ("cls", str(labels[row]).encode())):
                member = tarfile.TarInfo(f"{path.stem}/{row:06}.{end}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def decoded(blobs: list[bytes]) -> float:
    """Images a second that are decoded on all cores."""
    from aios_jupyter.data.formats import decode_image

    batches = [blobs[start : start + BATCH] for start in range(0, len(blobs), BATCH)]

    def decode(batch: list[bytes]) -> None:
        for blob in batch:
            decode_image(blob, "")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return rate(lambda: use(pool.map(decode, batches)), len(blobs))


def photos(shards: Path) -> dict[str, float]:
    """Parts of scikit-learn's two photographs."""
    import numpy as np
    from sklearn.datasets import load_sample_images

    from aios_jupyter.data import Catalog, feed
    from aios_jupyter.data.formats import encode_image

    shards.mkdir()
    whole = load_sample_images().images
    random = np.random.default_rng(0)
    corners = zip(random.integers(0, 203, PHOTOS), random.integers(0, 416, PHOTOS), strict=True)
    blobs = [
        encode_image(whole[n % 2][row : row + 224, column : column + 224], ".jpg")
        for n, (row, column) in enumerate(corners)
    ]
    pack(shards / "000.tar", blobs, "jpg", range(PHOTOS))
    Catalog().add("photos", shards)
    first = rate(lambda: use(feed.loader("photos", BATCH)), PHOTOS, before=forget)
    return {"photos_first_epoch_over_decoding": first / decoded(blobs)}


def bucket(served: Path) -> dict[str, float]:
    from s3_server import s3_server

    from aios_jupyter.data import Catalog, cache, credentials, feed

    with s3_server(served) as server:
        credentials.put("lab", server.options)
        entry = Catalog().add("far", "s3://lab@lab/shards")
        cache.local(entry)
        here = "small"
        found = {}
        for name, before in (("bucket_shards", forget), ("bucket_epoch", None)):
            pair: dict[str, list[float]] = {"far": [], here: []}
            for _ in range(ROUNDS):
                for ref, rates in pair.items():
                    rates.append(
                        rate(lambda: use(feed.loader(ref, BATCH)), before=before, rounds=1)  # noqa: B023
                    )
            found[name] = statistics.median(pair["far"]) / statistics.median(pair[here])
    return found


def rate(
    work: Callable[[], Any],
    count: int = IMAGES,
    *,
    before: Callable[[], Any] | None = None,
    rounds: int = ROUNDS,
) -> float:
    """Images a second, the median of some rounds."""
    seconds = []
    for _ in range(rounds):
        if before is not None:
            before()
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return count / statistics.median(seconds)


def read_all(shards: Path) -> None:
    block = bytearray(2**20)
    for path in sorted(shards.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def use(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def size_of(shards: Path) -> int:
    return sum(path.stat().st_size for path in shards.iterdir())


def forget() -> None:
    """What the loader has kept of the images; a copy of the bucket's shards stays."""
    from aios_jupyter.data import storage

    for path in storage.data_dir("cache").glob("*/feed-*"):
        path.unlink()


def drop(shards: Path) -> None:
    """Take the shards out of the page cache."""
    for path in shards.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
