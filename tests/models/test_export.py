from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from aios_jupyter.errors import ConflictError, NotFoundError, UsageError
from aios_jupyter.models import fetch, load
from aios_jupyter.models.client import infer
from aios_jupyter.models.export import Options, export, locked
from aios_jupyter.models.kubernetes import kubernetes_name, manifests

from .conftest import TOKEN, run_bare, shell


def test_an_edge_bundle_runs_with_numpy_and_onnxruntime_alone(
    published: Any, digits: Any, tmp_path: Path, clean: Callable[[Path], Path]
) -> None:
    found = export("digits@champion", "edge", tmp_path / "edge.zip")
    with zipfile.ZipFile(found.path) as bundle:
        bundle.extractall(tmp_path)
    edge = tmp_path / "edge"
    assert {path.name for path in edge.iterdir()} == {
        "model.onnx", "model.json", "run.py", "requirements.txt"
    }  # fmt: skip
    python = clean(edge / "requirements.txt")
    for absent in ("torch", "onnx", "mlflow", "aios_jupyter"):
        assert run_bare(python, "-c", f"import {absent}").returncode != 0
    np.save(tmp_path / "x.npy", digits.x[:3])
    done = run_bare(
        python, "run.py", str(tmp_path / "x.npy"), "-o", str(tmp_path / "y.npy"), cwd=edge
    )
    assert done.returncode == 0, done.stderr
    expected = load("digits@champion").predict(digits.x[:3])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
    said = json.loads(run_bare(python, str(edge / "run.py"), str(tmp_path / "x.npy")).stdout)
    np.testing.assert_allclose(said["output"], expected, atol=1e-4)
    speed = json.loads(run_bare(python, str(edge / "run.py"), "--speed").stdout)
    assert speed["bytes"] == (edge / "model.onnx").stat().st_size
    assert 0 < speed["p50_ms"] <= speed["p95_ms"]

    np.save(tmp_path / "bad.npy", np.ones((2, 3)))
    done = run_bare(python, str(edge / "run.py"), str(tmp_path / "bad.npy"))
    assert done.returncode == 1
    assert "has shape [2, 3]; the model takes [-1, 1, 8, 8]" in done.stderr
    with (edge / "model.onnx").open("ab") as file:
        file.write(b"\0")
    done = run_bare(python, str(edge / "run.py"), str(tmp_path / "x.npy"))
    assert done.returncode == 1
    assert "was changed after it was exported" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_containers_entry_point_serves_with_what_its_requirements_name(
    published: Any, digits: Any, tmp_path: Path, clean: Callable[[Path], Path]
) -> None:
    context = tmp_path / "context"
    export("digits@champion", "container", context)
    recipe = (context / "Containerfile").read_text()
    assert "USER 10001:10001" in recipe
    entry = next(line for line in recipe.splitlines() if line.startswith("ENTRYPOINT"))
    command = json.loads(entry.removeprefix("ENTRYPOINT "))
    assert command[-4:] == ["--host", "0.0.0.0", "--port", "8080"]
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o440)  # as Kubernetes mounts it for a group
    python = clean(context / "requirements.txt")
    process = subprocess.Popen(
        [str(python), *command[1:-5], str(context / "model"), "--port", "0"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(context / "app"),
            "AIOS_ENDPOINT_TOKEN_FILE": str(token),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(60), "it did not answer in 60 s"
        url = json.loads(process.stdout.readline())["url"]
        expected = load("digits@champion").predict(digits.x[:3])
        np.testing.assert_allclose(infer(url, TOKEN, digits.x[:3]), expected, atol=1e-5)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
        process.stdout.close()
    assert code == 0


def test_kubernetes_manifests_fit_each_other(published: Any, tmp_path: Path) -> None:
    export(
        "digits@champion", "kubernetes", tmp_path / "k8s",
        Options(image="team/digits:1", replicas=(2, 6)),
    )  # fmt: skip
    text = (tmp_path / "k8s" / "deployment.yaml").read_text()
    documents = {d["kind"]: d for d in yaml.safe_load_all(text)}
    assert set(documents) == {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"
    }  # fmt: skip
    deployment = documents["Deployment"]
    pod = deployment["spec"]["template"]
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    assert documents["Service"]["spec"]["selector"] == selector
    server = pod["spec"]["containers"][0]
    assert server["image"] == "team/digits:1"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    ports = {port["name"] for port in server["ports"]}
    assert documents["Service"]["spec"]["ports"][0]["targetPort"] in ports
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in server["volumeMounts"]} == volumes
    scaled = documents["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert (scaled["minReplicas"], scaled["maxReplicas"]) == (2, 6)
    [kserve] = yaml.safe_load_all((tmp_path / "k8s" / "kserve.yaml").read_text())
    assert kserve["kind"] == "InferenceService"
    assert kserve["spec"]["predictor"]["containers"][0]["image"] == "team/digits:1"
    assert "token=" in text
    assert TOKEN not in text


def test_names_are_made_for_kubernetes(published: Any) -> None:
    assert kubernetes_name("Digits_v2.final") == "digits-v2-final"
    assert kubernetes_name("9lives") == "m-9lives"
    assert len(kubernetes_name("x" * 200)) == 52
    assert set(manifests(published, "a:1", (1, 2))) == {"deployment.yaml", "kserve.yaml"}


def test_mlflow_opens_its_own_form(published: Any, digits: Any, tmp_path: Path) -> None:
    export("digits", "mlflow", tmp_path / "flow")
    code = (
        "import mlflow.pyfunc, numpy as np, sys\n"
        "print(mlflow.pyfunc.load_model(sys.argv[1]).predict(np.zeros((2, 1, 8, 8), 'float32'))['output'].shape)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "flow")],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.stdout.strip().endswith("(2, 10)"), done.stderr


def test_what_is_there_stays_and_a_changed_model_is_not_exported(
    published: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").touch()
    with pytest.raises(ConflictError, match="is there already"):
        export("digits", "edge", tmp_path / "own")
    with pytest.raises(UsageError, match="no form 'moon'"):
        export("digits", "moon", tmp_path / "moon")
    with pytest.raises(NotFoundError, match="no model 'nobody'"):
        export("nobody", "edge", tmp_path / "nobody")
    assert shell("export", "digits", "--to", "edge", "-o", str(tmp_path / "own")) == 1
    assert "is there already" in capsys.readouterr().err
    assert shell("export", "digits", "--to", "edge", "-o", str(tmp_path / "new"), "--json") == 0
    assert "run.py" in json.loads(capsys.readouterr().out)["files"]
    model = Path(fetch("digits").path) / "model.onnx"
    good = model.read_bytes()
    model.write_bytes(good + b"\0")
    try:
        with pytest.raises(ConflictError, match="was changed after it was published"):
            export("digits", "edge", tmp_path / "changed")
    finally:
        model.write_bytes(good)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "own"]


def test_requirements_are_locked_with_all_that_they_need() -> None:
    lines = dict(line.split("==") for line in locked(["starlette", "prometheus-client"]))
    assert {"starlette", "anyio", "idna", "prometheus-client"} <= set(lines)
    assert "torch" not in lines
