"""Label maps as pictures: palette PNGs, colours, overlays; image files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dilax.datasets import DatasetSpec
from dilax.datasets.writing import whole_or_not_at_all

_ROWS = 256


def palette_image(labels: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """(h, w) labels as a palette image: pixel values are class ids, ignored is white.

    Args:
        labels: train ids 0..k−1, or the ignore label.
        spec: palette and ignore label.

    Example:
        >>> from dilax.datasets import DATASETS
        >>> picture = palette_image(np.array([[0, 15]]), DATASETS["voc"])
        >>> picture.mode, picture.convert("RGB").getpixel((1, 0))
        ('P', (192, 128, 128))
    """
    table = np.zeros((256, 3), np.uint8)
    table[: spec.num_classes] = spec.palette
    table[spec.ignore_label] = 255
    image = Image.fromarray(labels.astype(np.uint8, copy=False))
    image.putpalette(table.ravel().tolist())
    return image


def colour_bands(labels: np.ndarray, spec: DatasetSpec) -> Iterator[np.ndarray]:
    """(h, w) labels in the classes' colours: (rows, w, 3) uint8, from top to bottom.

    Args:
        labels: train ids 0..k−1, or the ignore label.
        spec: palette and ignore label.
    """
    for y in range(0, len(labels), _ROWS):
        band = palette_image(labels[y : y + _ROWS], spec)
        yield np.asarray(band.convert("RGB"))


def overlay_bands(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, opacity: float = 0.6
) -> Iterator[np.ndarray]:
    """What `overlay` shows in bands: (rows, w, 3) uint8, from top to bottom."""
    for i, colours in enumerate(colour_bands(labels, spec)):
        below = as_rgb(image[i * _ROWS : (i + 1) * _ROWS])
        blended = Image.blend(Image.fromarray(below), Image.fromarray(colours), opacity)
        yield np.asarray(blended)


def overlay(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, opacity: float = 0.6
) -> Image.Image:
    """The image with the classes' colours over it.

    Args:
        image: (h, w, c) uint8 or uint16; RGB, or its first channels are shown as RGB.
        labels: (h, w) train ids.
        spec: palette.
        opacity: of the colours, 0..1.

    Example:
        >>> from dilax.datasets import DATASETS
        >>> image, labels = np.full((2, 3, 3), 100, np.uint8), np.full((2, 3), 15)
        >>> overlay(image, labels, DATASETS["voc"], opacity=0.5).getpixel((0, 0))
        (146, 114, 114)
    """
    bands = overlay_bands(image, labels, spec, opacity)
    return Image.fromarray(np.concatenate(list(bands)))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(h, w, c) uint8 or uint16 → (h, w, 3) uint8 to look at: the first 3 channels.

    The largest value of 16 bits becomes 255, as sensors seldom fill them.

    Example:
        >>> as_rgb(np.full((2, 2, 1), 7, np.uint8)).shape
        (2, 2, 3)
    """
    if image.dtype != np.uint8:
        image = (image * (255 / max(1, image.max()))).astype(np.uint8)
    return image[..., [min(i, image.shape[2] - 1) for i in range(3)]]


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image file whole or not at all; the suffix names the format.

    Raises:
        ValueError: if the suffix names no format that can be written.
        OSError: naming the file or its folder, if it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_image(Image.new("L", (4, 3)), Path(folder, "new", "a.png"))
        ...     Path(folder, "new", "a.png").exists()
        True
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{path}: {path.suffix!r} names no image format; take .png")
    with whole_or_not_at_all(path) as partial:
        image.save(partial, format=kind)
