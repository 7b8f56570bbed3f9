"""The pages of runs, devices, leases and models in the main area, on a made-up cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_page import LabPage, until
from lab_server import LabServer
from playwright.sync_api import Page, expect

Choose = Callable[[str], None]
HOSTILE = "<img src=x onerror"


@pytest.fixture(scope="module")
def loaded(page: Page, fake_lab: LabServer) -> LabPage:
    """JupyterLab, loaded once."""
    return LabPage(page).open(fake_lab.page())


@pytest.fixture
def lab(loaded: LabPage, scenario: Choose) -> LabPage:
    """The sidebar, open, on a busy cluster in its first state, and no page open."""
    scenario("none")
    loaded.execute("application:close-all")
    loaded.show_panel()
    loaded.panel.get_by_text("No cluster is running").wait_for()
    scenario("busy")
    loaded.device("GPU-ada-01-0").wait_for()
    return loaded


def test_a_run_has_a_chart_of_each_metric(lab: LabPage, page: Page, artifacts: Path) -> None:
    lab.panel.get_by_role("button", name="Details of digits-cnn").click()
    loss = lab.details.locator("[data-chart=loss]")
    expect(loss.locator("canvas")).to_be_visible()
    expect(loss).to_contain_text("0.08343")
    expect(lab.details.locator("[data-chart=accuracy] canvas")).to_be_visible()
    lab.details.get_by_label("Over").select_option("time")
    lab.details.get_by_label("smooth").check()
    lab.details.get_by_label("logarithmic").check()
    expect(loss.get_by_text("smoothed")).to_be_visible()
    for theme in ("dark", "light"):
        lab.theme(theme)
        page.screenshot(path=artifacts / f"run-{theme}.png")


def test_tabs_are_gone_through_by_arrow_keys(lab: LabPage, page: Page) -> None:
    lab.execute("aios:open-details", kind="run", id="r-digits-cnn")
    lab.details.get_by_role("tab", name="Charts").focus()
    page.keyboard.press("ArrowRight")
    expect(lab.details.get_by_role("tab", name="Log")).to_be_focused()
    expect(lab.details.get_by_role("tabpanel", name="Log")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(lab.details.get_by_role("tab", name="Profile")).to_be_focused()


def test_a_log_is_followed_searched_and_text(lab: LabPage, page: Page) -> None:
    lab.panel.get_by_role("button", name="Open the log of digits-cnn").click()
    log = lab.details.locator(".aios-Log-lines")
    expect(log).to_contain_text("[1] step 199")
    expect(lab.details.get_by_text("401 lines")).to_be_visible()
    log.hover()
    page.mouse.wheel(0, -100_000)
    expect(lab.details.get_by_label("follow")).not_to_be_checked()
    expect(log).to_contain_text(HOSTILE)
    page.mouse.wheel(0, 100_000)
    expect(lab.details.get_by_label("follow")).to_be_checked()
    search = lab.details.get_by_role("searchbox", name="Search the log")
    search.fill("STEP 17:")
    expect(lab.details.get_by_text("2 lines")).to_be_visible()
    expect(log.locator("mark").first).to_have_text("step 17:")
    search.fill("onerror")
    expect(log).to_contain_text(HOSTILE)
    expect(lab.page.locator(".aios-Details img")).to_have_count(0)
    search.fill("")
    lab.details.get_by_label("Rank").select_option("0")
    expect(lab.details.get_by_text("201 lines")).to_be_visible()
    expect(log).not_to_contain_text("[1]")
    assert page.title() != "hacked"


def test_stacks_mark_the_users_own_code(lab: LabPage) -> None:
    lab.execute("aios:open-details", kind="run", id="r-digits-cnn")
    lab.details.get_by_role("tab", name="Stacks").click()
    own = lab.details.locator("[data-rank='1'] li[data-users]")
    expect(own).to_contain_text("train.py:12")
    expect(own).to_contain_text(HOSTILE)


def test_a_profile_is_downloaded_or_said_to_be_missing(lab: LabPage, page: Page) -> None:
    lab.execute("aios:open-details", kind="run", id="r-digits-cnn")
    lab.details.get_by_role("tab", name="Profile").click()
    with page.expect_download() as download:
        lab.details.get_by_role("button", name="Download the trace").click()
    assert download.value.suggested_filename == "r-digits-cnn-rank-0.trace.json"
    assert json.loads(Path(download.value.path()).read_text()) == {"traceEvents": []}
    lab.details.get_by_label("Rank").select_option("1")
    lab.details.get_by_role("button", name="Download the trace").click()
    expect(lab.details).to_contain_text("has no profile of rank 1")


def test_what_is_somebody_elses_keeps_its_log_to_them(lab: LabPage) -> None:
    lab.execute("aios:open-details", kind="run", id="r-sweep-3")
    expect(lab.details).to_contain_text("for bob and admins")
    expect(lab.details.get_by_role("tab")).to_have_count(0)
    expect(lab.details.get_by_role("button", name="Stop…")).to_have_count(0)


def test_a_device_leads_to_its_lease_and_that_to_its_run(lab: LabPage) -> None:
    lab.panel.get_by_role("button", name="Details of GPU 0 on ada-01").click()
    expect(lab.details.get_by_role("heading", name="GPU 0 · ada-01")).to_be_visible()
    expect(lab.details.locator("canvas")).to_be_visible()
    lab.details.get_by_role("button", name="Details of the lease quickstart.ipynb").click()
    expect(lab.details.get_by_text("until its notebook or shell ends")).to_be_visible()
    lab.details.get_by_role("button", name="Details of digits-cnn").click()
    expect(lab.details.get_by_role("tab", name="Charts")).to_be_visible()


def test_a_device_in_use_outside_any_lease_names_the_process(lab: LabPage) -> None:
    lab.execute("aios:open-details", kind="device", id="GPU-ada-01-3")
    expect(lab.details).to_contain_text("In use outside any lease")
    expect(lab.details).to_contain_text("pid 31337")


def test_a_lease_is_extended_and_released_from_its_page(lab: LabPage) -> None:
    lab.execute("aios:open-details", kind="lease", id="l-7c1")
    lab.details.get_by_role("button", name="Extend…").click()
    lab.dialog.locator("select").select_option("4 hours")
    lab.dialog.get_by_role("button", name="Extend").click()
    expect(lab.details).to_contain_text("3:59:")
    lab.details.get_by_role("button", name="Release…").click()
    expect(lab.dialog).to_contain_text("The run digits-cnn ends")
    lab.accept()
    expect(lab.details).to_contain_text("The lease l-7c1 has ended.")


def test_a_model_is_promoted_and_rolled_back(lab: LabPage, page: Page, artifacts: Path) -> None:
    row = lab.panel.locator("[data-model='digits']")
    expect(row).to_contain_text("champion → 3")
    row.get_by_role("button", name="Details of the model digits").click()
    expect(lab.details.locator("[data-version='3']")).to_contain_text("notebook quickstart.ipynb")
    for version, signed in (("1", "nobody"), ("2", "mallory not known here"), ("3", "ada")):
        cells = lab.details.locator(f"[data-version='{version}'] td")
        expect(cells.filter(has_text=re.compile(f"^{signed}$"))).to_have_count(1)
    page.screenshot(path=artifacts / "model-light.png")
    lab.details.locator("[data-version='1']").get_by_role("button", name="Promote…").click()
    lab.dialog.locator("input").fill("oldest")
    lab.dialog.get_by_role("button", name="Promote").click()
    expect(row).to_contain_text("oldest → 1")
    expect(lab.details.locator("[data-version='1']")).to_contain_text("oldest")
    row.get_by_role("button", name="Roll digits@champion back").click()
    expect(lab.dialog).to_contain_text("champion no longer stands for version 3")
    lab.accept()
    expect(row).to_contain_text("champion → 1")
    expect(row.get_by_role("button", name="Roll digits@champion back")).to_have_count(0)
    expect(lab.panel.locator("[data-model] img")).to_have_count(0)


def test_a_dataset_shows_its_columns_versions_and_what_it_looks_like(
    lab: LabPage, page: Page, artifacts: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    title = lab.section("datasets").get_by_role("button", name="Datasets")
    expect(title).to_have_attribute("aria-expanded", "false")
    assert not any("/aios/datasets" in url for url in asked), "asked for before anybody looks"
    title.click()
    row = lab.panel.locator("[data-dataset='mnist']")
    expect(row).to_contain_text("10,000 rows")
    expect(row).to_contain_text("used ")
    row.get_by_role("button", name="Details of the dataset mnist").click()
    expect(lab.details.locator("[data-field='x']")).to_contain_text("uint8[28, 28]")
    picture = lab.details.get_by_role("img", name="What mnist looks like")
    expect(picture).to_be_visible(timeout=60_000)
    page.wait_for_function("image => image.naturalWidth > 100", arg=picture.element_handle())
    for theme in ("dark", "light"):
        lab.theme(theme)
        page.screenshot(path=artifacts / f"dataset-{theme}.png")
    lab.details.get_by_role("button", name="Details of digits-cnn").click()
    expect(lab.details.get_by_role("tab", name="Charts")).to_be_visible()
    lab.panel.get_by_role("button", name="Details of the dataset zoo").click()
    expect(lab.details.locator("[data-version]")).to_have_count(2)
    expect(lab.details).to_contain_text(HOSTILE)
    # It is in the list of this server alone: nothing is drawn of what the catalogue does not know.
    expect(lab.details).to_contain_text("dataset 'zoo'")
    lab.execute("aios:open-details", kind="dataset", id="none")
    expect(lab.details).to_contain_text("There is no dataset 'none'")
    title.click()


def test_an_open_page_is_there_again_after_a_reload(
    lab: LabPage, fake_lab: LabServer, page: Page
) -> None:
    lab.execute("aios:open-details", kind="device", id="GPU-ada-01-1")
    expect(lab.details.get_by_role("heading", name="GPU 1 · ada-01")).to_be_visible()
    saved = """async () => {
        const layout = await window.jupyterapp.serviceManager.workspaces.fetch('default');
        const main = layout.data['layout-restorer:data']?.main;
        return JSON.stringify(main ?? '').includes('device:GPU-ada-01-1');
    }"""
    until(lambda: page.evaluate(saved), "the layout to be saved")
    lab.open(fake_lab.page().replace("&reset", ""))
    expect(lab.details.get_by_role("heading", name="GPU 1 · ada-01")).to_be_visible()


def test_a_page_says_when_its_subject_is_gone(lab: LabPage) -> None:
    for kind, words in (("run", "no longer knows"), ("device", "has no device")):
        lab.execute("aios:open-details", kind=kind, id="none")
        expect(lab.details).to_contain_text(words)


def test_a_run_that_ends_is_told_wherever_one_looks(lab: LabPage, scenario: Choose) -> None:
    lab.execute("filebrowser:activate")
    scenario("ended")
    expect(lab.page.locator(".Toastify__toast").first).to_contain_text("digits-cnn has finished")


def test_a_grant_an_end_that_comes_and_a_failure_are_told(lab: LabPage, scenario: Choose) -> None:
    lab.execute("filebrowser:activate")
    scenario("news")
    for words in (
        "ablation.ipynb has what it waited for: MIG 1",
        "The lease of quickstart.ipynb (GPU 0, GPU 1) ends in 5 minutes",
        "digits-cnn has failed: rank 1 raised ValueError",
    ):
        expect(lab.page.locator(".Toastify__toast", has_text=words)).to_be_visible()
    ending = lab.page.locator(".Toastify__toast", has_text="ends in 5 minutes")
    ending.get_by_role("button", name="Extend…").click()
    lab.dialog.get_by_role("button", name="Extend").click()
    lab.show_panel()
    expect(lab.panel.locator("[data-lease='l-7c1']")).to_contain_text("59:5")
