"""How networks take their images, and the same network for images as ours takes them.

Ours takes BGR on the 0..255 scale minus the data set's mean pixel. The first layer of a
network that takes them otherwise can be rewritten so that it computes the same:

    W * ((x − m) / σ) + b  =  (W / σ) * (x − m′) + b′
                        b′  =  b + Σ_{t,c} W_{t,c} (m′_c − m_c) / σ_c

This is exact where every tap of the first layer lies on the image or on its reflection,
as in valid convolutions of a reflection-padded image; where a layer pads with zeros,
they come to stand for the pixel m′ instead of m.
"""

import dataclasses

import numpy as np


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
