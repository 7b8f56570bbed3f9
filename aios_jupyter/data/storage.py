"""Where data is: paths and URLs on any storage that fsspec knows, hashes, writing aside.

A leaf module: it imports fsspec, and is imported only where data is read or written.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec

from ..config import settings
from ..errors import AiosError, NotFoundError, UsageError

# What libraries raise for files that are cut off, damaged, or something else.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, tarfile.TarError, NotImplementedError),
    *(ValueError, EOFError, OSError, KeyError),
)


def data_dir(*parts: str) -> Path:
    """The directory (made if need be) for data that this user's clusters write by themselves."""
    path = settings().state_dir.joinpath("data", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def absolute(url: str) -> str:
    """The URL as the catalogue keeps it: a local path made absolute, anything else as it is.

    Raises
    ------
    UsageError
        The URL has a password in it; the catalogue is no place for secrets.
    """
    if not is_remote(url):
        return str(Path(url.removeprefix("file://")).expanduser().resolve())
    if urlsplit(url).password is not None:
        raise UsageError(
            "The URL has a password in it; leave it out and set it in the environment or the "
            "storage system's own configuration file."
        )
    return url


def is_remote(url: str) -> bool:
    """Whether it is a URL of something other than a local file."""
    return re.match(r"[a-z][a-z0-9+.-]*::?//?", url) is not None and not url.startswith("file://")


def locate(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path within it."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{url!r} is not a place that can be read: {error}.") from None
    return fs, path


def read_file(url: str, name: str) -> bytes:
    """The bytes of one file of a folder."""
    fs, path = locate(url)
    try:
        return bytes(fs.cat_file(f"{path.rstrip('/')}/{name}"))
    except OSError as error:
        raise unreadable(f"{url}/{name}", error) from None


def exists(url: str) -> bool:
    """Whether something is there."""
    fs, path = locate(url)
    return bool(fs.exists(path))


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns what a damaged or missing file raises into one sentence that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise unreadable(url, error) from None


@contextlib.contextmanager
def written_aside(url: str) -> Iterator[IO[bytes]]:
    """A file to write, moved to `url` when the block ends well and removed when it does not."""
    fs, path = locate(url)
    parent, _, name = path.rpartition("/")
    aside = f"{parent}/.{name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        fs.makedirs(parent or "/", exist_ok=True)
        with fs.open(aside, "wb") as file:
            yield file
        fs.mv(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fs.rm(aside)
        if isinstance(error, OSError):
            raise unwritable(url, error) from None
        raise


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A path beside the own files of dataset `name`; what is still there at the end is removed."""
    aside = data_dir(name) / f".{uuid.uuid4().hex[:8]}.partial"
    try:
        yield aside
    except OSError as error:
        raise unwritable(aside.parent, error) from None
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)


def replace_directory(aside: Path, target: Path) -> None:
    """Move a finished local directory into place; what was there goes first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
        target.rename(old)
        aside.rename(target)
        shutil.rmtree(old)
    else:
        aside.rename(target)


def unwritable(place: object, error: OSError) -> AiosError:
    """The sentence for a failed write."""
    return AiosError(
        f"{place} cannot be written ({error.strerror or error}); check the space and permissions "
        "there."
    )


def unreadable(url: str, error: Exception) -> AiosError:
    """The sentence for a file that is missing, not permitted, or damaged."""
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"There is nothing at {url}; check the path or URL.")
    if isinstance(error, PermissionError):
        return AiosError(f"{url} may not be read by this user; ask its owner for permission.")
    return UsageError(f"{url} is damaged or not what its name says ({error}); get it again.")
