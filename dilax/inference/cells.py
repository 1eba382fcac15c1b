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


class Placing(NamedTuple):
    """The positions of an image's pixels among the cells of one view of it.

    Attributes:
        rows: (h,) position of each row, in cells.
        columns: (w,) position of each column.
        span: number of cells along an axis that a block of pixels may need.
    """

    rows: np.ndarray
    columns: np.ndarray
    span: int


def place(
    size: tuple[int, ...],
    scale: float,
    stride: int,
    centred: bool = False,
    mirrored: bool = False,
) -> Placing:
    """Return the positions of an image's pixels among the cells of its resized version.

    Args:
        size: (height, width) of the image.
        scale: as for `scaled_size`.
        stride: the network's pixels from one cell to the next.
        centred: whether cell i is at the centre of its pixels, not at the first of
            them.
        mirrored: whether the network saw the mirrored image.

    Example:
        >>> place((4, 4), 1.0, 2).rows.tolist()
        [0.0, 0.5, 1.0, 1.5]
    """
    axes = []
    for n, m in zip(size[:2], scaled_size(size, scale), strict=True):
        pixels = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
        cells = (pixels + 0.5) / stride - 0.5 if centred else pixels / stride
        axes.append(np.maximum(cells, 0))
    rows, columns = axes
    span = int((BLOCK * scale + 1) / stride) + 3
    return Placing(rows, columns[::-1] if mirrored else columns, span)


class CellRows:
    """A window over rows of cells that arrive in bands; it moves down only.

    Args:
        bands: each (rows, columns, k), from top to bottom.
    """

    def __init__(self, bands: Iterator[np.ndarray]):
        self._bands = bands
        self._held, self._first = next(bands), 0

    def window(self, start: int, count: int) -> np.ndarray:
        """Return `count` rows from `start`, repeating the last; drop earlier rows."""
        self._held = self._held[start - self._first :]
        self._first = start
        while len(self._held) < count:
            band = next(self._bands, None)
            if band is None:
                break
            self._held = np.concatenate([self._held, band])
        return _part(self._held, 0, count, axis=0)

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
    views: Sequence[tuple[CellRows, Placing]], read: Any
) -> Iterator[np.ndarray]:
    """Yield bands of an image's pixels, BLOCK rows each except the last.

    Args:
        views: cells and placing of each view of the image.
        read: `read_probabilities` or `read_labels`, compiled.
    """
    height, width = (len(axis) for axis in views[0][1][:2])
    for y in range(0, height, BLOCK):
        held = []
        for cells, placing in views:
            start, rows = _taps(placing.rows[y : y + BLOCK])
            held.append((cells.window(start, placing.span), rows))
        blocks = [
            read([_view(*h, v[1], x) for h, v in zip(held, views, strict=True)])
            for x in range(0, width, BLOCK)
        ]
        band = np.concatenate([np.asarray(block) for block in blocks], 1)
        yield band[: height - y, :width]
    for cells, _ in views:
        cells.finish()


def _view(cells: np.ndarray, rows: tuple, placing: Placing, x: int) -> tuple:
    start, columns = _taps(placing.columns[x : x + BLOCK])
    return _part(cells, start, placing.span, axis=1), rows, columns


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
