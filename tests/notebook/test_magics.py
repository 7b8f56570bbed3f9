"""`%aios` and `%%aios` in IPython, with a session that answers from memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_session import FakeHandle, FakeSession
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

from aios_jupyter.errors import AiosError, NotFoundError, RunError, UsageError
from aios_jupyter.notebook import magics
from aios_jupyter.notebook.magics import Interrupted
from aios_jupyter.runs.handle import RunResult


def fails(shell: InteractiveShell, code: str) -> BaseException:
    """Run code that fails; its error."""
    result = shell.run_cell(code)
    assert result.error_in_exec is not None
    return result.error_in_exec


@pytest.fixture
def no_output(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


def test_alloc_gives_the_lease_and_shows_it_once(
    shell: InteractiveShell, session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("%aios alloc --devices 2 --time 1h").raise_error()
    out = capsys.readouterr().out
    assert out.count("lease lease-1") == 1
    assert "Lease(" not in out
    shell.run_cell("lease = %aios alloc --devices 2", store_history=True).raise_error()
    assert shell.user_ns["lease"].id == "lease-1"
    capsys.readouterr()
    shell.run_cell("lease", store_history=True).raise_error()
    assert "Lease(" in capsys.readouterr().out


def test_variables_stand_in_the_line(shell: InteractiveShell, session: FakeSession) -> None:
    shell.run_cell("count = 3")
    shell.run_cell("%aios alloc --devices $count --time {count}h").raise_error()
    assert session.calls[0][1]["devices"] == 3
    assert session.calls[0][1]["time"] == 3 * 3600


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("%aios alocc", "did you mean 'alloc'?"),
        ("%aios alloc --device 1", "%aios alloc has no flag '--device' (did you mean '--devices'?)"),
        ("%aios alloc 'x", "The line does not parse: No closing quotation"),
        ("%%aios alloc --devices 1\nx = 1", "'alloc' takes no cell: write %aios alloc --devices 1"),
        ("%%aios --devices 1\nx = 1", "Name the verb first"),
        ("%%aios train script.py\nx = 1", "The cell is the code"),
        ("%%aios train\nx = (", "syntax error in line 1"),
        ("%%aios train\n!ls", "is for IPython"),
        ("%%aios train --push missing\nx = 1", "no variable 'missing'"),
        ("%aios train", "Name the script to run"),
    ],
)  # fmt: skip
def test_a_users_mistake_raises_one_sentence_without_our_frames(
    code: str,
    sentence: str,
    shell: InteractiveShell,
    session: FakeSession,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = fails(shell, code)
    out = capsys.readouterr().out
    assert isinstance(error, AiosError)
    assert sentence in str(error)
    assert sentence in out
    assert "Traceback" not in out
    assert "magics.py" not in out
    assert not [call for call in session.calls if call[0] == "start"]


def test_a_cell_gets_the_names_it_reads(shell: InteractiveShell, session: FakeSession) -> None:
    shell.run_cell("rate, unused, _private = 0.1, object(), 5")
    shell.run_cell(
        "%%aios train --devices 2\nimport math\nprint(rate, _private, In, len('x'), math.pi)"
    ).raise_error()
    (_, options) = session.calls[0]
    assert options["push"] == {"rate": 0.1, "_private": 5}
    assert options["explicit"] == ()
    assert options["cell"] is True
    assert options["devices"] == 2
    assert options["target"].startswith("import math")


def test_push_adds_and_no_push_takes_away(shell: InteractiveShell, session: FakeSession) -> None:
    shell.run_cell("a, b, c = 1, 2, 3")
    shell.run_cell("%%aios train --push c --no-push b\nprint(a, b)").raise_error()
    (_, options) = session.calls[0]
    assert options["push"] == {"a": 1, "c": 3}
    assert options["explicit"] == ("c",)


def test_pulled_values_become_variables(shell: InteractiveShell, session: FakeSession) -> None:
    result = RunResult("r-1", "succeeded", 2, 1.5, {}, {"model": "M", "history": [1]})
    session.handle = FakeHandle([], result)
    shell.run_cell("result = get_ipython().run_cell_magic('aios', 'train --pull model,history',"
                   " 'model = 1')").raise_error()  # fmt: skip
    assert session.calls[0][1]["pull"] == ("model", "history")
    assert shell.user_ns["model"] == "M"
    assert shell.user_ns["history"] == [1]
    assert shell.user_ns["result"] is result


def test_run_starts_one_rank(shell: InteractiveShell, session: FakeSession) -> None:
    shell.run_cell("%%aios run\nprint(1)").raise_error()
    (_, options) = session.calls[0]
    assert options["devices"] == 1
    assert options["kind"] == "run"


def test_a_failed_run_shows_the_ranks_traceback_first_and_nothing_of_ours(
    shell: InteractiveShell, session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    traceback = (
        "Traceback (most recent call last):\n"
        '  File "cell-3.py", line 2, in <module>\n'
        "    raise ValueError('no')\n"
        "ValueError: no"
    )
    session.handle = FakeHandle([], RunError("Run r-1 failed: ...", traceback=traceback, rank=1))
    error = fails(shell, "%%aios train\nraise ValueError('no')")
    assert isinstance(error, RunError)
    out = capsys.readouterr().out
    shown = out.splitlines()
    start = shown.index("Traceback of rank 1:")
    assert shown[start + 1].strip() == 'File "cell-3.py", line 2, in <module>'
    assert "ValueError: no" in shown[start + 3]
    assert "Run r-1 failed" in out
    assert "magics.py" not in out
    assert "display.py" not in out


def test_interrupting_the_cell_stops_the_run(
    shell: InteractiveShell, session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    session.handle = FakeHandle([KeyboardInterrupt()], RunError("stopped"))
    error = fails(shell, "%%aios train\nx = 1")
    assert isinstance(error, Interrupted)
    assert session.handle.stopped == "interrupted"
    assert "magics.py" not in capsys.readouterr().out


def test_interrupting_in_the_queue_cancels_the_request(
    shell: InteractiveShell, session: FakeSession
) -> None:
    session.waits = [{"id": "q-5", "position": 1, "reason": ""}, KeyboardInterrupt()]  # type: ignore[list-item]
    assert isinstance(fails(shell, "%aios alloc --devices 1"), KeyboardInterrupt)
    assert session.cancelled == ["q-5"]


def test_arguments_name_variables_and_near_names_are_suggested(
    shell: InteractiveShell, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def predict(ref: str, data: Any) -> list[int]:
        asked.append((ref, data))
        return [7]

    monkeypatch.setattr(session, "predict", predict, raising=False)
    shell.run_cell("x_test = [[1, 2]]")
    shell.run_cell("answer = %aios predict digits@champion x_test").raise_error()
    assert asked == [("digits@champion", [[1, 2]])]
    assert shell.user_ns["answer"] == [7]
    error = fails(shell, "%aios predict digits x_tests")
    assert isinstance(error, NotFoundError)
    assert "did you mean 'x_test'?" in str(error)


def test_a_listing_is_a_value_too(
    shell: InteractiveShell, session: FakeSession, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("%aios alloc --devices 1")
    capsys.readouterr()
    shell.run_cell("%aios leases").raise_error()
    assert capsys.readouterr().out.count("lease-1") == 1
    shell.run_cell("held = %aios leases").raise_error()
    assert [lease.id for lease in shell.user_ns["held"]] == ["lease-1"]


def test_help_gives_no_value(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    result = shell.run_cell("%aios alloc --help")
    assert result.success
    assert result.result is None
    assert "Usage: %aios alloc" in capsys.readouterr().out


def test_a_wrong_display_setting_is_named(
    shell: InteractiveShell, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_DISPLAY", "loud")
    error = fails(shell, "%aios alloc --devices 1")
    assert isinstance(error, UsageError)
    assert "AIOS_DISPLAY='loud'" in str(error)


def test_loading_twice_does_no_harm_and_unloading_closes(
    shell: InteractiveShell, session: FakeSession
) -> None:
    first = magics.load(shell)
    assert magics.load(shell) is first
    shell.run_cell("%aios alloc --devices 1").raise_error()
    magics.unload(shell)
    assert ("close", {}) in session.calls
    assert "aios" not in shell.magics_manager.magics["line"]


def test_tab_offers_verbs_flags_and_names(shell: InteractiveShell, session: FakeSession) -> None:
    def offered(text: str) -> list[str]:
        with provisionalcompleter():
            found = shell.Completer.completions(text, len(text))
            return [text[: item.start].rsplit(" ", maxsplit=1)[-1] + item.text for item in found]

    assert "alloc" in offered("%aios al")
    assert set(offered("%%aios ")) >= {"train", "run"}
    assert "alloc" not in offered("%%aios ")
    assert "--devices" in offered("%aios alloc --dev")
    assert "stop" in offered("%aios endpoints s")
    assert {"torch", "none"} <= set(offered("%aios train --framework "))
    shell.run_cell("x_train = 1")
    assert "x_train" in offered("%aios predict digits x_")
    assert "mnist" in offered("%aios augment mn")
    assert "lease-1" not in offered("%aios release ")
    shell.run_cell("%aios alloc --devices 1")
    assert "lease-1" in offered("%aios release ")
