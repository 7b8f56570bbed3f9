"""Leases through the Python API on a live cluster with four simulated GPUs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from clusters import environment, free, until

from aios_jupyter.broker.messages import ById
from aios_jupyter.errors import AllocationError, ConflictError, NotFoundError, UsageError
from aios_jupyter.schema import Lease, LeaseState
from aios_jupyter.session import Session, connect


def test_a_lease_names_its_devices_and_release_frees_them(session: Session) -> None:
    lease = session.alloc(gpus=2, time="1h", label="mine")
    assert len({slot.device for slot in lease.slots}) == 2
    assert {slot.kind for slot in lease.slots} == {"simulated"}
    assert lease.expires is not None
    assert lease.expires - time.time() == pytest.approx(3600, abs=30)
    assert session.release() == [lease.id]
    assert len(free(session)) == 4


def test_devices_are_accelerators_where_there_are_any(session: Session) -> None:
    lease = session.alloc(devices=1)
    assert lease.slots[0].kind == "simulated"
    slot = session.alloc(cpus=1).slots[0]
    assert slot.kind == "cpu"


def test_fences_only_rise(session: Session) -> None:
    fences = []
    for _ in range(3):
        lease = session.alloc(gpus=1)
        fences.append(lease.fence)
        session.release(lease.id)
    assert fences == sorted(set(fences))


def test_who_waits_sees_position_and_reason_and_is_granted_in_turn(session: Session) -> None:
    held = session.alloc(gpus=4)
    rows: list[dict[str, object]] = []
    with connect(label="second") as second:
        granted = []
        thread = threading.Thread(
            target=lambda: granted.append(second.alloc(gpus=3, on_wait=rows.append))
        )
        thread.start()
        until(lambda: rows, "it waits")
        assert rows[0]["position"] == 1
        assert rows[0]["reason"] == "Resources"
        assert [row["count"] for row in session.queue()] == [3]
        session.release(held.id)
        thread.join(60)
        assert len(granted[0].slots) == 3
    until(lambda: len(free(session)) == 4, "the second session's lease ended with it")


def test_waiting_ends_with_the_time_given_and_leaves_nothing_queued(session: Session) -> None:
    session.alloc(gpus=4)
    with pytest.raises(AllocationError, match="nonblock"):
        session.alloc(gpus=1, nonblock=True)
    with pytest.raises(AllocationError, match="within 1 s"):
        session.alloc(gpus=1, wait=1)
    assert session.queue() == []


def test_a_cancelled_request_tells_who_waits(session: Session) -> None:
    session.alloc(gpus=4)
    with connect() as second:
        failures: list[Exception] = []

        def wait() -> None:
            try:
                second.alloc(gpus=1)
            except AllocationError as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        row = until(session.queue, "it waits")[0]
        session.cancel(row["id"])
        thread.join(60)
        assert "cancel" in str(failures[0])


def test_a_lease_ends_when_its_time_is_over(session: Session) -> None:
    session.alloc(gpus=4, time=1)
    until(lambda: len(free(session)) == 4, "the lease has ended")


def test_extend_moves_the_end(session: Session) -> None:
    lease = session.alloc(gpus=1, time="1m")
    assert lease.expires is not None
    later = session.extend(lease.id, "1h")
    assert later.expires is not None
    assert later.expires > lease.expires + 3000


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({"gpus": 0}, "0"),
        ({"gpus": -1}, "-1"),
        ({"gpus": 5}, "4"),
        ({"gpus": 1, "devices": 1}, "one of"),
        ({}, "one of"),
        ({"gpus": 1, "time": "soon"}, "soon"),
        ({"gpus": 1, "memory": "much"}, "much"),
        ({"gpus": 1, "memory": "1TB"}, "memory"),
    ],
)
def test_bad_requests_are_refused_with_a_sentence(
    session: Session, ask: dict[str, object], says: str
) -> None:
    with pytest.raises((UsageError, AllocationError)) as caught:
        session.alloc(**ask)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert session.queue() == []


def test_gpus_without_a_gpu_names_the_ways_out(no_cluster: object) -> None:
    with connect() as session:
        with pytest.raises(AllocationError) as caught:
            session.alloc(gpus=2)
        assert "--devices" in str(caught.value)
        assert "--simulate-gpus" in str(caught.value)
        assert {slot.kind for slot in session.alloc(devices=2).slots} == {"cpu"}


def test_unknown_leases_and_requests_are_not_found(session: Session) -> None:
    for call in (
        lambda: session.release("L9999"),
        lambda: session.extend("L9999", "1h"),
        lambda: session.cancel("q-none"),
        session.release,
    ):
        with pytest.raises(NotFoundError):
            call()


SHELL = """
import aios_jupyter
session = aios_jupyter.connect(shell=True, label="terminal")
print(session.alloc(gpus=1).id)
"""


def test_a_lease_from_a_shell_lives_as_long_as_the_shell(session: Session) -> None:
    script = f"{sys.executable} -c '{SHELL}'; read -r line"
    shell = subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert shell.stdout is not None
    lease = shell.stdout.readline().strip()
    time.sleep(2)
    assert session._call("lease.get", ById(id=lease), Lease).state is LeaseState.ACTIVE
    shell.communicate("\n", timeout=60)
    until(lambda: len(free(session)) == 4, "the lease ended with the shell")


def test_an_admin_chooses_the_policy_and_it_is_in_force_at_once(session: Session) -> None:
    before = session.policy()
    assert before["name"] in {policy["name"] for policy in before["policies"]}
    try:
        chosen = session.policy("sjf", aging="12h")
        assert (chosen["name"], chosen["aging"]) == ("sjf", 12 * 3600.0)
        assert session.policy("fair", weights={"bob": 2.0})["weights"] == {"bob": 2.0}
        with pytest.raises(UsageError, match="choose one of fifo"):
            session.policy("best")
        with pytest.raises(UsageError, match="not a weight"):
            session.policy(weights={"bob": -1.0})
        assert session.policy()["name"] == "fair"
    finally:
        session.policy(before["name"], weights={"bob": 1.0})
    assert session.policy() == before


def test_explain_says_why_a_request_waits_and_until_when(session: Session) -> None:
    everything = len(session.status()["devices"])
    held = session.alloc(devices=1, time="10m")
    rows: list[dict[str, object]] = []

    def look(row: dict[str, object]) -> None:
        rows.append({**row, **session.explain(str(row["id"]))})

    count = sum(d["kind"] == "simulated" for d in session.status()["devices"].values())
    assert 0 < count <= everything
    with pytest.raises(AllocationError):
        session.alloc(devices=count, wait="1s", on_wait=look)
    (row, *_) = rows
    assert (row["reason"], row["position"], row["waiting"]) == ("Resources", 1, 1)
    assert f"{count - 1} of the {count} it needs are free" in str(row["why"])
    assert isinstance(row["eta"], float)
    assert row["eta"] <= held.expires + 1
    session.release(held.id)
    ended = session.explain(str(row["id"]))
    assert (ended["state"], ended["reason"]) == ("ended", f"cancelled by {session.user}")
    with pytest.raises(NotFoundError, match="no request 'q-none'"):
        session.explain("q-none")


def test_a_request_that_waits_is_given_another_priority(session: Session) -> None:
    before = session.policy()["name"]
    session.policy("priority")
    held = session.alloc(gpus=4)
    granted: list[str] = []
    try:
        with connect(label="second") as second:

            def ask(label: str) -> None:
                lease = second.alloc(gpus=4, label=label)
                granted.append(label)
                second.release(lease.id)

            threads = []
            for number, label in enumerate(("first", "second"), 1):
                threads.append(threading.Thread(target=ask, args=(label,)))
                threads[-1].start()
                until(lambda number=number: len(session.queue()) == number, f"{label} waits")
            later = session.queue()[1]
            assert later["label"] == "second"
            assert session.reprioritize(later["id"], 2)["position"] == 1
            assert [row["label"] for row in session.queue()] == ["second", "first"]
            assert [row["priority"] for row in session.queue()] == [2, 0]
            session.release(held.id)
            for thread in threads:
                thread.join(20)
            assert granted == ["second", "first"]
            with pytest.raises(ConflictError, match="waits no more"):
                session.reprioritize(later["id"], 0)
    finally:
        session.policy(before)


def test_two_sessions_share_one_simulated_gpu(session: Session) -> None:
    held = session.alloc(gpus=3)
    first = session.alloc(gpus=1, memory="8GB", share=True)
    with connect(label="second") as second:
        lease = second.alloc(gpus=1, memory="6GB", share=True)
        device = lease.slots[0].device
        assert device == first.slots[0].device
        assert lease.slots[0].share == 6 * 10**9
        with pytest.raises(AllocationError, match="cannot be granted now"):
            second.alloc(gpus=1, memory="8GB", share=True, nonblock=True)
        with pytest.raises(AllocationError, match="cannot be granted now"):
            second.alloc(gpus=1, nonblock=True)
        shares = session.status()["devices"][device]["shares"]
        assert [one["memory"] for one in shares] == [8 * 10**9, 6 * 10**9]
        code = "import os; told = os.environ['AIOS_DEVICE_MEMORY']"
        handle = second.start(code, cell=True, lease=lease.id, pull=["told"])
        assert handle.wait().pulled == {"told": "6000000000"}
        session.release(held.id)
        session.release(first.id)
    until(lambda: len(free(session)) == 4, "all that was shared is whole again")


def test_a_range_gets_three_of_four(session: Session) -> None:
    session.alloc(gpus=1)
    assert len(session.alloc(gpus="2:4").slots) == 3
    with pytest.raises(AllocationError, match=r"2 to 4 GPUs cannot be granted now \(Resources\)"):
        session.alloc(gpus="2:4", nonblock=True)


def test_alloc_from_a_shell_with_a_model_a_placement_and_cores(session: Session) -> None:
    def aios(*words: str) -> subprocess.CompletedProcess[str]:
        start = "from aios_jupyter.commands import main; main()"
        command = [sys.executable, "-c", start, "alloc", *words]
        return subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=60, check=False
        )

    wish = "--gpus 1:2 --gpu-model simulated --placement node --cpus-per-device 1"
    made = aios(*wish.split(), "--memory-per-device", "1MB", "--gpu-memory", "4GB", "--share")
    assert made.returncode == 0, made.stderr
    assert "2 simulated GPUs" in made.stdout
    assert "3.7 GiB of each" in made.stdout
    session.release(everything=True)
    for wish, sentence in {
        "--gpus 1 --gpu-model h100": "No GPU of this cluster is a 'h100'",
        "--gpus 1 --share": "Say how much",
        "--gpus 1 --share --gpu-memory 99GB": "the largest has 17.2 GB",
        "--gpus 5 --placement node": "ask for at most 4",
        "--gpus 3:2": "the least first",
        "--gpus 1 --cpus-per-device 100000": "No node can give 100000 CPUs",
    }.items():
        refused = aios(*wish.split())
        assert refused.returncode in (1, 2)
        assert sentence in refused.stderr
        assert refused.stderr.count("\n") == 1
