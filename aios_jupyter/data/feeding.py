"""How each framework takes augmented images. A leaf module, behind `loader`.

It imports numpy; torch, TensorFlow and Keras where their function is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from .feed import Loader
    from .loader import Augment

Array = NDArray[Any]


def to_array(image: Any) -> tuple[Array, Callable[[Array], Any]]:
    """An image as an array `(h, w)` or `(h, w, channels)`, and the way back."""
    if isinstance(image, np.ndarray):
        return image, lambda result: result
    if hasattr(image, "permute"):
        if image.ndim != 3:
            raise UsageError(
                f"A tensor of an image has the shape (1 or 3, height, width), not "
                f"{tuple(image.shape)}."
            )
        return image.permute(1, 2, 0).contiguous().numpy(), _to_tensor
    if hasattr(image, "convert"):
        mode = "L" if image.mode in {"1", "L"} else "RGB"
        kind = type(image) if hasattr(type(image), "fromarray") else None
        from PIL import Image

        return np.asarray(image.convert(mode)), (kind or Image).fromarray
    raise UsageError(
        f"An image must be an array, a tensor of torch or an image of PIL, not {type(image)}."
    )


def _to_tensor(result: Array) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(result, -1, 0)))


class TorchDataset:
    """A map-style dataset for `torch.utils.data.DataLoader`: `Augment.dataset` makes it."""

    def __init__(self, transform: Augment, base: Any) -> None:
        self.transform = transform
        self.base = base
        import torch

        # Shared, since each worker has a copy of this object: for one epoch, or from the first.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()
        self._seen = torch.zeros(len(base), dtype=torch.int32).share_memory_()

    def __len__(self) -> int:
        return len(self.base)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins: each gives other images, the same one the same.

        Without it an image is another each time that it is asked for.
        """
        self._epoch.fill_(epoch)

    def _epoch_of(self, indices: Sequence[int]) -> int:
        """The epoch as it was said, or one that none of these images has been given in."""
        if (said := int(self._epoch)) >= 0:
            return said
        picked = [int(index) for index in indices]
        epoch = int(self._seen[picked].max())
        self._seen[picked] = epoch + 1
        return epoch

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A batch; `DataLoader` asks for it by this name."""
        items = [self.base[index] for index in indices]
        pairs = [tuple(i) if isinstance(i, tuple | list) else (i,) for i in items]
        arrays = [to_array(pair[0]) for pair in pairs]
        labels: Any = [pair[1] for pair in pairs] if all(len(p) > 1 for p in pairs) else None
        images, labels = self._augmented([array for array, _ in arrays], labels, indices)
        found = []
        for k, (pair, (_, back)) in enumerate(zip(pairs, arrays, strict=True)):
            image = back(images[k])
            rest = (labels[k], *pair[2:]) if labels is not None else pair[1:]
            found.append((image, *rest) if isinstance(items[k], tuple | list) else image)
        return found

    def _augmented(
        self, arrays: Sequence[Array], labels: Any, indices: Sequence[int]
    ) -> tuple[Sequence[Array], Any]:
        transform, epoch = self.transform, self._epoch_of(indices)
        mixes = transform.pipeline.policy.mixes
        if len({array.shape for array in arrays}) == 1:
            given = np.asarray(labels) if mixes and labels is not None else None
            images, mixed = transform.batch(np.stack(arrays), given, indices=indices, epoch=epoch)
            return list(images), mixed if mixes else labels
        if mixes:
            raise UsageError(
                "The images of a batch differ in size, so that they cannot be mixed; bring them to "
                "one size before."
            )
        alone = [
            transform.batch(array[None], indices=[index], epoch=epoch)[0][0]
            for array, index in zip(arrays, indices, strict=True)
        ]
        return alone, labels


def keras_dataset(
    transform: Augment, x: Array, y: Array, batch_size: int, options: dict[str, Any]
) -> Any:
    """A `PyDataset` of augmented batches; the same for any number of workers."""
    try:
        from keras.utils import PyDataset
    except ImportError:
        raise MissingExtraError("Keras", "tensorflow") from None
    if len(x) != len(y) or len(x) == 0:
        raise UsageError(f"There are {len(x)} images but {len(y)} labels; each needs one.")

    class Augmented(PyDataset):
        def __init__(self) -> None:
            super().__init__(**options)
            self.epoch = -1
            self._begin()

        def _begin(self) -> None:
            self.epoch += 1
            random = np.random.default_rng([transform.seed, 3, self.epoch])
            self.order = random.permutation(len(x))

        def __len__(self) -> int:
            return math.ceil(len(x) / batch_size)

        def __getitem__(self, batch: int) -> tuple[Array, Array]:
            picked = self.order[batch * batch_size : (batch + 1) * batch_size]
            images, labels = transform.batch(x[picked], y[picked], indices=picked, epoch=self.epoch)
            if images.ndim == 3:
                images = images[..., None]
            scaled = np.multiply(images, np.float32(1 / 255), dtype=np.float32)
            return scaled, np.asarray(labels)

        def on_epoch_end(self) -> None:
            self._begin()

    return Augmented()


def tf_dataset(transform: Augment, dataset: Any) -> Any:
    """The batches of a `tf.data.Dataset`, augmented; each pass draws other numbers."""
    import tensorflow as tf

    mixes = transform.pipeline.policy.mixes
    # Numbers that `tf.data` draws come in the same order however many calls run at once.
    random = tf.data.Dataset.random(transform.seed, rerandomize_each_iteration=True)
    pairs = isinstance(dataset.element_spec, tuple)
    spec = dataset.element_spec[0] if pairs else dataset.element_spec
    shape = transform.pipeline.output_shape(spec.shape[1:]) if spec.shape.rank else None

    def work(images: Array, start: Array, *labels: Array) -> Any:
        count = len(images)
        indices = (int(start) << 20) + np.arange(count, dtype=np.int64)
        found, mixed = transform.batch(images, labels[0] if labels else None, indices=indices)
        return (found, mixed) if labels else found

    def one(batch: Any, start: Any) -> Any:
        images, *rest = batch if pairs else (batch,)
        if not mixes:
            found = tf.numpy_function(work, [images, start], tf.uint8, stateful=False)
            result = (found, *rest)
        else:
            kinds = [tf.uint8, tf.float32]
            result = tf.numpy_function(work, [images, start, *rest[:1]], kinds, stateful=False)
            result = (*result, *rest[1:])
            result[1].set_shape((None, *_classes(transform, rest)))
        if shape is not None:
            result[0].set_shape((images.shape[0], *shape))
        return result if pairs else result[0]

    return tf.data.Dataset.zip((dataset, random)).map(one, num_parallel_calls=tf.data.AUTOTUNE)


def tf_batches(loader: Loader, endless: bool) -> Any:
    """The batches of a loader as a `tf.data.Dataset`; each pass is the rest of an epoch, or all."""
    try:
        import tensorflow as tf
    except ImportError:
        raise MissingExtraError("TensorFlow", "tensorflow") from None
    first = tuple(value for value in loader.first() if value is not None)
    arrays = tuple(np.asarray(value) for value in first)
    kinds = [
        tf.string if isinstance(value, list) else tf.as_dtype(array.dtype)
        for value, array in zip(first, arrays, strict=True)
    ]
    spec = tuple(
        tf.TensorSpec(array.shape, kind) for array, kind in zip(arrays, kinds, strict=True)
    )
    alone = len(spec) == 1

    def batches() -> Iterator[Any]:
        while True:
            for x, y in loader.arrays():
                yield x if alone else (x, y)
            if not endless:
                return

    data = tf.data.Dataset.from_generator(batches, output_signature=spec[0] if alone else spec)
    options = tf.data.Options()
    # It is this rank's part already, and made ahead already: more of it would be counted as used.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.experimental_optimization.inject_prefetch = False
    return data.with_options(options)


def _classes(transform: Augment, rest: Sequence[Any]) -> tuple[Any, ...]:
    if not rest:
        raise UsageError("mixup and cutmix mix labels, too; give pairs of images and labels.")
    return tuple(rest[0].shape[1:]) or ((transform.classes,) if transform.classes else ())
