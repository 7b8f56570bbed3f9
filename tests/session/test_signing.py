"""People who sign models, and admins who insist on it: on a live cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clusters import session_of, until

from aios_jupyter.commands import main
from aios_jupyter.errors import AccessError
from aios_jupyter.models.signing import Standing
from aios_jupyter.session import Session

X = np.ones((1, 2), np.float32)


@pytest.fixture
def strict(session: Session) -> Iterator[Session]:
    """While the cluster's people use signed models alone."""
    assert session.policy(require_signature=True)["require_signature"]
    yield session
    assert not session.policy(require_signature=False)["require_signature"]


def test_an_endpoint_answers_with_signed_versions_alone(session: Session, slopes: Path) -> None:
    first = session.publish(str(slopes / "1.onnx"), "sure", alias="champion", sign=True)
    assert [(one.name, one.standing) for one in first.signed] == [(session.user, Standing.KNOWN)]
    session.publish(str(slopes / "2.onnx"), "sure")
    with pytest.raises(AccessError, match="sure/2 is not signed"):
        session.serve("sure", require_signature=True)
    endpoint = session.serve("sure@champion", require_signature=True)
    session.promote("sure/2", "champion")
    said = "sure/2 is not signed, and only versions that somebody known here has signed"
    until(lambda: said in "".join(session.logs(endpoint.run)), "the endpoint to pass it over", 60)
    assert session.predict("sure", X).tolist() == [[1, 1]]
    third = session.publish(str(slopes / "2.onnx"), "sure")
    session.sign_model(third.ref)
    session.promote(third.ref, "champion")
    until(lambda: session.predict("sure", X).tolist() == [[2, 2]], "the version that is signed", 60)
    session.stop_endpoint("sure")


def test_an_admin_insists_for_everybody(strict: Session, slopes: Path, tmp_path: Path) -> None:
    strict.publish(str(slopes / "1.onnx"), "checked")
    strict.user_add("bob", "user", tmp_path / "bob")
    with session_of(tmp_path / "bob", "bob") as bob:
        with pytest.raises(AccessError, match="bob may not say which models are used"):
            bob.policy(require_signature=False)
        for use in (
            bob.serve,
            bob.verify_model,
            lambda ref: bob.export(ref, "edge", tmp_path / "edge"),
            lambda ref: bob.predict_dataset(ref, "none", "nothing"),
        ):
            with pytest.raises(AccessError, match="checked/1 is not signed"):
                use("checked")
        assert [one.name for one in bob.sign_model("checked").signed] == ["bob"]
        assert bob.export("checked", "edge", tmp_path / "edge").ref == "checked/1"
        assert strict.verify_model("checked").ref == "checked/1"


def test_the_same_from_a_shell(
    session: Session, slopes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def aios(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    said = re.compile(rf"signed by:? +{session.user}\n")
    assert said.search(aios("publish", str(slopes / "1.onnx"), "--name", "shelled", "--sign"))
    aios("publish", str(slopes / "1.onnx"), "--name", "shelled")
    assert said.search(aios("models", "sign", "shelled/2"))
    assert "models have to be signed" in aios("policy", "--require-signature")
    assert "models have to be signed" in aios("policy")
    assert said.search(aios("models", "verify", "shelled"))
    assert "models have to be signed" not in aios("policy", "--any-model")


def test_a_key_that_is_on_another_machine_stays_there(
    session: Session, slopes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel on another node has its person's session, not their key."""
    session.publish(str(slopes / "1.onnx"), "far")
    monkeypatch.setattr(session, "_forward", object())
    for sign in (session.sign_model, lambda ref: session.publish("none.onnx", ref, sign=True)):
        with pytest.raises(AccessError, match="from a shell of that machine: aios models sign"):
            sign("far")


def test_who_was_revoked_vouches_for_nothing_any_more_for_nobody(
    session: Session, slopes: Path, tmp_path: Path
) -> None:
    for name in ("carl", "dora"):
        session.user_add(name, "user", tmp_path / name)
    with session_of(tmp_path / "carl", "carl") as carl:
        carl.publish(str(slopes / "1.onnx"), "once", sign=True)
    with session_of(tmp_path / "dora", "dora") as dora:
        assert dora.verify_model("once", require_signature=True)
        session.user_revoke("carl")
        for one in (session, dora):
            with pytest.raises(AccessError, match="signed by carl, whose access was revoked"):
                one.verify_model("once", require_signature=True)
