"""A real notebook on a real cluster of this machine, seen through the sidebar."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from lab_page import LabPage
from lab_server import LabServer, lab_server
from playwright.sync_api import Locator, Page, expect

UP = "%aios up --simulate-gpus 2"
ALLOC = "%aios alloc --devices 2 --time 1h"
TRAIN = """%%aios train
import time
from aios_jupyter import train

print("training on", train.world_size(), "ranks")
for step in range(120):
    busy = time.perf_counter() + 0.05
    while time.perf_counter() < busy:
        pass
    time.sleep(0.05)
    train.log(step=step, loss=2.3 / (1 + step))
    train.progress(step + 1, 120, "step")
"""
RELEASE = "%aios release"
DOWN = "%aios down"
LOAD = "%load_ext aios_jupyter"
CELLS = [LOAD, UP, ALLOC, TRAIN, TRAIN, RELEASE, DOWN]

ERROR = "[data-mime-type='application/vnd.jupyter.error']"
SOON = 2000  # milliseconds from a change at the broker to the sidebar, as promised


@pytest.fixture(scope="module")
def real_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """JupyterLab without any cluster; the one that a notebook starts is stopped at the end."""
    root = tmp_path_factory.mktemp("real-lab")
    with lab_server(root, environment={"AIOS_STATE_DIR": str(root / "state")}) as lab:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, lab.notebooks / "story.ipynb")
        yield lab
        down = [sys.executable, "-c", "from aios_jupyter.commands import main; main()", "down"]
        subprocess.run(down, env=lab.environment, capture_output=True, timeout=60, check=False)


class Notebook:
    """The open notebook, whose cells are run one by one."""

    def __init__(self, lab: LabPage) -> None:
        self.lab = lab

    def open(self, path: str) -> None:
        """Open it and wait for its kernel."""
        self.lab.execute("docmanager:open", path=path)
        self.lab.page.locator(".jp-Notebook .jp-Cell").first.wait_for()
        self.lab.page.wait_for_function(
            """() => {
                const context = window.jupyterapp.shell.currentWidget?.sessionContext;
                return context?.session?.kernel?.status === 'idle';
            }""",
            timeout=60_000,
        )

    def start(self, source: str, which: int = 0) -> Locator:
        """Start the cell with this source (the first, or another with the same)."""
        index = self.lab.page.evaluate(
            """([source, which]) => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                const places = [...notebook.widgets.keys()].filter(index =>
                    notebook.widgets[index].model.sharedModel.getSource() === source);
                return (notebook.activeCellIndex = places[which]);
            }""",
            [source, which],
        )
        self.lab.execute("notebook:run-cell")
        return self.lab.page.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def ended(self, cell: Locator, timeout: float = 30_000) -> None:
        """Wait until a cell has run."""
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\d"), timeout=timeout)

    def run(self, source: str, timeout: float = 30_000) -> None:
        """Run a cell to its end; the test fails when it raises."""
        cell = self.start(source)
        self.ended(cell, timeout)
        expect(cell.locator(ERROR)).to_have_count(0)


@pytest.fixture(scope="module")
def shown(page: Page, real_lab: LabServer) -> LabPage:
    return LabPage(page).open(real_lab.page())


def test_the_sidebar_follows_a_notebook_from_up_to_down(shown: LabPage, artifacts: Path) -> None:
    lab = shown
    lab.show_panel()
    expect(lab.panel).to_contain_text("No cluster is running")
    notebook = Notebook(lab)
    notebook.open("story.ipynb")
    notebook.run(LOAD)
    notebook.run(UP, timeout=60_000)
    expect(lab.panel.locator("h2")).to_have_text("2 of 2 GPUs free", timeout=SOON)
    expect(lab.devices("free").first).to_contain_text("simulated")

    before = time.monotonic()
    notebook.start(ALLOC)
    expect(lab.devices("mine")).to_have_count(2, timeout=10_000)
    took = time.monotonic() - before
    assert took < SOON / 1000, f"the lease was seen after {took:.2f} s"
    expect(lab.indicator).to_contain_text("2 devices")
    expect(lab.devices("mine").first).to_contain_text("story.ipynb")
    expect(lab.section("leases")).to_contain_text("left")
    expect(lab.status).to_have_text("0/2")

    cell = notebook.start(TRAIN)
    progress = lab.panel.get_by_role("progressbar")
    expect(progress).to_be_visible(timeout=30_000)
    _until_moving(progress)
    expect(lab.panel.locator("[data-metric=loss]").first).to_be_visible()
    expect(
        lab.devices("mine").first.get_by_role("meter", name="Utilization")
    ).not_to_have_attribute("aria-valuenow", "0", timeout=10_000)
    for theme in ("dark", "light"):
        lab.theme(theme)
        lab.page.screenshot(path=artifacts / f"training-{theme}.png")
    within = cell.locator(".aios-card .aios-place [data-chart=loss]")
    within.scroll_into_view_if_needed()
    expect(within.locator("canvas")).to_be_visible()
    for theme in ("dark", "light"):
        lab.theme(theme)
        lab.page.screenshot(path=artifacts / f"card-{theme}.png")
    lab.panel.get_by_role("button", name="Open the log of").click()
    expect(lab.page.locator(".aios-Log-lines")).to_contain_text(
        "training on 2 ranks", timeout=30_000
    )
    lab.page.get_by_role("tab", name="Charts").click()
    expect(lab.page.locator(".aios-Details [data-chart=loss] canvas")).to_be_visible()
    lab.page.screenshot(path=artifacts / "run-live-light.png")
    lab.execute("application:close")
    notebook.ended(cell, timeout=60_000)
    expect(cell.locator(ERROR)).to_have_count(0)
    run = lab.panel.locator("[data-run]").first
    expect(run).to_have_attribute("data-state", "succeeded", timeout=SOON)
    # It is drawn where somebody can see it.
    curve = cell.locator(".aios-card .aios-place [data-chart=loss]")
    curve.scroll_into_view_if_needed()
    expect(curve.locator("canvas")).to_be_visible()
    # In the place of the picture that others see, and nowhere else.
    expect(cell.locator(".aios-curves svg")).to_be_hidden()
    expect(cell.locator(".aios-Curves [data-chart]")).to_have_count(0)
    lab.panel.get_by_role("button", name="Go to the notebook of").first.click()
    active = lab.page.locator(".jp-Notebook .jp-Cell.jp-mod-active")
    expect(active).to_contain_text("%%aios train")
    lab.page.screenshot(path=artifacts / "curves-light.png")


def test_stop_in_the_sidebar_ends_the_cell_and_keeps_the_lease(shown: LabPage) -> None:
    lab = shown
    notebook = Notebook(lab)
    cell = notebook.start(TRAIN, which=1)
    lab.panel.get_by_role("progressbar").wait_for(timeout=30_000)
    lab.panel.get_by_role("button", name="Stop").first.click()
    lab.accept()
    run = lab.panel.locator("[data-run]").first
    expect(run).to_have_attribute("data-state", "stopped", timeout=15_000)
    notebook.ended(cell)
    expect(cell.locator(".jp-OutputArea")).to_contain_text("was stopped")
    expect(lab.devices("mine")).to_have_count(2)


def test_the_card_of_a_lease_extends_and_asks_before_it_releases(shown: LabPage) -> None:
    lab = shown
    card = lab.page.locator(".jp-OutputArea .aios-card", has_text="lease").first
    card.scroll_into_view_if_needed()
    before = lab.panel.locator("[data-lease]").inner_text()
    card.get_by_role("button", name="Extend 1 h").click()
    expect(lab.panel.locator("[data-lease]")).to_contain_text("59:5")
    assert "59:5" not in before
    card.get_by_role("button", name="Release").click()
    expect(card.get_by_role("button", name="Release?")).to_be_visible()
    expect(lab.devices("mine")).to_have_count(2)


def test_release_empties_the_sidebar(shown: LabPage, artifacts: Path) -> None:
    lab = shown
    Notebook(lab).run(RELEASE)
    expect(lab.panel.locator("h2")).to_have_text("2 of 2 GPUs free", timeout=SOON)
    expect(lab.devices("mine")).to_have_count(0)
    expect(lab.panel.locator("[data-lease]")).to_have_count(0)
    expect(lab.indicator).to_contain_text("no devices")
    lab.page.screenshot(path=artifacts / "released-light.png")


def test_the_toolbar_leases_extends_and_releases(shown: LabPage, artifacts: Path) -> None:
    lab = shown
    lab.choose("Lease Devices for This Notebook")
    lab.dialog.get_by_label("Devices").fill("one")
    lab.dialog.get_by_role("button", name="Lease").click()
    toast = lab.page.locator(".Toastify__toast", has_text="a number of devices")
    expect(toast).to_be_visible()
    lab.choose("Lease Devices for This Notebook")
    lab.page.screenshot(path=artifacts / "wish-light.png")
    lab.dialog.get_by_role("button", name="Lease").click()
    expect(lab.indicator).to_contain_text("1 device", timeout=15_000)
    expect(lab.page.locator(".jp-Notebook")).to_contain_text("%aios alloc --devices 1 --time 1h")
    lab.choose("Extend")
    lab.dialog.locator("select").select_option("8 hours")
    lab.dialog.get_by_role("button", name="Extend").click()
    expect(lab.indicator).to_contain_text("7:59:")
    lab.choose("Release")
    lab.accept()
    expect(lab.indicator).to_contain_text("no devices")


def test_run_cell_on_aios_adds_the_magic_once(shown: LabPage) -> None:
    lab = shown
    lab.execute("notebook:insert-cell-below")
    lab.page.keyboard.press("Enter")
    lab.page.keyboard.type("print(6 * 7, 'from a rank')")
    cell = lab.page.locator(".jp-Notebook .jp-Cell.jp-mod-active")
    cell.click(button="right")
    lab.page.locator(".lm-Menu").get_by_text("Run Cell on AIOS").click()
    expect(cell.locator(".jp-InputArea")).to_contain_text("%%aios train")
    Notebook(lab).ended(cell, timeout=60_000)
    expect(cell.locator(".jp-OutputArea")).to_contain_text("42 from a rank")
    assert cell.locator(".jp-InputArea").inner_text().count("%%aios") == 1


def test_down_leaves_the_empty_state_and_the_button_starts_a_cluster(shown: LabPage) -> None:
    lab = shown
    Notebook(lab).start(DOWN)
    expect(lab.panel).to_contain_text("No cluster is running", timeout=30_000)
    lab.panel.get_by_role("button", name="Start a cluster here").click()
    expect(lab.panel.locator("h2")).to_contain_text("free", timeout=60_000)


def _until_moving(progress: Locator) -> None:
    """Two different values of a progress bar, the second larger."""
    expect(progress).to_have_attribute("aria-valuenow", re.compile(r"\d"), timeout=30_000)
    first = progress.get_attribute("aria-valuenow") or ""
    expect(progress).not_to_have_attribute("aria-valuenow", first, timeout=5_000)
    assert int(progress.get_attribute("aria-valuenow") or 0) > int(first)
