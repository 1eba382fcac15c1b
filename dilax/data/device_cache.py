"""Small data sets held decoded in memory: the host's, or the accelerator's.

On the accelerator, crops are gathered there: the same ones, from the same draws, that
`ImageExample` makes of the same seed on the host.
"""

import functools
import os
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dilax.data.pipeline import Batch, ImageExample, Reading, in_order, training_batches
from dilax.data.transforms import CropGeometry, reflected, rescale
from dilax.runtime import jit

_FLAG = "--config.reading.hold"


def hold(source: Sequence[dict], title: str = "decode") -> list[dict]:
    """All samples of a source, decoded, as a source.

    Raises:
        ValueError: if they do not fit in half of the machine's memory.

    Example:
        >>> from dilax.data import Scenes
        >>> len(hold(Scenes("val", count=2, size=64), title=""))
        2
    """
    first = source[0]
    need = len(source) * sum(first[name].nbytes for name in ("image", "label"))
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    _check_fits("host", need, have // 2)
    chunks = in_order(source, 1)
    return [c[0] for c in tqdm(chunks, title, len(source), unit="image", delay=1)]


def held_batches(
    source: Sequence[dict],
    example: ImageExample,
    batch_size: int,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, jax.Array]]:
    """As `training_batches`, from images held in device memory; the same batches.

    Args:
        source: random-access samples of images of one size.
        example: its augmentation may mirror, and nothing else.
        batch_size: see `training_batches`, as the rest.
        seed: decides order and augmentation.
        start: the index of the first batch.
        shard: (index, count) of several hosts.

    Raises:
        ValueError: if the images differ in size, do not fit in the device's memory, or
            are to be augmented in other ways.

    Example:
        >>> from dilax.data import Augmentation, CropGeometry
        >>> image, label = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
        >>> source = [{"image": image, "label": label, "id": "a"}]
        >>> geometry = CropGeometry((4, 4), 0, stride=1)
        >>> example = ImageExample(geometry, Augmentation())
        >>> next(held_batches(source, example, 2, seed=0))["image"].shape
        (2, 4, 4, 3)
    """
    changes = example.augmentation
    if changes.colour or tuple(changes.scales) != (1.0, 1.0):
        raise ValueError(
            f"{_FLAG}=device: takes images as they are; set augmentation.scales=(1,1) "
            f"and augmentation.colour=0, or {_FLAG}=host"
        )
    images, labels = _stacked(source, example.scale)
    draws = _Draws(example, labels.shape[1:])
    picks = training_batches(
        [{"index": i} for i in range(len(labels))],
        draws,
        batch_size,
        seed,
        start,
        Reading(threads=1),
        shard,
    )
    cut = jit(functools.partial(_cut_crops, geometry=example.geometry))
    return (cut(images, labels, pick) for pick in picks)


class _Draws:
    """What `ImageExample` draws for a sample, without its pixels."""

    def __init__(self, example: ImageExample, size: tuple[int, ...]):
        self._example, self._size = example, size

    def __call__(self, sample: dict, rng: np.random.Generator) -> Batch:
        self._example.draw_factor(rng)
        flip, (y, x) = self._example.draw(self._size, rng)
        return {"pick": np.array([sample["index"], flip, y, x], np.int32)}


def _stacked(source: Sequence[dict], scale: float) -> tuple[jax.Array, jax.Array]:
    """All images and labels, each one array on the device."""
    first = [a[None] for a in rescale(source[0]["image"], source[0]["label"], scale)]
    stats = jax.devices()[0].memory_stats() or {}
    need = len(source) * sum(a.nbytes for a in first)
    _check_fits("device", need, stats.get("bytes_limit", 2**63) // 2)
    images, labels = (np.repeat(a, len(source), 0) for a in first)
    for i, [sample] in enumerate(in_order(source, 1)):
        image, label = rescale(sample["image"], sample["label"], scale)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"{_FLAG}=device: images differ in size ({sample['id']} is "
                f"{image.shape}, the first {images.shape[1:]}); take {_FLAG}=host"
            )
        images[i], labels[i] = image, label
    return jnp.asarray(images), jnp.asarray(labels)


def _check_fits(where: str, need: int, limit: int) -> None:
    if need > limit:
        raise ValueError(
            f"{_FLAG}={where}: the decoded images take {need / 1e9:.1f} GB, more than "
            f'half of its memory; leave it at ""'
        )


def _cut_crops(images, labels, picks, geometry: CropGeometry):
    """Crops on the device: `cut_crop` of each (index, flip, y, x)."""

    def one(pick):
        index, flip, y, x = pick["pick"]
        size = labels.shape[1:]
        rows = reflected(y - geometry.margin + jnp.arange(geometry.crop[0]), size[0])
        columns = x - geometry.margin + jnp.arange(geometry.crop[1])
        columns = _flipped(reflected(columns, size[1]), size[1], flip)
        below = y + geometry.stride * jnp.arange(
            -(-geometry.inner[0] // geometry.stride)
        )
        beside = x + geometry.stride * jnp.arange(
            -(-geometry.inner[1] // geometry.stride)
        )
        inside = (below < size[0])[:, None] & (beside < size[1])
        at = jnp.minimum(below, size[0] - 1), jnp.minimum(beside, size[1] - 1)
        label = labels[index, at[0][:, None], _flipped(at[1], size[1], flip)]
        return {
            "image": images[index, rows[:, None], columns],
            "label": jnp.where(inside, label, geometry.ignore_label).astype(jnp.uint8),
        }

    return jax.vmap(one)(picks)


def _flipped(at, n: int, flip):
    return jnp.where(flip, n - 1 - at, at)
