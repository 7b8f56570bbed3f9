"""Tables that are drawn on a terminal again and again."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from .views import Column, Table

BAR = 10
LEAVES = (b"q", b"Q", b"\x1b", b"")
# To a terminal's other screen, without a cursor, and back; to its corner; the rest of it and of a line.
_OTHER, _BACK, _CORNER = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H"
_REST, _REST_OF_LINE = "\x1b[J", "\x1b[K"


def watch(look: Callable[[], Sequence[Table]], every: float) -> None:
    """Draw what `look` gives, every so many seconds, until q or Ctrl-C; without a terminal once.

    Raises
    ------
    AiosError
        What `look` raises; the terminal is as it was before.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo("\n\n".join(table.text() for table in look()))
        return
    with _other_screen(), contextlib.suppress(KeyboardInterrupt):
        while True:
            # Not `shutil`'s: a variable that a shell has exported knows of no new size.
            size = os.get_terminal_size(sys.stdout.fileno())
            lines = screen(look(), time.time(), size.columns, size.lines)
            text = f"{_REST_OF_LINE}\n".join(lines)
            sys.stdout.write(f"{_CORNER}{text}{_REST_OF_LINE}{_REST}")
            sys.stdout.flush()
            if _left(every):
                return


def screen(tables: Sequence[Table], now: float, width: int, height: int) -> list[str]:
    """Tables as lines of a terminal: bars for what is used, no more lines than it has, none too long."""
    lines: list[str] = []
    for table in tables:
        rows = [{**row, **_bars(row, table.columns)} for row in table.rows]
        lines += [*Table(table.columns, rows, table.empty, table.title).text().split("\n"), ""]
    room = max(1, height - 1)
    if len(lines) > room:
        lines = [*lines[: room - 1], f"… {len(lines) - room + 1} more lines"]
    footer = f"{time.strftime('%H:%M:%S', time.localtime(now))} · q leaves"
    return [line[:width] for line in (*lines, footer)]


def _bars(row: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, str]:
    """What a notebook draws behind a text, before it."""
    found = {}
    for column in columns:
        share = row.get(column.meter) if column.meter else None
        if share is not None:
            full = round(BAR * min(100.0, max(0.0, share)) / 100)
            found[column.key] = f"{'█' * full}{'░' * (BAR - full)} {row[column.key]:>4}"
    return found


@contextlib.contextmanager
def _other_screen() -> Iterator[None]:
    sys.stdout.write(_OTHER)
    try:
        with _single_keys():
            yield
    finally:
        sys.stdout.write(_BACK)
        sys.stdout.flush()


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Keys are read without Enter, and not shown."""
    if sys.platform == "win32":
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _left(seconds: float) -> bool:
    """Wait for so long; whether a key was pressed that ends it."""
    if sys.platform == "win32":  # there Ctrl-C alone does
        time.sleep(seconds)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and os.read(sys.stdin.fileno(), 64) in LEAVES
