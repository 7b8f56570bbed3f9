"""In whose account a person's code runs: the agent's, or where the agent is root the person's own.

An agent that is root and was told so (`--accounts`) starts each rank, kernel and zygote as the person
whose run it is. What they write is in that person's home, and what the agent reads from there it reads
as that person: nothing in a place that others can change is ever opened by root.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..config import IS_LINUX
from ..errors import AccessError, NotFoundError, UsageError

log = logging.getLogger("aios.node")

# People's accounts begin here (login.defs(5): UID_MIN); 65534 is nobody's.
LEAST_ID, NOBODY = 1000, 65534
# Where a run's ranks write, below their person's home: beside the rest of what AIOS keeps there.
PLACE = ".local/share/jupyter/aios/runs"
NAMES = "names"
READ_TIMEOUT = 30.0
# Of the agent's own environment, what says how this machine is made; the rest may be root's secrets.
_CARRIED = frozenset({"PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH"})
_CARRIED_FAMILIES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "OPENBLAS_", "MKL_")
_ROW = {"account", "home"}
# Prints the size of a plain file of one's own, and a part of it.
_READ = """
import os, stat, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
facts = os.fstat(fd)
if not stat.S_ISREG(facts.st_mode):
    raise SystemExit(2)
sys.stdout.buffer.write(b"%d\\n" % facts.st_size + os.pread(fd, int(sys.argv[3]), int(sys.argv[2])))
"""


@dataclass(frozen=True)
class Account:
    """An account of this machine, as passwd(5) has it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    @classmethod
    def named(cls, account: str, home: str = "") -> Account:
        """The account of that name, with another `home`; raises `KeyError` where there is none."""
        import pwd

        name, _, uid, gid, _, own, shell = pwd.getpwnam(account)
        return cls(name, uid, gid, tuple(os.getgrouplist(name, gid)), home or own, shell)

    def environment(
        self, inherited: Mapping[str, str], given: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, str]:
        """What its processes inherit of the agent's environment, what they are given, and who they are."""
        kept = {
            name: value
            for name, value in inherited.items()
            if name in _CARRIED or name.startswith(_CARRIED_FAMILIES)
        }
        who = {"HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.shell}
        return {**kept, **given, **who}

    def place(self, run: str) -> str:
        """The directory in which the ranks of a run write."""
        return f"{self.home}/{PLACE}/{run}"

    def read(self, path: str, offset: int, size: int) -> tuple[bytes, int]:
        """A part of a file and the size of the whole, read as this account.

        Raises
        ------
        NotFoundError
            It sees no such plain file.
        """
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _READ, path, str(offset), str(size)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=READ_TIMEOUT,
            cwd="/",
            env=self.environment({}),
            **popen(self),
        )
        if done.returncode:
            raise NotFoundError(f"There is no file {Path(path).name!r} of {self.name}.")
        whole, _, data = done.stdout.partition(b"\n")
        return data, int(whole)


def popen(account: Account | None) -> dict[str, Any]:
    """What `subprocess.Popen` is given to start a process in an account; None: in this one."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": list(account.groups)}


def enter(folder: str, account: Account, then: Callable[[], None] | None = None) -> partial[None]:
    """For `preexec_fn`, which is called in the account already: a folder that it may enter.

    Where it may not enter that it has its home, or else the root: nobody gets into a folder because
    the agent may.
    """
    return partial(_enter, (folder, account.home, "/"), then)


def _enter(folders: tuple[str, ...], then: Callable[[], None] | None) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            os.chdir(folder)
            break
    if then is not None:
        then()


class Accounts:
    """Which account each person's code runs in.

    Parameters
    ----------
    rule
        "": the agent's own, for everybody. `names`: the account that is called like the person. A path:
        a JSON file with the account of each person (`{"ana": "amueller"}`), which root alone may write;
        `{"ana": {"account": "amueller", "home": "/scratch/ana"}}` where its home is not on this machine.
    own
        Who runs in the agent's account under any rule: whoever started the cluster, on its machine.

    Raises
    ------
    UsageError
        The agent is not root, or the file makes no sense.
    """

    def __init__(self, rule: str = "", own: str = "") -> None:
        self._rule = rule
        self._own = own
        self._known: dict[str, dict[str, str]] = {}
        self._seen = 0
        if not rule:
            return
        if not IS_LINUX or os.geteuid() != 0:
            raise UsageError(
                "People's code can run in their own accounts only where root starts the agent, on Linux; "
                "start it as root, or without --accounts."
            )
        if rule != NAMES:
            self._look()

    def of(self, person: str) -> Account | None:
        """The account of a person's code; None: the agent's own.

        Raises
        ------
        AccessError
            The person has none.
        """
        if not self._rule or person == self._own:
            return None
        if self._rule != NAMES:
            try:
                self._look()
            except UsageError as error:
                # Nobody new is let in by it, and nobody is put out.
                log.error("%s What it said before still holds.", error)
        known = self._known.get(person, {}) if self._rule != NAMES else {"account": person}
        account = None
        with contextlib.suppress(KeyError, ValueError):
            account = Account.named(**known) if known else None
        fit = account is not None and account.uid != 0
        if fit and account is not None and self._rule == NAMES:
            # Without a word about it nobody's name is that of a service.
            fit = account.uid >= LEAST_ID and account.uid != NOBODY
        if account is None or not fit:
            mend = f"add it to {self._rule}" if self._rule != NAMES else "make one of that name"
            raise AccessError(
                f"{person} has no account on this node to run in; its admin can {mend}."
            )
        return account

    def _look(self) -> None:
        """Read the file if it has changed."""
        path = Path(self._rule)
        with contextlib.suppress(OSError):
            changed = path.stat().st_mtime_ns
            if changed == self._seen:
                return
            self._seen = changed
        self._known = _read(path)

    def facts_of(self, person: str) -> dict[str, str]:
        """What `Account.named` takes for a person; {} for the agent's own, and where there is none."""
        with contextlib.suppress(AccessError):
            account = self.of(person)
            return {"account": account.name, "home": account.home} if account else {}
        return {}


def own_name() -> str:
    """Who this process is."""
    return getpass.getuser()


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        facts = path.stat()
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"The accounts of people cannot be read from {path} ({error}).") from None
    if facts.st_uid != 0 or stat.S_IMODE(facts.st_mode) & 0o022:
        raise UsageError(
            f"Others than root can write {path}, which says who runs as whom; mend that with: "
            f"chown root {path}; chmod 644 {path}"
        )
    known: dict[str, dict[str, str]] = {}
    for person, row in found.items() if isinstance(found, dict) else [("", None)]:
        about = {"account": row} if isinstance(row, str) else row
        if not isinstance(about, dict) or not {"account"} <= set(about) <= _ROW:
            raise UsageError(f'{path} does not read like {{"ana": "amueller"}}.')
        known[person] = about
    return known
