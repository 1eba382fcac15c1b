"""The network of a run as plain data, and the network that the data describes."""

import dataclasses
from typing import Literal

from jax.typing import DTypeLike

from dilax.models import (
    DEEP_STEM,
    VGG16,
    Block,
    ContextLayer,
    ContextModule,
    DilatedNet,
    FrontEnd,
    Layer,
    ResNet,
)


@dataclasses.dataclass
class ModelConfig:
    """Fields of `FrontEnd` or `ResNet`, `ContextModule` and `DilatedNet`; see there.

    The context module's table belongs to the stage, as stages compare tables.

    Attributes:
        blocks: a table of these makes a `ResNet` of the front end, and leaves `layers`,
            `head_channels` and `norm` out of account.
        batch_norm: of a `ResNet`, in the stages that train it.
    """

    layers: tuple[Layer, ...] = VGG16
    width_multiplier: float = 1.0
    head_channels: int | None = None
    final_name: str = "final"
    padding: Literal["valid", "same", "reflect"] = "valid"
    norm: bool = False
    blocks: tuple[Block, ...] = ()
    stem: tuple[tuple[int, int, int], ...] = DEEP_STEM
    batch_norm: Literal["running", "frozen"] = "running"
    final_rates: tuple[int, ...] = ()
    duc: int = 1
    context_prefix: str = "ctx_"
    context_padding: Literal["layer", "entry"] = "layer"
    context_border: Literal["zero", "reflect"] = "zero"
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
    """The network of a configuration with a stage's context module.

    Args:
        model: the configuration.
        num_classes: C.
        context: the context module's table; empty for none.
        trains_front_end: else its batch normalisation is frozen.
        remat: of the front end.
        dtype: of the computation.
    """
    module = ContextModule(
        num_classes * model.duc**2,
        context,
        model.context_prefix,
        model.context_padding,
        model.context_border,
        model.context_sigma,
        dtype,
    )
    front_end: FrontEnd | ResNet
    if model.blocks:
        norm = model.batch_norm if trains_front_end else "frozen"
        front_end = _resnet(model, num_classes, norm, remat, dtype)
    else:
        front_end = _vgg(model, num_classes, remat, dtype)
    return DilatedNet(front_end, module if context else None, model.upsample)


def _vgg(
    model: ModelConfig, num_classes: int, remat: bool, dtype: DTypeLike
) -> FrontEnd:
    return FrontEnd(
        num_classes,
        model.layers,
        model.width_multiplier,
        model.head_channels,
        model.final_name,
        model.padding,
        model.norm,
        remat,
        dtype,
        model.final_rates,
        model.duc,
    )


def _resnet(
    model: ModelConfig,
    num_classes: int,
    norm: Literal["running", "frozen"],
    remat: bool,
    dtype: DTypeLike,
) -> ResNet:
    return ResNet(
        num_classes,
        model.blocks,
        model.stem,
        model.width_multiplier,
        model.final_name,
        model.final_rates,
        model.duc,
        "reflect" if model.padding == "reflect" else "same",
        norm,
        remat,
        dtype,
    )
