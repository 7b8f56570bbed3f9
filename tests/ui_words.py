"""The words of the front end that are to be translated, as they stand in its source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "labextension" / "src"
_TEXT = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ONE = re.compile(rf"\.__\(\s*{_TEXT}", re.DOTALL)
_MANY = re.compile(rf"\._n\(\s*{_TEXT},\s*{_TEXT}", re.DOTALL)


def words() -> dict[str, str]:
    """Every text with its plural, which is empty where it has none."""
    found: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.ts*")):
        text = path.read_text("utf-8")
        found |= {ast.literal_eval(one): "" for one in _ONE.findall(text)}
        found |= {ast.literal_eval(a): ast.literal_eval(b) for a, b in _MANY.findall(text)}
    return found
