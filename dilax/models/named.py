"""The comparison systems of the paper's tables, and what came after, by name."""

from typing import Any, Literal, get_args

from dilax.models.deeplab import DEEPLAB, DEEPLAB_7X7, DEEPLAB_LARGE_FOV, MULTI_SCALE
from dilax.models.drn import DRN, DRN_C_26, DRN_D_22, DRN_D_38, DRN_D_54
from dilax.models.fcn import FCN8s
from dilax.models.front_end import FrontEnd
from dilax.models.segnet import SegNet

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
