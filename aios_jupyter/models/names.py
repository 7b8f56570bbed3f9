"""What names, aliases, references and figures of models may be. Pure; importing it is cheap."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from ..errors import UsageError

TAG = "aios."
"""What our own tags of a version begin with."""
OWN_TAGS = ("files", "main", "framework", "signature", "metrics", "params")
"""Those among them that say what is stored, not where it comes from."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")
_REF = re.compile(r"(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))?")


def parse_ref(ref: str) -> tuple[str, int | None, str | None]:
    """The name, and the version or alias, of "name", "name/3" or "name@alias"."""
    match = _REF.fullmatch(ref.strip())
    if match is None or not NAME.fullmatch(match["name"]):
        raise UsageError(f"{ref!r} is no model; write NAME, NAME/VERSION or NAME@ALIAS.")
    return match["name"], int(match["version"]) if match["version"] else None, match["alias"]


def check_name(name: str) -> None:
    """Refuse what cannot be a model's name."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a model's name; use letters, digits, dots, dashes and underscores."
        )


def check_alias(alias: str) -> None:
    """Refuse what cannot be an alias."""
    if not _ALIAS.fullmatch(alias) or alias == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UsageError(
            f"{alias!r} cannot be an alias; use a word such as champion (not latest, not v1)."
        )


def check_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Figures as finite numbers."""
    numbers = {}
    for key, value in metrics.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UsageError(f"Metric {key!r} is {value!r}; give a number.") from None
        if not math.isfinite(number):
            raise UsageError(f"Metric {key!r} is {number}; leave out what is not finite.")
        numbers[str(key)] = number
    return numbers
