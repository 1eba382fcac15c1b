"""Cleaning masks of the values that JPEG and smooth edges leave between classes."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from dilax.data.masks import read_mask
from dilax.data.spec import RGB

_NEAR = 24.0  # of 255: JPEG at usual qualities changes flat areas by less
_SHARE = 0.005


def main_colours(paths: Sequence[Path]) -> dict[RGB, float]:
    """Return the main colours of masks, with the share of the pixels near each.

    A pixel is near a colour if it differs by less than 24 in all channels; colours with
    less than 0.5 % of the pixels near them do not count.

    Raises:
        ValueError: naming the file, if it is not an image.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.png")
        ...     Image.fromarray(np.array([[0, 1, 0, 255]], np.uint8)).save(path)
        ...     main_colours([path])
        {(0, 0, 0): 0.75, (255, 255, 255): 0.25}
    """
    counts = Counter[RGB]()
    for path in paths:
        mask = Image.fromarray(np.ascontiguousarray(read_mask(path, "colours")))
        found: Any = mask.getcolors(mask.width * mask.height)
        counts.update({colour: number for number, colour in found})
    colours = np.array([*counts])
    left = np.array([*counts.values()], float)
    total, shares = left.sum(), {}
    while left.max() > 0:
        colour = colours[left.argmax()]
        near = np.abs(colours - colour).max(1) < _NEAR
        share = left[near].sum() / total
        left[near] = 0
        if share >= _SHARE:
            r, g, b = colour.tolist()
            shares[r, g, b] = float(share)
    return shares


def cleaned(mask: np.ndarray, colours: Sequence[RGB]) -> np.ndarray:
    """Return a mask (h, w, 3) that has only these colours.

    Pixels near one of the colours take it; other pixels take the colour of the nearest
    such pixel, so that an edge between two classes does not become a third class.
    """
    table = np.array(colours, np.uint8)
    difference = np.abs(mask[:, :, None].astype(np.int16) - table).max(-1)
    ids = difference.argmin(-1)
    unclear = difference.min(-1) >= _NEAR
    if unclear.any() and not unclear.all():
        places = distance_transform_edt(
            unclear, return_distances=False, return_indices=True
        )
        ids = ids[tuple(places)]
    return table[ids]


def clean_masks(paths: Sequence[Path], output: Path, colours: Sequence[RGB]) -> None:
    """Write masks that have only these colours, as PNG files of the same names.

    The masks are grey if all colours are, otherwise RGB.

    Raises:
        ValueError: naming the file, if it is not an image, or if two have the same
            name.
        OSError: if a file cannot be written.
    """
    if len({path.stem for path in paths}) < len(paths):
        raise ValueError(f"{paths[0].parent}: some masks differ only in their suffix")
    output.mkdir(parents=True, exist_ok=True)
    grey = all(r == g == b for r, g, b in colours)
    for path in paths:
        mask = cleaned(read_mask(path, "colours"), colours)
        image = Image.fromarray(np.ascontiguousarray(mask[..., 0] if grey else mask))
        image.save(output / f"{path.stem}.png")
