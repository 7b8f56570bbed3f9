"""What happens to a run: each function takes a run and gives the next one.

A run is over when all its ranks have exited or their lease has ended. Its reason is the first thing
that went wrong: the first rank that failed, the node that was lost, or who stopped it. A rank that
only lost another one (an echo) is the reason as long as nothing better is known. Where it has
restarts left, the first failure ends this attempt alone, and when all its ranks have exited the next
one begins. So it is when the run is to have other devices, which counts as no restart.
"""

from __future__ import annotations

from typing import Any

from ..schema import LIVE, Origin, Progress, RankExit, Run, RunState
from .events import RunReported, replace

# Where in `Run.detail` the first failure is kept; only the broker writes these.
FAILED_RANK = "failed_rank"
FAILED_NODE = "failed_node"
# The failure is an echo: its reason, without a node's name.
ECHO = "echo"
# The failures that were followed by a restart, the last so many of them.
FAILURES = "failures"
MOST_FAILURES = 20
LONGEST_ECHO = 80
# What a person should look at, a sentence for each subject; its node says so.
ALERTS = "alerts"
MOST_ALERTS = 5
# Its lease was taken for others: whoever started it may have it go on.
PREEMPTED = "preempted"
# Why it was told to end this attempt, that has not failed, and to go on with other devices.
MOVED = "moved"
# The step of its last checkpoint, as its nodes say.
CHECKPOINT = "checkpoint"
# Datasets that it has read, as `name@version`: so many at most.
DATA = "data"
MOST_DATA = 100
_OURS = frozenset({FAILED_RANK, FAILED_NODE, FAILURES, ECHO, PREEMPTED, MOVED})
_FAILED = frozenset({FAILED_RANK, FAILED_NODE})


def created(run: Run, now: float) -> Run:
    """A run as it starts, whatever its maker put in it."""
    return replace(
        run,
        state=RunState.STARTING,
        started=now,
        ended=None,
        progress=Progress(),
        metrics={},
        exits=(),
        reason="",
        attempt=0,
        uncounted=0,
        awaits="",
        past=(),
        begun=now,
        detail=_without(run.detail, _OURS, CHECKPOINT, DATA, ALERTS),
    )


def reported(run: Run, report: RunReported) -> Run:
    """Take in what a node says; the end of a run is decided by its ranks' exits alone."""
    running = report.state is RunState.RUNNING and run.state is RunState.STARTING
    detail = _without(report.detail or {}, _OURS)
    if DATA in detail:
        detail[DATA] = sorted({*run.detail.get(DATA, ()), *detail[DATA]})[:MOST_DATA]
    return replace(
        run,
        state=RunState.RUNNING if running else run.state,
        progress=report.progress or run.progress,
        metrics={**run.metrics, **(report.metrics or {})},
        detail={**run.detail, **detail},
    )


def new_alerts(before: Run, now: Run) -> list[str]:
    """What a run's owner is told: what has come to what a person should look at."""
    known, alerts = before.detail.get(ALERTS, {}), now.detail.get(ALERTS, {})
    fresh = [str(text) for subject, text in alerts.items() if subject not in known]
    return [f"{now.name or now.id}: {text}" for text in fresh[:MOST_ALERTS]]


def exited(run: Run, exit: RankExit, *, final: bool = False, lost: str = "") -> Run:
    """A rank has ended; the first that fails before anybody stopped the run fails this attempt.

    Parameters
    ----------
    final
        There can be no next attempt.
    lost
        A node of the run that is out of reach.
    """
    run = replace(run, exits=(*run.exits, exit))
    if exit.code == 0:
        return run
    reason = exit.reason or _sentence(exit)
    if run.state is RunState.STOPPING or (run.state is RunState.RESTARTING and not final):
        better = ECHO in run.detail and exit.origin is Origin.OWN
        return _failed(run, reason, exit.rank) if better else run
    again = may_restart(run) and not final
    run = replace(run, state=RunState.RESTARTING if again else RunState.STOPPING)
    if exit.origin is not Origin.PEER:
        return _failed(run, reason, exit.rank)
    if not lost:
        return _failed(run, reason, exit.rank, echo=reason)
    return _failed(run, _after(lost, reason), None, lost, echo=reason)


def lost_node(run: Run, node: str, *, gone: bool = False) -> Run:
    """A node of the run is out of reach: what looks like an echo is one of that.

    `gone`: it will not come back, which fails the attempt by itself.
    """
    if ECHO in run.detail and run.detail.get(FAILED_NODE) is None:
        echo = str(run.detail[ECHO])
        return _failed(run, _after(node, echo), None, node, echo=echo)
    if gone and run.state in (RunState.STARTING, RunState.RUNNING):
        again = may_restart(run)
        run = replace(run, state=RunState.RESTARTING if again else RunState.STOPPING)
        return _failed(run, f"node {node} was lost", None, node)
    return run


def _after(node: str, echo: str) -> str:
    """What the ranks of other nodes say of it is long, and all the same."""
    short = echo if len(echo) <= LONGEST_ECHO else f"{echo[:LONGEST_ECHO].rstrip()} …"
    return f"node {node} was lost; then {short}"


def _failed(run: Run, reason: str, rank: int | None, node: str = "", echo: str = "") -> Run:
    """The run with the reason why it fails; in place of an echo that it had before."""
    replaces = ECHO in run.detail
    detail = _without(run.detail, _FAILED, ECHO, MOVED)
    if echo:
        detail[ECHO] = echo
    if run.state is RunState.RESTARTING:
        failures = list(detail.get(FAILURES, ()))[: -1 if replaces else None]
        failure = {
            "rank": rank,
            "node": node,
            "reason": reason,
            "time": run.exits[-1].time if run.exits else 0.0,
        }
        detail[FAILURES] = [*failures, failure][-MOST_FAILURES:]
    if node:
        detail[FAILED_NODE] = node
    elif rank is not None:
        detail[FAILED_RANK] = rank
    return replace(run, reason=reason, detail=detail)


def may_restart(run: Run) -> bool:
    """Whether a failure of this attempt is not the end of the run."""
    return run.attempt - run.uncounted < run.max_restarts


def moved(run: Run, why: str) -> Run:
    """The run is to end this attempt and to go on with other devices.

    `why` is told in its log, after "as".
    """
    detail = _without(run.detail, _FAILED, ECHO)
    return replace(
        run,
        state=RunState.RESTARTING,
        reason=why,
        uncounted=run.uncounted + (MOVED not in detail or run.state is not RunState.RESTARTING),
        detail={**detail, MOVED: why},
    )


def moves(run: Run) -> bool:
    """Whether the run is ending this attempt for other devices."""
    return run.state is RunState.RESTARTING and MOVED in run.detail


def done(run: Run) -> bool:
    """Whether a run that was to go on with other devices had come to its own end before."""
    well = all(exit.code == 0 and exit.origin is Origin.OWN for exit in run.exits)
    return MOVED in run.detail and is_over(run) and well


def suspended(run: Run, request: str) -> Run:
    """The run without devices, until the request has some again."""
    return replace(run, awaits=request, exits=())


def resumed(run: Run, lease: str) -> Run:
    """The run with devices again, of that lease; `again` then starts it."""
    return replace(run, lease=lease, awaits="", past=tuple(dict.fromkeys((*run.past, *run.nodes))))


def again(run: Run, world_size: int, nodes: tuple[str, ...], now: float) -> Run:
    """The next attempt of a run that is restarting."""
    return replace(
        run,
        state=RunState.STARTING,
        attempt=run.attempt + 1,
        world_size=world_size,
        nodes=nodes,
        past=tuple(node for node in run.past if node not in nodes),
        begun=now,
        exits=(),
        reason="",
        detail=_without(run.detail, _FAILED, ECHO),
    )


def told_to_stop(run: Run, reason: str, lost_node: str = "", *, preempted: bool = False) -> Run:
    """The run's end was asked for, or its lease ends; a failure before that stays its reason."""
    if run.state is RunState.STOPPING:
        return run
    # What failed before is history: this attempt was over for it.
    detail = _without(run.detail, _FAILED, ECHO, MOVED)
    if lost_node:
        detail[FAILED_NODE] = lost_node
    if preempted:
        detail[PREEMPTED] = True
    return replace(run, state=RunState.STOPPING, reason=reason, detail=detail)


def is_over(run: Run) -> bool:
    """Whether all ranks have exited."""
    return len(run.exits) >= run.world_size


def ended(run: Run, now: float) -> Run:
    """The run with its end state."""
    if _FAILED & run.detail.keys():
        state = RunState.FAILED
    elif run.state is RunState.STOPPING:
        state = RunState.STOPPED
    else:
        return replace(run, state=RunState.SUCCEEDED, ended=now, reason="")
    return replace(run, state=state, ended=now)


def why_again(run: Run) -> str:
    """Why there is another attempt than the first, a sentence."""
    if MOVED in run.detail:
        return str(run.detail[MOVED])
    failures = run.detail.get(FAILURES, ())
    return str(failures[-1]["reason"]) if failures else ""


def live(run: Run) -> bool:
    """Whether the run has not ended."""
    return run.state in LIVE


def _without(detail: dict[str, Any], keys: frozenset[str], *more: str) -> dict[str, Any]:
    return {key: value for key, value in detail.items() if key not in keys and key not in more}


def _sentence(exit: RankExit) -> str:
    if exit.code < 0:
        return f"rank {exit.rank} was killed by signal {-exit.code}"
    return f"rank {exit.rank} exited with code {exit.code}"
