"""The network of a run as plain data, and the network built from the data."""

import dataclasses
import importlib
from typing import Any, Literal

from jax.typing import DTypeLike

from dilax.models import (
    DEEP_STEM,
    VGG16,
    Backbone,
    Block,
    ContextLayer,
    ContextModule,
    DilatedNet,
    FrontEnd,
    Layer,
    Named,
    ResNet,
    named_network,
)


@dataclasses.dataclass
class ModelConfig:
    """Fields of `FrontEnd` or `ResNet`, `ContextModule`, and `DilatedNet`; see there.

    The context module's table belongs to the stage, because stages compare tables.

    Attributes:
        network: `"front_end"` is the network of the table `layers` or `blocks`;
            otherwise a name of `named_network`, which ignores the tables, `final_name`,
            `final_rates`, `padding`, and `stem`.
        blocks: a table of blocks makes the front end a `ResNet`, which ignores `layers`
            and `head_channels`.
        backbone: `"module:Class"`, your own `Backbone` instead of `network` and the
            tables. The module must be importable wherever the run is read. The class
            gets `num_classes`, and `width_multiplier`, `duc`, `remat`, and `dtype` if
            it has such fields.
        batch_norm: kind of batch normalization in the stages that train the front end,
            for networks that have any.

    Example:
        >>> ModelConfig(width_multiplier=0.125, padding="same").network
        'front_end'
    """

    network: Literal["front_end", Named] = "front_end"
    layers: tuple[Layer, ...] = VGG16
    width_multiplier: float = 1.0
    head_channels: int | None = None
    final_name: str = "final"
    padding: Literal["valid", "same", "reflect"] = "valid"
    blocks: tuple[Block, ...] = ()
    backbone: str = ""
    stem: tuple[tuple[int, int, int], ...] = DEEP_STEM
    batch_norm: Literal["running", "frozen"] = "running"
    final_rates: tuple[int, ...] = ()
    duc: int = 1
    context_prefix: str = "ctx_"
    context_padding: Literal["layer", "entry"] = "layer"
    context_sigma: float = 0.01
    upsample: bool = False


def build_network(
    model: ModelConfig,
    num_classes: int,
    context: tuple[ContextLayer, ...],
    *,
    trains_front_end: bool,
    remat: bool,
    dtype: DTypeLike,
) -> DilatedNet:
    """Return the network of a configuration, with a stage's context module.

    Args:
        model: the configuration.
        num_classes: C.
        context: the context module's table; empty for none.
        trains_front_end: if false, its batch normalization is frozen.
        remat: of the front end.
        dtype: of the computation.
    """
    norm = model.batch_norm if trains_front_end else "frozen"
    options: dict[str, Any] = {
        "width_multiplier": model.width_multiplier,
        "duc": model.duc,
        "remat": remat,
        "dtype": dtype,
    }
    final: dict[str, Any] = {
        "final_name": model.final_name,
        "final_rates": model.final_rates,
    }
    front_end: Backbone
    if model.backbone:
        front_end = _own_backbone(model.backbone, num_classes, options)
    elif model.network != "front_end":
        front_end = named_network(
            model.network, num_classes, model.head_channels, norm, **options
        )
    elif model.blocks:
        front_end = ResNet(
            num_classes,
            model.blocks,
            model.stem,
            padding="reflect" if model.padding == "reflect" else "same",
            batch_norm=norm,
            **options,
            **final,
        )
    else:
        front_end = FrontEnd(
            num_classes,
            model.layers,
            head_channels=model.head_channels,
            padding=model.padding,
            **options,
            **final,
        )
    module = ContextModule(
        num_classes * model.duc**2,
        layers=context,
        prefix=model.context_prefix,
        padding=model.context_padding,
        sigma=model.context_sigma,
        dtype=dtype,
    )
    return DilatedNet(front_end, module if context else None, model.upsample)


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
