"""The released data layer on NumPy arrays (Yu & Koltun 2016, §4, A; its release).

Images are padded by reflection, cropped at random, and mirrored. Labels are sampled at
the network's output stride, starting from the first output cell of the crop.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance

from dilax.data.pixels import as_float

Example = dict[str, np.ndarray]


def subtract_mean(image, mean):
    """(…, c) uint8 or uint16 → float32, channels reversed, minus the mean pixel.

    RGB becomes BGR on the 0..255 scale, as in the release; 16-bit values are scaled to
    the same range. NumPy or JAX.

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
    """Return positions on an axis of n pixels, endlessly reflected. NumPy or JAX.

    Example:
        >>> reflected(np.arange(-2, 5), 3).tolist()
        [2, 1, 0, 1, 2, 1, 0]
    """
    period = max(2 * (n - 1), 1)
    return abs((at + n - 1) % period - (n - 1))


def reflect_pad(image: np.ndarray, top: int, bottom: int, left: int, right: int):
    """Pad (h, w, …) by reflection without repeating the edge, as often as necessary.

    Example:
        >>> reflect_pad(np.array([[1, 2, 3]]), 0, 0, 2, 3).tolist()
        [[3, 2, 1, 2, 3, 2, 1, 2]]
    """
    widths = ((top, bottom), (left, right)) + ((0, 0),) * (image.ndim - 2)
    return np.pad(image, widths, mode="reflect")


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize images (h, w, c) bilinearly, or labels (h, w) by the nearest, to `size`.

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
    """Resize an image and its label by the same factor.

    Example:
        >>> image, label = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
        >>> [half.shape for half in rescale(image, label, 0.5)]
        [(2, 3, 3), (2, 3)]
    """
    size = scaled_size(image.shape, scale)
    return resize(image, size), resize(label, size)


def jitter_colours(image: np.ndarray, rng: np.random.Generator, strength: float):
    """Scale brightness, contrast, and saturation by factors within 1 ± strength.

    Images that are not 8-bit RGB have no saturation, so only two factors.
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


@dataclasses.dataclass(frozen=True)
class CropGeometry:
    """How a crop of the padded image relates to its training labels.

    Attributes:
        crop: (height, width) in pixels of the network's input, including margins.
        margin: pixels of context on every side that have no labels.
        stride: image pixels from one label to the next: the network's output stride.
        ignore_label: written where the crop has no label.
        edge_crops: crops are only at the left or the right edge of the image (A.3
            trains jointly on halves of images).

    Example:
        >>> CropGeometry((628, 628), margin=186, stride=8).inner
        (256, 256)
    """

    crop: tuple[int, int]
    margin: int
    stride: int
    ignore_label: int = 255
    edge_crops: bool = False

    @property
    def inner(self) -> tuple[int, int]:
        """(height, width) in pixels of the crop without its margins."""
        return self.crop[0] - 2 * self.margin, self.crop[1] - 2 * self.margin

    def draw(self, size: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int]:
        """(y, x) of a crop in an image of (height, width), padded by the margin.

        Uniform over all positions within the padding; 0 if the crop is larger.
        """
        spare = [max(0, n - i) for n, i in zip(size, self.inner, strict=False)]
        y = int(rng.integers(spare[0] + 1))
        if self.edge_crops:
            return y, spare[1] * int(rng.integers(2))
        return y, int(rng.integers(spare[1] + 1))

    def cut(self, image: np.ndarray, label: np.ndarray, y: int, x: int) -> Example:
        """Return a crop of the reflection-padded image, and the labels at the stride.

        If the crop is larger than the image padded by the margin, reflection continues
        at the bottom and the right. Labels outside the image are ignored.

        Args:
            image: (h, w, c).
            label: (h, w) uint8.
            y: of the crop in the padded image.
            x: of the crop in the padded image.

        Returns:
            `{"image": crop × c, "label": ((crop − 2·margin) / stride)²}`.

        Source: the release's data layer; labels at offset 186 with stride 8.
        """
        margin, (height, width) = self.margin, self.inner
        bottom = margin + max(0, height - label.shape[0])
        right = margin + max(0, width - label.shape[1])
        padded = reflect_pad(image, margin, bottom, margin, right)
        label = label[y : y + height, x : x + width]
        labels = _fill(label, self.inner, self.ignore_label)
        return {
            "image": padded[y : y + self.crop[0], x : x + self.crop[1]],
            "label": labels[:: self.stride, :: self.stride],
        }


def _fill(array: np.ndarray, size: tuple[int, ...], value: int) -> np.ndarray:
    """Return (h, w, …) filled up to `size` at the bottom and the right."""
    widths = [(0, s - n) for s, n in zip(size, array.shape[:2], strict=True)]
    widths += [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=value)


def check_crop(crop: int, margin: int, stride: int, flag: str) -> None:
    """Check that a crop gives a whole number of output cells.

    Args:
        crop: side of the network's input in pixels.
        margin: see `CropGeometry`; 186 for VGG-16.
        stride: image pixels from one cell to the next.
        flag: named in the message.

    Raises:
        ValueError: unless crop − 2·margin is a positive multiple of stride.
    """
    inner = crop - 2 * margin
    if inner <= 0 or inner % stride:
        lower = 2 * margin + max(inner // stride, 1) * stride
        raise ValueError(
            f"{flag}={crop}: (crop - {2 * margin}) must be a positive multiple of "
            f"{stride}; the nearest that fit are {lower} and {lower + stride}"
        )


@dataclasses.dataclass
class Augmentation:
    """Random changes of training images.

    Attributes:
        mirror: flip left to right with probability ½, as in the release.
        scales: (lowest, highest) factor of a random resize; (1, 1) turns it off.
        colour: strength of random brightness, contrast, and saturation; 0 turns it off.

    Example:
        >>> Augmentation(scales=(0.75, 1.5)).mirror
        True
    """

    mirror: bool = True
    scales: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0

    def draw_mirror(self, rng: np.random.Generator) -> bool:
        """Whether the image is flipped."""
        return self.mirror and rng.random() < 0.5


@dataclasses.dataclass(frozen=True)
class ImageExample:
    """Turns a sample `{image, label}` into one training example.

    Attributes:
        geometry: crop, margin, and label stride.
        augmentation: random changes.
        scale: factor by which images are resized before anything else.

    Example:
        >>> example = ImageExample(CropGeometry((20, 20), 2, stride=8), Augmentation())
        >>> image, label = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
        >>> drawn = example({"image": image, "label": label}, np.random.default_rng(0))
        >>> drawn["image"].shape, drawn["label"].shape
        ((20, 20, 3), (2, 2))
    """

    geometry: CropGeometry
    augmentation: Augmentation
    scale: float = 1.0

    def __call__(self, sample: dict, rng: np.random.Generator) -> Example:
        """`{"image": crop, "label"}`; see `CropGeometry.cut`."""
        factor = self.scale * rng.uniform(*self.augmentation.scales)
        image, label = rescale(sample["image"], sample["label"], factor)
        if self.augmentation.colour:
            image = jitter_colours(image, rng, self.augmentation.colour)
        if self.augmentation.draw_mirror(rng):
            image, label = image[:, ::-1], label[:, ::-1]
        return self.geometry.cut(image, label, *self.geometry.draw(label.shape, rng))


@dataclasses.dataclass(frozen=True)
class MapExample:
    """Turns a sample `{image: stored maps, label}` into one training example.

    Smaller maps are padded with zeros at the bottom and the right, as the release pads
    them to 80×80; labels there are ignored.

    Attributes:
        cells: (height, width) of the crop in cells.
        map_stride: image pixels from one cell to the next.
        label_stride: image pixels from one label to the next: the output stride.
        ignore_label: written where there is no label.
        augmentation: maps are only mirrored.

    Example:
        >>> example = MapExample((2, 3), 8, 8, 255, Augmentation())
        >>> maps, label = np.zeros((4, 5, 21), np.float32), np.zeros((32, 40), np.uint8)
        >>> drawn = example({"image": maps, "label": label}, np.random.default_rng(0))
        >>> drawn["image"].shape, drawn["label"].shape
        ((2, 3, 21), (2, 3))
    """

    cells: tuple[int, int]
    map_stride: int
    label_stride: int
    ignore_label: int
    augmentation: Augmentation

    def __call__(self, sample: dict, rng: np.random.Generator) -> Example:
        """`{"image": (cells, k) float32 logits, "label": at label_stride}`."""
        maps, label, stride = sample["image"], sample["label"], self.map_stride
        height, width = self.cells
        y, x = (
            int(rng.integers(max(0, n - c) + 1))
            for n, c in zip(maps.shape[:2], self.cells, strict=True)
        )
        maps = _fill(maps[y : y + height, x : x + width], self.cells, 0)
        pixels = height * stride, width * stride
        label = label[y * stride :, x * stride :][: pixels[0], : pixels[1]]
        label = _fill(label, pixels, self.ignore_label)
        label = label[:: self.label_stride, :: self.label_stride]
        # Mirror last, so that each cell keeps the label of its own first pixel.
        if self.augmentation.draw_mirror(rng):
            maps, label = maps[:, ::-1], label[:, ::-1]
        return {"image": maps, "label": label}
