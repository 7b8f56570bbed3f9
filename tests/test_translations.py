"""The front end speaks Chinese as well: no text without a translation, none for what is gone."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest
from jupyterlab_server.translation_utils import get_installed_packages_locale
from ui_words import SOURCE, words

import aios_jupyter

LOCALES = Path(aios_jupyter.__file__).parent / "locale"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir())


def catalog(language: str) -> dict[str, list[str]]:
    path = LOCALES / language / "LC_MESSAGES" / "aios_jupyter.json"
    texts: dict[str, list[str]] = json.loads(path.read_text("utf-8"))
    return {text: forms for text, forms in texts.items() if text}


def places(text: str) -> set[str]:
    return set(re.findall(r"%\d", text))


def test_every_call_of_the_translator_has_a_text_that_can_be_found() -> None:
    sources = [path.read_text("utf-8") for path in SOURCE.rglob("*.ts*")]
    calls = sum(len(re.findall(r"trans\._[_n]\(", source)) for source in sources)
    literal = sum(len(re.findall(r"trans\._[_n]\(\s*['\"]", source)) for source in sources)
    assert calls == literal > 200


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_translated_and_none_is_left_over(language: str) -> None:
    assert set(catalog(language)) == set(words())


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_the_same_places_to_fill_in(language: str) -> None:
    for text, forms in catalog(language).items():
        for form in forms:
            assert form.strip() == form
            assert places(form) == places(text), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_with_a_plural_has_two_forms_also_where_they_are_the_same(language: str) -> None:
    """JupyterLab takes one form for a text that has no plural, and shows English."""
    forms = catalog(language)
    for text, plural in words().items():
        assert len(forms[text]) == (2 if plural else 1), text


def test_jupyterlab_finds_the_chinese_words() -> None:
    (entry,) = metadata.entry_points(group="jupyterlab.locale", name="aios_jupyter")
    assert entry.load() is aios_jupyter
    found, trouble = get_installed_packages_locale("zh_CN")
    assert not trouble
    assert found["aios_jupyter"]["Queue"] == ["队列"]
