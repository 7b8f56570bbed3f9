"""A real JupyterLab for one test module: own directories, own port, ended by pid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
BUILD = ROOT / "aios_jupyter" / "labextension"
TOKEN = "ui-test-token"
FAKE_CONFIG = """
import sys
sys.path[:0] = [{tests!r}, {ui!r}]
from fake_server import open_fake, open_runs
c.AiosApp.open_upstream = open_fake
c.AiosApp.open_session = open_runs
"""
QUIET = [
    "--ServerApp.port_retries=0",
    "--ServerApp.open_browser=False",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.extension_manager=readonly",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--allow-root",
]


def fake_config() -> str:
    """What makes a Jupyter server show the made-up cluster."""
    return FAKE_CONFIG.format(tests=str(TESTS), ui=str(TESTS / "ui"))


class LabServer:
    """Where it is: `url` (with a trailing slash) and the `notebooks` it shows."""

    def __init__(self, url: str, notebooks: Path, log: Path, environment: dict[str, str]) -> None:
        self.url = url
        self.notebooks = notebooks
        self.log = log
        self.environment = environment

    def page(self, path: str = "lab") -> str:
        """The address of a page, with the token."""
        return f"{self.url}{path}?token={TOKEN}&reset"


@contextlib.contextmanager
def lab_server(
    root: Path, config: str = "", environment: dict[str, str] | None = None
) -> Iterator[LabServer]:
    """Start JupyterLab with its directories under `root`, and end it.

    Parameters
    ----------
    config
        Text of `jupyter_server_config.py`.
    environment
        Variables on top of this process's own.
    """
    if not (BUILD / "static" / "style.js").is_file():
        raise RuntimeError("The front end is not built; run 'npm run build' in labextension.")
    directories = {
        "JUPYTER_CONFIG_DIR": root / "config",
        "JUPYTER_DATA_DIR": root / "data",
        "JUPYTER_RUNTIME_DIR": root / "runtime",
        "IPYTHONDIR": root / "ipython",
    }
    notebooks = root / "notebooks"
    for directory in (*directories.values(), notebooks, root / "labextensions"):
        directory.mkdir(parents=True, exist_ok=True)
    # The checkout's own build, whatever is installed.
    (root / "labextensions" / "aios-jupyter").symlink_to(BUILD)
    _mute_news(root / "config")
    (root / "config" / "jupyter_server_config.py").write_text(config)
    port = _free_port()
    variables = {name: str(path) for name, path in directories.items()}
    variables = {**os.environ, **variables, "PYTHONPATH": str(ROOT), **(environment or {})}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        *QUIET,
        f"--ServerApp.port={port}",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={notebooks}",
        f"--LabApp.extra_labextensions_path={root / 'labextensions'}",
    ]
    log = root / "lab.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=variables, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}/"
        _wait(url, process, log)
        yield LabServer(url, notebooks, log, variables)
    finally:
        _end(process)


def _mute_news(config: Path) -> None:
    """The prompt that asks whether to fetch news would lie over the page."""
    plugin = config / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    plugin.mkdir(parents=True)
    muted = {"fetchNews": "false", "checkForUpdates": False}
    (plugin / "notification.jupyterlab-settings").write_text(json.dumps(muted))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}api?token={TOKEN}", timeout=5).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, with its kernels; insist after ten seconds."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def chromium() -> str:
    """The distribution's browser.

    Raises
    ------
    RuntimeError
        There is none.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise RuntimeError("There is no chromium; install it with: apt-get install chromium")
    return path
