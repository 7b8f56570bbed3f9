"""A real Slurm, of two machines that are this one, whose jobs are nodes of the cluster."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from clusters import free, pid_of, private_directories, until
from systems.conftest import ASKED_FOR, started

from aios_jupyter.cluster import embedded, jobs, nodes
from aios_jupyter.commands import main
from aios_jupyter.errors import AllocationError, NoClusterError, RunError, UsageError
from aios_jupyter.process import alive
from aios_jupyter.session import Session, connect, down, up

pytestmark = [
    pytest.mark.systems,
    pytest.mark.skipif(
        not (ASKED_FOR and shutil.which("slurmctld")),
        reason="Slurm is not here: make test-systems",
    ),
    pytest.mark.timeout(200),
]
WAITS = "import time\nprint('up', flush=True)\ntime.sleep(600)"

SAVES = """
import os, pathlib, signal, sys, time
def save(*_):
    time.sleep(1.5)
    pathlib.Path(folder, "saved-" + os.environ["RANK"]).touch()
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module", autouse=True)
def slurm() -> Iterator[None]:
    with started("slurm.sh") as (directory, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(directory / "slurm.conf"))
        yield


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """No cluster yet; what the test starts ends with it, its jobs too."""
    with private_directories(tmp_path):
        yield tmp_path
        with suppress(NoClusterError):
            down()
        until(lambda: not any("aios" in job for job in queue()), "its jobs have ended")
        subprocess.run(["scancel", "--user", getpass.getuser()], check=True)
        until(lambda: not queue(), "those of others, too")


def queue() -> list[str]:
    command = ["squeue", "--noheader", "--format=%i %T %j"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[
        :-1
    ]


def others(*options: str) -> str:
    """Somebody else's job, which takes both machines unless it is told otherwise."""
    command = ["sbatch", "--parsable", "--output=/dev/null", *options, "--wrap=sleep 600"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def states(session: Session) -> dict[str, str]:
    """Of the nodes that are Slurm's."""
    return {n["id"]: n["state"] for n in session.node_list() if n["id"].startswith("slurm-")}


def note(session: Session, job: dict[str, Any]) -> str:
    rows = {row["id"]: row for row in session.node_list()}
    return str(rows[job["nodes"][0]]["note"])


def agent(node: str) -> int:
    found = subprocess.run(
        ["pgrep", "-f", f"node.agent --name {node} "], capture_output=True, text=True, check=False
    )
    return int(found.stdout.split()[0])


def there(session: Session, job: dict[str, Any]) -> Callable[[], bool]:
    return lambda: (
        [states(session).get(node) for node in job["nodes"]] == ["up"] * len(job["nodes"])
    )


def start(session: Session, **wish: Any) -> dict[str, Any]:
    """A job whose nodes are there."""
    job = session.node_start("slurm", **{"cpus": 1, "time": "10m", **wish})
    until(there(session, job), "the job's nodes have joined")
    return job


def test_the_machines_of_a_job_are_nodes_with_what_slurm_gave_them(home: Path) -> None:
    foreign = others("--nodes=1", "--cpus-per-task=1")
    job = up("slurm", nodes=2, gpus=4, cpus=2, memory="1GiB", time="10m", simulate_gpus=2)
    assert job is not None
    with connect() as session:
        until(there(session, job), "both have joined")
        rows = {row["id"]: row for row in session.node_list()}
        # The machine on which jobs are handed in is not for computing.
        assert sorted(row["devices"] for row in rows.values()) == [0, 4, 4]
        for node in job["nodes"]:
            assert (rows[node]["cpus"], rows[node]["memory"]) == (2, 2**30)
            assert 0 < rows[node]["until"] - job["submitted"] < 600
        code = "import os\nplace = os.environ['SLURMD_NODENAME'], os.environ['RANK']"
        result = session.train(code, cell=True, gpus=4, pull=["place"])
        assert result.pulled["place"][1] == "0"
        assert result.world_size == 4
        whats = [record["what"] for record in session.audit(50)]
        assert whats.count("node asked for") == 2
    written = subprocess.run(
        ["scontrol", "write", "batch_script", job["id"], "-"], capture_output=True, text=True
    ).stdout
    assert "aios_jupyter.cluster.task" in written
    for path in [home, *home.rglob("*")]:
        if path.suffix == ".key":
            assert path.stat().st_mode & 0o077 == 0, path
            secret = path.read_text().splitlines()[1]
            assert secret not in written
            assert all(secret not in log.read_text() for log in jobs.directory().glob("*.log"))
    agents = [agent(node) for node in job["nodes"]]
    down()
    until(lambda: queue() == [f"{foreign} RUNNING wrap"], "its own job has ended, and no other")
    until(lambda: not any(map(alive, agents)), "the agents have ended")
    subprocess.run(["scancel", foreign], check=True)
    keys = [path for path in home.rglob("*.key") if "slurm-" in str(path) or "jobs" in str(path)]
    assert keys == []
    assert {row["state"] for row in nodes.rows()} == {"revoked"}
    # The next cluster knows that those nodes are gone.
    embedded.ensure(bare=True)
    with connect() as session:
        until(lambda: states(session) == {}, "they are forgotten")


def test_a_job_that_waits_keeps_the_cluster_up_and_one_that_idles_does_not(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_IDLE_TIMEOUT", "1")
    foreign = others("--nodes=2", "--exclusive", "--time=5")
    up("slurm", simulate_gpus=1)
    broker = pid_of("broker")
    # Slurm has asked itself whether it can start the job by then, which takes longer than a second.
    until(lambda: any("Resources" in row.note for row in jobs.rows()), "Slurm has a reason")
    assert alive(broker)
    subprocess.run(["scancel", foreign], check=True)
    until(lambda: not alive(broker), "it has ended some time after the node has joined")
    until(lambda: not any("aios" in job for job in queue()), "and its job with it")
    assert {row["state"] for row in nodes.rows()} == {"revoked"}


def test_who_asks_for_what_slurm_has_yet_to_give_waits_for_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = others("--nodes=2", "--exclusive", "--time=5")
    flags = ("--on", "slurm", "--gpus", "2", "--simulate-gpus", "2", "--time", "10m")
    with pytest.raises(SystemExit, match="0"):
        main(["up", *flags])
    shown = capsys.readouterr().out
    assert "each with  2 simulated GPUs" in shown
    (id,) = re.findall(r"aios node stop (slurm-\d+)", shown)
    with connect() as session:
        assert set(states(session).values()) == {"waiting"}
        (row,) = (row for row in session.node_list() if row["id"].startswith(id))
        assert re.match(r"Slurm job \d+ waits \((Resources|Priority)\)", row["note"])
        assert session.status()["devices"] == {}
        with pytest.raises(SystemExit, match="0"):
            main(["node", "ls"])
        assert row["note"] in capsys.readouterr().out
        with pytest.raises(AllocationError, match=f"NodeExpected.{id}-0"):
            session.alloc(gpus=2, nonblock=True)
        with pytest.raises(AllocationError, match="ask for at most 2"):
            session.alloc(gpus=3, nonblock=True)
        with ThreadPoolExecutor(1) as pool, connect() as asking:
            asked = pool.submit(asking.alloc, gpus=2)
            (before,) = until(session.queue, "it waits")
            os.kill(pid_of("broker"), signal.SIGKILL)
            embedded.ensure(start=False)
            (waiting,) = until(session.queue, "it waits again")
            assert waiting["id"] == before["id"]
            assert f"waits for node {id}-0" in waiting["why"]
            subprocess.run(["scancel", foreign], check=True)
            assert {slot.node for slot in asked.result(60).slots} == {f"{id}-0"}


def test_a_job_that_somebody_cancels_is_noticed_and_leaves_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by that: Slurm gives five seconds here.
    monkeypatch.setenv("AIOS_STOP_GRACE", "0.1")
    up(host="127.0.0.1")
    with connect() as session:
        job = start(session, nodes=2, simulate_gpus=1)
        handle = session.start(SAVES, cell=True, gpus=2, push={"folder": str(home)})
        next(event for event in handle.events() if event["type"] == "log")
        agents = [agent(node) for node in job["nodes"]]
        subprocess.run(["scancel", job["id"]], check=True)
        with pytest.raises(RunError, match=r"node slurm-.* (is gone|was stopped)"):
            handle.wait()
        until(lambda: set(states(session).values()) == {"ended"}, "it is over")
        assert note(session, job) == f"Slurm job {job['id']} was cancelled."
        assert sorted(path.name for path in home.glob("saved-*")) == ["saved-0", "saved-1"]
        until(lambda: not any(map(alive, agents)), "the agents have ended")
        assert {row["state"] for row in nodes.rows()} == {"revoked"}
        record = next(r for r in session.audit(50) if r["what"] == "nodes ended")
        assert record["detail"]["nodes"] == job["nodes"]
        # The next one is another's.
        again = start(session, simulate_gpus=1)
        assert len(free(session)) == 1
        session.node_stop(again["nodes"][0])
        until(lambda: set(states(session).values()) == {"ended"}, "that one is over too")


def test_an_agent_that_is_killed_fails_its_job_and_is_named(home: Path) -> None:
    up(host="127.0.0.1")
    with connect() as session:
        job = start(session, simulate_gpus=2)
        heard: list[str] = []
        session.on_notice = heard.append
        handle = session.start(WAITS, cell=True, gpus=2)
        next(event for event in handle.events() if event["type"] == "log")
        (node,) = job["nodes"]
        os.kill(agent(node), signal.SIGKILL)
        with pytest.raises(RunError, match=f"node {node} is gone: Slurm job {job['id']} failed"):
            handle.wait()
        until(lambda: free(session) == [], "its devices are gone")
        assert note(session, job).startswith(f"Slurm job {job['id']} failed")
        until(lambda: f"Slurm job {job['id']} failed" in " ".join(heard), "and said")


def test_what_slurm_refuses_is_said_in_its_own_words(home: Path) -> None:
    with pytest.raises(AllocationError, match="refuses the job: invalid partition specified: none"):
        up("slurm", host="127.0.0.1", partition="none")
    with pytest.raises(AllocationError, match="unrecognized option '--bogus'"):
        up("slurm", options=["--bogus"])
    assert list(jobs.rows()) == []
    with connect() as session:
        job = session.node_start("slurm", partition="small", time="1h")
        until(lambda: "cannot start as it stands (PartitionTimeLimit)" in note(session, job), "why")
        with pytest.raises(UsageError, match="same number on each of 2 nodes"):
            session.node_start("slurm", nodes=2, gpus=3)
    # Not by 'down': whatever ends the cluster ends its jobs.
    embedded.down()
    assert queue() == []
