"""Secrets of sessions that outlive a process: a shell's, and that of a kernel with devices.

Each is in a private file named after the process that the session stands for, by pid and start
time, so that whoever has the same pid later does not find it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from ..config import settings
from ..process import alive, process_start
from ..schema import Keep


def shell_secret(pid: int, directory: Path | None) -> str:
    """The secret of a shell's session, made on first use; another one for each bundle."""
    path = _files("shells") / _name(pid)
    secret = secrets.token_hex(16)
    try:
        _write(path, secret)
    except FileExistsError:
        secret = path.read_text()
    return secret_for(secret, directory)


def kernel_secret(pid: int, directory: Path | None) -> str:
    """The secret of a kernel's session, which was there before the kernel; "" where there is none."""
    try:
        return secret_for((_files("kernels") / _name(pid)).read_text(), directory)
    except FileNotFoundError:
        return ""


def keep_kernel_secret(pid: int, secret: str) -> None:
    """Let the kernel with that pid find its session."""
    with contextlib.suppress(FileExistsError):
        _write(_files("kernels") / _name(pid), secret)


def kernel_keep(directory: Path | None) -> Keep:
    """What keeps a kernel's leases: its process, where the broker can see that."""
    return Keep.PROCESS if directory is None else Keep.CONNECTION


def secret_for(secret: str, directory: Path | None) -> str:
    """The secret for the cluster of a bundle, as a session is one person's."""
    if directory is None:
        return secret
    return hashlib.sha256(f"{secret} {directory}".encode()).hexdigest()[:32]


def _name(pid: int) -> str:
    return f"{pid}-{process_start(pid)}"


def _files(kind: str) -> Path:
    """The folder of a kind of processes, without those that are gone."""
    directory = settings().runtime_dir / kind
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in directory.iterdir():
        pid, _, start = path.name.partition("-")
        if not alive(int(pid), int(start)):
            path.unlink(missing_ok=True)
    return directory


def _write(path: Path, secret: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)
