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


def named_network(name: Named, num_classes: int, **options: Any) -> FrontEnd | DRN:
    """A network of the literature, to stand where the front end stands.

    All pad inside. FCN-8s and SegNet give scores at the image's own resolution, the
    others at an eighth of it.

    Args:
        name: which.
        num_classes: C.
        **options: fields of the network, such as `width_multiplier`, `dtype` or
            `remat`; `head_channels` (of fc6 and fc7) where it has those layers.

    Raises:
        ValueError: if there is no network of this name.

    Example:
        >>> net = named_network("deeplab_largefov", 21)
        >>> net.output_stride, net.receptive_field.size
        (8, 435)
    """
    match name:
        case "fcn8s":
            return FCN8s(num_classes, **options)
        case "segnet":
            return SegNet(num_classes, **options)
        case "deeplab":
            return FrontEnd(num_classes, DEEPLAB, padding="same", **options)
        case "deeplab_7x7":
            return FrontEnd(num_classes, DEEPLAB_7X7, padding="same", **options)
        case "deeplab_msc":
            options |= {"branches": MULTI_SCALE}
            return FrontEnd(num_classes, DEEPLAB, padding="same", **options)
        case "deeplab_largefov":
            return FrontEnd(num_classes, DEEPLAB_LARGE_FOV, padding="same", **options)
        case "deeplab_msc_largefov":
            options |= {"branches": MULTI_SCALE}
            return FrontEnd(num_classes, DEEPLAB_LARGE_FOV, padding="same", **options)
        case "drn_c_26":
            return DRN(num_classes, DRN_C_26, **options)
        case "drn_d_22":
            return DRN(num_classes, DRN_D_22, **options)
        case "drn_d_38":
            return DRN(num_classes, DRN_D_38, **options)
        case "drn_d_54":
            return DRN(num_classes, DRN_D_54, **options)
    raise ValueError(f"network={name!r}: must be one of {', '.join(get_args(Named))}")
