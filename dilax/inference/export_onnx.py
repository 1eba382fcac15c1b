"""A network as ONNX, by the converter jax2onnx (pip install 'dilax[onnx]').

Source: https://github.com/enpasos/jax2onnx, https://onnx.ai/onnx
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

from dilax.data import DatasetSpec
from dilax.inference.export import (
    Output,
    Pixels,
    Sizes,
    check_arguments,
    describe,
    flat_weights,
    network_function,
    sizes_taken,
)
from dilax.models import DilatedNet
from dilax.runtime.files import whole_or_not_at_all

_OPSET = 18


def export_onnx(
    model: DilatedNet,
    params: Any,
    spec: DatasetSpec,
    path: Path,
    output: Output = "probabilities",
    pixels: Pixels = "uint8",
) -> Path:
    """Writes a network as an ONNX file with its weights, for any ONNX runtime.

    Input `images` (batch, height, width, channels) and what comes out are those of
    `export_model`. ONNX cannot refuse sizes: the rows and columns beyond the last
    2·margin + stride·n are ignored. Classes, margin, stride and the rest stand in the
    file's metadata, each as JSON.

    Args:
        model: the network.
        params: its parameters.
        spec: the data set's name, classes, palette, mean pixel and scale.
        path: the file, `.onnx`.
        output: as for `export_model`.
        pixels: the images' type.

    Returns:
        The path.

    Raises:
        ValueError: as `export_model`, or if the converter is not installed.
        OSError: naming the file, if it cannot be written.

    Example:
        >>> import importlib.util, tempfile
        >>> from dilax.data import DATASETS
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> model = DilatedNet(FrontEnd(21, (Layer("a", 3, 4), Layer("p", 2))))
        >>> params = init_params(model, seed=0)
        >>> if importlib.util.find_spec("jax2onnx"):  # pip install 'dilax[onnx]'
        ...     with tempfile.TemporaryDirectory() as folder:
        ...         path = Path(folder, "net.onnx")
        ...         path = export_onnx(model, params, DATASETS["voc"], path)
        ...         assert path.stat().st_size > 0
    """
    path = Path(path)
    check_arguments(model, spec, path, ".onnx", output, pixels)
    proto = _converted(model, params, spec, output, pixels)
    for name, value in describe(model, spec, output, pixels).items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    with whole_or_not_at_all(path) as partial:
        partial.write_bytes(proto.SerializeToString())
    return path


def _converted(model, params, spec, output, pixels) -> Any:
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ValueError(
            f"ONNX is written by jax2onnx: pip install 'dilax[onnx]' ({error})"
        ) from error
    # It warns of shapes inside the graph that it leaves to the runtime.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    sizes, weights = sizes_taken(model), flat_weights(params)
    network = network_function(_in_float32(model), spec, output)
    with jax.disable_jit():  # the converter stumbles over functions within functions
        return to_onnx(
            _cutting(lambda images: network(weights, images), sizes),
            [_images(sizes, len(spec.mean), pixels)],
            model_name=spec.name,
            opset=_OPSET,
            input_names=["images"],
            output_names=[output],
        )


def _in_float32(model: DilatedNet) -> DilatedNet:
    """The same network; runtimes lack convolutions of bfloat16."""
    front_end = model.front_end.clone(dtype=jnp.float32)
    context = model.context and model.context.clone(dtype=jnp.float32)
    return model.clone(front_end=front_end, context=context)


def _images(sizes: Sizes, channels: int, pixels: str) -> jax.ShapeDtypeStruct:
    """Free sizes: the converter wants each to be one symbol."""
    smallest = 2 * sizes.margin + sizes.stride * sizes.least
    shape = export.symbolic_shape(
        f"batch, height, width, {channels}",
        constraints=[f"height >= {smallest}", f"width >= {smallest}"],
    )
    return jax.ShapeDtypeStruct(shape, np.dtype(pixels))


def _cutting(network: Callable, sizes: Sizes) -> Callable:
    """The network on the largest part, from the upper left, that gives whole cells."""

    def cut(images: jax.Array) -> jax.Array:
        batch, height, width, channels = images.shape
        whole = [
            (n - 2 * sizes.margin) // sizes.stride * sizes.stride + 2 * sizes.margin
            for n in (height, width)
        ]
        return network(lax.slice(images, (0, 0, 0, 0), (batch, *whole, channels)))

    return cut
