"""Split labeled data. A leaf module: it imports numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError

Array = NDArray[Any]


def split(
    x: ArrayLike, y: ArrayLike, holdout: float = 0.2, seed: int = 0
) -> tuple[Array, Array, Array, Array]:
    """Hold out a part of the data for testing, with every class in proportion.

    Split before augmenting, and augment the training part alone: copies of one image on both
    sides would make the test too easy.

    Parameters
    ----------
    x, y
        Rows and their classes.
    holdout
        The part to hold out, between 0 and 1. Each class gives at least one row and keeps one.
    seed
        The same seed gives the same split.

    Returns
    -------
    x_train, y_train, x_test, y_test
        In shuffled order.

    Raises
    ------
    UsageError
        The lengths differ, `holdout` is out of range, or a class has a single row.
    """
    x, y = np.asarray(x), np.asarray(y)
    if not 0 < holdout < 1:
        raise UsageError(f"holdout must be between 0 and 1, but is {holdout}.")
    if y.ndim != 1 or len(x) != len(y):
        raise UsageError(
            f"There are {len(x)} rows but labels of shape {y.shape}; each row needs one label."
        )
    random = np.random.default_rng(seed)
    train, test = [], []
    for label, count in zip(*np.unique(y, return_counts=True), strict=True):
        if count < 2:
            raise UsageError(f"Class {label!s} has a single row, which cannot be on both sides.")
        members = random.permutation(np.flatnonzero(y == label))
        held = min(max(round(holdout * count), 1), count - 1)
        test.append(members[:held])
        train.append(members[held:])
    for_training = random.permutation(np.concatenate(train))
    for_testing = random.permutation(np.concatenate(test))
    return x[for_training], y[for_training], x[for_testing], y[for_testing]
