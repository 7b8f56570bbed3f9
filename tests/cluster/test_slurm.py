"""What is asked of Slurm, and what its answers mean; `tests/systems/test_slurm.py` asks a real one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import aios_jupyter
from aios_jupyter.cluster import reach, slurm, task
from aios_jupyter.cluster.slurm import Job, Wish
from aios_jupyter.commands import Host, invoke
from aios_jupyter.errors import ClusterError, UsageError

QUEUED = """\
12|aios-default-1a2b|PENDING|Priority|2030-01-01T10:00:00|2030-01-01T18:00:00
13|aios-default-3c4d|RUNNING|None|2026-11-26T07:22:18|2026-11-26T15:22:18
14|aios|CANCELLED|None|N/A|N/A
a line that is none
"""


def test_a_wish_becomes_the_options_of_sbatch_and_its_own_come_last() -> None:
    wish = Wish(
        nodes=2,
        gpus=4,
        cpus=8,
        memory=64 * 2**30,
        time=8 * 3600 + 1,
        partition="p",
        account="a",
        options=("--qos=high",),
    )
    wish.check()
    assert wish.arguments() == [
        *("--nodes=2", "--ntasks-per-node=1", "--gres=gpu:2", "--cpus-per-task=8"),
        *("--mem=65536M", "--time=481", "--partition=p", "--account=a", "--qos=high"),
    ]
    assert Wish().arguments() == ["--nodes=1", "--ntasks-per-node=1"]


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (Wish(nodes=2, gpus=5), "ask for 4 or another number of nodes"),
        (Wish(nodes=4, gpus=2), "ask for 4 or another number of nodes"),
        (Wish(nodes=0), "one node at least"),
        (Wish(gpus=-1), "no negative numbers"),
        (Wish(options=("qos=high",)), "write it like --qos=high"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_with_one_that_does(wish: Wish, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        wish.check()


def test_a_cluster_that_slurms_machines_do_not_reach_says_how_to_start_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def toward(host: str, port: int = 9) -> str:
        if host == "nowhere":
            raise OSError
        return "10.0.0.5"

    monkeypatch.setattr(reach, "toward", toward)
    with pytest.raises(ClusterError, match=r"do not reach it; .* 'aios up --host 10.0.0.5'"):
        reach.check("127.0.0.1:4711", ["nowhere", "n1"], "Slurm's machines")
    reach.check("10.0.0.5:4711", ["n1"], "Slurm's machines")
    with pytest.raises(ClusterError, match="None of Slurm's machines can be found"):
        reach.own_address(["nowhere"], "Slurm's machines")


def test_of_its_own_job_slurm_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\nenv >&2\necho "7;cluster"\n')
    sbatch.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("SLURM_CPUS_PER_TASK", "SQUEUE_STATES", "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    done = slurm._call(["sbatch"], where={"SLURM_CONF": "y"})
    kept = {line.partition("=")[0]: line.partition("=")[2] for line in done.stderr.splitlines()}
    # What a user sets for all of their jobs counts.
    assert (kept["SBATCH_ACCOUNT"], kept["SLURM_CONF"]) == ("x", "y")
    assert not kept.keys() & {"SLURM_CPUS_PER_TASK", "SQUEUE_STATES"}
    assert slurm.submit(Wish(), "aios", tmp_path) == "7"
    assert slurm.setting()["SLURM_CONF"] == "x"


def test_the_script_quotes_what_is_odd() -> None:
    text = slurm.script("/opt/my python", Path("/shared/50%/it's"), 2)
    assert text.startswith("#!/bin/sh\nexec srun --ntasks-per-node=1 ")
    assert "'/opt/my python' -m aios_jupyter.cluster.task" in text
    # Slurm's own placeholders begin with that sign.
    assert "/shared/50%%/it" in text
    assert text.endswith(" 2\n")


def test_what_squeue_prints_is_read_and_put_into_a_sentence() -> None:
    waiting, running, cancelled = slurm.parse_queue(QUEUED)
    now = time.mktime((2030, 1, 1, 9, 0, 0, 0, 0, -1))
    assert waiting.start == now + 3600
    assert waiting.sentence(now) == (
        "Slurm job 12 waits (Priority); Slurm expects it to start at 10:00."
    )
    assert "at 2030-01-01 10:00" in waiting.sentence(now - 86400)
    assert (waiting.runs, running.runs, cancelled.runs) == (False, True, False)
    assert cancelled.over
    assert cancelled.start is None
    assert cancelled.sentence(now) == "Slurm job 14 was cancelled."


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("TIMEOUT", "Slurm job 7 has reached the end of its time."),
        ("NODE_FAIL", "Slurm job 7 has lost a machine."),
        ("NEWLY_NAMED", "Slurm job 7 is newly named."),
        ("COMPLETING", "Slurm job 7 is completing."),
    ],
)
def test_every_end_has_a_sentence(state: str, sentence: str) -> None:
    assert Job("7", "aios", state).sentence(0.0) == sentence


def test_a_job_that_cannot_start_says_what_to_do() -> None:
    job = Job("7", "aios", "PENDING", "PartitionTimeLimit")
    assert "cannot start as it stands (PartitionTimeLimit): stop it with" in job.sentence(0.0)


def test_machines_are_leased_until_ranks_have_their_grace_before_the_signal() -> None:
    assert slurm.drains(10_000.0, 0.0, 30.0) == 10_000 - 60 - 60 - 30
    # Of little time half is left.
    assert slurm.drains(120.0, 0.0, 30.0) == 60.0
    assert Wish(time=60).signal_before == 7
    assert Wish().signal_before == 60


def test_a_machine_that_does_not_see_the_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="has to see the files"):
        task.bundle(tmp_path, "1", "0", patience=0.0)
    (tmp_path / "1" / "0").mkdir(parents=True)
    (tmp_path / "1" / "0" / "connection.json").touch()
    assert task.bundle(tmp_path, "1", "0", patience=0.0) == tmp_path / "1" / "0"


def test_without_slurm_it_is_said_where_to_ask(
    no_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="There is no Slurm here"):
        aios_jupyter.up("slurm")
    with pytest.raises(UsageError, match="cannot be started on 'pbs'"):
        aios_jupyter.up("pbs")
    with pytest.raises(UsageError, match="Say where the machines come from"):
        invoke(["up", "--gpus", "2"], Host())
