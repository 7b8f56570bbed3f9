"""Policies on sounds and texts."""

from __future__ import annotations

import numpy as np
import pytest

import aios_jupyter
from aios_jupyter.data.policy import MEDIA, parse
from aios_jupyter.data.sequences import SoundPipeline, TextPipeline
from aios_jupyter.errors import UsageError

RATE = 8000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
TEXT = "the quick brown fox jumps over the lazy dog and runs home"
ALL_SOUND = "shift(0.2), speed(0.9, 1.1), volume(0.3), noise(0.02), cutout(0.1, p=0.5)"
ALL_TEXT = "drop(0.2), swap(0.2), repeat(0.2), typo(0.1)"


def pitch(sound) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(sound))
    return float(np.argmax(spectrum)) * RATE / len(sound)


def test_every_operation_parses_and_is_written_as_it_was_read():
    for medium, text in (("sound", ALL_SOUND), ("text", ALL_TEXT)):
        policy = parse(text, medium)
        assert {operation.name for operation in policy.operations} == set(MEDIA[medium])
        assert parse(str(policy), medium) == policy


def test_an_operation_of_something_else_says_of_what():
    with pytest.raises(UsageError, match="'speed'; it is for sounds, and this is for images"):
        parse("hflip, speed(1)")
    with pytest.raises(UsageError, match="'rotate'; it is for images, and this is for texts"):
        parse("rotate(5)", "text")
    with pytest.raises(UsageError, match="did you mean 'volume'"):
        parse("volum(0.1)", "sound")
    with pytest.raises(UsageError, match=r"write one like 'drop\(0\.1\), swap\(0\.1\)'"):
        parse("", "text")
    with pytest.raises(UsageError, match="is for images, not for sounds"):
        SoundPipeline(parse("hflip"))
    with pytest.raises(UsageError, match="of image, sound, text, not of 'video'"):
        aios_jupyter.augment("hflip", of="video")


@pytest.mark.parametrize("make", [SoundPipeline, TextPipeline])
def test_any_division_gives_the_same_and_seed_index_and_copy_change_it(make):
    policy, rows = (
        (ALL_SOUND, np.stack([TONE[:1000]] * 8))
        if make is SoundPipeline
        else (ALL_TEXT, [TEXT] * 8)
    )
    whole = list(map(str, make(policy, 1).apply(rows, 4)))
    parts = [*make(policy, 1).apply(rows[:3], 4), *make(policy, 1).apply(rows[3:], 7)]
    assert whole == list(map(str, parts))
    turned = make(policy, 1).apply(rows, indices=np.arange(11, 3, -1))
    assert whole == list(map(str, turned))[::-1]
    assert len(set(whole)) == 8
    assert whole[0] != str(make(policy, 1).apply(rows[:1], 4, copy=2)[0])
    assert whole[0] != str(make(policy, 2).apply(rows[:1], 4)[0])


def test_a_shift_moves_in_time_and_uncovers_silence():
    sound = np.arange(1, 11, dtype=np.float32)[None] / 10
    (later,) = SoundPipeline("shift(0.3, 0.3)").apply(sound)
    assert later.tolist() == pytest.approx([0, 0, 0, *sound[0, :7]])
    (sooner,) = SoundPipeline("shift(-0.3, -0.3)").apply(sound)
    assert sooner.tolist() == pytest.approx([*sound[0, 3:], 0, 0, 0])


def test_another_speed_is_another_pitch_and_does_not_alias():
    (fast,) = SoundPipeline("speed(1.5, 1.5)").apply(TONE[None])
    assert len(fast) == len(TONE)
    assert pitch(fast[: RATE // 2]) == pytest.approx(660, abs=4)
    assert np.abs(fast[int(RATE / 1.5) + 50 :]).max() == 0
    (slow,) = SoundPipeline("speed(0.5, 0.5)").apply(TONE[None])
    assert pitch(slow) == pytest.approx(220, abs=2)
    high = (0.5 * np.sin(2 * np.pi * 3000 * np.arange(RATE) / RATE)).astype(np.float32)
    (gone,) = SoundPipeline("speed(2, 2)").apply(high[None])
    assert np.abs(gone[100 : RATE // 2 - 100]).max() < 0.02


def test_volume_noise_and_silence_are_as_asked_for():
    (soft,) = SoundPipeline("volume(0.5, 0.5)").apply(TONE[None])
    assert np.allclose(soft, TONE / 2)
    noisy = SoundPipeline("noise(0.05)").apply(np.zeros((4, RATE), np.float32))
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    assert abs(float(noisy.mean())) < 0.002
    (cut,) = SoundPipeline("cutout(0.25)").apply(np.full((1, 1000), 0.5, np.float32))
    assert (cut == 0).sum() == 250
    assert np.abs(np.diff(np.flatnonzero(cut == 0))).max() == 1


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_samples_stay_of_their_kind_and_are_clipped(kind):
    middle = 128 if kind is np.uint8 else 0
    full = 1 if kind is np.float32 else np.iinfo(kind).max - middle
    sound = (middle + 0.9 * full * np.sin(np.arange(2000) / 5)).astype(kind).reshape(1, -1, 2)
    same = SoundPipeline("volume(1, 1)").apply(sound)
    assert same.dtype == kind and same.shape == sound.shape
    assert np.allclose(same, sound, rtol=1e-6, atol=full * 1e-6)
    loud = SoundPipeline("volume(4, 4)").apply(sound)
    assert loud.max() == (1 if kind is np.float32 else np.iinfo(kind).max)
    quiet = SoundPipeline("volume(0, 0)").apply(sound)
    assert np.all(quiet == middle)


def test_words_are_dropped_exchanged_and_written_twice():
    words = TEXT.split()
    (few,) = TextPipeline("drop(0.4)").apply([TEXT], 3)
    assert 0 < len(few.split()) < len(words)
    assert all(word in words for word in few.split())
    assert few == " ".join(few.split())
    (swapped,) = TextPipeline("swap(0.4)").apply([TEXT])
    assert swapped != TEXT and sorted(swapped.split()) == sorted(words)
    (more,) = TextPipeline("repeat(0.4)").apply([TEXT])
    assert len(more.split()) > len(words)
    assert [
        w for w, before in zip(more.split(), ["", *more.split()], strict=False) if w != before
    ] == words


def test_a_word_is_misspelled_about_as_often_as_asked_for():
    texts = ["letters in a row of words"] * 300
    made = TextPipeline("typo(0.05)").apply(texts)
    letters = sum(map(str.isalpha, texts[0]))
    wrong = sum(a != b for a, b in zip(texts, made, strict=True)) / len(texts)
    assert wrong == pytest.approx(1 - 0.95**letters, abs=0.15)
    assert all(len(text.split()) == 6 for text in made)


def test_hostile_texts_keep_something():
    for text in ("", " ", "word", "  two  words ", "a\tb\nc", "日本語のテキスト"):
        (made,) = TextPipeline("drop(1), typo(1), swap(1), repeat(1)").apply([text])
        assert bool(made.strip()) == bool(text.strip())
    assert TextPipeline("drop(0), typo(0)").apply([" a  b\n"]) == [" a  b\n"]


@pytest.mark.parametrize(
    ("make", "rows", "words"),
    [
        (SoundPipeline, np.zeros(5), "shape"),
        (SoundPipeline, np.zeros((2, 0)), "shape"),
        (SoundPipeline, [["a", "b"]], "whole numbers or floats"),
        (TextPipeline, "one text", "a list of texts"),
        (TextPipeline, [1, 2], "a list of texts"),
    ],
)
def test_what_is_no_sound_or_text_is_a_usage_error(make, rows, words):
    policy = "volume(0.1)" if make is SoundPipeline else "drop(0.1)"
    with pytest.raises(UsageError, match=words):
        make(policy).apply(rows)
    with pytest.raises(UsageError, match="seed must not be negative"):
        make(policy, -1)


def test_a_transform_draws_anew_at_each_call_and_the_same_by_index():
    transform = aios_jupyter.augment("noise(0.1)", seed=1, of="sound")
    assert not np.array_equal(transform(TONE), transform(TONE))
    assert "noise(0.1)" in repr(transform)
    first, labels = transform.batch(TONE[None], [3], indices=[5], epoch=2)
    again, _ = transform.batch(TONE[None], indices=[5], epoch=2)
    assert np.array_equal(first, again) and labels == [3]
    assert isinstance(aios_jupyter.augment("typo(0.5)", of="text")(TEXT), str)
