"""What a stage trains on: images or stored maps as batches, and its monitor."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dilax.evaluation import Scores, add_to_confusion, empty_confusion, evaluate
from dilax.inference import Predictor
from dilax.input import (
    CropGeometry,
    ImageExample,
    MapExample,
    held_batches,
    hold,
    training_batches,
)
from dilax.models import DilatedNet
from dilax.ops import jit
from dilax.training.config import StageConfig
from dilax.training.maps import StoredMaps, store_maps
from dilax.training.run import Run
from dilax.training.step import apply_stage
from dilax.training.structured import Params, build_rnn, label_stride

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
        kind = "whole" if stage.surroundings else "image"
        title = f"maps of {name}"
        path = folder / f"{name}_{kind}"
        return store_maps(predictor, source, path, title, stage.surroundings)

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
    if reading.hold == "device" and isinstance(example, ImageExample):
        return held_batches(source, example, stage.batch_size, seed, start, shard)
    if reading.hold:
        source = hold(source)
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
    geometry = CropGeometry(stage.crop, model.margin, stride, ignore, stage.halves)
    return ImageExample(geometry, augmentation, run.spec.scale)
