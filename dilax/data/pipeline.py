"""From samples to batches, by Grain: batch n is a pure function of the seed and n.

A run that resumes at step n asks for batch n; no other state needs to be restored.
Small data sets can be kept decoded in memory: the host's, or the accelerator's. On the
accelerator, crops are gathered from the same draws that `ImageExample` makes on the
host, so that the batches are the same.
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dilax.data.transforms import CropGeometry, ImageExample, reflected, rescale
from dilax.runtime import jit

Batch = dict[str, np.ndarray]
Example = Callable[[dict, np.random.Generator], Batch]

_BATCHES_AHEAD = 2
_FLAG = "--config.reading.cache"


@dataclasses.dataclass
class Reading:
    """How training images are read. This affects the speed, never the batches.

    Attributes:
        threads: number of threads that decode and augment.
        cache: `""` decodes an image each time; `"host"` keeps all decoded images in
            main memory, `"device"` in the memory of the accelerator, which also crops
            and mirrors them (images must have one size, and no other augmentation).

    Example:
        >>> Reading(cache="host").threads
        4
    """

    threads: int = 4
    cache: Literal["", "host", "device"] = ""


def training_batches(
    source: Sequence[dict],
    example: Example,
    batch_size: int,
    seed: int,
    start: int = 0,
    reading: Reading | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Return endless batches of shuffled examples, epoch after epoch, from step
    `start`.

    Args:
        source: random-access samples.
        example: function from a sample and a generator to an example; all examples have
            the same shape.
        batch_size: examples per batch, over all shards.
        seed: determines order and augmentation.
        start: the index of the first batch; batch n is the same for every start.
        reading: the number of threads.
        shard: (index, count): the part of each batch to read, for training on several
            hosts. All parts, concatenated, are the batch of a single host.

    Returns:
        An iterator of `{"image": (batch_size / count, …), "label": (…)}`.

    Raises:
        ValueError: if the batch cannot be divided into the shards.

    Example:
        >>> from dilax.data import Augmentation, Scenes
        >>> example = ImageExample(CropGeometry((36, 36), 2, stride=8), Augmentation())
        >>> scenes = Scenes("train", count=4, size=64)
        >>> batch = next(iter(training_batches(scenes, example, 2, seed=0)))
        >>> batch["image"].shape, batch["label"].shape
        ((2, 36, 36, 3), (2, 4, 4))
    """
    import grain  # imported here, because it takes a second

    reading = reading or Reading()
    index, count = shard
    if batch_size % count:
        raise ValueError(
            f"batch_size={batch_size}: must be a multiple of the number of processes, "
            f"{count}"
        )

    def contiguous(sample: dict, rng: np.random.Generator) -> Batch:
        """Return an example without views: copies are made here, in parallel."""
        arrays = example(sample, rng).items()
        return {name: np.ascontiguousarray(array) for name, array in arrays}

    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    examples = examples.random_map(contiguous)[start * batch_size :]
    own = batch_size // count

    def of_shard(i: int) -> Batch:
        batch, place = divmod(i, own)
        return examples[batch * batch_size + index * own + place]

    part = grain.MapDataset.range(len(examples) // count).map(of_shard)
    ahead = grain.ReadOptions(reading.threads, 4 * reading.threads)
    batches = part.to_iter_dataset(ahead).batch(own, drop_remainder=True)
    # Batches are assembled in a separate thread, not in the training thread.
    return iter(
        grain.experimental.ThreadPrefetchIterDataset(
            batches, prefetch_buffer_size=_BATCHES_AHEAD
        )
    )


def in_order(
    source: Sequence[dict], batch_size: int, threads: int = 4
) -> Iterator[list[dict]]:
    """Yield lists of `batch_size` samples, each once, in order; the last may be
    shorter.

    Args:
        source: random-access samples of any sizes.
        batch_size: samples per list.
        threads: number of threads that read samples ahead.

    Example:
        >>> from dilax.data import Scenes
        >>> [len(group) for group in in_order(Scenes("val", count=5, size=64), 2)]
        [2, 2, 1]
    """
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    samples = iter(grain.MapDataset.source(source).to_iter_dataset(options))
    while chunk := list(itertools.islice(samples, batch_size)):
        yield chunk


def cache_on_host(source: Sequence[dict], title: str = "decode") -> list[dict]:
    """Decode all samples of a source into main memory, as another source.

    Raises:
        ValueError: if they do not fit in half of the machine's memory.

    Example:
        >>> from dilax.data import Scenes
        >>> len(cache_on_host(Scenes("val", count=2, size=64), title=""))
        2
    """
    first = source[0]
    need = len(source) * sum(first[name].nbytes for name in ("image", "label"))
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _check_fits("host", need, have // 2)
    chunks = in_order(source, 1)
    return [c[0] for c in tqdm(chunks, title, len(source), unit="image", delay=1)]


def batches_on_device(
    source: Sequence[dict],
    example: ImageExample,
    batch_size: int,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, jax.Array]]:
    """Return the batches of `training_batches`, cropped from images on the device.

    Args:
        source: random-access samples with images of one size.
        example: its augmentation may only mirror.
        batch_size: see `training_batches`.
        seed: see `training_batches`.
        start: see `training_batches`.
        shard: see `training_batches`.

    Raises:
        ValueError: if the images differ in size, do not fit in the device's memory, or
            have other augmentations.

    Example:
        >>> from dilax.data import Augmentation
        >>> image, label = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
        >>> source = [{"image": image, "label": label, "id": "a"}]
        >>> geometry = CropGeometry((4, 4), 0, stride=1)
        >>> example = ImageExample(geometry, Augmentation())
        >>> next(batches_on_device(source, example, 2, seed=0))["image"].shape
        (2, 4, 4, 3)
    """
    changes, geometry = example.augmentation, example.geometry
    if changes.colour or tuple(changes.scales) != (1.0, 1.0):
        raise ValueError(
            f"{_FLAG}=device: images are only cropped and mirrored; set "
            "augmentation.scales=(1,1) and augmentation.colour=0, or use "
            f"{_FLAG}=host"
        )
    images, labels = _cache_on_device(source, example.scale)

    def draw(sample: dict, rng: np.random.Generator) -> Batch:
        """Make the random draws of `ImageExample` for a sample, in the same order."""
        rng.uniform(*changes.scales)
        flip = changes.draw_mirror(rng)
        place = geometry.draw(labels.shape[1:], rng)
        return {"draw": np.array([sample["index"], flip, *place], np.int32)}

    indices = [{"index": i} for i in range(len(labels))]
    reading = Reading(threads=1)
    draws = training_batches(indices, draw, batch_size, seed, start, reading, shard)
    cut = jit(jax.vmap(functools.partial(_cut, geometry=geometry), (None, None, 0)))
    return (cut(images, labels, batch["draw"]) for batch in draws)


def _cache_on_device(
    source: Sequence[dict], scale: float
) -> tuple[jax.Array, jax.Array]:
    """Return all images (n, h, w, c) and labels (n, h, w) on the device."""
    first = rescale(source[0]["image"], source[0]["label"], scale)
    stats = jax.devices()[0].memory_stats() or {}
    need = len(source) * sum(array.nbytes for array in first)
    _check_fits("device", need, stats.get("bytes_limit", 2**63) // 2)
    images, labels = (np.empty((len(source), *a.shape), a.dtype) for a in first)
    for i, [sample] in enumerate(in_order(source, 1)):
        image, label = rescale(sample["image"], sample["label"], scale)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"{_FLAG}=device: images differ in size ({sample['id']} is "
                f"{image.shape}, the first is {images.shape[1:]}); use {_FLAG}=host"
            )
        images[i], labels[i] = image, label
    return jnp.asarray(images), jnp.asarray(labels)


def _check_fits(where: str, need: int, limit: int) -> None:
    if need > limit:
        raise ValueError(
            f"{_FLAG}={where}: the decoded images take {need / 1e9:.1f} GB, more than "
            f'half of its memory; leave it at ""'
        )


def _cut(images, labels, draw, geometry: CropGeometry):
    """Do as `CropGeometry.cut` on the device, for one (index, flip, y, x)."""
    index, flip, y, x = draw
    (height, width), stride = labels.shape[1:], geometry.stride

    def flipped(columns):
        return jnp.where(flip, width - 1 - columns, columns)

    rows = reflected(y - geometry.margin + jnp.arange(geometry.crop[0]), height)
    columns = reflected(x - geometry.margin + jnp.arange(geometry.crop[1]), width)
    below = y + jnp.arange(0, geometry.inner[0], stride)
    beside = x + jnp.arange(0, geometry.inner[1], stride)
    inside = (below < height)[:, None] & (beside < width)
    label_rows = jnp.minimum(below, height - 1)[:, None]
    label = labels[index, label_rows, flipped(jnp.minimum(beside, width - 1))]
    return {
        "image": images[index, rows[:, None], flipped(columns)],
        "label": jnp.where(inside, label, geometry.ignore_label).astype(jnp.uint8),
    }
