"""What a notebook is sent: live cards as widgets, and readable static forms at their end."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import msgspec
import pytest
from fake_session import SNAPSHOT, FakeHandle, FakeSession, make_lease
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from aios_jupyter.commands.feed import Feed
from aios_jupyter.commands.views import Card, Column, Table
from aios_jupyter.errors import (
    AllocationError,
    ClusterError,
    NotFoundError,
    RunError,
    UsageError,
)
from aios_jupyter.models.registry import ModelVersion
from aios_jupyter.notebook import curves, display, html
from aios_jupyter.notebook.curves import MIME
from aios_jupyter.notebook.held import EndpointCard, Keeper, LeaseCard
from aios_jupyter.notebook.magics import load
from aios_jupyter.notebook.previews import PreviewCard
from aios_jupyter.notebook.widgets import CONFIRM_FOR, Confirmed, RunCard, Slot
from aios_jupyter.runs.handle import RunResult
from aios_jupyter.schema import LeaseState
from aios_jupyter.session import Endpoint

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def rich(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> InteractiveShell:
    """The shell as in a front end that shows widgets."""
    monkeypatch.setenv("AIOS_DISPLAY", "rich")
    return shell


def shown(shell: InteractiveShell, code: str) -> list[dict[str, Any]]:
    """Every bundle, updates too, that a cell sends, in order."""
    with capture_output() as captured:
        shell.run_cell(code)
    return [output.data for output in captured.outputs]


def test_a_live_card_has_text_and_html_beside_the_widget(
    rich: InteractiveShell, session: FakeSession
) -> None:
    (card,) = shown(rich, "%aios alloc --devices 2 --time 1h")
    assert set(card) == {"text/plain", "text/html", WIDGET}
    assert "2 simulated GPUs" in card["text/plain"]
    assert "<b>lease lease-1</b>" in card["text/html"]


def test_releasing_leaves_a_static_card_in_the_place_of_the_widget(
    rich: InteractiveShell, session: FakeSession
) -> None:
    shown(rich, "%aios alloc --devices 2 --time 1h")
    released, said = shown(rich, "%aios release")
    assert WIDGET not in released
    assert "[released]" in released["text/plain"]
    assert "left" not in released["text/plain"]
    assert "lease-1" in said["text/plain"]


def test_a_lease_that_ends_elsewhere_ends_its_card(
    rich: InteractiveShell, session: FakeSession
) -> None:
    with capture_output() as captured:
        rich.run_cell("%aios alloc --devices 2 --time 1h")
        host = load(rich).host
        session.held[0] = msgspec.structs.replace(session.held[0], expires=time.time() + 7200)
        host.leases_changed()
        (card,) = host.keeper.cards
        assert "2 h left" in card._body.value
        session.held = [msgspec.structs.replace(session.held[0], state=LeaseState.ENDING)]
        host.leases_changed()
    assert "[released]" in captured.outputs[-1].data["text/plain"]
    assert not host.keeper.cards


def test_a_broker_that_is_away_for_a_while_ends_no_card(
    rich: InteractiveShell, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def status() -> None:
        raise ClusterError("The broker does not answer.")

    with capture_output():
        rich.run_cell("%aios alloc --devices 2 --time 1h")
        host = load(rich).host
        monkeypatch.setattr(session, "status", status)
        host.leases_changed()
        assert len(host.keeper.cards) == 1
        # A stopped cluster is not asked: asking would start it again.
        monkeypatch.setattr(display, "cluster_exists", lambda: False)
        host.leases_changed()
    assert not host.keeper.cards


def test_the_queue_card_gives_its_place_to_the_lease(
    rich: InteractiveShell, session: FakeSession
) -> None:
    session.waits = [
        {"id": "q-1", "position": 2, "reason": "lease-9 holds <all>"},
        {"id": "q-1", "position": 1, "reason": "lease-9 holds <all>"},
    ]
    with capture_output() as captured:
        rich.run_cell("%aios alloc --devices 2")
    waiting, granted, lease = captured.outputs
    assert WIDGET in waiting.data
    assert "position 2" in waiting.data["text/plain"]
    assert "&lt;all&gt;" in waiting.data["text/html"]
    assert "granted" in granted.data["text/html"]
    assert granted.update
    assert lease.update
    assert "lease lease-1" in lease.data["text/plain"]


def test_a_request_that_was_refused_leaves_its_reason(
    rich: InteractiveShell, session: FakeSession
) -> None:
    session.waits = [{"id": "q-1", "position": 1, "reason": "busy"}]
    session.granted = AllocationError("It was cancelled.")
    *_, last = shown(rich, "%aios alloc --devices 2")
    assert WIDGET not in last
    assert "gave up" in last["text/html"]


def test_a_run_ends_as_static_html_with_its_log(
    rich: InteractiveShell, session: FakeSession
) -> None:
    session.handle = FakeHandle(
        [
            {"type": "log", "stream": "stdout", "text": "epoch 1\n"},
            {"type": "log", "stream": "stdout", "text": "from <other>\n", "rank": 1},
            {"type": "progress", "done": 10, "total": 10, "unit": "steps", "label": "epoch 1"},
            {"type": "metrics", "values": {"loss": 0.5}, "step": 1},
            {"type": "metrics", "values": {"loss": 0.25}, "step": 2},
        ],
        RunResult("r-1", "succeeded", 2, 1.5, {}, {}),
    )
    first, curves, last, kept = shown(rich, "%%aios train\nx = 1")
    assert WIDGET in first
    assert WIDGET not in last
    assert "r-1 succeeded" in last["text/plain"]
    assert "epoch 1: 10/10 steps" in last["text/plain"]
    assert "loss 0.25" in last["text/plain"]
    assert curves["text/plain"] == "loss: 0.5 → 0.25 (least 0.25, most 0.5)"
    assert "<svg" in curves["text/html"]
    # In the end all is in the card; of their own output the numbers stay, which the extension draws.
    assert "\nloss: 0.5 → 0.25 (least 0.25, most 0.5)\nepoch 1" in last["text/plain"]
    assert '<div class="aios-place" data-run="r-1"><div class="aios-curves">' in last["text/html"]
    assert last["text/html"].count("<svg") == 1
    assert (kept["text/plain"], kept["text/html"]) == ("", "")
    assert kept[MIME]["curves"] == [{"name": "loss", "x": [1, 2], "y": [0.5, 0.25]}]
    page = last["text/html"]
    assert "from &lt;other&gt;" in page
    assert "rank 1's output" in page
    assert "width:100.0%" in page


def test_a_failed_run_ends_as_failed(rich: InteractiveShell, session: FakeSession) -> None:
    session.handle = FakeHandle([], RunError("Run r-1 failed: no", traceback="", rank=0))
    session.run_state = "failed"
    *_, last = shown(rich, "%%aios train\nx = 1")
    assert WIDGET not in last
    assert "r-1 failed" in last["text/plain"]


def test_an_interrupted_run_ends_as_stopped(rich: InteractiveShell, session: FakeSession) -> None:
    session.handle = FakeHandle([KeyboardInterrupt()], RunError("stopped"))
    *_, last = shown(rich, "%%aios train\nx = 1")
    assert "r-1 stopped" in last["text/plain"]
    assert session.handle.stopped == "interrupted"


def test_stop_on_the_card_stops_the_run(session: FakeSession) -> None:
    def click(handle: FakeHandle) -> None:
        card._stop.click()
        while not handle.stopped:
            time.sleep(0.01)

    handle = FakeHandle([click], RunError("stopped"))
    card = RunCard(Slot(), handle, Feed("r-1", "cell", 2, time.time()))  # type: ignore[arg-type]
    with capture_output():
        card.start()
        for event in handle.events():
            card.add(event)
        card.feed.end("stopped", time.time())
        card.finish()
    assert handle.stopped


def test_a_card_that_an_interrupt_kept_from_starting_can_be_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    handle = FakeHandle([], RunError("stopped"))
    for step in ("_draw", "open"):
        card = RunCard(Slot(), handle, Feed("r-1", "cell", 2, time.time()))  # type: ignore[arg-type]
        with monkeypatch.context() as patch, capture_output():
            patch.setattr(card, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                card.start()
            card.finish()


def test_another_ranks_log_is_a_click_away(session: FakeSession) -> None:
    handle = FakeHandle([], RunError("stopped"))
    card = RunCard(Slot(), handle, Feed("r-1", "cell", 2, time.time()))  # type: ignore[arg-type]
    card.add({"type": "log", "rank": 0, "text": "zero\n"})
    card.add({"type": "log", "rank": 1, "text": "one\n"})
    with capture_output():
        card.start()
        assert "zero" in card._log.value
        card._rank.value = 1
        assert "one" in card._log.value
        assert "zero" not in card._log.value
        card.finish()


def test_release_asks_before_it_acts() -> None:
    acted: list[int] = []
    confirmed = Confirmed("Release", "eject", lambda: acted.append(1))
    confirmed.button.click()
    assert confirmed.button.description == "Release?"
    assert not acted
    confirmed._asked -= CONFIRM_FOR + 1
    confirmed.settle()
    assert confirmed.button.description == "Release"
    confirmed.button.click()
    confirmed.button.click()
    assert acted == [1]


def test_a_lease_card_shows_why_release_failed(session: FakeSession) -> None:
    changed: list[int] = []
    with capture_output():
        card = LeaseCard(Slot(), session, make_lease(), lambda: changed.append(1))  # type: ignore[arg-type]
        card._release.button.click()
        card._release.button.click()
        assert "holds no lease" in card._body.value
        assert changed == [1]
        card.ended("released")


ENDPOINT = Endpoint(
    name="digits",
    model="digits",
    version="3",
    url="http://127.0.0.1:40123/v2",
    run="r-1",
    lease="lease-1",
    token_file="digits.token",
)


def endpoint_row(**changes: Any) -> dict[str, Any]:
    row = {"id": "r-1", "state": "running", "ended": None, "reason": "", "detail": {}}
    return {**row, "metrics": {"requests_per_second": 12.4, "p95_ms": 3.08}, **changes}


def test_an_endpoints_card_shows_its_traffic_and_the_version_it_serves_now(
    rich: InteractiveShell, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"r-1": endpoint_row(detail={"version": 4})}
    monkeypatch.setattr(session, "serve", lambda ref, **_: ENDPOINT, raising=False)
    monkeypatch.setattr(session, "status", lambda: {"runs": runs, "leases": {}, "queue": {}})
    with capture_output() as captured:
        rich.run_cell("%aios serve digits@champion")
        host = load(rich).host
        host.leases_changed()
        (card,) = host.keeper.cards
        assert "12.4 requests/s, p95 3.08 ms" in card._body.value
        assert "digits/4" in card._body.value
        trial = card.box.children[-1].children[0]
        assert 'data-run="r-1">Try it</button>' in trial.value, "for JupyterLab's extension"
        runs["r-1"] = endpoint_row(state="failed", ended=1.0, reason="rank 0 was <killed>")
        host.leases_changed()
    first, last = (output.data for output in captured.outputs)
    assert WIDGET in first
    assert WIDGET not in last
    assert "[failed]" in last["text/plain"]
    assert "rank 0 was &lt;killed&gt;" in last["text/html"]
    assert "Try it" not in last["text/html"]
    assert not host.keeper.cards


def test_a_models_card_has_its_aliases_of_now_and_who_serves_it(
    rich: InteractiveShell, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelVersion(name="digits", version=3, metrics={"accuracy": 0.97})
    known = {"digits/3": model}

    def promote(ref: str, alias: str) -> ModelVersion:
        known[ref] = msgspec.structs.replace(known[ref], aliases=(alias,))
        return known[ref]

    def look(ref: str) -> ModelVersion:
        if ref not in known:
            raise NotFoundError("digits has no version 3.")
        return known[ref]

    detail = {"model": "digits", "version": "3", "url": "http://127.0.0.1:1/v2"}
    served = endpoint_row(kind="endpoint", name="digits", detail=detail)
    other = endpoint_row(kind="endpoint", name="older", detail={**detail, "version": "2"})
    runs = {"r-1": served, "r-2": other}
    monkeypatch.setattr(session, "publish", lambda *_, **__: model, raising=False)
    monkeypatch.setattr(session, "promote", promote, raising=False)
    monkeypatch.setattr(session, "model", look, raising=False)
    told: list[dict[str, int] | None] = [None]
    monkeypatch.setattr(session, "aliases", lambda name: told[0], raising=False)
    monkeypatch.setattr(session, "status", lambda: {"runs": runs, "leases": {}, "queue": {}})
    rich.user_ns["net"] = object()
    with capture_output() as captured:
        rich.run_cell("%aios publish net --name digits --live")
        host = load(rich).host
        host.leases_changed()
        (card,) = host.keeper.cards
        assert "digits at http://127.0.0.1:1/v2, 12.4 requests/s" in card._body.value
        assert "older" not in card._body.value
        card._promote.button.click()
        assert not known["digits/3"].aliases, "the first click asks"
        card._promote.button.click()
        assert "champion" in card._body.value
        promote("digits/3", "staging")
        host.models_changed()
        assert "staging" in card._body.value
        told[0] = {"champion": 2, "elsewhere": 3}
        host.keeper.look()
        assert "elsewhere" in card._body.value
        assert "champion" not in card.card().text()
        told[0] = None
        known.clear()
        host.models_changed()
        assert "digits has no version 3." in card._body.value
        host.keeper.leave()
    first, last = (output.data for output in captured.outputs)
    assert WIDGET in first
    assert WIDGET not in last
    assert "http://127.0.0.1:1/v2" not in last["text/plain"], "who serves it is not known any more"


def test_an_endpoint_is_stopped_with_the_second_click(session: FakeSession) -> None:
    stopped: list[str] = []

    def stop(name: str) -> None:
        stopped.append(name)
        raise NotFoundError("No endpoint 'digits' is live.")

    session.stop_endpoint = stop  # type: ignore[attr-defined]
    with capture_output():
        card = EndpointCard(Slot(), session, ENDPOINT, lambda: None)  # type: ignore[arg-type]
        card._stop.button.click()
        assert not stopped
        card._stop.button.click()
        assert stopped == ["digits"]
        assert "No endpoint &#x27;digits&#x27; is live." in card._body.value


def test_the_end_of_a_kernel_leaves_an_endpoints_card_that_says_when_it_was_so(
    session: FakeSession,
) -> None:
    with capture_output() as captured:
        keeper = Keeper(lambda: None)
        keeper.add(EndpointCard(Slot(), session, ENDPOINT, lambda: None))  # type: ignore[arg-type]
        keeper.leave()
    last = captured.outputs[-1].data
    assert WIDGET not in last
    assert ENDPOINT.url in last["text/plain"]
    assert "kernel ended" in last["text/plain"]


def test_augmenting_shows_a_bar_and_then_the_dataset(
    rich: InteractiveShell, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aios_jupyter.data.catalog import Catalog

    def augment(*_: Any, on_progress: Any, **__: Any) -> Any:
        for done in (0, 5, 10):
            on_progress(done, 10)
        return Catalog().get("mnist")

    monkeypatch.setattr(session, "augment", augment, raising=False)
    bar, done, dataset = shown(rich, "%aios augment mnist -o more --policy 'rotate(15)' --seed 1")
    assert WIDGET in bar
    assert "10/10" in done["text/plain"]
    assert "10,000" in dataset["text/plain"]
    assert '<img alt="preview of mnist@' in dataset["text/html"]


def test_a_policy_is_looked_at_before_data_is_made(
    rich: InteractiveShell, session: FakeSession
) -> None:
    (card,) = shown(rich, "%aios augment mnist --preview --policy 'rotate(15), hflip' --seed 3")
    assert set(card) == {"text/plain", "text/html", WIDGET}
    assert "--seed 3" in card["text/plain"]
    assert '<img alt="preview of augmented mnist"' in card["text/html"]


def test_another_policy_is_drawn_and_one_that_is_none_keeps_the_picture() -> None:
    drawn: list[tuple[str, int]] = []

    def draw(policy: str, seed: int) -> bytes:
        if policy == "spin":
            raise UsageError("'spin' is not an operation.\nspin\n^")
        drawn.append((policy, seed))
        return f"{policy} {seed}".encode()

    with capture_output() as captured:
        card = PreviewCard(Slot(), "mnist", "hflip", 0, draw)
        card._field.value = "vflip"
        card._more.click()
        card._field.value = "spin"
        said = card._body.value
        card.close()
    assert drawn == [("hflip", 0), ("vflip", 0), ("vflip", 1)]
    assert "&#x27;spin&#x27; is not an operation.</div>" in said
    last = captured.outputs[-1].data
    assert WIDGET not in last
    assert "vflip" in last["text/plain"]
    assert base64.b64encode(b"vflip 1").decode() in last["text/html"]


def test_only_the_last_previews_stay_live(rich: InteractiveShell, session: FakeSession) -> None:
    line = "%aios augment mnist --preview --policy hflip"
    with capture_output() as captured:
        for _ in range(display.MOST_LIVE + 1):
            rich.run_cell(line)
    closed = [output for output in captured.outputs if WIDGET not in output.data]
    assert len(closed) == 1


# --- html, without a shell


def test_every_text_is_escaped() -> None:
    bad = "<script>alert('x')</script>"
    card = Card(bad, ((bad, bad),), badge=bad, note=bad)
    table = Table((Column("a", bad),), [{"a": bad}], empty="", title=bad)
    feed = Feed(bad, bad, 1, 0.0)
    feed.add({"type": "log", "rank": 0, "text": bad + "\n"})
    feed.add({"type": "metrics", "rank": 0, "values": {bad: 1.0}})
    feed.add({"type": "progress", "rank": 0, "done": 1, "total": 2, "label": bad, "unit": bad})
    feed.end(bad, 1.0, bad)
    for markup in (html.card(card), html.table(table), html.run_static(feed, 1.0)):
        assert "<script" not in markup
        assert "&lt;script&gt;" in markup


def test_a_curve_leaves_out_what_is_not_finite() -> None:
    assert html.curve([1], [1.0]) == ""
    assert html.curve([1, 2], [float("nan"), 1.0]) == ""
    line = html.curve([1, 2, 3, 4], [1.0, float("nan"), float("inf"), 3.0])
    assert line.split('points="')[1].split('"')[0].count(",") == 2
    assert 'aria-label="from 1 to 3"' in line


def test_curves_are_numbers_for_the_extension_and_a_picture_for_others() -> None:
    bad = "<script>alert(1)</script>"
    feed = Feed("r-1", "cell", 1, 0.0)
    for step, value in ((10, 1.0), (20, float("nan")), (30, 0.5)):
        metrics = {"type": "metrics", "rank": 0, "values": {bad: value}, "step": step}
        feed.add(metrics)
    feed.add({"type": "metrics", "rank": 0, "values": {"once": 1.0}})
    shown = curves.bundle(feed)
    (curve,) = shown[MIME]["curves"]
    assert curve == {"name": bad, "x": [10, 20, 30], "y": [1.0, None, 0.5]}
    assert f'data-run="{shown[MIME]["run"]}"' in curves.place(feed)
    json.dumps(shown[MIME], allow_nan=False)
    assert "<script" not in shown["text/html"]
    assert "&lt;script&gt;" in shown["text/html"]


def test_curves_are_shown_with_their_second_value_and_end_with_the_last(
    rich: InteractiveShell, session: FakeSession
) -> None:
    values = [{"type": "metrics", "values": {"loss": 1.0 / n}, "step": n} for n in range(1, 9)]
    session.handle = FakeHandle(values, RunResult("r-1", "succeeded", 2, 1.5, {}, {}))
    with capture_output() as captured:
        rich.run_cell("%%aios train\nx = 1")
    drawn = [output for output in captured.outputs if MIME in output.data]
    assert not drawn[0].update
    assert all(output.update for output in drawn[1:])
    (last,) = drawn[-1].data[MIME]["curves"]
    assert last["x"] == list(range(1, 9))


def test_a_table_draws_meters_and_says_when_it_is_empty() -> None:
    columns = (Column("use", "use", right=True, meter="percent"),)
    drawn = html.table(Table(columns, [{"use": "140%", "percent": 140.0}], empty="none"))
    assert "width:100.0%" in drawn
    assert "none" in html.table(Table(columns, [], empty="none"))


def test_top_is_a_card_that_stays_true_and_gives_its_place_to_the_next(
    rich: InteractiveShell, session: FakeSession
) -> None:
    with capture_output() as captured:
        rich.run_cell("%aios top")
        host = load(rich).host
        (card,) = host.keeper.cards
        assert "a.ipynb (r-1)" in card._body.value
        (bundle,) = (output.data for output in captured.outputs)
        assert set(bundle) == {"text/plain", "text/html", WIDGET}
        free = {id: {**row, "holder": None} for id, row in SNAPSHOT["devices"].items()}
        session.seen = {**SNAPSHOT, "devices": free}
        host.keeper.look()
        assert "a.ipynb" not in card._body.value
        rich.run_cell("%aios top")
        host.keeper.look()
        (newer,) = host.keeper.cards
        assert card.closed and newer is not card
        newer.box.children[-1].children[0].click()
        host.keeper.look()
        assert not host.keeper.cards
    last = captured.outputs[-1].data
    assert set(last) == {"text/plain", "text/html"}
    assert "3 simulated GPUs" in last["text/plain"]


def test_top_in_a_plain_front_end_is_printed_once(
    shell: InteractiveShell, session: FakeSession
) -> None:
    with capture_output() as captured:
        shell.run_cell("%aios top")
    assert captured.stdout.count("cluster default") == 1
