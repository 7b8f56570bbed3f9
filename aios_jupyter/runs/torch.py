"""What a rank does for torch, once the user's code has imported it. Imports torch."""

from __future__ import annotations

import functools
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from . import events, losses

if TYPE_CHECKING:
    from .compress import Compressor
    from .profile import Profiler
    from .rank import Orders

REPORT_INTERVAL = 0.2
# For gloo's threads to end what they are at.
LAST_WORK = 0.05

_kept: list[Any] = []
_steps: StepCounter | None = None
_profiler: Profiler | None = None
_compressor: Compressor | None = None


def attach(orders: Orders) -> None:
    """Serve the ranks' store in rank 0, on the port that was bound before any rank started.

    Also keeps to the lease's share of the GPU's memory, where it has no more than that, compresses
    gradients when it is told to, and counts optimizer steps, where there is an agent to tell.
    """
    global _steps, _profiler, _compressor  # noqa: PLW0603  # one process trains at a time
    if orders.listen_fd >= 0 and dist.is_available():
        meet = orders.rendezvous
        store = dist.TCPStore(
            meet.address,
            meet.port,
            orders.spec.world_size,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=orders.listen_fd,
        )
        # The server ends with this object.
        _kept.append(store)
    if orders.rank.share:
        _keep_to(orders.rank.share)
    if dist.is_available():
        _end_groups_gently()
    if orders.spec.compress and dist.is_available():
        from .compress import Compressor

        _compressor = Compressor(orders.spec.compress)
        _compressor.install()
    channel = events.channel()
    if channel is not None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        _steps = StepCounter(channel, seen=losses.watch())
        if _compressor is not None:
            _steps.more = _compressor.metrics
        if orders.spec.profile == "all" or (orders.spec.profile and orders.rank.rank == 0):
            from .profile import Profiler

            _profiler = Profiler(orders.rank.rank, Path(orders.directory))
            _steps.after = _profiler.step
        register_optimizer_step_post_hook(_steps)


def _keep_to(share: int) -> None:
    """Let torch take no more than so many bytes of the rank's GPU, once CUDA is initialized.

    Not before: code that forks must not have initialized it, and many a rank never does.
    """
    device = torch.device(os.environ.get("AIOS_DEVICE", "cpu"))
    if device.type != "cuda":
        return

    def limit() -> None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share / total), device)

    torch.cuda._lazy_call(limit)  # what torch's own deferred settings use


def finish() -> None:
    """Report the last steps."""
    if _steps is not None:
        _steps.report()
    if _profiler is not None:
        _profiler.finish()
    if _compressor is not None and os.environ.get("RANK") == "0":
        _compressor.tell()
    if dist.is_available() and dist.is_initialized():
        _settle()


def _end_groups_gently() -> None:
    """Keep the end of a process group from hanging.

    Gloo's threads need the interpreter to let go of a collective that a backward pass started. Its
    destructor waits for them and keeps the interpreter meanwhile, which is for ever when code ends
    right after its last step (seen with torch 2.13). So they are given time before.
    """
    destroy = dist.destroy_process_group

    @functools.wraps(destroy)
    def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
        _settle()
        return destroy(*args, **kwargs)

    dist.destroy_process_group = destroy_process_group
    dist.distributed_c10d.destroy_process_group = destroy_process_group


def _settle() -> None:
    # Sleeping leaves the interpreter to other threads.
    time.sleep(LAST_WORK)


class StepCounter:
    """Counts the steps of an optimizer and reports their rate, at most 5 times a second.

    With several optimizers at once (a GAN's two) the first to step is counted; another takes over
    when it is gone or has rested for `REST` seconds.

    Attributes
    ----------
    after
        Called after each step that is counted.
    more
        Gives metrics to report along with the rate.
    """

    REST = 5.0

    def __init__(
        self,
        channel: events.Channel,
        clock: Callable[[], float] = time.monotonic,
        seen: losses.Seen | None = None,
    ) -> None:
        self._channel = channel
        self._seen = seen
        self._clock = clock
        self._counted: weakref.ref[Any] | None = None
        self._steps = 0
        self._reported = 0
        self._last_step = 0.0
        self._last_report: float | None = None
        self.after: Callable[[], None] | None = None
        self.more: Callable[[], dict[str, float]] = dict

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """After each step of any optimizer."""
        now = self._clock()
        if self._counted is None or self._counted() is not optimizer:
            rested = now - self._last_step > self.REST
            if self._counted is not None and self._counted() is not None and not rested:
                return
            self._counted = weakref.ref(optimizer)
        self._steps += 1
        self._channel.steps = self._steps
        self._last_step = now
        if self.after is not None:
            self.after()
        if self._last_report is None or now - self._last_report >= REPORT_INTERVAL:
            self._report(now)

    def report(self) -> None:
        """Report what has not been reported."""
        if self._steps > self._reported:
            self._report(self._last_step)

    def _report(self, now: float) -> None:
        if self._last_report is not None and now > self._last_report:
            took = now - self._last_report
            rates = {"steps_per_second": (self._steps - self._reported) / took, **self.more()}
            if self._seen is not None:
                rates |= self._seen_in(took)
            self._channel.metrics(rates, self._steps)
        if self._channel.counts_steps:
            self._channel.progress(self._steps, unit="step")
        self._reported, self._last_report = self._steps, now

    def _seen_in(self, seconds: float) -> dict[str, float]:
        """The loss, unless the code tells it, and samples a second of all ranks."""
        assert self._seen is not None
        loss, samples = self._seen.take()
        found = {} if loss is None or self._channel.own_loss else {"loss": loss}
        if samples:
            found["samples_per_second"] = samples * int(os.environ.get("WORLD_SIZE", "1")) / seconds
        return found
