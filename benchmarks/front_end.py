"""What the sidebar costs with 1,000 devices and 500 runs that all change once a second.

A real JupyterLab in a real browser on a made-up cluster (`tests/fake_cluster.py`, `huge`), whose
changes arrive as a broker's do, but cost nothing to make:

main_thread    the part of a core that the page's main thread uses, the sidebar in sight
longest_ms     its longest task meanwhile, `scroll_ms` while the devices are scrolled through, and
               `opening_ms` while the sidebar is opened: processor time of the thread
longest_wall_ms, long_tasks
               the longest as the page's performance API sees it, what others do on the machine
               included, and how many took over 50 ms
event_ms       median from the server's event to the row in the page
server_core    the part of a core, and server_mb the memory, that the Jupyter server uses more than
               one without the extension, a page of each being open
start_ms       Lab's start with the extension less the start without it, medians of five each in
               turns, and start_ratio

and on a real cluster of this machine:

change_ms      median from a call that changes something at the broker to the row in the page
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
CHANGES = 15
# A browser that does not answer must not keep the benchmark for ever.
LIMIT = 600
# Every task of every thread.
TRACED = ["disabled-by-default-devtools.timeline", "toplevel", "__metadata"]
WINDOW = {"width": 1360, "height": 900}

LONG = """() => {
    window.aiosLong = [];
    new PerformanceObserver(list =>
        list.getEntries().forEach(entry => window.aiosLong.push(entry.duration))
    ).observe({type: 'longtask'});
}"""

DELAYS = """() => {
    const delays = window.aiosDelays = [];
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
            delays.push(Date.now() - 1000 * time);
        }
    }).observe(meter, {attributeFilter: ['aria-valuenow']});
}"""

# Notes when the layout is there, by the page's own clock.
RESTORED = """
    let app;
    Object.defineProperty(window, 'jupyterapp', {
        get: () => app,
        set: value => {
            app = value;
            app.restored.then(() => { window.aiosRestored = performance.now(); });
        }
    });
"""

# When, by the machine's clock, a device's row says that it is in a state.
SEEN = """([device, state]) => new Promise(done => {
    const row = document.querySelector(`[data-device='${device}']`);
    const look = () => row.dataset.state === state && done(Date.now());
    look();
    new MutationObserver(look).observe(row, {attributeFilter: ['data-state']});
    setTimeout(() => done(null), 10000);
})"""


@contextlib.contextmanager
def lab(*, extension: bool) -> Iterator[LabServer]:
    """JupyterLab with or without the extension, in the server and in the page."""
    with tempfile.TemporaryDirectory(prefix="aios-bench-", ignore_cleanup_errors=True) as scratch:
        root = Path(scratch)
        scenario = root / "runtime" / "aios" / "default" / "scenario"
        scenario.parent.mkdir(parents=True)
        scenario.write_text(json.dumps("huge"))
        environment = {
            "FAKE_SCENARIO": str(scenario),
            "FAKE_INTERVAL": "1",
            "FAKE_RECORDED": "30",
        }
        config = fake_config()
        if not extension:
            config = 'c.ServerApp.jpserver_extensions = {"aios_jupyter": False}\n'
            page = root / "config" / "labconfig" / "page_config.json"
            page.parent.mkdir(parents=True)
            page.write_text(json.dumps({"disabledExtensions": {"aios-jupyter": True}}))
        with lab_server(root, config, environment) as server:
            yield server


@contextlib.contextmanager
def opened(browser: Browser, server: LabServer) -> Iterator[LabPage]:
    """A new page with JupyterLab in it."""
    page = browser.new_page(viewport={**WINDOW})
    page.set_default_timeout(30_000)
    page.add_init_script(RESTORED)
    try:
        yield LabPage(page).open(server.page())
    finally:
        page.close()


def start(browser: Browser, server: LabServer) -> float:
    """Milliseconds from a new page's first byte until Lab has restored its layout."""
    with opened(browser, server) as lab:
        return float(lab.page.evaluate("() => window.aiosRestored"))


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


def busy(browser: Browser, shown: LabPage) -> dict[str, Any]:
    """What the page's main thread does while everything changes."""
    page = shown.page
    page.evaluate(LONG)

    def open_sidebar() -> None:
        shown.show_panel()
        shown.device("GPU-node-00-0").wait_for()
        page.wait_for_timeout(3000)

    def scroll() -> None:
        shown.panel.hover()
        for _ in range(60):
            page.mouse.wheel(0, 1200)
            page.wait_for_timeout(50)

    opening = longest_task(browser, page, open_sidebar)
    page.evaluate(DELAYS)
    session = page.context.new_cdp_session(page)
    # The processor time of the thread: what others do on the machine does not count.
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def task_time() -> float:
        rows = session.send("Performance.getMetrics")["metrics"]
        return float(next(row["value"] for row in rows if row["name"] == "TaskDuration"))

    page.evaluate("() => void window.aiosLong.splice(0)")
    before, began = task_time(), time.monotonic()
    page.wait_for_timeout(1000 * SECONDS)
    used = (task_time() - before) / (time.monotonic() - began)
    long = page.evaluate("() => window.aiosLong.splice(0)")
    return {
        "main_thread": used,
        "longest_ms": longest_task(browser, page, lambda: page.wait_for_timeout(500 * SECONDS)),
        "scroll_ms": longest_task(browser, page, scroll),
        "opening_ms": opening,
        "longest_wall_ms": max(long, default=0.0),
        "long_tasks": len(long),
        "event_ms": statistics.median(page.evaluate("() => window.aiosDelays")),
    }


def longest_task(browser: Browser, page: Page, act: Callable[[], None]) -> float:
    """Milliseconds of the processor that the longest task of the page's main thread took."""
    browser.start_tracing(page=page, categories=TRACED)
    act()
    events = json.loads(browser.stop_tracing())["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event.get("tdur", 0.0)
        for event in events
        if event["name"] == "RunTask" and (event["pid"], event["tid"]) in threads
    ]
    return max(tasks) / 1000


def real_change(browser: Browser) -> float:
    """Milliseconds from a call at a real broker to the row in the page."""
    with tempfile.TemporaryDirectory(prefix="aios-bench-", ignore_cleanup_errors=True) as scratch:
        root = Path(scratch)
        with lab_server(root, environment={"AIOS_STATE_DIR": str(root / "state")}) as server:
            before = dict(os.environ)
            os.environ.update(server.environment)
            try:
                return changes(browser, server)
            finally:
                os.environ.clear()
                os.environ.update(before)


def changes(browser: Browser, server: LabServer) -> float:
    """The median over leases that come and go."""
    import aios_jupyter.session

    with aios_jupyter.connect(simulate_gpus=1) as session:
        try:
            with opened(browser, server) as lab:
                lab.show_panel()
                row = lab.devices("free").first
                row.wait_for()
                device = row.get_attribute("data-device")
                delays = []
                for _ in range(CHANGES):
                    called = time.time()
                    lease = session.alloc(devices=1)
                    delays.append(seen(lab.page, device, "mine") - 1000 * called)
                    called = time.time()
                    session.release(lease.id)
                    delays.append(seen(lab.page, device, "free") - 1000 * called)
                return statistics.median(delays)
        finally:
            aios_jupyter.session.down()


def seen(page: Page, device: str | None, state: str) -> float:
    """When the row said so, in milliseconds since the epoch."""
    when: float | None = page.evaluate(SEEN, [device, state])
    if when is None:
        raise RuntimeError(f"The page never said that {device} is {state}.")
    return when


def give_up(_number: int, _frame: object) -> None:
    """End what was started: something has not answered in all this time."""
    print(f"front_end: not done after {LIMIT} s", file=sys.stderr)
    faulthandler.dump_traceback()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(1)


def main() -> None:
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    figures: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        with lab(extension=True) as ours, lab(extension=False) as bare:
            starts: dict[str, list[float]] = {"ours": [], "bare": []}
            for server in (ours, bare):
                start(browser, server)  # fills the caches
            for _ in range(STARTS):
                starts["ours"].append(start(browser, ours))
                starts["bare"].append(start(browser, bare))
            with opened(browser, ours) as shown:
                figures |= busy(browser, shown)
                with_us, memory = cost(ours)
            with opened(browser, bare):
                without, least = cost(bare)
        figures["change_ms"] = real_change(browser)
        browser.close()
    median = {name: statistics.median(some) for name, some in starts.items()}
    figures |= {
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
