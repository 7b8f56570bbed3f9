from __future__ import annotations

import pandas as pd
import pytest

from aios_jupyter.data import Recipe
from aios_jupyter.data.recipe_rows import for_columns, leaves_out
from aios_jupyter.errors import UsageError

RAW = pd.DataFrame(
    {
        "id": [1, 2, 3, 3],
        "a": [1.0, None, 3.0, 3.0],
        "a_b": ["x", "y", "x", "x"],
        "born": pd.to_datetime(["2020-01-01", "2021-02-02", "2022-03-03", "2022-03-03"]),
        "label": ["n", "y", "n", "n"],
    }
)


@pytest.mark.parametrize(
    ("steps", "wanted", "fields", "left"),
    [
        ("scale(*)", ["a"], ["a"], "scale(a)"),
        ("onehot(a_b), onehot(label)", ["a_b=x"], ["a_b"], "onehot(a_b)"),
        ("fill(*, mean), clip(*, 0, 2)", ["id", "a"], ["id", "a"],
         "fill(id, mean), fill(a, mean), clip(id, 0, 2), clip(a, 0, 2)"),
        ("flag_missing(a), drop(a), rename(id, \"a\")", ["a", "a_missing"], ["id", "a"],
         "flag_missing(a), drop(a), rename(id, a)"),
        ("date_parts(born), keep(born_year, label)", ["born_year"], ["born"],
         "date_parts(born), keep(born_year)"),
        ("drop_duplicates(id), check_present(label), drop_missing(a, label)", ["a"], ["a"],
         "drop_missing(a)"),
        ("drop(label)", ["id"], ["id"], "None"),
    ],
)  # fmt: skip
def test_what_the_answer_depends_on_is_left(
    steps: str, wanted: list[str], fields: list[str], left: str
) -> None:
    recipe = Recipe(steps).fit(RAW)
    narrow, names = for_columns(recipe, RAW, wanted)
    assert names == fields
    assert str(narrow) == left
    if narrow is not None:
        again = Recipe.from_json(narrow.to_json())
        made, expected = again.transform(RAW[names])[wanted], recipe.transform(RAW)[wanted]
        pd.testing.assert_frame_equal(made.loc[expected.index], expected)


def test_a_column_that_no_step_makes_is_named() -> None:
    with pytest.raises(UsageError, match="no column 'b'"):
        for_columns(Recipe("scale(a)").fit(RAW), RAW, ["b"])


def test_the_step_that_leaves_a_row_out_is_named() -> None:
    recipe = Recipe("fill(id, 0), drop_missing(a)").fit(RAW)
    found = leaves_out(recipe, RAW.set_index("born"))
    assert found is not None
    assert (str(found[0]), found[1]) == ("drop_missing(a)", 1)
    assert leaves_out(recipe, RAW[2:]) is None
