"""`--compress`: torch's own communication hooks on every DDP model of the code. Imports torch.

What goes through them is counted: the bytes of the gradients in DDP's buckets, and of what is given to
the all-reduce in their place. How often that crosses a wire depends on the backend's algorithm; each of
two ranks sends as many bytes as it gives.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

_CASTS = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
_CAST_BYTES = 2
# PowerSGD needs gradients that have settled; until then it sends them as they are.
POWER_AFTER = 100


class Compressor:
    """Puts the hook on the models, and counts.

    Attributes
    ----------
    whole, sent
        Bytes of gradients, and of what was sent of them.
    steps
        Backward passes whose gradients were exchanged.
    last
        Bytes that the last one sent.
    """

    def __init__(self, how: str) -> None:
        self._how = how
        self.whole = self.sent = self.steps = self.last = 0
        self._begun = 0
        self._reported = (0, 0, 0)

    def install(self) -> None:
        """Have each `DistributedDataParallel` get the hook, unless it has one by its first step."""
        initialize = DistributedDataParallel.__init__

        @functools.wraps(initialize)
        def initialized(model: Any, *args: Any, **kwargs: Any) -> None:
            initialize(model, *args, **kwargs)

            def before_first(module: Any, _inputs: Any) -> None:
                handle.remove()
                if not module._comm_hooks:
                    self._put_on(module)

            handle = model.register_forward_pre_hook(before_first)

        DistributedDataParallel.__init__ = initialized

    def _put_on(self, model: Any) -> None:
        group = model.process_group
        if self._how == "powersgd":
            state = powerSGD_hook.PowerSGDState(group, start_powerSGD_iter=POWER_AFTER)
            theirs = powerSGD_hook.powerSGD_hook
        else:
            state, theirs = group, _CASTS[self._how]

        @functools.wraps(theirs)
        def counted(state: Any, bucket: Any) -> Any:
            count, size = bucket.buffer().numel(), bucket.buffer().element_size()
            before = _totals(state)
            future = theirs(state, bucket)
            taken, left = (now - then for now, then in zip(_totals(state), before, strict=True))
            self.whole += count * size
            if self._how == "powersgd":
                self.sent += (left if taken else count) * size
            else:
                self.sent += count * _CAST_BYTES
            if bucket.is_last():
                self.steps += 1
                self.last, self._begun = self.sent - self._begun, self.sent
            return future

        # By its own name torch takes bf16's for one that only NCCL has; Gloo has it too.
        counted.__name__ = f"aios_{self._how}"
        model.register_comm_hook(state, counted)

    def metrics(self) -> dict[str, float]:
        """Megabytes a step since this was asked last; nothing without a step."""
        now = (self.whole, self.sent, self.steps)
        whole, sent, steps = (a - b for a, b in zip(now, self._reported, strict=True))
        if not steps:
            return {}
        self._reported = now
        return {"gradient_mb": whole / steps / 1e6, "sent_mb": sent / steps / 1e6}

    def tell(self) -> None:
        """Say in the log what it came to."""
        if self.steps:
            whole, sent = (total / self.steps / 1e6 for total in (self.whole, self.sent))
            text = (
                f"{whole:.3g} MB of gradients a step were sent as {sent:.3g} MB, in the last one as "
                f"{self.last / 1e6:.3g} MB ({self.steps} steps, counted in DDP's buckets)"
            )
        else:
            text = "nothing was compressed, as no DistributedDataParallel has made a step"
        print(f"--- compress {self._how}: {text} ---", file=sys.stderr)  # noqa: T201  # the rank's log


def _totals(state: Any) -> tuple[int, int]:
    """How many numbers PowerSGD has taken so far, and how many it has made of them."""
    names = ("total_numel_before_compression", "total_numel_after_compression")
    return tuple(getattr(state, name, 0) for name in names)  # type: ignore[return-value]
