"""Checkpoints of torch code, in one process: what is kept, what counts, and what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aios_jupyter import train
from aios_jupyter.errors import UsageError

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a local disk, and behind fsspec as an object store would be."""
    place = str(tmp_path / "kept") if request.param == "local" else f"memory://{tmp_path.name}/kept"
    monkeypatch.setenv("AIOS_CHECKPOINTS", place)
    return place


def made(seed: int) -> dict[str, Any]:
    """A state after three steps."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        schedule.step()
    return {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "epoch": seed,
        "mean": torch.full((2,), float(seed)),
        "best": {"loss": 0.5, "names": ["a"]},
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def facts(state: dict[str, Any]) -> dict[str, Any]:
    return {n: v.state_dict() if hasattr(v, "state_dict") else v for n, v in state.items()}


def test_everything_in_the_state_comes_back(folder: str) -> None:
    kept = made(1)
    before = facts(kept)
    train.checkpoint(kept, 7)
    other = made(2)
    other["best"] = None
    assert not same(facts(other), before)
    assert train.restore(other) == 7
    assert same(facts(other), before)


def test_an_optimizer_that_has_made_no_step_takes_over_the_state(folder: str) -> None:
    kept = made(1)
    train.checkpoint({"model": kept["model"], "optimizer": kept["optimizer"]}, 1)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    train.restore({"model": model, "optimizer": optimizer})
    assert same(optimizer.state_dict()["state"], kept["optimizer"].state_dict()["state"])


def test_without_a_checkpoint_nothing_changes(folder: str) -> None:
    state = made(1)
    before = facts(state)
    assert train.restore(state) == 0
    assert same(facts(state), before)


def test_the_last_ones_are_kept_and_the_highest_step_counts(folder: str) -> None:
    for step in (2, 9, 10, 11):
        train.checkpoint({"step": step}, step, keep=3)
    state = {"step": 0}
    assert train.restore(state) == 11
    assert state == {"step": 11}
    from aios_jupyter.runs.places import Place

    assert sorted(Place(folder).steps()) == [9, 10, 11]


def test_a_step_is_kept_again(folder: str) -> None:
    train.checkpoint({"value": "old", "more": torch.ones(3)}, 5)
    train.checkpoint({"value": "new"}, 5)
    state = {"value": ""}
    assert train.restore(state) == 5
    assert state == {"value": "new"}


def test_one_that_was_not_finished_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_CHECKPOINTS", str(tmp_path))
    train.checkpoint({"value": 1}, 1)
    dies = (
        "import os, torch\n"
        "import torch.distributed.checkpoint as dcp\n"
        "from aios_jupyter import train\n"
        "finish = dcp.FileSystemWriter.finish\n"
        "dcp.FileSystemWriter.finish = lambda *a, **k: os._exit(9)\n"
        "train.checkpoint({'value': torch.ones(4)}, 2)\n"
    )
    assert subprocess.run([sys.executable, "-c", dies], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 2
    state = {"value": 0}
    assert train.restore(state) == 1
    train.checkpoint({"value": 3}, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"step-1", "step-3"}


def test_a_disk_that_cannot_be_written_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AIOS_CHECKPOINTS", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"step 1 could not be written to .*--checkpoints"):
        train.checkpoint({"value": 1}, 1)


def test_a_full_disk_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    monkeypatch.setenv("AIOS_CHECKPOINTS", "/nonexistent/checkpoints")
    from aios_jupyter.runs import places

    def no_space(*args: Any, **kwargs: Any) -> None:
        full.write_bytes(b"x")

    monkeypatch.setattr(places.Place, "begin", no_space)
    with pytest.raises(UsageError, match="No space left on device"):
        train.checkpoint({"value": 1}, 1)


def test_an_optimizer_without_its_model_is_refused(folder: str) -> None:
    with pytest.raises(UsageError, match="belongs to no module of the state"):
        train.checkpoint({"optimizer": made(1)["optimizer"]}, 1)


@pytest.mark.parametrize(("step", "keep"), [(0, 2), (-1, 2), (1, 0)])
def test_steps_that_make_no_sense_are_refused(folder: str, step: int, keep: int) -> None:
    with pytest.raises(UsageError, match="step from 1 on"):
        train.checkpoint({}, step, keep=keep)


def test_several_nodes_need_a_place_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOS_CHECKPOINTS", "")
    with pytest.raises(UsageError, match="--checkpoints URL"):
        train.checkpoint({}, 1)
