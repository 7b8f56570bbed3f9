"""Machines that ssh reaches as nodes of the embedded cluster: `aios node join -` is run on each.

A node's bundle goes over as the standard input of that command, so that its key is in no argument and
no file on the way. ssh has its own configuration, keys and agent, and asks nobody for a password.
`ssh.json` in the cluster's state directory says which nodes were started so.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import AiosError, ClusterError, NotFoundError, UsageError
from . import embedded, nodes, reach
from .processes import lock, read_list, write

PLACE = "ssh:"
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+@)?([A-Za-z0-9][A-Za-z0-9._-]*)")
_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15")
# A machine that is slow to import all that an agent needs (s).
_PATIENCE = 150.0
# What ssh itself ends with when it does not get there, and our script where there is no AIOS, or
# only another one.
_NO_WAY, _NO_AIOS, _OTHER_AIOS = 255, 127, 126
_WHOSE = "the machines of --on ssh"


def hosts_of(place: str) -> tuple[str, ...]:
    """The machines of `ssh:gpu1,ana@gpu2`.

    Raises
    ------
    UsageError
        One of them cannot be a machine's name.
    """
    hosts = tuple(host.strip() for host in place.removeprefix(PLACE).split(","))
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise UsageError(
                f"{host!r} is no machine that ssh reaches; write --on ssh:gpu1,ana@gpu2, and ports "
                "and keys into ~/.ssh/config."
            )
    return tuple(dict.fromkeys(hosts))


def name_of(host: str) -> str:
    """What the node on a machine is called."""
    return host.rpartition("@")[2]


def start(
    hosts: Sequence[str], *, up: frozenset[str], python: str = "", simulate_gpus: int = 0
) -> list[str]:
    """Have machines join, all at a time; returns their nodes' names.

    Parameters
    ----------
    up
        Names of the nodes that are there; a machine that is one is left alone.
    python
        The Python there that has AIOS; by default the first of this one's path, `python3` and
        `python` that has it.

    Raises
    ------
    ClusterError
        Some did not join; those that did stay.
    """
    missing = [host for host in hosts if name_of(host) not in up]
    # Of one that nobody knows ssh says so.
    known = [address for address in map(_address, missing) if reach.known(address)]
    if known:
        reach.check(embedded.ensure(start=False)["address"], known, _WHOSE)

    def join(host: str) -> None:
        _forget(name_of(host))
        _join(host, python, simulate_gpus)

    failed = _each(join, missing)
    if failed:
        joined = [name_of(host) for host in hosts if host not in failed]
        text = " ".join(failed.values())
        raise ClusterError(f"{text} {', '.join(joined)} joined." if joined else text)
    return [name_of(host) for host in hosts]


def own_address(hosts: Sequence[str]) -> str:
    """The address of this machine on the way to others."""
    return reach.own_address(map(_address, hosts), _WHOSE)


def rows() -> list[dict[str, Any]]:
    """The nodes that were started so: node, host, python."""
    return read_list(_file())


def stop(name: str) -> None:
    """End a node and take its access away.

    Raises
    ------
    NotFoundError
        It was not started so.
    ClusterError
        Its machine cannot be reached; it has no access any more all the same.
    """
    row = next((row for row in rows() if row["node"] == name), None)
    if row is None:
        raise NotFoundError(f"No node {name!r} was started by ssh; see 'aios node ls'.")
    try:
        _leave(row)
    finally:
        _forget(name)


def stop_all() -> list[str]:
    """End all of them, as the cluster itself ends; returns a sentence for each that may go on."""
    found = {row["node"]: row for row in rows()}
    failed = _each(lambda node: _leave(found[node]), list(found))
    for node in found:
        _forget(node)
    return list(failed.values())


def _each(do: Callable[[str], None], names: Sequence[str]) -> dict[str, str]:
    """Do something with each at a time; what went wrong, by name."""

    def attempt(name: str) -> str:
        try:
            do(name)
        except AiosError as error:
            return str(error)
        return ""

    if not names:
        return {}
    with ThreadPoolExecutor(len(names)) as pool:
        answers = dict(zip(names, pool.map(attempt, names), strict=True))
    return {name: answer for name, answer in answers.items() if answer}


def _join(host: str, python: str, simulate_gpus: int) -> None:
    node = name_of(host)
    with tempfile.TemporaryDirectory(dir=_file().parent, prefix=".ssh-") as directory:
        bundle = Path(directory) / "bundle"
        nodes.add(node, bundle, taken=frozenset())
        text = nodes.pack(bundle)
    row = {"node": node, "host": host, "python": python}
    try:
        _run(row, ["join", "-", "--simulate-gpus", str(simulate_gpus)], text)
    except BaseException:
        nodes.revoke(node)
        raise
    with lock(_file().with_suffix(".lock")):
        write(_file(), [*(r for r in rows() if r["node"] != node), row])


def _leave(row: dict[str, Any]) -> None:
    # One that has ended with the cluster, or by itself, has left already.
    with suppress(NotFoundError):
        _run(row, ["leave", row["node"]])


def _forget(node: str) -> None:
    with lock(_file().with_suffix(".lock")):
        known = rows()
        if node not in {row["node"] for row in known}:
            return
        write(_file(), [row for row in known if row["node"] != node])
    with suppress(NotFoundError):
        nodes.revoke(node)


def _run(row: dict[str, Any], verb: list[str], text: str = "") -> None:
    """Run `aios node VERB` on a machine, with a text as its input."""
    host, python = row["host"], row["python"]
    done = _ssh(host, _OPTIONS, [f"sh -c {shlex.quote(script(python, verb))}"], text)
    last = (done.stderr.strip().splitlines() or ["it says nothing."])[-1].strip()
    if done.returncode == 0:
        return
    if done.returncode == _NO_WAY:
        raise ClusterError(f"ssh does not get to {host}: {last.removeprefix('ssh: ').rstrip('.')}.")
    if done.returncode == _NO_AIOS:
        where = python or "a Python that ssh finds there"
        raise ClusterError(
            f"{host} has no AIOS in {where}; install it there with 'pip install "
            f"aios-jupyter=={__version__}', or say where it is with --python PATH."
        )
    if done.returncode == _OTHER_AIOS:
        raise ClusterError(
            f"{host} has AIOS {last}, and this machine {__version__}; install that there with 'pip "
            f"install aios-jupyter=={__version__}'."
        )
    if "has joined a cluster" in last:
        raise NotFoundError(last)
    raise ClusterError(f"{host} did not {verb[0]}: {last.removeprefix('aios: ')}")


def script(python: str, verb: Sequence[str]) -> str:
    """What is run on a machine: the verb, by the first Python there that has this AIOS."""
    candidates = [python] if python else [sys.executable, "python3", "python"]
    version = "import aios_jupyter; print(aios_jupyter.__version__)"
    return (
        f"for python in {shlex.join(candidates)}; do "
        f'has=$("$python" -c "{version}" 2>/dev/null) || continue; '
        f'if [ "$has" = "{__version__}" ]; '
        f'then exec "$python" -m aios_jupyter node {shlex.join(verb)}; fi; other=$has; done; '
        f'[ -n "$other" ] || exit {_NO_AIOS}; echo "$other" >&2; exit {_OTHER_AIOS}'
    )


def _address(host: str) -> str:
    """What ssh takes a machine's name for."""
    for line in _ssh(host, ("-G",)).stdout.splitlines():
        key, _, value = line.partition(" ")
        if key == "hostname":
            return value
    return name_of(host)


def _ssh(
    host: str, options: Sequence[str], command: Sequence[str] = (), text: str = ""
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["ssh", *options, "--", host, *command],
            input=text,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError("There is no ssh here; install OpenSSH's client.") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(
            f"{host} did not answer within {_PATIENCE:.0f} s; try 'ssh {host}' by hand."
        ) from None


def _file() -> Path:
    return embedded.Paths.current().state / "ssh.json"
