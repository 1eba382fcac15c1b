"""Sources → batches, by Grain: batch n is a pure function of the seed and n.

So a run that resumes at step n asks for batch n, and nothing else is to be restored.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from dilax.input.transforms import (
    CropGeometry,
    crop_maps,
    jitter_colours,
    mirror,
    random_crop,
    rescale,
)

Example = Callable[[dict, np.random.Generator], dict[str, np.ndarray]]
Batch = dict[str, np.ndarray]


@dataclasses.dataclass
class Augmentation:
    """Random changes of training images.

    Attributes:
        mirror: flip left to right with probability ½, as the release does.
        scales: (least, most) factor of a random resize; (1, 1) is none.
        colour: strength of random brightness, contrast and saturation; 0 is none.
    """

    mirror: bool = True
    scales: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0


def image_example(
    geometry: CropGeometry, augmentation: Augmentation, scale: float = 1.0
) -> Example:
    """The function that turns `{image, label}` into one training example.

    Args:
        geometry: crop, margin and label stride.
        augmentation: random changes.
        scale: factor by which images are resized before anything else.
    """

    def example(sample: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        factor = scale * rng.uniform(*augmentation.scales)
        image, label = rescale(sample["image"], sample["label"], factor)
        if augmentation.colour:
            image = jitter_colours(image, rng, augmentation.colour)
        if augmentation.mirror and rng.random() < 0.5:
            image, label = mirror(image, label)
        return random_crop(image, label, rng, geometry)

    return example


def map_example(
    cells: tuple[int, int],
    map_stride: int,
    label_stride: int,
    ignore_label: int,
    augmentation: Augmentation,
) -> Example:
    """As `image_example`, for `{image: stored maps, label}`; see `crop_maps`."""

    def example(sample: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        maps, label = sample["image"], sample["label"]
        cut = crop_maps(maps, label, rng, cells, map_stride, label_stride, ignore_label)
        if augmentation.mirror and rng.random() < 0.5:
            # Only now, so that each cell keeps the label of its own sampled pixel.
            maps, label = mirror(cut["image"], cut["label"])
            return {"image": maps, "label": label}
        return cut

    return example


class _Apply(grain.transforms.RandomMap):
    def __init__(self, example: Example):
        self._example = example

    def random_map(self, element: dict, rng: np.random.Generator) -> Batch:
        result = self._example(element, rng)
        return {name: np.ascontiguousarray(array) for name, array in result.items()}


def training_batches(
    source: Sequence[dict],
    example: Example,
    batch_size: int,
    seed: int,
    start: int = 0,
    threads: int = 4,
) -> Iterator[Batch]:
    """Endless batches of shuffled examples, epoch after epoch, from step `start`.

    Args:
        source: random-access samples.
        example: sample and generator → example, all of one shape.
        batch_size: examples a batch.
        seed: decides order and augmentation.
        start: the index of the first batch; batch n is the same for every start.
        threads: reader threads.

    Returns:
        An iterator of `{"image": (b, …), "label": (b, …)}`.
    """
    examples = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_Apply(example))
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    batches = examples[start * batch_size :].to_iter_dataset(options)
    return iter(batches.batch(batch_size, drop_remainder=True))


def in_order(
    source: Sequence[dict], batch_size: int, threads: int = 4
) -> Iterator[list[dict]]:
    """Lists of `batch_size` samples, each sample once, in order; the last is shorter.

    Args:
        source: random-access samples of any sizes.
        batch_size: samples a list.
        threads: reader threads.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    samples = iter(grain.MapDataset.source(source).to_iter_dataset(options))
    chunk: list[dict] = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) == batch_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
