from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aios_jupyter.data.catalog import Catalog
from aios_jupyter.data.formats import encode_image


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "state"
    monkeypatch.setenv("AIOS_STATE_DIR", str(directory))
    return directory


@pytest.fixture
def catalog() -> Catalog:
    return Catalog()


@pytest.fixture
def digits(catalog: Catalog):
    """300 real digits, ordered by class."""
    x, y = catalog.load("mnist")
    return x[::34][:290], y[::34][:290]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An image folder: two classes, gray and color, PNG and JPEG, several sizes, and some noise."""
    random = np.random.default_rng(0)
    root = tmp_path / "photos"
    for name, shape in {
        "cat/a.png": (20, 30, 3),
        "cat/b.png": (24, 24, 3),
        "cat/c.jpg": (40, 20, 3),
        "dog/a.png": (16, 16),
        "dog/deep/d.png": (18, 21, 3),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = random.integers(0, 256, shape, np.uint8)
        path.write_bytes(encode_image(image, path.suffix))
    (root / "README.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_bytes(b"not an image")
    return root
