"""`aios_jupyter.train` in a plain process, and torch's part of it."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from aios_jupyter import train
from aios_jupyter.errors import UsageError

torch = pytest.importorskip("torch")

from aios_jupyter.runs.prepare import sharded  # noqa: E402
from aios_jupyter.runs.torch import StepCounter  # noqa: E402

from torch.utils.data import DataLoader, TensorDataset  # noqa: E402  # isort: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "AIOS_DEVICE"):
        monkeypatch.delenv(name, raising=False)


def test_outside_a_run_there_is_one_rank_that_says_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert (train.rank(), train.world_size(), train.is_main()) == (0, 1, True)
    train.log(3, loss=0.5)
    train.progress(1, 2, "epoch")
    assert capfd.readouterr() == ("", "")


def test_ranks_are_read_from_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("AIOS_DEVICE", "cuda:2")
    assert (train.rank(), train.world_size(), train.is_main()) == (2, 4, False)
    assert train.device() == "cuda:2"


def test_importing_it_loads_no_framework() -> None:
    code = (
        "import sys; from aios_jupyter import train; train.log(a=1); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


class Heard:
    """A channel that only listens."""

    counts_steps = True
    own_progress = own_loss = False
    steps = 0
    mine = True

    def __init__(self) -> None:
        self.said: list[tuple[dict[str, float], int | None]] = []
        self.made: list[float] = []

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self.said.append((values, step))

    def progress(self, done: float, total: float = 0.0, unit: str = "", label: str = "") -> None:
        self.made.append(done)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    channel = Heard()
    monkeypatch.setattr(train.events, "channel", lambda: channel)
    return channel


def test_numbers_of_all_sorts_are_logged(heard: Heard) -> None:
    train.log(7, loss=torch.tensor([0.5], requires_grad=True), n=3, bad=float("nan"))
    ((values, step),) = heard.said
    assert step == 7
    assert (values["loss"], values["n"]) == (0.5, 3.0)
    assert values["bad"] != values["bad"]


@pytest.mark.parametrize("value", ["high", None, [1, 2], torch.zeros(2)])
def test_what_is_no_number_is_refused_by_name(heard: Heard, value: object) -> None:
    with pytest.raises(UsageError, match=r"^loss=\w+ is not a single number"):
        train.log(loss=value)


def test_own_progress_replaces_counted_steps(heard: Heard) -> None:
    train.progress(1, 3, "epoch", "warm-up")
    assert heard.made == [1.0]
    assert heard.counts_steps is False
    assert heard.own_progress


# --- prepare


def things() -> tuple[object, object, DataLoader[object]]:
    model = torch.nn.Linear(2, 1)
    data = TensorDataset(torch.arange(20.0).reshape(10, 2))
    return model, torch.optim.SGD(model.parameters(), 0.1), DataLoader(data, 2, shuffle=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's model moves")
def test_alone_on_a_cpu_everything_comes_back_untouched() -> None:
    model, optimizer, loader = things()
    assert train.prepare(model) is model
    assert train.prepare(model, optimizer, loader) == (model, optimizer, loader)
    assert train.prepare(model, loader=loader) == (model, loader)


def test_only_torch_models_are_prepared() -> None:
    with pytest.raises(UsageError, match=r"takes a torch\.nn\.Module and not a dict"):
        train.prepare({})


def epochs(loader: object, count: int) -> list[list[float]]:
    return [sorted(float(x) for (batch,) in loader for x in batch[:, 0]) for _ in range(count)]  # type: ignore[attr-defined]


def test_shares_are_disjoint_and_shuffled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda *_, rank=rank: rank)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda *_: 2)
        monkeypatch.setattr("torch.distributed.is_available", lambda: True)
        shares.append(epochs(sharded(things()[2]), 3))
    everything = [float(n) for n in range(0, 20, 2)]
    for first, second in zip(*shares, strict=True):
        assert sorted(first + second) == everything
    assert shares[0][0] != shares[0][1]


def test_order_and_settings_of_a_loader_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_rank", lambda *_: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda *_: 2)
    data = TensorDataset(torch.arange(10.0).reshape(10, 1))
    loader = sharded(DataLoader(data, 3, shuffle=False, drop_last=True))
    assert loader.drop_last
    assert [batch[0].flatten().tolist() for batch in loader] == [[1.0, 3.0, 5.0]]
    assert sharded(loader) is loader


def test_loaders_that_cannot_be_split_are_refused() -> None:
    class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc]
        def __iter__(self):
            return iter(range(3))

    weights = torch.utils.data.WeightedRandomSampler([1.0] * 10, 10)
    data = things()[2].dataset
    for loader, named in (
        (DataLoader(Stream()), "IterableDataset"),
        (DataLoader(data, sampler=weights), "WeightedRandomSampler"),
        (DataLoader(data, batch_sampler=[[0, 1], [2]]), "list"),
    ):
        with pytest.raises(UsageError, match=named):
            sharded(loader)


# --- counting steps


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Optimizer:
    pass


def test_the_rate_of_steps_is_reported_five_times_a_second_at_most() -> None:
    heard, clock = Heard(), Clock()
    count, optimizer = StepCounter(heard, clock), Optimizer()  # type: ignore[arg-type]
    for _ in range(1000):
        clock.now += 0.01
        count(optimizer, (), {})
    count.report()
    assert len(heard.said) <= 51
    assert heard.said[-1][1] == 1000
    assert all(
        values["steps_per_second"] == pytest.approx(100, rel=0.01) for values, _ in heard.said
    )
    assert heard.made[0] == 1
    assert heard.made[-1] == 1000


def test_of_two_optimizers_one_is_counted() -> None:
    heard, clock = Heard(), Clock()
    count = StepCounter(heard, clock)  # type: ignore[arg-type]
    first, second = Optimizer(), Optimizer()
    for _ in range(10):
        clock.now += 1
        count(first, (), {})
        count(second, (), {})
    assert heard.made[-1] == 10
    del first
    gc.collect()
    count(second, (), {})
    clock.now += 1
    count(second, (), {})
    assert heard.made[-1] == 12


def test_steps_are_not_progress_once_the_code_reports_its_own() -> None:
    heard, clock = Heard(), Clock()
    heard.counts_steps = False
    count, optimizer = StepCounter(heard, clock), Optimizer()  # type: ignore[arg-type]
    for _ in range(3):
        clock.now += 1
        count(optimizer, (), {})
    assert heard.made == []
    assert len(heard.said) == 2


def test_counting_costs_less_than_a_hundredth_of_a_small_step() -> None:
    """Against a real step of a tiny model, which is the worst case."""
    import time

    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    data = torch.randn(32, 64)

    def step() -> None:
        optimizer.zero_grad()
        model(data).pow(2).mean().backward()
        optimizer.step()

    count = StepCounter(Heard())  # type: ignore[arg-type]

    def cost(work: object, times: int) -> float:
        best = float("inf")
        for _ in range(5):
            started = time.process_time()
            for _ in range(times):
                work()  # type: ignore[operator]
            best = min(best, (time.process_time() - started) / times)
        return best

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step()
        assert cost(lambda: count(optimizer, (), {}), 2000) < 0.01 * cost(step, 100)
    finally:
        torch.set_num_threads(threads)
