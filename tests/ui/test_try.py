"""A real endpoint is tried in JupyterLab: from the form to the model and back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from lab_page import LabPage, until
from lab_server import lab_server
from playwright.sync_api import Locator, Page, Response, expect

HOSTILE = "<img src=x onerror"
CELLS = ["%load_ext aios_jupyter", "%aios serve pixels --name again"]
IDLE = """() => {
    const context = window.jupyterapp.shell.currentWidget?.sessionContext;
    return context?.session?.kernel?.status === 'idle';
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, page: Page) -> Iterator[LabPage]:
    """JupyterLab beside a cluster with the endpoints of `served_models.py`."""
    root = tmp_path_factory.mktemp("try-lab")
    with lab_server(root, environment={"AIOS_STATE_DIR": str(root / "state")}) as server:
        served = [sys.executable, str(Path(__file__).with_name("served_models.py"))]
        serving = subprocess.Popen(served, env=server.environment)
        cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, server.notebooks / "serve.ipynb")
        try:
            lab = LabPage(page).open(server.page())
            lab.show_panel()
            assert serving.wait(120) == 0
            (token,) = (root / "runtime").rglob("endpoint-people.token")
            heard: list[Response] = []
            page.on("response", lambda response: heard.append(response))
            yield lab
            bodies = [one.body() for one in heard if "/aios/endpoints/" in one.url]
            assert len(bodies) > 5
            assert not any(token.read_bytes() in body for body in bodies)
        finally:
            serving.kill()
            serving.wait()
            down = [sys.executable, "-c", "from aios_jupyter.commands import main; main()", "down"]
            subprocess.run(
                down, env=server.environment, capture_output=True, timeout=60, check=False
            )


def field(lab: LabPage, name: str) -> Locator:
    return lab.details.locator(f"[data-input='{name}']").get_by_label(name, exact=True)


def answered(lab: LabPage) -> str:
    """Press Predict; what is said of the answer, once it has come."""
    with lab.page.expect_response(re.compile("/aios/endpoints/.*/predict")):
        lab.details.get_by_role("button", name="Predict").click()
    said = lab.details.locator(".aios-Tried")
    expect(lab.details.locator("[aria-busy=true]")).to_have_count(0)
    expect(said).not_to_be_empty()
    return said.inner_text()


def test_a_model_of_columns_is_tried_from_its_endpoints_row(
    lab: LabPage, page: Page, artifacts: Path
) -> None:
    lab.panel.get_by_role("button", name="Try people").click()
    tab = lab.details.get_by_role("tab", name="Try it")
    expect(tab).to_have_attribute("aria-selected", "true")
    lab.details.get_by_role("button", name="Fill with the example").click()
    expect(field(lab, "age")).to_have_value("31.5")
    expect(field(lab, "children")).to_have_value("2")
    expect(field(lab, "member")).to_be_checked()
    expect(field(lab, "city")).to_have_value(re.compile(HOSTILE))
    seen: set[str] = set()

    def both() -> bool:
        seen.update(re.findall(r"Version (\d) answered in [\d.]+ ms", answered(lab)))
        return seen == {"1", "2"}

    until(both, "an answer of each version", 60)
    expect(lab.details.locator(".aios-Tried")).to_contain_text("among the versions 1, 2")
    cells = lab.details.locator(".aios-Answer tbody tr")
    expect(cells).to_have_count(4)
    assert cells.first.inner_text().split()[1] in ("31.5", "315")
    expect(cells.first).to_contain_text("largest")
    for theme in ("dark", "light"):
        lab.theme(theme)
        page.screenshot(path=artifacts / f"try-{theme}.png")
    assert page.title() != "hacked"


def test_what_makes_no_sense_is_said_at_its_field_and_gone_through_by_keys(
    lab: LabPage, page: Page
) -> None:
    lab.execute("aios:open-details", kind="model", id="people")
    form = lab.details.get_by_role("region", name="Try it")
    age = form.get_by_label("age", exact=True)
    age.fill("old")
    page.keyboard.press("Tab")
    expect(form.get_by_label("children", exact=True)).to_be_focused()
    page.keyboard.type("two")
    page.keyboard.press("Control+Enter")
    expect(age).to_be_focused()
    expect(age).to_have_attribute("aria-invalid", "true")
    expect(age).to_have_accessible_description(
        "number; empty is missing Write a number, such as 0.5."
    )
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")
    expect(age).not_to_have_attribute("aria-invalid", "true")
    expect(age).to_be_focused()
    form.get_by_label("children", exact=True).fill("")
    with page.expect_response(re.compile("/predict")) as response:
        page.keyboard.press("Enter")
    sent = response.value.request.post_data_json
    assert sent == {
        "inputs": {"age": [None], "children": [None], "member": [False], "city": [None]}
    }
    expect(form.locator(".aios-Answer tbody tr").first).to_contain_text("31")


def test_a_tensor_is_written_as_json_and_a_refusal_is_the_endpoints_own(
    lab: LabPage, page: Page, artifacts: Path
) -> None:
    lab.execute("aios:open-details", kind="model", id="pixels")
    expect(lab.details).to_contain_text("pixels/1 has no input example")
    x = field(lab, "x")
    x.fill("[[1, 2], [3, 4]]")
    assert "has shape [2, 2]; the model takes [-1, 8, 8, 3]" in answered(lab)
    expect(lab.details.locator(".aios-Answer")).to_have_count(0)
    sample = [[[row, column, 0.5] for column in range(8)] for row in range(8)]
    x.fill(json.dumps(sample))
    assert "Version 1 answered" in answered(lab)
    shown = lab.details.locator(".aios-Answer pre")
    assert json.loads(shown.inner_text()) == [sample]
    for theme in ("dark", "light"):
        lab.theme(theme)
        page.screenshot(path=artifacts / f"try-tensor-{theme}.png")


def test_a_picture_becomes_what_the_model_takes(lab: LabPage, page: Page, artifacts: Path) -> None:
    """It is as high as the model's input and twice as wide: its middle is sent pixel by pixel."""
    colors = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    encoded = cv2.imencode(".png", colors[:, :, ::-1])[1].tobytes()
    lab.execute("aios:open-details", kind="model", id="pixels")
    chooser = lab.details.get_by_label("From a picture")
    bad = f"{HOSTILE}=alert()>.png"
    chooser.set_input_files({"name": bad, "mimeType": "image/png", "buffer": b"no picture"})
    expect(lab.details.get_by_role("alert")).to_contain_text(f"cannot read {bad} as a picture")
    chooser.set_input_files({"name": "two.png", "mimeType": "image/png", "buffer": encoded})
    expect(lab.details.get_by_role("img", name="two.png, as the model gets it")).to_be_visible()
    expect(lab.details.get_by_role("alert")).to_have_count(0)
    assert "Version 1 answered" in answered(lab)
    given = json.loads(lab.details.locator(".aios-Answer pre").inner_text())
    np.testing.assert_allclose(given, colors[None, :, 4:12] / 255, atol=1e-4)
    for theme in ("dark", "light"):
        lab.theme(theme)
        page.screenshot(path=artifacts / f"try-picture-{theme}.png")
    field(lab, "x").fill("[]")
    expect(lab.details.get_by_role("img")).to_have_count(0)


def test_an_endpoint_that_is_stopped_is_not_tried(lab: LabPage) -> None:
    lab.panel.get_by_role("button", name="Try pixels").click()
    expect(field(lab, "x")).to_be_visible()
    lab.panel.get_by_role("button", name="Stop pixels", exact=True).click()
    lab.accept()
    expect(lab.details).to_contain_text("It has ended and answers no more.")
    lab.execute("aios:open-details", kind="model", id="pixels")
    expect(lab.details).to_contain_text("%aios serve pixels")


def test_the_card_in_a_notebook_leads_to_the_form(
    lab: LabPage, page: Page, artifacts: Path
) -> None:
    lab.execute("docmanager:open", path="serve.ipynb")
    page.wait_for_function(IDLE, timeout=60_000)
    lab.execute("notebook:run-all-cells")
    card = page.locator(".jp-OutputArea .aios-card", has_text="endpoint again")
    button = card.get_by_role("button", name="Try it")
    expect(button).to_be_visible(timeout=60_000)
    for theme in ("dark", "light"):
        lab.theme(theme)
        page.screenshot(path=artifacts / f"try-card-{theme}.png")
    button.click()
    expect(lab.details.get_by_role("heading", name="again")).to_be_visible()
    expect(lab.details.get_by_role("tabpanel", name="Try it")).to_be_visible()
    expect(field(lab, "x")).to_be_visible()
