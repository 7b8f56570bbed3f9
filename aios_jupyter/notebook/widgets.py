"""Live cards: ipywidgets with buttons while something goes on, static HTML when it has ended.

ipywidgets is imported with the first card.

Each card draws into a `Slot`, one output of a cell. While the card lives, the output is a widget
with static HTML and text beside it; `close` replaces it by those two alone, so that a saved
notebook, nbconvert and papermill keep something readable without any widget state. Handlers of
buttons run in a subshell's thread while the cell blocks; they only call thread-safe methods of the
session and mark the card, whose own thread draws.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..commands.feed import Feed
from ..commands.host import starts_text, waiting_text
from ..commands.views import Card
from ..errors import AiosError
from ..units import format_duration
from . import curves, html

if TYPE_CHECKING:
    from ..session import RunHandle, Session

DRAW_EVERY = 0.2
CURVES_EVERY = 1.0
CONFIRM_FOR = 4.0
LOG_LINES = 60


def _kit() -> Any:
    import ipywidgets

    return ipywidgets


class Slot:
    """One output of a cell, shown once and then replaced in place."""

    def __init__(self) -> None:
        self._handle: Any = None

    @property
    def shown(self) -> bool:
        """Whether there is something in it."""
        return self._handle is not None

    def show(self, text: str, markup: str, widget: Any = None) -> None:
        """Show, or replace, with a plain text, its HTML, and the widget where there is one."""
        bundle: dict[str, Any] = {"text/plain": text, "text/html": markup}
        if widget is not None:
            bundle["application/vnd.jupyter.widget-view+json"] = {
                "version_major": 2,
                "version_minor": 0,
                "model_id": widget.model_id,
            }
        self.put(bundle)

    def put(self, bundle: dict[str, Any]) -> None:
        """Show, or replace, with these forms by MIME type."""
        if self._handle is None:
            from IPython.display import DisplayHandle

            self._handle = DisplayHandle()  # type: ignore[no-untyped-call]
            self._handle.display(bundle, raw=True)
        else:
            self._handle.update(bundle, raw=True)


class Live:
    """Base of the live cards.

    A subclass makes `body` (its widgets) and gives `text` and `markup`, the static forms.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.box: Any = None
        self.state = ""
        self.closed = False
        self._lock = threading.Lock()

    def text(self) -> str:
        """The card as plain text."""
        raise NotImplementedError

    def markup(self) -> str:
        """The card as static HTML."""
        raise NotImplementedError

    def open(self, children: list[Any]) -> None:
        """Show the card."""
        self.box = _kit().VBox([pane(html.STYLE), *children])
        self.box.add_class("aios-card")
        self.slot.show(self.text(), self.markup(), self.box)

    def close(self) -> None:
        """Replace the card by its static form; a second call does nothing."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        self.slot.show(self.text(), self.markup())
        _close(self.box)


def _close(widget: Any) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if part is not None:
            part.close()
    widget.close()


def pane(value: str = "", width: str = "100%") -> Any:
    """A widget for static HTML."""
    return _kit().HTML(value, layout=_kit().Layout(width=width, margin="0"))


def fill(widget: Any, value: str) -> None:
    """Give a pane another value; the same one again is not sent."""
    if widget.value != value:
        widget.value = value


def row_of(*children: Any) -> Any:
    """Widgets beside each other."""
    return _kit().HBox(list(children), layout=_kit().Layout(margin="4px 0 0", align_items="center"))


def push_button(label: str, icon: str, on_click: Callable[[], None], *, style: str = "") -> Any:
    """A button that answers while a cell runs."""
    button = _kit().Button(
        description=label, icon=icon, button_style=style, layout=_kit().Layout(width="auto")
    )
    button.on_click(lambda _: on_click())
    return _answering(button)


def text_field(value: str, on_change: Callable[[str], None]) -> Any:
    """A line of text that tells of what is in it when Enter is pressed, or it is left."""
    layout = _kit().Layout(width="100%", max_width="36rem")
    field = _kit().Text(value, continuous_update=False, layout=layout)
    field.observe(lambda change: on_change(str(change["new"])), names="value")
    return _answering(field)


def _answering(widget: Any, **state: Any) -> Any:
    """Set a control's state, and let it answer while a cell blocks the kernel's main loop.

    ipykernel (7.4) takes what a front end says about a comm to the loop that wrote to that comm
    last: for a control made by a cell, the one that the cell blocks. When it does not know a writer,
    the front end's own choice holds, a subshell that is free.
    """
    for name, value in state.items():
        setattr(widget, name, value)
    vars(widget.comm).pop("_reply_subshell_id", None)
    return widget


class Confirmed:
    """A button for what cannot be undone: the first click asks, a second one within seconds acts."""

    def __init__(self, label: str, icon: str, act: Callable[[], None]) -> None:
        self._label, self._act = label, act
        self._asked = 0.0
        self.button = push_button(label, icon, self._clicked)

    def _clicked(self) -> None:
        now = time.monotonic()
        if now - self._asked > CONFIRM_FOR:
            self._asked = now
            _answering(self.button, description=f"{self._label}?", button_style="danger")
            return
        _answering(self.button, disabled=True)
        self._act()

    def settle(self) -> None:
        """Ask again when the second click did not come in time."""
        if self._asked and time.monotonic() - self._asked > CONFIRM_FOR:
            self._asked = 0.0
            _answering(self.button, description=self._label, button_style="")


class QueueCard(Live):
    """A request that waits: position, reason, Cancel."""

    def __init__(self, slot: Slot, session: Session, what: str) -> None:
        super().__init__(slot)
        self._session, self._what = session, what
        self.row: dict[str, Any] = {}
        self.state = "waiting"
        self._body = pane()
        self._cancel = push_button("Cancel", "times", self._cancelled)

    def text(self) -> str:
        """The place in the queue, as a line."""
        return waiting_text(self._what, self.row)

    def markup(self) -> str:
        """The place in the queue, as a card."""
        return html.page(html.framed(html.card(self._card())))

    def _card(self) -> Card:
        return Card(
            self._what,
            badge=self.state,
            fields=(
                ("position", str(self.row.get("position", "?"))),
                ("because", str(self.row.get("reason") or "")),
                ("starts", starts_text(self.row)),
            ),
        )

    def update(self, row: dict[str, Any]) -> None:
        """Show a new place in the queue."""
        self.row = row
        fill(self._body, html.part(html.card(self._card())))
        if self.box is None:
            self.open([self._body, row_of(self._cancel)])

    def _cancelled(self) -> None:
        _answering(self._cancel, disabled=True)
        try:
            self._session.cancel(str(self.row["id"]))
        except AiosError as error:
            fill(self._body, html.part(html.card(self._card()), html.note(str(error))))


class ProgressCard(Live):
    """A task of known length."""

    def __init__(self, slot: Slot, title: str) -> None:
        super().__init__(slot)
        self._feed = Feed("", title, 1, time.time())
        self._title = title
        self._body = pane()
        self._drawn = 0.0

    def text(self) -> str:
        """How far it is, as a line."""
        return f"{self._title}: {self._feed.progress_text()}"

    def markup(self) -> str:
        """How far it is, as a card."""
        return html.page(html.framed(self._inside()))

    def _inside(self) -> str:
        took = format_duration(self._feed.seconds(time.time()))
        return html.head(self._title, extra=took) + html.run_progress(self._feed)

    def advance(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        self._feed.progress = {"done": done, "total": total}
        now = time.monotonic()
        if self.box is not None and now - self._drawn < DRAW_EVERY and done < total:
            return
        self._drawn = now
        fill(self._body, html.part(self._inside()))
        if self.box is None:
            self.open([self._body])


class RunCard(Live):
    """A run: progress, metrics and their curves, one rank's output, Stop.

    While it lives the curves are an output of their own, below the card; our extension draws them
    within it, where the card keeps a place for them. When it has ended the card has them itself.
    """

    def __init__(self, slot: Slot, handle: RunHandle, feed: Feed) -> None:
        super().__init__(slot)
        self._handle, self.feed = handle, feed
        self._head, self._progress, self._metrics, self._log = (pane() for _ in range(4))
        self._place = pane(curves.place(feed))
        self._curves = Slot()
        self._drawn: tuple[int, float] = (0, 0.0)
        self._stop = push_button("Stop", "stop", self._stopped, style="")
        ranks = [(f"rank {rank}", rank) for rank in range(feed.world_size)]
        self._rank = _kit().Dropdown(
            options=ranks, layout=_kit().Layout(width="auto", min_width="90px")
        )
        self._rank.observe(lambda _: self._draw(), names="value")
        _answering(self._rank)
        self._note = ""
        # The cell's thread adds events while the card's own thread reads them.
        self._feed_lock = threading.RLock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._redraw, name="aios-run-card", daemon=True)

    def text(self) -> str:
        """The run as lines."""
        summary, *tail = self.feed.text(time.time()).split("\n")
        return "\n".join([summary, *curves.lines(self.feed), *tail])

    def markup(self) -> str:
        """The run as static HTML."""
        picture = curves.picture(self.feed)
        drawn = curves.place(self.feed, picture) if picture else ""
        return html.run_static(self.feed, time.time(), drawn)

    def start(self) -> None:
        """Show the card and keep it up to date."""
        self._draw()
        controls = [self._stop] if self.feed.world_size == 1 else [self._rank, self._stop]
        parts = [self._head, self._progress, self._metrics, self._place, self._log]
        self.open([*parts, row_of(*controls)])
        self._thread.start()

    def add(self, event: dict[str, Any]) -> None:
        """Take one event of the run."""
        with self._feed_lock:
            self.feed.add(event)
        # Here and not in the card's thread: the output belongs to the cell that this thread runs.
        if not self._curves.shown and curves.drawable(self.feed):
            self._draw_curves()

    def finish(self) -> None:
        """Stop drawing and leave the static form."""
        self._done.set()
        # An interrupt may have come before it was started.
        if self._thread.ident is not None:
            self._thread.join()
        if self.box is not None:
            self.close()
        if self._curves.shown:
            self._curves.put(curves.bundle(self.feed, ended=self.closed))

    def stopping(self) -> None:
        """Say that the run has been told to end."""
        _answering(self._stop, disabled=True, description="Stopping…")

    def _redraw(self) -> None:
        while not self._done.wait(DRAW_EVERY):
            self._draw()
            if self._curves.shown:
                self._draw_curves()

    def _draw(self) -> None:
        feed = self.feed
        note = html.note(self._note) if self._note else ""
        with self._feed_lock:
            head = html.part(html.run_head(feed, _whole(feed)), note)
            progress, metrics = (
                html.run_progress(feed),
                html.run_metrics(feed) + html.run_usage(feed),
            )
            tail = feed.tail(self._rank.value or 0, LOG_LINES)
        fill(self._head, head)
        fill(self._progress, html.part(progress))
        fill(self._metrics, html.part(metrics))
        fill(self._log, html.part(html.scrolled(html.log(tail))))

    def _draw_curves(self) -> None:
        """Show the curves, where there is something new, about once a second."""
        with self._feed_lock:
            seen = sum(series.seen for series in self.feed.series.values())
            known, drawn = self._drawn
            now = time.monotonic()
            if seen == known or now - drawn < CURVES_EVERY:
                return
            self._drawn = (seen, now)
            bundle = curves.bundle(self.feed)
        self._curves.put(bundle)

    def _stopped(self) -> None:
        self.stopping()
        try:
            self._handle.stop("stopped with the button of its card")
        except AiosError as error:
            self._note = str(error)


def _whole(feed: Feed) -> float:
    """Now, in whole seconds of the run: a clock that ticks once a second, not at each drawing."""
    now = time.time()
    seconds = feed.seconds(now)
    return now if seconds < 1 else feed.started + int(seconds)
