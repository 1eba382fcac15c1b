"""Checks of a configuration before anything is computed or written."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dilax.data import Augmentation, Reading
from dilax.data.transforms import check_crop
from dilax.training.build import build_model
from dilax.training.config import (
    Config,
    CRFConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    StageConfig,
)
from dilax.training.losses import LossConfig
from dilax.training.serialization import validated

_POSITIVE: dict[type, tuple[str, ...]] = {
    Config: ("log_every", "eval_batch_size"),
    DataConfig: ("scale",),
    Reading: ("threads",),
    MeshConfig: ("rows", "model"),
    ModelConfig: ("width_multiplier", "duc"),
    StageConfig: ("steps", "batch_size", "accumulate", "checkpoint_every"),
    CRFConfig: (
        *("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb"),
        *("iterations", "train_steps", "search_images"),
    ),
}
_RANGES: dict[tuple[type, str], tuple[Callable[[Any], bool], str]] = {
    **{
        (kind, name): (lambda n: n > 0, "must be positive")
        for kind, names in _POSITIVE.items()
        for name in names
    },
    (MeshConfig, "data"): (lambda n: n >= 0, "must be positive, or 0 for all"),
    (StageConfig, "ema"): (lambda n: 0 <= n < 1, "must be from 0 to below 1"),
    (LossConfig, "gamma"): (lambda n: n >= 0, "must not be negative"),
    (LossConfig, "threshold"): (lambda n: 0 <= n <= 1, "must be from 0 to 1"),
    (LossConfig, "min_kept"): (lambda n: 0 <= n <= 1, "must be from 0 to 1"),
    (CRFConfig, "spatial_weight"): (lambda n: n >= 0, "must not be negative"),
    (CRFConfig, "bilateral_weight"): (lambda n: n >= 0, "must not be negative"),
    (Augmentation, "scales"): (
        lambda pair: 0 < pair[0] <= pair[1],
        "must be (lowest, highest) with 0 < lowest <= highest",
    ),
}
"""(class, field) → test of its value, and what is allowed."""


def check_config(config: Config) -> None:
    """Check that a configuration can train, before anything is computed or written.

    Raises:
        ValueError: naming the flag, its value, and what is allowed.
    """
    validated(config)
    for problem in _problems(config):
        raise ValueError(f"--config.{problem}")


def _problems(config: Config) -> Iterator[str]:
    yield from _outside_range(config, "")
    yield from _model_problems(config.model, "model.")
    seen: dict[str, StageConfig] = {}
    for i, stage in enumerate(config.stages):
        flag = f"stages[{i}]"
        for problem in _stage_problems(stage, seen, config):
            yield flag + problem
        if stage.model:
            yield from _model_problems(stage.model, f"{flag}.model.")
        model, rows = build_model(config, stage, num_classes=2), config.mesh.rows
        if model.map_stride % model.front_end.duc:
            yield (
                f"model.duc={model.front_end.duc}: does not divide the output stride "
                f"of {model.map_stride}"
            )
        if rows > 1 and stage.crf_kind == "rnn":
            yield (
                f"mesh.rows={rows}: --config.{flag}.crf sees whole images; use rows=1"
            )
        if rows > 1 and not model.front_end.shards_rows:
            yield (
                f"mesh.rows={rows}: strided convolutions, batch normalization, "
                "overlapping pools, upsampling inside, and DUC cannot be divided by "
                "rows; use rows=1"
            )
        margin = 0 if stage.inputs == "maps" else model.margin
        for axis, crop in enumerate(() if stage.crf_kind == "dense" else stage.crop):
            check_crop(crop, margin, model.map_stride, f"--config.{flag}.crop[{axis}]")
        for axis, side in enumerate(config.data.tile or ()):
            tile = f"--config.data.tile[{axis}]"
            check_crop(side, model.margin, model.map_stride, tile)
        seen[stage.name] = stage
    if not seen:
        yield "stages: the recipe has no stages"


def _outside_range(owner: Any, path: str) -> Iterator[str]:
    """Yield the fields of a part of the configuration, and of its parts, by `_RANGES`.

    Args:
        owner: a dataclass, or a tuple that may contain some.
        path: of the part, such as `"stages[0].loss"`.
    """
    if isinstance(owner, tuple):
        for i, part in enumerate(owner):
            yield from _outside_range(part, f"{path}[{i}]")
    elif dataclasses.is_dataclass(owner):
        prefix = f"{path}." if path else ""
        for name, value in vars(owner).items():
            test, allowed = _RANGES.get((type(owner), name), (None, ""))
            if test and not test(value):
                yield f"{prefix}{name}={value}: {allowed}"
            yield from _outside_range(value, prefix + name)


def _model_problems(model: ModelConfig, prefix: str) -> Iterator[str]:
    if model.blocks and model.network != "front_end":
        yield (
            f"{prefix}network={model.network!r}: has its own table; leave out .blocks, "
            "or use network='front_end'"
        )
    if model.blocks and model.padding == "valid":
        yield (
            f"{prefix}padding='valid': a ResNet's layers pad; use 'same' or 'reflect'"
        )


def _stage_problems(
    stage: StageConfig, seen: Mapping[str, StageConfig], config: Config
) -> Iterator[str]:
    """Yield what contradicts the rest of a stage, or the stages before it."""
    trains, crf, loss = stage.trains, stage.crf, stage.loss
    start = seen.get(stage.start)
    if not stage.name.isidentifier() or stage.name in seen:
        yield f".name={stage.name!r}: must be a plain word that no other stage has"
    if stage.start and start is None:
        yield f".start={stage.start!r}: must be an earlier stage, of {[*seen]}"
    if start and stage.model != start.model:
        yield f".model: differs from that of .start={stage.start!r}"
    if stage.extra and not config.data.extra:
        yield ".extra: --config.data.extra names no data set"
    if trains == "context" and not (stage.context and start):
        yield ": to train a context module, give .context and .start"
    if stage.inputs == "maps" and trains != "context":
        yield ".inputs='maps': trains only .trains='context'"
    if trains == "front_end" and stage.context:
        yield ".context: no stage trains it; use .trains='all', or leave it out"
    if stage.batch_size % stage.accumulate:
        yield (
            f".batch_size={stage.batch_size}: is not a multiple of "
            f"accumulate={stage.accumulate}"
        )
    if loss.name == "ohem" and not loss.threshold and not loss.min_kept:
        yield ".loss: with threshold=0 and min_kept=0 no pixel is hard; raise one"
    if trains == "crf" and crf is None:
        yield ".trains='crf': the stage has no CRF; give .crf"
    if crf and trains not in ("crf", "all"):
        yield (
            f".crf: .trains={trains!r} does not train it; add a stage with "
            ".trains='crf', or use .trains='all'"
        )
    if trains == "all" and stage.crf_kind == "dense":
        yield (
            ".crf.kind='dense': cannot be trained with the network; use "
            ".trains='crf', or .crf.kind='rnn'"
        )
    if trains == "crf" and start is None:
        yield ".trains='crf': give the network's stage as .start"
    if trains == "crf" and start and stage.context != start.context:
        yield (
            f".context: must be that of .start={stage.start!r}, because a CRF stage "
            "does not change the network"
        )
