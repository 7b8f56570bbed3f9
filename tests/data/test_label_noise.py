"""`data label-noise`: labels that were made wrong are found again, in each format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import palmerpenguins
import pandas as pd
import pytest

from aios_jupyter.commands import main
from aios_jupyter.commands.noise import picture
from aios_jupyter.data import Catalog
from aios_jupyter.data.formats import encode_image
from aios_jupyter.data.label_noise import confident, label_noise, without
from aios_jupyter.errors import NotFoundError, UsageError


def spoiled(y: np.ndarray, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which some are another's now, and which these are."""
    random = np.random.default_rng(seed)
    wrong = random.random(len(y)) < share
    classes = np.unique(y)
    places = np.searchsorted(classes, y[wrong])
    made = y.copy()
    made[wrong] = classes[(places + random.integers(1, len(classes), wrong.sum())) % len(classes)]
    return made, wrong


@pytest.fixture
def penguins(tmp_path: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """344 real penguins in the catalogue, of which 8% are called by another species' name."""
    frame = palmerpenguins.load_penguins()
    species, wrong = spoiled(frame["species"].to_numpy(object).astype(str), 0.08)
    frame = frame.assign(species=species)
    frame.to_csv(tmp_path / "penguins.csv", index=False)
    Catalog().add("penguins", str(tmp_path / "penguins.csv"))
    return frame, wrong


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["data", "label-noise", *arguments])
    return int(ended.value.code or 0)


def test_wrong_digits_are_found(catalog: Catalog) -> None:
    x, y = catalog.load("mnist")
    some = np.random.default_rng(1).permutation(len(x))[:3000]
    made, wrong = spoiled(y[some], 0.05)
    catalog.add_arrays("noisy", x[some], made)
    found = label_noise("noisy")
    assert found.judged == 3000
    assert wrong[found.rows].mean() > 0.75
    assert wrong[found.rows].sum() > 0.6 * wrong.sum()
    right = [str(label) for label in y[some][found.rows]]
    agree = [
        a == b for a, b, own in zip(found.likely, right, wrong[found.rows], strict=True) if own
    ]
    assert np.mean(agree) > 0.9
    assert found.given == tuple(str(label) for label in made[found.rows])
    sheet = picture(found)
    assert sheet is not None
    assert sheet.startswith(b"\x89PNG")


def test_wrong_names_in_a_table_are_found_beside_missing_values(penguins) -> None:
    _, wrong = penguins
    found = label_noise("penguins", label="species")
    assert found.judged == 344
    assert wrong[found.rows].mean() > 0.8
    assert wrong[found.rows].sum() > 0.6 * wrong.sum()
    assert found.accuracy > 0.8
    assert (np.diff(found.given_probability - found.likely_probability) >= 0).all()


def test_the_same_seed_finds_the_same_rows(penguins) -> None:
    one, two = (label_noise("penguins", label="species", seed=3) for _ in range(2))
    assert one.rows.tolist() == two.rows.tolist()


def test_the_others_are_kept_as_a_dataset_with_its_lineage(penguins, catalog: Catalog) -> None:
    frame, _ = penguins
    found = label_noise("penguins", label="species")
    kept = without(found, "kept", catalog)
    assert kept.rows == 344 - len(found.rows)
    assert kept.made_from == (found.entry.ref,)
    assert kept.how == f"label-noise: {len(found.rows)} of 344 rows dropped"
    left = frame.drop(index=found.rows.tolist())
    assert catalog.frame("kept")["body_mass_g"].sum() == left["body_mass_g"].sum()


def test_images_of_several_sizes_in_folders(tmp_path: Path, catalog: Catalog) -> None:
    random = np.random.default_rng(0)
    for number in range(120):
        color = number % 2
        shape = (20 + number % 7, 24, 3) if color else (40, 30)
        shade = random.integers(150, 256, shape) if color else random.integers(0, 100, shape)
        # One dark one is among the light ones.
        place = tmp_path / "shades" / ("light" if color or number == 60 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03}.png").write_bytes(encode_image(shade.astype(np.uint8), ".png"))
    catalog.add("shades", tmp_path / "shades")
    found = label_noise("shades")
    assert (found.given, found.likely) == (("light",), ("dark",))
    assert picture(found) is not None
    kept = without(found, "kept", catalog)
    names = {path.name for path in Path(kept.url).rglob("*.png")}
    assert len(names) == 119
    assert "060.png" not in names


def test_embeddings_judge_in_place_of_the_rows(catalog: Catalog) -> None:
    random = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 100)
    made, wrong = spoiled(y, 0.05)
    noise = random.integers(0, 256, (300, 8, 8), np.uint8)
    catalog.add_arrays("noise", noise, made)
    embeddings = np.eye(3, 128, dtype=np.float32)[y] * 5 + random.normal(size=(300, 128))
    assert set(label_noise("noise", features=embeddings).rows) == set(np.flatnonzero(wrong))
    catalog.add_arrays("seen", embeddings, None)
    assert set(label_noise("noise", features="seen").rows) == set(np.flatnonzero(wrong))
    assert label_noise("noise").accuracy < 0.5


def test_rows_without_a_label_and_of_rare_classes_are_not_judged(
    tmp_path: Path, catalog: Catalog
) -> None:
    label = ["a"] * 20 + ["b"] * 20 + ["rare"] * 2 + [None] * 3
    x = [0.0] * 20 + [1.0] * 20 + [0.5] * 5
    pd.DataFrame({"x": x, "label": label}).to_parquet(tmp_path / "few.parquet")
    catalog.add("few", tmp_path / "few.parquet")
    found = label_noise("few")
    assert (found.judged, len(found.rows), found.accuracy) == (40, 0, 1.0)
    with pytest.raises(UsageError, match=r"No label of few@\w+ is suspected"):
        without(found, "none", catalog)


def test_a_label_is_doubted_for_a_class_that_the_model_is_sure_of() -> None:
    told = np.array([[0.9, 0.1], [0.7, 0.3], [0.1, 0.9], [0.2, 0.8], [0.85, 0.15], [0.45, 0.55]])
    y = np.array([0, 0, 1, 1, 1, 0])
    # On average 0 is said with 0.683 of its rows, and 1 with 0.617: the last is sure of neither.
    doubted, likely = confident(told, y)
    assert np.flatnonzero(doubted).tolist() == [4]
    assert likely[4] == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "No column is named like a label in 'penguins'; write --label with one of species"),
        ({"label": "specis"}, "There is no column 'specis' in 'penguins'"),
        ({"label": "bill_length_mm"}, "are numbers with fractions"),
        ({"label": "species", "folds": 1}, "1 is no number of folds"),
        ({"label": "species", "folds": 340}, "has 0 classes of 340 rows or more"),
        ({"label": "species", "features": np.zeros(344)}, r"has to be numbers of shape \(344, N\)"),
        ({"label": "species", "features": np.full((344, 2), np.nan)}, "Row 0 of .* no number"),
        ({"label": "species", "features": "mnist"}, "'mnist' is uint8 of shape"),
    ],
)
def test_what_makes_no_sense_is_told(penguins, options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        label_noise("penguins", **options)


def test_data_without_labels_is_told(catalog: Catalog, tmp_path: Path) -> None:
    catalog.add_arrays("bare", np.zeros((10, 8, 8), np.uint8), None)
    with pytest.raises(UsageError, match="'bare' has no labels"):
        label_noise("bare")
    with pytest.raises(UsageError, match="which has no columns: omit --label"):
        label_noise("bare", label="species")
    catalog.add_arrays("volumes", np.zeros((10, 4, 4, 4, 1)), np.arange(10) % 2)
    with pytest.raises(UsageError, match="give what to judge them by with --features"):
        label_noise("volumes")
    with pytest.raises(NotFoundError, match="no dataset 'nowhere'"):
        label_noise("nowhere")


def test_the_verb_shows_and_keeps(penguins, catalog: Catalog, capsys) -> None:
    assert run("penguins", "--label", "species", "--top", "3", "-o", "kept") == 0
    shown = capsys.readouterr().out
    assert "suspected" in shown
    assert "(the first 3 of " in shown
    assert "BODY_MASS_G" in shown
    assert catalog.get("kept").rows < 344
    assert run("penguins", "--label", "species", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["judged"] == 344
    assert {"row", "given", "likely", "given_probability", "likely_probability"} == set(
        told["suspects"][0]
    )
    assert run("penguins", "--label", "species", "-o", "../kept") == 2
    assert "Traceback" not in capsys.readouterr().err
