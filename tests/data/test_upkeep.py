"""What takes space, what may go, and what is damaged and mended."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from aios_jupyter.commands import main
from aios_jupyter.data import layout, storage, upkeep
from aios_jupyter.data.augment import augment
from aios_jupyter.errors import ConflictError, NotFoundError


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(layout, "BLOCK", 4096)
    monkeypatch.setattr(upkeep, "BLOCK", 4096)


@pytest.fixture
def npz(tmp_path, digits) -> Path:
    path = tmp_path / "digits.npz"
    np.savez(path, x=digits[0], y=digits[1])
    return path


def damage(path, at: int) -> bytes:
    """As a disk does it: the file has the time that it had."""
    blob, facts = path.read_bytes(), path.stat()
    path.write_bytes(blob[:at] + bytes([blob[at] ^ 0xFF]) + blob[at + 1 :])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    return blob


def shell(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_a_damaged_block_is_named_and_mended_from_another_copy(
    catalog, npz, tmp_path, small_blocks
):
    entry = catalog.add("digits", npz)
    assert upkeep.verify(catalog, entry) == []
    whole = damage(npz, 10_000)
    (found,) = upkeep.verify(catalog, entry)
    assert (found.what, found.mended) == ("damaged in bytes 8,192 to 12,288", False)
    npz.write_bytes(whole)
    catalog.copy("digits", tmp_path / "copy.npz")
    damage(npz, 10_000)
    # The copy is damaged in another place, which does not matter for this block.
    damage(tmp_path / "copy.npz", 100)
    (found,) = upkeep.verify(catalog, entry, mend=False)
    assert not found.mended and npz.read_bytes() != whole
    (found,) = upkeep.verify(catalog, entry)
    assert found.mended and npz.read_bytes() == whole
    assert upkeep.verify(catalog, entry) == []


def test_a_damaged_copy_mends_nothing(catalog, npz, tmp_path, small_blocks):
    entry = catalog.add("digits", npz)
    catalog.copy("digits", tmp_path / "copy.npz")
    damage(npz, 10_000)
    damage(tmp_path / "copy.npz", 9_000)
    blob = npz.read_bytes()
    (found,) = upkeep.verify(catalog, entry)
    assert not found.mended and npz.read_bytes() == blob
    (tmp_path / "copy.npz").unlink()
    assert not upkeep.verify(catalog, entry)[0].mended


def test_missing_and_cut_files_of_a_folder_are_brought_back(catalog, photos, tmp_path):
    entry = catalog.add("photos", photos)
    catalog.copy("photos", tmp_path / "safe")
    (photos / "cat" / "a.png").unlink()
    (photos / "dog" / "a.png").write_bytes(b"cut")
    found = upkeep.verify(catalog, entry, mend=True)
    assert [(f.file, f.mended) for f in found] == [("cat/a.png", True), ("dog/a.png", True)]
    assert found[0].what == "missing"
    assert found[1].what.startswith("written since it was added (3 bytes long in place of")
    assert upkeep.verify(catalog, entry) == []


def test_what_somebody_has_written_since_is_not_undone(catalog, npz, tmp_path, capsys):
    entry = catalog.add("digits", npz)
    catalog.copy("digits", f"{tmp_path}/copies/")
    whole = (tmp_path / "copies" / "digits.npz").read_bytes()
    assert whole == npz.read_bytes()
    npz.write_bytes(b"an edit")
    assert shell("data", "verify", "digits") == 1
    assert npz.read_bytes() == b"an edit"
    shown = capsys.readouterr()
    assert "written since it was added" in shown.out
    assert f"'aios data verify {entry.ref} --mend' brings back what was" in shown.err
    assert shell("data", "verify", "digits", "--mend") == 0
    assert npz.read_bytes() == whole


def test_a_copy_of_what_has_changed_leaves_its_target_alone(catalog, npz, tmp_path):
    catalog.add("digits", npz)
    target = tmp_path / "precious.npz"
    target.write_bytes(b"precious")
    npz.write_bytes(npz.read_bytes() + b"more")
    with pytest.raises(ConflictError, match="has changed since"):
        catalog.copy("digits", target)
    assert target.read_bytes() == b"precious"


def test_the_verb_fails_where_something_is_left_damaged(catalog, npz, tmp_path, capsys):
    catalog.add("digits", npz)
    assert shell("data", "verify") == 0
    assert "All as it was added (2 looked at)" in capsys.readouterr().out
    damage(npz, 5)
    assert shell("data", "verify", "digits") == 1
    shown = capsys.readouterr()
    assert "damaged in bytes 0 to" in shown.out
    assert "no whole copy to mend it from" in shown.err


def test_gc_removes_what_nothing_refers_to_and_nothing_else(catalog, npz, digits, state, capsys):
    catalog.add("digits", npz)
    made = augment("digits", "more", "hflip", copies=1)
    kept = augment("digits", "other", "vflip", copies=1)
    catalog.remove("more")
    old = storage.data_dir("other") / ".abc.partial"
    young = storage.data_dir("other") / ".def.partial"
    for path in (old, young):
        path.write_bytes(b"x" * 100)
    os.utime(old, (1, 1))
    assert shell("data", "gc", "--dry-run", "--json") == 0
    listed = {row["what"] for row in json.loads(capsys.readouterr().out)}
    assert listed == {made.url, str(old)}
    assert Path(made.url).exists() and old.exists()
    assert shell("data", "gc") == 0
    assert not Path(made.url).exists() and not old.exists()
    assert Path(kept.url).exists() and young.exists() and npz.exists()
    assert upkeep.garbage(catalog) == []


def test_gc_waits_for_nobody_who_writes(catalog, digits):
    def collect(done: int, total: int) -> None:
        with pytest.raises(ConflictError, match="being written just now"):
            upkeep.collect(catalog)

    entry = augment(digits, "more", "hflip", copies=1, on_progress=collect)
    assert upkeep.collect(catalog) == []
    assert Path(entry.url).exists()


def test_retention_keeps_the_newest_and_the_young(catalog, digits, capsys):
    x, y = digits
    made = [catalog.add_arrays("daily", x[: 50 + k], y[: 50 + k]) for k in range(4)]
    now = time.time()
    for age, entry in zip((40, 30, 2, 1), made, strict=True):
        with catalog._open() as database:
            aged = msgspec.structs.replace(entry, created=now - age * upkeep.DAY)
            database.execute(
                "UPDATE entries SET body = ? WHERE version = ?",
                (msgspec.msgpack.encode(aged), entry.version),
            )
    assert upkeep.garbage(catalog) == []
    assert shell("data", "keep", "daily", "--versions", "1", "--age", "10d") == 0
    assert "the newest 1, and all younger than 10 d" in capsys.readouterr().out
    listed = {item.what for item in upkeep.garbage(catalog)}
    assert listed == {made[0].ref, made[1].ref, made[0].url, made[1].url}
    assert shell("data", "gc") == 0
    assert [e.version for e in catalog.versions("daily")] == [e.version for e in made[2:]]
    assert [Path(e.url).exists() for e in made] == [False, False, True, True]
    catalog.keep("daily", 0, 0)
    assert catalog.retention() == {}
    with pytest.raises(NotFoundError, match="did you mean 'daily'"):
        catalog.keep("dayly", 1, 0)


def test_du_says_what_takes_how_much(catalog, npz, digits, capsys):
    outside = catalog.add("digits", npz)
    inside = augment("digits", "more", "hflip", copies=2)
    found = {(use.kind, use.name): use.size for use in upkeep.usage(catalog)}
    assert found["dataset", inside.ref] == Path(inside.url).stat().st_size
    assert found["elsewhere", outside.ref] == npz.stat().st_size
    assert found["cache", ""] > digits[0].nbytes
    assert shell("data", "du") == 0
    assert inside.ref in capsys.readouterr().out


def test_data_is_added_copied_and_tagged_from_a_shell(catalog, npz, tmp_path, capsys, monkeypatch):
    assert shell("data", "add", "digits", str(npz), "--tag", "small") == 0
    assert "STD" in capsys.readouterr().out
    assert shell("data", "cp", "digits", str(tmp_path / "c.npz"), "--bandwidth", "1GB") == 0
    assert (tmp_path / "c.npz").read_bytes() == npz.read_bytes()
    assert shell("data", "tag", "digits", "fine") == 0
    capsys.readouterr()
    assert shell("data", "ls", "--tag", "fine", "--json") == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["digits"]
    assert shell("data", "cp", "digits", str(tmp_path / "d.npz"), "--bandwidth", "fast") == 2
    monkeypatch.setenv("AIOS_SECRET_KEY", "k")
    monkeypatch.setenv("AIOS_SECRET_SECRET", "s3cret")
    assert shell("data", "keys", "add", "lab", "endpoint_url=http://x:1") == 0
    assert shell("data", "keys", "add", "lab", "secret=abc") == 2
    assert shell("data", "keys", "ls") == 0
    shown = capsys.readouterr()
    assert "endpoint_url=http://x:1, key=***, secret=***" in shown.out
    assert "s3cret" not in shown.out + shown.err
    assert shell("data", "keys", "rm", "lab") == 0
    assert shell("data", "keys", "rm", "lab") == 1


def test_every_operation_of_a_policy_is_listed(capsys):
    assert shell("augment", "--operations") == 0
    assert "cutmix(1)" in capsys.readouterr().out


def test_a_quota_refuses_what_would_pass_it_and_keeps_nothing_of_it(
    catalog, digits, npz, tmp_path, state, capsys
):
    import getpass

    me = getpass.getuser()
    first = catalog.add_arrays("first", *digits)
    assert shell("data", "quota", "--size", str(int(2.5 * first.size))) == 0
    assert "all together" in capsys.readouterr().out
    catalog.add_arrays("second", digits[0] + 1, digits[1])
    with pytest.raises(ConflictError, match=r"all users together take .* would pass the quota of"):
        catalog.add_arrays("third", digits[0] + 2, digits[1])
    with pytest.raises(ConflictError, match="would pass the quota"):
        catalog.copy(str(npz), "third")
    with pytest.raises(ConflictError, match="would pass the quota"):
        augment("first", "third", "hflip")
    assert not catalog.versions("third")
    assert [p for p in (state / "data" / "third").glob("*") if not p.name.endswith("lock")] == []
    # What lies elsewhere is none of it, and the same content again takes no more.
    catalog.add("elsewhere", npz)
    catalog.add_arrays("second", digits[0] + 1, digits[1])
    catalog.remove("second")
    catalog.copy(str(npz), "third")
    assert shell("data", "quota", me, "--size", "1kB") == 0
    with pytest.raises(ConflictError, match=f"The datasets of '{me}' take"):
        catalog.add_arrays("fourth", digits[0], digits[1])
    assert shell("data", "quota", me, "--remove") == 0
    capsys.readouterr()
    assert shell("data", "quota", "--json") == 0
    everybody, mine = json.loads(capsys.readouterr().out)
    assert (everybody["owner"], mine["owner"], mine["limit"]) == ("*", me, None)
    assert everybody["used"] == mine["used"] == first.size + catalog.get("third").size
    assert shell("data", "quota", "--size", "1GB", "--remove") == 2


def test_quotas_are_of_each_owner(catalog, digits, npz):
    entry = catalog.add_arrays("mine", *digits)
    catalog.put(msgspec.structs.replace(entry, name="hers", owner="ana", url=entry.url + "x"))
    catalog.set_quota("ana", entry.size + 10)
    catalog.check_room(10, "ana")
    catalog.check_room(10**12, "bob")
    with pytest.raises(ConflictError, match="'ana'"):
        catalog.check_room(11, "ana")
    assert [(q.owner, q.used) for q in catalog.quotas() if q.owner == "ana"] == [
        ("ana", entry.size)
    ]
