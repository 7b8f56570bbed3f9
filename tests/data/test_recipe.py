"""Recipes on pandas and Dask DataFrames: the language, what is learned, what is done, the file."""

from __future__ import annotations

import json
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from aios_jupyter.data import Recipe, embedding, embeddings
from aios_jupyter.data.recipe import passes
from aios_jupyter.data.recipe_text import FORMS, parse
from aios_jupyter.errors import ConflictError, NotFoundError, UsageError

WHOLE = (
    "drop_duplicates, date(born), fill(age, median), clip(income, 1%, 99%), scale(income, age), "
    "onehot(city), date_parts(born), hash_text(note, 4), flag_missing(size), ordinal(size, s, m, l), bins(id, 5)"
)


@pytest.fixture
def people() -> pd.DataFrame:
    random = np.random.default_rng(0)
    n = 200
    frame = pd.DataFrame(
        {
            "id": range(n),
            "age": random.integers(0, 90, n).astype(float),
            "income": random.lognormal(10, 1, n),
            "city": random.choice(["Rome", "Oslo", "Bern", None], n, p=[0.5, 0.3, 0.1, 0.1]),
            "born": ["2020-01-0" + str(day) for day in random.integers(1, 9, n)],
            "note": random.choice(["to be", "or not", "to be to be"], n),
            "size": random.choice(["s", "m", "l", None], n),
        }
    )
    frame.loc[::10, "age"] = np.nan
    return pd.concat([frame, frame[:5]], ignore_index=True)


# --- the language


@pytest.mark.parametrize(
    "text",
    [
        "drop_missing(age), clip(income, 1%, 99%), scale(income, age), onehot(city)",
        "drop_duplicates",
        'fill(city, "no where"), fill(age, 0), fill(*, median)',
        'scale("we ird", "1", ä.b-c)',
        "cut(age, 18, 65), clip(x, iqr), clip(y, -1.5, 2e3)",
        WHOLE,
    ],
)
def test_what_is_written_is_read_as_the_same(text: str) -> None:
    steps = parse(text)
    assert parse(", ".join(map(str, steps))) == steps


def test_every_step_is_read_as_its_usage_says() -> None:
    for name, form in FORMS.items():
        (step,) = parse(form.usage)
        assert step.name == name


@pytest.mark.parametrize(
    ("text", "sentence", "mark"),
    [
        ("scal(age)", "there is no step 'scal'; did you mean 'scale'?", "scal"),
        ("scale(age), onehot", "onehot needs a column, as in 'onehot(city)'", "onehot"),
        ("scale(a b)", "expected ',' or ')' to go on with scale, not 'b'", "b"),
        ("scale(a", "expected ',' or ')' to go on with scale, not the end", ""),
        ("scale(a) log(b)", "expected a comma before 'log'", "log"),
        ("scale(a),", "expected a step such as 'scale(age)' instead of the end", ""),
        ("clip(x, 5)", "clip takes two bounds, or 'iqr'", "clip"),
        ("clip(x, 5, 1%)", "two numbers or two percentages", "clip"),
        ("clip(x, 9, 1)", "the bounds of clip must rise", "clip"),
        ("clip(x, 1%, 101%)", "without '101%'", "101%"),
        ("bins(a, 2.5)", "bins takes a whole number from 2 to 1000", "bins"),
        ("check_matches(z, '[')", "is not a regular expression", "check"),
        ("", "the recipe is empty", ""),
    ],
)
def test_a_recipe_that_does_not_parse_is_a_sentence_that_points_at_the_place(
    text: str, sentence: str, mark: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(text)
    first, line, pointer = str(caught.value).split("\n")
    assert sentence in first
    assert line[pointer.index("^") :].startswith(mark)


# --- learning


@pytest.mark.parametrize(
    ("step", "reference"),
    [("scale", StandardScaler), ("minmax", MinMaxScaler), ("robust", RobustScaler)],
)
def test_scales_are_those_of_scikit_learn(people, step, reference) -> None:
    found = Recipe(f"{step}(age, income)").fit_transform(people)[["age", "income"]]
    expected = reference().fit_transform(people[["age", "income"]])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_parts_teach_the_same_as_the_whole_and_dask_gives_the_same_rows(people) -> None:
    whole = Recipe(WHOLE).fit(people)
    parts = Recipe(WHOLE).fit(dd.from_pandas(people, npartitions=4))
    pd.testing.assert_frame_equal(whole.transform(people), parts.transform(people))
    lazy = Recipe("fill(age, median), scale(age), onehot(city)").fit(people)
    found = lazy.transform(dd.from_pandas(people, npartitions=3))
    assert list(found.columns) == list(lazy.transform(people).columns)
    pd.testing.assert_frame_equal(found.compute(), lazy.transform(people), check_dtype=False)
    with pytest.raises(UsageError, match="needs all rows at once"):
        whole.transform(dd.from_pandas(people, npartitions=2))


def test_steps_that_do_not_disturb_each_other_learn_in_one_pass() -> None:
    assert list(passes(parse("scale(a), onehot(b), fill(c, mean)"))) == [(0, [0, 1, 2])]
    assert list(passes(parse("lower(c), fill(a, mean), scale(a), onehot(c)"))) == [
        (1, [1, 3]),
        (2, [2]),
    ]
    assert list(passes(parse("scale(a), drop_missing(b), scale(b)"))) == [(0, [0]), (2, [2])]
    assert list(passes(parse("scale(a), rename(b, c), scale(c)"))) == [(0, [0]), (2, [2])]
    assert list(passes(parse("strip(*), drop_duplicates"))) == []


def test_what_was_learned_is_applied_to_other_rows(people) -> None:
    recipe = Recipe("fill(age, median), clip(income, 1%, 99%), onehot(city, 2), frequency(note)")
    recipe.fit(people)
    rows = pd.DataFrame(
        {"age": [None], "income": [1e12], "city": ["Mars"], "note": ["unheard of"], "extra": [1]}
    )
    (row,) = recipe.transform(rows).to_dict("records")
    assert row["age"] == people["age"].median()
    assert row["income"] == pytest.approx(people["income"].quantile(0.99))
    assert (row["city=Oslo"], row["city=Rome"], row["note"], row["extra"]) == (0, 0, 0.0, 1)
    assert "city=Bern" not in row


def test_numbers_are_the_same_value_as_floats_and_as_text() -> None:
    recipe = Recipe("onehot(k)").fit(pd.DataFrame({"k": [1, 2, 3]}))
    for values in ([1.0, None], ["1", None], pd.array([1, None], "Int64")):
        assert recipe.transform(pd.DataFrame({"k": values}))["k=1"].tolist() == [1, 0]


# --- steps


@pytest.mark.parametrize(
    ("recipe", "column", "values", "expected"),
    [
        ("number(x)", "x", ["1", " 2.5", "none", None], [1, 2.5, None, None]),
        ("date(x), date_parts(x)", "x_day", ["2020-01-31", "31 Jan 2021", "?"], [31, 31, None]),
        ("text(x)", "x", [1.0, 2.5, None], ["1", "2.5", None]),
        ("strip(x)", "x", [" a ", "  ", None], ["a", None, None]),
        ("lower(x)", "x", ["Ab", None], ["ab", None]),
        ("fill(x, mean)", "x", [1.0, None, 3.0], [1, 2, 3]),
        ("fill(x, most)", "x", ["b", None, "b", "a"], ["b", "b", "b", "a"]),
        ("fill(x, 7)", "x", [None, 1.0], [7, 1]),
        ("drop_missing(x)", "x", [None, 1.0], [1]),
        ("flag_missing(x)", "x_missing", [None, 1.0], [1, 0]),
        ("drop_duplicates(x)", "x", [1, 2, 1], [1, 2]),
        ("clip(x, 0, 10)", "x", [-5.0, 5.0, 50.0, None], [0, 5, 10, None]),
        ("clip(x, iqr)", "x", [1, 2, 3, 4, 1000], [1, 2, 3, 4, 7]),
        ("drop_outside(x, 0, 10)", "x", [-5.0, 5.0, None], [5, None]),
        ("log(x)", "x", [0.0, np.e - 1], [0, 1]),
        ("scale(x)", "x", [5.0, 5.0], [0, 0]),
        ("minmax(x)", "x", [1.0, 3.0, 2.0], [0, 1, 0.5]),
        ("bins(x, 2)", "x", [1, 2, 3, 4], [0, 0, 1, 1]),
        ("cut(x, 18, 65)", "x", [17, 18, 65, None], [0, 1, 2, None]),
        ("ordinal(x)", "x", ["b", "a", None], [1, 0, -1]),
        ("ordinal(x, s, m)", "x", ["m", "xl"], [1, -1]),
        ("frequency(x)", "x", ["a", "a", "b", None], [2 / 3, 2 / 3, 1 / 3, 0]),
        ("hash_text(x, 2)", "x_h0", ["", None], [0, 0]),
        ("rename(x, y)", "y", [1], [1]),
        ("check_range(x, 0, 1), check_present(x)", "x", [0, 1], [0, 1]),
    ],
)
def test_a_step_does_what_its_help_says(recipe, column, values, expected) -> None:
    found = Recipe(recipe).fit_transform(pd.DataFrame({"x": values}))[column]
    got = [None if pd.isna(value) else value for value in found]
    assert got == pytest.approx(expected, abs=1e-12) if _numeric(expected) else got == expected


def _numeric(values: list[object]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def test_hostile_columns_are_taken_or_refused_in_a_sentence() -> None:
    mixed = pd.DataFrame({"m": [1, "a", None, [2], {"b": 3}], 0: [1.0, 2, 3, 4, 5]})
    found = Recipe('drop_duplicates(m), frequency(m), scale("0")').fit_transform(mixed)
    assert found["m"].tolist() == [0.25, 0.25, 0, 0.25, 0.25]
    assert list(found.columns) == ["m", "0"]
    with pytest.raises(UsageError, match="which is no number; put number"):
        Recipe("scale(m)").fit(mixed)
    double = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(UsageError, match="two columns 'a'"):
        Recipe("scale(a)").fit(double)
    with pytest.raises(UsageError, match="no values"):
        Recipe("scale(a)").fit(pd.DataFrame({"a": []}))


def test_infinite_values_teach_nothing(people) -> None:
    people.loc[3, "income"] = np.inf
    learned = Recipe("scale(income)").fit(people).learned
    assert learned is not None
    assert np.isfinite(learned[0]["income"]["mean"])


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("scale(nope)", "There is no column 'nope' for scale(nope); there are id, age"),
        (
            "scale(city)",
            "the column 'city' has 'Oslo', which is no number; put number(city) before",
        ),
        ("number(city), fill(city, median)", "cannot learn from 'city': the column has no values"),
        ("onehot(many)", "onehot(many): 'many' has 2,005 different values; use frequency(many)"),
        ("date_parts(age)", "'age' has no dates; put date(age) before it"),
        ("date(age)", "'age' has numbers, which are no dates"),
        ("fill(age, x)", "'age' has numbers, and 'x' is none"),
        ("scale(age), log(age)", "1 + x must be above 0"),
        ("rename(age, id)", "there is a column 'id' already"),
        ("flag_missing(age), rename(city, t), onehot(t), onehot(note), keep(zz)", "no column 'zz'"),
    ],
)
def test_a_step_that_does_not_fit_the_data_is_a_sentence(people, recipe, sentence) -> None:
    people = pd.concat([people] * 10, ignore_index=True)[:2005]
    people["many"] = [f"v{n}" for n in range(len(people))]
    people.loc[0, "city"] = "Oslo"
    with pytest.raises(UsageError) as caught:
        Recipe(recipe).fit_transform(people)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("check", "count", "shown"),
    [
        ("check_range(age, 0, 80)", "these", "age"),
        ("check_unique(id)", "these 10 rows do not", " 200 "),
        ("check_present(city)", "these", "None"),
        ("check_values(size, s, m)", "these", " l"),
        ("check_matches(born, '2020-01-0[1-7]')", "these", "2020-01-08"),
    ],
)
def test_a_check_shows_the_rows_that_fail(people, check, count, shown) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(check).fit_transform(people)
    text = str(caught.value)
    assert f"does not pass {parse(check)[0]}: {count}" in text
    assert shown in text or "NaN" in text
    assert len(text.splitlines()) <= 8


# --- the file


def test_a_saved_recipe_does_exactly_the_same(people, tmp_path: Path) -> None:
    recipe = Recipe(WHOLE).fit(people)
    path = recipe.save(tmp_path / "r.json")
    again = Recipe.load(path)
    assert str(again) == str(recipe)
    assert again.learned == recipe.learned
    pd.testing.assert_frame_equal(again.transform(people), recipe.transform(people))
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_recipes_are_joined_and_unfitted_ones_refused(people) -> None:
    first, second = Recipe("fill(age, median)").fit(people), Recipe("minmax(age)")
    with pytest.raises(ConflictError, match=r"call fit\(frame\) first"):
        second.transform(people)
    second.fit(first.transform(people))
    both = first + second
    assert both.transform(people)["age"].between(0, 1).all()
    assert repr(both) == "Recipe('fill(age, median), minmax(age)', fitted)"


def test_a_file_that_is_no_recipe_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no recipe at"):
        Recipe.load(tmp_path / "none.json")
    path = tmp_path / "bad.json"
    for content in ("{", "[]", '{"format": "x"}', json.dumps({"format": "aios-recipe/1", "steps": [
        {"step": "__import__", "columns": [], "values": [], "learned": {}}]})):  # fmt: skip
        path.write_text(content)
        with pytest.raises(UsageError, match=r"bad\.json is not a recipe"):
            Recipe.load(path)


def test_an_embedding_is_known_by_its_name_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(embeddings, "_KNOWN", {})
    embedding("lengths", lambda texts: np.array([[len(t), t.count("a")] for t in texts]))
    notes = pd.DataFrame({"note": ["banana", None, "kiwi"], "n": [1, 2, 3]})
    made = Recipe("embed(note, lengths), scale(n)").fit(notes)
    ready = made.transform(notes)
    assert list(ready.columns) == ["note_e0", "note_e1", "n"]
    assert ready["note_e0"].tolist() == [6, 0, 4] and ready["note_e1"].tolist() == [3, 0, 0]
    assert list(made.transform(notes[:0]).columns) == list(ready.columns)
    again = Recipe.load(made.save(tmp_path / "recipe.json"))
    pd.testing.assert_frame_equal(again.transform(notes), ready)
    monkeypatch.setattr(embeddings, "_KNOWN", {})
    with pytest.raises(NotFoundError, match=r"no embedding 'lengths' in this process; register it"):
        again.transform(notes)
    for wrong in (lambda texts: [1, 2], lambda texts: np.full((len(texts), 2), np.nan)):
        embedding("lengths", wrong)
        with pytest.raises(UsageError, match="The embedding 'lengths' gave"):
            again.transform(notes)


def test_an_installed_package_offers_an_embedding(tmp_path: Path, monkeypatch) -> None:
    about = tmp_path / "lengths-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lengths\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[aios_jupyter.embeddings]\noffered = lengths:embed\n")
    (tmp_path / "lengths.py").write_text(
        "def embed(texts):\n    return [[len(t)] for t in texts]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = Recipe("embed(note, offered)").fit_transform(pd.DataFrame({"note": ["ab", "abc"]}))
    assert made["note_e0"].tolist() == [2, 3]
