"""What is on this node's disk of runs, those of earlier lives of its agent too."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import AccessError, NotFoundError

# Ids and names that come from outside become paths: nothing leads out of a run's directory.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class KeptRuns:
    """The runs in a directory, one subdirectory for each."""

    def __init__(self, directory: Path, node: str) -> None:
        self.directory = directory
        self.node = node

    def owner(self, run: str) -> str:
        """Whose run this is.

        Raises
        ------
        NotFoundError
            This node has no such run.
        """
        path = self.directory / run / "run.json"
        if not ID.fullmatch(run) or not path.exists():
            raise NotFoundError(f"Node {self.node} has no run {run!r}.")
        return str(json.loads(path.read_text())["user"])

    def file(self, run: str, name: str) -> Path:
        """A file in the run's directory.

        Raises
        ------
        AccessError
            The name leads out of it.
        NotFoundError
            There is no such file.
        """
        if not FILE_NAME.fullmatch(name):
            raise AccessError(f"{name!r} is not a file of run {run}.")
        path = self.directory / run / name
        if path.is_symlink() or not path.is_file():
            raise NotFoundError(f"Run {run} has no file {name!r} on this node.")
        return path
