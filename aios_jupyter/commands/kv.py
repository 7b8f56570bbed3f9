"""`kv get|put|ls|rm|watch`: it needs no cluster."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from ..units import format_duration
from .base import DURATION, VerbGroup, as_json, echo_json
from .host import Host
from .views import Card, Column, Table

if TYPE_CHECKING:
    from ..data.kv import KV, Item

COLUMNS = (
    Column("key", "key"),
    Column("value", "value"),
    Column("version", "version", right=True),
    Column("left", "time left", right=True),
)
# Of a value, in a table.
MOST_TEXT = 60

if_version = click.option(
    "--if-version",
    "expect",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only where the key has this version; 0: only where there is none.",
)


@click.group(cls=VerbGroup)
def kv() -> None:
    """Share small values among notebooks, shells and runs.

    They are kept on this machine, or on a Redis or Valkey server (AIOS_KV=redis://host:port). Code
    has the same with: from aios_jupyter import kv
    """


@kv.command("get")
@click.argument("key")
@as_json
@click.pass_obj
def kv_get(host: Host, key: str, json_: bool) -> Any:
    """Show the value of KEY."""
    with _store() as own:
        value = own.get(key)
    return echo_json(value) if json_ else host.result(value if host.variables else _text(value))


@kv.command("put")
@click.argument("key")
@click.argument("value")
@click.option("--text", is_flag=True, help="Take VALUE as it is; else JSON becomes what it says.")
@click.option("--ttl", type=DURATION, metavar="TIME", help="The key goes by itself after this.")
@if_version
@click.pass_obj
def kv_put(
    host: Host, key: str, value: str, text: bool, ttl: float | None, expect: int | None
) -> Any:
    """Set KEY to VALUE: text, a number, or JSON."""
    with _store() as own:
        version = own.put(key, value if text else _read(value), expect=expect, ttl=ttl)
    return host.show(Card(key, fields=(("version", str(version)),)), version)


@kv.command("ls")
@click.argument("pattern", default="*")
@as_json
@click.pass_obj
def kv_ls(host: Host, pattern: str, json_: bool) -> Any:
    """List what is there; PATTERN like 'job/*'."""
    with _store() as own:
        found = own.ls(pattern)
    if json_:
        return echo_json(found)
    return host.show(kv_table(found, time.time()), found)


@kv.command("rm")
@click.argument("key")
@if_version
@click.pass_obj
def kv_rm(host: Host, key: str, expect: int | None) -> None:
    """Remove KEY."""
    with _store() as own:
        own.rm(key, expect=expect)
    host.show(Card(key, badge="removed"))


@kv.command("watch")
@click.argument("pattern", default="*")
@click.option(
    "--timeout", type=DURATION, metavar="TIME", help="End after so long without a change."
)
@as_json
def kv_watch(pattern: str, timeout: float | None, json_: bool) -> None:
    """Show what is there, and each change as it happens."""
    for item in _store().watch(pattern, timeout=timeout):
        click.echo(_line(item, json_))


def kv_table(found: list[Item], now: float) -> Table:
    """Keys, one a line."""
    rows = [
        {
            "key": item.key,
            "value": _short(_text(item.value)),
            "version": item.version,
            "left": None if item.expires is None else format_duration(max(0.0, item.expires - now)),
        }
        for item in found
    ]
    return Table(COLUMNS, rows, empty="No such keys; make one with: aios kv put KEY VALUE")


def _store() -> KV:
    from ..data.kv import KV

    return KV()


def _line(item: Item, json_: bool) -> str:
    if json_:
        import msgspec

        # Bytes as base64, as JSON has none.
        return msgspec.json.encode(item).decode()
    return f"{item.key} removed" if item.removed else f"{item.key} = {_text(item.value)}"


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return repr(value)


def _short(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"
