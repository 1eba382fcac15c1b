"""What a configuration describes, built: its data set, and a stage's network and CRF.

`check_config` checks that they can be built and trained. The parameters of a CRF-RNN
are `params["crf"]`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dilax.crf import CRFRNN
from dilax.data import DATASETS, Augmentation, DatasetSpec, Reading, survey_folder
from dilax.data.masks import MaskReading
from dilax.data.survey import Survey
from dilax.data.transforms import check_crop
from dilax.models import (
    Backbone,
    ContextModule,
    DilatedNet,
    FrontEnd,
    ResNet,
    init_params,
    named_network,
    param_shapes,
)
from dilax.runtime import jit
from dilax.runtime.files import printable
from dilax.runtime.processes import is_writer
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

Params = dict[str, Any]

_announced: set[tuple[str, ...]] = set()


def survey(data: DataConfig) -> Survey:
    """Return the contents of a configuration's folder; see `survey_folder`.

    What was found and decided is printed once per process.
    """
    found = survey_folder(
        data.data_dir,
        data.images,
        data.labels,
        data.classes,
        data.skip_unreadable,
        reading=MaskReading(data.masks, float(data.threshold), str(data.void)),
        orientation=data.orientation,
    )
    key = (str(Path(data.data_dir).expanduser().resolve()), *found.notes)
    if is_writer() and key not in _announced:
        _announced.add(key)
        lines = [f"{data.data_dir}:", *(f"  {note}" for note in found.notes)]
        print(printable("\n".join(lines)))
    return found


def build_spec(config: Config) -> DatasetSpec:
    """Return the summary of the data set, with the configuration's tile and scale.

    Example:
        >>> from dilax.training.recipes import quickstart
        >>> build_spec(quickstart()).num_classes
        8
    """
    data = config.data
    if data.dataset == "folder":
        spec = survey(data).spec
    elif data.dataset == "scenes":
        spec = DATASETS["scenes"]
    else:
        from dilax.data.prepared import prepared_spec  # importing tfds takes a second

        spec = prepared_spec(data.dataset, data.variant)
    model = config.model
    released = model.network == "front_end" and not model.backbone
    own = spec.tile if released and model.padding == "valid" else None
    return dataclasses.replace(spec, tile=data.tile or own, scale=data.scale)


def build_model(config: Config, stage: StageConfig, num_classes: int) -> DilatedNet:
    """Return the network of a stage: its front end with its context module."""
    fields, dtype = stage.model or config.model, jnp.dtype(config.dtype)
    trains_front_end = stage.trains in ("front_end", "all")
    norm = fields.batch_norm if trains_front_end else "frozen"
    options: dict[str, Any] = {
        "width_multiplier": fields.width_multiplier,
        "duc": fields.duc,
        "remat": stage.remat,
        "dtype": dtype,
    }
    front_end: Backbone
    if fields.backbone:
        kind = _own_backbone(fields.backbone)
        front_end = filled(kind, {"num_classes": num_classes, **options})
    elif fields.network != "front_end":
        front_end = named_network(
            fields.network, num_classes, fields.head_channels, norm, **options
        )
    else:  # the configuration's fields have the names of the network's
        options = {**vars(fields), **options, "num_classes": num_classes}
        if fields.blocks:
            padding = "reflect" if fields.padding == "reflect" else "same"
            options |= {"padding": padding, "batch_norm": norm}
        front_end = filled(ResNet if fields.blocks else FrontEnd, options)
    context = None
    if stage.context:
        context = ContextModule(
            num_classes * fields.duc**2,
            layers=stage.context,
            prefix=fields.context_prefix,
            padding=fields.context_padding,
            sigma=fields.context_sigma,
            dtype=dtype,
        )
    return DilatedNet(front_end, context, fields.upsample)


def filled(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass with those of the values whose names are its fields."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def _own_backbone(path: str) -> type[Backbone]:
    flag, (module, _, name) = f"--config.model.backbone={path}", path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{flag}: not found ({error}); use the form module:Class, and add the "
            "module's folder to PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Backbone)):
        raise ValueError(f"{flag}: is not a subclass of dilax.Backbone")
    return found


def build_rnn(config: CRFConfig, num_classes: int, scale: float = 1.0) -> CRFRNN:
    """Return the CRF-RNN of a stage, for images that are resized by `scale`."""
    return CRFRNN(
        num_classes,
        spatial_sigma=config.spatial_sigma * scale,
        bilateral_sigma_xy=config.bilateral_sigma_xy * scale,
        bilateral_sigma_rgb=config.bilateral_sigma_rgb,
        train_steps=config.train_steps,
        test_steps=config.iterations,
    )


def init_stage(
    model: DilatedNet, stage: StageConfig, spec: DatasetSpec, seed: int
) -> Params:
    """Initialize the parameters of a stage's network and of its CRF-RNN."""
    network = init_params(model, seed, len(spec.mean))
    return {**network, **jit(lambda: _init_crf(stage, spec))()}


def stage_shapes(model: DilatedNet, stage: StageConfig, spec: DatasetSpec) -> Params:
    """Return the shapes of `init_stage`'s result, without computing it."""
    crf = jax.eval_shape(lambda: _init_crf(stage, spec))
    return {**param_shapes(model, len(spec.mean)), **crf}


def _init_crf(stage: StageConfig, spec: DatasetSpec) -> Params:
    if stage.crf is None or stage.crf.kind == "dense":
        return {}
    rnn = build_rnn(stage.crf, spec.num_classes)
    logits = jnp.zeros((1, 8, 8, spec.num_classes))
    image = jnp.zeros((1, 8, 8, len(spec.mean)), jnp.uint8)
    return {"crf": rnn.init(jax.random.key(0), logits, image)["params"]}


def label_stride(model: DilatedNet, stage: StageConfig) -> int:
    """Return the distance between labels in training, in image pixels."""
    return 1 if stage.crf_kind == "rnn" else model.output_stride


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
