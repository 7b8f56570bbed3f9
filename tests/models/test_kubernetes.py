"""What `export --to kubernetes` writes, applied to a real API server: `make test-kubernetes`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from clusters import until

from aios_jupyter import tls
from aios_jupyter.models.export import Options, export

from .conftest import free_port

ROOT = Path(__file__).parents[2]
SERVER = os.environ.get("KUBE_APISERVER") or str(ROOT / ".kubernetes" / "kube-apiserver")
# What a server from before 1.21 (and 1.23) calls what has the same form later.
BEFORE = {"autoscaling/v2": "autoscaling/v2beta2", "policy/v1": "policy/v1beta1"}
PLURALS = {
    "Deployment": "deployments",
    "Service": "services",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "InferenceService": "inferenceservices",
}

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]


class Refused(Exception):
    """An answer that is an error: its status, and what the server says."""


@dataclass
class Api:
    """An API server and an administrator's token."""

    url: str
    token: str
    trusted: ssl.SSLContext

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """The answer; `Refused` where it is an error."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.token if token is None else token}",
                "Content-Type": "application/apply-patch+yaml",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.trusted) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(f"{error.code}: {error.read().decode()}") from None

    def served(self, document: dict[str, Any]) -> dict[str, Any]:
        """The document in the version of its kind that this server has."""
        version = document["apiVersion"]
        if version in BEFORE and not self._has(version):
            return {**document, "apiVersion": BEFORE[version]}
        return document

    def _has(self, version: str) -> bool:
        with contextlib.suppress(Refused):
            return bool(self.ask("GET", f"/apis/{version}")["resources"])
        return False

    def apply(self, document: dict[str, Any], query: str = "") -> Any:
        """Server-side apply, as `kubectl apply --server-side` does it."""
        path = f"{path_of(document)}?fieldManager=aios{query}"
        return self.ask("PATCH", path, document)


def path_of(document: dict[str, Any]) -> str:
    version = document["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    name = document["metadata"]["name"]
    return f"{root}/namespaces/default/{PLURALS[document['kind']]}/{name}"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """etcd and an API server on loopback, over TLS; who has no token is refused."""
    root = tmp_path_factory.mktemp("kubernetes")
    tls.create(root / "tls")
    for party in ("etcd", "server"):
        trusted = tls.issue_endpoint(root / "tls", party, ["127.0.0.1"], root)
    (root / "accounts.key").write_bytes(key_of_its_own())
    token = secrets.token_hex(16)
    (root / "tokens.csv").touch(mode=0o600)
    (root / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    with running(etcd(root, trusted, port := free_port()), root / "etcd.log"):
        line = server(root, trusted, port, own := free_port())
        with running(line, root / "server.log") as process:
            context = ssl.create_default_context(cafile=str(trusted))
            api = Api(f"https://127.0.0.1:{own}", token, context)
            until(lambda: ready(api, process, root), "the API server", 120)
            yield api


def key_of_its_own() -> bytes:
    """What the server signs the tokens of pods with, in the form that old ones read."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def etcd(root: Path, trusted: Path, port: int) -> list[str]:
    urls = f"https://127.0.0.1:{port}"
    peers = f"https://127.0.0.1:{free_port()}"
    pair = [f"{root / 'etcd.pem'}", f"{root / 'etcd.key'}"]
    return [
        shutil.which("etcd") or "etcd", f"--data-dir={root / 'etcd'}", "--unsafe-no-fsync",
        f"--listen-client-urls={urls}", f"--advertise-client-urls={urls}",
        f"--cert-file={pair[0]}", f"--key-file={pair[1]}", "--client-cert-auth",
        f"--trusted-ca-file={trusted}", f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}",
        f"--peer-cert-file={pair[0]}", f"--peer-key-file={pair[1]}",
        f"--peer-trusted-ca-file={trusted}",
    ]  # fmt: skip


def server(root: Path, trusted: Path, store: int, port: int) -> list[str]:
    accounts = str(root / "accounts.key")
    return [
        SERVER, f"--etcd-servers=https://127.0.0.1:{store}", f"--etcd-cafile={trusted}",
        f"--etcd-certfile={root / 'etcd.pem'}", f"--etcd-keyfile={root / 'etcd.key'}",
        "--bind-address=127.0.0.1", f"--secure-port={port}", "--advertise-address=127.0.0.1",
        f"--tls-cert-file={root / 'server.pem'}", f"--tls-private-key-file={root / 'server.key'}",
        f"--token-auth-file={root / 'tokens.csv'}", "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={accounts}",
        "--service-cluster-ip-range=10.96.0.0/16", f"--cert-dir={root / 'certificates'}",
    ]  # fmt: skip


@contextlib.contextmanager
def running(line: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready(api: Api, process: subprocess.Popen[bytes], root: Path) -> bool:
    assert process.poll() is None, (root / "server.log").read_text()[-2000:]
    try:
        return bool(api.ask("GET", "/api/v1/namespaces/default"))
    except (OSError, Refused):
        return False


def documents(folder: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((folder / "deployment.yaml").read_text()))


def missing(asked: Any, kept: Any, where: str = "") -> Iterator[str]:
    """What was asked for and is not as it was in what the server keeps."""
    if isinstance(asked, dict) and isinstance(kept, dict):
        for key, value in asked.items():
            yield from missing(value, kept.get(key), f"{where}.{key}")
    elif isinstance(asked, list) and isinstance(kept, list) and len(asked) == len(kept):
        for index, (one, other) in enumerate(zip(asked, kept, strict=True)):
            yield from missing(one, other, f"{where}[{index}]")
    elif asked != kept:
        yield f"{where}: {asked!r} is {kept!r}"


def test_a_real_api_server_takes_every_manifest_and_keeps_all_that_is_in_it(
    api: Api, published: Any, tmp_path: Path
) -> None:
    export("digits@champion", "kubernetes", tmp_path / "k8s", Options(image="team/digits:1"))
    kinds = []
    for document in map(api.served, documents(tmp_path / "k8s")):
        api.apply(document, "&dryRun=All")
        with pytest.raises(Refused, match="404"):  # that was a rehearsal
            api.ask("GET", path_of(document))
        api.apply(document)
        kept = api.ask("GET", path_of(document))
        assert list(missing(document, kept)) == []
        # Again the same is no change.
        again = api.apply(document)["metadata"]
        assert again["resourceVersion"] == kept["metadata"]["resourceVersion"]
        kinds.append(document["kind"])
    assert kinds == ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]


def test_another_version_is_applied_over_the_first(
    api: Api, published: Any, tmp_path: Path
) -> None:
    """What a deployment selects cannot be changed, so that no version may be part of it."""
    export("digits@champion", "kubernetes", tmp_path / "one", Options(image="team/over:1"))
    for number in (1, 2):
        for document in map(api.served, documents(tmp_path / "one")):
            text = json.dumps(document).replace("team/over:1", f"team/over:{number}")
            text = text.replace('/version": "1"', f'/version": "{number}"')
            kept = api.apply(json.loads(text))
            assert kept["metadata"]["labels"]["app.kubernetes.io/version"] == str(number)


def test_the_server_looks_closely(api: Api, published: Any, tmp_path: Path) -> None:
    """It would refuse what is wrong, and whoever has no token."""
    export("digits@champion", "kubernetes", tmp_path / "k8s", Options(image="team/digits:1"))
    deployment, service, scaler, budget = map(api.served, documents(tmp_path / "k8s"))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "1Mi"  # less than is requested
    service["spec"]["ports"][0]["port"] = 0
    scaler["spec"]["maxReplicas"] = 0
    budget["spec"]["minAvailable"] = 1  # beside maxUnavailable
    for document in (deployment, service, scaler, budget):
        with pytest.raises(Refused, match="422"):
            api.apply(document)
    with pytest.raises(Refused, match="401"):
        api.ask("GET", "/api/v1/namespaces", token="another")
