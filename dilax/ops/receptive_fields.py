"""Receptive fields of stacked layers (paper §2), and the holes in them (gridding).

Figure 1 of the paper is the case of 3×3 kernels with dilations 1, 2, 4, …: fields of
2^{i+2} − 1. The last row of Table 1 (3, 5, 9, 17, 33, 65, 67, 67) is the Basic module.

Wang et al. (2018), "Understanding Convolution for Semantic Segmentation", §3.2, give a
rule of thumb (HDC) for dilation rates without holes. The rule accepts [2, 2, 2], which
has holes, so here the footprint itself decides.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class ReceptiveField(NamedTuple):
    """The receptive field of one output cell of a stack, in input pixels.

    Attributes:
        size: the side of the square that the cell depends on.
        stride: the distance between neighbouring output cells (the output stride).
        padding: pixels by which the square of cell 0 extends beyond the image's edge,
            if layers inside the stack pad.

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
        """The pixel on which cell 0 is centred; cell i is i·stride pixels further."""
        return (self.size - 1) / 2 - self.padding


def receptive_field(layers: Iterable[tuple[int, ...]]) -> ReceptiveField:
    """Compute the receptive field and output stride of a stack of layers.

    Args:
        layers: (kernel, dilation, stride, padding) of each layer in order; the last
            three default to 1, 1 and 0. Padding is in cells, before the first one. A
            pooling layer is (2, 1, 2).

    Returns:
        The `ReceptiveField` of one output cell.

    Raises:
        ValueError: if an entry is not a positive integer (padding may be 0), or if a
            layer has no entry or more than four.

    Example:
        >>> [receptive_field([(3, 1), (3, 2), (3, 4)][:n]).size for n in (1, 2, 3)]
        [3, 7, 15]
        >>> receptive_field([(3, 1, 2, 1), (3, 1, 2, 1)]).centre
        0.0

    Source: paper §2 and Table 1.
    """
    size, stride, before = 1, 1, 0
    for layer in layers:
        limits = zip(layer, (1, 1, 1, 0), strict=False)
        valid = all(isinstance(v, int) and v >= least for v, least in limits)
        if not valid or not 1 <= len(layer) <= 4:
            raise ValueError(
                f"layer {layer!r} is not (kernel, dilation, stride) > 0, padding >= 0"
            )
        kernel, dilation, step, padding = (*layer, *(1, 1, 0)[len(layer) - 1 :])
        size += dilation * (kernel - 1) * stride
        before += padding * stride
        stride *= step
    return ReceptiveField(size, stride, before)


Layers = tuple[tuple[int, int], ...]


class Gridding(NamedTuple):
    """The footprint of one cell of a stack of square kernels.

    Rows and columns have the same dilation, so `counts[y] · counts[x]` paths lead from
    the cell through the taps to pixel (y, x) of the field.

    Attributes:
        layers: (kernel, rate) of each layer.
        counts: (size,) number of paths to each pixel along an axis; exact up to 2⁵³.
        distances: M_1 … M_n of HDC's rule.

    Example:
        >>> found = gridding([2, 2, 2])
        >>> found.size, found.unseen, found.has_holes, found.rule_holds
        (13, 120, True, True)
    """

    layers: Layers
    counts: Float[np.ndarray, "n"]
    distances: tuple[int, ...]

    @property
    def size(self) -> int:
        """The side of the field, in pixels."""
        return len(self.counts)

    @property
    def unseen(self) -> int:
        """The number of pixels of the field on which the cell does not depend."""
        return self.size**2 - int(np.count_nonzero(self.counts)) ** 2

    @property
    def has_holes(self) -> bool:
        """Whether the cell does not depend on some pixel of its field."""
        return self.unseen > 0

    @property
    def rule_holds(self) -> bool:
        """HDC's rule: M_2 is not larger than the first kernel (M_1 ≤ 1 of one layer).

        It neither implies that there are no holes nor follows from that.
        """
        if len(self.layers) == 1:
            return self.distances[0] <= 1
        return self.distances[1] <= self.layers[0][0]


def gridding(layers: Iterable[int | tuple[int, int]]) -> Gridding:
    """Compute the footprint of a stack of dilated convolutions, and its holes.

    With f_0 the unit impulse, f_i = Σ_t δ_{r_i t} * f_{i−1} over the taps t of layer i.
    HDC's rule defines M_n = r_n and M_i = max(M_{i+1} − 2r_i, 2r_i − M_{i+1}, r_i), the
    largest distance between two non-zero taps at layer i, and requires M_2 ≤ K.

    Args:
        layers: (kernel, rate) of each layer in order, or only the rate for a kernel of
            3.

    Returns:
        See `Gridding`.

    Raises:
        ValueError: if there is no layer, or a kernel or rate is not a positive integer.

    Example:
        >>> gridding([2, 2, 2]).unseen, gridding([1, 2, 5]).has_holes
        (120, False)
        >>> gridding([1, 2, 3]).counts.astype(int).tolist()
        [1, 1, 2, 2, 3, 3, 3, 3, 3, 2, 2, 1, 1]

    Source: Wang et al. (2018), §3.2, Eq. 2; the footprint is ours.
    """
    table = as_layers(layers)
    counts = np.ones(1)
    for kernel, rate in table:
        taps = np.zeros(rate * (kernel - 1) + 1)
        taps[::rate] = 1
        counts = np.convolve(counts, taps)
    distances: list[int] = []  # M_n first
    for _, rate in reversed(table):
        last = distances[-1] if distances else rate
        distances.append(max(last - 2 * rate, 2 * rate - last, rate))
    return Gridding(table, counts, tuple(reversed(distances)))


def as_layers(layers: Iterable[int | tuple[int, int]]) -> Layers:
    """Return (kernel, rate) of each layer; see `gridding`."""
    table = tuple((3, v) if isinstance(v, int) else (v[0], v[1]) for v in layers)
    if not table or min(min(layer) for layer in table) < 1:
        raise ValueError(f"layers={table}: must be one or more (kernel, rate) > 0")
    return table


def suggest_rates(layers: Iterable[int | tuple[int, int]]) -> Layers:
    """Find the smallest rates of the same receptive field without holes.

    A contiguous field of w pixels stays contiguous under a rate up to w, so rates start
    at 1 and grow. The largest rate is as small as possible. If that many layers cannot
    reach as far, layers of the largest kernel are added.

    Args:
        layers: as for `gridding`; their kernels are kept.

    Returns:
        (kernel, rate) of each layer.

    Raises:
        ValueError: as `gridding`, or if no rates give exactly the same field, as may
            happen if some kernels have an even side.

    Example:
        >>> [rate for _, rate in suggest_rates([2, 2, 2])]
        [1, 2, 3]
        >>> [rate for _, rate in suggest_rates([5, 9, 17])]
        [1, 3, 9, 18]
    """
    table = as_layers(layers)
    kernels = [kernel for kernel, _ in table]
    reach = sum(rate * (kernel - 1) for kernel, rate in table)
    while math.prod(kernels) <= reach:  # the widest field: each rate the width before
        kernels.append(max(kernels))

    @functools.cache
    def rates(layer: int, left: int, largest: int) -> tuple[int, ...] | None:
        """Return the first rates in lexicographic order that cover the remainder."""
        if layer == len(kernels):
            return () if left == 0 else None
        width, taps = reach - left + 1, kernels[layer] - 1
        for rate in range(1, min(width, largest) + 1):
            after = left - rate * taps
            rest = rates(layer + 1, after, largest) if after >= 0 else None
            if rest is not None:
                return (rate, *rest)
        return None

    for largest in range(1, reach + 2):
        if found := rates(0, reach, largest):
            return tuple(zip(kernels, found, strict=True))
    raise ValueError(f"layers={table}: no rates of these kernels reach {reach + 1}")
