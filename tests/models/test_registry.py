from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_jupyter.errors import AccessError, ConflictError, NotFoundError, UsageError
from aios_jupyter.models import (
    ModelVersion,
    fetch,
    load,
    onnx_files,
    publish,
    resolve,
    set_alias,
    versions,
)
from aios_jupyter.models.predictor import open_package


def logits(net: Any, x: np.ndarray) -> np.ndarray:
    import copy

    import torch

    with torch.no_grad():
        return copy.deepcopy(net).eval()(torch.from_numpy(x)).numpy()


def test_a_published_version_says_what_it_is(published: ModelVersion, digits: Any) -> None:
    assert published.name == "digits"
    assert published.ref == f"digits/{published.version}"
    assert published.aliases == ("champion",)
    assert published.metrics == {"accuracy": digits.accuracy}
    assert published.params == {"lr": "0.01", "epochs": "3"}
    assert published.lineage == {
        "lease": "lease-1", "run": "run-1", "notebook": "a.ipynb", "data": "digits@1"
    }  # fmt: skip
    assert published.framework == "torch"
    assert published.signature == {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}],
    }
    assert published.created > 1_600_000_000
    assert published.run_id


def test_what_is_loaded_computes_what_was_trained(published: ModelVersion, digits: Any) -> None:
    predictor = load("digits@champion")
    np.testing.assert_allclose(predictor.predict(digits.x), logits(digits.net, digits.x), atol=1e-4)
    accuracy = (predictor.predict(digits.x).argmax(1) == digits.y).mean()
    assert accuracy == pytest.approx(digits.accuracy)
    assert accuracy > 0.8
    assert predictor.predict(digits.x[:1].tolist()).shape == (1, 10)
    assert digits.net.training, "publishing must leave the user's own model as it was"


def test_loading_needs_no_torch(published: ModelVersion) -> None:
    code = (
        "import sys; from aios_jupyter.models import load; import numpy as np\n"
        "print(load('digits').predict(np.zeros((1, 1, 8, 8))).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.stdout.strip() == "(1, 10) False", done.stderr
    assert done.stderr == ""


def test_names_versions_and_aliases(state_dir: Path, digits: Any) -> None:
    x = digits.x[:1]
    first = publish(digits.net, "named", alias="champion", input_example=x)
    second = publish(digits.net, "named", alias="challenger", input_example=x)
    assert (first.version, second.version) == (1, 2)
    assert resolve("named").version == 2
    assert resolve("named/1").aliases == ("champion",)
    assert resolve("named@champion").version == 1
    moved = set_alias("named@challenger", "champion")
    assert moved.version == 2
    assert moved.aliases == ("challenger", "champion")
    assert resolve("named@champion").version == 2
    rows = versions("named")
    assert [(row["ref"], row["aliases"]) for row in rows] == [
        ("named/2", ["challenger", "champion"]), ("named/1", [])
    ]  # fmt: skip
    json.dumps(versions())
    assert {row["name"] for row in versions()} >= {"named"}


@pytest.mark.parametrize(
    ("ref", "error", "says"),
    [
        ("digitz", NotFoundError, "did you mean digits?"),
        ("zzz", NotFoundError, "There is no model 'zzz'"),
        ("digits/99", NotFoundError, "no version 99; its latest is"),
        ("digits/0", NotFoundError, "no version 0"),
        ("digits@nobody", NotFoundError, "no alias 'nobody'; it has champion"),
        ("digits@a@b", UsageError, "NAME@ALIAS"),
        ("", UsageError, "NAME@ALIAS"),
        ("../etc", UsageError, "NAME@ALIAS"),
        ("a' OR 'b", UsageError, "NAME@ALIAS"),
    ],
)
def test_a_wrong_reference_is_a_sentence(
    published: ModelVersion, ref: str, error: type[Exception], says: str
) -> None:
    for function in (resolve, load):
        with pytest.raises(error) as caught:
            function(ref)
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "a/b"}, "cannot be a model's name"),
        ({"name": ""}, "cannot be a model's name"),
        ({"alias": "latest"}, "cannot be an alias"),
        ({"alias": "v1"}, "cannot be an alias"),
        ({"metrics": {"loss": float("nan")}}, "not finite"),
        ({"metrics": {"loss": "low"}}, "give a number"),
        ({"lineage": {"files": "x"}}, "use another word"),
        ({"input_example": None}, "input_example=x[:1]"),
    ],
)
def test_a_bad_publish_leaves_no_version(
    state_dir: Path, digits: Any, changes: dict[str, Any], says: str
) -> None:
    options = {"name": "never", "input_example": digits.x[:1], **changes}
    with pytest.raises(UsageError) as caught:
        publish(digits.net, **options)
    assert says in str(caught.value)
    assert "never" not in {row["name"] for row in versions()}


def test_a_changed_file_is_refused(state_dir: Path, digits: Any) -> None:
    publish(digits.net, "tampered", input_example=digits.x[:1])
    package = fetch("tampered")
    for name in ("model.onnx", "weights.safetensors", "MLmodel"):
        path = Path(package.path) / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ConflictError, match=f"was changed after it was published .{name}"):
            load("tampered")
        path.write_bytes(good)
    assert load("tampered").predict(digits.x[:1]).shape == (1, 10)
    (Path(package.path) / "model.onnx").unlink()
    with pytest.raises(ConflictError, match="lacks its file model"):
        load("tampered")


def test_the_hashes_are_those_of_the_files(published: ModelVersion) -> None:
    package = fetch("digits@champion")
    assert {"model.onnx", "weights.safetensors", "input_example.npz"} <= set(package.files)
    for name, digest in package.files.items():
        content = (Path(package.path) / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def test_the_weights_are_the_models_own(published: ModelVersion, digits: Any) -> None:
    from safetensors.torch import load_file

    weights = load_file(Path(fetch("digits@champion").path) / "weights.safetensors")
    assert set(weights) == set(digits.net.state_dict())
    for name, value in digits.net.state_dict().items():
        np.testing.assert_array_equal(weights[name].numpy(), value.numpy())


def test_no_trace_of_the_notebook_is_in_the_model(published: ModelVersion) -> None:
    content = (Path(fetch("digits@champion").path) / "model.onnx").read_bytes()
    assert b"conftest" not in content
    assert os.fsencode(Path.cwd()) not in content


def test_a_pickle_needs_consent_to_be_stored_and_to_be_opened(state_dir: Path) -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(x, y)
    with pytest.raises(UsageError, match="allow_pickle"):
        publish(model, "iris", input_example=x)
    version = publish(model, "iris", input_example=x, allow_pickle=True)
    assert version.framework == "sklearn"
    with pytest.raises(AccessError, match="allow_pickle"):
        load("iris")
    predictor = load("iris", allow_pickle=True)
    np.testing.assert_array_equal(predictor.predict(x), model.predict(x))


def test_mlflow_itself_opens_what_was_published(published: ModelVersion, digits: Any) -> None:
    code = (
        "import sys, numpy as np, mlflow\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/digits@champion')\n"
        "np.save(sys.argv[2], model.predict(np.load(sys.argv[3]))['output'])"
    )
    from aios_jupyter.models.store import registry_uri

    scratch = Path(os.environ["AIOS_STATE_DIR"])
    np.save(scratch / "x.npy", digits.x[:5])
    arguments = [registry_uri(), str(scratch / "y.npy"), str(scratch / "x.npy")]
    subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, timeout=90, capture_output=True
    )
    np.testing.assert_allclose(
        np.load(scratch / "y.npy"), logits(digits.net, digits.x[:5]), atol=1e-4
    )


def test_the_users_own_mlflow_is_left_alone(state_dir: Path, digits: Any, tmp_path: Path) -> None:
    import mlflow

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = mlflow.get_tracking_uri()
    publish(digits.net, "polite", input_example=digits.x[:1])
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None


def test_a_model_registered_by_mlflow_can_be_opened(state_dir: Path, published: Any) -> None:
    """Someone else's ONNX version, without our tags."""
    from aios_jupyter.models.store import registry

    source = Path(fetch("digits@champion").path)
    with registry() as client:
        client.create_registered_model("foreign")
        client.create_model_version("foreign", source.as_uri())
    assert resolve("foreign").signature == {}
    assert load("foreign").predict(np.zeros((2, 1, 8, 8))).shape == (2, 10)


def test_a_registry_that_is_not_there_is_a_sentence(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aios_jupyter.errors import ClusterError

    monkeypatch.setenv("AIOS_REGISTRY_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ClusterError, match="AIOS_REGISTRY_URI") as caught:
        resolve("digits")
    assert "secret" not in str(caught.value)


def test_large_weights_lie_beside_the_model(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    net = torch.nn.Linear(400, 20)
    x = torch.ones(2, 400)
    monkeypatch.setattr(onnx_files, "EXTERNAL_ABOVE", 1000)
    publish(net, "large", input_example=x)
    package = fetch("large")
    assert (Path(package.path) / "model.onnx").stat().st_size < 10_000
    assert (Path(package.path) / "model.onnx.data").stat().st_size >= 400 * 20 * 4
    expected = net(x).detach().numpy()
    np.testing.assert_allclose(load("large").predict(x), expected, atol=1e-5)

    publish(Path(package.path) / "model.onnx", "large")
    assert resolve("large").framework == "onnx"
    np.testing.assert_allclose(load("large").predict(x), expected, atol=1e-5)
    data = Path(fetch("large").path) / "model.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(ConflictError, match="changed"):
        load("large")


def test_two_processes_can_make_the_registry_at_once(tmp_path: Path, published: Any) -> None:
    import onnx

    path = Path(fetch("digits@champion").path) / "model.onnx"
    onnx.checker.check_model(str(path))
    code = "import sys; from aios_jupyter.models import publish; publish(sys.argv[1], 'same')"
    environment = {**os.environ, "AIOS_STATE_DIR": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment) for _ in range(2)
    ]
    assert [process.wait(100) for process in both] == [0, 0]


def test_parameters_that_another_process_writes_at_the_same_time_stay(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aios_jupyter.models.store import add_params, experiment_id, registry

    with registry() as client:
        run = client.create_run(experiment_id(client)).info.run_id
        write = client.log_batch

        def late(*args: Any, **facts: Any) -> None:
            monkeypatch.undo()
            client.log_param(run, "lr", "0.1")
            write(*args, **facts)

        monkeypatch.setattr(client, "log_batch", late)
        add_params(client, run, {"lr": "0.2", "epochs": "3"})
        assert client.get_run(run).data.params == {"lr": "0.1", "epochs": "3"}


def test_a_refused_parameter_is_a_sentence(state_dir: Path) -> None:
    from aios_jupyter.models.store import add_params, experiment_id, registry

    with registry() as client:
        run = client.create_run(experiment_id(client)).info.run_id
    with pytest.raises(UsageError, match="does not take this"), registry() as client:
        add_params(client, run, {"../lr": "0.1"})


def test_an_open_package_is_the_one_that_was_hashed(published: Any) -> None:
    package = fetch("digits@champion")
    assert open_package(package, threads=1).signature.batched
