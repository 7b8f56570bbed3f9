"""Augmentation while training: one object for torch, tf.data and Keras.

A leaf module: it imports numpy and OpenCV; the frameworks where their method is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from . import feeding, media
from .mix import as_weights, mix
from .pipeline import Image, Pipeline, check_images
from .policy import Policy
from .targets import Labeled, apply_labeled

_WORD = 2**63


@overload
def augment(
    policy: str | Policy, seed: int = 0, classes: int | None = None, of: Literal["image"] = "image"
) -> Augment: ...


@overload
def augment(
    policy: str | Policy, seed: int = 0, classes: int | None = None, *, of: Literal["sound", "text"]
) -> AugmentRows: ...


def augment(
    policy: str | Policy, seed: int = 0, classes: int | None = None, of: str = "image"
) -> Augment | AugmentRows:
    """A policy as a transform for training.

    >>> transform = aios_jupyter.augment("rotate(15), hflip, mixup(0.2)", classes=10)
    >>> torch.utils.data.DataLoader(transform.dataset(pairs), batch_size=64, num_workers=2)
    >>> tf_dataset.batch(64).apply(transform.tf)
    >>> model.fit(transform.keras(x, y, batch_size=64))
    >>> louder = aios_jupyter.augment("speed(0.9, 1.1), noise(0.01)", of="sound")
    >>> aios_jupyter.loader("words", batch_size=64, transform=louder)

    Parameters
    ----------
    policy
        As for `%aios augment`, and `mixup` and `cutmix` besides.
    seed
        The same seed gives the same images in the same order of batches.
    classes
        How many classes there are, where labels are numbers of classes and images are mixed.
    of
        What is augmented: `image`, `sound` or `text`.

    Raises
    ------
    UsageError
        The policy does not parse.
    """
    if of == "image":
        return Augment(policy, seed, classes)
    return AugmentRows(policy, seed, of)


class _Stream:
    """Which numbers the next call draws."""

    def __init__(self) -> None:
        self._stream = 0
        self._calls = 0

    def _next(self, count: int = 1) -> tuple[int, int]:
        """Index and copy for the next call: a stream of its own in each worker process."""
        stream = _worker_stream()
        if stream != self._stream:
            self._stream, self._calls = stream, 0
        first = self._calls
        self._calls += count
        return first, 1 + stream

    def _drawn(
        self, count: int, indices: Sequence[int] | NDArray[Any] | None, epoch: int | None
    ) -> tuple[NDArray[Any], int]:
        """Indices and copy: as they are given, or the next ones."""
        if indices is not None:
            return np.asarray(indices), 1 + (epoch or 0)
        first, copy = self._next(count)
        return np.arange(first, first + count), copy


class AugmentRows(_Stream):
    """A policy on sounds or texts as a transform; `augment` makes it.

    Calling it with one augments that one; each call draws anew.
    """

    def __init__(self, policy: str | Policy, seed: int = 0, of: str = "sound") -> None:
        super().__init__()
        self.pipeline: Any = media.pipeline(policy, seed, of)

    def __repr__(self) -> str:
        return f"augment({str(self.pipeline.policy)!r}, seed={self.pipeline.seed})"

    def __call__(self, one: Any) -> Any:
        """Augment one sound `(frames)` or `(frames, channels)`, or one text."""
        index, copy = self._next()
        return self.pipeline.apply([one], index, copy)[0]

    def batch(
        self,
        rows: Any,
        labels: Any = None,
        *,
        indices: Sequence[int] | NDArray[Any] | None = None,
        epoch: int | None = None,
    ) -> tuple[Any, Any]:
        """Augment a batch; `Augment.batch` has the parameters. Labels stay as they are."""
        indices, copy = self._drawn(len(rows), indices, epoch)
        return self.pipeline.apply(rows, copy=copy, indices=indices), labels


class Augment(_Stream):
    """A policy as a transform; `augment` makes it.

    Calling it with one image augments that one, as `transform=` of a torch dataset wants it: each
    call draws anew, and each worker process of a `DataLoader` draws its own.
    """

    def __init__(self, policy: str | Policy, seed: int = 0, classes: int | None = None) -> None:
        super().__init__()
        self.pipeline = Pipeline(policy, seed)
        self.seed = seed
        self.classes = classes

    def __repr__(self) -> str:
        return f"augment({str(self.pipeline.policy)!r}, seed={self.seed})"

    def __call__(self, image: Any) -> Any:
        """Augment one image; the result is of the same kind.

        Parameters
        ----------
        image
            uint8: an array `(h, w)` or `(h, w, 1 or 3)`, a tensor of torch `(1 or 3, h, w)`, or an
            image of PIL, gray or RGB.
        """
        self._refuse_mixing()
        array, back = feeding.to_array(image)
        index, copy = self._next()
        return back(self.pipeline.apply(array[None], index, copy)[0])

    def labeled(
        self,
        image: NDArray[Any],
        *,
        boxes: ArrayLike | None = None,
        masks: ArrayLike | None = None,
        points: ArrayLike | None = None,
        least_visible: float = 0.1,
    ) -> Labeled:
        """Augment one image with its boxes, masks and key points.

        `data.targets.apply_labeled` has the parameters and errors.
        """
        self._refuse_mixing()
        index, copy = self._next()
        return apply_labeled(
            self.pipeline,
            np.asarray(image),
            index,
            copy,
            boxes=boxes,
            masks=masks,
            points=points,
            least_visible=least_visible,
        )

    def batch(
        self,
        images: NDArray[Any] | Sequence[NDArray[Any]],
        labels: ArrayLike | None = None,
        *,
        indices: Sequence[int] | NDArray[Any] | None = None,
        epoch: int | None = None,
    ) -> tuple[Image, NDArray[Any] | None]:
        """Augment a batch `(n, h, w)` or `(n, h, w, channels)` of uint8 images.

        Parameters
        ----------
        images
            Also a list of images of several sizes, where the policy has `resize`.
        labels
            One for each image. Where the policy mixes images they become weights `(n, classes)`.
        indices, epoch
            Which images these are, and which time they are seen: the same give the same result. By
            default each call draws anew.
        """
        if not isinstance(images, list):
            images = np.asarray(images)
            check_images(images)
        labels = None if labels is None else np.asarray(labels)
        if labels is not None and len(labels) != len(images):
            raise UsageError(
                f"There are {len(images)} images but {len(labels)} labels; each needs one."
            )
        indices, copy = self._drawn(len(images), indices, epoch)
        images = (
            self._one_size(images, indices, copy)
            if isinstance(images, list)
            else self.pipeline.apply(images, copy=copy, indices=indices)
        )
        if not self.pipeline.policy.mixes:
            return images, labels
        if labels is None:
            raise UsageError("mixup and cutmix mix labels, too; give those of the batch.")
        words = indices.astype(np.uint64).tolist()
        random = np.random.default_rng([self.seed, 2, copy, *words[:1], len(words)])
        return mix(self.pipeline.policy, random, images, as_weights(labels, self.classes))

    def _one_size(self, images: list[Image], indices: NDArray[Any], copy: int) -> Image:
        found = [
            self.pipeline.apply(image[None], copy=copy, indices=indices[k : k + 1])[0]
            for k, image in enumerate(images)
        ]
        shapes = {image.shape for image in found}
        if len(shapes) > 1:
            raise UsageError(
                f"The images of a batch differ in shape ({' and '.join(map(str, list(shapes)[:2]))}); "
                "resize(…) in the policy gives them one size, but gray and color do not mix."
            )
        return np.stack(found)

    def dataset(self, base: Any) -> feeding.TorchDataset:
        """A dataset for torch's `DataLoader` from one of pairs (image, label, …), or of images.

        What an image becomes depends on seed, index and epoch alone, whatever the number of
        workers. Each pass is another epoch; `set_epoch` says which, for one that goes on.
        """
        return feeding.TorchDataset(self, base)

    def keras(self, x: NDArray[Any], y: ArrayLike, batch_size: int = 32, **options: Any) -> Any:
        """A `keras.utils.PyDataset` for `fit` with any backend, shuffled anew each epoch.

        Images come as float32 from 0 to 1 with a channel axis. `options` are those of `PyDataset`,
        such as `workers`.
        """
        return feeding.keras_dataset(self, np.asarray(x), np.asarray(y), batch_size, options)

    def tf(self, dataset: Any) -> Any:
        """For `tf.data`: `dataset.batch(64).apply(transform.tf)`.

        Elements are batches (images, labels), or images, of uint8. Each epoch draws anew.
        """
        return feeding.tf_dataset(self, dataset)

    def on_device(self, images: Any, *, indices: Any = None, epoch: int | None = None) -> Any:
        """Augment a batch where it is: torch's tensors `(n, 1 or 3, h, w)`, uint8, on any device.

        The same as `batch` up to rounding; only the grain of `noise` is another. Images are not
        mixed.
        """
        from .ondevice import apply

        self._refuse_mixing()
        indices, copy = self._drawn(len(images), indices, epoch)
        return apply(self.pipeline, images, indices, copy)

    def _refuse_mixing(self) -> None:
        if self.pipeline.policy.mixes:
            raise UsageError(
                "mixup and cutmix need a batch with its labels; use dataset(…), keras(…), tf or "
                "batch(images, labels)."
            )


def _worker_stream() -> int:
    """A number for the worker process of torch's `DataLoader` this is; another in each epoch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return 0
    worker = torch.utils.data.get_worker_info()
    return 0 if worker is None else int(worker.seed) % _WORD
