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
        padding: pixels of the square of cell 0 that lie before the image, where layers
            pad inside.

    Example:
        >>> ReceptiveField(size=15, stride=1).centre, ReceptiveField(373, 8).margin
        (7.0, 183)
    """

    size: int
    stride: int
    padding: int = 0

    @property
    def margin(self) -> int:
        """Pixels to pad on every side so that h pixels give ceil(h / stride) cells."""
        return -(-(self.size - self.stride) // 2)

    @property
    def centre(self) -> float:
        """The pixel on which cell 0 is centred; cell i is i·stride further."""
        return (self.size - 1) / 2 - self.padding


def receptive_field(
    layers: Iterable[tuple[int, ...]],
) -> ReceptiveField:
    """Receptive field and output stride of a stack of layers.

    Args:
        layers: (kernel, dilation, stride, padding) of each layer in order; what is left
            out at the end is 1, 1 and 0. Padding is in cells, before the first one. A
            pooling layer is (2, 1, 2).

    Returns:
        The `ReceptiveField` of one output cell.

    Raises:
        ValueError: if an entry is not a positive integer (padding may be 0), or a layer
            has none or more than four.

    Example:
        >>> [receptive_field([(3, 1), (3, 2), (3, 4)][:n]).size for n in (1, 2, 3)]
        [3, 7, 15]
        >>> receptive_field([(3, 1, 2, 1), (3, 1, 2, 1)]).centre
        0.0

    Source: paper §2 and Table 1.
    """
    size, stride, before = 1, 1, 0
    for layer in layers:
        least = (1, 1, 1, 0)[: len(layer)]
        sound = all(
            isinstance(v, int) and v >= m for v, m in zip(layer, least, strict=False)
        )
        if not sound or not 1 <= len(layer) <= 4:
            raise ValueError(
                f"layer {layer!r} is not (kernel, dilation, stride) > 0, padding >= 0"
            )
        kernel, dilation, step, padding = (*layer, *(1, 1, 0)[len(layer) - 1 :])
        size += dilation * (kernel - 1) * stride
        before += padding * stride
        stride *= step
    return ReceptiveField(size, stride, before)
