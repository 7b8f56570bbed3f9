"""Forecasts through the Python API, from what a live cluster has seen."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from clusters import pid_of, until

from aios_jupyter.cluster import embedded
from aios_jupyter.cluster.users import add
from aios_jupyter.errors import UsageError
from aios_jupyter.session import Session, connect


@pytest.mark.timeout(180)
def test_a_cluster_learns_its_load_and_scores_what_it_told(
    no_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.ensure(simulate_gpus=2)
    with connect(label="one") as one:
        with pytest.raises(UsageError, match="describe them with --arrivals"):
            one.forecast()
        assert one.forecast_accuracy() is None
        for _ in range(2):
            wait_and_start(one)
        found = one.forecast("1m")
        assert found["devices"] == 2
        assert found["pool"] == "accelerator"
        assert (found["observed"]["requests"], found["observed"]["leases"]) == (4, 4)
        assert found["observed"]["waited"] > 0.2
        assert not found["observed"]["enough"]
        assert "only 4 leases" in found["note"]
        assert found["needed"] >= 2
        assert found["accuracy"]["count"] == 2
        # Leases with a time end then, and not before: a start is never much later than told.
        assert found["accuracy"]["late"] < 5
        assert found["accuracy"] == one.forecast_accuracy()

        broker = pid_of("broker")
        os.kill(broker, signal.SIGKILL)
        until(lambda: embedded.ensure() and pid_of("broker") != broker, "it is there again")
        again = one.forecast("1m")
        assert again["observed"]["requests"] == 4
        assert again["accuracy"] == found["accuracy"]

        add("eve", "viewer", no_cluster / "eve")
        monkeypatch.setenv("AIOS_BUNDLE", str(no_cluster / "eve"))
        with connect(label="a viewer") as viewer:
            assert viewer.forecast(arrivals=1, length="1h")["devices"] == 2


def wait_and_start(session: Session) -> None:
    """Somebody waits for a lease of one second to end, and looks at the forecast meanwhile."""
    session.alloc(gpus=2, time=1.5)
    with connect(label="two") as second:
        thread = threading.Thread(target=lambda: second.alloc(gpus=2))
        thread.start()
        row = until(session.queue, "it waits")[0]
        told = session.explain(row["id"])
        assert told["earliest"] <= told["eta"]
        thread.join(60)
        assert not thread.is_alive()
        second.release()


def test_what_if(session: Session) -> None:
    found = session.forecast("5m", arrivals=12, length="20m", devices=8)
    assert found["offered"] == pytest.approx(4.0)
    assert found["now"]["mean"] == pytest.approx(17.7, abs=0.1)
    assert found["now"]["holds"]
    assert found["needed"] == 6
    assert found["needed_busiest"] is None
    assert found["note"] == "For the rates given, not those seen."
    grows = session.forecast("5m", arrivals=12, length="20m", devices=3)
    assert grows["now"]["mean"] is None
    assert not grows["now"]["holds"]
    slots = session.forecast("5m", arrivals=12, length="20m", cpus=True)
    assert slots["pool"] == "cpu"


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        ({"target_wait": 0}, "not a length of time"),
        ({"target_wait": "soon"}, "not a length of time"),
        ({"quantile": "p50"}, "mean or p95"),
        ({"arrivals": 0}, "requests an hour"),
        ({"arrivals": float("nan")}, "requests an hour"),
        ({"length": "-1h"}, "not a length of time"),
        ({"devices": 0}, "not a number of devices"),
        ({"devices": 10**9}, "not a number of devices"),
    ],
)
def test_numbers_that_make_no_sense_are_one_sentence(
    session: Session, ask: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        session.forecast(**{"arrivals": 12, "length": "20m", **ask})  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
