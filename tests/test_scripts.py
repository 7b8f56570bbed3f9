"""The build's and the demo's own decisions."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def path_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def executable(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\necho {says}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "suits"),
    [
        ("v18.20.0", False),
        ("v20.18.3", False),
        ("v20.19.0", True),
        ("v21.7.3", False),
        ("v22.11.0", False),
        ("v22.12.0", True),
        ("v24.19.0", True),
        ("", False),
    ],
)
def test_node_suits_when_the_bundler_runs_on_it(version: str, suits: bool, path_with: Path) -> None:
    executable(path_with / "node", version)
    executable(path_with / "npm", "11.0.0")
    assert load("hatch_build.py").node_suits() is suits


def test_node_without_npm_does_not_suit(path_with: Path) -> None:
    executable(path_with / "node", "v24.19.0")
    assert load("hatch_build.py").node_suits() is False


SUMMARY: dict[str, Any] = {
    "leases": ["lease-1 (2 devices)"],
    "images_augmented": 32000,
    "world_size": 2,
    "train_seconds": 61.5,
    "test_accuracy": 0.981,
    "version": "digits/1",
    "endpoint": "http://127.0.0.1:9/v2/models/digits",
    "served": [7, 2],
    "own": [7, 2],
    "labels": [7, 2],
}


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = load("scripts/demo.py")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "WORK", tmp_path / "build" / "demo")
    return module


def test_the_demo_shows_what_the_summary_cell_displayed(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = nbformat.v4.new_output("display_data", data={"application/json": SUMMARY})
    cell = nbformat.v4.new_code_cell("", outputs=[output], metadata={"tags": ["summary"]})
    path = tmp_path / "ran.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    summary = demo.read_summary(path)
    demo.check(summary)
    demo.show(summary, 90.0, path)
    shown = capsys.readouterr().out
    assert "32,000" in shown and "0.981" in shown and "7, 2" in shown


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"test_accuracy": 0.9}, "0.9000"),
        ({"served": [7, 3]}, "served prediction"),
    ],
)
def test_the_demo_fails_when_its_figures_do_not_hold(
    demo: ModuleType, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(demo.DemoError, match=told):
        demo.check(SUMMARY | change)


def test_the_demo_fails_when_the_summary_lacks_a_figure(demo: ModuleType) -> None:
    with pytest.raises(demo.DemoError, match="lacks version"):
        demo.check({key: value for key, value in SUMMARY.items() if key != "version"})


def test_the_demo_fails_with_the_notebook(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "NOTEBOOK", tmp_path / "missing.ipynb")
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    monkeypatch.setattr(demo, "aios", lambda: "true")
    assert demo.main() == 1


def run_chromium_script(path: Path) -> subprocess.CompletedProcess[str]:
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, str(ROOT / "scripts/chromium.sh")],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_chromium_that_is_there_is_used(tmp_path: Path) -> None:
    executable(tmp_path / "chromium", "")
    done = run_chromium_script(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_chromium_is_installed_from_the_distribution(tmp_path: Path) -> None:
    executable(tmp_path / "id", "0")
    executable(tmp_path / "apt-get", 'apt-get "$@"')
    done = run_chromium_script(tmp_path)
    assert done.returncode == 0
    said, update, install = done.stdout.splitlines()
    assert "chromium is missing" in said
    assert update.startswith("apt-get update")
    assert "install" in install
    assert "chromium" in install


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ({"id": "1000"}, "install it with your package manager"),
        ({"id": "1000", "apt-get": ""}, "ask an administrator"),
    ],
)
def test_without_the_means_to_install_chromium_a_sentence_says_so(
    tools: dict[str, str], told: str, tmp_path: Path
) -> None:
    for name, says in tools.items():
        executable(tmp_path / name, says)
    done = run_chromium_script(tmp_path)
    assert done.returncode == 1
    assert told in done.stderr


def test_an_old_python_is_refused_with_a_sentence(tmp_path: Path) -> None:
    executable(tmp_path / "python3", "")
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    done = subprocess.run(
        [str(ROOT / "scripts/environment.sh"), str(tmp_path / "python3")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_horovods_compiler_takes_a_newer_standard_and_leaves_the_rest(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    compiler.chmod(0o755)
    given = ["-std=gnu++14", "-O2", "-std=c++11", "-DNAME=a b", "-std=c++20", "x.cc"]
    done = subprocess.run(
        [str(ROOT / "scripts/horovod-cxx.sh"), *given],
        env={"AIOS_CXX": str(compiler), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    wanted = ["-std=gnu++17", "-O2", "-std=gnu++17", "-DNAME=a b", "-std=c++20", "x.cc"]
    assert done.stdout.splitlines() == wanted


def test_without_a_compiler_a_sentence_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "scripts/horovod.sh")],
        cwd=tmp_path,
        env={"AIOS_CXX": "no-such-compiler", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "needs a C++ compiler" in done.stderr
