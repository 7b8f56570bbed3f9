"""Cells are read without being run, and values reach the ranks and come back."""

from __future__ import annotations

import collections
import subprocess
import sys
import textwrap
import threading

import pytest

from aios_jupyter.errors import UsageError
from aios_jupyter.runs import cells


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x + 1", {"x"}),
        ("x = 1\nx + 1", set()),
        ("x += 1", {"x"}),
        ("x = x + 1", {"x"}),
        ("x: int = y", {"int", "y"}),
        ("x: int", {"int"}),
        ("del x", {"x"}),
        ("x = 1\ndel x\nx", {"x"}),
        ("import a.b\na.c", set()),
        ("from a import b as c\nb, c", {"b"}),
        ("data['k'] = v", {"data", "v"}),
        ("model.lr = 3", {"model"}),
        ("a, (b, *c) = t\na, b, c", {"t"}),
        ("for i in xs:\n    y = i\ni, y", {"xs"}),
        ("with open(p) as f:\n    f", {"open", "p"}),
        ("try:\n    a\nexcept E as e:\n    e\ne", {"a", "E", "e"}),
        ("[v * k for v in vs if v > low]", {"k", "vs", "low"}),
        ("x = [x for x in x]", {"x"}),
        ("{k: v for k, v in d.items()}", {"d"}),
        ("[[b for b in a] for a in m]", {"m"}),
        ("any((hit := v) for v in vs)\nhit", {"any", "vs"}),
        ("(n := 3)\nn", set()),
        ("def f(a, *b, c=d, **e):\n    return a, b, c, e, g", {"d", "g"}),
        ("def f():\n    return late\nlate = 1\nf()", set()),
        ("def f():\n    x = 1\n    return lambda y: x + y + z", {"z"}),
        ("def f():\n    global g\n    g = 1\nf()\ng", {"g"}),
        ("def f():\n    x = 1\n    def h():\n        nonlocal x\n        x += 1\n    h()", set()),
        ("def f(x):\n    return f(x - 1)", set()),
        ("async def f():\n    async for x in xs:\n        await x", {"xs"}),
        ("@d\ndef f(x: T) -> U: ...", {"d", "T", "U"}),
        ("class A(B, metaclass=M):\n    k = v\n    def m(self):\n        return k, A", {"B", "M", "v", "k"}),
        ("class A:\n    x = 1\n    y = x", set()),
        ("f'{a:{w}}'", {"a", "w"}),
        ("match c:\n    case P(x=[1, *r], y={'k': v, **m}) as w:\n        r, v, m, w", {"c", "P"}),
        ("if ok:\n    a = 1\nelse:\n    a = 2\na", {"ok"}),
        ("sorted(xs, key=lambda x: w[x])", {"sorted", "xs", "w"}),
        ("# only a comment", set()),
    ],
)  # fmt: skip
def test_names_that_a_cell_reads(source: str, names: set[str]) -> None:
    assert cells.names_read(source) == names


def test_a_syntax_error_is_one_sentence_with_its_line() -> None:
    with pytest.raises(UsageError, match=r"syntax error in line 2: .*; correct it") as caught:
        cells.names_read("x = 1\nfor in y:\n    pass\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("x = 1\n%matplotlib inline\n", 2),
        ("!pip install x", 1),
        ("files = !ls\n", 1),
        ("x?", 1),
        ("%%time\nx = 1", 1),
    ],
)
def test_what_only_ipython_knows_is_named(source: str, line: int) -> None:
    with pytest.raises(UsageError, match=rf"^Line {line} .* is for IPython"):
        cells.names_read(source)


def test_a_modulo_in_a_broken_cell_is_a_syntax_error() -> None:
    with pytest.raises(UsageError, match="syntax error in line 1"):
        cells.names_read("x = (a %% b")


def test_null_bytes_are_an_error_of_ours() -> None:
    with pytest.raises(UsageError):
        cells.names_read("x = 1\0")


# --- frameworks


def _of_module(name: str) -> object:
    return type("Thing", (type("Base", (), {"__module__": name}),), {})()


@pytest.mark.parametrize(
    ("source", "push", "framework"),
    [
        ("import torch", {}, "torch"),
        ("def f():\n    from torch.nn import functional", {}, "torch"),
        ("import pytorch_lightning as pl", {}, "torch"),
        ("import tensorflow as tf", {}, "tensorflow"),
        ("from keras import layers", {}, "tensorflow"),
        ("import torch, tensorflow", {}, "tensorflow"),
        ("import numpy as np", {}, "none"),
        ("from . import torch", {}, "none"),
        ("model.fit()", {"model": _of_module("torch.nn.modules.module")}, "torch"),
        ("model.fit()", {"model": _of_module("keras.src.models")}, "tensorflow"),
        ("x", {"x": 3}, "none"),
    ],
)
def test_framework_of_a_cell(source: str, push: dict[str, object], framework: str) -> None:
    assert cells.detect_framework(source, push) == framework


def test_keras_on_torch_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert cells.detect_framework("import keras", {}) == "torch"


def test_framework_is_found_in_what_a_function_uses() -> None:
    import types

    space = {"torch": types.ModuleType("torch"), "__name__": "__main__"}
    exec("def make():\n    return [lambda: torch.nn]\n", space)
    assert cells.detect_framework("make()", {"make": space["make"]}) == "torch"


# --- packing


def test_values_that_share_something_still_share_it() -> None:
    shared = [1]
    back = cells.unpack(bytes(cells.pack({"a": {"of": shared}, "b": shared}, set())))
    assert back["a"]["of"] is back["b"]


def test_modules_travel_by_reference() -> None:
    assert cells.unpack(bytes(cells.pack({"c": collections}, set())))["c"] is collections


def test_a_value_that_cannot_be_pickled_is_named_with_a_way_out() -> None:
    values = {"n": 1, "lock": threading.Lock()}
    with pytest.raises(UsageError, match=r"'lock' cannot be pushed: .*--no-push lock\."):
        cells.pack(values, set())
    with pytest.raises(UsageError, match=r"create it inside the cell\.$"):
        cells.pack(values, {"lock"})


def test_a_function_with_a_bad_argument_says_so_without_our_names() -> None:
    values = {cells.FUNCTION: len, cells.ARGUMENTS: ((threading.Lock(),), {})}
    with pytest.raises(UsageError, match=r"^The function's arguments cannot be sent"):
        cells.pack(values, set(values))


def test_a_pulled_value_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(UsageError, match=r"^'lock' cannot be pulled: "):
        cells.pack_pulled({"n": 1, "lock": threading.Lock()})


def test_functions_of_a_notebook_see_the_cells_namespace(tmp_path) -> None:
    """As in the notebook, what the cell defines is what an older function then uses."""
    notebook = tmp_path / "notebook.py"
    notebook.write_text(
        textwrap.dedent(
            """
            import pathlib, sys
            from aios_jupyter.runs import cells
            scale = 2
            def scaled(x): return x * scale
            class Net:
                def go(self, x): return scaled(x) + offset
            offset = 1
            pathlib.Path(sys.argv[1]).write_bytes(bytes(cells.pack({"scaled": scaled, "net": Net()}, set())))
            """
        )
    )
    rank = tmp_path / "rank.py"
    rank.write_text(
        textwrap.dedent(
            """
            import pathlib, sys
            from aios_jupyter.runs import cells
            globals().update(cells.unpack(pathlib.Path(sys.argv[1]).read_bytes()))
            assert scaled(10) == 20 and net.go(10) == 21
            scale = 3
            assert scaled(10) == 30 and net.go(10) == 31
            """
        )
    )
    for script in (notebook, rank):
        subprocess.run([sys.executable, script, tmp_path / "data"], check=True, timeout=60)
