"""The notebook's host: what verbs show here, and how.

Nothing tells a kernel whether somebody looks at it or papermill runs it, so this does not guess: a
live card is sent as a widget together with HTML and plain text, and replaced by those two when it
ends (`widgets.Slot`). A terminal's IPython gets plain lines. `AIOS_DISPLAY=plain` or `rich`
decides otherwise.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commands.charts import Panel
from ..commands.host import (
    Advance,
    Host,
    Waiting,
    cancel_quietly,
    feed_of,
    finish,
    read_file,
)
from ..commands.views import Card, Table
from ..errors import ClusterError, NoClusterError, NotFoundError, RunError, UsageError
from . import charts, html

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ..models.registry import ModelVersion
    from ..schema import Lease
    from ..session import Endpoint, RunHandle, RunResult, Session
    from .held import Keeper
    from .widgets import Live, RunCard, Slot

_MISSING = object()
# Of cards of models and of policies, which nothing ends but the kernel.
MOST_LIVE = 3


def rich(shell: InteractiveShell) -> bool:
    """Whether front ends of this shell can show HTML and widgets."""
    wish = os.environ.get("AIOS_DISPLAY", "")
    if wish not in {"", "plain", "rich"}:
        raise UsageError(
            f"AIOS_DISPLAY={wish!r} is neither 'plain' nor 'rich'; correct or unset it."
        )
    return wish == "rich" if wish else hasattr(shell, "kernel")


class NotebookHost(Host):
    """A notebook, or a terminal's IPython."""

    shell_leases = False

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__()
        self.shell = shell
        self.label = notebook_name(shell)
        self._slot: Slot | None = None
        self._origins: dict[str, tuple[Any, str]] = {}
        self.keeper: Keeper | None = None
        self._shown: tuple[Any, int] = (None, -1)
        self._previews: list[Live] = []
        atexit.register(self._leaving)

    @property
    def shows_images(self) -> bool:
        """Front ends that show HTML show pictures."""
        return rich(self.shell)

    def session(self, *, start: bool = True) -> Session:
        """The session of this notebook, with whose leases the shells of its cells work too."""
        session = super().session(start=start)
        session.for_children = True
        return session

    # --- names

    def value(self, name: str) -> Any:
        """The variable of that name, or what the file of that name holds."""
        variables = self.shell.user_ns
        if name in variables:
            return variables[name]
        if Path(name).expanduser().is_file():
            return read_file(name)
        near = difflib.get_close_matches(name, [n for n in variables if n[:1] != "_"], n=1)
        meant = f"; did you mean '{near[0]}'?" if near else "."
        raise NotFoundError(f"The notebook has no variable '{name}'{meant}")

    @property
    def variables(self) -> Mapping[str, Any]:
        """The notebook's variables."""
        variables: dict[str, Any] = self.shell.user_ns
        return variables

    def assign(self, name: str, value: Any) -> None:
        """Make a value a variable of the notebook."""
        if not name.isidentifier():
            raise UsageError(f"'{name}' is not a variable's name; write one like df.")
        self.shell.user_ns[name] = value

    def begin(self, cell: str | None) -> None:
        """A verb begins: `cell` is the cell below it, None for a line magic."""
        self.cell = cell
        self._slot = None

    def run_cell(self, options: dict[str, Any], flags: dict[str, Any]) -> Any:
        """Run the cell on the ranks of a lease, and bring back what `--pull` names."""
        assert self.cell is not None
        pushed, named = self._pushed(self.cell, flags["push"] or (), flags["no_push"] or ())
        count = self.shell.displayhook.prompt_count
        options["name"] = options["name"] or f"cell {count}"
        session = self.session()
        source = self.cell

        def start(given: dict[str, Any]) -> RunHandle:
            return session.start(
                source,
                cell=True,
                filename=f"cell-{count}.py",
                push=pushed,
                explicit=named,
                pull=flags["pull"] or (),
                **given,
            )

        if options.get("detach"):
            with self.waiting(session, "devices") as on_wait:
                return start({**options, "on_wait": on_wait})
        result = self.follow_on(session, start, options, verbose=flags["verbose"])
        self.take(result)
        return result

    def take(self, result: RunResult) -> None:
        """Put what a run brought back among the notebook's variables."""
        self.shell.user_ns.update(result.pulled)
        self._origins.update({name: (value, result.id) for name, value in result.pulled.items()})

    def origin(self, value: Any) -> str | None:
        """The run from which this very object was pulled last."""
        return next((run for pulled, run in self._origins.values() if pulled is value), None)

    def derived(self, value: Any, made: Any) -> None:
        """What was made from a pulled value comes from its run too."""
        run = self.origin(value)
        if run is not None:
            self._origins[f"{run} {id(made)}"] = (made, run)

    def _pushed(
        self, source: str, push: Sequence[str], no_push: Sequence[str]
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Variables that the cell gets: those that it reads and those that were named."""
        from ..runs.cells import names_read

        variables, hidden = self.shell.user_ns, self.shell.user_ns_hidden
        read = {
            name
            for name in names_read(source)
            if name in variables and hidden.get(name, _MISSING) is not variables[name]
        }
        values = {name: variables[name] for name in sorted(read - set(no_push))}
        values.update({name: self.value(name) for name in push})
        return values, tuple(push)

    # --- static views

    def show(self, view: Table | Card | Panel, value: Any = None) -> Any:
        """Show a table or card; `value` becomes the magic's result and is not shown again."""
        if rich(self.shell):
            self._take_slot().show(view.text(), html.page(_inside(view)))
        else:
            super().show(view)
        return self._mark(value)

    def _mark(self, value: Any) -> Any:
        """Note that this object has been shown as a card; gives it back."""
        self._shown = (value, self.shell.execution_count)
        return value

    def was_shown(self, value: Any) -> bool:
        """Whether this very object was the last that the current cell showed as a card."""
        shown, count = self._shown
        return value is not None and shown is value and count == self.shell.execution_count

    def say(self, text: str) -> None:
        """One line of plain text, among the cell's output."""
        import click

        click.echo(text)

    def _take_slot(self) -> Slot:
        """The output that a card which has just ended left to its successor, or a new one."""
        from .widgets import Slot

        slot, self._slot = self._slot, None
        return slot or Slot()

    def result(self, value: Any) -> Any:
        """Out[…] shows it."""
        return value

    # --- live cards

    def lease(self, session: Session, lease: Lease, card: Card) -> Any:
        """Show a lease with buttons; the card ends with the lease."""
        if not rich(self.shell):
            return self.show(card, lease)
        from .held import LeaseCard

        slot = self._take_slot()
        self._kept().add(LeaseCard(slot, session, lease, self.leases_changed))
        return self._mark(lease)

    def endpoint(self, session: Session, endpoint: Endpoint, card: Card) -> Any:
        """Show an endpoint with its traffic and a button; the card ends with the endpoint."""
        if not rich(self.shell):
            return self.show(card, endpoint)
        from .held import EndpointCard

        slot = self._take_slot()
        self._kept().add(EndpointCard(slot, session, endpoint, self.leases_changed))
        return self._mark(endpoint)

    def model(self, session: Session, version: ModelVersion, card: Card) -> Any:
        """Show a published version with who serves it and a button; the last few stay live."""
        if not rich(self.shell):
            return self.show(card, version)
        from .held import ModelCard

        keeper = self._kept()
        keeper.add(ModelCard(self._take_slot(), session, version, self.leases_changed))
        shown = [one for one in keeper.cards if isinstance(one, ModelCard)]
        for old in shown[:-MOST_LIVE]:
            old.left()
        return self._mark(version)

    def watch(
        self,
        session: Session,
        overview: Callable[[dict[str, Any], float], list[Table]],
        every: float,
    ) -> None:
        """Show the cluster in a card that stays true; a newer one takes an older one's place."""
        if not rich(self.shell):
            return super().watch(session, overview, every)
        from .held import TopCard

        keeper = self._kept()
        for old in keeper.cards:
            if isinstance(old, TopCard):
                old.close()
        keeper.add(TopCard(self._take_slot(), session, session.status(), overview))
        return None

    def models_changed(self) -> None:
        """Have the cards of models show the aliases that they have now."""
        if not self.keeper:
            return
        from .held import ModelCard

        for card in self.keeper.cards:
            if isinstance(card, ModelCard):
                card.moved()

    def policy(self, source: str, policy: str, seed: int, draw: Callable[[str, int], bytes]) -> Any:
        """Show what a policy does with a field for others; the last few cards stay live."""
        if not rich(self.shell):
            return super().policy(source, policy, seed, draw)
        from .previews import PreviewCard

        self._previews.append(PreviewCard(self._take_slot(), source, policy, seed, draw))
        for old in self._previews[:-MOST_LIVE]:
            old.close()
        del self._previews[:-MOST_LIVE]
        return None

    def _kept(self) -> Keeper:
        from .held import Keeper

        self.keeper = self.keeper or Keeper(self._view)
        return self.keeper

    def leases_changed(self) -> None:
        """Draw the cards of leases and endpoints again, and end those whose subject has ended."""
        if self.keeper:
            self.keeper.look()

    def _view(self) -> dict[str, Any] | str | None:
        """What the broker shows; how leases ended where it is gone; None: it is away."""
        # Asking through a session would start a cluster that somebody has just stopped.
        session = self.open_session if cluster_exists() else None
        if session is None:
            return "ended with its cluster"
        try:
            return session.status()
        except NoClusterError:
            return "ended with its cluster"
        except ClusterError:
            return None

    def close(self) -> None:
        """Close the session, with which its leases end."""
        super().close()
        if self.keeper:
            self.keeper.end("released")

    def _leaving(self) -> None:
        """The kernel ends, and its leases with it: leave static cards behind."""
        for card in self._previews:
            card.close()
        if self.keeper:
            self.keeper.leave()

    @contextlib.contextmanager
    def waiting(self, session: Session, what: str) -> Iterator[Waiting]:
        """Show the place in the queue with a Cancel button; interrupting the cell cancels too."""
        if not rich(self.shell):
            with super().waiting(session, what) as on_wait:
                yield on_wait
            return
        from .widgets import QueueCard

        card = QueueCard(self._take_slot(), session, what)
        try:
            yield card.update
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                cancel_quietly(session, str(card.row.get("id", "")))
            card.state = "gave up"
            if card.box is not None:
                card.close()
            raise
        self._leave(card, "granted")

    def _leave(self, card: Live, state: str) -> None:
        """End a card whose output the next card takes over."""
        if card.box is not None:
            card.state = state
            card.close()
        self._slot = card.slot

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[Advance]:
        """Show a bar."""
        if not rich(self.shell):
            with super().progress(title) as advance:
                yield advance
            return
        from .widgets import ProgressCard

        card = ProgressCard(self._take_slot(), title)
        try:
            yield card.advance
        except BaseException:
            if card.box is not None:
                card.close()
            raise
        self._leave(card, "done")

    def follow(self, session: Session, handle: RunHandle, *, verbose: bool = False) -> RunResult:
        """Show a run until it ends; its Stop button works while the cell waits here."""
        if not rich(self.shell):
            result = super().follow(session, handle, verbose=verbose)
            self._mark(result)
            return result
        from .widgets import RunCard

        feed = feed_of(handle)
        card = RunCard(self._take_slot(), handle, feed)
        try:
            card.start()
            for event in handle.events():
                card.add(event)
            result = finish(session, handle, feed)
        except KeyboardInterrupt:
            self._interrupted(handle, card)
            feed.end("stopped", time.time(), "interrupted")
            raise
        finally:
            if feed.live:
                feed.end("failed", time.time())
            card.finish()
        self._mark(result)
        return result

    def _interrupted(self, handle: RunHandle, card: RunCard) -> None:
        """The first interrupt stops the run and waits for that; a second one does not wait."""
        if not handle.ours:
            return
        card.stopping()
        handle.stop("interrupted")
        with contextlib.suppress(RunError):
            handle.wait()


def _inside(view: Table | Card | Panel) -> str:
    if isinstance(view, Panel):
        return charts.panel(view)
    return html.table(view) if isinstance(view, Table) else html.framed(html.card(view))


def cluster_exists() -> bool:
    """Whether a cluster was started and not stopped since."""
    from ..cluster.embedded import Paths

    return Paths.current().connection.exists()


def notebook_name(shell: InteractiveShell) -> str:
    """The name of this notebook as front ends give it, or "notebook" or "ipython"."""
    path = os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__")
    if path:
        return Path(str(path)).name
    return "notebook" if hasattr(shell, "kernel") else "ipython"
