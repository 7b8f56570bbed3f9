from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aios_jupyter.commands.host import Host
from aios_jupyter.commands.optimize import panel, parse_share
from aios_jupyter.errors import NotFoundError, UsageError
from aios_jupyter.models import load, publish
from aios_jupyter.models.optimize import FLOAT, Optimized, Wish, optimize
from aios_jupyter.models.predictor import OnnxPredictor
from aios_jupyter.models.trial import (
    Row,
    choose,
    is_clear,
    judged,
    scoring,
)

from .conftest import shell


@pytest.fixture(scope="module")
def wide() -> Any:
    """Digits' classes from a wider network, trained a little: int8 makes it clearly smaller."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 64, 96),
        torch.nn.ReLU(),
        torch.nn.Linear(96, 10),
    )
    train(net, x[:1000], labels[:1000], steps=60)
    return net, x, labels


def train(net: torch.nn.Module, x: np.ndarray, y: np.ndarray, steps: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other take minutes on a busy machine
    _train(net, x, y, steps)
    torch.set_num_threads(threads)


def _train(net: torch.nn.Module, x: np.ndarray, y: np.ndarray, steps: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), 0.003)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        some = torch.randint(len(x), (64,), generator=generator).numpy()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            net(torch.from_numpy(x[some])), torch.from_numpy(y[some]).long()
        )
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def tried(wide: Any) -> Optimized:
    net, x, y = wide
    before = {name: value.clone() for name, value in net.state_dict().items()}
    root = list(logging.getLogger().handlers)
    found = optimize(
        net,
        (x[1000:], y[1000:]),
        Wish(
            int8=True,
            prune=0.5,
            finetune=lambda smaller: train(smaller, x[:1000], y[:1000], steps=40),
            max_loss=0.02,
        ),
    )
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training, "the user's own network stays as it was"
    assert list(logging.getLogger().handlers) == root
    return found


def test_every_variant_is_measured_on_the_users_data(tried: Optimized) -> None:
    assert [row.name for row in tried.rows][:3] == ["torch", FLOAT, "50% fewer channels"]
    assert any(row.name.startswith("int8") for row in tried.rows)
    assert any(row.name.startswith("50% fewer channels, int8") for row in tried.rows)
    assert tried.score_name == "accuracy"
    assert tried.samples == 797 - 200, "a quarter was for calibration alone"
    for row in tried.rows:
        assert row.size > 0
        assert 0 < row.p50_ms <= row.p95_ms
        assert row.per_second > 0
        assert row.loss == tried.of(FLOAT).score - row.score
    assert tried.of(FLOAT).score > 0.8


def test_int8_is_a_quarter_and_pruning_takes_weights_out(tried: Optimized) -> None:
    int8 = next(row for row in tried.rows if row.name.startswith("int8"))
    assert tried.of(FLOAT).size / int8.size > 3.5
    assert tried.of(FLOAT).size / tried.of("50% fewer channels").size > 3
    assert tried.chosen.startswith("50% fewer channels, int8")
    assert tried.smaller > 9


def test_what_is_chosen_computes_what_was_scored(
    tried: Optimized, wide: Any, state_dir: Path
) -> None:
    _, x, y = wide
    version = publish(tried, "smaller", alias="champion", metrics={"epochs": 1})
    assert version.framework == "torch"
    assert version.lineage["optimized"] == tried.chosen
    assert version.metrics["accuracy"] == tried.row.score
    assert version.metrics["epochs"] == 1
    right = load("smaller").predict(x[1000:]).argmax(1) == y[1000:]
    assert right.mean() == pytest.approx(tried.row.score, abs=0.03)


def test_a_stored_model_is_optimized_by_name_and_by_path(
    published: Any, digits: Any, tmp_path: Path
) -> None:
    found = optimize("digits@champion", (digits.x, digits.y), Wish(int8=True, max_loss=0.05))
    assert found.framework == "torch"
    assert found.lineage["optimized_from"] == published.ref
    assert found.rows[0].name == FLOAT
    path = found.save(tmp_path / "small.onnx")
    assert OnnxPredictor(str(path)).predict(digits.x[:2]).shape == (2, 10)
    if found.chosen != FLOAT:
        with pytest.raises(UsageError, match="int8 already"):
            optimize(path, (digits.x, None), Wish(int8=True))
    with pytest.raises(UsageError, match="Only a torch network can be pruned"):
        optimize("digits@champion", (digits.x, digits.y), Wish(prune=0.5))


def test_zeros_make_no_smaller_file_and_no_gain_is_claimed(wide: Any) -> None:
    net, x, y = wide
    found = optimize(net, (x[1000:], y[1000:]), Wish(prune=0.5, unstructured=True, max_loss=1.0))
    sparse = found.of("50% zeros")
    assert sparse.size == pytest.approx(found.of(FLOAT).size, rel=0.01)
    assert "no smaller file" in sparse.note
    if not sparse.clear:
        assert found.chosen == FLOAT
        assert "no gain" in panel(found).text()


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (Wish(prune=1.5), "no share to prune"),
        (Wish(max_loss=-1), "no loss to allow"),
        (Wish(unstructured=True), "Nothing is pruned"),
        (Wish(prune=0.5, finetune=3), "not a function"),  # type: ignore[arg-type]
    ],
)
def test_wishes_that_make_no_sense(wish: Wish, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        wish.check()


def test_bad_data_is_refused_in_a_sentence(published: Any, digits: Any, tmp_path: Path) -> None:
    wish = Wish(int8=True)
    with pytest.raises(UsageError, match="has shape"):
        optimize("digits", (np.ones((50, 3), np.float32), None), wish)
    with pytest.raises(UsageError, match="5 samples say too little"):
        optimize("digits", (digits.x[:5], digits.y[:5]), wish)
    with pytest.raises(UsageError, match="samples and 7 labels"):
        optimize("digits", (digits.x, digits.y[:7]), wish)
    with pytest.raises(UsageError, match="renumber them"):
        optimize("digits", (digits.x, digits.y + 1), wish)
    with pytest.raises(UsageError, match="score gave 'high'"):
        optimize("digits", (digits.x, digits.y), wish, score=lambda given, labels: "high")  # type: ignore[arg-type,return-value]
    with pytest.raises(NotFoundError, match="There is no model 'nobody'"):
        optimize("nobody", (digits.x, digits.y), wish)
    with pytest.raises(UsageError, match="cannot be optimized"):
        optimize({}, (digits.x, digits.y), wish)
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(UsageError, match="is not an ONNX model"):
        optimize(str(tmp_path / "bad.onnx"), (digits.x, digits.y), wish)


def test_a_failing_fine_tuning_is_told(wide: Any) -> None:
    net, x, y = wide

    def fails(smaller: Any) -> None:
        raise ValueError("no such optimizer")

    with pytest.raises(UsageError, match="fine-tuning failed: no such optimizer"):
        optimize(net, (x[:100], y[:100]), Wish(prune=0.5, finetune=fails))


def test_a_fine_tuning_with_two_parameters_gets_the_teacher() -> None:
    from aios_jupyter.models.prune import tuned

    net, teacher = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    seen: list[Any] = []
    tuned(net, lambda a, b: seen.extend((a, b)), teacher)
    tuned(net, lambda a, rate=1: seen.append(rate), teacher)
    assert seen == [net, teacher, 1]


# --- scores and choice, without any model ------------------------------------------------------------


def test_scores_fit_what_the_model_gives() -> None:
    classes = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    name, score = scoring(classes, np.array([0, 1, 2, 2]))
    assert (name, score(classes, None)) == ("accuracy", 0.75)
    name, score = scoring(classes, np.eye(3)[[0, 1, 2, 1]])
    assert (name, score(classes, None)) == ("accuracy", 1.0)
    name, score = scoring(classes, None)
    assert (name, score(classes[::-1], None)) == ("agreement", 0.0)
    name, score = scoring(np.array([[0.2], [0.9]]), np.array([0, 1]))
    assert (name, score(np.array([[0.6], [0.9]]), None)) == ("accuracy", 0.5)
    name, score = scoring(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    assert (name, score(np.array([1.0, 3.0]), None)) == ("R²", 1.0)
    with pytest.raises(UsageError, match="do not belong"):
        scoring(np.ones((2, 3, 4)), np.array([1, 2]))
    with pytest.raises(UsageError, match="do not belong"):
        scoring(classes, np.array(["a", "b", "c", "d"]))


def row(name: str, size: int, score: float, **more: Any) -> Row:
    return Row(name=name, size=size, score=score, **more)


def test_the_smallest_within_the_loss_is_chosen() -> None:
    rows = judged(
        [
            row("torch", 90, 0.9, stored=False),
            row("base", 100, 0.9, p50_ms=3.0),
            row("small", 50, 0.896, p50_ms=9.0),
            row("smaller", 25, 0.89, p50_ms=1.0),
            row("broken", 1, float("nan")),
        ],
        "base",
        0.005,
    )
    assert [r.holds for r in rows] == [True, True, True, False, False]
    assert choose(rows, "base").name == "small"
    assert choose(judged(rows, "base", 0.01), "base").name == "smaller"


def test_a_variant_as_large_needs_a_clear_speed() -> None:
    base = row("base", 100, 0.9, p50_ms=3.0)
    assert choose([base, row("other", 100, 0.9, p50_ms=1.0)], "base").name == "base"
    assert choose([base, row("other", 100, 0.9, p50_ms=1.0, clear=True)], "base").name == "other"
    assert is_clear([1.5] * 8 + [0.5])
    assert not is_clear([2.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    assert not is_clear([1.02] * 9)


def test_shares_are_read() -> None:
    assert parse_share("0.5%") == 0.005
    assert parse_share("0.5") == 0.5
    for text in ("50", "-1%", "many", "101%"):
        with pytest.raises(UsageError, match="no share"):
            parse_share(text)


def test_a_shell_optimizes_a_published_model(
    published: Any, digits: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "val.npz", x=digits.x, y=digits.y)
    target = tmp_path / "small.onnx"
    assert shell("optimize", "digits", "--data", str(tmp_path / "val.npz"), "--max-loss", "5%",
                 "-o", str(target), "--json") == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == FLOAT
    assert found["score"] == "accuracy"
    assert {"name", "size", "score", "p50_ms"} <= set(found["rows"][0])
    assert OnnxPredictor(str(target)).predict(digits.x[:1]).shape == (1, 10)
    assert shell("optimize", "nobody", "--data", "a,b") == 1
    assert "no model 'nobody'" in capsys.readouterr().err
    assert shell("optimize", "digits", "--data", "a,b,c") == 2
    assert "x_val,y_val" in capsys.readouterr().err


def test_the_panel_says_what_is_gained_and_what_is_not(tried: Optimized) -> None:
    text = panel(tried).text()
    assert f"{tried.smaller:.2f} times smaller" in text
    assert "times quicker" in text or "no gain that the measurement" in text or "slower" in text
    assert Host().show(panel(tried), tried) is tried
