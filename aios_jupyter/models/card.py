"""What is known about a version in one place, and what differs between two.

Importing this module is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AiosError, ConflictError, UsageError
from ..schema import Struct
from .registry import ModelVersion, fetch, resolve

if TYPE_CHECKING:
    from .trust import Trust


class StoredFile(Struct):
    """A file of a version: its path, bytes, and the sha256 it was published with."""

    name: str
    size: int
    sha256: str


class ModelCard(Struct):
    """A version with all that is known about it.

    Attributes
    ----------
    files
        What is stored, with the hashes of the time of publishing.
    intact
        Whether the files are still those; None where nothing was recorded (another tool made it).
    problem
        What is wrong with them, as a sentence.
    history
        Versions that each of this version's aliases has named before.
    edges
        Where it comes from and where it is: pairs of names, from data by way of the run to the
        version, and from there to endpoints.
    """

    version: ModelVersion
    files: tuple[StoredFile, ...] = ()
    intact: bool | None = None
    problem: str = ""
    history: dict[str, list[int]] = {}
    edges: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def card(
    ref: str, endpoints: Sequence[Mapping[str, Any]] = (), trust: Trust | None = None
) -> ModelCard:
    """The model card of `ref`; its files are read and compared with their hashes.

    Parameters
    ----------
    endpoints
        Live endpoints (rows with `name` and `model`), for the end of the lineage.
    trust
        Whose signatures count; the settings say so where it is None.
    """
    version = resolve(ref, trust)
    from .aliases import history

    files, intact, problem = _checked(version)
    past = history(version.name)
    served = [row["name"] for row in endpoints if row["model"] == version.ref]
    return ModelCard(
        version=version,
        files=files,
        intact=intact,
        problem=problem,
        history={alias: past[alias] for alias in version.aliases if past.get(alias)},
        edges=tuple(lineage_edges(version, _sources(version), served)),
    )


def verify(ref: str, trust: Trust | None = None) -> ModelVersion:
    """A version whose files and signatures were checked.

    Raises
    ------
    ConflictError
        A file is missing or was changed, or a signature does not hold.
    AccessError
        Nobody known has signed it, where that is required.
    UsageError
        There is nothing to hold its files against.
    """
    from .predictor import verify as compare_files

    version = resolve(ref, trust)
    package = fetch(version.ref, trust)
    if not package.files:
        raise UsageError(
            f"{version.ref} was registered by another tool, without hashes of its files; publish it "
            "with aios publish to be able to verify it."
        )
    compare_files(package)
    return version


def _checked(version: ModelVersion) -> tuple[tuple[StoredFile, ...], bool | None, str]:
    from .predictor import verify

    try:
        package = fetch(version.ref, use=False)
    except AiosError as error:
        return (), False, str(error)
    root = Path(package.path)
    found = tuple(
        StoredFile(name=name, size=path.stat().st_size, sha256=sha256)
        for name, sha256 in package.files.items()
        if (path := root / name).is_file()
    )
    if not package.files:
        return found, None, ""
    try:
        verify(package)
    except ConflictError as error:
        return found, False, str(error)
    return found, True, ""


def _sources(version: ModelVersion) -> dict[str, tuple[str, ...]]:
    """Datasets by name, with what each was made from, back to the first."""
    start = version.lineage.get("data")
    if not start:
        return {}
    from ..data.catalog import Catalog

    catalog = Catalog()
    found: dict[str, tuple[str, ...]] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = catalog.get(name).made_from
        except AiosError:
            found[name] = ()  # another user's catalogue has it, or it has gone
        waiting += found[name]
    return found


def lineage_edges(
    version: ModelVersion, sources: Mapping[str, Sequence[str]], endpoints: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """From data to endpoints, as pairs. Pure."""
    for dataset, made_from in sources.items():
        for source in made_from:
            yield source, dataset
    run, data = version.lineage.get("run"), version.lineage.get("data")
    if data and run:
        yield data, f"run {run}"
    elif data:
        yield data, version.ref
    if run:
        yield f"run {run}", version.ref
    if before := version.lineage.get("optimized_from"):
        yield before, version.ref
    for endpoint in endpoints:
        yield version.ref, f"endpoint {endpoint}"


def paths(edges: Sequence[tuple[str, str]]) -> list[list[str]]:
    """The edges as lines from each beginning to each end. Pure; edges have no circles."""
    after: dict[str, list[str]] = {}
    for start, end in edges:
        after.setdefault(start, []).append(end)
    ends = {end for _, end in edges}
    lines: list[list[str]] = []

    def walk(line: list[str]) -> None:
        following = [name for name in after.get(line[-1], ()) if name not in line]
        if not following:
            lines.append(line)
        for name in following:
            walk([*line, name])

    for start in after:
        if start not in ends:
            walk([start])
    return lines


def compare(first: str, second: str) -> list[dict[str, Any]]:
    """What two versions say differently, and their figures side by side.

    Each row has "what", "a", "b" and, for numbers, "change" (b less a). Figures come first, and are
    there also when they are equal.
    """
    a, b = card(first), card(second)
    rows = list(_figures(a, b))
    sides = {
        "made with": (a.version.framework, b.version.framework),
        "takes": (a.version.signature.get("inputs"), b.version.signature.get("inputs")),
        "gives": (a.version.signature.get("outputs"), b.version.signature.get("outputs")),
    }
    for what, one, two in (
        ("", a.version.params, b.version.params),
        ("", a.version.lineage, b.version.lineage),
        ("tag ", own_tags(a.version), own_tags(b.version)),
    ):
        sides |= {what + key: (one.get(key), two.get(key)) for key in {**one, **two}}
    return rows + [
        {"what": what, "a": one, "b": two} for what, (one, two) in sides.items() if one != two
    ]


def _figures(a: ModelCard, b: ModelCard) -> Iterator[dict[str, Any]]:
    one, two = dict(a.version.metrics), dict(b.version.metrics)
    one["stored bytes"], two["stored bytes"] = a.size, b.size
    for key in {**one, **two}:
        row = {"what": key, "a": one.get(key), "b": two.get(key)}
        if key in one and key in two:
            row["change"] = two[key] - one[key]
        yield row


def own_tags(version: ModelVersion) -> dict[str, str]:
    """The tags that people have set."""
    return {k: v for k, v in version.tags.items() if not k.startswith(("aios.", "mlflow."))}
