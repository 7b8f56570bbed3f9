"""A short storm with a fixed seed; `make faults` has the long one. The checker can find fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import storm


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_promises_are_kept_through_a_storm(tmp_path: Path) -> None:
    wrong, numbers = storm.storm(tmp_path, seed=7, seconds=30)
    assert wrong == [], numbers
    assert numbers["leases granted"] > 10, numbers
    assert numbers["runs that succeeded"] > 3, numbers
    assert numbers["kernels killed"] and numbers["brokers killed"], numbers
    assert sum(number for deed, number in numbers.items() if deed.startswith("conn")) > 3, numbers
    assert numbers["looks at the queue"] > 12, numbers


def granted(lease: str, request: str, *devices: str) -> dict[str, Any]:
    detail = {"lease": lease, "request": request, "devices": list(devices)}
    return {"what": "granted", "detail": detail}


def ended(lease: str, reason: str = "released") -> dict[str, Any]:
    return {"what": "lease ended", "detail": {"lease": lease, "reason": reason}}


@pytest.mark.parametrize(
    ("audit", "says"),
    [
        ([granted("L1", "q1", "d0"), granted("L2", "q2", "d0")], "while L1 held"),
        ([granted("L1", "q1", "d0", "d1")], "not 1 devices"),
        ([granted("L1", "q1", "d0"), ended("L1", "")], "without a reason"),
        ([granted("L1", "q1", "d0")], "never ended"),
    ],
)
def test_the_checker_sees_broken_leases(audit: list[dict[str, Any]], says: str) -> None:
    counts = {"q1": 1, "q2": 1}
    assert any(says in sentence for sentence in storm._leases(audit, counts, {}))
    whole = [granted("L1", "q1", "d0"), ended("L1"), granted("L2", "q2", "d0"), ended("L2")]
    assert storm._leases(whole, counts, {}) == []


def test_the_checker_sees_fences_that_fall_and_requests_that_are_lost() -> None:
    audit = [granted("L2", "q1", "d0"), granted("L1", "q2", "d1")]
    assert storm._fences(audit, [("counter", "fence", 2)]) == ["fence 1 follows 2"]
    assert storm._fences(audit[:1], [("counter", "fence", 1)])
    assert storm._requests(audit, {"q1": 1, "q3": 1}, {}) == ["request q3 was lost"]


def test_the_checker_sees_who_waits_for_what_is_free() -> None:
    free = {"kind": "simulated", "holder": None, "outside": []}
    held = {**free, "holder": {"lease": "L1"}}
    view = {
        "devices": {"d0": free, "d1": free, "d2": held},
        "queue": {
            "q1": {"count": 3, "reason": "Resources"},
            "q2": {"count": 2, "reason": "Reservation(for q1)"},
        },
    }
    assert storm.idle(view) == []
    view["queue"]["q3"] = {"count": 2, "reason": "Priority"}
    assert storm.idle(view) == ["request q3 waits for 2 of 2 free devices, 'Priority'"]
