"""Checks of a configuration before anything is computed or written."""

from typing import Any

from dilax.data.transforms import check_crop
from dilax.models import DilatedNet
from dilax.training.build import build_model
from dilax.training.config import Config, CRFConfig, ModelConfig, StageConfig
from dilax.training.serialization import validated


def check_config(config: Config) -> None:
    """Check that a configuration can train, before anything is computed or written.

    Raises:
        ValueError: naming the flag, its value, and what is allowed.
    """
    validated(config)
    _check_positive(config, "", "log_every", "eval_batch_size")
    _check_positive(config.data, "data.", "scale")
    _check_positive(config.reading, "reading.", "threads")
    _check_model(config.model, "model.")
    _check_positive(config.mesh, "mesh.", "rows", "model")
    if config.mesh.data < 0:
        raise ValueError(
            f"--config.mesh.data={config.mesh.data}: must be positive, or 0 for all"
        )
    seen: dict[str, StageConfig] = {}
    for i, stage in enumerate(config.stages):
        flag = f"--config.stages[{i}]"
        _check_stage(stage, flag, seen, config.data.extra)
        _check_crf(stage, flag, seen)
        if stage.model:
            _check_model(stage.model, f"stages[{i}].model.")
        if stage.crf_kind == "rnn" and config.mesh.rows > 1:
            raise ValueError(
                f"--config.mesh.rows={config.mesh.rows}: {flag}.crf sees whole images; "
                "use rows=1"
            )
        model = build_model(config, stage, num_classes=2)
        _check_duc(model)
        if config.mesh.rows > 1 and not model.front_end.shards_rows:
            raise ValueError(
                f"--config.mesh.rows={config.mesh.rows}: strided convolutions, batch "
                "normalization, overlapping pools, upsampling inside, and DUC cannot "
                "be divided by rows; use rows=1"
            )
        margin = 0 if stage.inputs == "maps" else model.margin
        for axis, crop in enumerate(() if stage.crf_kind == "dense" else stage.crop):
            check_crop(crop, margin, model.map_stride, f"{flag}.crop[{axis}]")
        for axis, side in enumerate(config.data.tile or ()):
            tile = f"--config.data.tile[{axis}]"
            check_crop(side, model.margin, model.map_stride, tile)
        seen[stage.name] = stage
    if not seen:
        raise ValueError("--config.stages: the recipe has no stages")


def _check_model(model: ModelConfig, prefix: str) -> None:
    _check_positive(model, prefix, "width_multiplier", "duc")
    if model.blocks and model.network != "front_end":
        raise ValueError(
            f"--config.{prefix}network={model.network!r}: has its own table; leave out "
            ".blocks, or use network='front_end'"
        )
    if model.blocks and model.padding == "valid":
        raise ValueError(
            f"--config.{prefix}padding='valid': a ResNet's layers pad; use 'same' or "
            "'reflect'"
        )


def _check_duc(network: DilatedNet) -> None:
    factor, stride = network.front_end.duc, network.map_stride
    if stride % factor:
        raise ValueError(
            f"--config.model.duc={factor}: does not divide the output stride of "
            f"{stride}"
        )


def _check_stage(
    stage: StageConfig, flag: str, seen: dict[str, StageConfig], extra: str
) -> None:
    if not stage.name.isidentifier() or stage.name in seen:
        raise ValueError(
            f"{flag}.name={stage.name!r}: must be a plain word that no other stage has"
        )
    if stage.start and stage.start not in seen:
        raise ValueError(
            f"{flag}.start={stage.start!r}: must be an earlier stage, of {[*seen]}"
        )
    if stage.start and stage.model != seen[stage.start].model:
        raise ValueError(f"{flag}.model: differs from that of .start={stage.start!r}")
    if stage.extra and not extra:
        raise ValueError(f"{flag}.extra: --config.data.extra names no data set")
    if stage.trains == "context" and not (stage.context and stage.start):
        raise ValueError(f"{flag}: to train a context module, give .context and .start")
    if stage.inputs == "maps" and stage.trains != "context":
        raise ValueError(f"{flag}.inputs='maps': trains only .trains='context'")
    if stage.trains == "front_end" and stage.context:
        raise ValueError(
            f"{flag}.context: no stage trains it; use .trains='all', or leave it out"
        )
    least, most = stage.augmentation.scales
    if not 0 < least <= most:
        raise ValueError(
            f"{flag}.augmentation.scales={stage.augmentation.scales}: must be "
            "(lowest, highest) with 0 < lowest <= highest"
        )
    _check_loss(stage, flag)
    prefix = flag.removeprefix("--config.") + "."
    counts = ("steps", "batch_size", "accumulate", "checkpoint_every")
    _check_positive(stage, prefix, *counts)
    if stage.batch_size % stage.accumulate:
        raise ValueError(
            f"{flag}.batch_size={stage.batch_size}: is not a multiple of "
            f"accumulate={stage.accumulate}"
        )


def _check_loss(stage: StageConfig, flag: str) -> None:
    loss = stage.loss
    bounds = {
        "ema": (stage.ema, stage.ema < 1, "from 0 to below 1"),
        "loss.gamma": (loss.gamma, True, "not negative"),
        "loss.threshold": (loss.threshold, loss.threshold <= 1, "from 0 to 1"),
        "loss.min_kept": (loss.min_kept, loss.min_kept <= 1, "from 0 to 1"),
    }
    for name, (value, below, allowed) in bounds.items():
        if value < 0 or not below:
            raise ValueError(f"{flag}.{name}={value}: must be {allowed}")
    if loss.name == "ohem" and not loss.threshold and not loss.min_kept:
        raise ValueError(
            f"{flag}.loss: with threshold=0 and min_kept=0 no pixel is hard; raise one"
        )


def _check_crf(stage: StageConfig, flag: str, seen: dict[str, StageConfig]) -> None:
    crf, trains = stage.crf, stage.trains
    if crf is None:
        if trains == "crf":
            raise ValueError(f"{flag}.trains='crf': the stage has no CRF; give .crf")
        return
    if trains not in ("crf", "all"):
        raise ValueError(
            f"{flag}.crf: .trains={trains!r} does not train it; add a stage with "
            ".trains='crf', or use .trains='all'"
        )
    if trains == "all" and crf.kind == "dense":
        raise ValueError(
            f"{flag}.crf.kind='dense': cannot be trained with the network; use "
            ".trains='crf', or .crf.kind='rnn'"
        )
    if trains == "crf":
        _check_start_of_crf(stage, flag, seen)
    _check_crf_values(crf, f"{flag.removeprefix('--config.')}.crf.")


def _check_start_of_crf(
    stage: StageConfig, flag: str, seen: dict[str, StageConfig]
) -> None:
    if not stage.start:
        raise ValueError(f"{flag}.trains='crf': give the network's stage as .start")
    if stage.context != seen[stage.start].context:
        raise ValueError(
            f"{flag}.context: must be that of .start={stage.start!r}, because a CRF "
            "stage does not change the network"
        )


def _check_crf_values(crf: CRFConfig, prefix: str) -> None:
    sigmas = ("spatial_sigma", "bilateral_sigma_xy", "bilateral_sigma_rgb")
    counts = ("iterations", "train_steps", "search_images")
    _check_positive(crf, prefix, *sigmas, *counts)
    for name in ("spatial_weight", "bilateral_weight"):
        value = getattr(crf, name)
        if value < 0:
            raise ValueError(f"--config.{prefix}{name}={value}: must not be negative")


def _check_positive(owner: Any, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value <= 0:
            raise ValueError(f"--config.{prefix}{name}={value}: must be positive")
