"""Two people, each with a Jupyter server on one cluster: what one never has of the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Fetch, eventually, served
from tornado.httpclient import HTTPClientError

from aios_jupyter.config import settings
from aios_jupyter.runs.handle import RunHandle
from aios_jupyter.session import Session

CODE = """
import time
from aios_jupyter import train
print("a line of the owner's", flush=True)
train.log(private=0.125)
time.sleep(600)
"""


@pytest.fixture
def run(session: Session) -> RunHandle:
    """A run of the owner, which has said something."""
    handle = session.start(CODE, cell=True, gpus=1)
    seen = {"log": False, "metrics": False}
    for event in handle.events():
        seen |= {event["type"]: True}
        if seen["log"] and seen["metrics"]:
            break
    return handle


@pytest.fixture
def bundle(session: Session, tmp_path: Path) -> Path:
    """Bob's."""
    session.user_add("bob", "user", tmp_path / "bob")
    return tmp_path / "bob"


@pytest.fixture
def bobs(
    directories: dict[str, str],
    run: RunHandle,
    bundle: Path,
    jp_environ: None,
    request: pytest.FixtureRequest,
    jp_asyncio_loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    """Bob's server; `jp_environ`, which has directories of its own, comes after what is the owner's."""
    monkeypatch.setenv("AIOS_BUNDLE", str(bundle))
    settings.cache_clear()
    with served(request, directories, jp_asyncio_loop) as app:
        yield app
    settings.cache_clear()


async def test_a_server_has_nothing_of_another_users_and_no_secret_of_its_own(
    bobs: Any, jp_fetch: Fetch, session: Session, run: RunHandle, bundle: Path
) -> None:
    (extension,) = bobs.extension_manager.extension_apps["aios_jupyter"]
    await eventually(lambda: extension.stream.mirror.online, "the cluster is in view")
    assert json.loads((await jp_fetch("aios/me")).body)["cluster_user"] == "bob"
    told = json.loads((await jp_fetch("aios/snapshot")).body)["snapshot"]
    row = told["runs"][run.id]
    assert row["user"] != "bob", "that it runs is for everybody to see"
    assert (row["metrics"], row["detail"]) == ({}, {})
    lease = row["lease"]
    for method, path in (
        ("GET", f"aios/runs/{run.id}/logs"),
        ("GET", f"aios/runs/{run.id}/metrics"),
        ("GET", f"aios/runs/{run.id}/stacks"),
        ("GET", f"aios/runs/{run.id}/profile"),
        ("POST", f"aios/runs/{run.id}/stop"),
        ("DELETE", f"aios/leases/{lease}"),
        ("POST", f"aios/leases/{lease}/extend"),
    ):
        body = {"body": '{"time": 60}'} if method == "POST" else {}
        with pytest.raises(HTTPClientError) as refused:
            await jp_fetch(path, method=method, **body)
        assert refused.value.code == 403, path
        assert refused.value.response is not None
        assert b"belongs to" in refused.value.response.body

    asked = ("snapshot", "events", "metrics", "me", "history", "kernels")
    answers = [bytes((await jp_fetch("aios", path)).body) for path in asked]
    emitted = [json.dumps(event).encode() for event in extension.stream.mirror._past]
    everything = b"".join([*answers, *emitted])
    assert run.id.encode() in everything
    client = extension.stream._upstream
    key = (bundle / "user.key").read_text().splitlines()[1]
    secrets = [client._hello.secret, session.client._hello.secret, key]
    secrets += session.client.tokens.values()
    assert all(len(secret) > 15 for secret in secrets)
    assert not [secret for secret in secrets if secret.encode() in everything]
    for hidden in (b"a line of the owner's", b"private"):
        assert hidden not in everything
