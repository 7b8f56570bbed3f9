"""What happens to a run: each function takes a run and gives the next one.

A run is over when all its ranks have exited or their lease has ended. Its reason is the first thing
that went wrong: the first rank that failed, the node that was lost, or who stopped it. Where it has
restarts left, the first failure ends this attempt alone, and when all its ranks have exited the next
one begins.
"""

from __future__ import annotations

from typing import Any

from ..schema import LIVE, Progress, RankExit, Run, RunState
from .events import RunReported, replace

# Where in `Run.detail` the first failure is kept; only the broker writes these.
FAILED_RANK = "failed_rank"
FAILED_NODE = "failed_node"
# The failures that were followed by a restart, the last so many of them.
FAILURES = "failures"
MOST_FAILURES = 20
_OURS = frozenset({FAILED_RANK, FAILED_NODE, FAILURES})
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
        detail={key: value for key, value in run.detail.items() if key not in _OURS},
    )


def reported(run: Run, report: RunReported) -> Run:
    """Take in what a node says; the end of a run is decided by its ranks' exits alone."""
    running = report.state is RunState.RUNNING and run.state is RunState.STARTING
    detail = {key: value for key, value in (report.detail or {}).items() if key not in _OURS}
    return replace(
        run,
        state=RunState.RUNNING if running else run.state,
        progress=report.progress or run.progress,
        metrics={**run.metrics, **(report.metrics or {})},
        detail={**run.detail, **detail},
    )


def exited(run: Run, exit: RankExit, *, final: bool = False) -> Run:
    """A rank has ended; the first that fails before anybody stopped the run fails this attempt."""
    run = replace(run, exits=(*run.exits, exit))
    done = run.state is RunState.STOPPING or (run.state is RunState.RESTARTING and not final)
    if exit.code == 0 or done:
        return run
    reason = exit.reason or _sentence(exit)
    if run.attempt < run.max_restarts and not final:
        failure = {"rank": exit.rank, "reason": reason, "time": exit.time}
        failures: list[Any] = [*run.detail.get(FAILURES, ()), failure][-MOST_FAILURES:]
        detail = {**run.detail, FAILURES: failures}
        return replace(run, state=RunState.RESTARTING, reason=reason, detail=detail)
    detail = {**run.detail, FAILED_RANK: exit.rank}
    return replace(run, state=RunState.STOPPING, reason=reason, detail=detail)


def again(run: Run) -> Run:
    """The next attempt of a run of which a rank has failed."""
    return replace(run, state=RunState.STARTING, attempt=run.attempt + 1, exits=(), reason="")


def told_to_stop(run: Run, reason: str, lost_node: str = "") -> Run:
    """The run's end was asked for, or its lease ends; a failure before that stays its reason."""
    if run.state is RunState.STOPPING:
        return run
    detail = {**run.detail, FAILED_NODE: lost_node} if lost_node else run.detail
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
        state = RunState.SUCCEEDED
    return replace(run, state=state, ended=now)


def last_failure(run: Run) -> str:
    """Why the attempt before this one has failed, a sentence."""
    failures = run.detail.get(FAILURES, ())
    return str(failures[-1]["reason"]) if failures else ""


def live(run: Run) -> bool:
    """Whether the run has not ended."""
    return run.state in LIVE


def _sentence(exit: RankExit) -> str:
    if exit.code < 0:
        return f"rank {exit.rank} was killed by signal {-exit.code}"
    return f"rank {exit.rank} exited with code {exit.code}"
