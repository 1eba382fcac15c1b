"""Whether the values of masks are ids of classes, or levels of brightness.

JPEG, resizing, and smooth edges leave values between those of a mask, and 255 may be an
object or mark unlabelled pixels. This module decides whether that is in doubt.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dilax.data.masks import CLEAN, MaskValues

Masks = Sequence[tuple[Path, MaskValues]]

VOID_IDS = (255, 65535)
_SHOWN = 20
_SMALL = {255: 32, 65535: 1 << 14}  # if all other ids are smaller, it is surely void


class Found(NamedTuple):
    """The number of pixels that have a value, and a mask that contains it."""

    pixels: int
    path: Path


def few(values: Sequence) -> str:
    shown = ", ".join(map(str, values[:_SHOWN]))
    return shown + " …" * (len(values) > _SHOWN)


def doubt_of(
    found: Mapping[int, Found], masks: Masks, void: set[int], decided: bool
) -> str:
    """Return why the meaning of the ids is in doubt, and how to decide; or ""."""
    top, path = max(found), found[max(found)].path
    palettes = {entry for _, values in masks for entry in values.palette.items()}
    if any(colour != (i, i, i) for i, colour in palettes):
        return ""  # the ids are indices of colours
    levels = _levels(found)
    if levels:
        return (
            f"{path}: the values gather at {few(levels)}, as JPEG or smooth edges "
            f"leave them{level_help(found)}"
        )
    if decided or top not in VOID_IDS:
        return ""
    rest = [i for i in found if i not in void]
    if any(values.negative for _, values in masks) or rest == [0]:
        return ""
    steps = rest == [*range(rest[0], rest[-1] + 1)] and rest[0] <= 1
    dense = 2 * len(rest) > rest[-1]
    in_doubt = len(rest) < 2 or not (steps or dense or rest[-1] <= _SMALL[top])
    if rest == [0, 1]:
        # Two-level masks may be of two kinds, or contain traces of noise.
        kinds = [{*(values.ids or ())} - {0} for _, values in masks]
        apart = {1} in kinds and {top} in kinds and {1, top} not in kinds
        in_doubt |= apart or found[1].pixels < 0.05 * found[top].pixels
    if not in_doubt:
        return ""
    return (
        f"{path}: contains {top} beside {few(rest)}, and it may be a class or mark "
        f"unlabelled pixels: --config.data.void={top} ignores it, =none makes it a "
        "class" + level_help(found)
    )


def _levels(found: Mapping[int, Found]) -> list[int]:
    """Return the values at which a histogram gathers, with thin tails; [] if it does
    not.

    JPEG and interpolation leave values near those of a clean mask, or between them. The
    ids of classes are rarely just below 255 or another high value, and seldom all rare.
    """
    if max(found) > 255:
        return []
    total = sum(seen.pixels for seen in found.values())
    share = [found[v].pixels / total if v in found else 0.0 for v in range(256)]
    near = 16
    peaks = [
        v
        for v in found
        if share[v] > 0.02 and share[v] == max(share[max(0, v - near) : v + near + 1])
    ]
    tail = [v for v in found if v not in peaks]
    beside = [v for v in tail for p in peaks if p >= 64 and abs(p - v) <= near]
    bright = [v for v in found if v >= 200]
    if len(found) > 100 and len(bright) > 20 and (255 in found or max(share) > 0.3):
        return peaks or [*found]  # a picture: shades everywhere
    extremes = len(peaks) == 2 and peaks[0] < 8 and peaks[1] > 247
    if not 2 <= len(peaks) <= 8 or not beside:
        return []
    thin = sum(share[v] for v in tail) < (0.6 if extremes else 0.35)
    return peaks if thin and max(share[v] for v in tail) < 0.1 else []


def level_help(found: Mapping[int, Found]) -> str:
    """Return the histogram and the flags that decide, if values are of brightness."""
    if max(found) < 64:
        return ""
    total = sum(seen.pixels for seen in found.values())
    most = sorted(found, key=lambda v: -found[v].pixels)
    shown = ", ".join(f"{v} {found[v].pixels / total:.1%}" for v in most[:8])
    others = sum(found[v].pixels for v in most[8:]) / total
    more = f", {len(most) - 8} others {others:.1%}" if most[8:] else ""
    middle = max(found) // 2 + 1
    return (
        f". Values: {shown}{more}. --config.data.threshold={middle} makes two classes, "
        f"below and from {middle} on; {CLEAN}; or name each value with --classes, "
        "'0 background', and void what is ignored"
    )
