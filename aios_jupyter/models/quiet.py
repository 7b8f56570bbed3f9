"""Keep libraries from talking to the user while we use them, and only then."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Within the block: no Python warnings, and of `loggers` errors alone.

    What they say there is about our calls, not the user's: import hints, deprecations, the
    creation of tables. Levels and filters are as before afterwards.
    """
    named = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in named]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in named:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(named, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Within the block nothing is printed, neither by Python nor by the C++ below a library."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
