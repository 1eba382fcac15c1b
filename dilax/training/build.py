"""What a configuration describes: its data set, and a stage's network and CRF.

A CRF-RNN's parameters are `params["crf"]`. It trains on the pixels of the crop without
its margin: the network's probabilities are upsampled as in prediction, the augmented
crop is the image, and every pixel has a label. Where a crop extends beyond its image,
image and probabilities are continued by reflection, and labels are ignored.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dilax.crf import CRFRNN
from dilax.data import DATASETS, DatasetSpec, survey_folder
from dilax.data.masks import MaskReading
from dilax.data.survey import Survey
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
from dilax.training.config import Config, CRFConfig, DataConfig, StageConfig

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
    final: dict[str, Any] = {
        "final_name": fields.final_name,
        "final_rates": fields.final_rates,
    }
    front_end: Backbone
    if fields.backbone:
        front_end = _own_backbone(fields.backbone, num_classes, options)
    elif fields.network != "front_end":
        front_end = named_network(
            fields.network, num_classes, fields.head_channels, norm, **options
        )
    elif fields.blocks:
        front_end = ResNet(
            num_classes,
            fields.blocks,
            fields.stem,
            padding="reflect" if fields.padding == "reflect" else "same",
            batch_norm=norm,
            **options,
            **final,
        )
    else:
        front_end = FrontEnd(
            num_classes,
            fields.layers,
            head_channels=fields.head_channels,
            padding=fields.padding,
            **options,
            **final,
        )
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


def _own_backbone(path: str, num_classes: int, options: dict[str, Any]) -> Backbone:
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
    fields = {field.name for field in dataclasses.fields(found)}
    own = {name: value for name, value in options.items() if name in fields}
    make: Any = found
    return make(num_classes=num_classes, **own)


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
