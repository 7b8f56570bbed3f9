"""Label noise: rows whose label is probably another, found by confident learning.

A model judges each row without having seen it (cross-validation). Where it is as sure of another
class as it is, on average, of the rows that have that label, the label is suspected: Northcutt,
Jiang and Chuang, "Confident Learning", JAIR 70 (2021), section 3.1. A leaf module: it imports
scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, UsageError
from .catalog import Catalog, check_name, readable
from .entries import Entry
from .rows import is_table, source_of
from .selection import keep
from .suggest import is_apart, steps
from .tables import LABELS

EXTRA = "labels"
# Images are looked at so small: what they show is still seen, and neighbors are found.
SIDE = 32
_AT_ONCE = 1024
# More features than these are brought to fewer first, learned from some of the rows.
_WIDE, _COMPONENTS, _LEARNED_FROM = 64, 50, 20_000
_MOST_CLASSES = 1000

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Suspects:
    """Rows whose label is doubted, the most doubtful first.

    Attributes
    ----------
    entry
        The dataset.
    rows
        Their numbers, from 0.
    given, likely
        The label of each, and the one that the model is sure of.
    given_probability, likely_probability
        What the model says of the two, from 0 to 1.
    judged
        How many rows were judged: those without a label, and of classes with fewer rows than there are
        folds, are not.
    accuracy
        The share of judged rows whose label the model says, too, from 0 to 1: where it is small, its
        doubts are worth little.
    """

    entry: Entry
    rows: Ints
    given: tuple[str, ...]
    likely: tuple[str, ...]
    given_probability: Floats
    likely_probability: Floats
    judged: int
    accuracy: float


def label_noise(
    ref: str | Path | Entry,
    *,
    label: str = "",
    features: Any = None,
    folds: int = 5,
    seed: int = 0,
    catalog: Catalog | None = None,
    on_progress: Progress | None = None,
) -> Suspects:
    """Find the rows whose label is probably wrong.

    Tables are judged by extremely randomized trees on features as `data features` makes them, images
    and wide arrays by the nearest neighbors of their principal components.

    Parameters
    ----------
    label
        A table's column; by default the one that is named like a label.
    features
        What to judge by in place of the rows themselves, such as a network's embeddings: an array of
        (rows, features), or the name of a dataset of one.
    folds
        Into so many parts the rows are divided; the model for one is trained on the others.
    on_progress
        Called with folds done and folds in all.

    Raises
    ------
    UsageError
        There are no labels, or they are no classes.
    MissingExtraError
        scikit-learn is not installed.
    """
    _sklearn()
    if folds < 2:
        raise UsageError(f"{folds} is no number of folds; give 2 or more.")
    catalog = catalog or Catalog()
    entry = readable(catalog.get(ref))
    if is_table(entry):
        x, words = _of_table(entry, label, catalog, whole=features is None)
    else:
        x, words = _of_arrays(entry, label, whole=features is None)
    if features is not None:
        x = _given(features, len(words), catalog)
    rows, classes, y = _judged(words, folds, entry)
    told = _probabilities(x[rows], y, folds, seed, on_progress)
    doubted, likely = confident(told, y)
    found = np.flatnonzero(doubted)
    own, other = told[found, y[found]], told[found, likely[found]]
    order = np.argsort(own - other, kind="stable")
    found = found[order]
    return Suspects(
        entry=entry,
        rows=rows[found],
        given=tuple(classes[y[found]]),
        likely=tuple(classes[likely[found]]),
        given_probability=own[order],
        likely_probability=other[order],
        judged=len(rows),
        accuracy=float((told.argmax(1) == y).mean()),
    )


def without(found: Suspects, name: str, catalog: Catalog | None = None) -> Entry:
    """Keep the dataset without its suspects as dataset `name`.

    Raises
    ------
    UsageError
        There are none, or its format cannot be written.
    """
    check_name(name)
    if not len(found.rows):
        raise UsageError(
            f"No label of {found.entry.ref} is suspected, so that '{name}' is not made."
        )
    rows = np.ones(found.entry.rows, bool)
    rows[found.rows] = False
    how = f"label-noise: {len(found.rows):,} of {found.entry.rows:,} rows dropped"
    return keep(found.entry, rows, name, how, catalog)


def confident(told: Floats, y: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Which labels are doubted, by what a model says of rows that it has not seen.

    Parameters
    ----------
    told
        (rows, classes): the probability of each class.
    y
        (rows,): the class that each has; all occur.

    Returns
    -------
    doubted, likely
        (rows,): whether the label is another's, and the class that the model is sure of. It is sure of
        a class whose probability is at least what it is on average for rows with that label.
    """
    counts = np.bincount(y, minlength=told.shape[1])
    thresholds = np.bincount(y, told[np.arange(len(y)), y], minlength=told.shape[1]) / counts
    sure = told >= thresholds
    likely = np.where(sure, told, -1.0).argmax(1)
    return sure.any(1) & (likely != y), likely


# --- what is judged


def _of_table(entry: Entry, label: str, catalog: Catalog, whole: bool) -> tuple[Any, Any]:
    """Features and labels of a table; without the features where others are given."""
    from .recipe import Recipe

    frame = catalog.frame(entry)
    label = label or next((name for name in LABELS if name in frame.columns), "")
    if label not in frame.columns:
        what = f"There is no column '{label}'" if label else "No column is named like a label"
        few = ", ".join(map(str, frame.columns[:12]))
        raise UsageError(f"{what} in '{entry.name}'; write --label with one of {few}.")
    if not whole:
        return None, frame[label]
    rest = frame[[name for name in frame.columns if name != label and not is_apart(str(name))]]
    if not len(rest.columns):
        raise UsageError(f"'{entry.name}' has no column besides its label to judge it by.")
    made = Recipe(steps(rest, "features")).fit_transform(rest)
    # What is missing everywhere still is.
    return np.nan_to_num(made.to_numpy(np.float32)), frame[label]


def _of_arrays(entry: Entry, label: str, whole: bool) -> tuple[Any, Any]:
    """Features and labels of images and arrays."""
    import pandas as pd

    if label and label not in LABELS:
        raise UsageError(f"'{entry.name}' is {entry.format}, which has no columns: omit --label.")
    source = source_of(entry)
    rows = np.arange(source.rows)
    narrow: Callable[[Floats], Floats] = _unchanged
    if whole and source.rows:
        some = np.unique(np.linspace(0, source.rows - 1, _LEARNED_FROM).astype(int))
        narrow = _narrowing(_flat(source.take(some)[0], entry))
    features, labels = [], []
    for some in np.array_split(rows, range(_AT_ONCE, source.rows, _AT_ONCE)):
        x, y = source.take(some)
        if y is None:
            raise UsageError(f"'{entry.name}' has no labels.")
        labels.append(np.asarray(y))
        if whole:
            features.append(narrow(_flat(x, entry)))
    y = np.concatenate(labels)
    if y.ndim > 1:
        raise UsageError(f"The labels of '{entry.name}' have the shape {y.shape}, not one a row.")
    words = pd.Series(y)
    if entry.classes and y.dtype.kind in "iu" and y.max(initial=0) < len(entry.classes):
        words = words.map(dict(enumerate(entry.classes)))
    return np.concatenate(features) if whole else None, words


def _flat(x: Any, entry: Entry) -> Floats:
    """Rows as features: images of any shapes as small ones of one shape."""
    if isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind in "iufb":
        return _finite(x, f"'{entry.name}'")
    images = [np.asarray(image) for image in x]
    if any(image.dtype != np.uint8 or image.ndim not in {2, 3} for image in images):
        raise UsageError(
            f"'{entry.name}' holds neither rows of numbers nor images of 8 bits: give what to judge "
            "them by with --features, such as embeddings."
        )
    return np.stack([_small(image) for image in images]).astype(np.float32)


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    shown = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    small = shown.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small).reshape(-1)


def _given(features: Any, count: int, catalog: Catalog) -> Floats:
    """Features that somebody has made, a row for each of the dataset's."""
    what = "What is given as --features"
    if isinstance(features, str | Path | Entry):
        what, features = f"'{features}'", catalog.load(features)[0]
    found = np.asarray(features)
    if found.ndim != 2 or len(found) != count or found.dtype.kind not in "iufb":
        raise UsageError(
            f"{what} is {found.dtype} of shape {found.shape}; it has to be numbers of shape "
            f"({count}, N), a row for each of the dataset's."
        )
    found = _finite(found, what)
    return _narrowing(found[:: max(1, count // _LEARNED_FROM)])(found)


def _finite(x: NDArray[Any], what: str) -> Floats:
    found = x.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(wrong):
        raise UsageError(f"Row {wrong[0]} of {what} holds what is no number (NaN) or infinite.")
    return found


def _unchanged(x: Floats) -> Floats:
    return x


def _narrowing(some: Floats) -> Callable[[Floats], Floats]:
    """What brings wide rows to their principal components, as some of them say."""
    if some.shape[1] <= _WIDE or len(some) <= _COMPONENTS:
        return _unchanged
    learned = _sklearn().decomposition.PCA(_COMPONENTS, svd_solver="randomized", random_state=0)
    return learned.fit(some).transform  # type: ignore[no-any-return]


def _judged(words: Any, folds: int, entry: Entry) -> tuple[Ints, NDArray[Any], Ints]:
    """The rows that can be judged, the names of their classes, and the class of each."""
    import pandas as pd

    if pd.api.types.is_float_dtype(words.dtype):
        if not (words.dropna() % 1 == 0).all():
            raise UsageError(
                f"The labels of '{entry.name}' are numbers with fractions; label noise is found among "
                "classes alone."
            )
        words = words.astype("Int64")
    named = words.astype("str").where(words.notna(), None)
    sizes = named.value_counts()
    usable = sizes.index[sizes >= folds]
    if len(usable) < 2 or len(usable) > _MOST_CLASSES:
        raise UsageError(
            f"'{entry.name}' has {len(usable):,} classes of {folds} rows or more; label noise is found "
            f"among 2 to {_MOST_CLASSES:,} of them."
        )
    rows = np.flatnonzero(named.isin(usable))
    y, classes = pd.factorize(named.iloc[rows], sort=True)
    return rows, np.asarray(classes), y


# --- what judges


def _probabilities(
    x: Floats, y: Ints, folds: int, seed: int, on_progress: Progress | None
) -> Floats:
    """(rows, classes): what models say that were not trained on the row."""
    from sklearn.base import clone
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier

    near = min(20, len(y) // folds)
    model: Any = (
        ExtraTreesClassifier(200, min_samples_leaf=2, n_jobs=-1, random_state=seed)
        if x.shape[1] < _COMPONENTS
        else KNeighborsClassifier(near, weights="distance", n_jobs=-1)
    )
    told = np.zeros((len(y), y.max() + 1))
    division = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for number, (known, asked) in enumerate(division.split(x, y)):
        told[asked] = clone(model).fit(x[known], y[known]).predict_proba(x[asked])
        if on_progress is not None:
            on_progress(number + 1, folds)
    return told


def _sklearn() -> Any:
    try:
        import sklearn.decomposition
    except ImportError as error:
        raise MissingExtraError("scikit-learn", EXTRA) from error
    return sklearn
