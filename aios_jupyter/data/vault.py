"""Datasets encrypted at rest, in the age format, for people whose keys are known here.

Whoever has a key decrypts with `aios data decrypt`, or with the standard tool: `age -d -i KEYFILE`. A
leaf module: it imports pyrage. Files are read and written as streams; a folder is a tar file within.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import pyrage

from ..config import settings
from ..errors import AccessError, AiosError, ConflictError, NotFoundError, UsageError
from . import layout, storage
from .catalog import Catalog, Entry, check_name, inspect
from .entries import ENCRYPTED, ending

_KEY = ".key"
_PUBLIC = ".pub"
_SPOOL = 64 * 1024 * 1024


# --- keys


def key_file(name: str) -> Path:
    """Where the secret key of somebody is, if it is theirs to use here."""
    return _keys() / f"{name}{_KEY}"


def key(name: str = "", public: str = "") -> str:
    """The public key of a person, made with its secret one where there is none yet.

    Parameters
    ----------
    name
        Whose; this user's by default.
    public
        Remember this as the key of somebody else (`age1…`), whose secret one is elsewhere.

    Raises
    ------
    ConflictError
        There is another key of that name.
    UsageError
        It is not a public key.
    """
    name = name or getpass.getuser()
    check_name(name)
    known = _public(name)
    if public:
        _recipient(public)
        if known and known != public:
            raise ConflictError(f"'{name}' has another key here; give the new one another name.")
        if known:
            return public
        _write_new(_keys() / f"{name}{_PUBLIC}", public + "\n", exist_ok=True)
        return public
    if known:
        return known
    identity = pyrage.x25519.Identity.generate()
    public = str(identity.to_public())
    # As age-keygen writes it, so that age -d -i reads it.
    _write_new(key_file(name), f"# public key: {public}\n{identity}\n")
    return public


def _keys() -> Path:
    path = settings().state_dir / "keys"
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def _write_new(path: Path, text: str, *, exist_ok: bool = False) -> None:
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if exist_ok else os.O_EXCL)
    file = os.fdopen(os.open(path, flags, 0o600), "w")
    try:
        with file:
            file.write(text)
    except OSError as error:
        # An empty file would be taken for a damaged key.
        path.unlink()
        raise storage.unwritable(path, error) from None


def _public(name: str) -> str:
    """The public key of a name, "" where none is known."""
    with contextlib.suppress(FileNotFoundError):
        return str(_identity(key_file(name)).to_public())
    with contextlib.suppress(FileNotFoundError):
        return (_keys() / f"{name}{_PUBLIC}").read_text().strip()
    return ""


def _identity(path: Path) -> Any:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    try:
        return pyrage.x25519.Identity.from_str(lines[0].strip())
    except (IndexError, pyrage.IdentityError):
        raise UsageError(f"{path} is not a key file of age; restore or remove it.") from None


def _identities() -> list[Any]:
    return [_identity(path) for path in sorted(_keys().glob(f"*{_KEY}"))]


def _recipient(text: str) -> Any:
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise UsageError(f"'{text}' is not a public key of age, which looks like age1….") from None


def _recipients(people: Sequence[str]) -> list[Any]:
    found = []
    for person in people:
        public = person if person.startswith("age1") else _public(person)
        if not public:
            raise NotFoundError(
                f"There is no key of '{person}'; make one with 'aios data identity {person}', or add "
                f"theirs with 'aios data identity {person} --public age1…'."
            )
        found.append(_recipient(public))
    return found


# --- datasets


def encrypt(
    ref: str | Entry, people: Sequence[str], to: str = "", *, catalog: Catalog | None = None
) -> Entry:
    """Make an encrypted copy of a dataset, as a new version of it or as `to`.

    The plain data stays where it is.

    Parameters
    ----------
    people
        Names with a key here, or public keys.

    Raises
    ------
    NotFoundError
        Somebody has no key here.
    """
    catalog = catalog or Catalog()
    entry = catalog.get(ref)
    name = to or entry.name
    check_name(name)
    if not people:
        raise UsageError("Say who may decrypt it, with --to NAME.")
    if entry.format == ENCRYPTED:
        raise ConflictError(f"'{entry.name}' is encrypted already.")
    recipients = _recipients(people)
    with storage.writing(), storage.scratch(name) as aside:
        with aside.open("wb") as target, _stream(entry) as source, _told(entry, aside.parent):
            pyrage.encrypt_io(source, target, recipients)
        path, content = layout.adopt(aside, name, f"{_suffix(entry)}.age")
        return catalog.put(
            msgspec.structs.replace(
                entry,
                name=name,
                url=str(path),
                format=ENCRYPTED,
                version=content.version,
                size=content.size,
                # Its statistics have values from the data.
                fields=(),
                made_from=(entry.ref,),
                how=f"encrypt: {', '.join(people)}",
            ),
            content.files,
        )


def decrypt(ref: str | Entry, to: str = "", *, catalog: Catalog | None = None) -> Entry:
    """Make a plain copy of an encrypted dataset, as a new version of it or as `to`.

    Raises
    ------
    AccessError
        No key here opens it.
    UsageError
        It is damaged, or is not encrypted.
    """
    catalog = catalog or Catalog()
    entry = catalog.get(ref)
    name = to or entry.name
    check_name(name)
    if entry.format != ENCRYPTED:
        raise UsageError(f"'{entry.name or entry.url}' is not encrypted.")
    suffix = ending(entry.url.removesuffix(".age"))
    fs, place = storage.locate(entry.url)
    with storage.writing(), storage.scratch(name) as aside, storage.scratch(name) as room:
        plain = room if suffix == ".tar" else aside
        with fs.open(place, "rb") as source, plain.open("wb") as target, _told(entry, aside.parent):
            pyrage.decrypt_io(source, target, _identities())
        if suffix != ".tar":
            path, content = layout.adopt(aside, name, suffix)
            found = _known(catalog, entry, str(path), content.version)
            made = {"made_from": (entry.ref,), "how": "decrypt", "size": content.size, "owner": ""}
            return catalog.put(msgspec.structs.replace(found, name=name, **made), content.files)
        aside.mkdir()
        with tarfile.open(room) as archive:
            archive.extractall(aside, filter="data")
        path = storage.data_dir(name) / f"{entry.version}-plain"
        storage.replace_directory(aside, path)
        return catalog.add(name, path, made_from=entry, how="decrypt")


def _known(catalog: Catalog, entry: Entry, url: str, version: str) -> Entry:
    """What the catalogue says of data that it had before it was encrypted; looked at if it has none."""
    for ref in entry.made_from:
        with contextlib.suppress(AiosError):
            found = catalog.get(ref)
            if found.version == version:
                return msgspec.structs.replace(found, url=url)
    found = inspect(url)
    return msgspec.structs.replace(found, tags=entry.tags)


def _suffix(entry: Entry) -> str:
    return ".tar" if _is_folder(entry) else ending(entry.url)


def _is_folder(entry: Entry) -> bool:
    fs, path = storage.locate(entry.url)
    return bool(fs.isdir(path))


@contextlib.contextmanager
def _stream(entry: Entry) -> Iterator[IO[bytes]]:
    """The data as one stream."""
    fs, path = storage.locate(entry.url)
    if not _is_folder(entry):
        try:
            file = fs.open(path, "rb")
        except OSError as error:
            raise storage.unreadable(entry.url, error) from None
        with file:
            yield file
        return
    root = path.rstrip("/") + "/"
    # A tar file has to be written before it is read; it may be larger than the memory.
    with tempfile.SpooledTemporaryFile(_SPOOL, dir=str(storage.data_dir())) as spool:
        with tarfile.open(fileobj=spool, mode="w") as archive:
            for found in sorted(fs.find(path)):
                member = tarfile.TarInfo(found.removeprefix(root))
                member.size = int(fs.size(found))
                with fs.open(found, "rb") as file:
                    archive.addfile(member, file)
        spool.seek(0)
        yield spool


@contextlib.contextmanager
def _told(entry: Entry, place: Path) -> Iterator[None]:
    """Turns what the library says into a sentence about the dataset, or where it is written to."""
    what = entry.name or entry.url
    try:
        yield
    except pyrage.EncryptError as error:
        raise storage.unwritable(place, _system_error(error)) from None
    except pyrage.DecryptError as error:
        if "No matching keys" in str(error):
            raise AccessError(
                f"No key of yours opens '{what}'; ask who encrypted it to do so for your public key "
                "('aios data identity')."
            ) from None
        if "OSError" in str(error):
            raise storage.unwritable(place, _system_error(error)) from None
        raise _damaged(entry, error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        # What the library's reader raises where a block does not decrypt.
        raise _damaged(entry, error) from None


def _system_error(error: Exception) -> OSError:
    """The error of the system that the library has made text of."""
    found = re.search(r"\[Errno (\d+)\]", str(error))
    if found is None:
        return OSError(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])))


def _damaged(entry: Entry, error: Exception) -> UsageError:
    return UsageError(f"{entry.url} is damaged ({error}); get it again.")
