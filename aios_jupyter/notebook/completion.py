"""What Tab offers after `%aios`: verbs, flags, and names of what exists.

Pure apart from one call to an open session; it never starts a cluster or waits for one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from ..commands import aios
from ..commands.base import option_names
from ..errors import AiosError

if TYPE_CHECKING:
    from ..session import Session

CELL_VERBS = ("train", "run", "sql")


def complete(text: str, variables: Mapping[str, Any], session: Session | None) -> list[str]:
    """Candidates for the word that `text` (the line up to the cursor) ends with.

    Parameters
    ----------
    text
        Starts with `%aios` or `%%aios`.
    variables
        The notebook's names.
    session
        An open session to ask for leases, runs, datasets and models, or None.
    """
    magic, *words = re.split(r"\s+", text.lstrip())
    if not words:
        return []
    *before, word = words
    command, rest = _command(before)
    if isinstance(command, click.Group):
        verbs = CELL_VERBS if magic.startswith("%%") and command is aios else command.commands
        found: Iterable[str] = (*verbs, "--help") if word.startswith("-") else verbs
    elif word.startswith("-"):
        found = option_names(command)
    else:
        found = _values(command, rest, variables, session)
    return sorted(name for name in found if name.startswith(word))


def _command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the words name, and those after it."""
    command: click.Command = aios
    for index, word in enumerate(words):
        if not isinstance(command, click.Group) or word not in command.commands:
            return command, words[index:]
        command = command.commands[word]
    return command, []


def _values(
    command: click.Command,
    rest: list[str],
    variables: Mapping[str, Any],
    session: Session | None,
) -> Iterable[str]:
    options = {
        name: parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    }
    option = options.get(rest[-1]) if rest else None
    if option is not None and not option.is_flag:
        return _of_kind(_kind(option), variables, session)
    given, skip = 0, False
    for word in rest:
        if skip:
            skip = False
        elif word in options:
            skip = not options[word].is_flag
        elif not word.startswith("-"):
            given += 1
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    if not arguments:
        return ()
    return _of_kind(_kind(arguments[min(given, len(arguments) - 1)]), variables, session)


def _kind(parameter: click.Parameter) -> str:
    if isinstance(parameter.type, click.Choice):
        return "choice:" + ",".join(str(choice) for choice in parameter.type.choices)
    return parameter.name or ""


_VARIABLES = {"push", "no_push", "pull", "model", "input_", "metrics", "params", "input_example"}

_NAMED: dict[str, Callable[[Any], Iterable[str]]] = {
    "lease": lambda session: (lease.id for lease in session.leases()),
    "run": lambda session: (row["id"] for row in session.runs()),
    "run_or_batch": lambda session: (row["id"] for row in session.runs() + session.batches()),
    "request": lambda session: (row["id"] for row in session.queue()),
    "endpoint": lambda session: (row["name"] for row in session.endpoints()),
}


def _of_kind(kind: str, variables: Mapping[str, Any], session: Session | None) -> Iterable[str]:
    if kind.startswith("choice:"):
        return kind.removeprefix("choice:").split(",")
    if kind in _VARIABLES:
        return [name for name in variables if not name.startswith("_")]
    try:
        if kind in {"source", "dataset", "data"}:
            return _datasets()
        if kind == "ref":
            return _references()
        if session is not None and kind in _NAMED:
            return list(_NAMED[kind](session))
    except AiosError:
        # Tab must not fail because the cluster is away.
        return ()
    return ()


def _datasets() -> list[str]:
    from ..data.catalog import Catalog

    return [entry.name for entry in Catalog().list()]


def _references() -> list[str]:
    """Models and their aliases, once mlflow is there: Tab must not wait for its import."""
    if "mlflow" not in sys.modules:
        return []
    from ..models.registry import versions

    rows = versions()
    aliased = {f"{row['name']}@{alias}" for row in rows for alias in row["aliases"]}
    return [*{row["name"] for row in rows}, *aliased]
