"""What the sidebar costs with 1,000 devices and 500 runs that all change once a second.

A real JupyterLab in a real browser on a made-up cluster (`tests/fake_cluster.py`, `huge`):

main_thread    the part of a core that the page's main thread uses, the sidebar in sight
longest_ms     its longest task, and `long_tasks` how many took over 50 ms
change_ms      median from the server's event to the row in the page
server_core    the part of a core, and server_mb the memory, that the Jupyter server uses more than
               one without the extension
start_ratio    Lab's start with the extension over the start without it, five of each in turns,
               and start_ms the difference of their medians
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from report import report

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "ui"), str(ROOT / "tests")]

from lab_page import LabPage  # noqa: E402
from lab_server import LabServer, chromium, fake_config, lab_server  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402

SECONDS = 20
STARTS = 5

WATCH = """() => {
    const seen = window.aiosSeen = {long: [], delays: []};
    new PerformanceObserver(list =>
        list.getEntries().forEach(entry => seen.long.push(entry.duration))
    ).observe({type: 'longtask'});
    const told = new Map();
    window.jupyterapp.serviceManager.events.stream.connect((_, event) => {
        const row = event.delta?.devices?.['GPU-node-00-0'];
        if (row) {
            told.set(String(Math.round(row.utilization)), event.time);
        }
    });
    const meter = document.querySelector(
        "[data-device='GPU-node-00-0'] .aios-Meter[aria-valuenow]");
    new MutationObserver(() => {
        const time = told.get(meter.getAttribute('aria-valuenow'));
        if (time) {
            seen.delays.push(Date.now() - 1000 * time);
        }
    }).observe(meter, {attributeFilter: ['aria-valuenow']});
}"""


@contextlib.contextmanager
def lab(*, extension: bool) -> Iterator[LabServer]:
    """JupyterLab with or without the extension, in the server and in the page."""
    with tempfile.TemporaryDirectory(prefix="aios-bench-", ignore_cleanup_errors=True) as scratch:
        root = Path(scratch)
        scenario = root / "runtime" / "aios" / "default" / "scenario"
        scenario.parent.mkdir(parents=True)
        scenario.write_text(json.dumps("huge"))
        environment = {"FAKE_SCENARIO": str(scenario), "FAKE_INTERVAL": "1"}
        config = fake_config()
        if not extension:
            config = 'c.ServerApp.jpserver_extensions = {"aios_jupyter": False}\n'
            page = root / "config" / "labconfig" / "page_config.json"
            page.parent.mkdir(parents=True)
            page.write_text(json.dumps({"disabledExtensions": {"aios-jupyter": True}}))
        with lab_server(root, config, environment) as server:
            yield server


def start(browser: Browser, server: LabServer) -> float:
    """Milliseconds from a new page's first byte until Lab has restored its layout."""
    page = browser.new_page(viewport={"width": 1360, "height": 900})
    LabPage(page).open(server.page())
    took: float = page.evaluate("() => window.jupyterapp.restored.then(() => performance.now())")
    page.close()
    return took


def cost(server: LabServer) -> tuple[float, float]:
    """The part of a core that the server uses over `SECONDS`, and its memory (MB)."""
    process = server_process(server)
    process.cpu_percent()
    time.sleep(SECONDS)
    return process.cpu_percent() / 100, process.memory_info().rss / 2**20


def server_process(server: LabServer) -> psutil.Process:
    """The process that answers at the server's address."""
    for child in psutil.Process().children():
        if f"--ServerApp.port={server.url.rsplit(':', 1)[-1].strip('/')}" in child.cmdline():
            return child
    raise RuntimeError("The Jupyter server is gone.")


def busy(page: Page) -> dict[str, Any]:
    """What the page's main thread does while everything changes."""
    shown = LabPage(page)
    shown.show_panel()
    shown.device("GPU-node-00-0").wait_for()
    page.wait_for_timeout(3000)
    page.evaluate(WATCH)
    session = page.context.new_cdp_session(page)
    # The processor time of the thread: what others do on the machine does not count.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def task_time() -> float:
        rows = session.send("Performance.getMetrics")["metrics"]
        return float(next(row["value"] for row in rows if row["name"] == "TaskDuration"))

    before, began = task_time(), time.monotonic()
    page.wait_for_timeout(1000 * SECONDS)
    used = (task_time() - before) / (time.monotonic() - began)
    return {"main_thread": used, **page.evaluate("() => window.aiosSeen")}


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        with lab(extension=True) as ours, lab(extension=False) as bare:
            starts: dict[str, list[float]] = {"ours": [], "bare": []}
            for server in (ours, bare):
                start(browser, server)  # fills the caches
            for _ in range(STARTS):
                starts["ours"].append(start(browser, ours))
                starts["bare"].append(start(browser, bare))
            page = browser.new_page(viewport={"width": 1360, "height": 900})
            LabPage(page).open(ours.page())
            seen = busy(page)
            with_us, memory = cost(ours)
            page.close()
            page = browser.new_page()
            LabPage(page).open(bare.page())
            without, least = cost(bare)
        browser.close()
    median = {name: statistics.median(some) for name, some in starts.items()}
    figures = {
        "main_thread": seen["main_thread"],
        "longest_ms": max(seen["long"], default=0.0),
        "long_tasks": len(seen["long"]),
        "change_ms": statistics.median(seen["delays"]),
        "server_core": with_us - without,
        "server_mb": memory - least,
        "start_ratio": median["ours"] / median["bare"],
        "start_ms": median["ours"] - median["bare"],
    }
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    report("front_end", figures, ["jupyterlab"])


if __name__ == "__main__":
    main()
