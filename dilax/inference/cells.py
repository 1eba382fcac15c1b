"""From images to cells: views of images as tiles, through the network in batches."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dilax.inference.blend import BlendGrid
from dilax.inference.tiles import TileGrid
from dilax.input import resize, scaled_size

_LARGE = 2**26  # pixels
_ROWS = 256
Plan = Callable[[tuple[int, int]], TileGrid | BlendGrid]


class View(NamedTuple):
    """One way in which the network sees an image.

    Attributes:
        scale: that the image is resized by.
        mirrored: whether left and right are swapped.
    """

    scale: float
    mirrored: bool = False

    def of(self, image: np.ndarray) -> np.ndarray:
        """What the network sees of an image (h, w, c)."""
        size = scaled_size(image.shape, self.scale)
        rgb = image.shape[2] == 3 and image.dtype == np.uint8
        large = rgb and max(len(image), size[0]) * max(image.shape[1], size[1]) > _LARGE
        image = resize_in_bands(image, size) if large else resize(image, size)
        return image[:, ::-1] if self.mirrored else image


def resize_in_bands(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What `resize` gives of (h, w, 3) uint8, without a second copy of the image.

    Each band is made of the rows that its filter reaches.
    """
    if image.shape[:2] == size:
        return image
    ratio = len(image) / size[0]
    reach = math.ceil(max(1, ratio)) + 1
    result = np.empty((*size, 3), np.uint8)
    for y in range(0, size[0], _ROWS):
        below = min(y + _ROWS, size[0])
        first = max(0, math.floor(y * ratio) - reach)
        last = min(len(image), math.ceil(below * ratio) + reach)
        box = (0, y * ratio - first, image.shape[1], below * ratio - first)
        band = Image.fromarray(image[first:last])
        wanted = (size[1], below - y)
        resized = band.resize(wanted, Image.Resampling.BILINEAR, box)
        result[y:below] = np.asarray(resized)
    return result


def check_image(image: np.ndarray, channels: int) -> None:
    """Refuses what is not an image.

    Raises:
        ValueError: unless it is (h, w, channels) uint8 or uint16.
    """
    shape = image.shape
    known = image.dtype in (np.uint8, np.uint16)
    if len(shape) != 3 or shape[2] != channels or 0 in shape or not known:
        kind = "uint8 RGB" if channels == 3 else "uint8 or uint16"
        raise ValueError(
            f"an image is (h, w, {channels}) {kind}, not {shape} {image.dtype}"
        )


def cell_bands(
    images: Sequence[np.ndarray], view: View, plan: Plan, run: Any, batch_size: int
) -> Iterator[Iterator[np.ndarray]]:
    """Bands of cells (rows, columns, k) of each image, from top to bottom.

    Args:
        images: of any sizes; their tiles share batches.
        view: of them.
        plan: size of what the network sees → grid of its tiles.
        run: tiles (b, h, w, c) → outputs (b, h', w', k).
        batch_size: tiles that run together.

    Yields:
        An iterator for each image, to be used up before the next one's.
    """
    grids = [plan(scaled_size(image.shape, view.scale)) for image in images]
    tiles = itertools.chain.from_iterable(
        grid.cut(view.of(image)) for image, grid in zip(images, grids, strict=True)
    )
    fill = len({g.tile for g in grids}) == 1 == len({i.dtype for i in images})
    outputs = in_batches(run, tiles, batch_size, fill)
    for grid in grids:
        yield grid.bands(itertools.islice(outputs, len(grid)))


def in_batches(
    run: Any, tiles: Iterator[np.ndarray], batch_size: int, fill: bool
) -> Iterator[np.ndarray]:
    """Runs tiles of one shape together; while a batch runs, the next one is cut.

    Args:
        run: tiles (b, h, w, c) → outputs (b, h', w', k).
        tiles: in order.
        batch_size: tiles of a batch.
        fill: fill batches that are not full, so that one shape is compiled.
    """
    running: Any = ()
    count = 0
    for _, same in itertools.groupby(tiles, lambda t: (t.shape, t.dtype)):
        while batch := list(itertools.islice(same, batch_size)):
            lack = batch_size - len(batch) if fill else 0
            started = run(np.stack([*batch, *[np.zeros_like(batch[0])] * lack]))
            yield from np.asarray(running)[:count]
            running, count = started, len(batch)
    yield from np.asarray(running)[:count]
