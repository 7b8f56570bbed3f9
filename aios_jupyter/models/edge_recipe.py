"""The recipe of a model in a bundle that stands alone: what prepares rows there, and what it says.

The code that prepares rows in an endpoint is copied as it is, so that a device prepares them in no other
way. It needs numpy, pandas and msgspec, no torch and no other part of this package. A leaf module: it
imports pandas.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import UsageError
from .example import ROW
from .predictor import RECIPE
from .prepared import read

if TYPE_CHECKING:
    from .predictor import Package
    from .signature import Signature

NEEDS = ("msgspec", "numpy", "pandas")

# All that `prepared` imports, which a test holds this list to.
_CODE = (
    "__init__",
    "_version",
    "errors",
    "schema",
    "data/__init__",
    "data/recipe",
    "data/recipe_columns",
    "data/recipe_learn",
    "data/recipe_rows",
    "data/recipe_steps",
    "data/recipe_text",
    "models/__init__",
    "models/columns",
    "models/predictor",
    "models/prepared",
    "models/signature",
)


def with_recipe(package: Package, folder: Path, alone: Signature) -> dict[str, Any]:
    """Put the code that prepares rows into a bundle; what the bundle says of it.

    Parameters
    ----------
    alone
        What the model itself takes.

    Raises
    ------
    UsageError
        The recipe has a step that needs more than is in a bundle.
    """
    files = Path(package.path)
    rows = read(files / RECIPE)
    recipe = rows.recipe()
    for step in recipe.steps if recipe else ():
        if step.name == "embed":
            raise UsageError(
                f"The step {step} of the recipe of {package.name}/{package.version} asks a function "
                "that is not in the model's files; serve the model, or publish one without this step."
            )
    source = Path(__file__).parents[1]
    for name in _CODE:
        target = folder / "app" / source.name / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / f"{name}.py", target)
    said: dict[str, Any] = {
        "prepared": {"columns": rows.columns, **msgspec.to_builtins(alone)},
    }
    if (files / ROW).is_file():
        said["row"] = msgspec.json.decode((files / ROW).read_bytes())
    return said
