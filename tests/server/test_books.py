"""What runs have said, kept for pages that ask again and again."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from fake_run import FakeHandle, FakeSession

from aios_jupyter.errors import NotFoundError
from aios_jupyter.server import books
from aios_jupyter.server.books import LINES, LONGEST, POINTS, Book, Books
from aios_jupyter.server.history import History


def log(text: str, rank: int = 0) -> dict[str, Any]:
    return {"type": "log", "rank": rank, "time": 0.0, "text": text}


def metrics(step: int | None, **values: float) -> dict[str, Any]:
    return {"type": "metrics", "rank": 0, "time": 1.5, "step": step, "values": values}


def book_of(*events: dict[str, Any]) -> Book:
    book = Book()
    for event in events:
        book.add(event)
    return book


def test_pieces_become_lines_of_their_rank_numbered_as_they_end() -> None:
    book = book_of(log("epo"), log("other\n", 1), log("ch 1\nepoch 2\nep"))
    page = book.page(None, 0, "")
    assert page["lines"] == ["other", "epoch 1", "epoch 2"]
    assert page["ranks"] == [1, 0, 0]
    assert page["numbers"] == [0, 1, 2]
    assert not page["complete"]
    book.end()
    rest = book.page(None, page["next"], "")
    assert rest["lines"] == ["ep"]
    assert rest["complete"]


def test_a_bar_that_is_drawn_over_and_over_is_its_last_state() -> None:
    book = book_of(*(log(f"\r{n}%") for n in range(100)), log("\rdone\n"))
    assert book.page(None, 0, "")["lines"] == ["done"]


def test_a_line_without_an_end_stays_bounded() -> None:
    book = book_of(*(log("x" * 1000) for _ in range(100)))
    book.end()
    (line,) = book.page(None, 0, "")["lines"]
    assert len(line) == LONGEST


def test_what_a_restarted_run_repeats_takes_the_place_of_what_was() -> None:
    first = [metrics(step, loss=float(step)) for step in range(1, 7)]
    again = [metrics(step, loss=step + 0.5) for step in (4, 5)]
    book = book_of(
        *first, {"type": "restart", "rank": 0, "attempt": 1}, *again, metrics(1, loss=9.0)
    )
    course = book.metrics()["loss"]
    assert course["step"] == [1, 2, 3, 4, 5, 1]
    assert course["value"] == [1.0, 2.0, 3.0, 4.5, 5.5, 9.0]
    assert len(course["time"]) == 6


def test_pages_go_on_where_the_last_one_ended() -> None:
    book = book_of(log("".join(f"line {n}\n" for n in range(10))))
    first = book.page(None, 0, "", limit=4)
    assert first["next"] == 4
    second = book.page(None, first["next"], "", limit=4)
    assert second["lines"][0] == "line 4"
    assert book.page(None, 8, "", limit=4)["next"] == 10
    assert book.page(None, 10, "")["lines"] == []


def test_a_search_skips_lines_and_never_finds_one_twice() -> None:
    book = book_of(log("Loss 1\nother\nLOSS 2\nloss 3\n"))
    first = book.page(None, 0, "loss", limit=2)
    assert first["lines"] == ["Loss 1", "LOSS 2"]
    assert book.page(None, first["next"], "loss")["lines"] == ["loss 3"]
    assert book.page(1, 0, "loss")["lines"] == []


def test_the_first_lines_of_a_long_log_are_dropped_and_counted() -> None:
    book = book_of(log("".join(f"{n}\n" for n in range(LINES + 5))))
    page = book.page(None, 0, "", limit=1)
    assert page["dropped"] == 5
    assert page["lines"] == ["5"]
    assert book.last(None, "", 2)["lines"] == [str(LINES + 3), str(LINES + 4)]
    assert book.last(None, "", 0)["lines"] == []


def test_a_course_stays_bounded_and_keeps_its_steps() -> None:
    book = book_of(*(metrics(10 * n, loss=float(n)) for n in range(3 * POINTS)))
    course = book.metrics()["loss"]
    assert len(course["value"]) <= POINTS
    assert course["step"][:2] == [0, 40]
    assert course["value"][:2] == [0.0, 4.0]


def test_what_json_cannot_say_is_none() -> None:
    course = book_of(metrics(None, loss=float("nan")), metrics(2, loss=float("inf"))).metrics()
    assert course["loss"] == {"time": [1.5, 1.5], "step": [None, 2], "value": [None, None]}


class Runs:
    """Sessions, and the handles that they give out."""

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []
        self.books = Books(self.connect)

    def connect(self) -> Any:
        self.sessions.append(FakeSession())
        return self.sessions[-1]

    def lines(self, run: str) -> list[str]:
        lines: list[str] = self.books.read(run, lambda book: book.last(0, "", 2))["lines"]
        return lines


def test_a_run_is_attached_to_once_for_all_who_look() -> None:
    runs = Runs()
    looks = [threading.Thread(target=runs.lines, args=("r-1",)) for _ in range(5)]
    for look in looks:
        look.start()
    for look in looks:
        look.join()
    assert runs.lines("r-1") == ["[0] step 198: loss 0.0116", "[0] step 199: loss 0.0115"]
    assert [session.attached for session in runs.sessions] == [["r-1"]]
    runs.books.close()
    assert runs.sessions[0].closed


def test_who_is_not_looked_at_is_forgotten_and_the_session_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = Runs()
    runs.lines("r-1")
    runs.books.tidy()
    assert not runs.sessions[0].closed
    monkeypatch.setattr(books, "FORGET", -1.0)
    runs.books.tidy()
    assert runs.sessions[0].closed
    assert runs.lines("r-1")
    assert len(runs.sessions) == 2
    runs.books.close()


def test_what_a_live_run_prints_later_is_in_the_next_page(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = FakeHandle(live=True, lines=3)
    monkeypatch.setattr(FakeSession, "attach", lambda self, run: handle)
    runs = Runs()
    page = runs.books.read("r-1", lambda book: book.page(None, 0, ""))
    assert page["next"] == 7
    assert not page["complete"]
    handle.say(1, "later\n")
    while not (new := runs.books.read("r-1", lambda book: book.page(None, 7, "")))["lines"]:
        pass
    assert (new["lines"], new["ranks"]) == (["later"], [1])
    runs.books.close()


def test_a_refusal_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeSession, run: str) -> None:
        raise NotFoundError("There is no run 'r-9'.")

    monkeypatch.setattr(FakeSession, "attach", refuse)
    runs = Runs()
    with pytest.raises(NotFoundError):
        runs.lines("r-9")
    runs.books.tidy()
    assert runs.sessions[0].closed


def test_a_closed_reader_does_not_say_that_the_run_has_ended() -> None:
    handle = FakeHandle(live=True, lines=1)
    reader = books._Reader("r-1", handle)
    reader.settled()
    reader.stop()
    assert not reader.book.complete
    with pytest.raises(queue.Empty):
        handle.next_event(0)


DEVICE = {"utilization": 50.0, "memory_used": 25, "memory": 100}
RUN = {"started": 1000.0, "metrics": {"loss": 2.0}}


def event(time: float, **what: Any) -> dict[str, Any]:
    return {"time": time, **what}


def test_history_has_devices_in_percent_and_metrics_since_the_start() -> None:
    history = History()
    history.take(event(1001.0, snapshot={"devices": {"d": DEVICE}, "runs": {"r": RUN}}))
    history.take(event(1003.0, delta={"runs": {"r": {**RUN, "metrics": {"loss": 1.0}}}}))
    history.take(event(1004.0, delta={"runs": {"r": {**RUN, "metrics": {"loss": 1.0}}}}))
    view = history.view()
    assert view["devices"]["d"] == {"time": (1001.0,), "utilization": (50.0,), "memory": (25.0,)}
    assert view["runs"]["r"]["loss"] == {"x": [1.0, 3.0], "y": [2.0, 1.0]}


def test_history_stays_bounded_with_the_newest_sample_last() -> None:
    history = History()
    for time in range(1000):
        row = {**DEVICE, "utilization": float(time)}
        history.take(event(float(time), delta={"devices": {"d": row}}))
    track = history.view()["devices"]["d"]
    assert len(track["time"]) <= 61
    assert track["time"][-1] - track["time"][0] >= 110
    assert track["utilization"][-1] == 999.0


def test_history_forgets_what_is_gone_and_all_with_its_cluster() -> None:
    history = History()
    history.take(event(1.0, snapshot={"devices": {"d": DEVICE, "e": DEVICE}, "runs": {"r": RUN}}))
    history.take(event(2.0, delta={"devices": {"d": None}, "runs": {"r": None}}))
    assert list(history.view()["devices"]) == ["e"]
    assert history.view()["runs"] == {}
    history.take(event(3.0, snapshot={"devices": {}, "runs": {}}))
    assert history.view()["devices"] == {}
    history.take(event(4.0, delta={"devices": {"d": DEVICE}}))
    history.take(event(5.0, offline="No cluster is running."))
    assert history.view() == {"devices": {}, "runs": {}}
