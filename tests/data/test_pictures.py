"""Pictures of tables and sounds for the data card."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from aios_jupyter.commands import invoke, pictures
from aios_jupyter.commands.data import _preview
from aios_jupyter.commands.host import Host
from aios_jupyter.data.sounds import Sound, encode
from aios_jupyter.errors import NotFoundError


class Notebook(Host):
    """One that can show images."""

    shows_images = True


def ink(picture: bytes, box=None) -> int:
    image = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB").crop(box))
    return int((image == (76, 120, 168)).all(axis=2).sum())


def test_a_table_has_a_histogram_for_each_column(catalog, tmp_path):
    rows = "\n".join(f"{n % 10},{'cat' if n % 4 else 'dog'},unique {n},{n * n}" for n in range(400))
    (tmp_path / "t.csv").write_text(f"even,kind,note,square\n{rows}\n")
    entry = catalog.add("t", tmp_path / "t.csv")
    picture = _preview(Notebook(), entry)
    size = Image.open(io.BytesIO(picture)).size
    # Three of four: free text has none.
    assert size[0] == 3 * (pictures.WIDTH + pictures.GAP) + pictures.GAP
    cell = pictures.WIDTH + pictures.GAP
    even, kind, square = (
        ink(picture, (k * cell + pictures.GAP, 0, (k + 1) * cell, size[1])) for k in range(3)
    )
    # Values that are all as frequent fill their bars, and two bars of which one is a third less.
    assert even > square > 0
    whole = pictures.WIDTH * pictures.HEIGHT
    assert kind == pytest.approx(whole * (1 + 1 / 3) / 2, rel=0.1)


@pytest.mark.parametrize(
    "text",
    [
        "a\nnan\nnan\n",
        "note\nfirst\nsecond\n",
        "a\n1\n1\n",
        "a\n-inf\ninf\n1e308\n",
        "a\ntrue\nfalse\n",
    ],
)
def test_hostile_columns_are_drawn_or_left_out(text, catalog, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    picture = pictures.spread(catalog.add("t", tmp_path / "t.csv"))
    assert picture is None or picture.startswith(b"\x89PNG")


def test_sounds_show_how_loud_they_are(catalog, tmp_path):
    for name, loud in (("soft", 0.1), ("loud", 0.9), ("none", 0.0)):
        samples = (loud * 32767 * np.sin(np.arange(8000) / 3)).astype(np.int16)[:, None]
        (tmp_path / "words").mkdir(exist_ok=True)
        (tmp_path / "words" / f"{name}.wav").write_bytes(encode(Sound(samples, 8000)))
    picture = _preview(Notebook(), catalog.add("words", tmp_path / "words"))
    cell = pictures.WIDTH + pictures.GAP
    height = Image.open(io.BytesIO(picture)).size[1]
    loud, none, soft = (ink(picture, (k * cell + 8, 0, (k + 1) * cell, height)) for k in range(3))
    assert loud > 5 * soft > 5 * none


def test_a_picture_is_written_to_a_file_where_there_is_something_to_draw(catalog, tmp_path):
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    catalog.add("notes", tmp_path / "notes.txt")
    invoke(["data", "show", "mnist", "--picture", str(tmp_path / "digits.png")], Host())
    with Image.open(tmp_path / "digits.png") as drawn:
        assert drawn.size[0] > 300
    with pytest.raises(NotFoundError, match="There is nothing to draw of notes@"):
        invoke(["data", "show", "notes", "--picture", str(tmp_path / "notes.png")], Host())
    assert not (tmp_path / "notes.png").exists()


def test_words_of_any_script_can_be_read_in_a_picture(catalog, tmp_path):
    """Letters that a font has not are all drawn as the same box."""
    drawn = set()
    for word in ("ö", "ä", "ł", "Я", "北", "京"):
        (tmp_path / "words.csv").write_text(f"city\n{word}\n{word}\n")
        drawn.add(pictures.spread(catalog.add("words", tmp_path / "words.csv")))
    assert len(drawn) == 6
