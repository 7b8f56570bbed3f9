"""What a rank does for Keras (3, and 2 as `tf_keras`): `fit` reports, and all ranks fit together.

Keras 3 cannot `fit` under TensorFlow's multi-worker strategy (keras#20585), so that is done here.
Each rank takes its part of every batch, the gradients of all ranks go through one collective before
the optimizer applies them, and what callbacks see and decide at the end of an epoch is the same on
all. `batch_size` therefore means what it means in a single process. `tf_keras` fits by the strategy.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import events, horovod

if TYPE_CHECKING:
    from .tensorflow import Cluster

REPORT_INTERVAL = 0.2
# Callbacks that write where rank 0 writes.
_WRITERS = ("ModelCheckpoint", "CSVLogger", "TensorBoard", "RemoteMonitor", "SwapEMAWeights")


def attach(keras: Any, rank: int, cluster: Callable[[], Cluster | None]) -> None:
    """Wrap `fit` of Keras 3's models. `cluster` gives the ranks, None where there is only one."""
    # While TensorFlow is imported it imports Keras, which may not know its backend yet.
    from keras.src.models.model import Model

    fit = Model.fit
    signature = inspect.signature(fit)

    @functools.wraps(fit)
    def together(model: Any, *args: Any, **kwargs: Any) -> Any:
        bound = _reporting(keras, signature, rank, model, args, kwargs)
        ranks = cluster()
        if ranks is None or keras.backend.backend() != "tensorflow" or _has_strategy(model):
            return fit(*bound.args, **bound.kwargs)
        with _together(keras, model, bound.arguments, ranks):
            return fit(*bound.args, **bound.kwargs)

    Model.fit = together


def attach_legacy(tf_keras: Any, rank: int) -> None:
    """Wrap `fit` of `tf_keras`'s models, which only reports."""
    fit = tf_keras.Model.fit
    signature = inspect.signature(fit)

    @functools.wraps(fit)
    def reported(model: Any, *args: Any, **kwargs: Any) -> Any:
        bound = _reporting(tf_keras, signature, rank, model, args, kwargs)
        return fit(*bound.args, **bound.kwargs)

    tf_keras.Model.fit = reported


def _has_strategy(model: Any) -> bool:
    import tensorflow as tf

    # The model belongs to a strategy that the user's code has made.
    return bool(tf.distribute.has_strategy()) or model.distribute_strategy.num_replicas_in_sync > 1


def _reporting(
    keras: Any,
    signature: inspect.Signature,
    rank: int,
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> inspect.BoundArguments:
    """The arguments of `fit`, so that it reports its progress and draws no bars."""
    bound = signature.bind(model, *args, **kwargs)
    bound.apply_defaults()
    told = bound.arguments
    if rank > 0:
        told["verbose"] = 0
    elif told["verbose"] in ("auto", 1):
        # The run's card has the bar; a line for each epoch stays in the log.
        told["verbose"] = 2
    channel = events.channel()
    if channel is not None:
        # Under Horovod each rank fits batches of its own.
        ranks = horovod.joined().size() if horovod.joined() else 1
        batch, rows = _rows_of(told)
        report = _report_class(keras)(channel, told["epochs"], batch * ranks, rows * ranks)
        if isinstance(told["callbacks"], keras.callbacks.CallbackList):
            told["callbacks"].append(report)
        else:
            told["callbacks"] = [*_listed(told["callbacks"]), report]
    return bound


def _rows_of(told: dict[str, Any]) -> tuple[int, int]:
    """Rows of a batch of all ranks together, and of an epoch; 0 where that is not known."""
    data = told["x"]
    if hasattr(data, "element_spec"):
        return _rows_of_batches(data), 0
    if hasattr(data, "batch_size"):  # Keras's own datasets, and torch's loaders
        size = data.batch_size
        return (size, 0) if isinstance(size, int) else (0, 0)
    while isinstance(data, dict | list | tuple) and data:
        data = next(iter(data.values() if isinstance(data, dict) else data))
    shape = getattr(data, "shape", ())
    if not shape or not isinstance(shape[0], int):
        return 0, 0
    rows = int(shape[0] * (1 - (told["validation_split"] or 0)))
    return told["batch_size"] or 32, 0 if told["steps_per_epoch"] else rows


def _rows_of_batches(dataset: Any) -> int:
    """What `batch` of tf.data was called with last; 0 where it was not."""
    import tensorflow as tf

    policy = dataset.options().experimental_distribute.auto_shard_policy
    own = policy == tf.data.experimental.AutoShardPolicy.OFF
    while dataset is not None:
        size = getattr(dataset, "_batch_size", None)
        if size is not None:
            return int(size) * (int(os.environ.get("WORLD_SIZE", "1")) if own else 1)
        dataset = getattr(dataset, "_input_dataset", None)
    return 0


def _listed(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


@functools.cache
def _report_class(keras: Any) -> Any:
    """The class of the callback that reports: Keras's own base is needed."""

    class Report(keras.callbacks.Callback):
        """Tells the agent how far `fit` is, five times a second at most."""

        async_safe = True
        # tf_keras: gives tensors, which are fetched when they are reported.
        _supports_tf_logs = True

        def __init__(self, channel: events.Channel, epochs: int, batch: int, rows: int) -> None:
            super().__init__()
            self._channel = channel
            self._epochs = epochs
            self._batch, self._rows = batch, rows
            self._epoch = self._done = self._steps = self._reported = self._samples = 0
            self._last = time.monotonic()

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self._epoch = epoch
            if not self._steps:
                # The first step's tracing is not a step's time.
                self._last = time.monotonic()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            steps = batch + 1 - self._done
            self._steps += steps
            samples = self._batch * steps
            if self._rows:
                # The last batch of an epoch may have fewer.
                samples = min(samples, max(0, self._rows - self._batch * self._done))
            self._samples += samples
            self._done = batch + 1
            if time.monotonic() - self._last >= REPORT_INTERVAL:
                self._report(self._epoch, logs)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self._done = 0
            self._report(epoch + 1, logs)

        def _report(self, epoch: int, logs: Any) -> None:
            now = time.monotonic()
            values = {
                name: float(value) for name, value in (logs or {}).items() if _is_number(value)
            }
            if self._steps > self._reported and now > self._last:
                values["steps_per_second"] = (self._steps - self._reported) / (now - self._last)
                if self._samples:
                    values["samples_per_second"] = self._samples / (now - self._last)
            self._reported, self._last, self._samples = self._steps, now, 0
            self._channel.metrics(values, self._steps)
            if self._channel.counts_steps:
                steps = (self.params or {}).get("steps") or 0
                if steps:
                    done, total, unit = epoch * steps + self._done, self._epochs * steps, "step"
                else:
                    done, total, unit = epoch, self._epochs, "epoch"
                label = f"epoch {min(epoch + 1, self._epochs)} of {self._epochs}"
                self._channel.progress(done, total, unit, label)

    return Report


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()


# --- Keras 3: all ranks fit together


@contextlib.contextmanager
def _together(keras: Any, model: Any, told: dict[str, Any], cluster: Cluster) -> Iterator[None]:
    """While this lasts, `fit` takes this rank's part of each batch and applies everybody's gradients."""
    from keras.src.backend.tensorflow import trainer

    if not model.compiled:
        # Keras has its own sentence for it.
        yield
        return
    if isinstance(told["callbacks"], keras.callbacks.CallbackList):
        raise UsageError(
            "With several ranks, give fit(callbacks=…) a list of callbacks instead of a CallbackList."
        )
    told["callbacks"] = _arranged(keras, told["callbacks"], cluster)
    # XLA has no collectives over processes, and a loop cannot give each of its steps a key of its own.
    if model.jit_compile:
        model.jit_compile = False
    model.steps_per_execution = 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(model, "train_step", _counting(model.train_step)))
        for optimizer in _optimizers(keras, model):
            averaging = _averaging(model, optimizer, cluster)
            stack.enter_context(_replaced(optimizer, "apply", averaging))
        iterators = trainer.TFEpochIterator
        stack.callback(setattr, trainer, "TFEpochIterator", iterators)
        trainer.TFEpochIterator = _first_shared(trainer, iterators, model, cluster)
        yield


def _optimizers(keras: Any, model: Any) -> list[Any]:
    """A model's own, and those that a `train_step` of the user's has (a GAN's two)."""
    return [v for v in vars(model).values() if isinstance(v, keras.optimizers.Optimizer)]


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give one object another method for a while, past Keras's tracking of attributes."""
    before = vars(owner).get(name)
    vars(owner)[name] = value
    try:
        yield
    finally:
        if before is None:
            vars(owner).pop(name, None)
        else:
            vars(owner)[name] = before


def _first_shared(trainer: Any, iterators: Any, model: Any, cluster: Cluster) -> Callable[..., Any]:
    """What makes `fit`'s iterators: the first is over the training data, the others validate."""

    def make(*args: Any, **kwargs: Any) -> Any:
        trainer.TFEpochIterator = iterators
        made = iterators(*args, **kwargs)
        dataset = made._distributed_dataset
        made._distributed_dataset = shared(dataset, cluster.rank, cluster.world_size)
        if not all(layer.built for layer in model._flatten_layers(include_self=False)):
            # All ranks have to begin with the same weights, so that there have to be some; Keras
            # does this for its own strategies.
            model._symbolic_build(iterator=made)
        return made

    return make


def shared(dataset: Any, rank: int, world_size: int) -> Any:
    """A dataset of batches with this rank's rows of each batch.

    A dataset whose `auto_shard_policy` is OFF is the rank's own already. A batch with fewer rows than
    ranks has each row at least once.
    """
    import tensorflow as tf

    policy = dataset.options().experimental_distribute.auto_shard_policy
    if policy == tf.data.experimental.AutoShardPolicy.OFF:
        return dataset

    def part(*batch: Any) -> Any:
        rows = _rows(batch)
        few = rows < world_size
        start = tf.where(few, rank % tf.maximum(rows, 1), rows * rank // world_size)
        stop = tf.where(few, start + 1, rows * (rank + 1) // world_size)
        taken = tf.nest.map_structure(lambda leaf: _slice(leaf, start, stop), batch)
        return taken if len(batch) > 1 else taken[0]

    return dataset.map(part, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


def _slice(leaf: Any, start: Any, stop: Any) -> Any:
    import tensorflow as tf

    if isinstance(leaf, tf.SparseTensor):
        begin = tf.concat([[tf.cast(start, tf.int64)], tf.zeros_like(leaf.dense_shape[1:])], 0)
        size = tf.concat([[tf.cast(stop - start, tf.int64)], leaf.dense_shape[1:]], 0)
        return tf.sparse.slice(leaf, begin, size)
    return leaf[start:stop]


def _rows(data: Any) -> Any:
    import tensorflow as tf

    leaf = next(leaf for leaf in tf.nest.flatten(data) if leaf is not None)
    if isinstance(leaf, tf.SparseTensor):
        return tf.cast(leaf.dense_shape[0], tf.int32)
    return leaf.nrows(tf.int32) if isinstance(leaf, tf.RaggedTensor) else tf.shape(leaf)[0]


# How many rows the batch has whose step is being traced: functions of an earlier `fit` that Keras
# traces again look here too.
_rows_now: list[Any] = []


def _counting(train_step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(train_step)
    def counted(data: Any) -> Any:
        _rows_now[:] = [_rows(data)]
        try:
            return train_step(data)
        finally:
            _rows_now.clear()

    return counted


def _averaging(model: Any, optimizer: Any, cluster: Cluster) -> Callable[..., Any]:
    """`optimizer.apply` with the means over all rows of all ranks, in one collective.

    Batch normalization's running means go along: each rank has seen other rows.
    """
    import tensorflow as tf

    apply = optimizer.apply

    @functools.wraps(apply)
    def averaged(grads: Any, trainable_variables: Any = None) -> Any:
        given = [index for index, grad in enumerate(grads) if grad is not None]
        running = [v for v in model.non_trainable_weights if tf.as_dtype(v.dtype).is_floating]
        values = [tf.convert_to_tensor(grads[index]) for index in given]
        values += [tf.convert_to_tensor(variable) for variable in running]
        dtype = tf.float64 if any(v.dtype == tf.float64 for v in values) else tf.float32
        weight = tf.cast(_rows_now[0], dtype)
        flat = [tf.cast(tf.reshape(value, [-1]), dtype) * weight for value in values]
        summed = cluster.total(tf.concat([*flat, weight[tf.newaxis]], 0))
        sizes = [value.shape.num_elements() for value in values]
        parts = tf.split(summed[:-1] / summed[-1], sizes)
        means = [
            tf.cast(tf.reshape(part, value.shape), value.dtype)
            for part, value in zip(parts, values, strict=True)
        ]
        for variable, value in zip(running, means[len(given) :], strict=True):
            variable.assign(value)
        result = list(grads)
        for index, value in zip(given, means, strict=False):
            result[index] = value
        return apply(result, trainable_variables)

    return averaged


def _arranged(keras: Any, callbacks: Any, cluster: Cluster) -> list[Any]:
    """The user's callbacks between ours, and on the other ranks without those that write files."""
    users = _listed(callbacks)
    if cluster.rank > 0:
        writers = tuple(
            kind for name in _WRITERS if (kind := getattr(keras.callbacks, name, None)) is not None
        )
        users = [callback for callback in users if not isinstance(callback, writers)]
        for callback in users:
            if isinstance(callback, keras.callbacks.BackupAndRestore):
                # It still reads what rank 0 has kept.
                vars(callback)["_save_model"] = lambda: None
                vars(callback)["on_train_end"] = lambda logs=None: None
    first, last = _agreement(keras)
    return [first(cluster), *users, last(cluster)]


@functools.cache
def _agreement(keras: Any) -> tuple[Any, Any]:
    """Two callbacks, for before and after the user's."""

    class SameLogs(keras.callbacks.Callback):
        """At the end of an epoch all ranks see the same numbers, and so decide the same."""

        async_safe = True

        def __init__(self, cluster: Cluster) -> None:
            super().__init__()
            self._cluster = cluster

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            names = sorted(name for name, value in (logs or {}).items() if _is_number(value))
            if names:
                means = self._cluster.mean([float(logs[name]) for name in names])
                logs.update(zip(names, means, strict=True))

    class SameStart(keras.callbacks.Callback):
        """All ranks begin with rank 0's weights, and end together."""

        async_safe = True

        def __init__(self, cluster: Cluster) -> None:
            super().__init__()
            self._cluster = cluster

        def on_train_begin(self, logs: Any = None) -> None:
            optimizers = _optimizers(keras, self.model)
            variables = [variable for one in optimizers for variable in one.variables]
            self._cluster.share([*self.model.weights, *variables])

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if self._cluster.any(bool(self.model.stop_training)):
                self.model.stop_training = True

    return SameLogs, SameStart
