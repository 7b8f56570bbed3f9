"""Quotas: what queues and users may have, who borrows, who waits, and whom that never holds up."""

from __future__ import annotations

import math
from typing import Any

import pytest
from simulated import HOUR, Cluster, give, teams

from aios_jupyter.broker import events as ev
from aios_jupyter.broker.events import Quota
from aios_jupyter.broker.journal import Journal
from aios_jupyter.broker.policy import Pool
from aios_jupyter.broker.quotas import Quotas
from aios_jupyter.errors import AccessError, AiosError, AllocationError, NotFoundError, UsageError
from aios_jupyter.schema import Request, RequestState, Want

GPU = Pool.ACCELERATOR


def rows(cluster: Cluster) -> dict[str, dict[str, Any]]:
    return {row["queue"]: row for row in cluster.state.quota_rows() if row["pool"] == GPU}


def test_a_queue_uses_its_quota_and_borrows_up_to_its_limit() -> None:
    cluster = teams(borrow=2)
    first = [cluster.ask(user="ana") for _ in range(8)]
    assert set(first[:6]) <= cluster.started.keys()
    assert cluster.queue() == first[6:]
    assert cluster.state.reason(first[6]) == "Quota(queue a)"
    row = rows(cluster)["a"]
    assert (row["nominal"], row["used"], row["borrowed"], row["waiting"]) == (4, 6, 2, 2)


def test_what_is_held_back_holds_nobody_up_and_goes_on_when_the_quota_frees() -> None:
    cluster = teams(borrow=0)
    held = [cluster.ask(2, user="ana") for _ in range(3)]
    assert cluster.queue() == held[2:]
    assert cluster.state.reservation(GPU) is None
    other = cluster.ask(3, user="bob")
    rest = cluster.ask(1, user="eve")
    assert {other, rest} <= cluster.started.keys()
    cluster.release(held[0])
    assert cluster.queue() == []


def test_a_smaller_request_goes_past_a_larger_one_that_the_quota_holds() -> None:
    cluster = teams(borrow=0)
    cluster.ask(2, user="ana")
    large, small = cluster.ask(3, user="ana"), cluster.ask(2, user="ana")
    assert small in cluster.started
    assert cluster.queue() == [large]


def test_who_is_within_the_quota_goes_before_who_borrows() -> None:
    cluster = teams()
    held = [cluster.ask(1, user="ana") for _ in range(8)]
    borrower = cluster.ask(1, user="ana")
    own = cluster.ask(1, user="bob")
    assert cluster.queue() == [own, borrower]
    cluster.release(held[0])
    assert own in cluster.started


def test_the_default_queue_has_the_rest_and_may_borrow_all() -> None:
    cluster = teams()
    row = rows(cluster)["default"]
    assert (row["nominal"], row["borrow"]) == (1, None)
    assert cluster.ask(8, user="eve") in cluster.started
    assert rows(cluster)["default"]["borrowed"] == 7


def test_one_user_has_limits_of_their_own() -> None:
    cluster = Cluster("fifo")
    give(cluster, "default", None, user_devices=3, user_leases=2)
    cluster.ask(2, user="ana")
    held = cluster.ask(2, user="ana")
    small = cluster.ask(1, user="ana")
    assert small in cluster.started
    third = cluster.ask(1, user="ana")
    assert cluster.state.reason(held) == "Quota(user)"
    assert cluster.state.reason(third) == "Quota(user)"
    assert cluster.ask(3, user="bob") in cluster.started
    cluster.release(small)
    assert third in cluster.started
    assert cluster.queue() == [held]


def test_what_was_held_before_there_were_quotas_counts() -> None:
    cluster = Cluster("fifo")
    cluster.ask(4, user="ana")
    assert rows(cluster)["default"]["used"] == 4
    give(cluster, "default", 5, borrow=0)
    held = cluster.ask(2, user="bob")
    assert cluster.state.reason(held) == "Quota(queue default)"
    assert rows(cluster)["default"]["used"] == 4


def test_cpu_slots_have_a_quota_of_their_own() -> None:
    cluster = Cluster("fifo")
    quota = Quota(nominal={Pool.CPU.value: 1}, borrow=0, members=("ana",))
    cluster.do(ev.QuotaSet(queue="a", quota=quota, by="root", admin=True))
    cluster.ask(want=Want.CPU)
    held = cluster.ask(want=Want.CPU)
    assert cluster.state.reason(held) == "Quota(queue a)"
    assert cluster.ask(8) in cluster.started


@pytest.mark.parametrize(
    ("limits", "count", "says"),
    [
        ({"borrow": 2}, 7, "at most 6"),
        ({"borrow": 0}, 5, "at most 4"),
        ({"user_devices": 2}, 3, "at most 2"),
    ],
)
def test_what_could_never_fit_is_refused_at_once(
    limits: dict[str, Any], count: int, says: str
) -> None:
    cluster = teams(**limits)
    with pytest.raises(AllocationError, match=says):
        cluster.ask(count, user="ana")
    assert cluster.queue() == []


def test_a_queue_is_for_its_members() -> None:
    cluster = teams()
    give(cluster, "c", 1, "ana")
    assert cluster.state.requests[cluster.ask(user="ana")].queue == "a"
    assert cluster.state.requests[cluster.ask(user="ana", queue="c")].queue == "c"
    assert cluster.state.requests[cluster.ask(user="eve")].queue == "default"
    for user, queue, error in (
        ("bob", "a", AccessError),
        ("ana", "default", AccessError),
        ("ana", "d", NotFoundError),
    ):
        with pytest.raises(error):
            cluster.ask(user=user, queue=queue)


@pytest.mark.parametrize(
    ("queue", "quota", "error"),
    [
        ("a b", Quota(), UsageError),
        ("", Quota(), UsageError),
        ("x" * 65, Quota(), UsageError),
        ("../a", Quota(), UsageError),
        ("a", Quota(nominal={"accelerator": -1}), UsageError),
        ("a", Quota(nominal={"tpu": 1}), UsageError),
        ("a", Quota(nominal={"accelerator": 1}, borrow=-2), UsageError),
        ("a", Quota(borrow=1), UsageError),
        ("a", Quota(user_devices=0), UsageError),
        ("a", Quota(user_leases=2**60), UsageError),
        ("a", Quota(members=("",)), UsageError),
    ],
)
def test_a_quota_that_makes_no_sense_is_refused(
    queue: str, quota: Quota, error: type[AiosError]
) -> None:
    cluster = teams()
    before = dict(cluster.records)
    with pytest.raises(error):
        cluster.do(ev.QuotaSet(queue=queue, quota=quota, by="root", admin=True))
    assert cluster.records == before


def test_only_admins_change_quotas() -> None:
    cluster = teams()
    before = dict(cluster.records)
    for event in (
        ev.QuotaSet(queue="a", quota=Quota(), by="ana"),
        ev.QuotaRemoved(queue="a", by="ana"),
    ):
        with pytest.raises(AccessError, match="ask an admin"):
            cluster.do(event)
    for queue, error in (("d", NotFoundError), ("default", UsageError)):
        with pytest.raises(error):
            cluster.do(ev.QuotaRemoved(queue=queue, by="root", admin=True))
    assert cluster.records == before


def test_a_change_lets_go_on_whoever_it_allows() -> None:
    cluster = teams(borrow=0)
    cluster.ask(4, user="ana")
    held = [cluster.ask(1, user="ana") for _ in range(2)]
    give(cluster, "a", 5, "ana", borrow=0)
    assert held[0] in cluster.started
    assert cluster.queue() == [held[1]]
    give(cluster, "a", 2, "ana", borrow=0)
    assert cluster.state.reason(held[1]) == "Quota(queue a)"
    cluster.do(ev.QuotaRemoved(queue="a", by="root", admin=True))
    assert cluster.queue() == []
    assert cluster.state.requests[held[1]].queue == "default"
    assert rows(cluster)["default"]["used"] == 6


def test_a_restart_keeps_quotas_queues_and_who_waits() -> None:
    cluster = teams(borrow=0)
    cluster.ask(4, user="ana")
    held = cluster.ask(1, user="ana")
    before = rows(cluster)
    cluster.restart()
    assert rows(cluster) == before
    assert cluster.state.reason(held) == "Quota(queue a)"
    assert cluster.state.leases["L1"].queue == "a"


def test_what_was_queued_before_there_were_queues_is_in_the_default_one() -> None:
    cluster = Cluster("fifo")
    cluster.ask(8)
    waiting = cluster.ask(1)
    old = cluster.records["request", waiting].__replace__(queue="")
    cluster.records["request", waiting] = old
    cluster.restart()
    assert cluster.state.requests[waiting].queue == "default"
    assert cluster.records["request", waiting].queue == "default"


def test_the_journal_keeps_quotas(tmp_path: Any) -> None:
    quota = Quota(nominal={"accelerator": 4}, borrow=2, user_leases=1, members=("ana",))
    journal = Journal(tmp_path / "journal.sqlite")
    journal.apply([ev.Put(kind="quota", id="a", record=quota)], 1.0)
    journal.commit()
    assert journal.load() == [("quota", "a", quota)]
    journal.close()


def test_those_held_back_are_not_looked_at_again_with_each_event() -> None:
    """However many a quota holds, an event costs as many looks at them as for a few."""

    def looks(held: int) -> int:
        cluster = teams(borrow=0)
        cluster.ask(4, user="ana")
        for _ in range(held):
            cluster.ask(1, user="ana")
        looked = 0
        requests = cluster.state.requests

        class Counted(dict[str, Request]):
            def __getitem__(self, key: str) -> Request:
                nonlocal looked
                looked += 1
                return super().__getitem__(key)

        cluster.state.requests = Counted(requests)
        cluster.state._tables["request"] = cluster.state.requests
        for _ in range(20):
            cluster.release(cluster.ask(2, user="bob"))
        return looked

    assert looks(2000) == looks(20)


def test_eta_is_not_promised_to_those_held_and_the_reason_is_a_sentence() -> None:
    from aios_jupyter.broker.outlook import Outlook

    cluster = teams(borrow=0)
    cluster.ask(4, user="ana", time=HOUR)
    held = cluster.ask(1, user="ana", time=HOUR)
    found = Outlook(cluster.state).explain(held, cluster.now)
    assert found["eta"] is None
    assert found["reason"] == "Quota(queue a)"
    assert "quota of queue a" in found["why"]


def test_rooms_are_counted_by_pool() -> None:
    quotas = Quotas(lambda pool: 8)
    assert quotas.room("default", "ana", GPU).allowed == math.inf
    quotas.records["a"] = Quota(nominal={"accelerator": 4}, borrow=1)
    assert quotas.room("a", "", GPU)[:2] == (4, 5)
    assert quotas.room("a", "", Pool.CPU).allowed == math.inf
    assert quotas.nominal("default", GPU) == 4
    assert quotas.nominal("default", Pool.CPU) == math.inf


def test_an_aged_request_is_first_among_those_that_its_quota_allows() -> None:
    cluster = teams("sjf", borrow=0)
    cluster.choose("sjf", aging=HOUR)
    mine = [cluster.ask(4, user="ana"), cluster.ask(3, user="bob"), cluster.ask(1, user="eve")]
    large = cluster.ask(4, user="ana", time=9 * HOUR)
    cluster.wait(HOUR + 1.0)
    small = cluster.ask(1, user="ana", time=60.0)
    assert cluster.queue() == [large, small]
    cluster.release(mine[0])
    assert large in cluster.started
    assert cluster.state.requests[small].state is RequestState.QUEUED


# --- turns of queues under the policy fair


def shared(**weights: float) -> Cluster:
    """Eight GPUs, all held by eve: team a (ana and amy) and team b (bob), by weights."""
    cluster = Cluster("fair")
    give(cluster, "a", None, "ana", "amy", weight=weights.get("a", 1.0))
    give(cluster, "b", None, "bob", weight=weights.get("b", 1.0))
    return cluster


def grants(cluster: Cluster, held: str) -> list[str]:
    """Who is granted in which order once a lease of all devices ends: a letter each, a or b."""
    before = set(cluster.started)
    cluster.release(held)
    new = [id for id in cluster.started if id not in before]
    return [cluster.state.requests[id].queue for id in new]


@pytest.mark.parametrize(
    ("weight", "order"), [(1.0, "abababab"), (3.0, "abbbabbb")], ids=["equal", "weighted"]
)
def test_queues_share_by_weight_however_many_users_they_have(weight: float, order: str) -> None:
    cluster = shared(b=weight)
    held = cluster.ask(8, user="eve")
    asked = [cluster.ask(user=user) for _ in range(8) for user in ("ana", "amy", "bob")]
    foreseen = [cluster.state.requests[id].queue for id in cluster.queue()][:8]
    assert "".join(grants(cluster, held)) == order
    assert "".join(foreseen) == order
    users = [cluster.state.requests[id].user for id in asked if id in cluster.started]
    assert abs(users.count("ana") - users.count("amy")) <= 1


def test_of_two_queues_that_have_had_the_same_the_older_request_goes_first() -> None:
    cluster = shared()
    give(cluster, "z", None, "zoe")
    cluster.ask(8, user="ana")
    older = cluster.ask(user="zoe")
    give(cluster, "z", None)
    newer = cluster.ask(user="zoe")
    assert [cluster.state.requests[id].queue for id in (older, newer)] == ["z", "default"]
    assert cluster.queue() == [older, newer]
    assert [cluster.state.reason(id) for id in (older, newer)] == ["Resources", "Priority"]


def test_what_a_queue_has_had_counts_and_survives_a_restart() -> None:
    cluster = shared()
    cluster.release(cluster.ask(8, user="ana"), after=HOUR)
    cluster.ask(8, user="eve")
    late, first = cluster.ask(user="amy"), cluster.ask(user="bob")
    assert cluster.queue() == [first, late]
    cluster.restart()
    cluster.choose("fair")
    assert cluster.queue() == [first, late]


def test_who_changes_a_weight_changes_who_is_next() -> None:
    cluster = shared()
    cluster.release(cluster.ask(8, user="ana"), after=HOUR)
    cluster.release(cluster.ask(4, user="bob"), after=HOUR)
    cluster.ask(8, user="eve")
    ana, bob = cluster.ask(user="ana"), cluster.ask(user="bob")
    assert cluster.queue() == [bob, ana]
    give(cluster, "a", None, "ana", "amy", weight=4.0)
    assert cluster.queue() == [ana, bob]


def test_what_was_held_before_there_were_queues_counts_from_then_on() -> None:
    cluster = Cluster("fair")
    held = cluster.ask(8, user="eve")
    give(cluster, "b", None, "bob")
    late, first = cluster.ask(user="eva"), cluster.ask(user="bob")
    assert cluster.queue() == [first, late]
    cluster.release(held, after=HOUR)
    assert {late, first} <= cluster.started.keys()


def test_without_queues_nothing_is_kept_of_them() -> None:
    cluster = shared()
    held = cluster.ask(8, user="ana")
    for queue in ("a", "b"):
        cluster.do(ev.QuotaRemoved(queue=queue, by="root", admin=True))
    assert not [id for kind, id in cluster.records if kind == "queue-usage"]
    cluster.release(held)
    assert not [id for kind, id in cluster.records if kind == "queue-usage"]


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_weight_is_refused(weight: float) -> None:
    cluster = shared()
    with pytest.raises(UsageError, match="is not a weight"):
        give(cluster, "a", None, weight=weight)
    assert rows(cluster)["a"]["weight"] == 1.0
