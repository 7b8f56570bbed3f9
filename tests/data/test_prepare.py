"""Datasets cleaned, made features of and divided, in this process; the cluster's part is in tests/session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from aios_jupyter.data import Catalog, Recipe, pieces, vault
from aios_jupyter.data.division import divide, parse_parts, place
from aios_jupyter.data.formats import encode_image
from aios_jupyter.data.prepare import prepare
from aios_jupyter.errors import ConflictError, NotFoundError, UsageError


def everything(url: str) -> pd.DataFrame:
    return pieces.as_frame(parquet.read_table(url))


@pytest.fixture
def raw() -> pd.DataFrame:
    random = np.random.default_rng(0)
    n = 500
    frame = pd.DataFrame(
        {
            "id": range(n),
            "age": [str(age) for age in random.integers(18, 90, n)],
            "income": random.lognormal(10, 1, n),
            "city": random.choice(["Rome", " Oslo", None], n),
            "born": ["2020-01-0" + str(day) for day in random.integers(1, 9, n)],
            "left": pd.array(random.choice([1, None], n), "Int64"),
            "label": random.choice(["yes", "no"], n, p=[0.1, 0.9]),
        }
    )
    frame.loc[::10, "age"] = None
    return pd.concat([frame, frame[:7]], ignore_index=True)


@pytest.fixture
def people(catalog: Catalog, raw: pd.DataFrame, tmp_path: Path, monkeypatch) -> str:
    """A Parquet dataset in six parts, duplicates in other parts than what they are of."""
    monkeypatch.setattr(pieces, "PART_ROWS", 100)
    path = tmp_path / "people.parquet"
    parquet.write_table(pa.Table.from_pandas(raw), path, row_group_size=100)
    catalog.add("people", path)
    return "people"


def test_a_table_is_cleaned_and_the_recipe_lies_beside_it(catalog, people, raw) -> None:
    text = "strip(city), number(age), drop_duplicates, fill(age, median), clip(income, 5%, 95%)"
    made = prepare(people, "clean", text)
    assert made.entry == catalog.get("clean")
    assert made.entry.made_from == (catalog.get(people).ref,)
    assert made.entry.how == f"clean: {text}"
    assert made.changes.rows == (507, 500)
    counts = dict(zip((step.name for step in made.recipe.steps), made.changes.counts, strict=True))
    oslo, old = int((raw["city"] == " Oslo").sum()), raw[:500]
    assert counts == {"strip": oslo, "number": 0, "drop_duplicates": 7, "fill": 50, "clip": 50}
    assert made.changes.before["age"].missing == 51
    assert (made.changes.after["age"].missing, made.changes.after["age"].kind) == (0, "number")
    found = everything(made.entry.url)
    assert found["income"].max() == pytest.approx(old["income"].quantile(0.95))
    assert found["age"].isna().sum() == 0
    same = Recipe.load("clean").transform(raw).reset_index(drop=True)
    pd.testing.assert_frame_equal(same, found, check_dtype=False)


def test_features_follow_cleaning_and_load_gives_both(catalog, people, raw) -> None:
    prepare(people, "clean")
    made = prepare("clean", "ready", suggested="features")
    found = everything(made.entry.url)
    assert found.drop(columns=["label", "id"]).dtypes.map(pd.api.types.is_numeric_dtype).all()
    assert found["age"].mean() == pytest.approx(0, abs=1e-9)
    assert found["label"].tolist() == raw["label"][:500].tolist()
    assert Recipe.load("ready", whole=False).steps == made.recipe.steps
    whole = Recipe.load("ready")
    assert str(whole).startswith("strip(age, city, born), number(age), date(born), drop_duplicates")
    same = whole.transform(raw).reset_index(drop=True)
    pd.testing.assert_frame_equal(same, found, check_dtype=False)
    divide("ready", {"train": 0.5, "test": 0.5})
    vault.encrypt("ready-test", [vault.key()])
    assert Recipe.load("ready-test").to_json() == whole.to_json()
    with pytest.raises(NotFoundError, match="was not made by a recipe"):
        Recipe.load("people")


def test_a_recipe_that_has_learned_elsewhere_is_applied_as_it_is(catalog, people, raw) -> None:
    learned = Recipe("number(age), fill(age, mean), scale(age)").fit(raw[:100])
    made = prepare(people, "scaled", learned)
    pd.testing.assert_frame_equal(
        everything(made.entry.url), learned.transform(raw), check_dtype=False
    )


def test_the_result_does_not_depend_on_the_parts(catalog, people, monkeypatch) -> None:
    text = "drop_duplicates, number(age), drop_missing(city), fill(age, median), robust(income), onehot(city)"
    many = everything(prepare(people, "many", text).entry.url)
    monkeypatch.setattr(pieces, "PART_ROWS", 10**6)
    pd.testing.assert_frame_equal(everything(prepare(people, "one", text).entry.url), many)


def test_csv_files_and_arrays_are_tables(catalog, raw, tmp_path) -> None:
    raw.to_csv(tmp_path / "people.csv", index=False)
    entry = catalog.get("mnist").__replace__(
        name="people", url=str(tmp_path / "people.csv"), format="csv"
    )
    made = prepare(entry, "clean", "drop_duplicates(id), keep(id, age)", catalog=catalog)
    assert (made.entry.rows, made.entry.schema["age"]) == (500, "int64")
    catalog.add_arrays("numbers", np.arange(12.0).reshape(6, 2), np.arange(6) % 2)
    scaled = prepare("numbers", "scaled", "minmax(x0), drop(x1)")
    assert everything(scaled.entry.url)["x0"].tolist() == [0, 0.2, 0.4, 0.6, 0.8, 1]
    with pytest.raises(UsageError, match=r"rows of shape \(28, 28\), which are no table"):
        prepare("mnist", "no", "drop_duplicates")


@pytest.mark.parametrize(
    ("steps", "options", "words"),
    [
        ("check_range(id, 0, 450)", {}, r"these 49 rows do not(?s:.*)451(?s:.*)44 more"),
        ("check_unique(id)", {}, "these 14 rows do not"),
        ("drop_outside(id, 1000, 2000)", {}, "No row of 'people' is left"),
        ("scale(city)", {}, "which is no number"),
        ("scale(nope)", {}, "no column 'nope'"),
        ("drop_duplicates", {"label": "nope"}, "no column 'nope' for --label"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    catalog, people, state, steps, options, words
) -> None:
    with pytest.raises(UsageError, match=words):
        prepare(people, "no", steps, **options)
    assert list((state / "data" / "no").iterdir()) == []
    with pytest.raises(NotFoundError):
        catalog.get("no")


def test_files_that_are_missing_or_damaged_are_named(catalog, people, tmp_path) -> None:
    path = tmp_path / "people.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ConflictError, match=r"people\.parquet has changed since people@\w+ was added"
    ):
        prepare(people, "no", "drop_duplicates")
    with pytest.raises(UsageError, match=r"people\.parquet is damaged"):
        prepare(str(path), "no", "drop_duplicates")
    path.unlink()
    with pytest.raises(NotFoundError, match=r"nothing at .*people\.parquet"):
        prepare(people, "no", "drop_duplicates")
    with pytest.raises(UsageError, match="cannot be a dataset's name"):
        prepare(people, "../no", "drop_duplicates")
    with pytest.raises(ConflictError, match="learned from no data"):
        Recipe("scale(a)").to_json()


# --- division


def test_a_division_has_every_row_once_and_equal_rows_together(catalog, people, raw) -> None:
    made = divide(people, {"train": 0.8, "val": 0.1, "test": 0.1})
    frames = {part: everything(entry.url) for part, entry in made.items()}
    assert sum(len(frame) for frame in frames.values()) == 507
    ids = {part: set(frame["id"]) for part, frame in frames.items()}
    assert ids["train"] | ids["val"] | ids["test"] == set(range(500))
    assert not (ids["train"] & ids["test"] or ids["train"] & ids["val"])
    assert 0.74 < len(ids["train"]) / 500 < 0.86
    assert made["val"].made_from == (catalog.get(people).ref,)
    assert made["val"].how == "split: train=0.8,val=0.1,test=0.1: val"
    again = divide(people, {"train": 0.8, "val": 0.1, "test": 0.1}, to="again")
    assert again["test"].version == made["test"].version
    other = divide(people, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=1, to="again")
    assert other["test"].version != made["test"].version


def test_rows_stay_where_they_are_when_others_come(catalog, raw, tmp_path) -> None:
    sides = []
    for rows in (raw[:300], pd.concat([raw[300:], raw[:300]])):
        parquet.write_table(
            pa.Table.from_pandas(rows, preserve_index=False), tmp_path / "t.parquet"
        )
        catalog.add("t", tmp_path / "t.parquet")
        made = divide("t", {"train": 0.5, "test": 0.5}, by="id")
        sides.append(set(everything(made["test"].url)["id"]))
    assert sides[0] == {number for number in sides[1] if number < 300}


def test_shares_of_classes_are_kept_and_groups_are_whole(catalog, people, raw) -> None:
    made = divide(people, {"train": 0.8, "test": 0.2}, stratify="label")
    count = int((raw["label"] == "yes").sum())
    test = everything(made["test"].url)
    assert abs(int((test["label"] == "yes").sum()) - 0.2 * count) <= 1
    assert abs(len(test) - 0.2 * 507) <= 2
    by_city = divide(people, {"a": 0.5, "b": 0.5}, by="age", stratify="label")
    ages = [set(everything(entry.url)["age"].dropna()) for entry in by_city.values()]
    assert not ages[0] & ages[1]


def test_arrays_and_images_are_divided(catalog, digits, photos) -> None:
    x, y = digits
    catalog.add_arrays("digits", np.concatenate([x, x[:20]]), np.concatenate([y, y[:20]]))
    made = divide("digits", {"train": 0.8, "test": 0.2}, stratify="label")
    sides = [{image.tobytes() for image in catalog.load(entry)[0]} for entry in made.values()]
    assert not sides[0] & sides[1]
    assert made["train"].classes == made["test"].classes
    (photos / "dog" / "same.png").write_bytes((photos / "cat" / "a.png").read_bytes())
    for number in range(12):
        image = np.full((4, 4, 3), number, np.uint8)
        (photos / "cat" / f"n{number}.png").write_bytes(encode_image(image))
    catalog.add("photos", photos)
    parts = divide("photos", {"a": 0.5, "b": 0.5})
    assert sum(entry.rows for entry in parts.values()) == 18
    files = [set(Path(entry.url).rglob("*.png")) for entry in parts.values()]
    assert {"a.png", "same.png"} <= {f.name for f in files[0]} or {"a.png", "same.png"} <= {
        f.name for f in files[1]
    }
    with pytest.raises(UsageError, match="--by has no meaning"):
        divide("photos", {"a": 0.5, "b": 0.5}, by="id")


def test_places_follow_the_hashes() -> None:
    hashes = (np.arange(1000, dtype=np.uint64) * np.uint64(2**64 // 1000)).astype(np.uint64)
    assert np.bincount(place(hashes, [0.7, 0.3])).tolist() == [700, 300]
    classes = np.arange(1000) % 2
    found = place(hashes, [0.7, 0.3], classes)
    assert np.bincount(found[classes == 1]).tolist() == [350, 150]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train", "'train' is no part"),
        ("train=x,test=0.5", "'train=x' is no part"),
        ("a=0.5,a=0.5", "'a=0.5' is no part"),
        ("a=1", "two parts or more"),
        ("a=0.5,b=0.4", "add up to 0.9"),
        ("a=1.5,b=-0.5", "between 0 and 1"),
    ],
)
def test_parts_that_make_no_sense_are_usage_errors(text, words) -> None:
    with pytest.raises(UsageError, match=words):
        parse_parts(text)


def test_a_part_that_would_be_empty_or_has_no_column_is_a_usage_error(catalog, people) -> None:
    catalog.add_arrays("tiny", np.arange(3.0), np.array([0, 1, 1]))
    with pytest.raises(UsageError, match="'b' would be empty: 3 rows are too few"):
        divide("tiny", {"a": 0.999, "b": 0.001})
    with pytest.raises(UsageError, match="no column 'nope'"):
        divide(people, {"a": 0.5, "b": 0.5}, by="nope")
    with pytest.raises(UsageError, match="cannot be a dataset's name"):
        divide(people, {"../a": 0.5, "b": 0.5})
