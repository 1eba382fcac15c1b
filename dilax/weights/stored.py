"""The arrays of a file of weights, and the images that its network takes.

An array is read only after its shape is known to fit, and no reader uses more memory
than a small multiple of the file's size, whatever the file claims.

Our networks take BGR on the 0..255 scale minus the data set's mean pixel. The first
layer of another network is converted so that it computes the same:

    W * ((x − m) / σ) + b  =  (W / σ) * (x − m′) + b′
                        b′  =  b + Σ_{t,c} W_{t,c} (m′_c − m_c) / σ_c

This is exact where every tap of the first layer is on the image or on its reflection,
as in valid convolutions of a reflection-padded image. Where a layer pads with zeros,
these mean the pixel m′ instead of m.
"""

import contextlib
import dataclasses
import functools
import io
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The input of a network: (x − mean) / deviation, for x on the 0..255 scale.

    Attributes:
        mean: (B, G, R), or one number per channel of our images.
        deviation: the same; empty for no division.
        rgb: whether the first kernel's channels are R, G, B.

    Example:
        >>> CAFFE.rgb, TORCHVISION.rgb
        (False, True)
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...] = ()
    rgb: bool = False

    def __str__(self) -> str:
        order = "RGB" if self.rgb else "BGR"
        text = f"{order} minus (B, G, R) = {shown(self.mean)}"
        return text + (f" over {shown(self.deviation)}" if self.deviation else "")


# The Caffe files of VGG's authors, and Keras's, which were converted from them.
CAFFE = Inputs((103.939, 116.779, 123.68))
# PyTorch's: RGB on the 0..1 scale, normalized by ImageNet's mean and deviation.
TORCHVISION = Inputs(
    mean=(0.406 * 255, 0.456 * 255, 0.485 * 255),
    deviation=(0.225 * 255, 0.224 * 255, 0.229 * 255),
    rgb=True,
)


def shown(values: tuple[float, ...]) -> str:
    """Format the numbers of a pixel for a message."""
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def adapted(
    kernel: np.ndarray,
    bias: np.ndarray,
    inputs: Inputs,
    mean: tuple[float, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Convert the first layer for BGR images on the 0..255 scale minus `mean`.

    Args:
        kernel: (h, w, c, o) float32, for images as described by `inputs`.
        bias: (o,) float32.
        inputs: the images that the layer takes.
        mean: the mean pixel of our images, (B, G, R); None is `inputs.mean`.

    Returns:
        Kernel and bias, float32; rounded once, or unchanged if nothing differs.

    Raises:
        ValueError: if the numbers of channels differ.

    Example:
        >>> kernel, bias = np.ones((1, 1, 3, 1), np.float32), np.zeros(1, np.float32)
        >>> adapted(kernel, bias, Inputs((1.0, 2.0, 3.0)), (2.0, 2.0, 4.0))[1].tolist()
        [2.0]
    """
    channels = kernel.shape[2]
    for pixel in (inputs.mean, inputs.deviation or inputs.mean, mean or inputs.mean):
        if len(pixel) != channels:
            raise ValueError(
                f"mean or deviation {shown(pixel)}: the first kernel has {channels} "
                "channels"
            )
    if inputs.rgb:
        kernel = kernel[:, :, ::-1]
    wide = kernel.astype(np.float64)
    if inputs.deviation:
        wide /= np.array(inputs.deviation)[:, None]
    shift = np.array(mean or inputs.mean) - np.array(inputs.mean)
    if shift.any():
        bias = (bias + np.einsum("hwco,c->o", wide, shift)).astype(np.float32)
    return np.ascontiguousarray(wide, np.float32), bias


Shape = tuple[int, ...]
Axes = Literal["hwio", "oihw"]
_FLOATS = ("float16", "float32", "float64", "bfloat16")
MAX_AXES = 8
_MAX_LISTING = 2 << 20  # bytes of a zip's list of entries, plus 5 % of the file


class Stored(NamedTuple):
    """An array of a file: its shape is known, its values are still in the file.

    Attributes:
        shape: in the file.
        axes: of kernels, `"hwio"` (Keras, ours) or `"oihw"` (Caffe, PyTorch). It also
            says how a dense layer numbers its inputs: (H·W·C, out) or (out, C·H·W).
        read: reads the values, of any dtype.
    """

    shape: Shape
    axes: Axes
    read: Callable[[], np.ndarray]

    def fits(self, shape: Shape) -> bool:
        """Whether the values can become a parameter of this shape (kernels HWIO)."""
        if len(shape) == 4:
            kh, kw, c_in, c_out = shape
            if self.axes == "hwio":
                return self.shape in (shape, (kh * kw * c_in, c_out))
            dense = (c_out, c_in * kh * kw)  # Caffe before 2014: (1, 1, *dense)
            return self.shape in ((c_out, c_in, kh, kw), dense, (1, 1, *dense))
        wide = sum(side != 1 for side in self.shape)
        return self.shape == shape or (
            len(shape) == 1 and wide <= 1 and math.prod(self.shape) == shape[0]
        )

    def fitted(self, shape: Shape) -> np.ndarray:
        """Return the values as a float32 parameter of a shape that they fit.

        A dense layer becomes the convolution that computes the same at each position.

        Raises:
            ValueError: if the values are not floating-point numbers.
        """
        values = self.read()
        if values.dtype.name not in _FLOATS:
            raise ValueError(f"holds {values.dtype}, not floating-point numbers")
        if values.shape != self.shape:
            raise ValueError("has changed while it was read")
        if len(shape) == 4 and self.axes == "oihw":
            kh, kw, c_in, c_out = shape
            values = values.reshape(c_out, c_in, kh, kw).transpose(2, 3, 1, 0)
        # A copy, since the values may be a view of the file, which may be written to.
        with np.errstate(over="ignore"):  # infinities are refused by name later
            return np.array(values.reshape(shape), np.float32, order="C")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The arrays of a file.

    Attributes:
        path: the file.
        kind: `"Caffe"`, `"Keras"`, `"PyTorch"` …, for messages.
        tensors: name → array. VGG-16's layers of Caffe and Keras have our names,
            `"conv1_1/kernel"`; PyTorch's names stay, dictionaries and tensors joined by
            dots: `"state_dict.module.features.0.weight"`. See `resolve_weights`.
        inputs: the images that the file's network takes; None if the format does not
            state them.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Stored]
    inputs: Inputs | None = None


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn any error of a broken file into one `ValueError` that names it.

    zipfile, h5py, safetensors and the readers here raise errors of all kinds then.
    """
    try:
        yield
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        detail = reason or str(error) or type(error).__name__
        message = f"{path}: cannot be read as {kind} weights: {detail}"
        raise ValueError(message) from error


def mapped(file: Any) -> mmap.mmap:
    """Map an open file as read-only memory; reading beyond its end returns less."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Listing(io.FileIO):
    """A zip file, of which only a short list of entries is read.

    `ZipFile` reads the whole list at once, and needs almost a kilobyte for each of its
    smallest records of 46 bytes.
    """

    limit = math.inf

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > self.limit:
            raise ValueError("lists more entries than a file of weights has")
        return super().read(size)


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose list of entries is small, or of a large file."""
    with _Listing(path) as file:
        file.limit = _MAX_LISTING + path.stat().st_size // 20
        with zipfile.ZipFile(file) as archive:
            file.limit = math.inf
            yield archive


def stored_entries(path: Path) -> dict[str, Callable[[], memoryview]]:
    """Return the entries of a zip archive as functions that view them in the file.

    These raise a `ValueError` for a compressed entry or a wrong checksum.
    """
    with path.open("rb") as file:
        content = memoryview(mapped(file))
    with open_zip(path) as archive:
        entries = archive.infolist()

    def view(entry: zipfile.ZipInfo) -> memoryview:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{entry.filename} is compressed, which PyTorch and Keras do not do"
            )
        at = entry.header_offset + 30  # after the header come name and extra field
        name, extra = struct.unpack("<HH", content[at - 4 : at])
        found = content[at + name + extra :][: entry.file_size]
        if zlib.crc32(found) != entry.CRC:
            raise ValueError(f"{entry.filename} is damaged: its checksum differs")
        return found

    return {entry.filename: functools.partial(view, entry) for entry in entries}


def axes_of(name: str) -> Axes:
    """Return the order of a kernel's axes from its name: dilax's, or PyTorch's.

    Example:
        >>> axes_of("front_end/conv1_1/kernel"), axes_of("features.0.weight")
        ('hwio', 'oihw')
    """
    return "hwio" if "/" in name or "." not in name else "oihw"


def check_size(shape: Shape, dtype: np.dtype, size: int) -> None:
    """Check that a shape has this many bytes, without allocating anything.

    Raises:
        ValueError: with the shape and the number of bytes.
    """
    plausible = len(shape) <= MAX_AXES and min(shape, default=0) >= 0
    if not plausible or math.prod(shape) * dtype.itemsize != size:
        sides = " x ".join(map(str, shape[:MAX_AXES]))
        raise ValueError(f"{size} bytes do not fit {sides} values of {dtype}")


def from_buffer(buffer: Any, dtype: np.dtype, shape: Shape) -> np.ndarray:
    """View bytes as an array without copying them.

    Raises:
        ValueError: if their number is not the one that the shape needs.
    """
    check_size(shape, dtype, len(buffer))
    return np.frombuffer(buffer, dtype).reshape(shape)
