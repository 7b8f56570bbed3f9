"""Tables and shared values on a live cluster: its workers prepare, its ranks share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from aios_jupyter.commands import Host, invoke
from aios_jupyter.data import Catalog, Recipe, pieces
from aios_jupyter.data.prepare import prepare
from aios_jupyter.errors import ConflictError, UsageError
from aios_jupyter.session import Session

TEXT = "drop_duplicates, fill(age, median), scale(age, income), onehot(city)"


@pytest.fixture
def people(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table in two parts, each a task."""
    monkeypatch.setattr(pieces, "PART_ROWS", 2000)
    random = np.random.default_rng(0)
    n = 3 * pieces.PART_ROWS // 2
    table = pa.table(
        {
            "age": pa.array(random.integers(0, 90, n).astype(float), mask=random.random(n) < 0.1),
            "income": random.lognormal(10, 1, n),
            "city": random.choice(["Rome", "Oslo"], n),
        }
    )
    table = pa.concat_tables([table, table[:10]])
    parquet.write_table(table, tmp_path / "people.parquet", row_group_size=pieces.PART_ROWS // 4)
    Catalog().add("people", tmp_path / "people.parquet")
    return "people"


def test_workers_prepare_the_same_as_one_process(session: Session, people: str) -> None:
    told: list[tuple[int, int]] = []
    made = session.prepare(people, "ready", TEXT, on_progress=lambda *done: told.append(done))
    assert told[-1] == (2, 2)
    assert made.entry.version == prepare(people, "here", TEXT).entry.version
    assert made.changes.rows[0] - made.changes.rows[1] == 10
    again = session.prepare(people, "again", like="ready")
    assert again.entry.version == made.entry.version
    assert Recipe.load("again").learned == made.recipe.learned
    with pytest.raises(UsageError, match=r"does not pass check_range\(age, 0, 80\): these"):
        session.prepare(people, "no", "check_range(age, 0, 80)")
    with pytest.raises(UsageError, match="In the recipe at column 1: there is no step 'scal'"):
        session.prepare(people, "no", "scal(age)")


def test_the_verbs_show_what_has_changed(
    session: Session, people: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def aios(*words: str) -> str:
        host = Host()
        try:
            invoke(["data", *words], host)
        finally:
            host.close()
        return capsys.readouterr().out

    text = aios("clean", people, "-o", "clean", "--steps", "drop_duplicates, fill(age, median)")
    assert "3,010 rows before, 3,000 after" in text
    assert "10 rows dropped" in text
    assert "city" in aios("features", "clean", "-o", "ready", "--label", "city")
    assert "onehot(city)" in aios("steps")
    with pytest.raises(UsageError, match="not both"):
        aios("clean", people, "-o", "x", "--steps", "drop_duplicates", "--like", "ready")


def test_ranks_share_values_with_the_notebook(session: Session) -> None:
    session.kv.put("rate", 0.5)
    cell = (
        "from aios_jupyter import kv, train\n"
        "kv.update('seen', lambda found: sorted([*(found or []), train.rank()]))\n"
        "kv.put(f'rank/{train.rank()}', kv.get('rate') * train.rank())\n"
    )
    watching = session.kv.watch("rank/*", timeout=60)
    session.start(cell, cell=True, devices=2).wait()
    assert session.kv.get("seen") == [0, 1]
    assert {item.key: item.value for item in (next(watching), next(watching))} == {
        "rank/0": 0.0,
        "rank/1": 0.5,
    }
    watching.close()


FED = """
import aios_jupyter
import torch
from aios_jupyter import kv, train
batches = aios_jupyter.loader("mnist", 500, seed=1)
model = train.prepare(torch.nn.Linear(1, 1))
state = {"model": model, "batches": batches}
train.restore(state)
labels = []
while batches.epoch < 1:
    for number, (x, y) in enumerate(batches, 1):
        labels += y.tolist()
        if number == stop_at:
            train.checkpoint(state, number)
            break
    else:
        break
    if stop_at:
        break
kv.put(f"fed/{stop_at}/{train.rank()}", labels)
"""


def test_ranks_are_fed_and_go_on_from_a_checkpoint(session: Session) -> None:
    """Two ranks stop within an epoch, and one alone goes on with what they have left."""
    first = session.start(FED, cell=True, devices=2, push={"stop_at": 4})
    first.wait()
    second = session.start(FED, cell=True, devices=1, push={"stop_at": 0}, resume=first.id)
    second.wait()
    labels = [item.value for item in session.kv.ls("fed/*")]
    assert sorted(map(len, labels)) == [2000, 2000, 6000]
    y = Catalog().load("mnist")[1]
    assert y is not None
    assert np.array_equal(np.bincount(np.concatenate(labels)), np.bincount(y))


def test_datasets_are_kept_in_order_from_python(session: Session, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    np.savez(tmp_path / "noise.npz", x=x)
    added = session.data_add("noise", tmp_path / "noise.npz", made_from="mnist", how="by a die")
    assert (added.made_from[0].partition("@")[0], added.how) == ("mnist", "by a die")
    entry = session.data_copy(added.ref, "mine")
    assert session.data_tag("mine", ["keep"]).tags == ("keep",)
    assert ("dataset", entry.ref) in [(use.kind, use.name) for use in session.data_usage()]
    used = session.data_quota()[0].used
    assert used >= entry.size
    assert session.data_quota(size=used)[0].limit == used
    with pytest.raises(ConflictError, match="would pass the quota"):
        session.augment("mine", "more", "hflip")
    assert session.data_quota(remove=True)[0].limit is None
    assert session.data_verify("mine") == []
    Path(entry.url).write_bytes(Path(entry.url).read_bytes()[:-9] + b"damaged!!")
    (found,) = session.data_verify("mine", mend=False)
    assert found.entry.ref == entry.ref and not found.mended
    (found,) = session.data_verify("mine")
    assert found.mended
    session.data_keep("mine", 1)
    session.data_remove("mine")
    assert str(entry.url) in [item.what for item in session.data_collect(dry_run=True)]
    assert str(entry.url) in [item.what for item in session.data_collect()]
    assert not Path(entry.url).exists()
