"""MIG slices are devices like others: leased by UUID, with constraints, on a live cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import private_directories

from aios_jupyter.cluster import embedded
from aios_jupyter.errors import AllocationError
from aios_jupyter.session import Session, connect

H100 = "gpu name=NVIDIA H100;uuid=GPU-aaa;mig=1;slices=3;total=70000000000"
L4 = "gpu name=NVIDIA L4;uuid=GPU-bbb;total=24000000000"
SHOW = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"


@pytest.fixture(scope="module")
def node(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster whose node has three slices of an H100 and an L4."""
    root = tmp_path_factory.mktemp("slices")
    state = root / "nvml-state"
    state.write_text(f"{H100}\n{L4}\n")
    with pytest.MonkeyPatch.context() as patch, private_directories(root):
        patch.setenv("LD_LIBRARY_PATH", str(nvml_library))
        patch.setenv("FAKE_NVML_STATE", str(state))
        embedded.ensure()
        yield


@pytest.fixture
def sliced(node: None) -> Iterator[Session]:
    """A session with that cluster."""
    with connect(label="slices") as session:
        yield session


def test_slices_are_leased_by_uuid_and_keep_to_what_was_asked_of_them(sliced: Session) -> None:
    kinds = {row["id"]: row["kind"] for row in sliced.status()["devices"].values()}
    assert [id for id, kind in kinds.items() if kind == "mig"] == [
        *("MIG-aaa-0", "MIG-aaa-1", "MIG-aaa-2")
    ]
    first = sliced.alloc(gpus=1, model="mig 1g")
    assert first.slots[0].device == "MIG-aaa-0"
    whole = sliced.alloc(gpus=1, memory="12GB")
    assert whole.slots[0].device == "GPU-bbb"
    with pytest.raises(AllocationError, match="ask for at most 3"):
        sliced.alloc(gpus=4, model="h100")
    with pytest.raises(AllocationError, match="the largest has 10 GB"):
        sliced.alloc(gpus=1, model="h100", memory="12GB")
    with pytest.raises(AllocationError, match="Resources"):
        sliced.alloc(gpus=3, model="h100", nonblock=True)
    half = sliced.alloc(gpus=1, memory="5GB", share=True, model="h100")
    other = sliced.alloc(gpus=1, memory="5GB", share=True, model="h100")
    assert half.slots[0].device == other.slots[0].device == "MIG-aaa-1"


def test_each_rank_sees_its_own_slice_alone(sliced: Session) -> None:
    sliced.alloc(gpus=3, model="h100")
    handle = sliced.start(SHOW, cell=True)
    handle.wait()
    seen = [
        word for text in sliced.logs(handle.id) for word in text.split() if word.startswith("MIG-")
    ]
    assert sorted(seen) == ["MIG-aaa-0", "MIG-aaa-1", "MIG-aaa-2"]
