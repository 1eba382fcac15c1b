"""PNG files of colour images that are written band by band, and never held whole.

Pillow encodes images that are in memory, with four bytes a pixel. A PNG is a run of
chunks; one compressed stream may be cut into any number of them.

Source: ISO/IEC 15948, the PNG specification, §5 (chunks), §9 (filters).
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dilax.datasets.writing import whole_or_not_at_all

PNG_END = b"IEND\xaeB`\x82"  # the last chunk of every PNG, but for its length
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SUB = 1  # the filter that gives each byte's difference from the pixel to its left


def save_bands(bands: Iterator[np.ndarray], size: tuple[int, int], path: Path) -> None:
    """Writes an RGB image whole or not at all.

    Args:
        bands: (rows, w, 3) uint8 from top to bottom.
        size: (h, w) of the image.
        path: the file.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    header = struct.pack(">IIBBBBB", size[1], size[0], 8, 2, 0, 0, 0)
    packer = zlib.compressobj()
    with whole_or_not_at_all(path) as partial, partial.open("wb") as file:
        file.write(_SIGNATURE + _chunk(b"IHDR", header))
        for band in bands:
            file.write(_chunk(b"IDAT", packer.compress(_filtered(band))))
        file.write(_chunk(b"IDAT", packer.flush()) + _chunk(b"IEND", b""))


def _filtered(band: np.ndarray) -> bytes:
    rows = np.full((len(band), 1 + 3 * band.shape[1]), _SUB, np.uint8)
    differences = np.diff(band, axis=1, prepend=np.zeros_like(band[:, :1]))
    rows[:, 1:] = differences.reshape(len(band), -1)
    return rows.tobytes()


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    length, check = len(content), zlib.crc32(checked)
    return struct.pack(">I", length) + checked + struct.pack(">I", check)
