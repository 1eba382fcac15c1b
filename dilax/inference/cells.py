"""From images to the network's cells, and from cells to pixels, in bands of rows.

Views of images (resized, mirrored) go through the network as batches of tiles. Pixels
are then read from the cells by linear interpolation. As in the released script, output
pixel p is read at p / 8 between the cells (top-left aligned). The pixels of a resized
image are read where their centres are in the resized image, those of a mirrored image
from right to left. This is done in blocks of one shape, so that images of all sizes
share one compiled program.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dilax.data import resize, scaled_size
from dilax.inference.tiles import BlendGrid, TileGrid

_LARGE = 2**26  # pixels
_ROWS = 256
Plan = Callable[[tuple[int, int]], TileGrid | BlendGrid]


class View(NamedTuple):
    """One way in which the network sees an image.

    Attributes:
        scale: factor by which the image is resized.
        mirrored: whether left and right are swapped.
    """

    scale: float
    mirrored: bool = False

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return this view of an image (h, w, c)."""
        size = scaled_size(image.shape, self.scale)
        rgb = image.shape[2] == 3 and image.dtype == np.uint8
        large = rgb and max(len(image), size[0]) * max(image.shape[1], size[1]) > _LARGE
        image = resize_in_bands(image, size) if large else resize(image, size)
        return image[:, ::-1] if self.mirrored else image


def resize_in_bands(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `resize` of (h, w, 3) uint8, without a second copy of the image.

    Each band is computed from the rows that its filter reaches.
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
    """Check that an array is an image.

    Raises:
        ValueError: unless it is (h, w, channels) uint8 or uint16.
    """
    shape = image.shape
    known = image.dtype in (np.uint8, np.uint16)
    if len(shape) != 3 or shape[2] != channels or 0 in shape or not known:
        kind = "uint8 RGB" if channels == 3 else "uint8 or uint16"
        remedy = ""
        if image.dtype.kind == "f" and image.size and image.min() >= 0:
            unit = "255 * image" if image.max() <= 1 else "image"
            remedy = f": give ({unit}).astype(np.uint8)"
        elif len(shape) == 3 and shape[0] == channels != shape[2]:
            remedy = ": it looks like (c, h, w); give .transpose(1, 2, 0)"
        raise ValueError(
            f"an image is (h, w, {channels}) {kind}, not {shape} {image.dtype}{remedy}"
        )


def cell_bands(
    images: Sequence[np.ndarray],
    views: Sequence[View],
    plan: Plan,
    run: Any,
    batch_size: int,
) -> Iterator[Iterator[np.ndarray]]:
    """Yield bands of cells (rows, columns, k) of each image, from top to bottom.

    Args:
        images: of any sizes; their tiles share batches.
        views: one for each image.
        plan: size of a view → grid of its tiles.
        run: tiles (b, h, w, c) → outputs (b, h', w', k).
        batch_size: number of tiles that run together.

    Yields:
        An iterator for each image, which must be exhausted before the next one is used.
    """
    grids = [
        plan(scaled_size(image.shape, view.scale))
        for image, view in zip(images, views, strict=True)
    ]
    tiles = itertools.chain.from_iterable(
        grid.cut(view.of(image))
        for image, view, grid in zip(images, views, grids, strict=True)
    )
    fill = len({g.tile for g in grids}) == 1 == len({i.dtype for i in images})
    outputs = in_batches(run, tiles, batch_size, fill)
    for grid in grids:
        yield grid.bands(itertools.islice(outputs, len(grid)))


def in_batches(
    run: Any, tiles: Iterator[np.ndarray], batch_size: int, fill: bool
) -> Iterator[np.ndarray]:
    """Run tiles of one shape together; while a batch runs, the next one is cut.

    Args:
        run: tiles (b, h, w, c) → outputs (b, h', w', k).
        tiles: in order.
        batch_size: tiles per batch.
        fill: pad batches that are not full, so that only one shape is compiled.
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


BLOCK = 256  # pixels per side of the blocks that are computed together


class Cells:
    """The cells of one view of an image, and the positions of its pixels among them.

    Only the rows of cells that a block of pixels needs are in memory.

    Args:
        bands: the cells, each (rows, columns, k), from top to bottom.
        size: (height, width) of the image.
        view: how the network saw the image.
        stride: pixels of the view from one cell to the next.
        centred: whether cell i is at the centre of its pixels, not at the first of
            them.
    """

    def __init__(
        self,
        bands: Iterator[np.ndarray],
        size: tuple[int, ...],
        view: View,
        stride: int,
        centred: bool,
    ):
        self._bands, self._held, self._first = bands, next(bands), 0
        # Cells along an axis that a block of pixels may need: of one shape for all.
        self._span = int((BLOCK * view.scale + 1) / stride) + 3
        axes = []
        for n, m in zip(size[:2], scaled_size(size, view.scale), strict=True):
            pixels = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
            cells = (pixels + 0.5) / stride - 0.5 if centred else pixels / stride
            axes.append(np.maximum(cells, 0))
        self._rows, columns = axes
        self._columns = columns[::-1] if view.mirrored else columns

    def blocks(self, y: int) -> list[tuple]:
        """Return the cells of each block of pixels from row y, and how to read them.

        See `read_probabilities`. The rows above are dropped.
        """
        start, rows = _taps(self._rows[y : y + BLOCK])
        self._held, self._first = self._held[start - self._first :], start
        while len(self._held) < self._span:
            if (band := next(self._bands, None)) is None:
                break
            self._held = np.concatenate([self._held, band])
        band = _part(self._held, 0, self._span, axis=0)
        blocks = []
        for x in range(0, len(self._columns), BLOCK):
            start, columns = _taps(self._columns[x : x + BLOCK])
            blocks.append((_part(band, start, self._span, axis=1), rows, columns))
        return blocks

    def finish(self) -> None:
        """Consume the bands that no pixel needed."""
        for _ in self._bands:
            pass


def read_probabilities(views: Sequence[tuple], logits: bool):
    """Return the mean over views of a block's class probabilities: (BLOCK, BLOCK, k).

    Args:
        views: each (cells (n, n, k), rows, columns), where rows and columns are (cell
            before, fraction of the way to the next) of each row and column.
        logits: whether the cells are logits; otherwise they are probabilities.
    """
    blocks = [_interpolate(*view) for view in views]
    if logits:
        blocks = [jax.nn.softmax(block) for block in blocks]
    return sum(blocks[1:], blocks[0]) / len(blocks)


def read_labels(views: Sequence[tuple], logits: bool):
    """Return the most probable class of a block's pixels: (BLOCK, BLOCK) uint8."""
    return jnp.argmax(read_probabilities(views, logits), -1).astype(jnp.uint8)


def _interpolate(cells, rows, columns):
    for axis, (before, part) in enumerate((rows, columns)):
        part = part.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        low, high = (
            jnp.take(cells, at, axis, mode="clip") for at in (before, before + 1)
        )
        cells = low + part * (high - low)
    return cells


def pixel_bands(
    size: tuple[int, ...], views: Sequence[Cells], read: Any
) -> Iterator[np.ndarray]:
    """Yield bands of an image's pixels, BLOCK rows each except the last.

    Args:
        size: (height, width) of the image.
        views: the cells of each view of the image.
        read: `read_probabilities` or `read_labels`, compiled.
    """
    height, width = size[:2]
    for y in range(0, height, BLOCK):
        blocks = zip(*(cells.blocks(y) for cells in views), strict=True)
        started = [read(list(of_views)) for of_views in blocks]
        band = np.concatenate([np.asarray(block) for block in started], 1)
        yield band[: height - y, :width]
    for cells in views:
        cells.finish()


def _taps(places: np.ndarray) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """Return a block's first cell, and (cell before, fraction) of each pixel."""
    places = np.pad(places, (0, BLOCK - len(places)), mode="edge")
    before = np.floor(places).astype(np.int32)
    start = int(before.min())
    return start, (before - start, (places - before).astype(np.float32))


def _part(array: np.ndarray, start: int, count: int, axis: int) -> np.ndarray:
    """Return `count` rows or columns from `start`, repeating the last one if needed."""
    at = np.arange(start, start + count)
    return array.take(np.minimum(at, array.shape[axis] - 1), axis)
