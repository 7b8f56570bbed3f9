"""People's code in their own accounts, on a cluster that root has started."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accounts import PACKAGE, PEOPLE, SITE, python, shared
from clusters import private_directories, session_of, until

from aios_jupyter.cluster import embedded
from aios_jupyter.config import settings
from aios_jupyter.errors import (
    AccessError,
    AiosError,
    ClusterError,
    NotFoundError,
    RunError,
    UsageError,
)
from aios_jupyter.node.accounts import NAMES, Account, Accounts, popen
from aios_jupyter.node.guests import _connect
from aios_jupyter.node.spares import _is_own
from aios_jupyter.session import Session, connect

__all__ = ["python", "shared"]

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture(scope="module")
def cluster(
    python: str, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    rows = {who: {"account": a, "home": str(shared / who)} for who, a in PEOPLE.items()}
    (shared / "accounts.json").write_text(json.dumps(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)
        patch.setenv("PYTHONPATH", f"{PACKAGE}:{SITE}")
        with private_directories(tmp_path_factory.mktemp("cluster")):
            embedded.ensure(simulate_gpus=2, accounts=str(shared / "accounts.json"))
            root = tmp_path_factory.mktemp("bundles")
            with connect() as owner:
                for who in (*PEOPLE, "carl"):
                    owner.user_add(who, "user", root / who)
            yield {who: root / who for who in (*PEOPLE, "carl")}


@pytest.fixture
def ana(cluster: dict[str, Path]) -> Iterator[Session]:
    with session_of(cluster["ana"]) as session:
        yield session


@pytest.fixture
def bob(cluster: dict[str, Path]) -> Iterator[Session]:
    with session_of(cluster["bob"]) as session:
        yield session


WHO = """
import getpass, os
who = (os.getuid(), os.geteuid(), os.getgid(), getpass.getuser(), os.path.expanduser("~"), os.getcwd())
"""


def cell(session: Session, source: str, names: str, folder: Path, **more: object) -> object:
    """What a cell leaves in a variable, run in a folder on one simulated GPU."""
    options = {"cell": True, "pull": [names], "gpus": 1, "cwd": str(folder), **more}
    return session.train(source, **options).pulled[names]


def test_each_persons_code_runs_in_the_persons_account(
    ana: Session, bob: Session, shared: Path
) -> None:
    for session, who in ((ana, "ana"), (bob, "bob")):
        account = pwd.getpwnam(PEOPLE[who])
        home = str(shared / who)
        expected = (account.pw_uid, account.pw_uid, account.pw_gid, PEOPLE[who], home, home)
        assert cell(session, WHO, "who", shared / who) == expected


def test_whoever_started_the_cluster_runs_as_before(cluster: dict[str, Path], shared: Path) -> None:
    with connect() as owner:
        assert cell(owner, WHO, "who", shared)[:2] == (0, 0)


def test_a_cluster_keeps_the_rule_that_it_was_started_with(cluster: dict[str, Path]) -> None:
    with pytest.raises(ClusterError, match="started with other --accounts is running"):
        embedded.ensure(accounts=NAMES)


SEEN = """
seen = {}
for path in paths:
    try:
        seen[path] = open(path).read()
    except OSError as error:
        seen[path] = error.strerror
"""


def test_nobody_reads_what_is_roots_or_anothers(ana: Session, bob: Session, shared: Path) -> None:
    cell(bob, "open('note', 'w').write('of bob'); done = 1", "done", shared / "bob")
    paths = embedded.Paths.current()
    places = [
        str(shared / "secret"),
        str(shared / "bob" / "note"),
        str(paths.state / "journal.sqlite"),
        str(paths.tls / "ca.key"),
        str(paths.state / "node.log"),
    ]
    seen = cell(ana, SEEN, "seen", shared / "ana", push={"paths": places})
    assert seen == dict.fromkeys(places, "Permission denied")
    assert cell(bob, SEEN, "seen", shared / "bob", push={"paths": ["note"]}) == {"note": "of bob"}


def test_the_agents_own_environment_stays_with_it(ana: Session, shared: Path) -> None:
    pid = json.loads(embedded.Paths.current().node.read_text())["pid"]
    told = Path(f"/proc/{pid}/environ").read_text().split("\0")
    roots = {name.partition("=")[0] for name in told if name.startswith(("JUPYTER_", "PYTEST_"))}
    assert roots
    environment = cell(ana, "import os\nnow = dict(os.environ)", "now", shared / "ana")
    assert isinstance(environment, dict)
    # What the person's own process has goes along, and here that is root's too.
    assert environment["HOME"] == str(shared / "ana")
    assert not [name for name in environment if name.startswith("AIOS_BROKER")]


@pytest.mark.parametrize("size", [10, 500_000])
def test_values_go_there_and_back(ana: Session, shared: Path, size: int) -> None:
    values = np.arange(size, dtype=np.float64)
    twice = cell(ana, "twice = values * 2", "twice", shared / "ana", push={"values": values})
    assert np.array_equal(twice, values * 2)
    assert ana.train(lambda x: x + 1, 41, gpus=1, cwd=str(shared / "ana")).value == 42


def test_a_folder_that_is_closed_to_the_person_is_told(ana: Session, shared: Path) -> None:
    (shared / "closed").mkdir(mode=0o700)
    with pytest.raises(RunError, match=r"Your account cannot enter the folder .*closed"):
        cell(ana, WHO, "who", shared / "closed")


def test_a_home_that_cannot_be_written_is_told(ana: Session, shared: Path) -> None:
    # Whatever ran before.
    shutil.rmtree(shared / "ana" / ".local", ignore_errors=True)
    (shared / "ana").chmod(0o500)
    try:
        with pytest.raises(RunError, match=r"cannot be made on this node .*in your home"):
            cell(ana, WHO, "who", shared)
    finally:
        (shared / "ana").chmod(0o700)


def test_without_an_account_nothing_runs(cluster: dict[str, Path], shared: Path) -> None:
    with session_of(cluster["carl"]) as carl:
        with pytest.raises(AiosError, match="carl has no account on this node to run in"):
            cell(carl, WHO, "who", shared)
        until(lambda: not [r for r in carl.runs() if r["ended"] is None], "its run has ended")


def test_a_failure_is_kept_for_its_owner_alone(ana: Session, bob: Session, shared: Path) -> None:
    with pytest.raises(RunError) as failed:
        cell(ana, "secret_of_ana = 3\nraise ValueError('no')", "x", shared / "ana")
    run = failed.value.run

    def failure() -> str:
        with contextlib.suppress(NotFoundError):
            return ana.stacks(run)[0].failure
        return ""

    assert "ValueError: no" in until(failure, "where it failed is written")
    place = Path(Account.named("games", str(shared / "ana")).place(run))
    assert place.stat().st_mode & 0o777 == 0o700
    assert {path.owner() for path in place.iterdir()} == {"games"}
    with pytest.raises(AccessError):
        bob.stacks(run)


PLANT = """
import os, time
place = os.path.dirname(os.environ["AIOS_CHECKPOINTS"])
os.symlink(target, f"{place}/profile-0.json")
os.symlink(target, f"{place}/failure-0.txt")
os.mkfifo(f"{place}/pipe.json")
with open(f"{place}/own.json", "w") as file:
    file.write("of ana")
done = 1
"""


def test_the_agent_follows_no_link_for_a_person(ana: Session, shared: Path) -> None:
    handle = ana.start(
        PLANT, cell=True, gpus=1, cwd=str(shared / "ana"), push={"target": str(shared / "secret")}
    )
    handle.wait()
    (node,) = ana.status()["nodes"].values()

    def read(name: str) -> bytes:
        launcher = ana._launcher
        assert launcher is not None
        return bytes(ana._loop.run(launcher.read(node["address"], handle.id, name)))

    for name in ("profile-0.json", "pipe.json", "none.json"):
        with pytest.raises(NotFoundError):
            read(name)
    assert read("own.json") == b"of ana"
    assert read("rank-0.log") == b""
    with pytest.raises(NotFoundError, match="no rank that raised"):
        ana.stacks(handle.id)


def test_source_lines_are_read_as_the_person(ana: Session, shared: Path) -> None:
    source = f"""
import time
exec(compile("\\n" * 0 + "time.sleep(600)", {str(shared / "secret")!r}, "exec"))
"""
    handle = ana.start(source, cell=True, gpus=1, cwd=str(shared / "ana"))
    try:
        frames = until(lambda: asleep(ana, handle.id, "secret"), "it sleeps")
        assert [frame.source for frame in frames] == [""]
    finally:
        handle.stop()


def asleep(session: Session, run: str, file: str) -> list[object]:
    frames = [f for rank in session.stacks(run) for t in rank.threads for f in t.frames]
    return [frame for frame in frames if frame.file.endswith(file)]


COUNTS = """
import os
place = os.environ["AIOS_CHECKPOINTS"]
os.makedirs(place, exist_ok=True)
tries = len(os.listdir(place)) + 1
open(f"{place}/{tries}", "w").close()
if tries < 3:
    os._exit(1)
"""


def test_a_run_that_fails_starts_again_where_it_wrote(ana: Session, shared: Path) -> None:
    assert cell(ana, COUNTS, "tries", shared / "ana", max_restarts=2) == 3


def test_the_next_ranks_are_forked_in_the_account(ana: Session, bob: Session, shared: Path) -> None:
    source = f"import torch\n{WHO}\nimport sys\nwarm = 'aios_jupyter.node.zygote' in sys.modules"
    for session, who in ((ana, "ana"), (bob, "bob")):
        found = [cell(session, source, "warm", shared / who, framework="torch")]

        def forked() -> bool:
            found.append(cell(session, source, "warm", shared / who, framework="torch"))  # noqa: B023
            return bool(found[-1])  # noqa: B023

        until(forked, f"a rank of {who} is forked", 90)
        uid = pwd.getpwnam(PEOPLE[who]).pw_uid
        where = cell(session, source, "who", shared / who, framework="torch")
        assert where[:2] == (uid, uid)
        assert where[5] == str(shared / who)


LOGS = """
from aios_jupyter import train
for step in range(5):
    train.log(step, loss=1 / (step + 1))
done = 1
"""


def test_a_run_is_told_to_mlflow_as_its_person(
    ana: Session, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, state = shared / "ana" / "mlflow.db", shared / "ana" / "state"
    state.mkdir(mode=0o700)
    shutil.chown(state, "games")
    monkeypatch.setenv("AIOS_STATE_DIR", str(state))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("AIOS_TRACKING", "on")
    settings.cache_clear()
    try:
        cell(ana, LOGS, "done", shared / "ana")
    finally:
        monkeypatch.undo()
        settings.cache_clear()

    def told() -> list[tuple[str, float]]:
        with contextlib.suppress(sqlite3.OperationalError):
            query = "SELECT status, value FROM runs JOIN latest_metrics USING (run_uuid)"
            with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as read:
                found = read.execute(f"{query} WHERE key = 'loss'").fetchall()
                return [row for row in found if row[0] == "FINISHED"]
        return []

    assert until(told, "it is told", 90) == [("FINISHED", 0.2)]
    assert database.owner() == "games"


# --- the rule


@root_only
def test_names_are_those_of_people_and_of_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "ana": ("ana", "x", 1001, 1001, "", "/srv/ana", "/bin/bash"),
        "mysql": ("mysql", "x", 120, 120, "", "/", "/bin/false"),
        "toor": ("toor", "x", 0, 0, "", "/root", "/bin/bash"),
        "nobody": ("nobody", "x", 65534, 65534, "", "/", "/bin/false"),
    }
    monkeypatch.setattr(pwd, "getpwnam", lambda name: known[name])
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 44])
    accounts = Accounts(NAMES, own="root")
    found = accounts.of("ana")
    assert found == Account("ana", 1001, 1001, (1001, 44), "/srv/ana", "/bin/bash")
    assert accounts.of("root") is None
    for person in ("mysql", "toor", "nobody", "gone", ""):
        with pytest.raises(AccessError, match="has no account on this node"):
            accounts.of(person)
        assert accounts.facts_of(person) == {}
    # Where the cluster was started elsewhere, its root is nobody here.
    with pytest.raises(AccessError):
        Accounts(NAMES).of("root")


@root_only
@pytest.mark.parametrize("text", ["[]", "{", '{"ana": 5}', '{"ana": {"home": "/x"}}', '{"a": {}}'])
def test_a_file_that_does_not_read_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accounts.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"accounts.json"):
        Accounts(str(path))


@root_only
def test_a_file_that_others_can_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "accounts.json"
    path.write_text('{"ana": "games", "rita": "root"}')
    assert Accounts(str(path)).of("ana") == Account.named("games")
    with pytest.raises(AccessError):
        Accounts(str(path)).of("rita")
    accounts = Accounts(str(path))
    path.write_text('{"bob": "daemon"}')
    os.utime(path, (1, 1))
    assert accounts.of("bob") == Account.named("daemon"), "it is read again"
    with pytest.raises(AccessError, match="add it to"):
        accounts.of("ana")
    path.write_text("{")
    os.utime(path, (2, 2))
    assert accounts.of("bob") == Account.named("daemon"), "a mistake puts nobody out"
    path.write_text("{}")
    path.chmod(0o666)
    with pytest.raises(UsageError, match=r"Others than root can write .*chmod 644"):
        Accounts(str(path))
    with pytest.raises(UsageError, match="cannot be read from"):
        Accounts(str(tmp_path / "none.json"))


def test_only_root_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="only where root starts the agent"):
        Accounts(NAMES)
    assert Accounts().of("anybody") is None


# --- what others say is checked


@root_only
def test_a_zygotes_word_on_its_child_is_not_enough() -> None:
    account = Account.named("games")
    own = subprocess.Popen(["sleep", "60"])
    zygote = subprocess.Popen(["sleep", "60"], **popen(account))
    spare = subprocess.Popen(["sleep", "60"], **popen(account))
    try:
        assert _is_own(spare.pid, zygote.pid)
        assert not _is_own(own.pid, zygote.pid), "it is of another account"
        assert not _is_own(1, zygote.pid), "it is none of this process's"
        assert not _is_own(2**22 + 1, zygote.pid), "there is none"
    finally:
        for process in (own, zygote, spare):
            process.kill()
            process.wait()


@root_only
async def test_a_stream_leads_to_no_socket_but_the_accounts_own(tmp_path: Path) -> None:
    account = Account.named("games")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "roots"))
        listening.listen()
        (tmp_path / "link").symlink_to(tmp_path / "roots")
        for name in ("roots", "link"):
            with pytest.raises(AiosError, match="is no socket of games"):
                await _connect(tmp_path / name, account)
        os.chown(tmp_path / "roots", account.uid, account.gid)
        _, writer = await _connect(tmp_path / "roots", account)
        writer.close()
        await writer.wait_closed()


@root_only
def test_a_part_of_a_file_is_read_as_the_account(python: str, shared: Path) -> None:
    account = Account.named("games", str(shared / "ana"))
    path = shared / "ana" / "own"
    path.write_bytes(b"0123456789")
    shutil.chown(path, "games")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)
        assert account.read(str(path), 3, 4) == (b"3456", 10)
        assert account.read(str(path), 30, 4) == (b"", 10)
        for other in (shared / "secret", shared / "ana", shared / "none"):
            with pytest.raises(NotFoundError):
                account.read(str(other), 0, 10)
