"""A live cluster whose broker was killed and whose journal is then damaged."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from clusters import free, pid_of, until

from aios_jupyter.broker import snapshots
from aios_jupyter.cluster import embedded
from aios_jupyter.commands import main
from aios_jupyter.errors import ClusterError, ConflictError, NotFoundError
from aios_jupyter.process import alive
from aios_jupyter.session import connect


def kill_broker() -> None:
    pid = pid_of("broker")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), "the broker is dead")


def test_a_damaged_journal_is_refused_until_its_snapshot_is_asked_for(no_cluster: Path) -> None:
    embedded.ensure(simulate_gpus=2)
    journal = embedded.Paths.current().state / "journal.sqlite"
    until(snapshots.place(journal).exists, "the first snapshot")
    with pytest.raises(ConflictError, match="running"):
        embedded.ensure(from_snapshot=True)
    with connect(label="test") as session:
        before = session.alloc(gpus=1)
    kill_broker()
    damaged = b"\xa5" * 50_000
    journal.write_bytes(damaged)
    for attempt in range(2):
        with pytest.raises(ClusterError, match=r"aios up --from-snapshot") as caught:
            embedded.ensure()
        assert str(journal) in str(caught.value), attempt
        assert journal.read_bytes() == damaged
    with pytest.raises(SystemExit) as ended:
        main(["up", "--from-snapshot"])
    assert not ended.value.code
    with connect(label="test") as session:
        until(lambda: len(free(session)) == 2, "the agent is back")
        after = session.alloc(gpus=2)
        # What was granted since the snapshot is not granted again under the same name.
        assert after.fence > before.fence
        session.release(after.id)
    (kept,) = journal.parent.glob("journal.sqlite.damaged-*[0-9]")
    assert kept.read_bytes() == damaged


def test_without_a_snapshot_that_is_said(no_cluster: Path) -> None:
    with pytest.raises(NotFoundError, match="no snapshot"):
        embedded.ensure(from_snapshot=True)
