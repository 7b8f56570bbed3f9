"""What is on this node's disk of runs, those of earlier lives of its agent too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import AccessError, NotFoundError
from ..runs.messages import FilePart
from .accounts import Account, Accounts

# Ids and names that come from outside become paths: nothing leads out of a run's directory.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class KeptRuns:
    """The runs in a directory, one subdirectory for each."""

    def __init__(self, directory: Path, node: str, accounts: Accounts) -> None:
        self.directory = directory
        self.node = node
        self.accounts = accounts

    def owner(self, run: str) -> str:
        """Whose run this is.

        Raises
        ------
        NotFoundError
            This node has no such run.
        """
        return str(self._kept(run)["user"])

    def account(self, run: str) -> Account | None:
        """In whose account its ranks were; None: the agent's own.

        Raises
        ------
        NotFoundError
            This node has no such run, or no such account any more.
        """
        facts = self._kept(run)
        if "account" not in facts:
            return None
        try:
            return Account.named(facts["account"], facts["home"])
        except KeyError:
            name = facts["account"]
            raise NotFoundError(f"Node {self.node} has no account {name} any more.") from None

    def _kept(self, run: str) -> dict[str, Any]:
        path = self.directory / run / "run.json"
        if not ID.fullmatch(run) or not path.exists():
            raise NotFoundError(f"Node {self.node} has no run {run!r}.")
        return dict(json.loads(path.read_text()))

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

    def part(self, run: str, name: str, offset: int, size: int) -> FilePart:
        """A part of a file in the run's directory, or in that of its ranks.

        Raises
        ------
        AccessError
            The name leads out of it.
        NotFoundError
            There is no such file.
        """
        try:
            path = self.file(run, name)
        except NotFoundError:
            account = self.account(run)
            if account is None:
                raise
            data, total = account.read(f"{account.place(run)}/{name}", offset, size)
            return FilePart(data=data, total=total)
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(min(offset, total))
            return FilePart(data=file.read(size), total=total)
