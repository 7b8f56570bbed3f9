"""Events that wait for a reader."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from aios_jupyter.runs import inbox
from aios_jupyter.runs.inbox import Inbox


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "KEPT", 1000)


def said(number: int, size: int = 100) -> dict[str, Any]:
    return {"type": "log", "seq": number, "time": 1.0, "rank": 1, "text": "x" * size}


def read(box: Inbox) -> list[dict[str, Any]]:
    return list(iter(lambda: box.get(timeout=1), None))  # type: ignore[arg-type]


def test_what_nobody_reads_is_bounded_and_what_was_left_out_is_said() -> None:
    box = Inbox("r-1")
    exits = [{"type": "exit", "seq": number, "code": 0} for number in (0, 999)]
    box.put(exits[0])
    for number in range(1, 500):
        box.put(said(number))
        assert len(box._events) < 20
    box.put(exits[1])
    box.put(None)
    first, *rest = read(box)
    shown = [event for event in rest if event["type"] == "log"]
    assert (first["type"], first["rank"]) == ("log", 0)
    assert f"{(499 - len(shown)) * 100:,} characters" in first["text"]
    assert "aios logs r-1" in first["text"]
    assert [event["seq"] for event in shown] == list(range(500 - len(shown), 500))
    assert [event for event in rest if event not in shown] == exits
    assert len(shown) >= 10


def test_a_reader_gets_all_however_slow() -> None:
    box = Inbox("r-1")
    with pytest.raises(queue.Empty):
        box.get(timeout=0.01)
    sent = [said(number) for number in range(500)]
    for event in sent:
        box.put(event)
    box.put(None)
    assert read(box) == sent


def test_one_that_prints_little_loses_nothing() -> None:
    box = Inbox("r-1")
    sent = [said(number) for number in range(10)]
    for event in sent:
        box.put(event)
    box.put(None)
    assert read(box) == sent
