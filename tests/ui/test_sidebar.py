"""The sidebar on a made-up cluster: what it shows, how it acts, that it stays alive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lab_page import LabPage, until
from lab_server import LabServer
from playwright.sync_api import Page, expect

Choose = Callable[[str], None]


@pytest.fixture(scope="module")
def loaded(page: Page, fake_lab: LabServer) -> LabPage:
    """JupyterLab, loaded once."""
    return LabPage(page).open(fake_lab.page())


@pytest.fixture
def lab(loaded: LabPage, scenario: Choose) -> LabPage:
    """The sidebar, open, on a busy cluster in its first state."""
    scenario("none")
    loaded.show_panel()
    loaded.panel.get_by_text("No cluster is running").wait_for()
    scenario("busy")
    loaded.device("GPU-ada-01-0").wait_for()
    return loaded


def test_devices_say_how_busy_they_are_and_who_holds_them(lab: LabPage) -> None:
    expect(lab.panel.locator("h2")).to_have_text("2 of 8 GPUs free")
    mine = lab.device("GPU-ada-01-0")
    expect(mine).to_contain_text("you · quickstart.ipynb · digits-cnn")
    expect(mine.get_by_role("meter", name="Memory")).to_have_attribute("aria-valuenow", "39")
    expect(mine).to_contain_text("31 / 80 GB")
    expect(lab.device("GPU-ada-01-3")).to_contain_text("in use outside any lease: pid 31337")
    expect(lab.device("SIMULATED-grace-02-3")).to_contain_text("simulated")
    expect(lab.device("SIMULATED-grace-02-3")).to_contain_text("free")
    expect(lab.panel.get_by_text("not reachable")).to_be_visible()
    expect(lab.panel.get_by_text("torch warm (391 MB)")).to_be_visible()


def test_utilization_and_progress_move(lab: LabPage) -> None:
    meter = lab.device("GPU-ada-01-0").get_by_role("meter", name="Utilization")
    progress = lab.panel.get_by_role("progressbar", name="Progress of digits-cnn")
    before = meter.get_attribute("aria-valuenow"), progress.get_attribute("aria-valuenow")
    expect(meter).not_to_have_attribute("aria-valuenow", before[0] or "")
    expect(progress).not_to_have_attribute("aria-valuenow", before[1] or "")
    expect(lab.panel.locator("[data-metric=loss]").first).to_be_visible()


def test_release_asks_names_what_is_lost_and_frees_the_devices(lab: LabPage) -> None:
    lab.panel.get_by_role("button", name="Release GPU 0, GPU 1").click()
    expect(lab.dialog).to_contain_text("The run digits-cnn ends (2 ranks")
    lab.dialog.get_by_role("button", name="Keep").click()
    expect(lab.device("GPU-ada-01-0")).to_have_attribute("data-state", "mine")
    lab.panel.get_by_role("button", name="Release GPU 0, GPU 1").click()
    lab.accept()
    expect(lab.device("GPU-ada-01-0")).to_have_attribute("data-state", "free")
    expect(lab.panel.locator("h2")).to_have_text("4 of 8 GPUs free")
    run = lab.panel.locator("[data-run='r-digits-cnn']")
    expect(run).to_have_attribute("data-state", "stopped")


def test_stop_ends_a_run_and_keeps_its_lease(lab: LabPage) -> None:
    lab.panel.get_by_role("button", name="Stop digits-cnn").click()
    expect(lab.dialog).to_contain_text("The lease on its devices stays.")
    lab.accept()
    run = lab.panel.locator("[data-run='r-digits-cnn']")
    expect(run).to_have_attribute("data-state", "stopped")
    expect(lab.panel.locator("[data-lease='l-7c1']")).to_be_visible()


def test_cancel_takes_a_request_out_of_the_queue(lab: LabPage) -> None:
    expect(lab.status).to_have_text("2/8 · you are number 1 of 2")
    lab.panel.get_by_role("button", name="Cancel the request for 2 GPUs").click()
    lab.accept()
    expect(lab.panel.locator("[data-request='q-a1']")).to_have_count(0)
    expect(lab.status).to_have_text("2/8 · 1 waiting")


def test_a_request_that_waits_is_given_another_priority(lab: LabPage) -> None:
    row = lab.panel.locator("[data-request='q-a1']")
    row.get_by_role("button", name="Change the priority of the request for 2 GPUs").click()
    expect(lab.dialog).to_contain_text("you may not go above 0")
    lab.dialog.locator("input").fill("-2")
    lab.dialog.get_by_role("button", name="Change").click()
    expect(row).to_contain_text("priority -2")


def test_a_batch_is_stopped_and_leads_to_its_results(lab: LabPage, fake_lab: LabServer) -> None:
    batch = lab.panel.locator("[data-batch='batch-9c']")
    expect(batch).to_contain_text("3 of 8 done · 1 running · 4 waiting")
    results = batch.get_by_role("button", name="Open the results of grid.ipynb")
    results.click()
    folder = lab.page.locator(".jp-FileBrowser .jp-BreadCrumbs")
    expect(folder).to_contain_text("grid-batch")
    table = fake_lab.notebooks / "grid-batch" / "results.csv"
    table.write_text("lr,accuracy\n0.1,0.93\n")
    lab.show_panel()
    results.click()
    expect(lab.page.get_by_role("tab", name="results.csv")).to_be_visible()
    lab.execute("application:close")
    table.unlink()
    batch.get_by_role("button", name="Stop the batch grid.ipynb").click()
    expect(lab.dialog).to_contain_text("1 notebook that is at work ends")
    expect(lab.dialog).to_contain_text("4 notebooks that wait are not run.")
    lab.accept()
    expect(batch).to_have_attribute("data-state", "stopped")
    expect(batch.get_by_role("button", name="Stop the batch grid.ipynb")).to_have_count(0)


def test_what_belongs_to_somebody_else_has_no_buttons(lab: LabPage) -> None:
    expect(lab.panel.locator("[data-lease='l-b44'] .aios-Action")).to_have_count(0)
    expect(lab.panel.locator("[data-request='q-a2'] button")).to_have_count(0)
    expect(lab.panel.locator("[data-batch='batch-5e'] .aios-Action")).to_have_count(0)
    lab.panel.locator("[data-batch='batch-5e'] .aios-Batch-head").click()
    expect(lab.panel.locator("[data-run='r-sweep-3']")).to_be_visible()
    expect(lab.panel.locator("[data-run='r-sweep-3'] .aios-Action")).to_have_count(0)
    lab.panel.locator("[data-batch='batch-5e'] .aios-Batch-head").click()


def test_a_refusal_is_shown_in_the_words_of_the_broker(lab: LabPage) -> None:
    lab.execute("aios:release-lease", lease="l-b44")
    lab.accept()
    toast = lab.page.locator(".Toastify__toast")
    expect(toast).to_contain_text("Lease l-b44 belongs to bob, not to you.")


SAVED_FOLDS = """async () => {
    const { data } = await window.jupyterapp.serviceManager.workspaces.fetch('default');
    return JSON.stringify(data['aios-jupyter:folded-sections'] ?? '');
}"""


def test_sections_fold_by_keyboard_and_stay_folded(
    lab: LabPage, fake_lab: LabServer, page: Page
) -> None:
    title = lab.section("queue").get_by_role("button", name="Queue")
    title.focus()
    page.keyboard.press("Enter")
    expect(title).to_have_attribute("aria-expanded", "false")
    expect(lab.panel.locator("[data-request]")).to_have_count(0)
    until(lambda: "queue" in page.evaluate(SAVED_FOLDS), "the state to be written")
    lab.open(fake_lab.page().replace("&reset", ""))
    lab.show_panel()
    expect(title).to_have_attribute("aria-expanded", "false")
    assert "queue" in page.evaluate(SAVED_FOLDS), "it is forgotten with the next reload"
    title.click()
    expect(lab.panel.locator("[data-request]")).to_have_count(2)


def test_status_bar_opens_the_panel(lab: LabPage) -> None:
    lab.execute("filebrowser:activate")
    expect(lab.panel).to_be_hidden()
    lab.status.click()
    expect(lab.panel).to_be_visible()


def test_palette_has_the_commands(lab: LabPage, page: Page) -> None:
    lab.execute("apputils:activate-command-palette")
    page.keyboard.type("AIOS")
    expect(page.locator(".lm-CommandPalette")).to_contain_text("Show the AIOS Cluster")


def test_the_launcher_has_the_kernels_with_devices(lab: LabPage, page: Page) -> None:
    lab.execute("launcher:create")
    for name in ("Python (AIOS)", "Python (AIOS, 1 device)"):
        cards = page.locator(f".jp-LauncherCard:visible[title^='{name}']")
        expect(cards.first).to_be_visible()
    lab.execute("application:close")


def test_an_endpoint_is_stopped(lab: LabPage) -> None:
    row = lab.panel.locator("[data-run='r-digits']")
    expect(row).to_contain_text("12.4 requests/s")
    lab.panel.get_by_role("button", name="Stop digits", exact=True).click()
    expect(lab.dialog).to_contain_text("Its address stops answering")
    lab.accept()
    expect(row).to_have_count(0)


def test_settings_hide_sections_and_choose_units(
    lab: LabPage, fake_lab: LabServer, page: Page
) -> None:
    save = """chosen => window.jupyterapp.serviceManager.settings.save(
        'aios-jupyter:settings', JSON.stringify(chosen))"""
    page.evaluate(save, {"hiddenSections": ["queue"], "temperatureUnit": "fahrenheit"})
    lab.open(fake_lab.page())
    lab.show_panel()
    expect(lab.device("GPU-ada-01-0")).to_contain_text("153 °F")
    expect(lab.section("leases")).to_be_visible()
    expect(lab.section("queue")).to_have_count(0)
    page.evaluate(save, {})
    lab.open(fake_lab.page())
    lab.show_panel()
    expect(lab.device("GPU-ada-01-0")).to_contain_text("67 °C")
    expect(lab.section("queue")).to_be_visible()


def test_a_cluster_that_goes_away_and_comes_back(lab: LabPage, scenario: Choose) -> None:
    scenario("none")
    expect(lab.panel).to_contain_text("No cluster is running")
    expect(lab.panel).to_contain_text("%aios up")
    expect(lab.panel.get_by_role("button", name="Start a cluster here")).to_be_enabled()
    expect(lab.status).to_have_text("off")
    scenario("quiet")
    expect(lab.panel.locator("h2")).to_have_text("2 of 2 GPUs free")
    expect(lab.section("leases")).to_contain_text("%aios alloc")
    expect(lab.section("runs")).to_contain_text("%%aios train")
    expect(lab.section("models")).to_contain_text("%aios serve")


def test_two_hundred_devices_stay_responsive(lab: LabPage, scenario: Choose) -> None:
    scenario("large")
    expect(lab.panel.locator("h2")).to_have_text("50 of 200 GPUs free")
    expect(lab.devices("held").first).to_be_visible()
    assert lab.panel.locator(".aios-Device").count() < 60, "rows out of sight are drawn"
    busy = lab.page.evaluate(
        """async () => {
            let blocked = 0;
            const observer = new PerformanceObserver(list =>
                list.getEntries().forEach(entry => (blocked += entry.duration)));
            observer.observe({type: 'longtask'});
            await new Promise(done => setTimeout(done, 4000));
            observer.disconnect();
            return blocked / 4000;
        }"""
    )
    assert busy < 0.5, f"the page was blocked {busy:.0%} of the time"


IN_SIGHT = """panel => {
    const around = panel.getBoundingClientRect();
    const rows = [...panel.querySelectorAll('.aios-Device')];
    const inSight = rows.filter(row => {
        const box = row.getBoundingClientRect();
        return box.height > 0 && box.top < around.bottom && box.bottom > around.top;
    });
    return inSight.length > 2 && rows.length < 60;
}"""


def test_a_thousand_devices_are_found_by_scrolling_filter_and_group(
    lab: LabPage, scenario: Choose
) -> None:
    scenario("huge")
    expect(lab.panel.locator("h2")).to_have_text("0 of 1000 GPUs free")
    lab.panel.get_by_role("searchbox", name="Filter devices").fill("GPU-node-77-3")
    expect(lab.panel.locator(".aios-Device")).to_have_count(1)
    expect(lab.device("GPU-node-77-3")).to_contain_text("notebook-309.ipynb")
    lab.panel.get_by_role("searchbox", name="Filter devices").fill("")
    lab.panel.get_by_role("combobox", name="Group devices").select_option("user")
    head = lab.panel.get_by_role("button", name="user0")
    expect(head).to_contain_text("0 of 144 free")
    head.click()
    expect(head).to_have_attribute("aria-expanded", "false")
    expect(lab.panel.get_by_role("button", name="user1")).to_be_visible()
    head.click()
    lab.panel.evaluate("panel => { panel.scrollTop = 30000; }")
    # Rows come and go while they are looked at: the page itself says when it is there.
    lab.page.wait_for_function(IN_SIGHT, arg=lab.panel.element_handle())


def test_a_hundred_percent_of_the_text_is_there_at_twice_the_size(
    lab: LabPage, page: Page, artifacts: Path
) -> None:
    """200% zoom is half the pixels: nothing is cut off sideways."""
    page.set_viewport_size({"width": 680, "height": 450})
    wide = lab.panel.evaluate("panel => [panel.scrollWidth, panel.clientWidth]")
    page.screenshot(path=artifacts / "zoomed-light.png")
    page.set_viewport_size({"width": 1360, "height": 900})
    assert wide[0] <= wide[1]


@pytest.mark.parametrize("width", [200, 700])
def test_nothing_is_cut_off_in_a_narrow_or_wide_sidebar(
    lab: LabPage, artifacts: Path, width: int
) -> None:
    """JupyterLab makes it 250 pixels wide at least."""
    lab.width(width)
    beyond = lab.panel.evaluate(BEYOND)
    lab.page.set_viewport_size({"width": 1360, "height": 1700})
    lab.panel.screenshot(path=artifacts / f"panel-{width}.png")
    lab.page.set_viewport_size({"width": 1360, "height": 900})
    lab.width(250)
    assert beyond == []


# Rows that are longer than the panel, or that lie beyond its edge.
BEYOND = """panel => {
    const edge = panel.getBoundingClientRect().left + panel.clientWidth + 1;
    return [...panel.querySelectorAll('button, input, select, dd, .aios-Facts, .aios-Row-head')]
        .filter(one => one.getClientRects().length && one.getBoundingClientRect().right > edge)
        .map(one => `${one.className}: ${one.textContent.slice(0, 40)}`);
}"""

SHIFTS = """async panel => {
    const shifts = [];
    const observer = new PerformanceObserver(list => {
        const moved = list.getEntries().flatMap(entry => entry.sources)
            .filter(({ node }) => node && panel.contains(node))
            // What stands to the right begins further left with each digit more, and ends there.
            .filter(({ previousRect: before, currentRect: now }) =>
                before.y !== now.y || Math.abs(before.right - now.right) > 0.5);
        shifts.push(...moved.map(({ node, previousRect: before, currentRect: now }) =>
            [(node.outerHTML ?? node.data).slice(0, 150), before.y, now.y]));
    });
    observer.observe({ type: 'layout-shift' });
    const events = window.jupyterapp.serviceManager.events.stream;
    let seen = 0;
    const count = () => { seen++; };
    events.connect(count);
    while (seen < 8) {
        await new Promise(done => setTimeout(done, 50));
    }
    await new Promise(done => requestAnimationFrame(() => setTimeout(done, 100)));
    events.disconnect(count);
    observer.disconnect();
    return shifts;
}"""


def test_nothing_moves_while_rows_are_updated(lab: LabPage) -> None:
    """Eight updates of every bar, number and curve: the browser counts no layout shift."""
    expect(lab.panel.locator("[data-metric=steps_per_second]").first).to_be_visible()
    lab.section("datasets").scroll_into_view_if_needed()
    assert lab.panel.evaluate(SHIFTS) == []
    lab.panel.evaluate("panel => { panel.scrollTop = 0; }")
    assert lab.panel.evaluate(SHIFTS) == []


CONTRAST = """panel => {
    const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const over = (color, below) => {
        canvas.fillStyle = `rgb(${below})`;
        canvas.fillRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = color => {
        const [r, g, b] = color.map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => element === null ? [255, 255, 255]
        : over(getComputedStyle(element).backgroundColor, behind(element.parentElement));
    const words = [...panel.querySelectorAll('*')].filter(element =>
        [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) &&
        element.getClientRects().length > 0 && !element.closest('[data-state=lost]'));
    return words.map(element => {
        const below = behind(element);
        const [a, b] = [over(getComputedStyle(element).color, below), below].map(light);
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return [ratio, element.className, element.textContent.slice(0, 40)];
    }).sort((a, b) => a[0] - b[0]);
}"""


@pytest.mark.parametrize("theme", ["light", "dark", "contrast"])
def test_all_words_can_be_read_against_what_is_behind_them(
    lab: LabPage, artifacts: Path, theme: str
) -> None:
    """4.5 to 1, as WCAG asks of small text; a device that is not reachable is dimmed on purpose."""
    lab.theme(theme)
    worst = lab.panel.evaluate(CONTRAST)
    lab.page.screenshot(path=artifacts / f"contrast-{theme}.png")
    lab.theme("light")
    assert len(worst) > 50
    assert worst[0][0] >= 4.5, worst[:5]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_screenshots(lab: LabPage, scenario: Choose, artifacts: Path, theme: str) -> None:
    lab.theme(theme)
    lab.page.screenshot(path=artifacts / f"busy-{theme}.png")
    lab.page.set_viewport_size({"width": 1360, "height": 1700})
    lab.panel.screenshot(path=artifacts / f"panel-{theme}.png")
    lab.page.set_viewport_size({"width": 1360, "height": 900})
    lab.panel.get_by_role("button", name="Release GPU 0, GPU 1").click()
    lab.dialog.wait_for()
    lab.page.screenshot(path=artifacts / f"release-{theme}.png")
    lab.dialog.get_by_role("button", name="Keep").click()
    scenario("none")
    expect(lab.panel).to_contain_text("No cluster is running")
    lab.page.screenshot(path=artifacts / f"empty-{theme}.png")
    lab.theme("light")
