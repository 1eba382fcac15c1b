"""Sources → batches, by Grain: batch n is a pure function of the seed and n.

So a run that resumes at step n asks for batch n, and nothing else is to be restored.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from absl import flags

from dilax.data.transforms import (
    CropGeometry,
    crop_maps,
    cut_crop,
    draw_place,
    jitter_colours,
    mirror,
    rescale,
)

Example = Callable[[dict, np.random.Generator], dict[str, np.ndarray]]
Batch = dict[str, np.ndarray]

_BATCHES_AHEAD = 2


@dataclasses.dataclass
class Augmentation:
    """Random changes of training images.

    Attributes:
        mirror: flip left to right with probability ½, as the release does.
        scales: (least, most) factor of a random resize; (1, 1) is none.
        colour: strength of random brightness, contrast and saturation; 0 is none.

    Example:
        >>> Augmentation(scales=(0.75, 1.5)).mirror
        True
    """

    mirror: bool = True
    scales: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0


@dataclasses.dataclass
class Reading:
    """How training images are read. It changes the speed and no batch.

    Attributes:
        threads: that decode and augment; in each process, if there are several.
        processes: worker processes; 0 reads in the training process.
        hold: `""` decodes an image each time; `"host"` keeps all decoded in main
            memory, `"device"` in the accelerator's, where they are also cropped and
            mirrored (that needs images of one size and no other augmentation).

    Example:
        >>> Reading(hold="host").threads
        4
    """

    threads: int = 4
    processes: int = 0
    hold: Literal["", "host", "device"] = ""


@dataclasses.dataclass(frozen=True)
class ImageExample:
    """Turns `{image, label}` into one training example.

    Attributes:
        geometry: crop, margin and label stride.
        augmentation: random changes.
        scale: factor by which images are resized before anything else.

    Example:
        >>> from dilax.data.transforms import CropGeometry
        >>> example = ImageExample(CropGeometry((20, 20), 2, stride=8), Augmentation())
        >>> image, label = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
        >>> drawn = example({"image": image, "label": label}, np.random.default_rng(0))
        >>> drawn["image"].shape, drawn["label"].shape
        ((20, 20, 3), (2, 2))
    """

    geometry: CropGeometry
    augmentation: Augmentation
    scale: float = 1.0

    def __call__(self, sample: dict, rng: np.random.Generator) -> Batch:
        """`{"image": crop, "label"}`; see `cut_crop`."""
        factor = self.draw_factor(rng)
        image, label = rescale(sample["image"], sample["label"], factor)
        if self.augmentation.colour:
            image = jitter_colours(image, rng, self.augmentation.colour)
        flip, place = self.draw(label.shape, rng)
        if flip:
            image, label = mirror(image, label)
        return cut_crop(image, label, place, self.geometry)

    def draw_factor(self, rng: np.random.Generator) -> float:
        """The factor of the resize; the first that is drawn."""
        return self.scale * rng.uniform(*self.augmentation.scales)

    def draw(
        self, size: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[bool, tuple[int, int]]:
        """Whether the image is flipped, and where it is cropped then."""
        flip = self.augmentation.mirror and rng.random() < 0.5
        return flip, draw_place(size, rng, self.geometry)


@dataclasses.dataclass(frozen=True)
class MapExample:
    """As `ImageExample`, for `{image: stored maps, label}`; see `crop_maps`.

    Attributes:
        cells: (height, width) of the crop in cells.
        map_stride: image pixels from one cell to the next.
        label_stride: image pixels from one label to the next.
        ignore_label: written where there is no label.
        augmentation: maps are mirrored only.

    Example:
        >>> example = MapExample((2, 3), 8, 8, 255, Augmentation())
        >>> maps, label = np.zeros((4, 5, 21), np.float32), np.zeros((32, 40), np.uint8)
        >>> drawn = example({"image": maps, "label": label}, np.random.default_rng(0))
        >>> drawn["image"].shape, drawn["label"].shape
        ((2, 3, 21), (2, 3))
    """

    cells: tuple[int, int]
    map_stride: int
    label_stride: int
    ignore_label: int
    augmentation: Augmentation

    def __call__(self, sample: dict, rng: np.random.Generator) -> Batch:
        """`{"image": maps, "label"}`."""
        cut = crop_maps(
            sample["image"],
            sample["label"],
            rng,
            self.cells,
            self.map_stride,
            self.label_stride,
            self.ignore_label,
        )
        if self.augmentation.mirror and rng.random() < 0.5:
            # Only now, so that each cell keeps the label of its own sampled pixel.
            maps, label = mirror(cut["image"], cut["label"])
            return {"image": maps, "label": label}
        return cut


class _Apply:
    def __init__(self, example: Example):
        self._example = example

    def __call__(self, element: dict, rng: np.random.Generator) -> Batch:
        result = self._example(element, rng)
        return {name: np.ascontiguousarray(array) for name, array in result.items()}


class _Part(Sequence):
    """Of endless examples, `own` of every batch from the `first` on."""

    def __init__(self, examples: Any, batch_size: int, first: int, own: int):
        self._examples, self._batch_size = examples, batch_size
        self._first, self._own = first, own

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * self._own

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        batch, place = divmod(index, self._own)
        return self._examples[batch * self._batch_size + self._first + place]


def training_batches(
    source: Sequence[dict],
    example: Example,
    batch_size: int,
    seed: int,
    start: int = 0,
    reading: Reading | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Endless batches of shuffled examples, epoch after epoch, from step `start`.

    Args:
        source: random-access samples.
        example: sample and generator → example, all of one shape.
        batch_size: examples of a batch, over all shards.
        seed: decides order and augmentation.
        start: the index of the first batch; batch n is the same for every start.
        reading: threads and processes.
        shard: (index, count): which part of each batch to read, for training on
            several hosts. All parts, one after the other, are the batch that one host
            reads.

    Returns:
        An iterator of `{"image": (batch_size / count, …), "label": (…)}`.

    Raises:
        ValueError: if the shards do not divide the batch.

    Example:
        >>> from dilax.data import Scenes
        >>> from dilax.data.transforms import CropGeometry
        >>> example = ImageExample(CropGeometry((36, 36), 2, stride=8), Augmentation())
        >>> scenes = Scenes("train", count=4, size=64)
        >>> batch = next(iter(training_batches(scenes, example, 2, seed=0)))
        >>> batch["image"].shape, batch["label"].shape
        ((2, 36, 36, 3), (2, 4, 4))
    """
    import grain  # here, as it takes a second to import orbax

    reading = reading or Reading()
    index, count = shard
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size}: {count} processes do not divide it")
    examples = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_Apply(example))[start * batch_size :]
    )
    own, threads = batch_size // count, reading.threads
    if count > 1:
        part = _Part(examples, batch_size, index * own, own)
        examples = grain.MapDataset.source(part)
    if not reading.processes:
        ahead = grain.ReadOptions(threads, prefetch_buffer_size=4 * threads)
        batches = examples.to_iter_dataset(ahead).batch(own, drop_remainder=True)
        # Batches are put together in a thread of their own, not in that which trains.
        return iter(
            grain.experimental.ThreadPrefetchIterDataset(
                batches, prefetch_buffer_size=_BATCHES_AHEAD
            )
        )
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # the worker processes ask for absl's flags
    ahead = grain.ReadOptions(threads, prefetch_buffer_size=threads)
    workers = grain.MultiprocessingOptions(reading.processes)
    batches = examples.batch(own, drop_remainder=True).to_iter_dataset(ahead)
    return iter(batches.mp_prefetch(workers))


def in_order(
    source: Sequence[dict], batch_size: int, threads: int = 4
) -> Iterator[list[dict]]:
    """Lists of `batch_size` samples, each sample once, in order; the last is shorter.

    Args:
        source: random-access samples of any sizes.
        batch_size: samples a list.
        threads: reader threads.

    Example:
        >>> from dilax.data import Scenes
        >>> [len(group) for group in in_order(Scenes("val", count=5, size=64), 2)]
        [2, 2, 1]
    """
    import grain

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
