"""`aios forecast` as a shell prints it and a notebook draws it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_session import FakeSession
from IPython.core.interactiveshell import InteractiveShell

import aios_jupyter.session
from aios_jupyter.commands import main
from aios_jupyter.commands.charts import WIDTH, Bar, Bars, Panel
from aios_jupyter.commands.forecasts import accuracy_text, forecast_panel
from aios_jupyter.commands.waiting import queue_table
from aios_jupyter.notebook import charts, display
from aios_jupyter.notebook.widgets import Slot

ACCURACY = {"count": 24, "off": 40.0, "late": 5.0, "ahead": 300.0, "inside": 0.83}


def row(devices: int, mean: float | None) -> dict[str, Any]:
    p95 = None if mean is None else 4 * mean
    holds = mean is not None and mean <= 300
    return {"devices": devices, "busy": 0.5, "delayed": 0.25, "mean": mean, "p95": p95,
            "holds": holds}  # fmt: skip


FOUND: dict[str, Any] = {
    "pool": "accelerator", "devices": 2, "target": 300.0, "quantile": "mean", "arrivals": 12.0,
    "length": 1200.0, "gang": 1.0, "offered": 4.0, "now": row(2, None),
    "rows": [row(2, None), row(5, 665.0), row(6, 171.0)], "needed": 6, "needed_busiest": 9,
    "observed": {"span": 7200.0, "requests": 24, "leases": 22, "waited": 250.0, "enough": True},
    "accuracy": ACCURACY, "note": "From <24> requests.",
}  # fmt: skip


class Forecaster(FakeSession):
    def forecast(self, target_wait: float, **options: Any) -> dict[str, Any]:
        self.calls.append(("forecast", {"target_wait": target_wait, **options}))
        return FOUND

    def forecast_accuracy(self) -> dict[str, Any] | None:
        return ACCURACY


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Forecaster:
    fake = Forecaster()
    monkeypatch.setattr(aios_jupyter.session, "connect", lambda **_: fake)
    return fake


def shell(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_the_answer_the_table_and_the_chart(
    session: Forecaster, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "forecast --target-wait 5m --quantile p95 --arrivals 12 --length 20m --devices 8 --cpus"
    assert shell(*line.split()) == 0
    assert ("forecast", {"target_wait": 300.0, "quantile": "p95", "arrivals": 12.0,
                         "length": 1200.0, "devices": 8, "cpus": True}) in session.calls  # fmt: skip
    out = capsys.readouterr().out
    assert "6 accelerators hold the mean wait under 5 min" in out
    assert "grows for ever by the model, 4 min 10 s seen" in out
    assert "off by 40 s (median of 24), 83% within their range" in out
    chart = out.splitlines()[-3:]
    assert [line.split()[0] for line in chart] == ["*2", "5", "6"]
    assert len({line.index("|") for line in chart}) == 1
    assert ">" in chart[0] and ">" not in chart[2]


def test_json_is_for_programs(session: Forecaster, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell("forecast", "--json") == 0
    assert json.loads(capsys.readouterr().out) == FOUND


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("forecast --target-wait soon", "not a length of time"),
        ("forecast --quantile p50", "'mean', 'p95'"),
        ("forecast --devices 0", "0 is not in the range"),
        ("forecast --arrivals many", "not a valid float"),
        ("forecast --arival 3", "did you mean '--arrivals'"),
    ],
)
def test_misuse_is_one_sentence(
    line: str, says: str, session: Forecaster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell(*line.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1


def test_a_notebook_draws_bars_and_escapes_words() -> None:
    panel = forecast_panel(FOUND)
    drawn = charts.panel(panel)
    assert drawn.count("<rect") == 3
    assert 'aria-label="2: grows for ever; 5: 11 min 5 s; 6: 2 min 51 s"' in drawn
    assert "&lt;24&gt;" in drawn and "<24>" not in drawn
    assert isinstance(panel, Panel)


def test_bars_are_as_long_as_their_values() -> None:
    bars = Bars("t", [Bar("a", 1.0, "1"), Bar("b", 2.0, "2"), Bar("c", 0.0, "0")], 2.0, "2")
    lengths = [line.count("█") for line in bars.text().splitlines()[1:]]
    assert lengths[0] == pytest.approx(WIDTH / 2.1, abs=1)
    assert lengths[1] == pytest.approx(2 * WIDTH / 2.1, abs=2)
    assert lengths[2] == 0


def test_the_queue_says_how_good_its_forecasts_are() -> None:
    waiting = {"position": 1, "id": "q", "user": "me", "label": "", "want": "gpu", "count": 1,
               "submitted": 0.0, "eta": 60.0, "reason": "Resources"}  # fmt: skip
    assert "forecasts so far: off by 40 s" in queue_table([waiting], 0.0, ACCURACY).text()
    assert "forecasts" not in queue_table([waiting], 0.0, None).text()
    assert accuracy_text(None) == ""


def test_a_notebook_shows_a_panel_as_html_with_its_text_beside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[str, str]] = []
    monkeypatch.setattr(Slot, "show", lambda self, text, markup: shown.append((text, markup)))
    monkeypatch.setattr(display, "rich", lambda shell: True)
    shell_ = InteractiveShell.instance()
    host = display.NotebookHost(shell_)
    panel = forecast_panel(FOUND)
    assert host.show(panel, FOUND) is FOUND
    assert host.was_shown(FOUND)
    ((text, markup),) = shown
    assert text == panel.text()
    assert "<svg" in markup and "<table" in markup
