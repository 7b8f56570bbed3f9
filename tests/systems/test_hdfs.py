"""Datasets on a real HDFS, by its own protocol and by WebHDFS."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
from systems.conftest import ASKED_FOR, system

from aios_jupyter.data import storage
from aios_jupyter.data.augment import augment
from aios_jupyter.errors import AccessError, NotFoundError

pytestmark = [
    pytest.mark.systems,
    pytest.mark.skipif(
        not (ASKED_FOR and shutil.which("java")),
        reason="HDFS is not here: make test-systems",
    ),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with system("hdfs.sh") as port:
        yield port


@pytest.fixture(params=["hdfs", "webhdfs"])
def place(request, port) -> str:
    import getpass

    if request.param == "hdfs":
        return f"hdfs://127.0.0.1:{port}/data-{request.node.name[:12]}-h"
    return f"webhdfs://{getpass.getuser()}@127.0.0.1:{port + 1}/data-{request.node.name[:12]}-w"


def test_a_dataset_is_copied_read_and_augmented(place, catalog, npz, tmp_path):
    local = catalog.add("noise", npz)
    catalog.copy("noise", f"{place}/noise.npz")
    remote = catalog.add("far", f"{place}/noise.npz")
    assert remote.version == local.version
    assert np.array_equal(catalog.load("far")[0], catalog.load("noise")[0])
    made = augment("far", f"{place}/more.npz", "hflip(1), resize(16)", copies=1)
    assert catalog.load(made)[0].shape == (600, 16, 16, 3)
    catalog.copy("far", tmp_path / "back.npz")
    assert (tmp_path / "back.npz").read_bytes() == npz.read_bytes()


def test_a_table_is_read_in_ranges_and_what_is_missing_is_named(place, catalog, tmp_path):
    (tmp_path / "t.csv").write_text("a,label\n1,x\n2,y\n")
    catalog.copy(str(tmp_path / "t.csv"), f"{place}/t.csv")
    assert catalog.frame(catalog.add("t", f"{place}/t.csv"))["a"].tolist() == [1, 2]
    fs, path = storage.locate(f"{place}/t.csv")
    assert fs.cat_file(path, start=2, end=7) == b"label"
    with pytest.raises(NotFoundError, match="nothing at"):
        catalog.get(f"{place}/none.csv")


def test_a_second_user_is_refused(port, catalog, npz):
    import getpass

    mine = f"webhdfs://{getpass.getuser()}@127.0.0.1:{port + 1}/private"
    catalog.copy(str(npz), f"{mine}/noise.npz")
    fs, path = storage.locate(mine)
    fs._call("SETPERMISSION", method="put", path=path, permission="700")
    with pytest.raises(AccessError):
        catalog.get(f"webhdfs://stranger@127.0.0.1:{port + 1}/private/noise.npz")
