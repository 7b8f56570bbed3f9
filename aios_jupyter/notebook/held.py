"""Cards of what outlives its cell: leases, endpoints and models, kept true while nobody runs a cell.

`Keeper` looks at the cluster now and then and hands each card what it sees; a card whose subject has
ended is replaced by its static form.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ..commands.endpoints import endpoint_card
from ..commands.leases import lease_card
from ..commands.models import model_card
from ..commands.views import Card, Table, number
from ..errors import AiosError
from ..units import format_duration
from . import html
from .widgets import Confirmed, Live, Slot, fill, pane, push_button, row_of

if TYPE_CHECKING:
    from ..models.registry import ModelVersion
    from ..schema import Lease
    from ..session import Endpoint, Session

LOOK_EVERY = 2.0
# What the button of a model's card makes of it.
ALIAS = "champion"
# What a lease's card says besides its end.
NOTICED = ("warned", "idle_since", "idle_ends")

View = dict[str, Any]
Overview = Callable[[View, float], list[Table]]


class Held(Live):
    """A card with buttons; `see` is called with the cluster's state, `changed` by its buttons."""

    def __init__(self, slot: Slot, session: Session, changed: Callable[[], None]) -> None:
        super().__init__(slot)
        self._session, self._changed = session, changed
        self._note = ""
        self._body = pane()

    def text(self) -> str:
        """The card as lines."""
        return self.card().text()

    def markup(self) -> str:
        """The card as static HTML."""
        return html.page(html.framed(html.card(self.card())))

    def card(self) -> Card:
        """What it says now."""
        raise NotImplementedError

    def see(self, view: View) -> None:
        """Take in what the broker shows."""
        raise NotImplementedError

    def left(self) -> None:
        """The kernel ends: leave the static form behind."""
        raise NotImplementedError

    def draw(self) -> None:
        """Show what it says now."""
        fill(self._body, html.part(html.card(self.card())))

    def ended(self, state: str) -> None:
        """There is nothing left to hold."""
        self.state = state
        self.close()

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
            self._note = ""
        except AiosError as error:
            self._note = str(error)
        self.draw()
        self._changed()


class LeaseCard(Held):
    """A lease that is held: devices, time left, Extend, Release."""

    def __init__(
        self, slot: Slot, session: Session, lease: Lease, changed: Callable[[], None]
    ) -> None:
        super().__init__(slot, session, changed)
        self.lease = lease
        self.state = "active"
        self._release = Confirmed("Release", "eject", self._released)
        buttons = [self._release.button]
        if lease.expires is not None:
            self._length = lease.expires - lease.granted
            label = f"Extend {format_duration(self._length)}"
            buttons.insert(0, push_button(label, "clock-o", self._extended))
        self.draw()
        self.open([self._body, row_of(*buttons)])

    def card(self) -> Card:
        """Devices, time left, and what is to be known of its end."""
        card = lease_card(self.lease, time.time())
        fields = card.fields
        if self.state != "active":
            fields = tuple(field for field in fields if field[0] != "time")
        note = self._note or (card.note if self.state == "active" else "")
        return Card(card.title, fields, badge=self.state, note=note)

    def see(self, view: View) -> None:
        """Draw it with the end that it has now; one that was preempted is followed by another."""
        held = {row.get("request", row["id"]): row for row in view["leases"].values()}
        row = view["leases"].get(self.lease.id) or held.get(self.lease.request)
        waits = view["queue"].get(self.lease.request)
        if waits is not None:
            self._preempted(f"It waits again: {waits['reason']}")
        elif row is None or (row["state"] != "active" and not row.get("preempted")):
            self.ended("released")
        elif row["state"] != "active":
            self._preempted(row["reason"])
        else:
            if row["id"] != self.lease.id:
                self._follow(row["id"])
            noticed = {name: row[name] for name in ("expires", *NOTICED) if name in row}
            self.lease = msgspec.structs.replace(self.lease, **noticed)
            self._release.settle()
            self.draw()

    def left(self) -> None:
        """It ends with the kernel."""
        self.ended("ended with its kernel")

    def _preempted(self, note: str) -> None:
        """Its devices were taken for others; its request waits for a lease that follows."""
        self.state, self._note = "preempted", note
        self.draw()

    def _follow(self, lease: str) -> None:
        self.lease = next((one for one in self._session.leases() if one.id == lease), self.lease)
        self.state, self._note = "active", ""

    def _released(self) -> None:
        self._try(lambda: self._session.release(self.lease.id))

    def _extended(self) -> None:
        def extend() -> None:
            self.lease = self._session.extend(self.lease.id, self._length)

        self._try(extend)


class EndpointCard(Held):
    """A model that answers over HTTP: where, how much it is asked, Try it (in JupyterLab), Stop."""

    def __init__(
        self, slot: Slot, session: Session, endpoint: Endpoint, changed: Callable[[], None]
    ) -> None:
        super().__init__(slot, session, changed)
        self.endpoint = endpoint
        self.state = "ready"
        self._metrics: Mapping[str, float] = {}
        self._stop = Confirmed("Stop", "stop", self._stopped)
        self.draw()
        trial = pane(html.trial(endpoint.run), width="auto")
        self.open([self._body, row_of(trial, self._stop.button)])

    def card(self) -> Card:
        """Where it is, what it serves now, and how it does."""
        return endpoint_card(self.endpoint, self._metrics, self.state, self._note)

    def see(self, view: View) -> None:
        """Draw it with the version that it serves now, and its traffic."""
        row = view["runs"].get(self.endpoint.run)
        if row is None or row["ended"] is not None:
            self._note = (row or {}).get("reason", "")
            self.ended("failed" if row and row["state"] == "failed" else "stopped")
            return
        version = str(row["detail"].get("version", self.endpoint.version))
        self.endpoint = msgspec.structs.replace(self.endpoint, version=version)
        self._metrics = row["metrics"]
        self.state = "ready" if row["state"] == "running" else row["state"]
        self._stop.settle()
        self.draw()

    def left(self) -> None:
        """It may well go on."""
        self._note = "So it was when this notebook's kernel ended."
        self.close()

    def _stopped(self) -> None:
        self._try(lambda: self._session.stop_endpoint(self.endpoint.name))


class ModelCard(Held):
    """A published version: the aliases that it has now, the endpoints that serve it, and a button."""

    def __init__(
        self,
        slot: Slot,
        session: Session,
        version: ModelVersion,
        changed: Callable[[], None],
    ) -> None:
        super().__init__(slot, session, changed)
        self.version = version
        self._served = ""
        self._promote = Confirmed(f"Promote to {ALIAS}", "arrow-up", self._promoted)
        self.draw()
        self.open([self._body, row_of(self._promote.button)])

    def card(self) -> Card:
        """What is known of it, and where it is served."""
        card = model_card(self.version)
        fields = (*card.fields, ("served", self._served))
        return Card(card.title, fields, badge=card.badge, note=self._note or card.note)

    def see(self, view: View) -> None:
        """Draw it with its aliases, whoever has moved them, and the endpoints that serve it now."""
        moved = self._session.aliases(self.version.name)
        if moved is not None:
            own = sorted(alias for alias, number in moved.items() if number == self.version.version)
            self.version = msgspec.structs.replace(self.version, aliases=tuple(own))
        served = [row for row in view["runs"].values() if self._serves(row)]
        self._served = "; ".join(map(_served_text, served))
        self._promote.settle()
        self.draw()

    def left(self) -> None:
        """The registry keeps it; who serves it is no longer known."""
        self.ended("")

    def ended(self, state: str) -> None:
        """Nobody looks after it any more."""
        self._served = ""
        super().ended(state)

    def _serves(self, row: Mapping[str, Any]) -> bool:
        about = row["detail"]
        version = (str(about.get("model")), str(about.get("version")))
        ours = (self.version.name, str(self.version.version))
        return row["kind"] == "endpoint" and row["ended"] is None and version == ours

    def moved(self) -> None:
        """Aliases have moved. The registry is asked then alone: it may be far, and slow."""

        def ask() -> None:
            self.version = self._session.model(self.version.ref)

        self._try(ask)

    def _promoted(self) -> None:
        def promote() -> None:
            self.version = self._session.promote(self.version.ref, ALIAS)

        self._try(promote)


def _served_text(row: Mapping[str, Any]) -> str:
    rate = row["metrics"].get("requests_per_second")
    asked = f", {number(rate)} requests/s" if rate is not None else ""
    return f"{row['name']} at {row['detail'].get('url', '?')}{asked}"


class TopCard(Held):
    """The cluster as it is now, until it is closed."""

    def __init__(self, slot: Slot, session: Session, view: View, overview: Overview) -> None:
        super().__init__(slot, session, lambda: None)
        self._overview = overview
        self._view = view
        self.draw()
        self.open([self._body, row_of(push_button("Close", "times", self.close))])

    def text(self) -> str:
        """Its tables as lines."""
        return "\n\n".join(table.text() for table in self._tables())

    def markup(self) -> str:
        """Its tables as static HTML."""
        return html.page(html.framed(*map(html.table, self._tables())))

    def _tables(self) -> list[Table]:
        return self._overview(self._view, time.time())

    def see(self, view: View) -> None:
        """Draw it anew."""
        self._view = view
        self.draw()

    def draw(self) -> None:
        """Show the tables as they are now."""
        fill(self._body, html.part(*map(html.table, self._tables())))

    def left(self) -> None:
        """Leave what it saw last."""
        self.close()


class Keeper:
    """Keeps cards true.

    Parameters
    ----------
    look
        Gives the cluster's state; a sentence says how everything ended, None that the cluster is
        away for now.
    """

    def __init__(self, look: Callable[[], View | str | None]) -> None:
        self._look = look
        self._lock = threading.RLock()
        self._watcher: threading.Thread | None = None
        self.cards: list[Held] = []

    def add(self, card: Held) -> None:
        """Keep one more, until it has ended."""
        self.cards.append(card)
        if self._watcher is None or not self._watcher.is_alive():
            self._watcher = threading.Thread(target=self._watch, name="aios-cards", daemon=True)
            self._watcher.start()

    def look(self) -> None:
        """Draw all cards as things are now, and let go of those that have ended."""
        with self._lock:
            view = self._look() if self.cards else None
            if isinstance(view, str):
                self.end(view)
            elif view is not None:
                for card in self.cards:
                    card.see(view)
                self.cards = [card for card in self.cards if not card.closed]

    def end(self, state: str) -> None:
        """All of them have ended."""
        with self._lock:
            cards, self.cards = self.cards, []
            for card in cards:
                card.ended(state)

    def leave(self) -> None:
        """The kernel ends: leave static cards behind."""
        cards, self.cards = self.cards, []
        for card in cards:
            card.left()

    def _watch(self) -> None:
        while self.cards:
            time.sleep(LOOK_EVERY)
            self.look()
