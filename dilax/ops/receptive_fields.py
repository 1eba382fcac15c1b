"""Gridding: the holes that stacked dilated convolutions leave in what a cell sees.

Wang et al. (2018), "Understanding Convolution for Semantic Segmentation", §3.2, give a
rule of thumb for rates without holes. The rule passes [2, 2, 2], which has some: here
the footprint itself decides, and the rule only explains.

Receptive-field arithmetic of any stack of (kernel, dilation, stride) layers.

Figure 1 of the paper is the case of 3×3 kernels with dilations 1, 2, 4, …: fields of
2^{i+2} − 1. Table 1's last row, 3, 5, 9, 17, 33, 65, 67, 67, is the Basic module's.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


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


Layers = tuple[tuple[int, int], ...]


class Gridding(NamedTuple):
    """What one cell of a stack of square kernels sees.

    Rows and columns are dilated alike, so the pixel (y, x) of the field is reached on
    `counts[y] · counts[x]` paths from taps to taps.

    Attributes:
        layers: (kernel, rate) of each layer.
        counts: (size,) ways in which the cell reaches each pixel along an axis; exact
            up to 2⁵³.
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
        """Pixels of the field, size² in all, that the cell does not see."""
        return self.size**2 - int(np.count_nonzero(self.counts)) ** 2

    @property
    def has_holes(self) -> bool:
        """Whether the cell misses any pixel of its field: the verdict."""
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
    """The footprint of a stack, its holes, and how often each pixel is seen.

    With f_0 the unit impulse, f_i = Σ_t δ_{r_i t} * f_{i−1} over the taps t of layer i.
    HDC's rule takes M_n = r_n, M_i = max(M_{i+1} − 2r_i, 2r_i − M_{i+1}, r_i), the
    largest distance between two non-zero taps as layer i sees it, and wants M_2 ≤ K.

    Args:
        layers: (kernel, rate) of each layer in order, or its rate alone, which stands
            for a kernel of 3.

    Returns:
        See `Gridding`.

    Raises:
        ValueError: if there is no layer, or a kernel or rate is no positive integer.

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
    return Gridding(table, counts, _distances(table))


def as_layers(layers: Iterable[int | tuple[int, int]]) -> Layers:
    """(kernel, rate) of each layer; see `gridding`."""
    table = tuple((3, v) if isinstance(v, int) else (v[0], v[1]) for v in layers)
    if not table or min(min(layer) for layer in table) < 1:
        raise ValueError(f"layers={table}: must be (kernel, rate) > 0, one at least")
    return table


def _distances(table: Layers) -> tuple[int, ...]:
    rates = [rate for _, rate in reversed(table)]
    found = [rates[0]]
    for rate in rates[1:]:
        found.append(max(found[-1] - 2 * rate, 2 * rate - found[-1], rate))
    return tuple(reversed(found))


def suggest_rates(layers: Iterable[int | tuple[int, int]]) -> Layers:
    """A stack with the same reach and no holes: the smallest rates that do.

    A contiguous field of w pixels stays contiguous under a rate up to w, so rates start
    at 1 and grow. The largest of them is as small as can be. Where that many layers
    cannot reach so far, more of the largest kernel are added.

    Args:
        layers: as `gridding` takes them; kernels stay as they are.

    Raises:
        ValueError: as `gridding`, or if no rates reach exactly as far (kernels of which
            some have an even side may not).

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
    for largest in range(1, reach + 2):
        rates = _search(kernels, reach, largest)
        if rates is not None:
            return tuple(zip(kernels, rates, strict=True))
    raise ValueError(f"layers={table}: no rates of these kernels reach {reach + 1}")


def _search(kernels: list[int], reach: int, largest: int) -> list[int] | None:
    """The first rates up to `largest`, in the order of a dictionary, or None."""

    @functools.cache
    def rest(layer: int, left: int) -> tuple[int, ...] | None:
        if layer == len(kernels):
            return () if left == 0 else None
        width, taps = reach - left + 1, kernels[layer] - 1
        for rate in range(1, min(width, largest) + 1):
            after = left - rate * taps
            found = rest(layer + 1, after) if after >= 0 else None
            if found is not None:
                return (rate, *found)
        return None

    found = rest(0, reach)
    return list(found) if found is not None else None
