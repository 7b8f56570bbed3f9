"""The words of the front end that are to be translated, as they stand in its source."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).parents[1] / "labextension" / "schema" / "settings.json"
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
    return found | dict.fromkeys(_told(json.loads(SCHEMA.read_text("utf-8"))), "")


def _told(schema: dict[str, Any]) -> Iterator[str]:
    """The titles and descriptions of a schema, as the settings editor shows them."""
    yield from (schema[key] for key in ("title", "description") if key in schema)
    for one in schema.get("properties", {}).values():
        yield from _told(one)
