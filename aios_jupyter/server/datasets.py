"""REST under `aios/` for the catalogue of data, as this server's user sees it.

GET aios/datasets               the newest version of each dataset
GET aios/datasets/NAME          all its versions, the newest first
GET aios/datasets/REF/picture   what the newest, or NAME@VERSION, looks like: a PNG

Pictures are made by a process of their own: what reads data takes more memory than the rest of the
extension, and the data may be anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from ..errors import ConflictError, NotFoundError
from .routes import AiosHandler
from .stream import Stream

AIOS = (sys.executable, "-c", "from aios_jupyter.commands import main; main()")
PATIENCE = 60.0
AT_ONCE = 2
KEPT = 32


class Pictures:
    """Pictures of datasets by `name@version`, a few of them kept: a version never changes."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def of(self, ref: str) -> bytes:
        """The picture of a dataset.

        Raises
        ------
        NotFoundError
            It has none; the sentence says why.
        """
        if ref not in self._kept:
            async with self._turn:
                self._kept[ref] = await _drawn(ref)
            for old in list(self._kept)[:-KEPT]:
                del self._kept[old]
        return self._kept[ref]


class DatasetsHandler(AiosHandler):
    """The catalogue."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with the newest version of each dataset."""
        self.answer({"datasets": await asyncio.to_thread(_datasets)})


class DatasetHandler(AiosHandler):
    """One dataset."""

    @web.authenticated
    @authorized
    async def get(self, name: str) -> None:
        """Answer with all its versions, the newest first."""
        self.answer({"name": name, "versions": await asyncio.to_thread(_versions, name)})


class PictureHandler(AiosHandler):
    """What a dataset looks like."""

    def initialize(self, stream: Stream, pictures: Pictures) -> None:  # type: ignore[override]
        """Take the pictures that the extension keeps."""
        super().initialize(stream)
        self.pictures = pictures

    @web.authenticated
    @authorized
    async def get(self, ref: str) -> None:
        """Answer with a PNG."""
        # What is not in the catalogue could be any path or URL.
        name, _, version = ref.partition("@")
        versions = await asyncio.to_thread(_versions, name)
        known = [row["version"] for row in versions if version in ("", row["version"])]
        if not known:
            raise NotFoundError(f"There is no dataset {ref!r}; 'aios data ls' lists them.")
        self.finish(await self.pictures.of(f"{name}@{known[0]}"), set_content_type="image/png")


def handlers(
    stream: Stream, pictures: Pictures
) -> list[tuple[str, type[AiosHandler], dict[str, Any]]]:
    """The routes, for `ExtensionApp.handlers`."""
    one = r"([^/]+)"
    drawn = {"stream": stream, "pictures": pictures}
    return [
        (r"/aios/datasets", DatasetsHandler, {"stream": stream}),
        (rf"/aios/datasets/{one}", DatasetHandler, {"stream": stream}),
        (rf"/aios/datasets/{one}/picture", PictureHandler, drawn),
    ]


def _datasets() -> list[dict[str, Any]]:
    from ..session import connect

    with connect(start=False, passive=True, label="server") as session:
        found = _plain(session.datasets())
    # A page that lists many has no use for the statistics of their columns.
    return [{name: value for name, value in row.items() if name != "fields"} for row in found]


def _versions(name: str) -> list[dict[str, Any]]:
    from ..session import connect

    with connect(start=False, passive=True, label="server") as session:
        return _plain(session.data_versions(name))[::-1]


def _plain(entries: object) -> list[dict[str, Any]]:
    """As JSON has them, which has no word for a number that is not finite."""
    import msgspec

    rows: list[dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(entries))
    return rows


async def _drawn(ref: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="aios-picture-") as scratch:
        path = Path(scratch, "picture.png")
        process = await asyncio.create_subprocess_exec(
            *(*AIOS, "data", "show", ref, "--picture", str(path)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                _, said = await process.communicate()
        except TimeoutError:
            raise ConflictError(
                f"A picture of {ref} takes over {PATIENCE:.0f} s; look at 'aios data show {ref}'."
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines()
            raise NotFoundError(lines[-1] if lines else f"There is no picture of {ref}.")
        return await asyncio.to_thread(path.read_bytes)
