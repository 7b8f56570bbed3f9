"""The sidebar in Chinese, with a language pack as JupyterLab wants one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_page import LabPage
from lab_server import ROOT, LabServer, fake_config, lab_server
from playwright.sync_api import Page, expect


@pytest.fixture(scope="module")
def chinese_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """JupyterLab whose user has chosen Chinese, on a made-up cluster."""
    root = tmp_path_factory.mktemp("chinese-lab")
    packs = root / "packs"
    info = packs / "zh_pack-1.0.dist-info"
    info.mkdir(parents=True)
    (packs / "zh_pack.py").write_text("")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zh-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jupyterlab.languagepack]\nzh_CN = zh_pack\n")
    settings = root / "config" / "lab" / "user-settings" / "@jupyterlab" / "translation-extension"
    settings.mkdir(parents=True)
    (settings / "plugin.jupyterlab-settings").write_text(json.dumps({"locale": "zh_CN"}))
    environment = {
        "FAKE_SCENARIO": str(root / "none"),
        "PYTHONPATH": f"{ROOT}:{packs}",
    }
    with lab_server(root, fake_config(), environment) as lab:
        yield lab


def test_the_sidebar_and_its_dialogs_are_chinese(
    chinese_lab: LabServer, page: Page, artifacts: Path
) -> None:
    lab = LabPage(page).open(chinese_lab.page())
    lab.show_panel()
    expect(lab.panel.locator("h2")).to_have_text("8 个 GPU 中 2 个空闲")
    expect(lab.section("queue")).to_contain_text("队列")
    page.screenshot(path=artifacts / "chinese-light.png")
    lab.panel.get_by_role("button", name="停止 digits-cnn").click()
    expect(lab.dialog).to_contain_text("其设备的租约会保留。")
