from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_jupyter.data import Catalog
from aios_jupyter.errors import AccessError, ConflictError, NotFoundError, UsageError
from aios_jupyter.models import fetch, load, resolve, rollback, set_alias, versions
from aios_jupyter.models.aliases import history, tag
from aios_jupyter.models.card import card, compare, lineage_edges, paths

from .conftest import shell


def test_an_alias_goes_back_to_what_it_named_before(line: Callable[..., Any]) -> None:
    for slope in (1.0, 2.0, 3.0):
        line("back", slope, alias="champion")
    assert history("back") == {"champion": [1, 2]}
    told = {row["version"]: row["before"] for row in versions("back")}
    assert told == {3: {"champion": 2}, 2: {}, 1: {}}, "every row says where rollback leads"
    assert rollback("back", "champion").ref == "back/2"
    assert resolve("back@champion").version == 2
    set_alias("back/3", "champion")
    assert rollback("back", "champion").version == 2
    assert rollback("back", "champion").version == 1
    with pytest.raises(ConflictError, match="has named no other version than 1"):
        rollback("back", "champion")
    assert resolve("back@champion").version == 1, "a refusal changes nothing"
    with pytest.raises(NotFoundError, match="no alias 'challenger'"):
        rollback("back", "challenger")
    set_alias("back/1", "champion")
    assert history("back") == {"champion": []}, "to stay is no move"


def test_versions_that_are_gone_are_passed_over(line: Callable[..., Any]) -> None:
    from aios_jupyter.models.store import registry

    for slope in (1.0, 2.0, 3.0):
        line("gone", slope, alias="champion")
    with registry() as client:
        client.delete_model_version("gone", "2")
    assert rollback("gone", "champion").version == 1


def test_a_card_tells_where_a_model_comes_from_and_where_it_is(line: Callable[..., Any]) -> None:
    catalog = Catalog()
    raw = catalog.add_arrays("raw-line", np.ones((4, 2, 2), np.uint8))
    made = catalog.add_arrays("line-train", np.zeros((4, 2, 2), np.uint8), made_from=raw)
    version = line("carded", lineage={"data": made.ref, "run": "r-1"}, metrics={"loss": 0.5})
    rows = [
        {"name": "one", "model": version.ref},
        {"name": "two", "model": "carded/99"},
    ]
    found = card("carded", rows)
    assert paths(found.edges) == [[raw.ref, made.ref, "run r-1", "carded/1", "endpoint one"]]
    assert found.intact is True
    assert {file.name for file in found.files} >= {"model.onnx", "MLmodel"}
    assert all(len(file.sha256) == 64 and file.size for file in found.files)


def test_a_changed_file_is_told_and_not_opened(line: Callable[..., Any]) -> None:
    version = line("changed")
    path = Path(fetch("changed").path) / "model.onnx"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    found = card(version.ref)
    assert found.intact is False
    assert "was changed after it was published" in found.problem
    with pytest.raises(ConflictError, match=r"was changed after .* publish the model again"):
        load("changed")
    path.unlink()
    assert "lacks its file model.onnx" in card(version.ref).problem


def test_two_versions_are_compared(line: Callable[..., Any]) -> None:
    line("pair", 1.0, metrics={"accuracy": 0.5, "old": 1}, params={"lr": 0.1, "same": 1})
    line("pair", 2.0, metrics={"accuracy": 0.75}, params={"lr": 0.2, "same": 1})
    rows = {row["what"]: row for row in compare("pair/1", "pair/2")}
    assert rows["accuracy"] == {"what": "accuracy", "a": 0.5, "b": 0.75, "change": 0.25}
    assert rows["old"] == {"what": "old", "a": 1, "b": None}
    assert (rows["lr"]["a"], rows["lr"]["b"]) == ("0.1", "0.2")
    assert not {"same", "takes", "made with"} & set(rows)


def test_tags_are_set_and_taken_off(line: Callable[..., Any]) -> None:
    version = line("tagged")
    assert tag(version.ref, {"reviewed by": "ana", "licence": "MIT"}).tags["licence"] == "MIT"
    assert "licence" not in tag(version.ref, {"licence": ""}).tags
    for name in ("aios.files", "mlflow.x", "", "a\nb"):
        with pytest.raises(UsageError, match="cannot be a tag's name"):
            tag(version.ref, {name: "x"})


def test_what_another_tool_pickled_is_opened_only_when_asked(state_dir: Path) -> None:
    import mlflow
    from sklearn.linear_model import LinearRegression

    from aios_jupyter.models.store import experiment_id, registry

    x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
    net = LinearRegression().fit(x, x.sum(1))
    with registry() as client:
        folder = state_dir / "elsewhere"
        signature = mlflow.models.infer_signature(x, net.predict(x))
        mlflow.pyfunc.save_model(str(folder), python_model=_Adds(), signature=signature,
                                 pip_requirements=["numpy"])  # fmt: skip
        logged = client.create_logged_model(experiment_id(client), name="elsewhere")
        client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        client.create_registered_model("elsewhere")
        client.create_model_version("elsewhere", logged.artifact_location)
    with pytest.raises(AccessError, match=r"another tool, which runs code .*--allow-pickle"):
        load("elsewhere")
    predictor = load("elsewhere", allow_pickle=True)
    assert predictor.predict(x).tolist() == [1.0, 1.0, 4.0]
    with pytest.raises(UsageError, match="has shape"):
        predictor.predict(np.ones((2, 5)))
    assert card("elsewhere").intact is None


class _Adds:
    """Stands for any Python model; MLflow's own base class is mixed in where it is used."""

    def __new__(cls) -> Any:
        import warnings

        import mlflow.pyfunc

        warnings.simplefilter("ignore")  # it wants type hints, which it then does not know

        class Adds(mlflow.pyfunc.PythonModel):
            def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
                return model_input.sum(1)

        return Adds()


def test_lineage_needs_no_run_and_no_data() -> None:
    from aios_jupyter.models import ModelVersion

    bare = ModelVersion(name="m", version=1)
    assert list(lineage_edges(bare, {}, [])) == []
    assert paths([]) == []
    small = ModelVersion(name="m", version=2, lineage={"optimized_from": "m/1", "data": "d@1"})
    assert paths(list(lineage_edges(small, {"d@1": ()}, ["e"]))) == [
        ["d@1", "m/2", "endpoint e"],
        ["m/1", "m/2", "endpoint e"],
    ]


def test_the_shell_shows_compares_tags_and_rolls_back(
    line: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line("shelled", 1.0, alias="champion", metrics={"accuracy": 0.5})
    line("shelled", 2.0, alias="champion", metrics={"accuracy": 0.75})
    assert shell("models", "tag", "shelled/1", "licence=MIT") == 0
    capsys.readouterr()
    assert shell("models", "show", "shelled/1") == 0
    shown = capsys.readouterr().out
    assert "unchanged since it was published" in shown
    assert "licence" in shown
    assert shell("models", "show", "shelled@champion", "--json") == 0
    assert json.loads(capsys.readouterr().out)["history"] == {"champion": [1]}
    assert shell("models", "compare", "shelled/1", "shelled/2") == 0
    assert "+0.25" in capsys.readouterr().out
    assert shell("rollback", "shelled", "champion") == 0
    assert "shelled/1" in capsys.readouterr().out
    assert shell("rollback", "shelled", "champion") == 1
    assert "no other version" in capsys.readouterr().err
    assert shell("models", "show", "nobody") == 1
    assert shell("models", "tag", "shelled", "licence") == 2
    assert "KEY=VALUE" in capsys.readouterr().err
