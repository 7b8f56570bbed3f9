"""Dask tasks go where the data is: to workers whose machine has a copy, or blocks, of what they read.

As long as these have time for them: others take tasks over when those have more than they can do. A
module of its own, so that what a worker imports to be asked is light.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from . import blocks, cache, storage
from .entries import Entry

if TYPE_CHECKING:
    from distributed import Client, Future

# Of a task that reads many files so many are looked at: each costs a question.
_MOST_FILES = 16


class Span(NamedTuple):
    """What a task reads of a file: bytes from `start` to `stop`; to its end where that is None."""

    url: str
    start: int = 0
    stop: int | None = None


class Task(Protocol):
    """Work that reads a known part of a dataset."""

    @property
    def version(self) -> str:
        """Of a remote dataset, which may have a copy on a node; "" of another."""

    def reads(self) -> Sequence[Span]:
        """What it reads of remote files."""


def remote_version(entry: Entry) -> str:
    """The version of a dataset that is remote, so that a copy of it is worth a way; "" of another."""
    return entry.version if storage.is_remote(entry.url) else ""


def submit(
    client: Client,
    function: Callable[..., Any],
    tasks: Sequence[Task],
    /,
    *more: Sequence[Any],
    key: str,
    **given: Any,
) -> list[Future]:
    """Futures of `function` for each task, in order, each to be done near what it reads.

    Parameters
    ----------
    more, given
        Further arguments: one for each task, and the same for all.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, workers in enumerate(workers_for(client, tasks)):
        groups.setdefault(workers, []).append(number)
    found: dict[int, Future] = {}
    for workers, numbers in groups.items():
        where = {"workers": list(workers), "allow_other_workers": True} if workers else {}
        columns = [[column[n] for n in numbers] for column in (tasks, *more)]
        made = client.map(function, *columns, pure=False, key=key, **where, **given)
        found.update(zip(numbers, made, strict=True))
    return [found[number] for number in range(len(tasks))]


def workers_for(client: Client, tasks: Sequence[Task]) -> list[tuple[str, ...]]:
    """For each task the workers that it should go to; () where any is as good as another.

    A copy of the dataset on a worker's machine counts before blocks that lie there.
    """
    anybody: list[tuple[str, ...]] = [()] * len(tasks)
    version = tasks[0].version if tasks else ""
    if not version:
        return anybody
    answers: dict[str, Facts] = client.run(facts, version, on_error="ignore")
    copies = tuple(worker for worker, (there, _) in answers.items() if there)
    if copies:
        return anybody if len(copies) == len(answers) else [copies] * len(tasks)
    if len(answers) < 2:
        return anybody
    from distributed.comm import get_address_host

    homes = {worker: names | {get_address_host(worker)} for worker, (_, names) in answers.items()}
    spans = [_some(task.reads()) for task in tasks]
    known = blocks.of_files(span.url for task in spans for span in task)
    return [nearest(task, known, homes) for task in spans]


def nearest(
    spans: Iterable[Span],
    known: Mapping[str, Sequence[blocks.Block]],
    homes: Mapping[str, frozenset[str]],
) -> tuple[str, ...]:
    """The workers on whose machines most of what a task reads lies; () where that is all or none.

    Parameters
    ----------
    known
        The blocks of files, of those where they are known.
    homes
        Each worker, and what its machine is called.
    """
    held = dict.fromkeys(homes, 0)
    for span in spans:
        for block in known.get(span.url, ()):
            stop = block.stop if span.stop is None else min(block.stop, span.stop)
            size = max(0, stop - max(block.start, span.start))
            for worker, names in homes.items():
                held[worker] += size if names & block.hosts else 0
    most = max(held.values(), default=0)
    found = tuple(worker for worker, size in held.items() if size == most)
    return found if most and len(found) < len(homes) else ()


def _some(spans: Sequence[Span]) -> Sequence[Span]:
    """Evenly some of them, if they are many."""
    return spans[:: -(-len(spans) // _MOST_FILES) or 1]


# Whether a worker's machine has a copy of a version, and what that machine is called.
Facts = tuple[bool, frozenset[str]]


def facts(version: str) -> Facts:
    """What a worker is asked."""
    import psutil

    addresses = {
        address.address
        for name, found in psutil.net_if_addrs().items()
        for address in found
        if name != "lo" and address.family in {socket.AF_INET, socket.AF_INET6}
    }
    return cache.has(version), frozenset({socket.gethostname(), *addresses})
