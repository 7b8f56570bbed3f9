"""Other ways to do what we do, measured beside ours where they are installed.

Each peer is a program of its own, so that it may live in another environment: it prints `ready
VERSION`, and for each line on its standard input does its work once and prints a number: how many
seconds it took to get a GPU, or how many images it augmented in one. It ends with the end of its
input.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
LONGEST = 60.0


class Peer:
    """A peer that runs; a context manager.

    Attributes
    ----------
    version
        What it says it is.
    """

    def __init__(self, *command: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.version = self._line().removeprefix("ready ")

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def take(self) -> float:
        """Have it do its work once; its number."""
        assert self._process.stdin
        self._process.stdin.write("take\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout
        while line := self._process.stdout.readline():
            word = line.split()[:1]
            if word == ["ready"] or _is_number(line):
                return line.strip()
        self._errors.seek(0)
        said = self._errors.read()[-2000:]
        raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}:\n{said}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def installed(ray_python: str | None) -> Iterator[dict[str, Peer]]:
    """The peers that this machine has, running.

    Parameters
    ----------
    ray_python
        An interpreter that has Ray; None: this one, where it does.
    """
    with contextlib.ExitStack() as stack:
        found = {
            f"dask_{what}": _start(stack, sys.executable, "plain_dask.py", what)
            for what in ("lock", "submit")
        }
        if ray_python or importlib.util.find_spec("ray"):
            found["ray"] = _start(stack, ray_python or sys.executable, "ray_group.py")
        else:
            print("Ray is left out: give --ray PYTHON, an interpreter that has it")
        if stack.enter_context(_slurm()):
            for what in ("salloc", "srun"):
                found[what] = _start(stack, sys.executable, "slurm_command.py", what)
        else:
            print("Slurm is left out: peers/slurm.sh says what it takes")
        yield found


def _start(stack: contextlib.ExitStack, python: str, script: str, *arguments: str) -> Peer:
    return stack.enter_context(Peer(python, str(HERE / script), *arguments))


@contextlib.contextmanager
def _slurm() -> Iterator[bool]:
    """The Slurm that `SLURM_CONF` names, or one started for this; whether there is one."""
    if os.environ.get("SLURM_CONF") and shutil.which("salloc"):
        yield True
    elif all(map(shutil.which, ("slurmctld", "slurmd", "munged", "salloc"))) and os.geteuid() == 0:
        directory = Path("/tmp") / f"bench-slurm-{os.getpid()}"
        try:
            subprocess.run((HERE / "slurm.sh", directory), check=True)
            os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
            yield True
        finally:
            subprocess.run((HERE / "slurm.sh", directory, "stop"), check=True)
            os.environ.pop("SLURM_CONF", None)
            shutil.rmtree(directory)
    else:
        yield False
