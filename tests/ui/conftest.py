"""A browser, and pages that fail their test when the console of the browser reports an error.

These tests run in a process of their own: `pytest tests/ui --confcutdir=tests/ui`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_server import LabServer, chromium, fake_config, lab_server
from leftovers import nothing_left_running
from playwright.sync_api import Browser, Page, expect, sync_playwright

__all__ = ["nothing_left_running"]

ARTIFACTS = Path(__file__).parent / "artifacts"
# What has no time of its own to come; a busy machine takes longer than Playwright's five seconds.
expect.set_options(timeout=15_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.ui)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Keep a screenshot of the page when a test fails."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.when == "call" and report.failed and page is not None and not page.is_closed():
        ARTIFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"failed-{item.name}.png")
    return report


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """One page for the tests of a module: loading JupyterLab takes seconds."""
    opened = browser.new_page(viewport={"width": 1360, "height": 900})
    opened.set_default_timeout(15_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()
    assert not errors, errors


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where screenshots are kept."""
    ARTIFACTS.mkdir(exist_ok=True)
    return ARTIFACTS


@pytest.fixture(scope="session")
def fake_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """JupyterLab on a made-up cluster; `scenario` says which."""
    root = tmp_path_factory.mktemp("fake-lab")
    # Where a real cluster's connection file would be: the server notices a change there.
    path = root / "runtime" / "aios" / "default" / "scenario"
    path.parent.mkdir(parents=True)
    results = root / "notebooks" / "grid-batch"
    results.mkdir(parents=True)
    variables = {
        "FAKE_SCENARIO": str(path),
        "FAKE_RESULTS": str(results),
        "AIOS_STATE_DIR": str(root / "state"),
    }
    with lab_server(root, fake_config(), variables) as lab:
        yield lab


@pytest.fixture
def scenario(fake_lab: LabServer) -> Callable[[str], None]:
    """Have the made-up cluster be another one."""
    path = Path(fake_lab.environment["FAKE_SCENARIO"])

    def choose(name: str) -> None:
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(name))
        aside.rename(path)

    return choose
