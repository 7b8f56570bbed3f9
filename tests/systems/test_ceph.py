"""Datasets on a real Ceph, through its S3 gateway."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from systems.conftest import ASKED_FOR, system

from aios_jupyter.data import cache, credentials, storage, transfer, upkeep
from aios_jupyter.data.augment import augment
from aios_jupyter.errors import AccessError

pytestmark = [
    pytest.mark.systems,
    pytest.mark.skipif(
        not (ASKED_FOR and all(map(shutil.which, ("ceph-mon", "ceph-osd", "radosgw")))),
        reason="Ceph is not here: make test-systems",
    ),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def ceph() -> Iterator[str]:
    with system("ceph.sh") as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def lab(ceph) -> str:
    """Credentials by the name `lab`, and a bucket of their own."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    common = {"endpoint_url": ceph}
    credentials.put("lab", {"key": "AIOSKEY", "secret": "AIOSSECRET", **common})
    credentials.put("other", {"key": "OTHERKEY", "secret": "OTHERSECRET", **common})
    fs, path = storage.locate("s3://lab@lab")
    if not fs.exists(path):
        fs.mkdir(path)
    return "s3://lab@lab"


def test_a_dataset_is_copied_read_augmented_and_mended(lab, catalog, npz, tmp_path):
    local = catalog.add("noise", npz)
    catalog.copy("noise", f"{lab}/noise.npz")
    remote = catalog.add("far", f"{lab}/noise.npz")
    assert remote.version == local.version
    assert np.array_equal(catalog.load("far")[0], catalog.load("noise")[0])
    made = augment("far", f"{lab}/more.npz", "hflip(1), resize(16)", copies=1)
    assert catalog.load(made)[0].shape == (600, 16, 16, 3)
    blob = npz.read_bytes()
    npz.write_bytes(blob[:9_000_000] + b"damage" + blob[9_000_006:])
    (found,) = upkeep.verify(catalog, local, mend=True)
    assert found.mended and npz.read_bytes() == blob


def test_a_copy_goes_on_where_it_stopped_and_the_cache_holds_it(lab, catalog, npz, tmp_path):
    catalog.copy(str(npz), f"{lab}/again.npz")
    entry = catalog.add("far", f"{lab}/again.npz")

    class Stop(BaseException):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        catalog.copy("far", tmp_path / "back.npz", on_progress=stop)
    seen: list[int] = []
    catalog.copy("far", tmp_path / "back.npz", on_progress=lambda done, _: seen.append(done))
    assert seen[0] >= entry.size / 2 - transfer.RANGE
    assert (tmp_path / "back.npz").read_bytes() == npz.read_bytes()
    here = cache.local(entry)
    storage.locate(entry.url)[0].rm(storage.locate(entry.url)[1])
    assert cache.local(entry) == here


def test_somebody_else_may_not_read_the_bucket(lab, catalog, npz):
    catalog.copy(str(npz), f"{lab}/mine.npz")
    with pytest.raises(AccessError, match="may not be read with these credentials"):
        catalog.get("s3://other@lab/mine.npz")
