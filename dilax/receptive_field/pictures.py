"""Receptive fields to look at: in letters, and as images.

Figure 1 of Yu & Koltun (2016) is `stack_picture([1, 2, 4])`: fields of 3, 7 and 15.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt
from PIL import Image

from dilax.receptive_field.effective import EffectiveField
from dilax.receptive_field.gridding import Gridding, as_layers, gridding

_SHADES = "░▒▓█"
_UNSEEN = (255, 255, 255)
_AXIS = (40, 70, 160)
_RARE, _OFTEN = np.array([255.0, 215, 190]), np.array([150.0, 0, 0])


def in_letters(found: Gridding) -> str:
    """The field with `·` for pixels that are not seen, darker the more often seen.

    Example:
        >>> print(in_letters(gridding([2])))
        █·█·█
        ·····
        █·█·█
        ·····
        █·█·█
    """
    shares = _shares(np.outer(found.counts, found.counts))
    levels = np.ceil(shares * len(_SHADES)).astype(int)
    letters = "·" + _SHADES
    return "\n".join("".join(letters[level] for level in row) for row in levels)


def stack_picture(
    layers: Iterable[int | tuple[int, int]], pixel: int = 0
) -> UInt[np.ndarray, "h w 3"]:
    """What a cell sees through the first layer, the first two, and so on, in a row.

    Unseen pixels are white; seen ones redder the more paths lead there.

    Args:
        layers: as `gridding` takes them.
        pixel: side of a pixel of the field in the picture; 0 chooses it by the field.

    Returns:
        An RGB picture.

    Raises:
        ValueError: as `gridding`.

    Example:
        >>> stack_picture([1, 2], pixel=4).shape  # two fields of 7 pixels, and a gap
        (28, 64, 3)
    """
    table = as_layers(layers)
    found = [gridding(table[: n + 1]) for n in range(len(table))]
    whole = found[-1].size
    pixel = pixel or max(3, 240 // whole)
    panels = []
    for stack in found:
        counts = np.zeros(whole)
        start = (whole - stack.size) // 2
        counts[start : start + stack.size] = stack.counts
        panels.append(_panel(np.outer(counts, counts), pixel))
    gap = np.full((len(panels[0]), 2 * pixel, 3), 255, np.uint8)
    return np.concatenate([p for panel in panels for p in (panel, gap)][:-1], 1)


def heat_picture(field: EffectiveField) -> UInt[np.ndarray, "h w 3"]:
    """The heat map, its lines through the centre in blue; roots, as heat falls fast.

    Example:
        >>> heat_picture(EffectiveField(np.eye(3) / 3, (1.0, 1.0), (0.8, 0.8))).shape
        (3, 3, 3)
    """
    shares = np.sqrt(field.heat / field.heat.max())
    picture = _coloured(shares)
    y, x = (round(c) for c in field.centre)
    picture[y, ::4] = picture[::4, x] = _AXIS
    return picture


def save_picture(picture: UInt[np.ndarray, "h w 3"], path: str) -> None:
    """Writes a picture in the format that the file's name ends in.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_picture(stack_picture([1, 2, 4]), f"{folder}/figure1.png")
        ...     Image.open(f"{folder}/figure1.png").mode
        'RGB'
    """
    Image.fromarray(picture).save(path)


def _shares(counts: np.ndarray) -> np.ndarray:
    """0 of what is not seen, and up to 1 by the logarithm of how often."""
    logs = np.log(np.maximum(counts, 1))
    most = logs.max()
    shares = 0.1 + 0.9 * logs / most if most else np.ones_like(logs)
    return np.where(counts > 0, shares, 0)


def _panel(counts: Float[np.ndarray, "n n"], pixel: int) -> np.ndarray:
    picture = _coloured(_shares(counts))
    large = np.kron(picture, np.ones((pixel, pixel, 1), np.uint8))
    lines = slice(None, None, pixel if pixel > 3 else len(large) - 1)
    large[lines] = large[:, lines] = 225  # between pixels where there is room
    large[-1] = large[:, -1] = 225
    return large


def _coloured(shares: np.ndarray) -> np.ndarray:
    colours = _RARE + shares[..., None] * (_OFTEN - _RARE)
    return np.where(shares[..., None] > 0, colours, _UNSEEN).astype(np.uint8)
