"""The parameters that a network starts with, and their shapes.

The comparison systems of the paper's tables, and what came after, by name.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from dilax.models.baselines import (
    DEEPLAB,
    DEEPLAB_7X7,
    DEEPLAB_LARGE_FOV,
    MULTI_SCALE,
    FCN8s,
    SegNet,
)
from dilax.models.dilated_net import DilatedNet
from dilax.models.front_end import FrontEnd
from dilax.models.residual import DRN, DRN_C_26, DRN_D_22, DRN_D_38, DRN_D_54
from dilax.runtime import jit

Named = Literal[
    "fcn8s",
    "deeplab",
    "deeplab_7x7",
    "deeplab_msc",
    "deeplab_largefov",
    "deeplab_msc_largefov",
    "segnet",
    "drn_c_26",
    "drn_d_22",
    "drn_d_38",
    "drn_d_54",
]


_FRONT_ENDS = {
    "deeplab": (DEEPLAB, ()),
    "deeplab_7x7": (DEEPLAB_7X7, ()),
    "deeplab_msc": (DEEPLAB, MULTI_SCALE),
    "deeplab_largefov": (DEEPLAB_LARGE_FOV, ()),
    "deeplab_msc_largefov": (DEEPLAB_LARGE_FOV, MULTI_SCALE),
}
_RESIDUAL = {
    "drn_c_26": DRN_C_26,
    "drn_d_22": DRN_D_22,
    "drn_d_38": DRN_D_38,
    "drn_d_54": DRN_D_54,
}


def named_network(
    name: Named,
    num_classes: int,
    head_channels: int | None = None,
    batch_norm: Literal["running", "frozen"] = "running",
    **options: Any,
) -> FrontEnd | DRN:
    """A network of the literature, to stand where the front end stands.

    All pad inside. FCN-8s and SegNet give scores at the image's own resolution, the
    others at an eighth of it.

    Args:
        name: which.
        num_classes: C.
        head_channels: of fc6 and fc7, where they shall not follow the width; SegNet and
            residual networks have no such layers.
        batch_norm: of SegNet and residual networks, which alone have any; see `ResNet`.
        **options: other fields of the network: `width_multiplier`, `duc`, `remat`,
            `dtype`.

    Raises:
        ValueError: if there is no network of this name.

    Example:
        >>> net = named_network("deeplab_largefov", 21)
        >>> net.output_stride, net.receptive_field.size
        (8, 435)
    """
    if name in _RESIDUAL:
        return DRN(num_classes, _RESIDUAL[name], batch_norm=batch_norm, **options)
    options["head_channels"] = head_channels
    if name in _FRONT_ENDS:
        layers, branches = _FRONT_ENDS[name]
        return FrontEnd(
            num_classes, layers, padding="same", branches=branches, **options
        )
    match name:
        case "fcn8s":
            return FCN8s(num_classes, **options)
        case "segnet":
            return SegNet(num_classes, batch_norm=batch_norm, **options)
    raise ValueError(f"network={name!r}: must be one of {', '.join(get_args(Named))}")


def init_params(model: DilatedNet, seed: int, channels: int = 3) -> dict[str, Any]:
    """Fresh parameters for images of so many channels, decided by the seed.

    Example:
        >>> from dilax.models import FrontEnd, Layer
        >>> model = DilatedNet(FrontEnd(5, (Layer("conv1", 3, 4),)))
        >>> init_params(model, seed=0)["front_end"]["conv1"]["kernel"].shape
        (3, 3, 3, 4)
    """
    init = jit(_init, once=True, static_argnums=(0, 2))
    return init(model, jax.random.key(seed), channels)


def param_shapes(model: DilatedNet, channels: int = 3) -> dict[str, Any]:
    """What `init_params` gives, as shapes: nothing is computed.

    Example:
        >>> from dilax.models import dilation8_voc
        >>> param_shapes(dilation8_voc())["front_end"]["fc6"]["kernel"].shape
        (7, 7, 512, 4096)
    """
    key = jax.random.key(0)
    return jax.eval_shape(lambda: _init(model, key, channels))


def _init(model: DilatedNet, key: jax.Array, channels: int) -> dict[str, Any]:
    side = 2 * model.margin + 4 * model.map_stride
    return model.init(key, jnp.zeros((1, side, side, channels)))["params"]
