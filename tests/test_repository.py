"""What holds for the repository as a whole."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aios_jupyter._version import __version__

ROOT = Path(__file__).resolve().parents[1]
LONGEST_MODULE = 450

# Put together here, so that this file does not name them itself.
REGISTRIES = [
    ".".join(name)
    for name in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("download", "pytorch", "org"),
        ("deb", "debian", "org"),
    )
]
NAMES_A_REGISTRY = re.compile(
    "|".join(
        [
            *map(re.escape, REGISTRIES),
            r'"resolved"\s*:\s*"https?:',
            r"(?:extra-)?index-" + r"url\b",
            r"^\s*registry\s*=\s*\"?https?:",
        ]
    ),
    re.MULTILINE,
)
MACHINE_PATH = re.compile(r"(?<![\w.~$}/])/(?:home|root|work|Users)/[\w.-]+")


def tracked() -> list[Path]:
    """Files of the repository, those not yet added included; generated ones are ignored by git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: there is no list of the repository's files")
    paths = {ROOT / name for name in listed.stdout.split("\0") if name}
    return sorted(path for path in paths if path.is_file())


def texts() -> list[tuple[str, str]]:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            found.append((str(path.relative_to(ROOT)), data.decode("utf-8")))
    return found


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match.group().strip()}"
        for name, text in texts()
        for match in pattern.finditer(text)
    ]


def test_no_file_names_a_package_registry() -> None:
    assert lines_with(NAMES_A_REGISTRY) == []


def test_no_file_has_a_path_of_somebodys_machine() -> None:
    assert lines_with(MACHINE_PATH) == []


def test_the_version_is_the_same_everywhere() -> None:
    package = json.loads((ROOT / "labextension/package.json").read_text())
    lock = json.loads((ROOT / "labextension/package-lock.json").read_text())
    assert package["version"] == lock["version"] == lock["packages"][""]["version"] == __version__


def test_the_changelog_has_what_is_to_come_and_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert __version__ in headings or len(headings) == 1


def test_no_module_is_too_long() -> None:
    modules = [
        *(ROOT / "aios_jupyter").rglob("*.py"),
        *(ROOT / "labextension/src").rglob("*.ts"),
        *(ROOT / "labextension/src").rglob("*.tsx"),
    ]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules}
    assert {name: n for name, n in lengths.items() if n >= LONGEST_MODULE} == {}


def test_constraints_pin_every_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = itertools.chain(project["dependencies"], *extras)
    wanted = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    del wanted["aios-jupyter"]
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line
    )
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    assert sorted(set(wanted) - set(pinned)) == []
    outside = [name for name, wish in wanted.items() if pinned[name] not in wish.specifier]
    assert outside == []


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid_and_runs_in_the_aios_kernel(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "aios"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_shows_no_error(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert [output for output in outputs if output.output_type == "error"] == []
