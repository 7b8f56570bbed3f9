"""Of several failures the one that made the others is found, and said in a sentence."""

from __future__ import annotations

import signal

import pytest

from aios_jupyter.node.verdict import Sign, first_cause, reason_of
from aios_jupyter.runs.events import ErrorRaised


def raised(rank: int, time: float, etype: str, message: str, *, ours: bool = False) -> Sign:
    error = ErrorRaised(time=time, etype=etype, message=message, ours=ours)
    return Sign(rank=rank, time=time, code=1, error=error)


GLOO = "[pair.cc:537] Read error [127.0.0.1]:25246: Connection reset by peer."


@pytest.mark.parametrize(
    ("signs", "cause"),
    [
        ([raised(0, 2.0, "ValueError", "a"), raised(1, 1.0, "KeyError", "b")], 1),
        # The agent hears of a death a little later than the peer does.
        ([raised(0, 1.0, "RuntimeError", GLOO), Sign(rank=1, time=1.02, code=3)], 1),
        ([raised(0, 1.0, "DistBackendError", "NCCL error"), Sign(rank=1, time=1.1, code=-9)], 1),
        # A script that catches everything and exits with 1 because of the other's exception.
        ([Sign(rank=0, time=1.05, code=1), raised(1, 1.0, "ValueError", "b")], 1),
        ([raised(0, 1.1, "RuntimeError", GLOO), raised(1, 1.0, "RuntimeError", GLOO)], 1),
    ],
)
def test_the_first_that_is_no_lost_connection_is_the_cause(signs: list[Sign], cause: int) -> None:
    assert first_cause(signs).rank == cause
    assert first_cause(signs[::-1]).rank == cause


def test_a_lost_connection_is_another_ranks_failure() -> None:
    cause = Sign(rank=1, time=1.0, code=-9)
    lost = raised(0, 1.0, "RuntimeError", GLOO)
    assert not lost.own(cause)
    assert raised(2, 1.0, "ValueError", "x").own(cause)
    assert lost.own(raised(3, 0.5, "RuntimeError", GLOO))


@pytest.mark.parametrize(
    ("sign", "sentence"),
    [
        (raised(1, 0, "ValueError", "bad\nmore"), "rank 1 raised ValueError: bad"),
        (raised(1, 0, "KeyboardInterrupt", ""), "rank 1 raised KeyboardInterrupt"),
        (raised(1, 0, "UsageError", "Do that.", ours=True), "Do that."),
        (Sign(rank=0, time=0, code=3), "rank 0 exited with code 3"),
        (Sign(rank=0, time=0, code=143), "rank 0 was ended by SIGTERM from outside"),
        (Sign(rank=2, time=0, code=-signal.SIGKILL), "rank 2 was killed by SIGKILL (out of memory?)"),
        (Sign(rank=2, time=0, code=-signal.SIGSEGV), "rank 2 was killed by SIGSEGV (a crash in native code)"),
        (Sign(rank=2, time=0, code=-signal.SIGUSR1), "rank 2 was killed by SIGUSR1"),
        (Sign(rank=2, time=0, code=-63), "rank 2 was killed by signal 63"),
    ],
)  # fmt: skip
def test_a_failure_is_one_sentence(sign: Sign, sentence: str) -> None:
    assert reason_of(sign) == sentence
