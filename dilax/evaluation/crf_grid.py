"""Which parameters of a dense CRF a search tries, coarse and fine (Chen et al. 2015).

All are scales, so values stand in ratios to each other: the coarse grid's default steps
are factors of 2, and the fine grid's half of that, factors of √2.
"""

import dataclasses
import itertools
import math

Point = dict[str, float]


@dataclasses.dataclass(frozen=True)
class CRFGrid:
    """The values of each parameter; all their combinations are tried.

    A parameter of one value is fixed. The default's span what Chen et al. published,
    with weights below theirs, which change little, for networks that no CRF helps.

    Attributes:
        bilateral_weight: of the kernel that sees position and colour.
        bilateral_sigma_xy: its bandwidth in pixels.
        bilateral_sigma_rgb: its bandwidth in units of colour, 0..255.
        spatial_weight: of the kernel that sees position alone.
        spatial_sigma: its bandwidth in pixels.

    Raises:
        ValueError: if a parameter has no value, or one that is not positive.

    Example:
        >>> grid = CRFGrid((1.0, 4.0), (50.0,), (3.0, 12.0))
        >>> len(grid.points())
        4
        >>> grid.around(grid.points()[0]).bilateral_weight
        (0.5, 1.0, 2.0)
    """

    bilateral_weight: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    bilateral_sigma_xy: tuple[float, ...] = (30.0, 60.0, 120.0)
    bilateral_sigma_rgb: tuple[float, ...] = (3.0, 6.0, 12.0)
    spatial_weight: tuple[float, ...] = (3.0,)
    spatial_sigma: tuple[float, ...] = (3.0,)

    def __post_init__(self):
        for name, values in dataclasses.asdict(self).items():
            if not values or not all(0 < v < math.inf for v in values):
                raise ValueError(
                    f"grid: {name}={values!r}; must be positive numbers, one at least"
                )
            ordered = tuple(sorted({float(v) for v in values}))
            object.__setattr__(self, name, ordered)

    def points(self) -> list[Point]:
        """Every combination, as arguments of `DenseCRF`.

        Those of equal bandwidths stand together, by rising weights.
        """
        values = dataclasses.asdict(self)
        order = sorted(values, key=lambda name: "sigma" not in name)
        found = itertools.product(*(values[name] for name in order))
        return [dict(zip(order, point, strict=True)) for point in found]

    def around(self, point: Point) -> "CRFGrid":
        """The fine grid: a point of this one, and half a step up and down from it.

        A step is the ratio to the next value, half a step its square root; beyond the
        last value, the step before is taken again.
        """
        values = dataclasses.asdict(self)
        return CRFGrid(**{n: _around(v, point[n]) for n, v in values.items()})


def _around(values: tuple[float, ...], value: float) -> tuple[float, ...]:
    if len(values) == 1:
        return values
    ratios = [b / a for a, b in itertools.pairwise(values)]
    i = values.index(value)
    down, up = ratios[max(i - 1, 0)], ratios[min(i, len(ratios) - 1)]
    return _rounded(value / math.sqrt(down)), value, _rounded(value * math.sqrt(up))


def _rounded(value: float) -> float:
    """To three digits, for people."""
    return float(f"{value:.3g}")
