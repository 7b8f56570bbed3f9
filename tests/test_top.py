"""`top`: what it shows, and how a terminal gets it again and again."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster, environment, session
from fake_session import SNAPSHOT, FakeSession

import aios_jupyter.session
from aios_jupyter.commands import main
from aios_jupyter.commands.terminal import screen
from aios_jupyter.commands.top import overview
from aios_jupyter.commands.views import Column, Table
from aios_jupyter.session import Session

__all__ = ["cluster", "session"]

AIOS = (str(Path(sys.executable).with_name("aios")),)
NOW = 1_000.0
WAITS = {
    "id": "q-2", "user": "eve", "label": "big.ipynb", "count": 4, "want": "gpu", "position": 1,
    "submitted": NOW - 60, "reason": "Resources", "eta": NOW + 120, "queue": "default",
}  # fmt: skip
RUN = {
    "id": "r-1", "name": "cell 3", "kind": "train", "state": "running", "world_size": 2,
    "progress": {"done": 5, "total": 10}, "metrics": {"loss": 0.25}, "started": NOW - 30,
    "ended": None, "reason": "",
}  # fmt: skip


def seen(**changes: Any) -> dict[str, Any]:
    return {**SNAPSHOT, **changes}


def test_it_has_devices_runs_that_go_on_and_who_waits() -> None:
    over = {**RUN, "id": "r-0", "ended": NOW - 40}
    tables = overview(seen(runs={"r-0": over, "r-1": RUN}, queue={"q-2": WAITS}), NOW)
    devices, runs, waiting = (table.text() for table in tables)
    assert devices.startswith("cluster default [simulated devices] · 1 node · 3 simulated GPUs; 1 ")
    assert "me · a.ipynb (r-1)" in devices
    assert "outside any lease: python 7" in devices
    assert runs.startswith("1 run\n") and "50%" in runs and "r-0" not in runs
    assert waiting.startswith("1 request waiting\n") and "Resources" in waiting
    assert len(overview(SNAPSHOT, NOW)) == 1


def test_temperature_and_power_are_shown_where_they_are_measured() -> None:
    hot = {"temperature": 61.2, "power": 212.4, "power_limit": 400.0}
    devices = {id: {**row} for id, row in SNAPSHOT["devices"].items()}
    (table,) = overview(seen(devices=devices), NOW)
    assert "TEMP" not in table.text()
    devices["d0"] |= hot
    (table,) = overview(seen(devices=devices), NOW)
    assert "61 °C" in table.text() and "212 of 400 W" in table.text()


def test_a_screen_is_no_larger_than_the_terminal() -> None:
    columns = (Column("name", "name"), Column("use", "use", right=True, meter="share"))
    rows = [{"name": f"device {n}", "use": f"{n}%", "share": float(n)} for n in range(0, 101, 10)]
    lines = screen([Table(columns, rows, empty="none", title="all")], NOW, 80, 40)
    assert lines[0] == "all"
    assert lines[2].split() == ["device", "0", "░" * 10, "0%"]
    assert lines[7].split() == ["device", "50", "█" * 5 + "░" * 5, "50%"]
    assert lines[-1].endswith("q leaves")
    small = screen([Table(columns, rows, empty="none", title="all")], NOW, 12, 6)
    assert len(small) == 6 and max(map(len, small)) <= 12
    assert small[-2] == "… 10 more li"


def test_what_is_piped_gets_it_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aios_jupyter.session, "connect", lambda **_: FakeSession())
    for arguments in (["top"], ["top", "--once"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code
        out = capsys.readouterr().out
        assert out.count("cluster default") == 1 and "\x1b" not in out
    with pytest.raises(SystemExit) as ended:
        main(["top", "--every", "0.01"])
    assert ended.value.code == 2
    assert "give 0.2s or more" in capsys.readouterr().err


class Terminal:
    """`aios top` in a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            (*AIOS, "top", *arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment() | {"COLUMNS": "70"},  # of another terminal
        )
        self.said = ""

    def until(self, pattern: str) -> None:
        deadline = time.monotonic() + 30
        while not re.search(pattern, self.said):
            assert time.monotonic() < deadline, self.said
            if select.select([self.ours], [], [], 0.1)[0]:
                self.said += os.read(self.ours, 65536).decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.ours, key)

    def end(self) -> int:
        code = self.process.wait(30)
        while select.select([self.ours], [], [], 0.2)[0]:
            self.said += os.read(self.ours, 65536).decode(errors="replace")
        assert termios.tcgetattr(self._theirs) == self.before
        os.close(self.ours)
        os.close(self._theirs)
        return code


def test_a_terminal_sees_what_changes_until_q(session: Session) -> None:
    terminal = Terminal("--every", "0.2s")
    terminal.until("4 simulated GPUs.*free")
    lease = session.alloc(gpus=1)
    terminal.until(lease.id)
    terminal.press(b"\x1b[A")  # an arrow is no Escape
    session.release()
    terminal.said = ""
    terminal.until("4 free|6 free")
    terminal.press(b"q")
    assert terminal.end() == 0
    assert terminal.said.endswith("\x1b[?25h\x1b[?1049l")


def test_ctrl_c_leaves_the_terminal_as_it_was(session: Session) -> None:
    terminal = Terminal()
    terminal.until("q leaves")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0
    assert "\x1b[?1049l" in terminal.said


def test_no_cluster_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    ended = subprocess.run((*AIOS, "top"), capture_output=True, text=True, env=environment())
    assert ended.returncode == 1
    assert ended.stderr.startswith("aios: No cluster is running")
