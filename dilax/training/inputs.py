"""The input of a stage: batches of images, or of the front end's maps (paper §5).

Maps are computed once for every image and stored, so that a stage that trains the
context module does not run the front end in each step.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
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
from dilax.data.pipeline import cache_on_host
from dilax.data.transforms import MapExample
from dilax.evaluation import Scores, evaluate, image_scores
from dilax.inference import Predictor
from dilax.models import DilatedNet
from dilax.runtime import jit
from dilax.runtime.files import check_room, whole_or_not_at_all
from dilax.runtime.processes import own_share, wait_for_all
from dilax.training.build import Params, build_rnn, label_stride
from dilax.training.config import StageConfig
from dilax.training.records import progress
from dilax.training.run import Run

Monitor = Callable[[Params], tuple[str, Scores]]


def stage_inputs(
    run: Run, stage: StageConfig, model: DilatedNet, frozen: Params
) -> tuple[Sequence[dict], Monitor]:
    """Return a stage's samples, and a function that evaluates it during training."""
    crf = build_rnn(stage.crf, run.spec.num_classes) if stage.crf else None
    predictor = Predictor(model, frozen, run.spec, run.config.eval_batch_size, crf=crf)
    if stage.inputs == "images":

        def monitor(trained: Params) -> tuple[str, Scores]:
            current = predictor.with_params({**frozen, **trained})
            return "val_mean_iou", evaluate(current, run.val, title="")

        return run.samples(stage), monitor

    def stored(source: Sequence[dict], name: str) -> StoredMaps:
        kind = "whole" if stage.full_tile_maps else "image"
        folder = run.workdir / "maps" / stage.start / f"{name}_{kind}"
        maps = StoredMaps(predictor, source, folder, stage.full_tile_maps)
        maps.compute_missing(f"maps of {name}")
        return maps

    train = stored(run.samples(stage), "train_extra" if stage.extra else "train")
    val = stored(run.val, "val") if stage.evaluate_every else []
    return train, _map_monitor(run, model, val)


def _map_monitor(run: Run, model: DilatedNet, val: Sequence[dict]) -> Monitor:
    """Return a function that evaluates on stored maps, at the network's resolution."""
    stride, classes = model.output_stride, run.spec.classes

    @jit
    def predict(trained, maps):
        logits: Any = model.apply({"params": trained}, maps[None], method="from_maps")
        return jnp.argmax(logits[0], -1)

    def monitor(trained: Params) -> tuple[str, Scores]:
        confusion = np.zeros((len(classes), len(classes)), np.int64)
        for sample in val:
            labels = sample["label"][::stride, ::stride]
            guess = np.asarray(predict(trained, sample["image"]))
            guess = guess[: labels.shape[0], : labels.shape[1]]
            found = image_scores(classes, labels, guess, run.spec.ignore_label)
            confusion += found.confusion
        scores = Scores(classes, confusion)
        return f"val_mean_iou_stride_{stride}", scores

    return monitor


def stage_batches(
    run: Run, stage: StageConfig, model: DilatedNet, source: Sequence[dict], start: int
) -> Iterator[Any]:
    """Return the batches of a stage from step `start`, read as configured."""
    reading, seed = run.config.reading, run.config.seed
    ignore, augmentation = run.spec.ignore_label, stage.augmentation
    shard = jax.process_index(), jax.process_count()
    example: ImageExample | MapExample
    if stage.inputs == "images":
        stride, edges = label_stride(model, stage), stage.edge_crops
        geometry = CropGeometry(stage.crop, model.margin, stride, ignore, edges)
        example = ImageExample(geometry, augmentation, run.spec.scale)
    else:
        strides = model.map_stride, model.output_stride
        height, width = (side // model.map_stride for side in stage.crop)
        example = MapExample((height, width), *strides, ignore, augmentation)
    if reading.cache:
        source = cache_on_host(source)
    return training_batches(
        source, example, stage.batch_size, seed, start, reading, shard
    )


class StoredMaps(Sequence):
    """The front end's maps of images, in files: one per image, with a checksum.

    As a source, it yields `{"image": maps (hc, wc, k) float32, "label", "id"}`. Labels
    are stored, too, at the resolution of the network's input. A damaged file is
    computed again when it is read.

    Args:
        predictor: has the front end's parameters.
        source: `{image, label}` samples.
        folder: for the files.
        full_tiles: store the maps of whole tiles, which extend beyond small images, as
            in the joint network.
    """

    def __init__(
        self,
        predictor: Predictor,
        source: Sequence[dict],
        folder: Path,
        full_tiles: bool = False,
    ):
        self._predictor, self._source = predictor, source
        self._folder, self._full_tiles = folder, full_tiles

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        index = range(len(self))[index]
        path = self._file(index)
        content = path.read_bytes()
        if _digest(content[16:]) != content[:16]:
            logging.warning("%s: is damaged; it is computed again", path)
            [content] = self._compute([index])
        arrays = serialization.msgpack_restore(content[16:])
        return {"image": arrays["maps"], "label": arrays["label"], "id": str(index)}

    def compute_missing(self, title: str) -> None:
        """Compute the maps whose files are missing, each process a share.

        Args:
            title: of the progress bar.

        Raises:
            OSError: if the disk has no room for them; nothing is computed in this case.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        there = set(self._folder.iterdir())
        missing = [i for i in range(len(self)) if self._file(i) not in there]
        if missing:
            self._check_space(missing)
        wait_for_all(f"looked for maps in {self._folder}")
        done = len(self) - len(missing)
        missing = own_share(missing)
        with progress(title, done + len(missing), done, "image") as bar:
            for _ in self._compute(missing):
                bar.update()
        wait_for_all(f"maps in {self._folder}")

    def _compute(self, indices: list[int]) -> Iterator[bytes]:
        """Compute and write the files of these images, and yield their contents."""
        predictor, numbers = self._predictor, iter(indices)
        for samples in in_order(Chosen(self._source, indices), predictor.batch_size):
            every = predictor.maps([s["image"] for s in samples], self._full_tiles)
            for sample, maps in zip(samples, every, strict=True):
                size = scaled_size(sample["label"].shape, predictor.spec.scale)
                arrays = {"maps": maps, "label": resize(sample["label"], size)}
                # Not NumPy's format: its header is parsed as Python code, and Python
                # 3.11 fails at random when several threads do that.
                content = serialization.msgpack_serialize(arrays)
                content = _digest(content) + content
                path = self._file(next(numbers))
                with whole_or_not_at_all(path, durable=True) as partial:
                    partial.write_bytes(content)
                yield content

    def _check_space(self, missing: list[int]) -> None:
        """Raise if the disk has no room, estimated from some of the images."""
        spec = self._predictor.spec
        cell = 4 * spec.num_classes * self._predictor.model.front_end.duc**2
        sizes = []
        for i in evenly_spread(len(missing), 32):
            shape = self._source[missing[i]]["image"].shape
            rows, columns = self._predictor.map_size(shape, self._full_tiles)
            height, width = scaled_size(shape, spec.scale)
            sizes.append(rows * columns * cell + height * width)
        need = int(sum(sizes) / len(sizes) * len(missing))
        check_room(self._folder, need, f"the maps of {len(missing)} images take about")

    def _file(self, index: int) -> Path:
        return self._folder / f"{index:06d}.msgpack"


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def class_weights(
    source, spec: DatasetSpec, power: float = 1.0, limit: int = 1000
) -> Float[Array, " k"]:
    """Return weights ∝ frequency^(−power), with mean 1 over the labelled pixels.

    Args:
        source: the training samples.
        spec: classes and ignore label.
        power: 0 gives all classes weight 1, ½ gives 1/√frequency, 1 gives 1/frequency.
        limit: maximum number of samples to read; they are evenly spread.

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
