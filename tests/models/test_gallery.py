"""Applications are found, written and, one here and all with `make test-gallery`, run for real."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

import aios_jupyter
from aios_jupyter.commands.gallery import gallery_table
from aios_jupyter.config import settings
from aios_jupyter.errors import ConflictError, NoClusterError, NotFoundError
from aios_jupyter.models import gallery

from .conftest import shell

SECONDS = 400


def test_applications_for_tables_images_text_and_sound_come_with_the_package() -> None:
    found = {app.name: app for app in gallery.apps()}
    assert {"penguins", "digits", "docstrings", "photos", "speech", "page"} <= set(found)
    assert {app.task for app in found.values()} >= {
        "tabular", "image classification", "text classification", "speech detection",
        "reading text in a picture",
    }  # fmt: skip
    for app in found.values():
        notebook = nbformat.read(app.path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "aios"
        assert all(not cell.get("outputs") for cell in notebook.cells), app.name
        source = "\n".join(cell.source for cell in notebook.cells)
        assert "%aios publish" in source
        assert "%aios serve" in source
        assert len(app.summary) < 100
        assert set(app.alone) <= set(app.needs)
    assert "penguins" in gallery_table(gallery.apps()).text()


def test_a_notebook_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell("gallery", "install", "penguins") == 0
    assert "papermill" in capsys.readouterr().out
    assert nbformat.read(tmp_path / "penguins.ipynb", as_version=4).metadata.aios.app.title
    with pytest.raises(ConflictError, match="there already"):
        gallery.install("penguins")
    with pytest.raises(NotFoundError, match="did you mean 'penguins'"):
        gallery.install("penguin")
    with pytest.raises(ConflictError, match="cannot be written"):
        gallery.install("penguins", tmp_path / "absent" / "a.ipynb")
    (tmp_path / "folder").mkdir()
    assert gallery.install("penguins", tmp_path / "folder")[1] == tmp_path / "folder/penguins.ipynb"


def test_other_packages_add_theirs_and_a_broken_one_hides_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["aios"] = {"app": {"title": "Mine", "needs": ["no-such-package"]}}
    (tmp_path / "mine.ipynb").write_text(nbformat.writes(notebook))
    (tmp_path / "other.ipynb").write_text("{}")
    module = tmp_path / "my_apps.py"
    module.write_text(
        f"mine = {str(tmp_path / 'mine.ipynb')!r}\nother = {str(tmp_path / 'other.ipynb')!r}"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        importlib.metadata.EntryPoint(name, f"my_apps:{name}", gallery.GROUP)
        for name in ("mine", "other", "absent")
    ]
    monkeypatch.setattr(gallery.importlib.metadata, "entry_points", lambda group: points)
    found = {app.name: app for app in gallery.apps()}
    assert found["mine"].missing == ("no-such-package",)
    assert "penguins" in found
    assert not {"other", "absent"} & set(found)
    assert len(caplog.records) == 2


def test_what_is_missing_is_named_with_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "_installed", lambda distribution: distribution == "scikit-image")
    assert shell("gallery", "install", "speech") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "pip install silero-vad && pip install --no-deps pyannote.audio." in said
    assert shell("gallery", "install", "page") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "First: pip install --no-deps rapidocr-onnxruntime." in said
    monkeypatch.setattr(gallery, "_installed", lambda distribution: True)
    assert all(app.first == "" for app in gallery.apps())


@pytest.fixture
def own_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cluster that the notebook starts, with a state of its own; it ends with the test."""
    monkeypatch.setenv("AIOS_STATE_DIR", str(tmp_path / "state"))
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    settings.cache_clear()
    yield tmp_path
    try:
        aios_jupyter.down()
    except NoClusterError:
        pass
    settings.cache_clear()


def run(name: str, folder: Path) -> dict[str, Any]:
    """Run an application under papermill; what its last cell shows."""
    _, path = gallery.install(name, folder / f"{name}.ipynb")
    output = folder / "out.ipynb"
    command = [sys.executable, "-m", "papermill", "--kernel", "python3", "--no-progress-bar"]
    command += ["--cwd", str(folder), str(path), str(output)]
    done = subprocess.run(command, timeout=SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (summary,) = [
        shown.data["application/json"]
        for cell in nbformat.read(output, as_version=4).cells
        if "summary" in cell.metadata.get("tags", ())
        for shown in cell.outputs
    ]
    return dict(summary)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 30)
def test_penguins_are_told_apart_served_and_watched(own_cluster: Path) -> None:
    found = run("penguins", own_cluster)
    assert found["accuracy"] > 0.9
    assert found["agreement"] > 0.9
    assert found["predicted"] == 342
    assert set(found["served"]) <= {"Adelie", "Chinstrap", "Gentoo"}
    assert any("far from the training data" in alert for alert in found["alerts"])


@pytest.mark.gallery
@pytest.mark.timeout(SECONDS + 30)
@pytest.mark.parametrize("name", ["digits", "docstrings", "page", "photos", "speech"])
def test_the_others_do_what_their_text_says(own_cluster: Path, name: str) -> None:
    found = run(name, own_cluster)
    if name == "digits":
        assert found["accuracy"] > 0.93
        assert found["shadow"].get("same", 0) > 40
    elif name == "docstrings":
        assert found["accuracy"] > 0.85
        assert found["guess"] == "torch"
    elif name == "page":
        assert found["text"][0] == "Region-based segmentation"
        assert "Let us first determine markers of the coins and the" in found["text"]
        assert len(found["text"]) == 7
    elif name == "speech":
        assert found["agreement"] > 0.95
        assert max(found["false"].values()) < 0.02
    else:
        assert set(found["found"]["cat"]) & {"tabby", "tiger cat", "Egyptian cat"}
        assert set(found["found"]["coffee"]) & {"espresso", "coffee mug", "cup"}
