"""The grammar that all verbs share: groups that suggest spellings, and types of parameters."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ..units import parse_count, parse_duration, parse_size


class VerbGroup(click.Group):
    """A group whose help keeps the order in which verbs were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in their own order (click sorts them)."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say which one was probably meant."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            if name.startswith("-"):
                raise click.NoSuchOption(name, ctx=ctx)
            raise click.UsageError(
                f"there is no verb '{name}'{meant(name, self.commands)}; "
                f"'{ctx.command_path} --help' lists them.",
                ctx=ctx,
            )
        return super().resolve_command(ctx, args)


def meant(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'alloc'?` without the question mark, or "" when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def explain(error: click.ClickException) -> str:
    """One sentence for what click found wrong with a command line."""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption):
        flags = option_names(context.command) if context else []
        where = context.command_path if context else "aios"
        return (
            f"{where} has no flag '{error.option_name}'{meant(error.option_name, flags)}; "
            f"'{where} --help' lists them."
        )
    if isinstance(error, click.BadParameter) and error.param is not None and context:
        where, parameter = context.command_path, error.param
        flag = isinstance(parameter, click.Option)
        name = parameter.opts[-1] if flag else parameter.make_metavar(context)
        if isinstance(error, click.MissingParameter):
            return f"{where} wants {name}; '{where} --help' says more."
        choice = isinstance(parameter.type, click.Choice)
        text = error.message.rstrip(".") if choice else f"{error.message.rstrip('.')} ({name})"
        return f"{text}; '{where} --help' says more."
    text = error.format_message().strip()
    return text if text.endswith((".", "?")) else f"{text}."


def option_names(command: click.Command) -> list[str]:
    """Every flag of a command, `--help` last."""
    names = [
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]
    return [*names, "--help"]


class _Parsed(click.ParamType[Any]):
    """A type whose text `parse` reads, an `aios` UsageError becoming click's."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the text of a flag."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            raise click.UsageError(str(error), ctx=ctx) from None


def parsed(name: str, parse: Callable[[str], Any]) -> click.ParamType[Any]:
    """A type of parameter that `parse` reads."""
    return _Parsed(name, parse)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    wrong = next((name for name in names if not name.isidentifier()), None)
    if wrong is not None or not names:
        raise UsageError(f"'{wrong or text}' is not a variable's name; write names like a,b,c.")
    return names


def _limit(text: str) -> float | str:
    return "off" if text == "off" else parse_duration(text)


def _count(text: str) -> int | str:
    """A number, or what the session reads as a range."""
    least, most = parse_count(text)
    return most if least == most else f"{least}:{most}"


DURATION = _Parsed("duration", parse_duration)
LIMIT = _Parsed("limit", _limit)
SIZE = _Parsed("size", parse_size)
COUNT = _Parsed("count", _count)
NAMES = _Parsed("names", _names)

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON for programs.")
accounts_option = click.option(
    "--accounts",
    metavar="names|FILE",
    callback=lambda context, parameter, given: _accounts(given),
    help="As root: people's code runs in their own accounts, of their names or as FILE (JSON) says.",
)
labelled = click.option("--name", default="", metavar="TEXT", help="What people see beside it.")


def _accounts(given: str | None) -> str | None:
    """A rule for accounts as an agent takes it, which is elsewhere."""
    return given if given in {None, "", "names"} else str(Path(str(given)).expanduser().absolute())


def echo_json(value: Any) -> None:
    """Print a value as JSON, structs and numpy's numbers included."""
    click.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    import msgspec

    if hasattr(value, "tolist"):
        return value.tolist()
    try:
        return msgspec.to_builtins(value)
    except TypeError:
        return str(value)


def pairs(texts: Sequence[str], what: str, value: Callable[[str], Any]) -> dict[str, Any]:
    """Read `a=1,b=2` (also given more than once).

    Numbers become numbers. A word without `=` names a dictionary, which `value` looks up.

    Raises
    ------
    UsageError
        A part has no `=` and names no dictionary.
    """
    found: dict[str, Any] = {}
    for text in texts:
        if "=" not in text:
            given = value(text)
            if not isinstance(given, dict):
                raise UsageError(f"--{what} {text}: write {what} as name=value, or name a dict.")
            found.update(given)
            continue
        for part in text.split(","):
            key, equals, raw = part.partition("=")
            if not equals or not key.strip():
                raise UsageError(f"--{what}: '{part}' is not name=value.")
            found[key.strip()] = _literal(raw.strip())
    return found


def _literal(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text
