"""Encrypted datasets, read by the standard tool age where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from aios_jupyter.commands import main
from aios_jupyter.data import vault
from aios_jupyter.errors import AccessError, ConflictError, NotFoundError, UsageError
from aios_jupyter.session.tables import sql


@pytest.fixture
def alice(state: Path) -> str:
    return vault.key("alice")


def test_a_dataset_is_encrypted_and_comes_back(catalog, digits, alice) -> None:
    plain = catalog.add_arrays("digits", *digits)
    entry = vault.encrypt("digits", ["alice"])
    assert entry == catalog.get("digits")
    assert (entry.format, entry.rows, entry.how) == ("age", 290, "encrypt: alice")
    assert entry.made_from == (plain.ref,)
    blob = Path(entry.url).read_bytes()
    assert blob.startswith(b"age-encryption.org/v1")
    assert digits[0].tobytes()[3000:3100] not in blob
    for read in (catalog.load, lambda name: sql(f"SELECT * FROM {name}", {})):
        with pytest.raises(UsageError, match=r"'digits' is encrypted.*aios data decrypt digits"):
            read("digits")
    back = vault.decrypt("digits", "back")
    assert (back.version, back.format) == (plain.version, "npz")
    assert back.made_from == (entry.ref,)
    assert np.array_equal(catalog.load("back")[0], digits[0])


def test_folders_are_encrypted_whole(catalog, photos, alice) -> None:
    plain = catalog.add("photos", photos)
    entry = vault.encrypt("photos", ["alice"], "secret")
    assert entry.url.endswith(".tar.age")
    assert vault.decrypt("secret", "back").classes == plain.classes
    assert catalog.get("photos").format == "folder"


def test_only_those_it_is_for_can_read_it(catalog, digits, alice, state) -> None:
    catalog.add_arrays("digits", *digits)
    vault.encrypt("digits", [alice])
    kept = vault.key_file("alice").rename(state / "elsewhere")
    with pytest.raises(AccessError, match="No key of yours opens 'digits'"):
        vault.decrypt("digits")
    vault.key("bob")
    with pytest.raises(AccessError, match="No key of yours"):
        vault.decrypt("digits")
    assert catalog.get("digits").format == "age"
    kept.rename(vault.key_file("alice"))
    assert vault.decrypt("digits").format == "npz"


def test_keys_are_private_and_stay(alice, state) -> None:
    assert vault.key("alice") == alice
    assert vault.key_file("alice").stat().st_mode & 0o777 == 0o600
    assert vault.key_file("alice").parent.stat().st_mode & 0o777 == 0o700
    other = vault.key("other")
    assert vault.key("carol", other) == other
    assert not vault.key_file("carol").exists()
    with pytest.raises(ConflictError, match="'alice' has another key"):
        vault.key("alice", other)
    with pytest.raises(UsageError, match="not a public key"):
        vault.key("dave", "age1nonsense")
    with pytest.raises(UsageError, match="cannot be a dataset's name"):
        vault.key("../dave")


def test_what_cannot_be_done_is_a_sentence(catalog, digits, alice) -> None:
    catalog.add_arrays("digits", *digits)
    with pytest.raises(
        NotFoundError, match="no key of 'bob'; make one with 'aios data identity bob'"
    ):
        vault.encrypt("digits", ["alice", "bob"])
    with pytest.raises(UsageError, match="'digits' is not encrypted"):
        vault.decrypt("digits")
    entry = vault.encrypt("digits", ["alice"])
    with pytest.raises(ConflictError, match="encrypted already"):
        vault.encrypt("digits", ["alice"])
    path = Path(entry.url)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"\.age is damaged"):
        vault.decrypt("digits", "back")
    with pytest.raises(NotFoundError):
        catalog.get("back")


@pytest.mark.systems
@pytest.mark.skipif(shutil.which("age") is None, reason="the tool age is not installed")
def test_the_standard_tool_reads_ours_and_we_read_its(catalog, digits, alice, tmp_path) -> None:
    plain = catalog.add_arrays("digits", *digits)
    entry = vault.encrypt("digits", ["alice"])
    out = tmp_path / "out.npz"
    command = ["age", "-d", "-i", vault.key_file("alice"), "-o", out, entry.url]
    subprocess.run(command, check=True, timeout=60)
    assert out.read_bytes() == Path(plain.url).read_bytes()
    Path(entry.url).replace(tmp_path / "ours")
    subprocess.run(["age", "-r", alice, "-o", entry.url, plain.url], check=True, timeout=60)
    assert vault.decrypt("digits", "back").version == plain.version


def test_a_name_may_take_encrypted_versions_alone(catalog, digits, alice, tmp_path, capsys) -> None:
    plain = catalog.add_arrays("digits", *digits)
    with pytest.raises(SystemExit):
        main(["data", "require", "digits"])
    assert "only when they are encrypted" in capsys.readouterr().out
    locked = vault.encrypt("digits", ["alice"])
    np.savez(tmp_path / "x.npz", x=digits[0])
    for make in (
        lambda: catalog.add("digits", tmp_path / "x.npz"),
        lambda: catalog.add_arrays("digits", digits[0] + 1),
        lambda: vault.decrypt("digits"),
    ):
        with pytest.raises(ConflictError, match="'digits' have to be encrypted; give another name"):
            make()
    assert catalog.versions("digits") == [plain, locked]
    kept = {Path(entry.url).name for entry in (plain, locked)}
    assert {path.name for path in Path(plain.url).parent.iterdir()} == kept
    assert (tmp_path / "x.npz").exists()
    assert vault.decrypt("digits", "open").version == plain.version
    with pytest.raises(SystemExit):
        main(["data", "require", "digits", "--remove"])
    assert catalog.add("digits", tmp_path / "x.npz").format == "npz"


def test_what_was_known_before_is_known_again_and_the_rest_is_looked_at(
    catalog, digits, alice
) -> None:
    plain = catalog.add_arrays("digits", *digits)
    vault.encrypt("digits", ["alice"], "locked")
    back = vault.decrypt("locked", "back")
    assert (back.fields, back.schema, back.classes) == (plain.fields, plain.schema, plain.classes)
    catalog.remove("digits")
    again = vault.decrypt("locked", "again")
    assert (again.fields, again.rows, again.owner) == (plain.fields, 290, plain.owner)
    (one,), (other,) = catalog.checks(again), catalog.checks(back)
    assert (one.size, one.blocks) == (other.size, other.blocks)
