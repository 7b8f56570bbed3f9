"""Imports go one way, and what every kernel loads stays light.

The modules are parsed, not imported, so imports within functions count too.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "aios_jupyter"

# What any module may import: the ground.
GROUND = (
    "_version",
    "config",
    "course",
    "errors",
    "process",
    "recording",
    "schema",
    "tls",
    "units",
)
MIDDLE = ("broker", "runs", "data", "models", "cluster", "devices")
FACES = ("commands", "notebook", "kernel")

# Each part, named by the longest prefix that fits, and what it may import besides itself and
# GROUND. An arrow that is not here goes up, or is a new decision: make it here, with its reason.
ALLOWED: dict[str, tuple[str, ...]] = {
    "__init__": ("session", "train", *FACES, "server", *MIDDLE),
    "__main__": ("commands",),
    # The pure core: values in, values out.
    "broker.state": ("broker",),
    "broker": ("devices",),
    "devices": (),
    "runs": ("broker", "devices"),
    "cluster": ("broker", "devices"),
    "data": ("broker", "cluster", "devices", "runs"),
    "models": ("broker", "cluster", "data", "devices", "runs"),
    "node": ("runs", "devices", "broker.protocol", "broker.messages", "broker.client"),
    "session": MIDDLE,
    "commands": ("session", *FACES, *MIDDLE),
    "notebook": ("session", *FACES, *MIDDLE),
    "kernel": ("session", *FACES, *MIDDLE),
    "server": ("session", "broker", "cluster"),
    # What a rank imports as user code: `from aios_jupyter import train`.
    "train": ("runs",),
}
# Within the ground, too, arrows go one way.
ALLOWED_GROUND: dict[str, tuple[str, ...]] = {
    "_version": (),
    "errors": (),
    "units": ("errors",),
    "config": ("errors",),
    "schema": ("errors",),
    "process": ("config", "errors"),
    "recording": ("errors",),
    "course": (),
    "tls": ("config", "errors"),
}
# These decide who gets what, and are tested without IO; so is all that they import.
CORE = ("broker.state", "broker.policy", "broker.forecast")
PURE_STANDARD = {"bisect", "collections", "contextlib", "dataclasses", "enum", "functools", "heapq", "itertools",
                 "math", "operator", "typing", "__future__"}  # fmt: skip

HEAVY = {"cv2", "dask", "distributed", "duckdb", "ipywidgets", "keras", "matplotlib", "mlflow", "numpy", "onnx",
         "onnxruntime", "pandas", "pandera", "papermill", "pyarrow", "pyrage", "redis", "scipy", "sklearn", "sqlalchemy",
         "tensorflow", "tf_keras", "torch", "zarr"}  # fmt: skip
# What a kernel, a shell or the Jupyter server loads before anybody asked for anything.
LIGHT = ("__init__", "commands", "session", "notebook", "kernel", "server", "devices", "train",
         "broker.client", "broker.protocol", "node", *GROUND)  # fmt: skip
# Leaves among them, imported where a front end asks for them.
LEAVES = (
    "notebook.widgets",
    "notebook.previews",
    "commands.preview",
    "commands.pictures",
    "kernel.engine",
)


@dataclass(frozen=True)
class Import:
    """One import of one module: `target` is dotted, within the package without its name."""

    module: str
    target: str
    line: int
    internal: bool
    top: bool  # runs when the module is imported

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_names() -> dict[str, Path]:
    """Every module: dotted name within the package to its file; a package is its `__init__`."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


MODULES = module_names()


def read_imports(module: str) -> list[Import]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for inner in ast.walk(outer)
    }
    return [
        Import(module, target, node.lineno, internal, id(node) not in lazy)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target, internal in targets(module, node)
    ]


def targets(module: str, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield within(alias.name)
        return
    if node.level == 0:
        base = node.module or ""
        if base.split(".")[0] != PACKAGE:
            yield base, False
            return
        base = within(base)[0]
    else:
        is_package = MODULES[module].name == "__init__.py"
        here = [] if module == "__init__" else module.split(".")
        drop = node.level - 1 if is_package else node.level
        here = here[: len(here) - drop] if drop else here
        base = ".".join([*here, *([node.module] if node.module else [])])
    for alias in node.names:
        name = f"{base}.{alias.name}" if base not in ("", "__init__") else alias.name
        yield (name if name in MODULES else base or "__init__"), True


def within(name: str) -> tuple[str, bool]:
    head, _, rest = name.partition(".")
    return (rest or "__init__", True) if head == PACKAGE else (name, False)


IMPORTS = {module: read_imports(module) for module in MODULES}


def covers(part: str, module: str) -> bool:
    return module == part or module.startswith(part + ".")


def part_of(module: str) -> str:
    fitting = [part for part in ALLOWED if covers(part, module)]
    return max(fitting, key=len, default="")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    internal = [item for item in IMPORTS[module] if item.internal and item.target != "__init__"]
    if module in ALLOWED_GROUND:
        allowed: tuple[str, ...] = ALLOWED_GROUND[module]
    else:
        part = part_of(module)
        assert part, f"{module} has no place yet: give it one in ALLOWED"
        allowed = (part.split(".")[0], *ALLOWED[part], *GROUND)
    wrong = [item for item in internal if not any(covers(part, item.target) for part in allowed)]
    assert not wrong, "arrows that go up:\n" + "\n".join(map(str, wrong))


def test_the_core_imports_values_alone() -> None:
    waiting = [name for name in CORE if name in MODULES]
    seen: set[str] = set()
    wrong = []
    while waiting:
        module = waiting.pop()
        seen.add(module)
        for item in IMPORTS[module]:
            if not item.internal and item.target.split(".")[0] not in PURE_STANDARD:
                wrong.append(item)
            elif item.internal and covers("broker", item.target) and item.target not in seen:
                waiting.append(item.target)
            elif item.internal and not covers("broker", item.target):
                wrong += [] if item.target in ("schema", "errors", "units") else [item]
    assert not wrong, "the core is pure:\n" + "\n".join(map(str, wrong))
    assert "broker.state" in seen


def test_no_module_imports_itself_in_a_circle() -> None:
    below = {
        module: {item.target for item in imports if item.internal and item.top} - {module}
        for module, imports in IMPORTS.items()
    }
    while leaves := {module for module, targets in below.items() if not targets & set(below)}:
        below = {module: targets for module, targets in below.items() if module not in leaves}
    assert not below, f"modules that import each other at import time: {sorted(below)}"


def test_only_the_broker_plugin_the_cluster_and_the_data_verbs_know_dask() -> None:
    knows = ("broker.plugin", "cluster", "data", "session.assets")
    wrong = [
        item
        for imports in IMPORTS.values()
        for item in imports
        if not item.internal
        and item.target.split(".")[0] in ("dask", "distributed")
        and not any(covers(part, item.module) for part in knows)
    ]
    assert not wrong, "\n".join(map(str, wrong))


def loads_heavy(module: str, seen: set[str]) -> Iterator[str]:
    """The chains of module-level imports by which importing `module` loads a heavy library."""
    if module in seen:
        return
    seen.add(module)
    parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
    for item in IMPORTS.get(module, ()):
        if not item.top:
            continue
        if not item.internal and item.target.split(".")[0] in HEAVY:
            yield str(item)
        elif item.internal:
            for chain in loads_heavy(item.target, seen):
                yield f"{item}, {chain}"
    for parent in parents:
        yield from loads_heavy(parent, seen)


@pytest.mark.parametrize(
    "module",
    [n for n in MODULES if n not in LEAVES and any(covers(part, n) for part in LIGHT)],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    heavy = list(loads_heavy(module, set()))
    assert not heavy, "\n".join(heavy)


def test_every_third_party_import_is_a_declared_dependency() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    declared = {normal(Requirement(line).name) for line in project["dependencies"]}
    declared |= {
        normal(Requirement(line).name)
        for name in ("torch", "redis", "schemas", "labels", "zarr", "all")
        for line in extras[name]
    }
    providers = packages_distributions()
    missing = []
    for imports in IMPORTS.values():
        for item in imports:
            top = item.target.split(".")[0]
            if item.internal or top in sys.stdlib_module_names or top in OPTIONAL:
                continue
            if not declared & set(map(normal, providers.get(top, ()))):
                missing.append(str(item))
    assert not missing, "\n".join(missing)


# Frameworks that the user's environment brings, imported where their code runs.
OPTIONAL = {"tensorflow", "keras", "tf_keras", "h5py", "tf2onnx", "ai_edge_litert"}


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
