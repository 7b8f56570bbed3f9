"""The console script, with a session that answers from memory."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import click
import pytest
from fake_session import EXPLAINED, SNAPSHOT, FakeHandle, FakeSession, make_lease

import aios_jupyter.session
from aios_jupyter.commands import Host, aios, invoke, main
from aios_jupyter.commands.base import pairs
from aios_jupyter.commands.cluster import device_row, holder_text
from aios_jupyter.commands.feed import LOG_LINES, POINTS, Feed
from aios_jupyter.commands.host import read_file, waiting_text
from aios_jupyter.commands.leases import lease_card, lease_table
from aios_jupyter.commands.policies import policy_table
from aios_jupyter.commands.quotas import quota_table
from aios_jupyter.commands.views import Card, Column, Table, number
from aios_jupyter.commands.waiting import explain_card
from aios_jupyter.errors import (
    AllocationError,
    ClusterError,
    NotFoundError,
    RunError,
    UsageError,
)
from aios_jupyter.runs.handle import RunResult
from aios_jupyter.runs.messages import Frame, RankStacks, Stack
from aios_jupyter.schema import DeviceKind, Lease, LeaseState, Slot


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setattr(aios_jupyter.session, "connect", lambda **_: fake)
    return fake


def shell(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


# --- what makes no sense


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("alocc", "there is no verb 'alocc' (did you mean 'alloc'?)"),
        ("data lss", "there is no verb 'lss' (did you mean 'ls'?); 'aios data --help'"),
        ("qqqq", "there is no verb 'qqqq'; 'aios --help' lists them."),
        ("alloc --device 2", "has no flag '--device' (did you mean '--devices'?)"),
        ("--simulate", "aios has no flag '--simulate'"),
        ("alloc --gpus none", "'none' is not a number of devices; write 2, or 2:4"),
        ("alloc --gpus 0", "'0' is not a number of devices: ask for at least one"),
        ("alloc --gpus -1", "'-1' is not a number of devices"),
        ("alloc --gpus 3:2", "the least first, like 2:4"),
        ("alloc --gpus 99999999999999999999", "No cluster has '99999999999999999999' devices"),
        ("alloc --gpus 1 --placement moon", "'moon' is not one of 'pack', 'spread', 'node'"),
        ("alloc --gpus 1 --cpus-per-device 0", "0 is not in the range"),
        ("alloc --gpus 1 --gpu-memory 99999999PB", "is not an amount of memory"),
        ("alloc --gpus 1 --gpu-memory 0GB", "'0GB' is not an amount of memory"),
        ("alloc --gpus 1 --time soon", "'soon' is not a length of time"),
        (
            "reserve --gpus 1 --at 22:00",
            "aios reserve wants --time; 'aios reserve --help' says more.",
        ),
        ("reserve --gpus 1 --devices 1 --at +1h --time 1h", "one of --devices N, --gpus N"),
        ("reserve --gpus 1 --at +1h --time never", "'never' is not a length of time"),
        ("policy --idle maybe", "'maybe' is not a length of time"),
        ("policy --queue batch", "--queue says for which queue --idle is"),
        ("policy best", "'best' is not one of 'fifo', 'sjf', 'priority', 'fair'"),
        ("alloc --gpus 1 --gpu-memory big", "'big' is not an amount of memory"),
        ("extend lease-1", "aios extend wants TIME; 'aios extend --help' says more."),
        ("policy foo", "aios: 'foo' is not one of 'fifo', 'sjf', "),
        ("priority r-1 high", "'high' is not a valid integer (N); 'aios priority --help' says"),
        ("train x.py --pull 1a", "'1a'"),
    ],
)
def test_misuse_is_one_sentence_and_status_2(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if line.startswith("train"):
        line = "train --pull 1a x.py"
    status = shell(*line.split())
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    assert sentence in err
    assert err.startswith("aios: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("alloc", "one of --devices N, --gpus N and --cpus N"),
        ("alloc --gpus 1 --cpus 1", "one of --devices N"),
        ("policy fair --weight ana=much", "write a number, like ana=2"),
        ("alloc --gpus 1 --nonblock --wait 3s", "--nonblock does not wait"),
        ("release lease-1 --all", "not both"),
        ("train", "Name the script"),
        ("train no-such-file.py", "There is no script 'no-such-file.py'"),
        ("run --gpus 2 x.py", "use 'train'"),
        ("train --devices 1 --gpus 1 x.py", "not both"),
        ("train --pull a x.py", "--pull is for cells"),
        ("train --no-push a x.py", "--no-push is for cells"),
        ("cancel q-404", "No request 'q-404' waits"),
        ("predict digits no-such.npy", "There is no file 'no-such.npy'"),
    ],
)
def test_a_failed_verb_is_one_sentence_and_a_status(
    line: str, sentence: str, session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    status = shell(*line.split())
    out, err = capsys.readouterr()
    missing = ("train no-such-file.py", "cancel q-404", "predict digits no-such.npy")
    assert status == (1 if line in missing else 2)
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    def walk(group: click.Group, words: list[str]) -> None:
        for name, command in group.commands.items():
            assert shell(*words, name, "--help") == 0
            assert "Usage: aios" in capsys.readouterr().out
            summary = command.get_short_help_str(200)
            assert summary.endswith("."), name
            assert len(summary) <= 60, f"{name}: its first sentence is cut in the list of verbs"
            if isinstance(command, click.Group):
                walk(command, [*words, name])

    walk(aios, [])


def test_bare_aios_shows_help_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell() == 0
    assert "alloc" in capsys.readouterr().out


def test_without_a_cluster_the_sentence_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(*, start: bool, **_: object) -> None:
        assert not start
        raise ClusterError("No cluster is running; start one with: aios up")

    monkeypatch.setattr(aios_jupyter.session, "connect", connect)
    for verb in ("status", "leases", "queue", "runs", "endpoints"):
        assert shell(verb) == 1
        assert capsys.readouterr().err.endswith("start one with: aios up\n")


# --- leases


def test_alloc_reads_times_and_sizes(session: FakeSession) -> None:
    line = "alloc --gpus 2 --gpu-memory 8GB --time 2h --wait 1:30:00 --name mine"
    assert shell(*line.split()) == 0
    name, options = session.calls[0]
    assert name == "alloc"
    assert options["gpus"] == 2
    assert options["memory"] == 8 * 10**9
    assert options["time"] == 7200
    assert options["wait"] == 5400
    assert options["label"] == "mine"


def test_alloc_in_a_shell_belongs_to_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def connect(**options: object) -> FakeSession:
        asked.update(options)
        return FakeSession()

    monkeypatch.setattr(aios_jupyter.session, "connect", connect)
    assert shell("alloc", "--devices", "1") == 0
    assert asked["shell"] is True
    assert asked["start"] is True


def test_a_run_says_which_devices_it_wants(session: FakeSession, tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.write_text("")
    wish = "--gpus 1 --gpu-model a100 --gpu-memory 8GB --share --placement node --time 2h"
    for verb in ("train", "run"):
        assert shell(verb, *wish.split(), str(script)) == 0
        (name, options), _ = session.calls
        session.calls.clear()
        assert name == "start"
        given = {key: options[key] for key in ("model", "memory", "share", "placement", "time")}
        assert given == {
            "model": "a100",
            "memory": 8 * 10**9,
            "share": True,
            "placement": "node",
            "time": 7200.0,
        }
    assert shell("train", "--gpus", "1", str(script)) == 0
    assert not {"model", "placement", "time"} & session.calls[0][1].keys(), "what is held will do"


def test_a_priority_may_be_below_zero(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("priority", "q-1", "-3") == 0
    assert session.calls[0] == ("reprioritize", {"request": "q-1", "priority": -3})
    assert "-3, which the policy 'sjf' does not look at" in capsys.readouterr().out
    assert shell("priority", "q-1", "much") == 2


def test_waiting_is_told_once_for_each_change(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "q-1", "position": 2, "reason": "lease-9 holds all"}
    session.waits = [row, dict(row), {**row, "position": 1}]
    assert shell("alloc", "--devices", "1") == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "waiting for 1 device: position 2 in the queue (lease-9 holds all)",
        "waiting for 1 device: position 1 in the queue (lease-9 holds all)",
    ]
    assert out.startswith("lease lease-1")


def test_ctrl_c_in_the_queue_cancels_the_request(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    session.waits = [{"id": "q-7", "position": 1, "reason": ""}, KeyboardInterrupt()]  # type: ignore[list-item]
    assert shell("alloc", "--devices", "1") == 130
    assert session.cancelled == ["q-7"]
    assert capsys.readouterr().err.endswith("aios: interrupted.\n")


def test_a_refusal_is_status_1(session: FakeSession, capsys: pytest.CaptureFixture[str]) -> None:
    session.granted = AllocationError("There are no GPUs; use --devices or --simulate-gpus.")
    assert shell("alloc", "--gpus", "2") == 1
    assert "--simulate-gpus" in capsys.readouterr().err


def test_release_tells_what_it_ended(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    session.held = [make_lease("lease-1"), make_lease("lease-2")]
    assert shell("release", "lease-2") == 0
    assert "lease-2" in capsys.readouterr().out
    assert [lease.id for lease in session.held] == ["lease-1"]
    assert shell("release") == 0
    assert shell("release") == 1


def test_listings_take_json(session: FakeSession, capsys: pytest.CaptureFixture[str]) -> None:
    session.held = [make_lease()]
    session.rows = [run_row("r-1", "running")]
    for verb in ("status", "leases", "queue", "runs"):
        assert shell(verb, "--json") == 0
        json.loads(capsys.readouterr().out)


def test_leases_are_listed_with_time_left(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    session.held = [make_lease("lease-1", 2, 3600), make_lease("lease-2", 1, None)]
    assert shell("leases") == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "LEASE"
    assert "2 simulated GPUs (#0, #1) on box" in second
    assert "1 h" in second or "59 min" in second
    assert "1 simulated GPU (#0) on box" in third
    assert "no limit" in third


def test_nothing_to_list_is_a_sentence() -> None:
    assert lease_table([], 0.0).text().startswith("You hold no leases")


# --- the cluster


def test_status_shows_who_holds_what(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("status") == 0
    out = capsys.readouterr().out
    assert "3 simulated GPUs; 1 free" in out
    assert "simulated devices" in out
    assert "me · a.ipynb (r-1)" in out
    assert "outside any lease: python 7" in out
    assert "8 GiB of 16 GiB" in out


def test_a_device_that_cannot_be_measured_has_no_percentage() -> None:
    row = device_row(SNAPSHOT["devices"]["d2"])
    assert row["use"] is None
    assert holder_text(SNAPSHOT["devices"]["d1"]) == "free"


# --- runs


def run_row(identity: str, state: str) -> dict[str, object]:
    return {
        "id": identity, "lease": "lease-1", "user": "me", "kind": "train", "name": "cell 3",
        "label": "", "framework": "torch", "world_size": 2, "state": state,
        "started": time.time() - 10, "ended": None,
        "progress": {"done": 5, "total": 20, "unit": "steps", "label": ""},
        "metrics": {"loss": 0.12345}, "reason": "", "detail": {},
    }  # fmt: skip


def test_runs_are_listed_with_progress(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    session.rows = [run_row("r-1", "running")]
    assert shell("runs") == 0
    out = capsys.readouterr().out
    assert "25%" in out
    assert "loss 0.1235" in out


@pytest.mark.parametrize("separator", [["--"], []])
def test_train_gives_the_script_its_own_flags(
    separator: list[str], session: FakeSession, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text("print(1)")
    line = ["train", "--devices", "2", str(script), *separator, "--lr", "0.1", "--devices", "9"]
    assert shell(*line) == 0
    name, options = session.calls[0]
    assert name == "start"
    assert options["target"] == script
    assert options["argv"] == ("--lr", "0.1", "--devices", "9")
    assert options["devices"] == 2


def test_rank_0_writes_to_the_same_streams_and_others_are_silent(
    session: FakeSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    session.handle = FakeHandle(
        [
            {"type": "log", "stream": "stdout", "text": "out\n"},
            {"type": "log", "stream": "stderr", "text": "err\n"},
            {"type": "log", "stream": "stdout", "text": "other\n", "rank": 1},
            {"type": "metrics", "values": {"loss": 0.25}, "step": 1},
        ],
        RunResult("r-1", "succeeded", 2, 1.5, {}, {}),
    )
    assert shell("train", str(script)) == 0
    out, err = capsys.readouterr()
    assert out == "out\n"
    first, last = err.splitlines()
    assert first == "err"
    assert "r-1 succeeded · 2 ranks" in last
    assert last.endswith("loss 0.25")


def test_verbose_shows_every_rank_with_its_number(
    session: FakeSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    session.handle = FakeHandle(
        [{"type": "log", "stream": "stdout", "text": "a\nb\n", "rank": 1}],
        RunResult("r-1", "succeeded", 2, 1.5, {}, {}),
    )
    assert shell("train", "-v", str(script)) == 0
    assert capsys.readouterr().out == "[1] a\n[1] b\n"


def test_a_failed_run_shows_the_ranks_own_traceback_and_status_1(
    session: FakeSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    failure = RunError(
        "Run r-1 failed: rank 1 raised ValueError: no",
        traceback='Traceback (most recent call last):\n  File "x"\nValueError: no',
        rank=1,
    )
    session.handle = FakeHandle([], failure)
    session.run_state = "failed"
    assert shell("train", str(script)) == 1
    err = capsys.readouterr().err
    assert err.index("ValueError: no") < err.index("aios: Run r-1 failed")
    assert "session.py" not in err


def test_ctrl_c_stops_the_run(session: FakeSession, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    session.handle = FakeHandle([KeyboardInterrupt()], RunError("stopped"))
    assert shell("train", str(script)) == 130
    assert session.handle.stopped == "interrupted"


def test_logs_are_printed_as_they_were_written(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("logs", "r-1", "--rank", "1", "-f") == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert session.calls[0] == ("logs", {"run": "r-1", "rank": 1, "follow": True})


# --- data and models without a cluster


def test_data_is_listed_without_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert shell("data", "ls", "--json") == 0
    assert "mnist" in {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert shell("data", "show", "mnist") == 0
    assert "10,000" in capsys.readouterr().out
    assert shell("data", "show", "mnits") == 1
    assert "did you mean 'mnist'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (10_020.0, 4, "10,020"),
        (10_020, 4, "10,020"),
        (9_999.7, 4, "10,000"),
        (2026.0, 4, "2026"),
        (-1_234_567.8, 4, "-1,234,568"),
        (3.2e9, 4, "3.2e+09"),
        (0.97124, 4, "0.9712"),
        (0.000031, 4, "3.1e-05"),
        (0.0, 4, "0"),
        (999.7, 3, "1000"),
        (1234.5, 3, "1234"),
        (3.0842, 3, "3.08"),
        (math.inf, 4, "inf"),
        (math.nan, 4, "nan"),
    ],
)
def test_numbers_have_no_exponent_where_they_need_none(
    value: float, digits: int, text: str
) -> None:
    assert number(value, digits) == text


def test_what_is_done_of_a_long_run_is_counted_in_whole_steps() -> None:
    feed = Feed("r-1", "cell", 1, 0.0)
    feed.add({"type": "progress", "done": 10_020, "total": 1_000_000, "unit": "steps"})
    feed.add({"type": "metrics", "values": {"samples_per_second": 10_020.4}, "step": 1})
    assert feed.progress_text() == "10,020/1,000,000 steps"
    feed.add({"type": "progress", "done": 8, "total": 47_056_490})
    assert feed.progress_text() == "8/47,056,490"
    assert feed.metrics_text() == "samples_per_second 10,020"


def test_pairs_are_numbers_where_they_look_like_numbers() -> None:
    def value(name: str) -> object:
        return {"loss": 1.0} if name == "history" else 3

    found = pairs(("a=1,b=0.5", "c=adam", "history"), "metrics", value)
    assert found == {"a": 1, "b": 0.5, "c": "adam", "loss": 1.0}
    with pytest.raises(UsageError, match="name=value"):
        pairs(("x",), "metrics", value)
    with pytest.raises(UsageError, match="'b' is not name=value"):
        pairs(("a=1,b",), "metrics", value)


def test_files_are_read_for_predict(tmp_path: Path) -> None:
    import numpy as np

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "one.npz", data=x)
    np.savez(tmp_path / "two.npz", x=x, y=x[0])
    np.savez(tmp_path / "none.npz", a=x, b=x)
    (tmp_path / "x.json").write_text("[[1, 2]]")
    (tmp_path / "x.txt").write_text("1")
    (tmp_path / "bad.npy").write_text("not numpy")
    for name in ("x.npy", "one.npz", "two.npz"):
        assert (read_file(str(tmp_path / name)) == x).all()
    assert read_file(str(tmp_path / "x.json")) == [[1, 2]]
    for name, sentence in (
        ("none.npz", "holds a, b"), ("x.txt", "is not a .npy"), ("bad.npy", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=sentence):
            read_file(str(tmp_path / name))
    with pytest.raises(NotFoundError):
        read_file(str(tmp_path / "absent.npy"))


# --- views and feeds


def test_tables_are_aligned_and_never_break_a_line() -> None:
    columns = (Column("a", "name"), Column("n", "count", right=True), Column("r", "reason"))
    rows = [{"a": "x", "n": 5}, {"a": "longer", "n": 12, "r": "two\nlines"}]
    assert Table(columns, rows, empty="none").text().splitlines() == [
        "NAME    COUNT  REASON",
        "x           5  -",
        "longer     12  two lines",
    ]


def test_cards_leave_out_what_is_empty() -> None:
    card = Card("lease 1", (("devices", "2"), ("name", "")), badge="active", note="Next.")
    assert card.text() == "lease 1  [active]\n  devices  2\n  Next."


def test_a_feed_knows_progress_metrics_and_logs() -> None:
    feed = Feed("r-1", "", 2, started=100.0)
    feed.add({"type": "log", "rank": 0, "text": "a\nb"})
    feed.add({"type": "log", "rank": 0, "text": "c\n10%\r20%\r30%"})
    feed.add({"type": "log", "rank": 1, "text": "other\n"})
    feed.add({"type": "progress", "rank": 0, "done": 5, "total": 20, "unit": "steps"})
    feed.add({"type": "progress", "rank": 1, "done": 19, "total": 20, "unit": "steps"})
    feed.add({"type": "metrics", "rank": 0, "values": {"loss": 0.5}})
    feed.add({"type": "something-new", "rank": 0})
    assert feed.tail(0, 9) == ["a", "bc", "30%"]
    assert feed.tail(1, 9) == ["other"]
    assert feed.fraction == 0.25
    assert feed.summary(110.0) == "r-1 running · 2 ranks · 10 s · 5/20 steps · loss 0.5"
    feed.end("stopped", 112.0)
    assert feed.seconds(999.0) == 12.0


def test_a_feed_stays_small_however_long_the_run() -> None:
    feed = Feed("r-1", "", 1, started=0.0)
    for step in range(50_000):
        feed.add({"type": "metrics", "rank": 0, "values": {"loss": step}})
        feed.add({"type": "log", "rank": 0, "text": f"{step}\n"})
    points = feed.series["loss"].points
    assert POINTS // 2 <= len(points) <= POINTS
    assert points[0] == 0
    assert points == sorted(points)
    assert points[-1] > 49_000
    assert len(feed.tail(0, 10_000)) == LOG_LINES
    assert feed.logs[0].dropped == 50_000 - LOG_LINES


def test_what_a_restarted_run_repeats_takes_the_place_of_what_was() -> None:
    feed = Feed("r-1", "", 1, started=0.0)

    def told(loss: float, step: int | None) -> None:
        feed.add({"type": "metrics", "rank": 0, "values": {"loss": loss}, "step": step})

    for step in range(1, 7):
        told(float(step), step)
    feed.add({"type": "restart", "rank": 0, "attempt": 1})
    for step in range(4, 6):
        told(step + 0.5, step)
    course = feed.series["loss"]
    assert course.steps == [1, 2, 3, 4, 5]
    assert course.points == [1.0, 2.0, 3.0, 4.5, 5.5]
    # A second training in the same cell counts anew, and repeats nothing.
    told(9.0, 1)
    assert course.steps == [1, 2, 3, 4, 5, 1]


def test_help_returns_nothing_from_invoke(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["--help"], Host()) is None
    assert "Usage" in capsys.readouterr().out


# --- users


def test_users_are_added_listed_and_refused(
    session: FakeSession, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert shell("user", "add", "bob", "--role", "viewer", "-o", str(tmp_path / "b")) == 0
    assert f"AIOS_BUNDLE={tmp_path / 'b'}" in capsys.readouterr().out
    assert session.calls[0] == (
        "user_add",
        {"name": "bob", "role": "viewer", "to": tmp_path / "b", "days": 365.0},
    )
    assert shell("user", "add", "bob", "--role", "node") == 2
    assert "'node' is not one of" in capsys.readouterr().err
    assert shell("user", "ls") == 0
    assert "revoked" in capsys.readouterr().out
    assert shell("user", "revoke", "carl") == 1
    assert "Nobody called 'carl'" in capsys.readouterr().err


def test_the_audit_reads_like_a_log(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("audit") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["bob", "eve"]
    assert lines[1].endswith('devices ["d0"]')
    assert shell("audit", "-n", "1", "--json") == 0
    assert [record["who"] for record in json.loads(capsys.readouterr().out)] == ["eve"]


def test_explain_shows_place_reason_and_forecast() -> None:
    found = EXPLAINED
    text = explain_card(found, 1000.0).text()
    assert text.startswith("request q-1  [Priority]")
    assert "2 of 3" in text
    assert "~10 min (~5 min to ?)" in text
    assert "1.5 times as predicted" in text
    unknown = explain_card({**found, "eta": None}, 1000.0).text()
    assert "not known" in unknown
    ended = {**found, "state": "ended", "lease": "", "reason": "cancelled by ana"}
    assert "cancelled by ana" in explain_card(ended, 1000.0).text()


def test_quotas_are_listed_with_what_is_used_and_waits() -> None:
    row = {
        "queue": "vision", "pool": "accelerator", "nominal": 4, "borrow": 2, "used": 5,
        "borrowed": 1, "waiting": 3, "user_devices": 2, "user_leases": None, "weight": 2.0,
        "members": ["ana", "bob"],
    }  # fmt: skip
    rest = {**row, "queue": "default", "borrow": None, "members": [], "user_devices": None}
    text = quota_table(
        [rest, {**row, "pool": "cpu", "nominal": None, "used": 0, "waiting": 0}, row]
    )
    first, second = text.text().splitlines()[1:]
    cells = ["default", "GPUs", "4", "no", "limit", "5", "1", "3", "2", "-", "others"]
    assert first.split() == cells
    assert second.split() == [
        *("vision", "GPUs", "4", "2", "5", "1", "3", "2"),
        *("2", "devices", "ana,", "bob"),
    ]


def test_a_lease_that_was_preempted_says_so() -> None:
    slot = Slot(node="n", device="d", kind=DeviceKind.GPU, index=0, address="n:1")
    lease = Lease(
        id="L1", request="q", session="s", user="ana", slots=(slot,), fence=1, granted=0.0,
        queue="vision", preemptible=True, preempted=True, state=LeaseState.ENDING,
        reason="preempted by request q-2 of bob",
    )  # fmt: skip
    assert "preempted" in lease_table([lease], 1.0).text()
    card = lease_card(lease, 1.0).text()
    assert "vision" in card
    assert "preempted by request q-2 of bob" in card


def test_policies_are_listed_and_the_one_in_force_is_marked() -> None:
    policies = [
        {"name": "fifo", "about": "first come", "aging": None},
        {"name": "sjf", "about": "smallest first", "aging": 7200.0},
    ]
    table = policy_table({"name": "sjf", "policies": policies, "weights": {"ana": 2.0}})
    text = table.text()
    assert "weights: ana 2" in text
    (line,) = (line for line in text.splitlines() if "sjf" in line)
    assert line.startswith("*")
    assert line.endswith("2 h")


def test_who_waits_is_told_when_it_will_start() -> None:
    row = {"position": 1, "reason": "Resources", "eta": 1e9}
    when = time.strftime("%H:%M", time.localtime(1e9))
    assert waiting_text("1 GPU", row).endswith(f"(Resources), starts at about {when}")


# --- times


def test_reservations_are_made_and_listed(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("reserve", "--gpus", "2", "--at", "+1h", "--time", "30m", "--label", "night") == 0
    name, wish = session.calls[-2]
    assert name == "reserve"
    assert (wish["gpus"], wish["at"], wish["time"], wish["label"]) == (2, "+1h", 1800.0, "night")
    text = capsys.readouterr().out
    assert "reservation b-1" in text
    assert "2 GPUs" in text
    assert "alloc --reservation b-1" in text
    assert shell("reservations") == 0
    text = capsys.readouterr().out
    assert "RESERVATION" in text
    assert "night" in text
    assert shell("cancel", "b-1") == 0
    assert session.cancelled == ["b-1"]


def test_a_lease_that_ends_soon_or_is_idle_says_so() -> None:
    lease = make_lease().__replace__(
        expires=1240.0, warned=True, idle_since=400.0, idle_ends=1060.0
    )
    text = lease_table([lease], 1000.0).text()
    assert "NOTICE" in text
    assert "idle for 10 min, ends in 1 min; its time ends in 4 min" in text


def test_limits_are_shown_with_the_policy() -> None:
    found = {
        "name": "fifo",
        "policies": [],
        "weights": {},
        "idle": {"": 1800.0},
        "max_time": 7200.0,
        "require_signature": True,
    }
    title = policy_table(found).title
    assert title.endswith(
        "leases end when idle for 30 min; leases last 2 h at most; models have to be signed"
    )


# --- look inside


def test_stacks_mark_the_users_own_code(
    session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    session.looked = [
        RankStacks(
            rank=1,
            pid=77,
            device="d1",
            note="py-spy is not installed.",
            threads=(
                Stack(
                    name="MainThread",
                    active=False,
                    frames=(
                        Frame(function="all_reduce", file="/x/site-packages/torch/c10d.py", line=3),
                        Frame(function="f", file="a.py", line=7, users=True, source="f(x)"),
                    ),
                ),
            ),
        ),
        RankStacks(rank=2, failure="  File a.py\nValueError: no\n"),
    ]
    assert shell("stacks", "r-1", "--rank", "1") == 0
    assert session.calls[0] == ("stacks", {"run": "r-1", "rank": 1})
    assert capsys.readouterr().out == (
        "rank 1 \u00b7 pid 77 \u00b7 d1\n"
        "  (py-spy is not installed.)\n"
        "  thread MainThread (waiting)\n"
        "    all_reduce  torch/c10d.py:3\n"
        "  > f  a.py:7\n"
        "        f(x)\n"
        "\n"
        "rank 2 failed:\n"
        "  File a.py\n"
        "ValueError: no\n"
    )
    assert shell("stacks", "r-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["threads"][0]["frames"][1]["users"] is True


def test_profile_says_where_the_trace_is(
    session: FakeSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "trace.json"
    assert shell("profile", "r-1", "-o", str(to)) == 0
    assert session.calls[0] == ("profile", {"run": "r-1", "to": str(to), "rank": 0})
    assert str(to) in capsys.readouterr().out
    assert shell("profile") == 2


@pytest.mark.parametrize(
    ("flags", "profile"), [([], ""), (["--profile"], "first"), (["--profile-all"], "all")]
)
def test_train_profiles_when_asked(
    session: FakeSession, tmp_path: Path, flags: list[str], profile: str
) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    # What follows the script is the script's own.
    assert shell("train", *flags, str(script), "--profile") == 0
    _, options = next(call for call in session.calls if call[0] == "start")
    assert options["profile"] == profile
    assert options["argv"] == ("--profile",)


def test_a_failure_says_how_to_see_its_variables(
    session: FakeSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    error = RunError("Run r-1 failed: rank 1 raised.", traceback="Traceback:\n  x\n", run="r-1")
    session.handle = FakeHandle([], error)
    assert shell("train", str(script)) == 1
    assert "The variables at the failure: aios stacks r-1\n" in capsys.readouterr().err


def test_what_others_have_named_does_nothing_to_a_terminal() -> None:
    evil = "a\x1b]0;owned\x07\x1b[2J\u202eb\x9bc"
    table = Table((Column("name", "name"),), [{"name": evil}], empty="none", title=evil)
    card = Card(evil, fields=(("label", evil),), badge=evil, note=f"{evil}\nsecond line")
    for text in (table.text(), card.text()):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
        assert "owned" in text
    assert card.text().endswith("second line")
    assert (
        Table((Column("name", "name"),), [{"name": "größe 👩‍🔬 数"}], empty="")
        .text()
        .endswith("数")
    )
