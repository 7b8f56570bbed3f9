from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import until

from aios_jupyter.errors import ConflictError, NotFoundError, UsageError
from aios_jupyter.session import Session, endpoint_files

X = np.ones((1, 2), np.float32)


def test_an_endpoint_follows_its_alias_and_is_asked_by_it(session: Session, slopes: Path) -> None:
    for slope in (1, 2):
        session.publish(str(slopes / f"{slope}.onnx"), "followed")
    session.promote("followed/1", "champion")
    endpoint = session.serve("followed@champion", replicas=2, devices=2)
    assert endpoint.version == "1"
    assert len(session.model_card("followed/1").edges) == 1
    assert session.predict("followed@champion", X).tolist() == [[1, 1]]
    session.promote("followed/2", "champion")
    # Also in the moment in which the alias has moved and the endpoint has not.
    until(
        lambda: session.predict("followed@champion", X).tolist() == [[2, 2]], "the new version", 60
    )
    until(lambda: session.endpoints()[0]["model"] == "followed/2", "the broker to hear of it", 60)
    assert session.rollback("followed", "champion").version == 1
    until(lambda: session.predict("followed", X).tolist() == [[1, 1]], "the old version", 60)
    with pytest.raises(ConflictError, match="is live"):
        session.serve("followed", name="followed")
    session.stop_endpoint("followed")
    assert session.endpoints() == []
    with pytest.raises(NotFoundError, match="Nobody serves"):
        session.predict("followed@champion", X)


def test_an_endpoint_with_all_that_it_can_have(session: Session, slopes: Path) -> None:
    for slope in (1, 2):
        session.publish(
            str(slopes / f"{slope}.onnx"), "rich", alias="champion" if slope == 1 else "challenger",
            profile=np.random.default_rng(slope).normal(size=(99, 2)).astype(np.float32),
        )  # fmt: skip
    heard: list[str] = []
    session.on_notice = heard.append
    endpoint = session.serve(
        "rich@champion", replicas="0:2", idle=1, shadow="challenger", tls=True, watch=0.5
    )
    lease = session.status()["leases"][endpoint.lease]
    assert len(lease["devices"]) == 2
    assert endpoint.url.startswith("https://127.0.0.1:")
    assert Path(endpoint.token_file).with_name("endpoint-rich-own.key").stat().st_mode & 0o77 == 0
    assert session.predict("rich@champion", X).tolist() == [[1, 1]]

    def row() -> dict[str, Any]:
        return next(row for row in session.endpoints() if row["name"] == "rich")

    until(lambda: row()["metrics"].get("replicas") == 0, "it to be at rest", 60)
    far = np.full((64, 2), 50, np.float32)
    assert session.predict("rich", far).shape == (64, 2), "whoever asks wakes it"

    def alarmed() -> bool:
        session.predict("rich", far)
        return bool(row()["alerts"])

    until(alarmed, "an alert in the snapshot", 60)
    until(lambda: heard, "the notebook to be told")
    assert "far from the training data" in heard[0]
    seen = session.monitor("rich")
    assert seen["traffic"].shadow["same"] > 0
    assert seen["alerts"]
    session.stop_endpoint("rich")
    left = Path(endpoint.token_file).parent.glob("endpoint-rich*")
    assert list(left) == [], "neither token nor key"


def test_a_dataset_is_predicted_by_the_clusters_workers(
    session: Session, slopes: Path, tmp_path: Path
) -> None:
    from aios_jupyter.data.catalog import Catalog

    version = session.publish(str(slopes / "2.onnx"), "by-workers")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n4,3\n")
    session.data_add("rows", tmp_path / "rows.csv")
    made = session.predict_dataset("by-workers", "rows", "rows-out")
    assert made.how == f"predicted by {version.ref}"
    assert Catalog().frame("rows-out")["score"].tolist() == [4, 8]


def test_raw_rows_are_prepared_in_front_of_a_model(
    session: Session, slopes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from aios_jupyter.commands import main
    from aios_jupyter.data.catalog import Catalog

    (tmp_path / "raw.csv").write_text("a,b,label\n1,x,0\n,y,1\n5,x,0\n")
    session.data_add("raw-ab", tmp_path / "raw.csv")
    session.prepare("raw-ab", "ready-ab", "fill(a, median), ordinal(b)")
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(slopes / "2.onnx"), "--name", "prepared", "--recipe", "ready-ab"])
    assert not ended.value.code
    assert session.model_card("prepared").version.lineage["data"].startswith("ready-ab@")
    session.serve("prepared")
    rows = tmp_path / "rows.json"
    rows.write_text('[{"a": null, "b": "y"}, {"a": 4, "b": "z"}]')
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["predict", "prepared", str(rows), "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out) == [[6, 2], [8, -2]]
    session.stop_endpoint("prepared")
    session.predict_dataset("prepared", "raw-ab", "raw-out")  # by the cluster's workers
    made = Catalog().frame("raw-out")
    assert made["b"].tolist() == ["x", "y", "x"]
    assert made["score"].tolist() == [2, 6, 10]


def test_what_cannot_be_served_takes_no_device(session: Session, slopes: Path) -> None:
    session.publish(str(slopes / "1.onnx"), "lonely")
    held = len(session.status()["leases"])
    with pytest.raises(NotFoundError, match="no alias 'challenger'"):
        session.serve("lonely", canary=("challenger", 0.1))
    with pytest.raises(NotFoundError, match="no alias 'challenger'"):
        session.serve("lonely", shadow="challenger")
    with pytest.raises(UsageError, match="model"):
        session.serve("a b")
    with pytest.raises(UsageError, match="replicas"):
        session.serve("lonely", replicas="3:1")
    with pytest.raises(UsageError, match="both"):
        session.serve("lonely", certificate=slopes / "1.onnx")
    assert len(session.status()["leases"]) == held


def test_a_token_needs_no_cluster_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    path = endpoint_files.new_token("digits")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(path.read_text()) > 30
