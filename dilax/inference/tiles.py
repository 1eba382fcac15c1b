"""The released tile protocol: images of any size as tiles with shared margins."""

import dataclasses

import numpy as np

from dilax.input import reflect_pad


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """How an image of (height, width) pixels is covered by tiles.

    Attributes:
        tile: (height, width) of a tile in pixels, margins included.
        margin: pixels of surroundings on each side of a tile.
        rows: tiles from top to bottom.
        columns: tiles from left to right.
    """

    tile: tuple[int, int]
    margin: int
    rows: int
    columns: int

    def __len__(self) -> int:
        return self.rows * self.columns


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
    """Cuts an image into tiles, filled up by reflection.

    The image is padded by the margin; tiles follow each other at their inner size; the
    last row and column are filled by reflecting the tile itself at its bottom and
    right.

    Args:
        image: (h, w, c).
        grid: from `plan_tiles`.

    Returns:
        (rows · columns, tile height, tile width, c), row by row.

    Source: the release's prediction script.
    """
    margin, (height, width) = grid.margin, grid.tile
    padded = reflect_pad(image, margin, margin, margin, margin)
    tiles = []
    for row in range(grid.rows):
        for column in range(grid.columns):
            y = row * (height - 2 * margin)
            x = column * (width - 2 * margin)
            tile = padded[y : y + height, x : x + width]
            lack = height - tile.shape[0], width - tile.shape[1]
            tiles.append(reflect_pad(tile, 0, lack[0], 0, lack[1]))
    return np.stack(tiles)


def join_tiles(tiles, grid: TileGrid):
    """(rows · columns, h, w, k) outputs side by side: (rows·h, columns·w, k)."""
    n, h, w, k = tiles.shape
    assert n == len(grid)
    tiles = tiles.reshape(grid.rows, grid.columns, h, w, k).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(grid.rows * h, grid.columns * w, k)
