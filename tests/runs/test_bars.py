"""Bars, losses and batches tell how a run fares, without a word about it in the code."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import pytest

from aios_jupyter.runs import bars, events
from aios_jupyter.runs.events import Frames, MetricsMade, ProgressMade, open_channel

tqdm = pytest.importorskip("tqdm")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A channel to nowhere, and a function that gives what was said on it so far."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    monkeypatch.setattr(events, "_channel", None)
    channel = open_channel(writing)
    frames, said = Frames(), []

    def heard() -> list[Any]:
        channel.flush()
        while True:
            try:
                said.extend(frames.feed(os.read(reading, 65536)))
            except BlockingIOError:
                return said

    heard.channel = channel  # type: ignore[attr-defined]
    yield heard
    monkeypatch.setattr(events, "_channel", None)
    os.close(reading)
    os.close(writing)


@pytest.fixture
def bar(told: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """tqdm, listened to, that draws each step nowhere."""
    for name in ("display", "close"):
        monkeypatch.setattr(tqdm.std.tqdm, name, getattr(tqdm.std.tqdm, name))
    bars.attach(tqdm.std)

    def made(*args: Any, **options: Any) -> Any:
        return tqdm.std.tqdm(*args, **options, file=io.StringIO(), mininterval=0)

    return made


def progress(told: Any) -> list[tuple[float, float, str, str]]:
    said = [one for one in told() if isinstance(one, ProgressMade)]
    return [(one.done, one.total, one.unit, one.label) for one in said]


def test_a_bar_is_the_runs_progress(bar: Any, told: Any) -> None:
    for _ in bar(range(5), desc="training", unit="epoch"):
        told()
    assert progress(told)[-1] == (5.0, 5.0, "epoch", "training")
    assert not told.channel.counts_steps or told.channel.steps == 0


def test_of_bars_within_bars_the_outermost_counts(bar: Any, told: Any) -> None:
    for _ in bar(range(2), desc="epochs"):
        for _ in bar(range(100), desc="batches", leave=False):
            pass
    assert {total for _, total, _, _ in progress(told)} == {2.0}


def test_a_bar_before_the_training_does_not_end_the_counting_of_steps(bar: Any, told: Any) -> None:
    for _ in bar(range(3), desc="download"):
        pass
    assert told.channel.counts_steps
    for _ in bar(range(3), desc="training"):
        told.channel.steps += 1
    assert not told.channel.counts_steps


def test_code_that_tells_its_progress_is_believed(bar: Any, told: Any) -> None:
    told.channel.own_progress = True
    for _ in bar(range(3)):
        pass
    assert progress(told) == []


def test_the_loss_is_what_gradients_come_of(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from aios_jupyter.runs import losses

    for owner, name in (
        (torch.Tensor, "backward"),
        (torch.amp.GradScaler, "scale"),
        (torch.utils.data.DataLoader, "__iter__"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    seen = losses.watch()
    weight = torch.ones(1, requires_grad=True)
    (3 * weight).sum().backward()
    assert seen.take() == (3.0, 0)
    assert seen.take() == (None, 0), "told once"
    torch.ones(2, requires_grad=True).backward(torch.ones(2))
    assert seen.take()[0] is None, "not one number"
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((2 * weight).sum()).backward()
    assert seen.take()[0] == 2.0
    data = torch.utils.data.TensorDataset(torch.zeros(8, 1))
    training = torch.utils.data.DataLoader(data, batch_size=4)
    checking = torch.utils.data.DataLoader(data, batch_size=8)
    assert len(list(training)) == 2
    assert len(list(checking)) == 1
    next(iter(training))
    assert seen.take()[1] == 4, "the loader that was asked last"


def test_a_step_is_told_with_loss_and_samples_unless_the_code_tells(told: Any) -> None:
    torch = pytest.importorskip("torch")
    from aios_jupyter.runs.losses import Seen
    from aios_jupyter.runs.torch import StepCounter

    now = [100.0]
    seen = Seen()
    count = StepCounter(told.channel, lambda: now[0], seen)
    optimizer = object.__new__(torch.optim.SGD)
    for own in (False, True):
        told.channel.own_loss = own
        for _ in range(2):
            now[0] += 1
            seen.backward(torch.tensor(0.25))
            seen.fetched(seen, 16)
            count(optimizer, (), {})
            told()  # else what follows at once is merged
    made = [one.values for one in told() if isinstance(one, MetricsMade)]
    assert made[0]["loss"] == 0.25
    assert made[0]["samples_per_second"] == 32.0  # two batches since the first step's report
    assert "loss" not in made[-1]
