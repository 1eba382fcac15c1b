"""The released tile protocol: images of any size as tiles with shared margins."""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """How an image of (height, width) pixels is covered by tiles.

    Attributes:
        tile: (height, width) of a tile in pixels, margins included.
        margin: pixels of surroundings on each side of a tile.
        rows: tiles from top to bottom.
        columns: tiles from left to right.

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
        """The tiles (tile height, tile width, c) of an image, row by row.

        The image is padded by the margin; tiles follow each other at their inner size;
        the last row and column are filled by reflecting the tile itself at its bottom
        and right. Only a row of tiles is in memory at a time.

        Args:
            image: (h, w, c).

        Source: the release's prediction script.
        """
        rows = [self._pixels(image, 0, i) for i in range(self.rows)]
        columns = [self._pixels(image, 1, i) for i in range(self.columns)]
        return take_tiles(image, rows, columns)

    def _pixels(self, image: np.ndarray, axis: int, index: int) -> np.ndarray:
        """(tile,) which pixels of an axis the index-th tile is made of."""
        n, tile, margin = image.shape[axis], self.tile[axis], self.margin
        start = index * (tile - 2 * margin) - margin
        stop = min(start + tile, n + margin)
        own = reflected(np.arange(start, stop), n)
        return own[reflected(np.arange(tile), len(own))]

    def bands(self, outputs: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Outputs (h, w, k) of tiles in order → (h, columns · w, k), side by side."""
        for _ in range(self.rows):
            yield np.concatenate([next(outputs) for _ in range(self.columns)], 1)


def reflected(at: np.ndarray, n: int) -> np.ndarray:
    """Positions on an axis of n pixels that goes on by reflection without end.

    Example:
        >>> reflected(np.arange(-2, 5), 3).tolist()
        [2, 1, 0, 1, 2, 1, 0]
    """
    period = max(2 * (n - 1), 1)
    at = at % period
    return np.minimum(at, period - at) if n > 1 else at


def take_tiles(
    image: np.ndarray, rows: list[np.ndarray], columns: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """The image's pixels at each (rows, columns), the columns changing first."""
    for at in rows:
        strip = image.take(at, 0)
        for across in columns:
            yield strip.take(across, 1)


def plan_tiles(
    size: tuple[int, int], tile: tuple[int, int] | None, margin: int, stride: int
) -> TileGrid:
    """The grid of tiles that covers an image.

    Args:
        size: (height, width) of the image in pixels.
        tile: (height, width) of a tile, or None for one tile around the whole image,
            its inside rounded up to 4 cells so that few shapes are compiled.
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
    """All tiles of an image: (rows · columns, tile height, tile width, c).

    Example:
        >>> grid = plan_tiles((16, 40), (32, 32), margin=4, stride=8)
        >>> cut_tiles(np.zeros((16, 40, 3), np.uint8), grid).shape
        (2, 32, 32, 3)
    """
    return np.stack(list(grid.cut(image)))


def join_tiles(tiles, grid: TileGrid) -> np.ndarray:
    """(rows · columns, h, w, k) outputs side by side: (rows·h, columns·w, k).

    Example:
        >>> grid = plan_tiles((16, 40), (32, 32), margin=4, stride=8)
        >>> join_tiles(np.zeros((len(grid), 3, 3, 21)), grid).shape
        (3, 6, 21)
    """
    assert len(tiles) == len(grid)
    return np.concatenate(list(grid.bands(iter(tiles))))
