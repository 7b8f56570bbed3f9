"""The image of a model, built and run for real, and its manifests against Kubernetes' own schemas:
`make test-containers`.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clusters import until

from aios_jupyter.errors import AiosError
from aios_jupyter.models import load
from aios_jupyter.models.client import infer
from aios_jupyter.models.export import Options, export

from .conftest import TOKEN, free_port

PODMAN = Path(__file__).parents[2] / ".containers" / "podman"

# What the build installs comes from an index.
pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]


def podman(*arguments: str) -> str:
    line = [str(PODMAN), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture
def image(published: Any, tmp_path: Path) -> Iterator[str]:
    name = f"localhost/aios-test:{secrets.token_hex(4)}"
    context = tmp_path / "context"
    export("digits@champion", "container", context, Options(base="localhost/aios-python"))
    podman("build", "--pull=never", "--isolation=chroot", "--tag", name, str(context))
    yield name
    podman("image", "rm", "--force", name)


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "file").write_text(TOKEN)
    podman("secret", "create", "token", str(tmp_path / "file"))
    yield "token"
    podman("secret", "rm", "token")


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_an_image_serves_as_nobody_and_ends_when_asked(
    image: str, secret: str, digits: Any
) -> None:
    # As the export says to run it; on this machine's network, with less memory and fewer rights.
    port = free_port()
    box = podman(
        "run", "--detach", "--memory", "1g", "--cap-drop", "all",
        "--secret", f"{secret},uid=10001,mode=0400", image, "--host", "127.0.0.1", "--port", str(port),
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: ready(url), "the container answers", 120)
        expected = load("digits@champion").predict(digits.x[:3])
        np.testing.assert_allclose(infer(url, TOKEN, digits.x[:3]), expected, atol=1e-5)
        with pytest.raises(AiosError, match="token"):
            infer(url, "another", digits.x[:3])
        assert podman("exec", box, "id", "-u") == "10001"
        podman("stop", "--time", "30", box)
        state = json.loads(podman("inspect", box))[0]["State"]
        assert (state["Status"], state["ExitCode"]) == ("exited", 0)
    finally:
        podman("rm", "--force", box)


def test_a_token_that_everybody_in_the_image_can_read_is_refused(image: str, secret: str) -> None:
    box = podman("run", "--detach", "--secret", secret, image)
    try:
        assert podman("wait", box) == "1"
        said = subprocess.run(
            [str(PODMAN), "logs", box], capture_output=True, text=True, check=True
        )
        assert "Others can read the token file /run/secrets/token" in said.stdout + said.stderr
        assert "Traceback" not in said.stdout + said.stderr
    finally:
        podman("rm", "--force", box)


@pytest.mark.parametrize("version", ["1.25", "1.30", "1.34"])
def test_the_manifests_fit_the_schemas_of_kubernetes(
    published: Any, tmp_path: Path, version: str
) -> None:
    from kubernetes_validate import validate

    export("digits@champion", "kubernetes", tmp_path / "k8s", Options(image="team/digits:1"))
    text = (tmp_path / "k8s" / "deployment.yaml").read_text()
    kinds = []
    for document in yaml.safe_load_all(text):
        validate(document, version, strict=True)
        kinds.append(document["kind"])
    assert kinds == ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]
