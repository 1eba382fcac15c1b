"""Tiles: the released protocol, and overlapping tiles that are blended.

The released protocol covers images of any size with tiles whose margins overlap; their
outputs are put side by side. A context module sees nothing beyond the edge of its tile.

Blended tiles overlap, and the weight of each decreases towards its edges, so that there
are no seams. Around them they see the real image, where it exists. Both need only
bounded memory.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from dilax.data.transforms import reflected


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """How tiles cover an image of (height, width) pixels.

    Attributes:
        tile: (height, width) of a tile in pixels, including margins.
        margin: pixels around the inside of a tile, on each side.
        rows: number of tiles from top to bottom.
        columns: number of tiles from left to right.

    Example:
        >>> len(TileGrid((900, 900), margin=186, rows=2, columns=1))
        2
    """

    tile: tuple[int, int]
    margin: int
    rows: int
    columns: int

    def __len__(self) -> int:
        return self.rows * self.columns

    def cut(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the tiles (tile height, tile width, c) of an image, row by row.

        The image is padded by the margin; the step between tiles is their inner size;
        the last row and column are completed by reflecting the tile itself at the
        bottom and right. Only one row of tiles is in memory at a time.

        Args:
            image: (h, w, c).

        Source: the release's prediction script.
        """
        rows = [self._pixels(image, 0, i) for i in range(self.rows)]
        columns = [self._pixels(image, 1, i) for i in range(self.columns)]
        return take_tiles(image, rows, columns)

    def _pixels(self, image: np.ndarray, axis: int, index: int) -> np.ndarray:
        """Return (tile,) indices of an axis for the index-th tile."""
        n, tile, margin = image.shape[axis], self.tile[axis], self.margin
        start = index * (tile - 2 * margin) - margin
        stop = min(start + tile, n + margin)
        own = reflected(np.arange(start, stop), n)
        return own[reflected(np.arange(tile), len(own))]

    def bands(self, outputs: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield outputs (h, w, k) of tiles side by side: (h, columns · w, k)."""
        for _ in range(self.rows):
            yield np.concatenate([next(outputs) for _ in range(self.columns)], 1)


def take_tiles(
    image: np.ndarray, rows: list[np.ndarray], columns: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield the image's pixels at each (rows, columns); columns change first."""
    for at in rows:
        strip = image.take(at, 0)
        for across in columns:
            yield strip.take(across, 1)


def plan_tiles(
    size: tuple[int, int], tile: tuple[int, int] | None, margin: int, stride: int
) -> TileGrid:
    """Return the grid of tiles that covers an image.

    Args:
        size: (height, width) of the image in pixels.
        tile: (height, width) of a tile, or None for one tile over the whole image, its
            inside rounded up to 4 cells so that few shapes are compiled.
        margin: see `TileGrid`.
        stride: image pixels from one cell of the output to the next.

    Raises:
        ValueError: if a tile is not larger than its margins.

    Example:
        >>> grid = plan_tiles((500, 300), (900, 900), margin=186, stride=8)
        >>> grid.rows, grid.columns, grid.tile
        (1, 1, (900, 900))
    """
    if tile is None:
        step = 4 * stride
        height, width = (-(-n // step) * step + 2 * margin for n in size)
        tile = height, width
    inner = [t - 2 * margin for t in tile]
    if min(inner) <= 0:
        raise ValueError(
            f"tile={tile}: must be larger than twice the margin of {margin} pixels"
        )
    rows, columns = (-(-n // i) for n, i in zip(size, inner, strict=True))
    return TileGrid(tile, margin, rows, columns)


def cut_tiles(image: np.ndarray, grid: TileGrid) -> np.ndarray:
    """Return all tiles of an image: (rows · columns, tile height, tile width, c).

    Example:
        >>> grid = plan_tiles((16, 40), (32, 32), margin=4, stride=8)
        >>> cut_tiles(np.zeros((16, 40, 3), np.uint8), grid).shape
        (2, 32, 32, 3)
    """
    return np.stack(list(grid.cut(image)))


_SIDE = 1024  # pixels of a tile's side, if the data set specifies none


@dataclasses.dataclass(frozen=True)
class BlendGrid:
    """How overlapping tiles cover an image, in cells of the network's output.

    Attributes:
        cells: (rows, columns) of the image.
        inner: (rows, columns) of a tile's output.
        margin: pixels around the inside of a tile, on each side.
        stride: image pixels from one cell to the next.
        rows: first row of each row of tiles.
        columns: first column of each column of tiles.
    """

    cells: tuple[int, int]
    inner: tuple[int, int]
    margin: int
    stride: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of a tile in pixels, including margins."""
        height, width = (n * self.stride + 2 * self.margin for n in self.inner)
        return height, width

    def cut(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the tiles (tile height, tile width, c) of an image, row by row.

        Beyond the image they contain its reflection.
        """
        rows = [self._pixels(image, 0, start) for start in self.rows]
        columns = [self._pixels(image, 1, start) for start in self.columns]
        return take_tiles(image, rows, columns)

    def _pixels(self, image: np.ndarray, axis: int, start: int) -> np.ndarray:
        at = start * self.stride - self.margin + np.arange(self.tile[axis])
        return reflected(at, image.shape[axis])

    def bands(self, outputs: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the image's cells from top to bottom, from the tiles' outputs in order.

        Σ_t w_t x_t / Σ_t w_t over the tiles t that see a cell; w is a product of ramps
        towards the tile's edges. A band is complete when no further tile reaches it.

        Args:
            outputs: each (inner rows, inner columns, k).

        Yields:
            (rows, image's columns, k) float32.
        """
        weights, total = _weights(self.rows, self.inner[0])
        held = np.zeros((0, 1, 1), np.float32)
        for row, after in itertools.pairwise((*self.rows, self.cells[0])):
            cells = self._side_by_side(outputs) * weights[:, None, None]
            cells[: len(held)] += held
            done, held = np.split(cells, [after - row])
            yield done / total[row:after, None, None]

    def _side_by_side(self, outputs: Iterator[np.ndarray]) -> np.ndarray:
        """Blend a row of tiles: (inner rows, image's columns, k)."""
        weights, total = _weights(self.columns, self.inner[1])
        tiles = [next(outputs) for _ in self.columns]
        cells = np.zeros((len(tiles[0]), len(total), tiles[0].shape[2]), np.float32)
        for column, tile in zip(self.columns, tiles, strict=True):
            cells[:, column : column + len(weights)] += tile * weights[:, None]
        return (cells / total[:, None])[:, : self.cells[1]]


def plan_blend(
    size: tuple[int, int],
    tile: tuple[int, int] | None,
    margin: int,
    stride: int,
    overlap: float,
    unit: int = 1,
) -> BlendGrid:
    """Return the grid of overlapping tiles that covers an image.

    Args:
        size: (height, width) of the image in pixels.
        tile: (height, width) of a tile in pixels, including margins, rounded down to
            whole cells; None takes 1024, or more if margins are large.
        margin: see `BlendGrid`.
        stride: see `BlendGrid`.
        overlap: minimum fraction of a tile's inside that it shares with the next.
        unit: a tile's inside is a multiple of this many cells.

    Raises:
        ValueError: if a tile has no cell inside its margins, or the overlap is not
            between 0 and ½.
    """
    if not 0 <= overlap <= 0.5:
        raise ValueError(f"overlap={overlap}: must be between 0 and 0.5")
    sides = tile or (max(_SIDE, 4 * margin),) * 2
    inner = [(side - 2 * margin) // (stride * unit) * unit for side in sides]
    if min(inner) < 1:
        raise ValueError(
            f"tile={tile}: must be larger than twice the margin of {margin} pixels, "
            f"by at least {stride * unit}"
        )
    cells = [-(-n // stride) for n in size]
    rows, columns = (
        _starts(n, i, round(overlap * i)) for n, i in zip(cells, inner, strict=True)
    )
    return BlendGrid(
        (cells[0], cells[1]), (inner[0], inner[1]), margin, stride, rows, columns
    )


def _starts(cells: int, inner: int, shared: int) -> tuple[int, ...]:
    """Return first cells of evenly spread tiles that share `shared` cells or more."""
    spare = max(0, cells - inner)
    count = -(-spare // max(1, inner - shared)) + 1
    return tuple(round(i * spare / max(1, count - 1)) for i in range(count))


def _weights(starts: tuple[int, ...], inner: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (inner,) weights of a tile's cells, and (cells,) their sums over tiles."""
    steps = [after - before for before, after in itertools.pairwise(starts)]
    shared = inner - max(steps, default=inner - 1)
    ramp = (np.arange(inner) + 0.5) / max(1, shared)
    weights = np.minimum(1, np.minimum(ramp, ramp[::-1])).astype(np.float32)
    total = np.zeros(starts[-1] + inner, np.float32)
    for start in starts:
        total[start : start + inner] += weights
    return weights, total
