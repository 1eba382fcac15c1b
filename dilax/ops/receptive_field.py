"""Receptive-field arithmetic of any stack of (kernel, dilation, stride) layers.

Figure 1 of the paper is the case of 3×3 kernels with dilations 1, 2, 4, …: fields of
2^{i+2} − 1. Table 1's last row, 3, 5, 9, 17, 33, 65, 67, 67, is the Basic module's.
"""

from collections.abc import Iterable
from typing import NamedTuple


class ReceptiveField(NamedTuple):
    """What one output cell of a stack sees, in input pixels.

    Attributes:
        size: the side of the square that it sees.
        stride: the distance between neighbouring output cells (the output stride).
            Unpadded, cell i is centred on pixel i·stride + (size − 1) / 2.
    """

    size: int
    stride: int

    @property
    def margin(self) -> int:
        """Pixels to pad on every side so that h pixels give ceil(h / stride) cells."""
        return -(-(self.size - self.stride) // 2)


def receptive_field(
    layers: Iterable[tuple[int, ...]],
) -> ReceptiveField:
    """Receptive field and output stride of a stack of layers.

    Args:
        layers: (kernel, dilation, stride) of each layer in order; dilation and stride
            may be left out and are 1. A pooling layer is (2, 1, 2).

    Returns:
        The `ReceptiveField` of one output cell.

    Raises:
        ValueError: if an entry is not a positive integer, or a layer has none or more
            than three.

    Example:
        >>> [receptive_field([(3, 1), (3, 2), (3, 4)][:n]).size for n in (1, 2, 3)]
        [3, 7, 15]

    Source: paper §2 and Table 1.
    """
    size, stride = 1, 1
    for layer in layers:
        sound = all(isinstance(v, int) and v > 0 for v in layer)
        if not sound or not 1 <= len(layer) <= 3:
            raise ValueError(f"layer {layer!r} is not (kernel, dilation, stride) > 0")
        kernel, dilation, step = (*layer, 1, 1)[:3]
        size += dilation * (kernel - 1) * stride
        stride *= step
    return ReceptiveField(size, stride)
