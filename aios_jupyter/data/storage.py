"""Where data is: paths and URLs on any storage that fsspec knows, hashes, writing aside.

A leaf module: it imports fsspec, and is imported only where data is read or written.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import random
import re
import shutil
import socket
import tarfile
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from ..config import settings
from ..errors import (
    AccessError,
    AiosError,
    ConflictError,
    MissingExtraError,
    NotFoundError,
    UsageError,
)
from . import credentials
from .entries import packing

ATTEMPTS = 5
FIRST_PAUSE = 0.2
_CHECKSUMS = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
_Found = TypeVar("_Found")
# In a forked process fsspec forgets its file systems, and the end of one of hdfs-native's would wait
# for threads that only the parent has: a worker of torch's `DataLoader` would hang.
_hdfs: dict[int, Any] = {}
# They have errors of their own, which are no `OSError`.
_LIBRARIES = frozenset({"aiobotocore", "aiohttp", "botocore", "hdfs_native", "requests", "urllib3"})
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


@contextlib.contextmanager
def writing(*, alone: bool = False) -> Iterator[None]:
    """Held while data of the catalogue's own is written that no entry refers to yet.

    Parameters
    ----------
    alone
        For who removes such data: nobody else may write now.

    Raises
    ------
    ConflictError
        Somebody writes, and this one would be alone.
    """
    with (data_dir() / ".writing.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            raise ConflictError(
                "Data is being written just now; collect garbage when that is done."
            ) from None
        yield


def tree_size(path: Path) -> int:
    """Bytes of a file, or of all files of a directory; what vanishes meanwhile counts nothing."""
    if not path.is_dir() or path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            return path.lstat().st_size
        return 0
    total = 0
    with contextlib.suppress(FileNotFoundError):
        total = sum(tree_size(inner) for inner in path.iterdir())
    return total


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
            "The URL has a password in it; leave it out, store it with 'aios data keys add NAME', "
            "and write NAME@ before the host."
        )
    return url


def is_remote(url: str) -> bool:
    """Whether it is a URL of something other than a local file."""
    return re.match(r"[a-z][a-z0-9+.-]*::?//?", url) is not None and not url.startswith("file://")


def locate(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, with its credentials, and the path within it.

    Raises
    ------
    UsageError, MissingExtraError
        There is no such system, or what reads it is not installed.
    """
    scheme = url.partition("://")[0]
    if scheme in {"s3", "s3a"}:
        need("s3fs", "s3")
    elif scheme == "hdfs":
        # Fsspec's own wants a library of Hadoop's that no package has.
        need("hdfs_native", "hdfs")
        fsspec.register_implementation("hdfs", "hdfs_native.fsspec.HdfsFileSystem", clobber=True)
    bare, options = credentials.resolve(url) if is_remote(url) else (url, {})
    if scheme in {"s3", "s3a"}:
        # Servers other than Amazon's answer a range with the checksum of the whole, or know none.
        options = {**options, "config_kwargs": _CHECKSUMS | options.get("config_kwargs", {})}
    try:
        fs, path = fsspec.core.url_to_fs(bare, **options)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{url!r} is not a place that can be read: {error}.") from None
    except OSError as error:
        # Some connect at once, such as FTP.
        raise unreadable(url, error) from None
    if scheme == "hdfs":
        _hdfs[id(fs)] = fs
    return fs, path


def need(module: str, extra: str) -> None:
    """Raise `MissingExtraError` where a library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(module.replace("_", "-"), extra)


def retrying(work: Callable[[], _Found], attempts: int = ATTEMPTS) -> _Found:
    """Do something that a storage system may fail at once or twice, with growing pauses.

    What is missing, forbidden or senseless is not tried again.
    """
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:
            if attempt == attempts or not (isinstance(error, OSError) or _is_foreign(error)):
                raise
            # Half of the pause is random, so that many clients do not come back at once.
            pause = FIRST_PAUSE * 2 ** (attempt - 1)
            time.sleep(pause * (1 + random.random()) / 2)  # noqa: S311
    raise AssertionError("an attempt returns or raises")


def _is_foreign(error: Exception) -> bool:
    """Whether a storage library raised it, of a class of its own."""
    return type(error).__module__.split(".")[0] in _LIBRARIES


def read_file(url: str, name: str) -> bytes:
    """The bytes of one file of a folder."""
    fs, path = locate(url)
    whole = f"{path.rstrip('/')}/{name}"
    with reading(f"{url}/{name}"):
        # A local disk that fails once fails again.
        return bytes(retrying(lambda: fs.cat_file(whole), ATTEMPTS if is_remote(url) else 1))


def read_unpacked(url: str, name: str) -> bytes:
    """`read_file` of what may be compressed."""
    blob = read_file(url, name)
    if packing(name):
        from . import packed

        with reading(f"{url}/{name}"):
            return packed.whole(blob, f"{url}/{name}")
    return blob


def joined(root: str, name: str) -> str:
    """The path or URL of a file of a folder; "" names the dataset that is a single file."""
    return f"{root.rstrip('/')}/{name}" if name else root


def exists(url: str) -> bool:
    """Whether something is there."""
    fs, path = locate(url)
    return bool(fs.exists(path))


def is_folder(url: str) -> bool:
    """Whether a folder is there, or what storage without folders takes for one."""
    fs, path = locate(url)
    with reading(url):
        return bool(fs.isdir(path))


@contextlib.contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns what a damaged or missing file raises into one sentence that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise unreadable(url, error) from None
    except Exception as error:
        if not _is_foreign(error):
            raise
        raise unreadable(url, error) from None


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """`reading` for who looks at a place in order to write there."""
    with reading(url):
        try:
            yield
        except PermissionError as error:
            raise unwritable(url, error) from None


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
        # HDFS moves nothing to where something is, and WebHDFS says no word of it.
        if url.startswith(("hdfs://", "webhdfs://")) and fs.exists(path):
            fs.rm(path)
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
    if isinstance(error, PermissionError) and is_remote(str(place)):
        return AccessError(
            f"{place} may not be written with these credentials; ask its owner for permission, or "
            "name others in the URL, as in s3://NAME@bucket."
        )
    # Hadoop says where in its code, too.
    reason = str(error.strerror or error).partition("\n")[0]
    return AiosError(
        f"{place} cannot be written ({reason}); check the space and permissions there."
    )


def _behind(error: FileNotFoundError) -> Exception:
    """What is behind a file that is missing: over HTTP all that goes wrong is called so."""
    cause = error.__cause__
    status = getattr(cause, "status", 0)
    if not isinstance(cause, Exception) or not _is_foreign(cause) or status in {404, 410}:
        return error
    return PermissionError() if status in {401, 403} else cause


def unreadable(url: str, error: Exception) -> AiosError:
    """The sentence for a file that is missing, not permitted, or damaged."""
    if isinstance(error, FileNotFoundError):
        error = _behind(error)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"There is nothing at {url}; check the path or URL.")
    if isinstance(error, PermissionError) or "credential" in type(error).__name__.lower():
        return AccessError(
            f"{url} may not be read with these credentials; ask its owner for permission, or name "
            "others in the URL, as in s3://NAME@bucket."
        )
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror) or _is_foreign(error):
        return AiosError(
            f"The storage of {url} does not answer ({type(error).__name__}); check the address and "
            "try again."
        )
    return UsageError(f"{url} is damaged or not what its name says ({error}); get it again.")
