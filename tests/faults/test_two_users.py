"""Two people on one broker: neither sees, reads, ends or uses what is the other's, whatever they send.

Alice works; Mallory has a certificate of the same cluster and speaks to broker and agent himself.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from clusters import free, session_of, until

from aios_jupyter import tls
from aios_jupyter.broker import messages as msg
from aios_jupyter.broker.messages import VERSION
from aios_jupyter.broker.protocol import Connection
from aios_jupyter.broker.protocol import connect as dial
from aios_jupyter.cluster import bundle, embedded, users
from aios_jupyter.config import settings
from aios_jupyter.errors import (
    AccessError,
    AiosError,
    ClusterError,
    ConflictError,
    NotFoundError,
    ProtocolError,
    RunError,
    UsageError,
)
from aios_jupyter.process import alive
from aios_jupyter.runs import messages as agent_msg
from aios_jupyter.runs.handle import RunHandle
from aios_jupyter.runs.spec import Entry, Rendezvous, RunSpec, ranks_on
from aios_jupyter.schema import Lease, Node, Owner, Request, Run, RunKind, Want
from aios_jupyter.session import Session, connect, down
from aios_jupyter.units import split_address

SECRET = "only for alice"
WORK = f"""
import os, time
from aios_jupyter import train
print({SECRET!r}, word, os.getpid(), flush=True)
train.log(loss=0.25)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def bundles(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    roles = {"alice": "user", "mallory": "user", "victor": "viewer", "anna": "admin"}
    with connect() as owner:
        for name, role in roles.items():
            owner.user_add(name, role, root / name)
    return {name: root / name for name in roles}


@pytest.fixture
def alice(bundles: dict[str, Path]) -> Iterator[Session]:
    with session_of(bundles["alice"], "alice.ipynb") as session:
        yield session


@pytest.fixture
def mallory(bundles: dict[str, Path]) -> Iterator[Session]:
    with session_of(bundles["mallory"], "mallory.ipynb") as session:
        yield session


class Work:
    """Alice's lease, her run, and the pid of its rank."""

    def __init__(self, session: Session) -> None:
        self.lease = session.alloc(gpus=1)
        self.handle: RunHandle = session.start(
            WORK, cell=True, push={"word": "hush"}, lease=self.lease.id
        )
        text = ""
        for event in self.handle.events():
            if event["type"] == "log":
                text += event["text"]
            if text.endswith("\n"):
                break
        self.pid = int(text.split()[-1])
        self.token = session.client.tokens[self.lease.id]
        self.session = session.client.session
        until(lambda: self._row(session)["metrics"], "the broker has the metrics")

    def _row(self, session: Session) -> dict[str, Any]:
        return dict(session.status()["runs"][self.handle.id])


@pytest.fixture
def work(alice: Session) -> Iterator[Work]:
    made = Work(alice)
    yield made
    # Whatever was tried: it is still there and still hers.
    assert alive(made.pid)
    assert made.lease.id in {held.id for held in alice.leases()}
    assert alice.status()["runs"][made.handle.id]["state"] == "running"


def speak(
    directory: Path,
    body: Callable[[Connection, Connection], Coroutine[Any, Any, None]],
) -> None:
    """Run `body(broker, agent)` with connections of one's own making, hello said to both."""

    async def main() -> None:
        address, own = bundle.load(directory)
        broker = await dial(address, own.client_context())
        secret = secrets.token_hex(16)
        owner = Owner(id=msg.session_id(secret), user="")
        hello = msg.SessionHello(version=VERSION, owner=owner, secret=secret)
        await broker.call("hello", hello, timeout=10)
        nodes = (await broker.call("status"))["nodes"].values()
        agent = await dial(next(iter(nodes))["address"], own.client_context())
        await agent.call("agent.hello", agent_msg.AgentHello(version=VERSION), timeout=10)
        try:
            await body(broker, agent)
        finally:
            for connection in (broker, agent):
                connection.close()
                await connection.wait_closed()

    asyncio.run(main())


async def refused(
    connection: Connection, op: str, body: Any, *kinds: type[AiosError], says: str | None = None
) -> None:
    with pytest.raises(kinds or AccessError, match=says):
        await connection.call(op, body, timeout=20)


# --- through the API


def test_the_verbs_refuse_what_is_anothers(alice: Session, mallory: Session, work: Work) -> None:
    run, lease = work.handle.id, work.lease.id
    for attempt in (
        lambda: mallory.release(lease),
        lambda: mallory.extend(lease, 60),
        lambda: mallory.stop(run),
        lambda: mallory.attach(run),
        lambda: list(mallory.logs(run)),
        lambda: mallory.start("print(1)", cell=True, lease=lease),
        lambda: mallory.audit(),
    ):
        with pytest.raises(AccessError):
            attempt()
    assert mallory.leases() == []
    with pytest.raises(NotFoundError):
        mallory.release(everything=True)


def test_others_see_who_has_a_device_and_not_what_comes_of_it(
    alice: Session, mallory: Session, bundles: dict[str, Path], work: Work
) -> None:
    run = work.handle.id
    row = mallory.status()["runs"][run]
    assert (row["user"], row["label"], row["state"]) == ("alice", "alice.ipynb", "running")
    assert (row["metrics"], row["reason"], row["detail"]) == ({}, "", {})
    assert alice.status()["runs"][run]["metrics"]["loss"] == 0.25
    with session_of(bundles["anna"]) as admin:
        assert admin.status()["runs"][run]["metrics"]["loss"] == 0.25
    holder = mallory.status()["devices"][work.lease.slots[0].device]["holder"]
    assert holder["user"] == "alice"


def test_a_watcher_is_told_no_more_than_it_may_see(
    alice: Session, mallory: Session, bundles: dict[str, Path]
) -> None:
    views: list[dict[str, Any]] = []
    mallory._loop.run(mallory.client.subscribe(views.append))
    work = Work(alice)
    alice.stop(work.handle.id)
    list(work.handle.events())
    rows = _rows_of(views, work.handle.id)
    assert rows[-1]["state"] == "stopped"
    assert all((row["metrics"], row["reason"], row["detail"]) == ({}, "", {}) for row in rows)


def _rows_of(views: list[dict[str, Any]], run: str) -> list[dict[str, Any]]:
    def rows() -> list[dict[str, Any]]:
        return [row for view in list(views) if (row := view.get("runs", {}).get(run))]

    until(lambda: rows() and rows()[-1]["state"] == "stopped", "the end is told")
    return rows()


# --- with bytes of one's own, to the broker


def test_the_broker_refuses_every_call_about_anothers_things(
    bundles: dict[str, Path], alice: Session, work: Work
) -> None:
    run, lease = work.handle.id, work.lease.id
    stolen = Run(
        id=f"r-{secrets.token_hex(4)}",
        lease=lease,
        session=work.session,
        user="alice",
        kind=RunKind.RUN,
        name="mine",
        world_size=1,
        nodes=(),
    )
    forged = Request(id=work.lease.request, session=work.session, user="alice",
                     want=Want.GPU, count=1)  # fmt: skip

    async def attack(broker: Connection, agent: Connection) -> None:
        await refused(broker, "release", msg.ById(id=lease))
        await refused(broker, "cancel", msg.ById(id=work.lease.request))
        await refused(broker, "extend", msg.ExtendBy(id=lease, time=1.0))
        await refused(broker, "extend", msg.ExtendBy(id=lease, time=None))
        await refused(broker, "lease.get", msg.ById(id=lease))
        await refused(broker, "lease.token", msg.ById(id=lease))
        await refused(broker, "lease.active", msg.ById(id=lease))
        await refused(broker, "run.get", msg.ById(id=run))
        await refused(broker, "run.stop", msg.ById(id=run))
        await refused(broker, "run.create", stolen)
        same = msgspec.structs.replace(stolen, id=run)
        await refused(broker, "run.create", same)
        await refused(broker, "submit", forged)
        await refused(broker, "audit", None)
        await refused(broker, "shutdown", None)
        await refused(broker, "user.changed", msg.UserChange(what="revoked", name="alice"))

    speak(bundles["mallory"], attack)
    with connect(start=False) as owner:
        noted = [
            (record["who"], record["detail"].get("op"))
            for record in owner.audit(100)
            if record["what"] == "refused"
        ]
    assert ("mallory", "release") in noted
    assert ("mallory", "lease.token") in noted


def test_nobody_can_pass_for_a_session_or_a_node(
    bundles: dict[str, Path], alice: Session, work: Work
) -> None:
    secret = secrets.token_hex(16)
    foreign = Owner(id=work.session, user="alice")
    lying = msg.SessionHello(version=VERSION, owner=foreign, secret=secret)
    own = Owner(id=msg.session_id(secret), user="alice")
    named = msg.SessionHello(version=VERSION, owner=own, secret=secret)
    node = Node(id=socket.gethostname(), host="h", address="127.0.0.1:1", pid=1, devices=())

    async def hello(directory: Path, body: Any) -> Any:
        address, material = bundle.load(directory)
        connection = await dial(address, material.client_context())
        try:
            return await connection.call("hello", body, msg.Welcome, timeout=10)
        finally:
            connection.close()
            await connection.wait_closed()

    with pytest.raises(AccessError, match="somebody else"):
        asyncio.run(hello(bundles["mallory"], lying))
    # The certificate says who it is, and not the hello.
    assert asyncio.run(hello(bundles["mallory"], named)).user == "mallory"

    async def attack(broker: Connection, agent: Connection) -> None:
        await refused(broker, "hello", lying, ConflictError)
        await refused(broker, "node.hello", msg.NodeHello(version=VERSION, node=node))
        await refused(broker, "node.gone", msg.ById(id=work.lease.id))
        await refused(broker, "node.report", msg.NodeReport(usage=()))
        await refused(broker, "node.run", msg.RunReport(run=work.handle.id, detail={"url": "x"}))
        exit = msg.RankReport(
            run=work.handle.id,
            exit={"rank": 0, "code": 1, "time": 0.0},  # type: ignore[arg-type]
        )
        await refused(broker, "node.exit", exit)
        # As an event nobody answers: nothing may come of it either.
        broker.tell("node.exit", exit)
        broker.tell("release", msg.ById(id=work.lease.id))
        await broker.call("status")

    speak(bundles["mallory"], attack)


def test_a_viewer_looks_on_and_does_nothing(bundles: dict[str, Path], work: Work) -> None:
    with session_of(bundles["victor"]) as viewer:
        assert viewer.status()["cluster"]["role"] == "viewer"
        assert viewer.queue() == []
        for attempt in (
            lambda: viewer.alloc(gpus=1),
            lambda: viewer.release(work.lease.id),
            lambda: viewer.stop(work.handle.id),
            lambda: viewer.cancel(work.lease.request),
            lambda: list(viewer.logs(work.handle.id)),
        ):
            with pytest.raises(AccessError):
                attempt()


def test_an_admin_ends_what_is_anybodys_and_it_is_on_record(
    alice: Session, bundles: dict[str, Path]
) -> None:
    work = Work(alice)
    with session_of(bundles["anna"]) as admin:
        admin.release(work.lease.id)
        list(work.handle.events())
        with pytest.raises(RunError, match="released by anna"):
            work.handle.wait()
        records = admin.audit(20)
    assert [
        record["detail"]["user"]
        for record in records
        if (record["who"], record["what"]) == ("anna", "lease released")
    ] == ["alice"]
    until(lambda: len(free(alice)) == 4, "the devices are free")


# --- with bytes of one's own, to the agent


def test_the_agent_refuses_every_call_about_anothers_run(
    bundles: dict[str, Path], alice: Session, work: Work
) -> None:
    run, lease = work.handle.id, work.lease

    async def attack(broker: Connection, agent: Connection) -> None:
        # Not even with her token: the certificate must be hers too.
        for token in (work.token, "", "0" * 64):
            opening = agent_msg.OpenRun(run=run, lease=lease.id, token=token)
            await refused(agent, "run.open", opening)
            await refused(agent, "run.start", _order(run, lease, token))
            # Other nodes may have its code and values, no person.
            await refused(agent, "run.copy", agent_msg.CopyRun(run=run, token=token))
            await refused(agent, "run.pushed", agent_msg.CopyPushed(run=run, token=token))
        await refused(agent, "run.payload", agent_msg.Blob(run=run, data=b"x"))
        await refused(agent, "run.abandon", msg.ById(id=run))
        await refused(agent, "run.follow", agent_msg.Follow(run=run))
        for name in ("rank-0.log", "payload.pkl", "pulled.pkl", "events.jsonl", "run.json"):
            await refused(agent, "run.read", agent_msg.ReadFile(run=run, name=name))

    speak(bundles["mallory"], attack)
    with connect(start=False) as owner:
        noted = until(
            lambda: [
                record
                for record in owner.audit(100)
                if record["what"] == "refused" and record["detail"].get("about") == run
            ],
            "the agent's refusals are on record",
        )
    assert {record["who"] for record in noted} == {"mallory"}


def test_a_path_does_not_lead_out_of_ones_own_run(
    bundles: dict[str, Path], alice: Session, mallory: Session, work: Work
) -> None:
    own = mallory.train("print('mine')", cell=True, gpus=1).id
    victim = work.handle.id
    assert SECRET in "".join(alice.logs(victim))

    async def attack(broker: Connection, agent: Connection) -> None:
        for name in (f"../{victim}/rank-0.log", "../../journal.sqlite", "/etc/passwd", "..", ".",
                     "", "a\0b", "x" * 5000, f"..\\{victim}"):  # fmt: skip
            body = agent_msg.ReadFile(run=own, name=name)
            await refused(agent, "run.read", body, AccessError, NotFoundError)
        for run in (f"{own}/../{victim}", f"../runs/{victim}", "..", "", "a\0b", "x" * 5000):
            body = agent_msg.ReadFile(run=run, name="rank-0.log")
            await refused(agent, "run.read", body, AccessError, NotFoundError)
            await refused(agent, "run.follow", agent_msg.Follow(run=run), NotFoundError)

    speak(bundles["mallory"], attack)


def test_an_id_is_never_a_path_and_never_taken_over(
    bundles: dict[str, Path], alice: Session, mallory: Session
) -> None:
    work = Work(alice)
    alice.stop(work.handle.id)
    list(work.handle.events())
    lease = mallory.alloc(gpus=1)
    runs = settings().cluster_dir / "runs"
    over = runs / work.handle.id / "run.json"
    # An agent keeps a run's files longer than the broker remembers the run.
    forgotten = "r-forgotten"
    (runs / forgotten).mkdir()
    (runs / forgotten / "run.json").write_text(json.dumps({"user": "alice"}))

    async def attack(broker: Connection, agent: Connection) -> None:
        def run(id: str) -> Run:
            return Run(id=id, lease=lease.id, session="", user="", kind=RunKind.RUN, name="x",
                       world_size=1, nodes=())  # fmt: skip

        for id in ("../evil", "/tmp/evil", "..", "", "a/b", "a\0", "x" * 65):
            await refused(broker, "run.create", run(id), UsageError)
        await refused(broker, "run.create", run(work.handle.id), AccessError)
        await broker.call("run.create", run(forgotten), Run)
        read = agent_msg.ReadFile(run=forgotten, name="run.json")
        await refused(agent, "run.read", read, AccessError)

    speak(bundles["mallory"], attack)
    assert json.loads(over.read_text())["user"] == "alice"
    assert json.loads((runs / forgotten / "run.json").read_text())["user"] == "alice"
    row = until(
        lambda: next(
            row
            for row in mallory.runs()
            if row["id"] == forgotten and row["state"] not in ("starting", "running")
        ),
        "the run that could not be had has ended",
    )
    assert row["state"] == "failed"
    assert not (settings().cluster_dir / "evil").exists()


def test_a_lease_admits_to_its_own_devices_alone_and_ends_with_its_token(
    bundles: dict[str, Path], mallory: Session, work: Work
) -> None:
    lease = mallory.alloc(gpus=1)
    token = mallory.client.tokens[lease.id]
    other = work.lease.slots[0]

    def run(id: str) -> Run:
        return Run(id=id, lease=lease.id, session="", user="", kind=RunKind.RUN, name="x",
                   world_size=1, nodes=())  # fmt: skip

    async def attack(broker: Connection, agent: Connection) -> None:
        first, second = f"r-{secrets.token_hex(4)}", f"r-{secrets.token_hex(4)}"
        await broker.call("run.create", run(first), Run)
        foreign = msgspec.structs.replace(lease, slots=(other,))
        await refused(agent, "run.start", _order(first, foreign, token), says="other devices")
        both = msgspec.structs.replace(lease, slots=(*lease.slots, other))
        await refused(agent, "run.start", _order(first, both, token), says="other devices")
        order = _order(first, lease, token)
        shown = msgspec.structs.replace(order.ranks[0], devices=(other.device,))
        await refused(agent, "run.start", msgspec.structs.replace(order, ranks=(shown,)))
        await refused(agent, "run.start", msgspec.structs.replace(order, ranks=()))
        await broker.call("run.stop", msg.ById(id=first))
        await broker.call("run.create", run(second), Run)
        await broker.call("release", msg.ById(id=lease.id))
        await asyncio.sleep(0.3)
        await refused(agent, "run.start", _order(second, lease, token), says="does not admit")
        await refused(broker, "lease.token", msg.ById(id=lease.id), NotFoundError, ConflictError)

    speak(bundles["mallory"], attack)


def _order(run: str, lease: Lease, token: str) -> agent_msg.StartRun:
    spec = RunSpec(id=run, lease=lease.id, kind=RunKind.RUN, name="x", entry=Entry.CELL,
                   source="print(1)", world_size=len(lease.slots))  # fmt: skip
    return agent_msg.StartRun(
        spec=spec,
        ranks=ranks_on(lease.slots[0].node, lease.slots),
        rendezvous=Rendezvous(address="127.0.0.1", port=1),
        token=token,
    )


# --- access


def test_a_persons_certificate_does_not_open_dasks_port(
    bundles: dict[str, Path], alice: Session
) -> None:
    facts = embedded.ensure(start=False)
    host, port = split_address(facts["dask"].removeprefix("tls://"))

    def opened(own: tls.Bundle) -> bool:
        context = own.client_context()
        context.verify_mode = ssl.CERT_NONE
        try:
            with socket.create_connection((host, port), timeout=10) as plain:
                with context.wrap_socket(plain) as wrapped:
                    wrapped.settimeout(10)
                    return bool(wrapped.recv(1))
        except ssl.SSLError:
            return False

    assert opened(tls.Bundle.dask(embedded.Paths.current().tls))
    assert not opened(tls.Bundle.of(bundles["alice"], "user"))
    with pytest.raises(AccessError, match="Dask"):
        alice.dask()


def test_whoever_is_revoked_is_told_so_however_late_the_hello(
    cluster: None, tmp_path: Path
) -> None:
    with connect(start=False) as owner:
        owner.user_add("bella", "user", tmp_path / "bella")
        nodes = owner.status()["nodes"].values()
        agent = next(iter(nodes))["address"]
        owner.user_revoke("bella")

    async def main() -> None:
        address, own = bundle.load(tmp_path / "bella")
        broker = await dial(address, own.client_context())
        door = await dial(agent, own.client_context())
        await asyncio.sleep(2.5)  # both look once a second for whom to let go
        secret = secrets.token_hex(16)
        session = Owner(id=msg.session_id(secret), user="")
        hello = msg.SessionHello(version=VERSION, owner=session, secret=secret)
        await refused(broker, "hello", hello, says="was revoked")
        greeting = agent_msg.AgentHello(version=VERSION)
        await refused(door, "agent.hello", greeting, says="was revoked")
        for connection in (broker, door):
            connection.close()
            await connection.wait_closed()

    asyncio.run(main())


def test_a_session_whose_owner_was_just_revoked_can_be_closed_at_any_moment(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(start=False) as owner:
        for number in range(6):
            name = f"brief{number}"
            owner.user_add(name, "user", tmp_path / name)
            with session_of(tmp_path / name) as brief:
                assert brief.leases() == []
                owner.user_revoke(name)
                # It has lost its connection, is refused on a new one, or has given up.
                time.sleep(0.05 * number)
            with pytest.raises(ClusterError, match="was revoked"):
                session_of(tmp_path / name)
    assert not [record for record in caplog.records if record.exc_info]


def test_revocation_ends_what_is_live_and_nobody_else_notices(
    alice: Session, bundles: dict[str, Path], tmp_path: Path
) -> None:
    with connect(start=False) as owner:
        owner.user_add("bob", "user", tmp_path / "bob")
        with pytest.raises(ConflictError, match="has access already"):
            owner.user_add("bob", "admin", tmp_path / "again")
        hers = alice.alloc(gpus=1)
        bob = session_of(tmp_path / "bob")
        work = Work(bob)
        owner.user_revoke("bob")
        until(lambda: not alive(work.pid), "bob's rank is gone")
        until(lambda: len(free(alice)) == 3, "bob's device is free")
        with pytest.raises(ClusterError, match="revoked"):
            until(lambda: not bob.status(), "it is refused")
        with pytest.raises(ClusterError, match="revoked"):
            session_of(tmp_path / "bob")
        bob.close()
        assert [lease.id for lease in alice.leases()] == [hers.id]
        states = {row["name"]: row["state"] for row in owner.user_list()}
        assert states["bob"] == "revoked"
        assert states["alice"] == "active"
        with pytest.raises(NotFoundError):
            owner.user_revoke("bob")
        whats = [record["what"] for record in owner.audit(50)]
        assert "user revoked" in whats
        # A new bundle for the same person admits; the old one still does not.
        owner.user_add("bob", "user", tmp_path / "anew")
        with session_of(tmp_path / "anew") as back:
            assert back.user == "bob"
            assert back.leases() == []
        with pytest.raises(ClusterError, match="revoked"):
            session_of(tmp_path / "bob")
        owner.user_revoke("bob")


def test_bundles_that_are_not_whole_are_one_sentence(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    def copy(name: str, **changes: bytes | None) -> Path:
        to = tmp_path / name
        to.mkdir()
        for file in bundle.FILES:
            data = changes.get(file.replace(".", "_"), (bundles["alice"] / file).read_bytes())
            if data is not None:
                (to / file).write_bytes(data)
        (to / "user.key").touch(0o600)
        (to / "user.key").chmod(0o600)
        return to

    stranger = tmp_path / "stranger"
    tls.create(stranger)
    address = json.loads((bundles["alice"] / "connection.json").read_text())["address"]
    cases = {
        "has no user.pem": copy("missing", user_pem=None),
        "cannot be read": copy("torn", connection_json=b"{"),
        "ask for a new": copy("empty", user_pem=b""),
        "does not answer": copy("nobody", connection_json=b'{"address": "127.0.0.1:9"}'),
        "refuses this certificate|connection to the cluster was lost": copy(
            "foreign",
            user_pem=(stranger / "user.pem").read_bytes(),
            user_key=(stranger / "user.key").read_bytes(),
        ),
        "certificate verify failed": copy(
            "others",
            ca_pem=(stranger / "ca.pem").read_bytes(),
            user_pem=(stranger / "user.pem").read_bytes(),
            user_key=(stranger / "user.key").read_bytes(),
            connection_json=json.dumps({"address": address}).encode(),
        ),
    }
    public = copy("public")
    (public / "user.key").chmod(0o644)
    cases["make it private"] = public
    over = tmp_path / "over"
    over.mkdir()
    for file in bundle.FILES:
        (over / file).write_bytes((bundles["alice"] / file).read_bytes())
    (over / "user.key").chmod(0o600)
    tls.issue(embedded.Paths.current().tls, "user", "alice", "user", to=over, days=-0.01)
    cases["ended on"] = over
    for says, directory in cases.items():
        with pytest.raises(ClusterError, match=says):
            session_of(directory)


def test_names_and_roles_that_would_deceive_are_refused(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundles: dict[str, Path]
) -> None:
    with connect() as owner:
        for name in ("", "node", "Broker", "a/b", "..", "a b", "x" * 65, "a\n"):
            with pytest.raises(UsageError):
                owner.user_add(name, "user", tmp_path / "x")
        with pytest.raises(UsageError, match="role"):
            owner.user_add("carl", "node", tmp_path / "x")
        with pytest.raises(ConflictError):
            owner.user_add("alice", "user", tmp_path / "x")
        with pytest.raises(ConflictError):
            owner.user_add(owner.user, "viewer", tmp_path / "x")
        with pytest.raises(AccessError):
            owner.user_revoke(owner.user)
        with pytest.raises(ConflictError, match="bundle"):
            owner.user_add("carl", "user", bundles["alice"])
    assert not (tmp_path / "x").exists()
    monkeypatch.setenv("AIOS_BUNDLE", str(bundles["anna"]))
    settings.cache_clear()
    with pytest.raises(AccessError):
        users.add("carl", "admin", tmp_path / "x")
    with pytest.raises(AccessError):
        down()
    with pytest.raises(UsageError):
        connect(simulate_gpus=2)


def test_absurd_values_are_a_sentence_and_change_nothing(
    bundles: dict[str, Path], alice: Session
) -> None:
    def request(**changes: Any) -> Request:
        given: dict[str, Any] = {"id": f"q-{secrets.token_hex(4)}", "session": "", "user": "",
                                 "want": Want.GPU, "count": 1}  # fmt: skip
        return Request(**{**given, **changes})

    async def attack(broker: Connection, agent: Connection) -> None:
        before = await broker.call("status")
        for changes in (
            {"count": 0},
            {"count": -1},
            {"count": 2**62},
            {"memory": -1},
            {"time": -1.0},
            {"time": float("nan")},
            {"time": float("inf")},
            {"time": 1e300},
            {"label": "x" * 100_000},
            {"id": ""},
            {"id": "../x"},
        ):
            await refused(broker, "submit", request(**changes), AiosError)
        for op in ("submit", "release", "extend", "run.create", "cancel"):
            await refused(broker, op, {"id": 7}, ProtocolError)
        after = await broker.call("status")
        assert (after["queue"], after["leases"]) == (before["queue"], before["leases"])

    speak(bundles["mallory"], attack)
