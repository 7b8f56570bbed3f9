"""What a rank knew when it failed: its frames with their variables, as text, bounded.

It is written into the run's directory beside the logs and goes nowhere by itself: values may be
private. Variables whose names sound like secrets are not shown, arrays and tensors by their kind
alone, so that no device is touched after it has failed. Nothing here may raise: the failure that is
told is the user's.
"""

from __future__ import annotations

import linecache
import os
import re
import reprlib
import time
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST_VALUE = 300
VARIABLES = 40
FRAMES = 40
CHAIN = 3
LONGEST = 256 * 1024
# A rank that has failed is killed a second later.
TIME = 0.5

_SECRET = re.compile(
    r"passw|secret|credential|api_?key|private_?key|^token$|_token$", re.IGNORECASE
)
_HIDDEN = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)


def sounds_secret(name: str) -> bool:
    """Whether a variable's name says that its value is nobody's business."""
    return bool(_SECRET.search(name))


def file_of(rank: int | str) -> str:
    """The name of the file in the run's directory."""
    return f"failure-{rank}.txt"


def write(
    error: BaseException, trace: types.TracebackType | None, rank: int, directory: Path, cell: str
) -> None:
    """Keep the frames of `error` with their variables; best effort.

    Parameters
    ----------
    trace
        The traceback from the user's first frame on.
    cell
        The path of a cell's file, which is shown by its name; "" for other code.
    """
    text = describe(error, trace)
    if cell:
        text = text.replace(f'"{cell}"', f'"{Path(cell).name}"')
    path = directory / file_of(rank)
    aside = path.with_suffix(".part")
    try:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        aside.replace(path)
    except OSError as failure:
        # The traceback itself is in the log; a full disk does not hide the failure.
        print(f"(the variables at the failure could not be kept: {failure.strerror})", flush=True)  # noqa: T201


def describe(error: BaseException, trace: types.TracebackType | None) -> str:
    """Frames, the most recent last, each with its variables; then the exception."""
    deadline = time.monotonic() + TIME
    parts: list[str] = []
    chain = _chain(error)
    for index, (link, joint) in enumerate(chain):
        frames = trace if link is error else link.__traceback__
        parts += _frames(frames, deadline)
        parts.append(_said(link))
        if index < len(chain) - 1:
            parts.append(f"\n{joint}\n\n")
    text = "".join(parts)
    if len(text) > LONGEST:
        # The innermost frames are at the end.
        text = f"(the first {len(text) - LONGEST} characters are left out)\n{text[-LONGEST:]}"
    return text


def _chain(error: BaseException) -> list[tuple[BaseException, str]]:
    """The exception and what led to it, the first cause first, each with what joins it to the next."""
    found: list[tuple[BaseException, str]] = [(error, "")]
    while len(found) < CHAIN:
        last = found[0][0]
        if last.__cause__ is not None:
            found.insert(0, (last.__cause__, "It was the direct cause of:"))
        elif last.__context__ is not None and not last.__suppress_context__:
            found.insert(0, (last.__context__, "While it was handled:"))
        else:
            break
    return found


def _said(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception_only(error))
    except Exception:  # noqa: BLE001  # the user's class may be broken
        return f"{type(error).__name__}\n"


def _frames(trace: types.TracebackType | None, deadline: float) -> Iterator[str]:
    whole = list(traceback.walk_tb(trace))
    # A recursion without end has the same frame a thousand times.
    left_out = max(0, len(whole) - FRAMES)
    for index, (frame, line) in enumerate(whole):
        if index == FRAMES // 4 and left_out:
            yield f"  ({left_out} frames are left out)\n"
        if FRAMES // 4 <= index < FRAMES // 4 + left_out:
            continue
        code = frame.f_code
        yield f'  File "{code.co_filename}", line {line}, in {code.co_qualname}\n'
        source = linecache.getline(code.co_filename, line).strip()
        if source:
            yield f"    {source}\n"
        yield from _variables(frame.f_locals, deadline)


def _variables(values: dict[str, Any], deadline: float) -> Iterator[str]:
    shown = 0
    for name, value in list(values.items()):
        if name.startswith("__") or isinstance(value, _HIDDEN):
            continue
        if shown == VARIABLES:
            yield "      (more variables are left out)\n"
            return
        shown += 1
        yield f"      {name} = {_shown(name, value, deadline)}\n"


def _shown(name: str, value: Any, deadline: float) -> str:
    if sounds_secret(name):
        return "(not shown, as its name sounds like a secret)"
    if time.monotonic() > deadline:
        return f"({type(value).__name__}; there was no time to show it)"
    try:
        text = _kind(value) or _short.repr(value)
    except BaseException as error:  # noqa: BLE001  # code of any user runs here
        return f"({type(value).__name__}; its repr raised {type(error).__name__})"
    text = text.replace("\n", "\n        ")
    if len(text) > LONGEST_VALUE:
        text = f"{text[:LONGEST_VALUE]}… ({len(text)} characters)"
    return text


def _kind(value: Any) -> str:
    """An array or tensor by its shape and type; "" for anything else."""
    kind = type(value)
    if not (hasattr(kind, "shape") and hasattr(kind, "dtype")):
        return ""
    device = getattr(value, "device", "")
    where = f", {device}" if device not in ("", "cpu") else ""
    return f"{kind.__name__} {tuple(value.shape)} {value.dtype}{where}"


class _Short(reprlib.Repr):
    """Shows what is in a container, to a few levels and items; a nested array by its kind."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 10
        self.maxstring = self.maxother = self.maxlong = LONGEST_VALUE

    def repr1(self, x: Any, level: int) -> str:
        return _kind(x) or super().repr1(x, level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        hidden = {
            key: _HIDDEN_VALUE if isinstance(key, str) and sounds_secret(key) else value
            for key, value in list(x.items())[: self.maxdict + 1]
        }
        return super().repr_dict(hidden, level)


class _HiddenValue:
    def __repr__(self) -> str:
        return "(not shown)"


_HIDDEN_VALUE = _HiddenValue()
_short = _Short()
