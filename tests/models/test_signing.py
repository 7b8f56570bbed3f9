"""Signatures of versions: who has signed, whether it holds, and what is refused."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aios_jupyter import tls
from aios_jupyter.cluster import embedded
from aios_jupyter.config import settings
from aios_jupyter.errors import AccessError, ConflictError, UsageError
from aios_jupyter.models import load, resolve, trust
from aios_jupyter.models.aliases import sign
from aios_jupyter.models.card import card, verify
from aios_jupyter.models.export import export
from aios_jupyter.models.registry import fetch, versions
from aios_jupyter.models.signing import SIGNED, Signer, Standing
from aios_jupyter.models.store import registry
from aios_jupyter.tls import Bundle

from .conftest import shell

X = np.ones((1, 2), np.float32)


@pytest.fixture(scope="module", autouse=True)
def own_cluster(state_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keys and certificates of a cluster of this user's, which need not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path_factory.mktemp("signing-runtime")))
        patch.delenv("AIOS_BUNDLE", raising=False)
        settings.cache_clear()
        directory = embedded.Paths.current().tls
        tls.create(directory)
        yield directory
    settings.cache_clear()


def person(authority: Path, name: str, to: Path, role: str = "user", **facts: Any) -> Signer:
    """Somebody to whom the authority in a folder has given a certificate."""
    to.mkdir(exist_ok=True)
    tls.issue(authority, "user", name, role, to=to, **facts)
    return Signer(Bundle.of(to, "user"))


@pytest.fixture
def bob(own_cluster: Path, tmp_path: Path) -> Signer:
    return person(own_cluster, "bob", tmp_path / "bob")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The authority of another cluster."""
    tls.create(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def signature_of(ref: str) -> tuple[str, dict[str, Any]]:
    """The tag with a version's only signature, and what is in it."""
    version = resolve(ref)
    [name] = [key for key in version.tags if key.startswith(SIGNED)]
    return name, json.loads(version.tags[name])


def set_tag(ref: str, name: str, value: str) -> None:
    """As somebody who can write to the registry would."""
    version = resolve(ref)
    with registry() as client:
        client.set_model_version_tag(version.name, str(version.version), name, value)


def requiring() -> trust.Trust:
    return trust.current().requiring(True)


def test_a_version_is_signed_in_its_persons_name_and_verifies(
    line: Callable[..., Any], bob: Signer
) -> None:
    version = line("signing-signed", 3.0, signer=bob)
    [one] = version.signed
    assert (one.name, one.role, one.standing) == ("bob", "user", Standing.KNOWN)
    assert not [key for key in version.lineage if key.startswith("signed")]
    assert verify("signing-signed", requiring()) == resolve("signing-signed")
    np.testing.assert_allclose(load("signing-signed", require_signature=True).predict(X), 3 * X)
    [row] = versions("signing-signed")
    assert list(row["signed"]) == [
        {"name": "bob", "role": "user", "standing": "known", "problem": ""}
    ]


def test_what_nobody_has_signed_is_used_unless_a_signature_is_required(
    line: Callable[..., Any], bob: Signer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line("signing-plain")
    assert load("signing-plain") is not None
    with pytest.raises(
        AccessError, match=r"signing-plain/1 is not signed.*aios models sign signing-plain/1"
    ):
        load("signing-plain", require_signature=True)
    monkeypatch.setenv("AIOS_REQUIRE_SIGNATURE", "on")
    settings.cache_clear()
    for use in (load, lambda ref: export(ref, "edge", tmp_path / "edge"), verify, fetch):
        with pytest.raises(AccessError, match="not signed"):
            use("signing-plain")
    assert card("signing-plain").intact  # to look at it is no use of it
    sign("signing-plain", bob)
    assert load("signing-plain") is not None
    monkeypatch.setenv("AIOS_REQUIRE_SIGNATURE", "perhaps")
    settings.cache_clear()
    with pytest.raises(UsageError, match="'perhaps' is neither"):
        load("signing-plain")
    monkeypatch.undo()
    settings.cache_clear()


def test_a_file_that_was_changed_is_refused_also_where_its_recorded_hash_was_changed_with_it(
    line: Callable[..., Any], bob: Signer
) -> None:
    import hashlib

    line("signing-tampered", signer=bob)
    package = fetch("signing-tampered")
    path = Path(package.path) / package.main
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConflictError, match="another sha256"):
        load("signing-tampered")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    set_tag("signing-tampered", "aios.files", json.dumps({**package.files, package.main: digest}))
    said = r"signature of bob on signing-tampered/1 does not hold: other files were signed .*model.onnx"
    for use in (load, verify, fetch):
        with pytest.raises(ConflictError, match=said):
            use("signing-tampered")
    [one] = card("signing-tampered").version.signed
    assert one.standing is Standing.BROKEN


def test_another_file_cannot_take_the_models_place(line: Callable[..., Any], bob: Signer) -> None:
    line("signing-swapped", signer=bob)
    package = fetch("signing-swapped")
    (Path(package.path) / "other.onnx").write_bytes(
        (Path(package.path) / package.main).read_bytes()
    )
    set_tag("signing-swapped", "aios.main", "other.onnx")
    with pytest.raises(ConflictError, match=r"other\.onnx is none of its files"):
        load("signing-swapped")


@pytest.mark.parametrize("part", ["sig", "payload", "certificate", "kind", "text"])
def test_a_signature_that_was_changed_does_not_hold(
    line: Callable[..., Any], bob: Signer, own_cluster: Path, tmp_path: Path, part: str
) -> None:
    ref = line(f"forged-{part}", signer=bob).ref
    name, bundle = signature_of(ref)
    envelope = bundle["dsseEnvelope"]
    if part == "sig":
        raw = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
        raw[-1] ^= 1
        envelope["signatures"][0]["sig"] = base64.b64encode(raw).decode()
    elif part == "payload":
        statement = json.loads(base64.b64decode(envelope["payload"]))
        statement["predicate"]["resources"][0]["digest"] = "0" * 64
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    elif part == "certificate":  # another person's, without their key
        person(own_cluster, "eve", tmp_path / "eve")
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509 import load_pem_x509_certificate

        eve = load_pem_x509_certificate((tmp_path / "eve" / "user.pem").read_bytes())
        raw_bytes = base64.b64encode(eve.public_bytes(Encoding.DER)).decode()
        chain = bundle["verificationMaterial"]["x509CertificateChain"]
        chain["certificates"][0]["rawBytes"] = raw_bytes
    elif part == "kind":
        envelope["payloadType"] = "text/plain"
    set_tag(ref, name, "{" if part == "text" else json.dumps(bundle))
    [one] = resolve(ref).signed
    assert one.standing is Standing.BROKEN
    with pytest.raises(ConflictError, match=f"on {ref} does not hold"):
        load(ref)


def test_a_signature_does_not_pass_to_another_version(
    line: Callable[..., Any], bob: Signer
) -> None:
    first, second = line("signing-again", signer=bob), line("signing-again")
    assert resolve(first.ref).tags["aios.files"] != ""
    name, bundle = signature_of(first.ref)
    set_tag(second.ref, name, json.dumps(bundle))
    # Even where the files are those of the first: a version that was withdrawn stays so.
    set_tag(second.ref, "aios.files", first.tags["aios.files"])
    with pytest.raises(ConflictError, match="another version's"):
        load(second.ref)


def test_a_signer_whom_nobody_knows_here_is_named_and_counts_for_nothing(
    line: Callable[..., Any], elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = line("signing-foreign", signer=person(elsewhere, "mallory", tmp_path / "mallory")).ref
    [one] = resolve(ref).signed
    assert (one.name, one.standing) == ("mallory", Standing.UNKNOWN)
    assert load(ref) is not None
    with pytest.raises(AccessError, match="signed by mallory, whose authority is not known here"):
        load(ref, require_signature=True)
    # An admin may say that they count: their authority, or they alone.
    for known in (elsewhere / "ca.pem", tmp_path / "mallory" / "user.pem", tmp_path / "mallory"):
        monkeypatch.setenv("AIOS_SIGNERS", f"{known}{os.pathsep}")
        settings.cache_clear()
        assert load(ref, require_signature=True) is not None
    monkeypatch.setenv("AIOS_SIGNERS", str(tmp_path / "none.pem"))
    settings.cache_clear()
    with pytest.raises(UsageError, match=r"none\.pem, which is not there"):
        load(ref)
    monkeypatch.undo()
    settings.cache_clear()


def test_who_was_revoked_whose_time_is_over_and_what_is_no_person_count_for_nothing(
    line: Callable[..., Any], own_cluster: Path, tmp_path: Path
) -> None:
    serial = tls.issue(own_cluster, "user", "carl", "user", to=_made(tmp_path / "carl"))
    said = {
        "whose access was revoked": Signer(Bundle.of(tmp_path / "carl", "user")),
        "whose certificate ended on": person(own_cluster, "dora", tmp_path / "dora", days=1e-9),
        "no person but a certificate for node": Signer(Bundle.of(own_cluster, "node")),
    }
    (own_cluster / "revoked.json").write_text(json.dumps([f"{serial:X}"]))
    try:
        for number, (problem, signer) in enumerate(said.items()):
            ref = line(f"late-{number}", signer=signer).ref
            [one] = resolve(ref).signed
            assert one.standing is Standing.UNKNOWN
            with pytest.raises(AccessError, match=problem):
                load(ref, require_signature=True)
    finally:
        (own_cluster / "revoked.json").unlink()


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_two_people_sign_one_version_and_one_who_is_known_is_enough(
    line: Callable[..., Any], bob: Signer, elsewhere: Path, tmp_path: Path
) -> None:
    ref = line("signing-both", signer=person(elsewhere, "mallory", tmp_path / "m")).ref
    sign(ref, bob)
    sign(ref, bob)
    assert sorted(one.name for one in resolve(ref).signed) == ["bob", "mallory"]
    assert load(ref, require_signature=True) is not None


def test_the_shell_says_who_has_signed_and_fails_where_a_check_does(
    line: Callable[..., Any], bob: Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    line("signing-shell", signer=bob)
    line("signing-shell")
    for verb in ("show", "verify"):
        assert shell("models", verb, "signing-shell/1") == 0
        assert re.search(r"signed by:? +bob\n", capsys.readouterr().out)
        assert shell("models", verb, "signing-shell/2") == 0
        assert re.search(r"signed by:? +nobody\n", capsys.readouterr().out)
    assert shell("models", "verify", "signing-shell/1", "--require-signature", "--json") == 0
    assert json.loads(capsys.readouterr().out)["signed"][0]["name"] == "bob"
    assert shell("models", "verify", "signing-shell/2", "--require-signature") == 1
    assert "signing-shell/2 is not signed" in capsys.readouterr().err
    package = fetch("signing-shell/1")
    (Path(package.path) / "MLmodel").write_text("")
    assert shell("models", "verify", "signing-shell/1") == 1
    assert "(MLmodel has another sha256)" in capsys.readouterr().err
    assert shell("predict", "signing-shell", "x.npy", "--require-signature") == 2
    assert "use --require-signature there" in capsys.readouterr().err


def test_openssfs_own_tool_takes_what_is_exported_and_refuses_a_changed_file(
    line: Callable[..., Any], bob: Signer, own_cluster: Path, elsewhere: Path, tmp_path: Path
) -> None:
    from model_signing.verifying import Config

    line("signing-peer", signer=bob)
    folder = tmp_path / "peer"
    export("signing-peer", "mlflow", folder)
    signature = (folder / "model.sig").rename(tmp_path / "model.sig")

    def verify_by(authority: Path) -> None:
        chain = [authority / "ca.pem"]
        Config().use_certificate_verifier(certificate_chain=chain).verify(folder, signature)

    verify_by(own_cluster)
    with pytest.raises(Exception, match=r"self-signed certificate|unable to get"):
        verify_by(elsewhere)
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"do not match|[Mm]ismatch"):
        verify_by(own_cluster)


@pytest.mark.parametrize("recorded", ["{", "[1]", '{"a": "no hash"}'])
def test_a_list_of_files_that_is_none_is_refused_and_hides_no_other_version(
    line: Callable[..., Any], bob: Signer, recorded: str
) -> None:
    line("signing-list", signer=bob)
    ref = line("signing-list", signer=bob).ref
    set_tag(ref, "aios.files", recorded)
    with pytest.raises(ConflictError, match=f"on {ref} does not hold"):
        load(ref)
    shown = {row["ref"]: row["signed"][0]["standing"] for row in versions("signing-list")}
    assert shown.pop(ref) == "broken"
    assert "known" in shown.values()


def test_a_version_that_could_not_be_signed_does_not_appear(line: Callable[..., Any]) -> None:
    class Gone:
        def sign(self, ref: str, files: Mapping[str, str]) -> tuple[str, str]:
            raise AccessError("The key is gone.")

    with pytest.raises(AccessError, match="key is gone"):
        line("signing-half", alias="champion", signer=Gone())
    assert versions("signing-half") == []
    assert line("signing-half").aliases == ()


def test_damaged_files_are_not_signed(line: Callable[..., Any], bob: Signer) -> None:
    line("signing-damaged")
    package = fetch("signing-damaged")
    (Path(package.path) / package.main).write_bytes(b"")
    with pytest.raises(ConflictError, match="changed after it was published"):
        sign("signing-damaged", bob)
    assert not resolve("signing-damaged").signed
