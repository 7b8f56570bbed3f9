"""Which files a dataset consists of, by its format, and what they hash to.

A leaf module: it imports fsspec, through `storage`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..schema import Struct
from .ahead import ahead
from .entries import ending, packed_suffixes
from .storage import (
    data_dir,
    is_remote,
    locate,
    reading,
    replace_directory,
    retrying,
    unreadable,
)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})

# What a folder of each format has; of images, sounds and texts a subfolder for each class.
SUFFIXES: dict[str, frozenset[str]] = {
    "folder": IMAGE_SUFFIXES,
    "npz": frozenset({".npz"}),
    "npy": frozenset({".npy"}),
    "parquet": frozenset({".parquet", ".pq"}),
    "csv": frozenset({".csv", ".tsv", *packed_suffixes(".csv", ".tsv")}),
    "jsonl": frozenset({".jsonl", ".ndjson", *packed_suffixes(".jsonl", ".ndjson", ".json")}),
    "sounds": frozenset({".wav"}),
    "text": frozenset({".txt", *packed_suffixes(".txt")}),
    "webdataset": frozenset({".tar"}),
}
_FOLDERS = ("folder", "sounds", "text", "webdataset", "parquet", "csv", "jsonl")
# A folder with one of these is an array or a group of Zarr's, of which all files count.
ZARR = "zarr"
_ZARR_MARKS = frozenset({"zarr.json", ".zarray", ".zgroup"})
# The format of a table of a database, which has no files.
DATABASE = "database"
_DATABASES = frozenset({"postgresql", "sqlite", "mysql", "mariadb", "mssql", "oracle"})
# What fsspec's file systems call an ETag, or the time of the last change: the first that there is.
_MARKS = ("ETag", "etag", "mtime", "LastModified", "modificationTime", "modification_time")
BLOCK = 8 * 2**20
HASHERS = min(4, os.cpu_count() or 1)


class FileCheck(Struct, frozen=True):
    """One file of a dataset (`""`: the dataset is a single file), its size and its blocks' hashes.

    A block is `BLOCK` bytes; its hash the first 16 bytes of its SHA-256. `modified` is the time of a
    local file in nanoseconds, `mark` what the storage of another calls its content: an ETag, or a time.
    They are 0 and "" where there is none, and of what was added before these were kept.
    """

    name: str
    size: int
    blocks: tuple[bytes, ...]
    modified: int = 0
    mark: str = ""

    @property
    def stamp(self) -> int | str:
        """What tells that the file is another without a look into it; 0 or "" where nothing does."""
        return self.mark or self.modified


@dataclass(frozen=True)
class Content:
    """What a dataset's bytes hash to: a short hash of all of it, bytes, and each file's blocks."""

    version: str
    size: int
    files: tuple[FileCheck, ...]


def is_database(url: str) -> bool:
    """Whether a URL is that of a database rather than of files."""
    scheme, mark, _ = url.partition("://")
    return bool(mark) and scheme.partition("+")[0] in _DATABASES


def detect_format(url: str) -> str:
    """The format of a file or folder, by suffixes.

    Raises
    ------
    NotFoundError
        There is nothing.
    UsageError
        It is something else.
    """
    if is_database(url):
        return DATABASE
    suffix = ending(url).lower()
    fs, path = locate(url)
    with reading(url):
        # `exists` says no, too, to who may not look.
        kind = fs.info(path)["type"]
    if kind == "directory":
        return _detect_folder(url)
    for form, suffixes in SUFFIXES.items():
        if suffix in suffixes and form != "folder":
            return form
    raise UsageError(
        f"{url} is not a dataset that can be read; these are: .npz, .npy, .parquet, .csv, .tsv, .jsonl, .txt "
        "(also .csv.gz, .csv.zst and so on), .wav and WebDataset .tar files, folders of such files or "
        "of images, with a subfolder per class where they have labels, and of Zarr."
    )


def _detect_folder(url: str) -> str:
    counts: Counter[str] = Counter()
    names = _find(url)
    if not _ZARR_MARKS.isdisjoint(names):
        return ZARR
    for name in (name for name in names if not _is_hidden(name)):
        suffix = ending(name).lower()
        counts.update(form for form in _FOLDERS if suffix in SUFFIXES[form])
    # A README beside the images is no reason to take the folder for text.
    best = counts.most_common(1)
    return best[0][0] if best else "folder"


def list_files(url: str, form: str) -> list[str]:
    """The files of a folder that a format takes, in order, as paths relative to it.

    Raises
    ------
    UsageError
        There are none, or one is a link out of the folder.
    """
    names = [name for name in _find(url) if takes(form, name)]
    if form == "folder":
        # One that lies beside classes is of none.
        names = [name for name in names if "/" in name] or names
    if not names and form == "folder":
        raise UsageError(
            f"{url} has no images, which are files such as {', '.join(sorted(IMAGE_SUFFIXES)[:3])}, in one "
            "subfolder per class where they have labels."
        )
    if not names:
        ends = " or ".join(sorted(SUFFIXES.get(form, ())))
        raise UsageError(f"{url} has no files" + (f" with the ending {ends}." if ends else "."))
    if not is_remote(url):
        _check_links(Path(url), names)
    return sorted(names)


def list_images(url: str) -> list[str]:
    """The images of a folder in order, as paths `class/…/file` relative to it."""
    return list_files(url, "folder")


def named_files(url: str, form: str) -> tuple[str, list[str]]:
    """The folder and the names in it of a dataset, which may also be a single file."""
    fs, path = locate(url)
    if fs.isdir(path):
        return url, list_files(url, form)
    root, _, name = url.rpartition("/")
    return root, [name]


def _find(url: str) -> list[str]:
    fs, path = locate(url)
    root = path.rstrip("/") + "/"
    with reading(url):
        found = [name.removeprefix(root) for name in fs.find(path)]
    for name in found:
        # Keys of a bucket are any text, and to leave this one out unsaid would lose it.
        if ".." in name.split("/"):
            raise UsageError(f"{name} in {url} leads out of the folder; rename or remove it.")
    return found


def takes(form: str, name: str) -> bool:
    """Whether a file of a folder belongs to a dataset of a format."""
    if form == ZARR:
        return not name.endswith(".partial")
    return not _is_hidden(name) and ending(name).lower() in SUFFIXES[form]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def _check_links(root: Path, names: Iterable[str]) -> None:
    real = os.path.realpath(root)
    for name in names:
        target = os.path.realpath(root / name)
        if os.path.commonpath([real, target]) != real:
            raise UsageError(
                f"{name} in {root} is a link that leads out of the folder; copy the file there."
            )


def file_classes(names: Iterable[str]) -> list[str]:
    """The classes of a folder's files: its subfolders, in order; none if a file lies beside them."""
    names = list(names)
    if not all("/" in name for name in names):
        return []
    return sorted({name.split("/")[0] for name in names})


def class_counts(names: Iterable[str]) -> dict[str, int]:
    """The classes of a folder's files as `file_classes` has them, and how many files each has."""
    names = list(names)
    counts = Counter(name.split("/")[0] for name in names)
    return {name: counts[name] for name in file_classes(names)}


def content(url: str, form: str) -> Content:
    """Read a dataset once, for its hashes."""
    if form == DATABASE:
        from . import attached

        digest, size = attached.fingerprint(url)
        return Content(digest[:12], size, ())
    fs, path = locate(url)
    # Before they are read: what is written meanwhile has another mark.
    marks = remote_stamps(url) if is_remote(url) else {}
    if not fs.isdir(path):
        digest, check = _hash_file(fs, path, "", url, marks)
        return Content(digest[:12], check.size, (check,))
    digests, files = [], []
    for name in list_files(url, form):
        place = f"{path.rstrip('/')}/{name}"
        digest, check = _hash_file(fs, place, name, f"{url}/{name}", marks)
        digests.append((name, digest))
        files.append(check)
    return Content(together(digests), sum(f.size for f in files), tuple(files))


def _hash_file(
    fs: Any, path: str, name: str, url: str, marks: Mapping[str, tuple[int, str]]
) -> tuple[str, FileCheck]:
    """A file's hash and its blocks'."""
    try:
        modified = 0 if is_remote(url) else Path(path).stat().st_mtime_ns
        with fs.open(path, "rb") as file:
            digest, size, blocks = hashed(file)
    except OSError as error:
        raise unreadable(url, error) from None
    mark = marks.get(name, (0, ""))[1]
    return digest, FileCheck(name=name, size=size, blocks=blocks, modified=modified, mark=mark)


def hashed(file: Any) -> tuple[str, int, tuple[bytes, ...]]:
    """A file's hash, its size and its blocks' hashes, as `FileCheck` has them.

    The hash is that of its only block, or of all block hashes.
    """
    found = list(block_hashes(file))
    digests = [digest for _, digest in found]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    return whole.hex(), sum(size for size, _ in found), tuple(d[:16] for d in digests)


def together(digests: Iterable[tuple[str, str]]) -> str:
    """The version of a folder, from names and hashes of its files in order."""
    whole = hashlib.sha256()
    for name, digest in digests:
        whole.update(f"{name}\0{digest}\n".encode())
    return whole.hexdigest()[:12]


def block_hashes(file: Any) -> Iterator[tuple[int, bytes]]:
    """Length and SHA-256 of each block of a file, several at a time; one of an empty file.

    It is hashing that takes the time, not reading.
    """
    blocks = _blocks(file)
    first = next(blocks)
    if len(first) < BLOCK:
        yield _hash(first)
        return
    with ThreadPoolExecutor(HASHERS) as pool:
        for future in ahead(pool, _hash, chain([first], blocks), 2 * HASHERS):
            yield future.result()


def _hash(block: bytes) -> tuple[int, bytes]:
    return len(block), hashlib.sha256(block).digest()


def _blocks(file: Any) -> Iterator[bytes]:
    data = _block(file)
    yield data
    while len(data) == BLOCK and (data := _block(file)):
        yield data


def _block(file: Any) -> bytes:
    data: bytes = file.read(BLOCK)
    while 0 < len(data) < BLOCK and (more := file.read(BLOCK - len(data))):
        data += more  # some storage gives less than was asked for
    return data


def belongs(form: str, name: str, known: Collection[str]) -> bool:
    """Whether a file of a folder is one of a dataset that has `known` files, or would be a new one."""
    if name in known:
        return True
    beside = form == "folder" and "/" not in name and any("/" in one for one in known)
    return takes(form, name) and not beside


def stamps(url: str, form: str, known: Collection[str]) -> dict[str, tuple[int, int]]:
    """Size and time of each file of a local dataset, without a look into any; {} where there is none.

    Parameters
    ----------
    known
        Names that belong to the dataset, whatever others do.
    """
    root = Path(url)
    if not root.is_dir():
        with contextlib.suppress(FileNotFoundError):
            return {"": stamp(root)}
        return {}
    found = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = folder + entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                # A link to a folder is not followed by who lists the files either.
                elif name in known or (belongs(form, name, known) and entry.is_file()):
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat()
                        found[name] = facts.st_size, facts.st_mtime_ns
    return found


def remote_stamps(url: str) -> dict[str, tuple[int, str]]:
    """Size and mark of each file that lies at a URL, as its storage says now: one request for many.

    {} where there is nothing.
    """
    fs, path = locate(url)
    with reading(url):
        # A file system remembers what it has listed, and others write there too.
        fs.invalidate_cache(path)
        try:
            about = retrying(lambda: fs.info(path))
            if about["type"] != "directory":
                return {"": (int(about["size"]), mark_of(about))}
            found = retrying(lambda: fs.find(path, detail=True))
        except FileNotFoundError:
            return {}
    root = path.rstrip("/") + "/"
    return {
        name.removeprefix(root): (int(about["size"]), mark_of(about))
        for name, about in found.items()
    }


def mark_of(about: Mapping[str, Any]) -> str:
    """What a storage says of a file that is another when the file is; "" where it says nothing."""
    for key in _MARKS:
        if about.get(key):
            return str(about[key]).strip('"')
    return ""


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def adopt(aside: Path, name: str, suffix: str, form: str = "folder") -> tuple[Path, Content]:
    """Move a finished file or folder to where the data of `name` is kept, named by its hash.

    Parameters
    ----------
    form
        Which files of a folder count.

    Returns
    -------
    path, content
        Where it is now, and its hashes.
    """
    found = content(str(aside), form)
    path = data_dir(name) / f"{found.version}{suffix}"
    if aside.is_dir():
        replace_directory(aside, path)
    else:
        aside.replace(path)
    return path, found
