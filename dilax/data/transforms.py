"""The released data layer as pure functions on numpy arrays (paper §4, A; release).

Images are padded by reflection, cropped at random and mirrored; labels are sampled at
the network's output stride, from the pixel that the crop's first output cell stands on.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from dilax.data.pixels import as_float


@dataclasses.dataclass(frozen=True)
class CropGeometry:
    """How a crop of the padded image relates to the labels it is trained on.

    Attributes:
        crop: (height, width) in pixels of the network's input, margins included.
        margin: pixels of surroundings on every side that have no labels.
        stride: image pixels from one label to the next: the network's output stride.
        ignore_label: written where the crop has no label.
        halves: crops stand at the left or the right end of the image, not between
            (A.3 trains jointly on halves of images).

    Example:
        >>> CropGeometry((628, 628), margin=186, stride=8).inner
        (256, 256)
    """

    crop: tuple[int, int]
    margin: int
    stride: int
    ignore_label: int = 255
    halves: bool = False

    @property
    def inner(self) -> tuple[int, int]:
        """(height, width) in pixels of the crop without its margins."""
        return self.crop[0] - 2 * self.margin, self.crop[1] - 2 * self.margin


def check_crop(crop: int, margin: int, stride: int, flag: str) -> None:
    """Refuses crops that do not give whole output cells.

    Args:
        crop: side of the network's input in pixels.
        margin: see `CropGeometry`; 186 for VGG-16.
        stride: image pixels from one cell to the next.
        flag: named in the message.

    Raises:
        ValueError: unless crop − 2·margin is a positive multiple of stride.

    Example:
        >>> check_crop(628, margin=186, stride=8, flag="crop")  # 256 + 2 * 186
    """
    inner = crop - 2 * margin
    if inner <= 0 or inner % stride:
        lower = 2 * margin + max(inner // stride, 1) * stride
        raise ValueError(
            f"{flag}={crop}: (crop - {2 * margin}) must be a positive multiple of "
            f"{stride}; the nearest that fit are {lower} and {lower + stride}"
        )


def subtract_mean(image, mean):
    """(…, c) uint8 or uint16 → float32, channels reversed, minus the mean pixel.

    RGB becomes BGR on the 0..255 scale, as the release has it; 16-bit values are
    brought to that scale. NumPy or JAX.

    Args:
        image: channels in the order of the file.
        mean: in the reversed order, such as (B, G, R).

    Example:
        >>> pixel = np.array([[[10, 20, 30]]], np.uint8)
        >>> subtract_mean(pixel, (1.0, 2.0, 3.0)).tolist()
        [[[29.0, 18.0, 7.0]]]
    """
    return as_float(image[..., ::-1]) - np.asarray(mean, np.float32)


def reflected(at, n: int):
    """Positions on an axis of n pixels that is reflected without end. NumPy or JAX.

    Example:
        >>> reflected(np.arange(-2, 5), 3).tolist()
        [2, 1, 0, 1, 2, 1, 0]
    """
    period = max(2 * (n - 1), 1)
    return abs((at + n - 1) % period - (n - 1))


def reflect_pad(image: np.ndarray, top: int, bottom: int, left: int, right: int):
    """Pads (h, w, …) by reflection, edge pixel not repeated, bouncing where needed.

    Example:
        >>> reflect_pad(np.array([[1, 2, 3]]), 0, 0, 2, 3).tolist()
        [[3, 2, 1, 2, 3, 2, 1, 2]]
    """
    widths = ((top, bottom), (left, right)) + ((0, 0),) * (image.ndim - 2)
    return np.pad(image, widths, mode="reflect")


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes (h, w, c) images bilinearly, or (h, w) labels to the nearest, to `size`.

    Args:
        image: image, uint8 or uint16, or label, uint8.
        size: (height, width) of the result in pixels.

    Example:
        >>> resize(np.array([[1, 2]], np.uint8), (2, 4)).tolist()
        [[1, 1, 2, 2], [1, 1, 2, 2]]
    """
    if image.shape[:2] == tuple(size):
        return image
    if image.ndim == 2:
        return _resized(image, size, Image.Resampling.NEAREST)
    if image.shape[2] == 3 and image.dtype == np.uint8:
        return _resized(image, size, Image.Resampling.BILINEAR)
    planes = [
        _resized(plane.astype(np.float32), size, Image.Resampling.BILINEAR)
        for plane in np.moveaxis(image, -1, 0)
    ]
    return np.stack(planes, -1).round().astype(image.dtype)


def _resized(array: np.ndarray, size, method: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize(size[::-1], method))


def scaled_size(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    """(height, width) of an image of `shape` resized by `scale`, at least 1×1.

    Example:
        >>> scaled_size((375, 500, 3), 0.5)
        (188, 250)
    """
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def rescale(image: np.ndarray, label: np.ndarray, scale: float):
    """Image and label resized by the same factor.

    Example:
        >>> image, label = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
        >>> [half.shape for half in rescale(image, label, 0.5)]
        [(2, 3, 3), (2, 3)]
    """
    size = scaled_size(image.shape, scale)
    return resize(image, size), resize(label, size)


def jitter_colours(image: np.ndarray, rng: np.random.Generator, strength: float):
    """Scales brightness, contrast and saturation by factors within 1 ± strength.

    Images that are not 8-bit RGB have no saturation: two factors.
    """
    if image.shape[2] == 3 and image.dtype == np.uint8:
        picture = Image.fromarray(image)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for change in enhancers:
            picture = change(picture).enhance(1 + rng.uniform(-strength, strength))
        return np.asarray(picture)
    brightness, contrast = 1 + rng.uniform(-strength, strength, 2)
    bright = image.astype(np.float32) * brightness
    middle = bright.mean()
    changed = (bright - middle) * contrast + middle
    return changed.clip(0, np.iinfo(image.dtype).max).round().astype(image.dtype)


def mirror(image: np.ndarray, label: np.ndarray):
    """Image (or maps) and label flipped left to right."""
    return image[:, ::-1], label[:, ::-1]


def draw_place(
    size: tuple[int, ...], rng: np.random.Generator, geometry: CropGeometry
) -> tuple[int, int]:
    """(y, x) of a crop in the image padded by its margin.

    Uniform over all places within the padding; where the crop is larger, 0.

    Args:
        size: (height, width) of the image in pixels.
        rng: draws the place.
        geometry: sizes.
    """
    spare = [max(0, n - i) for n, i in zip(size, geometry.inner, strict=False)]
    y = int(rng.integers(spare[0] + 1))
    if geometry.halves:
        return y, spare[1] * int(rng.integers(2))
    return y, int(rng.integers(spare[1] + 1))


def cut_crop(
    image: np.ndarray, label: np.ndarray, place: tuple[int, int], geometry: CropGeometry
) -> dict[str, np.ndarray]:
    """A crop of the reflection-padded image, and the labels at the network's stride.

    Where the crop is larger than the image padded by `margin`, reflection goes on at
    the bottom and the right. Labels outside the image are ignored.

    Args:
        image: (h, w, c).
        label: (h, w) uint8.
        place: (y, x) of the crop in the padded image; see `draw_place`.
        geometry: sizes.

    Returns:
        `{"image": crop × c, "label": ((crop − 2·margin) / stride)²}`.

    Source: the release's data layer; labels at offset 186 with stride 8.
    """
    margin, inner, (y, x) = geometry.margin, geometry.inner, place
    lack = [max(0, i - n) for n, i in zip(image.shape[:2], inner, strict=True)]
    padded = reflect_pad(image, margin, margin + lack[0], margin, margin + lack[1])
    labels = np.pad(
        label[y : y + inner[0], x : x + inner[1]],
        ((0, lack[0]), (0, lack[1])),
        constant_values=geometry.ignore_label,
    )
    return {
        "image": padded[y : y + geometry.crop[0], x : x + geometry.crop[1]],
        "label": labels[:: geometry.stride, :: geometry.stride],
    }


def crop_maps(
    maps: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    cells: tuple[int, int],
    map_stride: int,
    label_stride: int,
    ignore_label: int = 255,
) -> dict[str, np.ndarray]:
    """A crop of stored front-end maps, and the labels of its cells.

    Smaller maps are padded with zeros at the bottom and the right, as the release pads
    them to 80×80; labels there are ignored.

    Args:
        maps: (hc, wc, k) float32 logits.
        label: (h, w) uint8 of the image that the maps were computed from.
        rng: draws the crop's place.
        cells: (height, width) of the crop in cells.
        map_stride: image pixels from one cell to the next.
        label_stride: image pixels from one label to the next: the output stride.
        ignore_label: written where there is no label.

    Returns:
        `{"image": (cells, k) float32, "label": labels at label_stride}`.
    """
    y, x = (
        int(rng.integers(max(0, n - c) + 1))
        for n, c in zip(maps.shape[:2], cells, strict=True)
    )
    maps = maps[y : y + cells[0], x : x + cells[1]]
    pixels = [c * map_stride for c in cells]
    label = label[
        y * map_stride : y * map_stride + pixels[0],
        x * map_stride : x * map_stride + pixels[1],
    ]
    return {
        "image": _fill(maps, cells, 0),
        "label": _fill(label, pixels, ignore_label)[::label_stride, ::label_stride],
    }


def _fill(array: np.ndarray, size, value: int) -> np.ndarray:
    widths = [(0, s - n) for s, n in zip(size, array.shape[:2], strict=True)]
    widths += [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=value)
