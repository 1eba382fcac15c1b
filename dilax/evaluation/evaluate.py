"""Accuracy of a network on a source, at full image resolution."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, UInt32
from tqdm import tqdm

from dilax.data import Chosen, DatasetSpec, in_order
from dilax.evaluation.boundary import BoundaryScores
from dilax.evaluation.confusion import Scores, add_to_confusion, empty_confusion
from dilax.runtime import jit
from dilax.runtime.processes import is_writer, own_share

_BUCKET = 64


@runtime_checkable
class ImagePredictor(Protocol):
    """What `evaluate` needs from a predictor, such as `Predictor`.

    Attributes:
        spec: the data set: classes and ignore label.
        batch_size: number of images that are predicted at a time.
    """

    spec: DatasetSpec
    batch_size: int

    def stream(self, images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield label maps (h, w) of images (h, w, c), in their order."""
        ...


def evaluate(
    predictor: ImagePredictor,
    source: Sequence[dict],
    title: str = "evaluate",
    on_prediction: Callable[[int, dict, np.ndarray], None] | None = None,
    boundaries: bool = False,
) -> Scores:
    """Predict every image by the released protocol, and count its pixels.

    Args:
        predictor: network, parameters and data set.
        source: `{image, label, id}` samples.
        title: of the progress bar; "" shows none.
        on_prediction: called with each image's index, sample and (h, w) prediction.
        boundaries: also measure trimap IoU and boundary F (`BoundaryScores`).

    Returns:
        The `Scores` over all pixels of all images that are not ignored. Several
        processes share the images, and each returns the scores of all.

    Example:
        >>> from dilax.data import DATASETS, Scenes
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, init_params
        >>> from dilax.inference import Predictor
        >>> spec = DATASETS["scenes"]
        >>> model = DilatedNet(FrontEnd(8, (Layer("a", 3, 4),)))
        >>> predictor = Predictor(model, init_params(model, seed=0), spec)
        >>> scores = evaluate(predictor, Scenes("val", count=2, size=64), title="")
        >>> scores.confusion.shape, 0 <= scores.mean_iou < 0.3
        ((8, 8), True)
    """
    spec = predictor.spec
    own = own_share(range(len(source)))
    confusion = empty_confusion(spec.num_classes)
    near = BoundaryScores.empty(spec.classes, spec.ignore_label)
    index = iter(own)
    silent = not title or not is_writer()
    with tqdm(total=len(own), desc=title, unit="image", disable=silent) as bar:
        for samples in in_order(Chosen(source, own), predictor.batch_size):
            predictions = predictor.stream([s["image"] for s in samples])
            for sample, prediction in zip(samples, predictions, strict=True):
                label, void = sample["label"], spec.ignore_label
                confusion = count_image(confusion, label, prediction, void)
                if boundaries:
                    near = near.plus(sample["label"], prediction)
                if on_prediction:
                    on_prediction(next(index), sample, prediction)
                bar.update()
    near = near.over_processes()
    scores = Scores.of(spec.classes, confusion, spec.categories).over_processes()
    return dataclasses.replace(scores, boundaries=near.as_dict() if boundaries else {})


def count_image(
    confusion: UInt32[Array, "k k 2"],
    label: Integer[np.ndarray, "h w"],
    prediction: Integer[np.ndarray, "h w"],
    ignore_label: int = 255,
) -> UInt32[Array, "k k 2"]:
    """Call `add_to_confusion`, compiled for few sizes; `confusion` is donated."""
    label, guess = _rounded_up(label, ignore_label), _rounded_up(prediction, 0)
    return _compiled_count()(confusion, label, guess, ignore_label=ignore_label)


@functools.cache
def _compiled_count() -> Any:
    return jit(add_to_confusion, static_argnames="ignore_label", donate_argnums=0)


def _rounded_up(array: np.ndarray, value: int):
    """Pad to multiples of 64, so that many sizes share few compilations."""
    widths = [(0, -n % _BUCKET) for n in array.shape]
    return jnp.asarray(np.pad(array, widths, constant_values=value))
