"""Applications: notebooks that train or load a model, publish it and serve it.

Some come with this package; others are found through the entry point group `aios_jupyter.apps`, whose
objects are paths of notebooks. What a notebook is, it says in its metadata:

    {"aios": {"app": {"title": …, "task": …, "summary": …, "needs": ["torch", …], "alone": […]}}}
"""

from __future__ import annotations

import difflib
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ..errors import ConflictError, NotFoundError
from ..schema import Struct

GROUP = "aios_jupyter.apps"
_SHIPPED = Path(__file__).parent / "apps"

log = logging.getLogger(__name__)


class App(Struct, frozen=True):
    """An application.

    Attributes
    ----------
    task
        What kind of thing it does: "tabular", "image classification".
    needs, missing
        Distributions that it uses, and those of them that are not installed here.
    alone
        Those of `needs` of which only files are used, so that what they need themselves is not wanted.
    origin
        The distribution that brings it.
    """

    name: str
    title: str
    task: str
    summary: str
    needs: tuple[str, ...]
    missing: tuple[str, ...]
    origin: str
    path: str
    alone: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """What to run before it; empty where all is installed."""
        whole = [need for need in self.missing if need not in self.alone]
        alone = [need for need in self.missing if need in self.alone]
        commands = [f"pip install {' '.join(whole)}"] if whole else []
        if alone:
            commands.append(f"pip install --no-deps {' '.join(alone)}")
        return " && ".join(commands)


class _About(Struct, frozen=True):
    title: str
    task: str = ""
    summary: str = ""
    needs: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()


class _Aios(Struct, frozen=True):
    app: _About


class _Metadata(Struct, frozen=True):
    aios: _Aios


class _Notebook(Struct, frozen=True):
    metadata: _Metadata


def apps() -> list[App]:
    """All applications, by name; one that cannot be read is left out, with a warning in the log."""
    found: dict[str, App] = {}
    for name, path, origin in _sources():
        try:
            about = msgspec.json.decode(path.read_bytes(), type=_Notebook).metadata.aios.app
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the application %s of %s cannot be read: %s", name, origin, error)
            continue
        missing = tuple(need for need in about.needs if not _installed(need))
        found.setdefault(
            name,
            App(
                name=name,
                title=about.title,
                task=about.task,
                summary=about.summary,
                needs=about.needs,
                missing=missing,
                origin=origin,
                path=str(path),
                alone=about.alone,
            ),
        )
    return [found[name] for name in sorted(found)]


def _sources() -> Iterator[tuple[str, Path, str]]:
    for path in sorted(_SHIPPED.glob("*.ipynb")):
        yield path.stem, path, "aios-jupyter"
    for point in importlib.metadata.entry_points(group=GROUP):
        origin = point.dist.name if point.dist else point.module
        try:
            path = Path(os.fspath(point.load()))
        except Exception as error:  # noqa: BLE001  # another package's code, which must not hide ours
            log.warning("the application %s of %s cannot be loaded: %s", point.name, origin, error)
            continue
        yield point.name, path, origin


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def install(name: str, to: str | Path | None = None) -> tuple[App, Path]:
    """Write an application's notebook to a file, `NAME.ipynb` here unless told otherwise.

    Raises
    ------
    NotFoundError
        There is no such application.
    ConflictError
        The file is there already, or cannot be written.
    """
    every = {app.name: app for app in apps()}
    if name not in every:
        near = difflib.get_close_matches(name, every, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(every)}."
        raise NotFoundError(f"There is no application '{name}'; {hint}")
    path = Path(to).expanduser() if to is not None else Path(f"{name}.ipynb")
    if path.is_dir():
        path /= f"{name}.ipynb"
    try:
        with path.open("xb") as file:
            file.write(Path(every[name].path).read_bytes())
    except FileExistsError:
        raise ConflictError(f"{path} is there already; name another file with -o.") from None
    except OSError as error:
        raise ConflictError(f"{path} cannot be written: {error.strerror}.") from None
    return every[name], path
