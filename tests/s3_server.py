"""A real S3 server on loopback for the quick tests: rclone's, which refuses wrong keys."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clusters import until

KEY, SECRET = "AIOSKEY", "AIOSSECRET"


class S3Server:
    """Serves the directory `root`, a bucket for each folder in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def options(self) -> dict[str, str]:
        return {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{self.port}"}

    def start(self) -> None:
        rclone = Path(sys.executable).with_name("rclone")
        self.process = subprocess.Popen(
            [
                *(str(rclone if rclone.exists() else shutil.which("rclone")), "serve", "s3"),
                *(str(self.root), "--addr", f"127.0.0.1:{self.port}"),
                *("--auth-key", f"{KEY},{SECRET}", "--vfs-cache-mode", "writes"),
                *("--cache-dir", f"{self.root}.cache", "--config", f"{self.root}.conf"),
                *("--dir-cache-time", "1s", "--vfs-write-back", "0s"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self.answers, "the S3 server answers", 30)

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def s3_server(root: Path) -> Iterator[S3Server]:
    server = S3Server(root)
    server.start()
    try:
        yield server
    finally:
        server.stop()
