"""Where a verb runs: this is the shell's host; `notebook/display.py` has the notebook's.

A verb asks its host for the session, for a value by name, and to show things; so one verb serves
the console script, the line magic and the cell magic.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import AiosError, ConflictError, NotFoundError, RunError, UsageError
from .charts import Panel
from .feed import Feed
from .views import Card, Table, printable

if TYPE_CHECKING:
    from ..models.registry import ModelVersion
    from ..schema import Lease
    from ..session import Endpoint, RunHandle, RunResult, Session

Waiting = Callable[[dict[str, Any]], None]
Advance = Callable[[int, int], None]


class Host:
    """The shell.

    Attributes
    ----------
    cell
        The text of the cell under a cell magic, None elsewhere.
    label
        What people see beside leases and runs from here.
    shell_leases
        Leases belong to the calling shell and outlive this process.
    """

    cell: str | None = None
    label: str = "terminal"
    shell_leases = True

    @property
    def shows_images(self) -> bool:
        """Whether pictures are worth making."""
        return False

    def __init__(self) -> None:
        self._session: Session | None = None
        self._may_start = False

    def session(self, *, start: bool = True) -> Session:
        """The session of this process, opened on first use.

        One that was opened by a verb that only looks (`start=False`) gives way to one that may
        start the cluster; it cannot hold leases yet.

        Raises
        ------
        ClusterError
            There is no cluster and `start` is False, or it cannot be started.
        """
        if start and not self._may_start:
            self.close()
        if self._session is None:
            from ..session import connect

            self._session = connect(start=start, label=self.label, shell=self.shell_leases)
            self._session.on_notice = self.notice
            self._may_start = start
        return self._session

    @property
    def open_session(self) -> Session | None:
        """The session when there is one already."""
        return self._session

    def close(self) -> None:
        """Close the session; leases that belong to the shell stay."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def value(self, name: str) -> Any:
        """The object that a verb's argument names: in a shell, what a file holds.

        Raises
        ------
        NotFoundError
            There is no such file.
        UsageError
            Its kind is not one that can be read.
        """
        return read_file(name)

    @property
    def variables(self) -> Mapping[str, Any]:
        """What a verb's text may name: the notebook's variables; a shell has none."""
        return {}

    def assign(self, name: str, value: Any) -> None:
        """Make a value a variable of the notebook.

        Raises
        ------
        UsageError
            That is no name of a variable, or there are none here.
        """
        raise UsageError(f"A shell has no variable '{name}'; give a file, like {name}.csv.")

    def origin(self, value: Any) -> str | None:
        """The run that a value was pulled from, where that is known."""
        return None

    def derived(self, value: Any, made: Any) -> None:
        """Note that `made` comes from `value`, and so from its run."""

    def take(self, result: RunResult) -> None:
        """Take what a run brought back; a shell has no use for it."""

    def show(self, view: Table | Card | Panel, value: Any = None) -> Any:
        """Show a table or a card, and give `value` back as the verb's result."""
        click.echo(view.text())
        return value

    def result(self, value: Any) -> Any:
        """Show an array or other plain value: a shell prints it, a notebook's Out does."""
        import numpy as np

        with np.printoptions(threshold=200, precision=6, suppress=True):
            click.echo(str(value))
        return value

    def watch(
        self,
        session: Session,
        overview: Callable[[dict[str, Any], float], list[Table]],
        every: float,
    ) -> None:
        """Show what `overview` makes of the cluster's state, every so many seconds."""
        from .terminal import watch

        watch(lambda: overview(session.status(), time.time()), every)

    def lease(self, session: Session, lease: Lease, card: Card) -> Any:
        """Show a lease that is held now."""
        return self.show(card, lease)

    def endpoint(self, session: Session, endpoint: Endpoint, card: Card) -> Any:
        """Show a model that is served now."""
        return self.show(card, endpoint)

    def model(self, session: Session, version: ModelVersion, card: Card) -> Any:
        """Show a model that has been published."""
        return self.show(card, version)

    def models_changed(self) -> None:
        """Called after aliases have moved, for cards that show them."""

    def policy(self, source: str, policy: str, seed: int, draw: Callable[[str, int], bytes]) -> Any:
        """Show what an augmentation policy does; `draw` makes the picture of another."""
        from .data import policy_card

        return self.show(policy_card(source, policy, seed, draw(policy, seed)))

    def leases_changed(self) -> None:
        """Called after leases ended or changed, for cards that show them."""

    @contextlib.contextmanager
    def waiting(self, session: Session, what: str) -> Iterator[Waiting]:
        """Show the queue while a request waits; Ctrl-C takes it out of the queue."""
        request = ""
        said: tuple[Any, Any] = (None, None)

        def on_wait(row: dict[str, Any]) -> None:
            nonlocal request, said
            request = str(row.get("id", ""))
            if (row.get("position"), row.get("reason")) != said:
                said = (row.get("position"), row.get("reason"))
                self.say(waiting_text(what, row))

        try:
            yield on_wait
        except KeyboardInterrupt:
            cancel_quietly(session, request)
            raise

    def progress(self, title: str) -> AbstractContextManager[Advance]:
        """Show how far a task of known length is."""
        return _terminal_progress(title, self.say)

    def follow(self, session: Session, handle: RunHandle, *, verbose: bool = False) -> RunResult:
        """Show a run until it ends.

        Rank 0's output goes to the same streams here; other ranks' with `verbose`, each line with
        its rank. Ctrl-C stops the run.

        Raises
        ------
        RunError
            The run failed.
        """
        feed = feed_of(handle)
        line = _StatusLine(self.say)
        whole_line = True
        try:
            for event in handle.events():
                feed.add(event)
                line.clear()
                text = echoed(event, verbose)
                if text:
                    click.echo(text, nl=False, err=event.get("stream") == "stderr")
                    whole_line = text.endswith("\n")
                if whole_line:
                    line.draw(feed.summary(time.time()))
        except KeyboardInterrupt:
            line.clear()
            if handle.ours:
                self.say(f"stopping {feed.run} …")
                handle.stop("interrupted")
            else:
                self.say(f"{feed.run} goes on; 'aios stop {feed.run}' ends it")
            raise
        finally:
            line.clear()
        try:
            return finish(session, handle, feed)
        finally:
            self.say(feed.summary(time.time()))

    def follow_on(
        self,
        session: Session,
        start: Callable[[dict[str, Any]], RunHandle],
        options: dict[str, Any],
        *,
        verbose: bool = False,
    ) -> RunResult:
        """Start a run with `options` and show it until it ends.

        One that is preempted, and may be restarted, goes on when it has devices again.

        Raises
        ------
        RunError
            It failed.
        """
        while True:
            with self.waiting(session, "devices") as on_wait:
                handle = start({**options, "on_wait": on_wait})
            try:
                return self.follow(session, handle, verbose=verbose)
            except RunError as error:
                if not error.preempted or not options.get("max_restarts"):
                    raise
                self.say(f"{error} It goes on from its last checkpoint when it has devices again.")
                options = session.go_on_after(error, options)

    def run_cell(self, options: dict[str, Any], flags: dict[str, Any]) -> Any:
        """Run the cell: `options` go to `Session.start`, `flags` are those of the command line.

        Raises
        ------
        UsageError
            There are no cells here.
        """
        raise UsageError("Cells are run in a notebook, with %%aios train.")

    def say(self, text: str) -> None:
        """One line about what goes on, apart from a verb's own output."""
        click.echo(printable(text), err=True)

    def notice(self, text: str) -> None:
        """One line about a lease of this session; called from another thread."""
        self.say(f"aios: {text}")


def feed_of(handle: RunHandle) -> Feed:
    """An empty feed for a run."""
    started = float(handle.run.get("started") or time.time())
    return Feed(handle.id, str(handle.run.get("name", "")), handle.world_size, started)


def finish(session: Session, handle: RunHandle, feed: Feed) -> RunResult:
    """Wait for the result of a run whose events have ended, and note in `feed` how it ended."""
    try:
        result = handle.wait()
    except RunError as error:
        state = _end_state(session, handle.id)
        # The card has the run's name and state already.
        reason = str(error).partition(f"{handle.id} ")[2].partition(": ")[2] or str(error)
        feed.end(state, time.time(), reason)
        raise
    feed.end("succeeded", time.time())
    return result


def _end_state(session: Session, run: str) -> str:
    """Whether a run that did not succeed failed or was stopped; failed where nobody can say."""
    with contextlib.suppress(AiosError):
        states = [row["state"] for row in session.runs() if row["id"] == run]
        if states == ["stopped"]:
            return "stopped"
    return "failed"


def waiting_text(what: str, row: dict[str, Any]) -> str:
    """`waiting for 2 devices: position 3 in the queue (lease-7 ends in 4 min)`."""
    reason = str(row.get("reason") or "")
    text = f"waiting for {what}: position {row.get('position', '?')} in the queue"
    text = f"{text} ({reason})" if reason else text
    starts = starts_text(row)
    return f"{text}, starts {starts}" if starts else text


def starts_text(row: dict[str, Any]) -> str:
    """`at about 14:05`, by the forecast in a row of the queue; "" where there is none."""
    eta = row.get("eta")
    return time.strftime("at about %H:%M", time.localtime(eta)) if eta else ""


def cancel_quietly(session: Session, request: str) -> None:
    """Take a request out of the queue; that it has gone already is no error."""
    if not request:
        return
    with contextlib.suppress(NotFoundError, ConflictError):
        session.cancel(request)


def read_file(name: str) -> Any:
    """Read input for `predict`: `.npy`, `.npz` (its only array, or `x`), `.json`, or an image.

    Raises
    ------
    NotFoundError, UsageError
        There is no such file; its kind cannot be read.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise NotFoundError(f"There is no file '{name}'.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            import json

            return json.loads(path.read_text("utf-8"))
        import numpy as np

        if suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                names = list(arrays)
                key = names[0] if len(names) == 1 else "x"
                if key not in names:
                    raise UsageError(f"'{name}' holds {', '.join(names)}; name the one to use 'x'.")
                return arrays[key]
        if suffix in {".png", ".jpg", ".jpeg"}:
            from PIL import Image

            return np.asarray(Image.open(path))
    except (ValueError, OSError) as error:
        raise UsageError(f"'{name}' cannot be read: {error}.") from None
    raise UsageError(f"'{name}' is not a .npy, .npz, .json, .png or .jpg file.")


def echoed(event: dict[str, Any], verbose: bool) -> str:
    """The part of an event that is the run's own output, "" for the rest."""
    rank, text = int(event.get("rank") or 0), str(event.get("text", ""))
    if event.get("type") != "log" or (rank and not verbose):
        return ""
    if verbose:
        return "".join(f"[{rank}] {line}" for line in text.splitlines(keepends=True))
    return text


class _StatusLine:
    """One line at the bottom of a terminal; elsewhere (a log file) a line every ten seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._terminal = sys.stderr.isatty()
        self._drawn = time.monotonic()
        self._shown = False

    def draw(self, text: str) -> None:
        now = time.monotonic()
        if now - self._drawn < (0.1 if self._terminal else 10.0):
            return
        self._drawn = now
        if not self._terminal:
            self._say(text)
            return
        width = shutil.get_terminal_size().columns
        click.echo(f"\r\x1b[2K{text[: width - 1]}", nl=False, err=True)
        self._shown = True

    def clear(self) -> None:
        if self._shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
            self._shown = False


@contextlib.contextmanager
def _terminal_progress(title: str, say: Callable[[str], None]) -> Iterator[Advance]:
    line = _StatusLine(say)

    def advance(done: int, total: int) -> None:
        share = f" ({done / total:.0%})" if total else ""
        line.draw(f"{title}: {done:,} of {total:,}{share}")

    try:
        yield advance
    finally:
        line.clear()
