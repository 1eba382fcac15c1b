"""What a file of weights holds, read from it only when it is known to fit.

How networks take their images, and the same network for images as ours takes them.

Ours takes BGR on the 0..255 scale minus the data set's mean pixel. The first layer of a
network that takes them otherwise can be rewritten so that it computes the same:

    W * ((x − m) / σ) + b  =  (W / σ) * (x − m′) + b′
                        b′  =  b + Σ_{t,c} W_{t,c} (m′_c − m_c) / σ_c

This is exact where every tap of the first layer lies on the image or on its reflection,
as in valid convolutions of a reflection-padded image; where a layer pads with zeros,
they come to stand for the pixel m′ instead of m.
"""

import contextlib
import dataclasses
import math
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from safetensors import SafetensorError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network takes: (x − mean) / deviation, for x on the 0..255 scale.

    Attributes:
        mean: (B, G, R); in general a number a channel, in the order of ours.
        deviation: likewise; empty for no division.
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


# What the VGG group's Caffe files take, and Keras's, which were made of them.
CAFFE = Inputs((103.939, 116.779, 123.68))
# PyTorch's: RGB on the 0..1 scale, normalised by mean and deviation of ImageNet.
TORCHVISION = Inputs(
    mean=(0.406 * 255, 0.456 * 255, 0.485 * 255),
    deviation=(0.225 * 255, 0.224 * 255, 0.229 * 255),
    rgb=True,
)


def shown(values: tuple[float, ...]) -> str:
    """Numbers of a pixel for a message.

    Example:
        >>> shown((103.939, 116.779, 123.68))
        '(103.939, 116.779, 123.68)'
    """
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def adapted(
    kernel: np.ndarray,
    bias: np.ndarray,
    inputs: Inputs,
    mean: tuple[float, ...] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The first layer for BGR images on the 0..255 scale minus `mean`.

    Args:
        kernel: (h, w, c, o) float32, for images as `inputs` says.
        bias: (o,) float32.
        inputs: what the layer takes.
        mean: what our images have subtracted, (B, G, R); None is `inputs.mean`.

    Returns:
        Kernel and bias, float32; rounded once, and not at all where nothing differs.

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
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_MOST_AXES = 8
_BROKEN = (
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError),
    *(OverflowError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile),
    *(SafetensorError, OSError, SyntaxError, tokenize.TokenError),
)


class Stored(NamedTuple):
    """An array of a file: its shape is known, its values are still in the file.

    Attributes:
        shape: in the file.
        axes: of kernels, `"hwio"` (Keras, ours) or `"oihw"` (Caffe, PyTorch). It also
            says how a dense layer numbers its inputs: (H·W·C, out) or (out, C·H·W).
        read: reads the values, of any dtype.

    Example:
        >>> Stored((4,), "hwio", lambda: np.zeros(4)).read().shape
        (4,)
    """

    shape: Shape
    axes: Literal["hwio", "oihw"]
    read: Callable[[], np.ndarray]

    def fits(self, shape: Shape) -> bool:
        """Whether the values can become a parameter of this shape (kernels HWIO)."""
        if len(shape) == 4:
            return self.shape in _kernel_shapes(self.axes, shape)
        wide = sum(side != 1 for side in self.shape)
        return self.shape == shape or (
            len(shape) == 1 and wide <= 1 and math.prod(self.shape) == shape[0]
        )

    def fitted(self, shape: Shape) -> np.ndarray:
        """The values as a float32 parameter of a shape that they fit.

        A dense layer becomes the convolution that computes the same at each place.

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
        with np.errstate(over="ignore"):  # infinities are refused by name later
            return np.ascontiguousarray(values.reshape(shape), np.float32)


def _kernel_shapes(axes: str, shape: Shape) -> tuple[Shape, ...]:
    """How a kernel (kh, kw, c_in, c_out) may lie in a file: convolution or dense."""
    kh, kw, c_in, c_out = shape
    if axes == "hwio":
        return shape, (kh * kw * c_in, c_out)
    dense = (c_out, c_in * kh * kw)
    return (c_out, c_in, kh, kw), dense, (1, 1, *dense)  # the last: Caffe before 2014


@dataclasses.dataclass(frozen=True)
class Weights:
    """The arrays of a file under names of ours.

    Attributes:
        path: the file.
        kind: `"Caffe"`, `"Keras"`, `"PyTorch"` …, for messages.
        tensors: `"conv1_1/kernel"` → array.
        inputs: how the network of the file takes its images; None where neither the
            kind of the file nor its names say so.

    Example:
        >>> stored = Stored((4,), "hwio", lambda: np.zeros(4))
        >>> Weights(Path("net.npz"), "npz", {"a": stored}).kind
        'npz'
    """

    path: Path
    kind: str
    tensors: Mapping[str, Stored]
    inputs: Inputs | None = None

    @property
    def mean(self) -> tuple[float, ...] | None:
        """The mean pixel (B, G, R) that the network expects subtracted, if known."""
        return self.inputs.mean if self.inputs else None


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns what a broken file causes within into one `ValueError` that names it."""
    try:
        yield
    except _BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) else None
        detail = reason or str(error) or type(error).__name__
        raise ValueError(
            f"{path}: cannot be read as {kind} weights: {detail}"
        ) from error


def mapped(file: Any) -> mmap.mmap:
    """An open file as read-only memory; reading beyond its end gives less, not more."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def check_size(shape: Shape, dtype: np.dtype, size: int) -> None:
    """Refuses a shape that so many bytes do not fill; nothing is allocated for it.

    Raises:
        ValueError: with the shape and what the file holds.
    """
    plausible = len(shape) <= _MOST_AXES and min(shape, default=0) >= 0
    if not plausible or math.prod(shape) * dtype.itemsize != size:
        sides = " x ".join(map(str, shape[:_MOST_AXES]))
        raise ValueError(f"{size} bytes are there for {sides} values of {dtype}")


def from_buffer(
    buffer: memoryview | bytes, dtype: np.dtype, shape: Shape
) -> np.ndarray:
    """An array over bytes, without copying them.

    Raises:
        ValueError: if they are not as many as the shape needs.
    """
    check_size(shape, dtype, len(buffer))
    return np.frombuffer(buffer, dtype).reshape(shape)
