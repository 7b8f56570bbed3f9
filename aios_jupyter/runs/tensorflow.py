"""What a rank does for TensorFlow, once the user's code has imported it. Imports TensorFlow.

A strategy has to exist before TensorFlow's first operation, since its runtime cannot join a cluster
later; and where the user's code makes its own, there must be no other. So the strategy for plain
Keras code is made at the first operation, and only when the code has made none until then.
"""

from __future__ import annotations

import functools
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.distribute import cross_device_utils as utils
from tensorflow.python.distribute.collective_util import Options
from tensorflow.python.eager import context as eager

from ..errors import UsageError
from .spec import Entry

if TYPE_CHECKING:
    from .rank import Orders

# Far from the strategy's own, which count from 1.
_GROUP_KEY = 0x41494F53
_OWN_STRATEGY = re.compile(r"\w*Strategy\b|\bhorovod\b")


class Cluster:
    """The ranks as one TensorFlow cluster, for Keras code that knows nothing of them."""

    def __init__(self, rank: int, world_size: int, seed: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._seed = seed
        self._beginning = False
        self._strategy: Any = None
        self._launcher: Any = None

    @property
    def begun(self) -> bool:
        """Whether this process has joined."""
        return self._strategy is not None

    @property
    def strategy(self) -> Any:
        """The strategy of all ranks; joins when this process has not yet.

        Raises
        ------
        UsageError
            TensorFlow is in use already, without a cluster.
        """
        if self._strategy is None:
            if eager.context()._initialized:
                raise UsageError(
                    "Keras cannot be distributed any more, as TensorFlow was in use before its run "
                    "began; do not use TensorFlow while a module is imported from elsewhere."
                )
            self.begin()
        return self._strategy

    def begin(self) -> None:
        """Join the other ranks, unless the code has a strategy of its own."""
        taken = eager.context()._collective_leader is not None
        if self._beginning or taken:
            return
        self._beginning = True
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        # Else each rank shuffles in an order of its own, and rows are seen twice or not at all.
        tf.random.set_seed(self._seed)

    def become_default(self) -> None:
        """Have all that follows run under the strategy, as in its scope."""
        if not tf.distribute.has_strategy():
            tf.distribute.experimental_set_strategy(self.strategy)

    def total(self, value: Any) -> Any:
        """The sum of a tensor over all ranks; every rank calls it, also within a function."""
        if self._launcher is None:
            device = self.strategy.extended.worker_devices[0]
            keys = utils.CollectiveKeys(group_key_start=_GROUP_KEY)
            with tf.init_scope():
                self._launcher = utils.CollectiveReplicaLauncher(
                    keys.get_group_key([device]), self.world_size, keys, device, Options()
                )
        return self._launcher.all_reduce(value)

    def mean(self, numbers: Sequence[float]) -> list[float]:
        """The means of numbers over all ranks."""
        summed = self.total(tf.constant(list(numbers), tf.float64)).numpy()
        return [float(number) / self.world_size for number in summed]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self.mean([float(flag)])[0] > 0

    def first(self, number: int) -> int:
        """Rank 0's number."""
        own = float(number if self.rank == 0 else 0)
        return round(self.mean([own])[0] * self.world_size)

    def share(self, variables: Sequence[Any]) -> None:
        """Give all ranks the values that rank 0's variables have."""
        kinds: dict[Any, list[Any]] = {}
        for variable in variables:
            dtype = tf.as_dtype(variable.dtype)
            if dtype.is_floating or dtype.is_integer:
                # Both hold what they stand for exactly.
                small = dtype.is_floating and dtype.size <= 4
                kinds.setdefault(tf.float32 if small else tf.float64, []).append(variable)
        for dtype, group in kinds.items():
            values = [tf.cast(tf.reshape(tf.convert_to_tensor(v), [-1]), dtype) for v in group]
            own = tf.concat(values, 0)
            summed = self.total(own if self.rank == 0 else tf.zeros_like(own))
            parts = tf.split(summed, [int(value.shape[0]) for value in values])
            for variable, part in zip(group, parts, strict=True):
                variable.assign(tf.cast(tf.reshape(part, variable.shape), variable.dtype))


cluster: Cluster | None = None


def attach(orders: Orders) -> None:
    """Keep to this rank's device, and have plain Keras code join the other ranks."""
    global cluster  # noqa: PLW0603  # one process is one rank
    world = orders.spec.world_size
    _keep_to_own_device()
    if "TF_CONFIG" not in os.environ or world == 1 or not _is_plain(orders):
        return
    seed = zlib.crc32(orders.spec.id.encode()) & 0x7FFFFFFF
    cluster = Cluster(orders.rank.rank, world, seed)
    _begin_with_first_operation(cluster)


def finish() -> None:
    """Wait for the other ranks: the cluster ends with its first process."""
    if cluster is not None and cluster.begun:
        cluster.any(False)


def _is_plain(orders: Orders) -> bool:
    """Whether it is Keras code that leaves the distribution to us."""
    source = orders.spec.source
    if orders.spec.entry is Entry.SCRIPT:
        source = Path(source).read_text(encoding="utf-8", errors="replace")
    elif orders.spec.entry in (Entry.MODULE, Entry.FUNCTION):
        # What it does cannot be read here.
        return True
    return "keras" in source and not _OWN_STRATEGY.search(source)


def _keep_to_own_device() -> None:
    """TensorFlow takes the memory of every GPU that it sees."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if os.environ.get("CUDA_VISIBLE_DEVICES"):
        seen = tf.config.list_physical_devices("GPU")
        if local < len(seen):
            tf.config.set_visible_devices(seen[local], "GPU")


def _begin_with_first_operation(joining: Cluster) -> None:
    initialize = eager.Context.ensure_initialized

    @functools.wraps(initialize)
    def ensure_initialized(self: Any) -> None:
        if not self._initialized:
            joining.begin()
        initialize(self)

    eager.Context.ensure_initialized = ensure_initialized
