"""Where checkpoints are kept: a folder of steps, on a local disk or anywhere that fsspec reaches.

A checkpoint is a folder `step-N`; it counts once its `.metadata` is there, which is written last, and
on a local disk it gets its name only then.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path
from typing import Any

from . import events

METADATA = ".metadata"

_NAME = re.compile(r"step-(\d+)")


class Place:
    """The folder of a run's checkpoints. Rank 0 begins, finishes and removes; all may read."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.local = "://" not in root

    def path(self, step: int) -> str:
        """Where the checkpoint of a step is when it is whole."""
        return f"{self.root}/step-{step}"

    def target(self, step: int) -> str:
        """Where to write the checkpoint of a step."""
        return f"{self.root}/.step-{step}.part" if self.local else self.path(step)

    def begin(self, step: int) -> None:
        """Make room for the checkpoint of a step."""
        if not self.local:
            self._remove(self.path(step))
            return
        for left in Path(self.root).glob(".step-*.part"):
            shutil.rmtree(left)
        Path(self.target(step)).mkdir(parents=True)

    def finish(self, step: int, keep: int) -> None:
        """The checkpoint is whole: it gets its name, and the oldest ones go."""
        if self.local:
            path = Path(self.path(step))
            if path.exists():
                shutil.rmtree(path)
            Path(self.target(step)).rename(path)
        for old in sorted(self.steps(), reverse=True)[keep:]:
            self._remove(self.path(old))

    def announce(self, step: int, seconds: float) -> None:
        """Tell the agent of a checkpoint that took so many seconds."""
        channel = events.channel()
        if channel is not None:
            made = events.CheckpointMade(
                time=time.time(), step=step, path=self.path(step), seconds=seconds
            )
            channel.send(made)

    def steps(self) -> list[int]:
        """Steps of which there is a whole checkpoint."""
        if self.local:
            found = Path(self.root).glob(f"step-*/{METADATA}")
            names = [path.parent.name for path in found]
        else:
            system, path = self.system()
            names = [
                str(found).rsplit("/", 2)[-2] for found in system.glob(f"{path}/step-*/{METADATA}")
            ]
        return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]

    def system(self) -> tuple[Any, str]:
        """The file system of fsspec, and the folder's path there."""
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.root)
        # What another process has written since shows only to who looks anew.
        system.invalidate_cache()
        return system, path

    def _remove(self, target: str) -> None:
        if self.local:
            shutil.rmtree(target)
            return
        system, _ = self.system()
        if system.exists(target):
            # A checkpoint without its mark is none, should this be cut short.
            with contextlib.suppress(FileNotFoundError):
                system.rm(f"{target}/{METADATA}")
            system.rm(target, recursive=True)
