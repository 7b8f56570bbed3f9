"""`%aios VERB …` and `%%aios train`, `%%aios run`, `%%aios sql`.

`load` is what `%load_ext aios_jupyter` calls. It imports neither click nor a session: they come
with the first verb.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import TYPE_CHECKING, Any

from ..errors import AiosError, ClusterError, RunError, UsageError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from .display import NotebookHost

CELL_VERBS = ("train", "run", "sql")


class Interrupted(KeyboardInterrupt):
    """The cell was interrupted while a verb waited; what waited or ran has been ended."""

    def _render_traceback_(self) -> list[str]:
        return [f"KeyboardInterrupt: {self}"]


class AiosMagics:
    """The magics of one IPython shell.

    Parameters
    ----------
    shell
        The shell whose variables the verbs read and write.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        self._host: NotebookHost | None = None

    @property
    def host(self) -> NotebookHost:
        """The notebook as the verbs see it, made on first use."""
        if self._host is None:
            from .display import NotebookHost

            self._host = NotebookHost(self.shell)
            self._silence_shown(self._host)
        return self._host

    def line(self, line: str) -> Any:
        """Lease devices, train, publish and serve: `%aios --help` lists the verbs."""
        return self._invoke(line, None)

    def cell(self, line: str, cell: str) -> Any:
        """Run the cell on leased devices: `%%aios train --help` lists the flags."""
        return self._invoke(line, cell)

    def complete(self, _shell: Any, event: Any) -> list[str]:
        """What Tab offers."""
        from .completion import complete

        session = self._host.open_session if self._host else None
        return complete(event.text_until_cursor, self.shell.user_ns, session)

    def listen(self, _result: Any = None) -> None:
        """After a kernel's first cell: hear what becomes of the devices it was started with."""
        self.shell.events.unregister("post_run_cell", self.listen)
        # Without a cluster there is nothing to hear.
        with contextlib.suppress(ClusterError):
            self.host.session(start=False)

    def close(self) -> None:
        """Give back what this kernel holds."""
        if self._host is not None:
            self._host.close()

    def _invoke(self, line: str, cell: str | None) -> Any:
        import click

        from ..commands import explain, invoke

        host = self.host
        host.begin(cell)
        try:
            words = _words(line)
            if cell is not None and words[:1] and words[0] not in CELL_VERBS:
                raise UsageError(_not_for_cells(words))
            return invoke(words, host, prog="%aios" if cell is None else "%%aios")
        except click.ClickException as error:
            raise rendered(UsageError(explain(error))) from None
        except AiosError as error:
            raise rendered(error) from None
        except (KeyboardInterrupt, click.Abort):
            raise Interrupted("stopped on request.") from None

    def _silence_shown(self, host: NotebookHost) -> None:
        """Keep Out[…] from repeating what a verb has just shown as a card."""
        formatter = self.shell.display_formatter
        if formatter is None:
            return
        original: Any = formatter.format

        def format_(obj: Any, *args: Any, **kwargs: Any) -> Any:
            return ({}, {}) if host.was_shown(obj) else original(obj, *args, **kwargs)

        # Not `for_type`: a verb's result may be of any type, and only this one object is silent.
        formatter.format = format_  # type: ignore[method-assign]


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"The line does not parse: {error}.") from None


def _not_for_cells(words: list[str]) -> str:
    if words[0].startswith("-"):
        return "Name the verb first: %%aios train or %%aios run."
    return (
        f"'{words[0]}' takes no cell: write %aios {shlex.join(words)} (one %), "
        f"or run the cell with %%aios train."
    )


def rendered(error: AiosError) -> AiosError:
    """Have IPython show one sentence instead of our frames; a rank's own traceback comes first."""

    def render() -> list[str]:
        lines = []
        if isinstance(error, RunError) and error.traceback:
            where = "" if error.rank is None else f" of rank {error.rank}"
            lines += [f"Traceback{where}:", *_inside(error.traceback), ""]
            lines += (
                [f"The variables at the failure: %aios stacks {error.run}"] if error.run else []
            )
        return [*lines, f"\x1b[31m{type(error).__name__}\x1b[0m: {error}"]

    # IPython asks the exception itself for its traceback; an attribute serves every class.
    error._render_traceback_ = render  # type: ignore[attr-defined]
    return error


def _inside(traceback: str) -> list[str]:
    lines = traceback.rstrip().splitlines()
    return lines[1:] if lines[:1] == ["Traceback (most recent call last):"] else lines


def load(shell: InteractiveShell) -> AiosMagics:
    """Register `%aios` and `%%aios`; loading twice does no harm."""
    known = shell.magics_manager.magics["line"].get("aios")
    owner = getattr(known, "__self__", None)
    if isinstance(owner, AiosMagics):
        return owner
    magics = AiosMagics(shell)
    if "AIOS_LEASE" in os.environ:
        shell.events.register("post_run_cell", magics.listen)
    # IPython's own annotations do not know bound methods.
    register: Any = shell.register_magic_function
    set_hook: Any = shell.set_hook
    register(magics.line, "line", "aios")
    register(magics.cell, "cell", "aios")
    for command in ("%aios", "%%aios"):
        set_hook("complete_command", magics.complete, str_key=command)
    return magics


def unload(shell: InteractiveShell) -> None:
    """Take the magics away and give back what this kernel holds."""
    known = shell.magics_manager.magics
    owner = getattr(known["line"].get("aios"), "__self__", None)
    if isinstance(owner, AiosMagics):
        owner.close()
        del known["line"]["aios"], known["cell"]["aios"]
