"""Networks by name: the four released ones, the baselines, and DRNs; parameters."""

from collections.abc import Callable
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
from dilax.models.context import BASIC, CITYSCAPES, KITTI, LARGE, ContextModule
from dilax.models.dilated_net import Backbone, DilatedNet
from dilax.models.front_end import FrontEnd
from dilax.models.residual import (
    DRN,
    DRN_C_26,
    DRN_D_22,
    DRN_D_38,
    DRN_D_54,
    DRN_LIGHT,
    LIGHT_STEM,
    ResNet,
)
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
    "drn_light",
]


_FRONT_ENDS = {
    "deeplab": (DEEPLAB, ()),
    "deeplab_7x7": (DEEPLAB_7X7, ()),
    "deeplab_msc": (DEEPLAB, MULTI_SCALE),
    "deeplab_largefov": (DEEPLAB_LARGE_FOV, ()),
    "deeplab_msc_largefov": (DEEPLAB_LARGE_FOV, MULTI_SCALE),
}
_RESIDUAL: dict[str, tuple[Any, ...]] = {  # levels, and another stem
    "drn_c_26": (DRN_C_26,),
    "drn_d_22": (DRN_D_22,),
    "drn_d_38": (DRN_D_38,),
    "drn_d_54": (DRN_D_54,),
    "drn_light": (DRN_LIGHT, LIGHT_STEM),
}


def named_network(
    name: Named,
    num_classes: int,
    head_channels: int | None = None,
    batch_norm: Literal["running", "frozen"] = "running",
    **options: Any,
) -> Backbone:
    """Return a published network, to use in place of the front end.

    The layers of all of them pad. FCN-8s and SegNet return scores at the image's own
    resolution, the others at an eighth of it.

    Args:
        name: which network.
        num_classes: C.
        head_channels: of fc6 and fc7, if `width_multiplier` should not set them; SegNet
            and residual networks have no such layers.
        batch_norm: for SegNet and residual networks, the only ones with batch
            normalization; see `Residual`.
        **options: other fields of the network: `width_multiplier`, `duc`, `remat`,
            `dtype`.

    Raises:
        ValueError: if there is no network of this name, or it has no `duc`.

    Example:
        >>> net = named_network("deeplab_largefov", 21)
        >>> net.output_stride, net.receptive_field.size
        (8, 435)
    """
    if name in _RESIDUAL:
        return DRN(num_classes, *_RESIDUAL[name], batch_norm=batch_norm, **options)
    options["head_channels"] = head_channels
    if name in _FRONT_ENDS:
        layers, branches = _FRONT_ENDS[name]
        return FrontEnd(
            num_classes, layers, padding="same", branches=branches, **options
        )
    if name not in ("fcn8s", "segnet"):
        names = ", ".join(get_args(Named))
        raise ValueError(f"network={name!r}: must be one of {names}")
    if (duc := options.pop("duc", 1)) != 1:
        raise ValueError(f"duc={duc}: {name} already returns scores for every pixel")
    if name == "fcn8s":
        return FCN8s(num_classes, **options)
    return SegNet(num_classes, batch_norm=batch_norm, **options)


def _net(num_classes, final_name, options, upsample=False, **context) -> DilatedNet:
    dtype = options.get("dtype", jnp.float32)
    return DilatedNet(
        FrontEnd(num_classes, final_name=final_name, **options),
        ContextModule(num_classes, dtype=dtype, **context),
        upsample,
    )


def dilation8_voc(num_classes: int = 21, **options: Any) -> DilatedNet:
    """Dilation8 of Pascal VOC: VGG-16 front end and Large context, padded by 33 once.

    Args:
        num_classes: C.
        **options: fields of `FrontEnd`, such as `width_multiplier`, `head_channels`
            or `dtype` (which also applies to the context module).

    Returns:
        A `DilatedNet` with the layer names of the release.

    Example:
        >>> model = dilation8_voc()
        >>> model.margin, model.output_stride, model.context.receptive_field.size
        (186, 8, 67)

    Source: released `dilation8_pascal_voc`; paper Table 1 (Large) and Table 4.
    """
    return _net(
        num_classes, "fc-final", options, layers=LARGE, prefix="ct_", padding="entry"
    )


def dilation8_camvid(num_classes: int = 11, **options: Any) -> DilatedNet:
    """Dilation8 of CamVid: VGG-16 front end and Basic context. Args as `dilation8_voc`.

    Example:
        >>> dilation8_camvid().num_classes, len(dilation8_camvid().context.layers)
        (11, 7)

    Source: released `dilation8_camvid`; paper A.1 and Table 5.
    """
    return _net(num_classes, "final", options, layers=BASIC)


def dilation7_kitti(num_classes: int = 11, **options: Any) -> DilatedNet:
    """Dilation7 of KITTI: a context module without Layer 6. Args as `dilation8_voc`.

    Example:
        >>> dilation7_kitti().context.receptive_field.size
        35

    Source: released `dilation7_kitti`; paper A.2 and Table 6.
    """
    return _net(num_classes, "final", options, layers=KITTI)


def dilation10_cityscapes(num_classes: int = 19, **options: Any) -> DilatedNet:
    """Dilation10 of Cityscapes: dilations up to 64, upsampled inside by `ctx_upsample`.

    The upsampling is fixed and has no parameters here. Args as `dilation8_voc`.

    Example:
        >>> dilation10_cityscapes().context.receptive_field.size
        259

    Source: released `dilation10_cityscapes`; paper A.3 and Tables 7 and 8.
    """
    return _net(num_classes, "final", options, upsample=True, layers=CITYSCAPES)


def resnet_duc(num_classes: int = 19, cell: int = 2, **options: Any) -> DilatedNet:
    """ResNet-101 with HDC's rates and a DUC head, as published for Cityscapes.

    Args:
        num_classes: C.
        cell: pixels from one score to the next, 8 / r: a divisor of 8. With 8 there is
            no dense upsampling.
        **options: fields of `ResNet`, such as `blocks=HDC50` or `width_multiplier`.

    Raises:
        ValueError: if the cell does not divide 8.

    Example:
        >>> resnet_duc(cell=2).output_stride
        2

    Source: Wang et al. (2018); the public definition.
    """
    if cell < 1 or 8 % cell:
        raise ValueError(f"cell={cell}: must be 1, 2, 4, or 8")
    return DilatedNet(ResNet(num_classes, duc=8 // cell, **options))


RELEASES: dict[str, Callable[..., DilatedNet]] = {
    "dilation8_voc": dilation8_voc,
    "dilation8_camvid": dilation8_camvid,
    "dilation7_kitti": dilation7_kitti,
    "dilation10_cityscapes": dilation10_cityscapes,
    "resnet_duc": resnet_duc,
}


def build(name: str, num_classes: int, **options: Any) -> DilatedNet:
    """Return a network by name.

    Args:
        name: `dilation8_voc`, `dilation8_camvid`, `dilation7_kitti`,
            `dilation10_cityscapes`, `resnet_duc`, or one of `Named`, which upsample
            their scores to every pixel.
        num_classes: C.
        **options: fields of the network, such as `width_multiplier` or `dtype`.

    Raises:
        ValueError: if there is no network of this name; it lists the names.

    Example:
        >>> build("drn_d_22", 11).output_stride
        1
        >>> build("dilation8_voc", 21) == dilation8_voc()
        True
    """
    if name in RELEASES:
        return RELEASES[name](num_classes, **options)
    if name not in get_args(Named):
        known = ", ".join([*RELEASES, *get_args(Named)])
        raise ValueError(f"{name!r}: no such network; there are {known}")
    network: Any = name
    return DilatedNet(named_network(network, num_classes, **options), upsample=True)


def init_params(model: DilatedNet, seed: int, channels: int = 3) -> dict[str, Any]:
    """Return fresh parameters for images with this number of channels.

    Example:
        >>> from dilax.models import FrontEnd, Layer
        >>> model = DilatedNet(FrontEnd(5, (Layer("conv1", 3, 4),)))
        >>> init_params(model, seed=0)["front_end"]["conv1"]["kernel"].shape
        (3, 3, 3, 4)
    """
    init = jit(_init, once=True, static_argnums=(0, 2))
    return init(model, jax.random.key(seed), channels)


def param_shapes(model: DilatedNet, channels: int = 3) -> dict[str, Any]:
    """Return the shapes of `init_params`, without computing the parameters.

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
