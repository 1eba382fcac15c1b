"""What a stage trains on: images or stored maps as batches, and its monitor.

How much each class counts in the loss, from how often it occurs in training.

The front end's maps of every image, computed once and stored (paper §5).

A context stage trains on these instead of running the front end in each step.
"""

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from jaxtyping import Array, Float

from dilax.data import (
    Chosen,
    CropGeometry,
    DatasetSpec,
    ImageExample,
    evenly_spread,
    in_order,
    resize,
    scaled_size,
    training_batches,
)
from dilax.data.pipeline import batches_on_device, cache_on_host
from dilax.data.transforms import MapExample
from dilax.evaluation import Scores, add_to_confusion, empty_confusion, evaluate
from dilax.inference import Predictor
from dilax.models import DilatedNet
from dilax.runtime import jit
from dilax.runtime.files import whole_or_not_at_all
from dilax.runtime.processes import own_share, wait_for_all
from dilax.training.config import Config, StageConfig
from dilax.training.records import progress
from dilax.training.run import Run
from dilax.training.stage_crf import Params, build_rnn, label_stride
from dilax.training.step import apply_stage


def class_weights(
    source, spec: DatasetSpec, power: float = 1.0, limit: int = 1000
) -> Float[Array, " k"]:
    """Return weights ∝ frequency^(−power), with mean 1 over the labelled pixels.

    Args:
        source: the training samples, of which up to `limit`, evenly spread, are read.
        spec: classes and ignore label.
        power: 0 weighs all classes 1, ½ by 1/√frequency, 1 by 1/frequency.
        limit: most samples to read.

    Returns:
        (k,) float32; classes that never occur get the weight of the mean pixel.

    Example:
        >>> spec = DatasetSpec("s", ("a", "b"), ((0, 0, 0),) * 2, (0.0,))
        >>> source = [{"label": np.array([[0, 1]])}, {"label": np.array([[0, 0]])}]
        >>> class_weights(source, spec).tolist()
        [0.666..., 2.0]
    """
    counts = np.zeros(256, np.int64)
    for i in range(0, len(source), -(-len(source) // limit)):
        counts += np.bincount(source[i]["label"].ravel(), minlength=256)
    counts[spec.ignore_label] = 0
    counts = counts[: spec.num_classes]
    frequency = counts / max(counts.sum(), 1)
    weights = np.where(counts > 0, frequency, 1.0) ** -power
    weights = weights / (np.where(counts > 0, weights * frequency, 0).sum() or 1)
    return jnp.asarray(weights, jnp.float32)


def stage_weights(
    config: Config, source, spec: DatasetSpec
) -> Float[Array, " k"] | None:
    """Return the class weights of a run's losses; None weighs all classes alike."""
    power = config.data.class_weight_power
    return class_weights(source, spec, power) if power else None


_PROBED = 32


class StoredMaps(Sequence):
    """A source of `{"image": maps (hc, wc, k) float32, "label", "id"}` from files.

    Args:
        folder: where `store_maps` put them.
        count: how many there are.
    """

    def __init__(self, folder: Path, count: int):
        self._folder, self._count = folder, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        path = _file(self._folder, range(self._count)[index])
        arrays = serialization.msgpack_restore(path.read_bytes())
        return {"image": arrays["maps"], "label": arrays["label"], "id": str(index)}


def store_maps(
    predictor: Predictor,
    source: Sequence[dict],
    folder: Path,
    title: str,
    full_tiles: bool = False,
) -> StoredMaps:
    """Computes and stores the maps that are not there yet; an interrupted job goes on.

    Labels are stored beside them, at the resolution of the network's input.

    Args:
        predictor: with the front end's parameters.
        source: `{image, label}` samples.
        folder: where to store one file an image.
        title: of the progress bar.
        full_tiles: store the maps of whole tiles, beyond the image where it is
            smaller, as the joint network sees them.

    Returns:
        The source of stored maps.

    Raises:
        OSError: if the disk has no room for them, before anything is computed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(len(source)) if not _file(folder, i).exists()]
    if missing:
        _check_space(predictor, source, missing, folder, full_tiles)
    wait_for_all(f"looked for maps in {folder}")
    done = len(source) - len(missing)
    missing = own_share(missing)  # several processes share what is to do
    with progress(title, done + len(missing), done, "image") as bar:
        chunks = in_order(Chosen(source, missing), predictor.batch_size)
        indices = iter(missing)
        for samples in chunks:
            maps = predictor.maps([s["image"] for s in samples], full_tiles)
            for sample, cells in zip(samples, maps, strict=True):
                size = scaled_size(sample["label"].shape, predictor.spec.scale)
                label = resize(sample["label"], size)
                _write(_file(folder, next(indices)), maps=cells, label=label)
                bar.update()
    wait_for_all(f"maps in {folder}")
    return StoredMaps(folder, len(source))


def _check_space(
    predictor: Predictor,
    source: Sequence[dict],
    missing: list[int],
    folder: Path,
    full_tiles: bool,
) -> None:
    """Estimates the maps' size from some of the images."""
    sizes = []
    for i in evenly_spread(len(missing), _PROBED):
        shape = source[missing[i]]["image"].shape
        rows, columns = predictor.map_size(shape, full_tiles)
        height, width = scaled_size(shape, predictor.spec.scale)
        cell = 4 * predictor.spec.num_classes * predictor.model.front_end.duc**2
        sizes.append(rows * columns * cell + height * width)
    need, free = sum(sizes) / len(sizes) * len(missing), shutil.disk_usage(folder).free
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"the maps of {len(missing)} images take about {need / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free",
            str(folder),
        )


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.msgpack"


def _write(path: Path, maps: np.ndarray, label: np.ndarray) -> None:
    # Not NumPy's format: it parses its header as Python, and Python 3.11 fails at
    # random when several threads parse.
    content = serialization.msgpack_serialize({"maps": maps, "label": label})
    with whole_or_not_at_all(path, durable=True) as partial:
        partial.write_bytes(content)


Monitor = Callable[[Params], tuple[str, Scores]]


def stage_inputs(
    run: Run, stage: StageConfig, model: DilatedNet, frozen: Params
) -> tuple[Sequence[dict], Monitor]:
    """The samples that a stage trains on, and how it is evaluated on the way."""
    crf = build_rnn(stage.crf, run.spec.num_classes) if stage.crf else None
    predictor = Predictor(model, frozen, run.spec, run.config.eval_batch_size, crf=crf)
    if stage.inputs == "images":

        def monitor(trained: Params) -> tuple[str, Scores]:
            current = predictor.with_params({**frozen, **trained})
            return "val_mean_iou", evaluate(current, run.val, title="")

        return run.samples(stage), monitor

    def stored(source: Sequence[dict], name: str) -> StoredMaps:
        folder = run.workdir / "maps" / stage.start
        kind = "whole" if stage.full_tile_maps else "image"
        title = f"maps of {name}"
        path = folder / f"{name}_{kind}"
        return store_maps(predictor, source, path, title, stage.full_tile_maps)

    train = stored(run.samples(stage), "train_extra" if stage.extra else "train")
    if not stage.evaluate_every:
        return train, _never
    return train, _map_monitor(run, stage, model, stored(run.val, "val"))


def stage_batches(
    run: Run, stage: StageConfig, model: DilatedNet, source: Sequence[dict], start: int
) -> Iterator[Any]:
    """The batches of a stage from step `start`, read as the configuration says."""
    reading, seed = run.config.reading, run.config.seed
    shard = jax.process_index(), jax.process_count()
    example = _example(run, stage, model)
    if reading.cache == "device" and isinstance(example, ImageExample):
        return batches_on_device(source, example, stage.batch_size, seed, start, shard)
    if reading.cache:
        source = cache_on_host(source)
    return training_batches(
        source, example, stage.batch_size, seed, start, reading, shard
    )


def _never(trained: Params) -> tuple[str, Scores]:
    raise AssertionError("this stage is not evaluated while it trains")


def _map_monitor(
    run: Run, stage: StageConfig, model: DilatedNet, val: StoredMaps
) -> Monitor:
    """Accuracy on stored maps, at the network's own resolution: a training monitor."""

    @jit
    def count(confusion, trained, maps, labels):
        logits = apply_stage(model, stage, run.spec, trained, maps)
        guess = jnp.argmax(logits, -1)
        guess = guess[:, : labels.shape[1], : labels.shape[2]]
        return add_to_confusion(confusion, labels, guess, run.spec.ignore_label)

    def monitor(trained: Params) -> tuple[str, Scores]:
        confusion = empty_confusion(run.spec.num_classes)
        stride = model.output_stride
        for sample in val:
            maps, labels = sample["image"], sample["label"][::stride, ::stride]
            confusion = count(confusion, trained, maps[None], labels[None])
        name = f"val_mean_iou_stride_{stride}"
        return name, Scores.of(run.spec.classes, confusion)

    return monitor


def _example(
    run: Run, stage: StageConfig, model: DilatedNet
) -> ImageExample | MapExample:
    ignore, augmentation = run.spec.ignore_label, stage.augmentation
    if stage.inputs == "maps":
        height, width = stage.crop
        cells = height // model.map_stride, width // model.map_stride
        strides = model.map_stride, model.output_stride
        return MapExample(cells, *strides, ignore, augmentation)
    stride = label_stride(model, stage)
    geometry = CropGeometry(stage.crop, model.margin, stride, ignore, stage.edge_crops)
    return ImageExample(geometry, augmentation, run.spec.scale)
