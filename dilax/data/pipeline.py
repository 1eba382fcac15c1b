"""From samples to batches, by Grain: batch n is a pure function of the seed and n.

A run that resumes at step n asks for batch n; no other state needs to be restored.
Small data sets can be kept decoded in memory.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from tqdm import tqdm

Batch = dict[str, np.ndarray]
Example = Callable[[dict, np.random.Generator], Batch]

_BATCHES_AHEAD = 2


@dataclasses.dataclass
class Reading:
    """How training images are read. This affects the speed, never the batches.

    Attributes:
        threads: number of threads that decode and augment.
        cache: `""` decodes an image each time; `"host"` keeps all decoded images in
            main memory.

    Example:
        >>> Reading(cache="host").threads
        4
    """

    threads: int = 4
    cache: Literal["", "host"] = ""


def training_batches(
    source: Sequence[dict],
    example: Example,
    batch_size: int,
    seed: int,
    start: int = 0,
    reading: Reading | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Return endless batches of shuffled examples, from step `start`.

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
        >>> from dilax.data.transforms import CropGeometry, ImageExample
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
    threads = reading.threads
    ahead = grain.ReadOptions(threads, prefetch_buffer_size=4 * threads)
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
    """Yield lists of `batch_size` samples, in order; the last may be shorter.

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
    if need > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2:
        raise ValueError(
            f"--config.reading.cache=host: the decoded images take {need / 1e9:.1f} GB,"
            ' more than half of its memory; leave it at ""'
        )
    chunks = in_order(source, 1)
    return [c[0] for c in tqdm(chunks, title, len(source), unit="image", delay=1)]
