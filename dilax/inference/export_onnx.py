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
    """Write a network as an ONNX file with its weights, for any ONNX runtime.

    The input `images` (batch, height, width, channels) has any size. The output has the
    same size, or an eighth of it, rounded up, for logits and probabilities of networks
    that do not upsample. The network itself adds the margin that callers of
    `export_model` must add, by reflection. The file's metadata contains the classes,
    `output_stride`, and the other values of `about.json`, each as JSON.

    Args:
        model: the network.
        params: its parameters.
        spec: the data set's name, classes, palette, mean pixel, and scale.
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
    inside = {"margin": 0, "stride": 1, "least": 1}  # callers need not pad
    about = describe(model, spec, output, pixels) | inside
    for name, value in about.items():
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
    # It warns about shapes inside the graph that are known only at run time.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    sizes, weights = sizes_taken(model), flat_weights(params)
    network = network_function(_in_float32(model), spec, output)
    step = 1 if output == "labels" else model.output_stride
    with jax.disable_jit():  # the converter cannot handle nested functions
        return to_onnx(
            _padding(lambda images: network(weights, images), sizes, step),
            [_images(len(spec.mean), pixels)],
            model_name=spec.name,
            opset=_OPSET,
            input_names=["images"],
            output_names=[output],
        )


def _in_float32(model: DilatedNet) -> DilatedNet:
    """Return the network in float32, because runtimes lack bfloat16 convolutions."""
    front_end = model.front_end.clone(dtype=jnp.float32)
    context = model.context and model.context.clone(dtype=jnp.float32)
    return model.clone(front_end=front_end, context=context)


def _images(channels: int, pixels: str) -> jax.ShapeDtypeStruct:
    """Return a shape with free sizes: the converter requires each to be one symbol."""
    shape = export.symbolic_shape(
        f"batch, height, width, {channels}",
        constraints=["height >= 1", "width >= 1"],
    )
    return jax.ShapeDtypeStruct(shape, np.dtype(pixels))


def _padding(network: Callable, sizes: Sizes, step: int) -> Callable:
    """Return the network for images of any size, which it pads by reflection.

    Args:
        network: takes images of the given sizes.
        sizes: the sizes that it takes.
        step: image pixels from one cell of its output to the next.
    """

    def padded(images: jax.Array) -> jax.Array:
        whole, wanted = list(images.shape), list(images.shape)
        for axis, n in enumerate(images.shape[1:3], 1):
            # The converter accepts symbolic sizes, but not in a sequence of numbers. So
            # the maximum number of rows is added, and then cut to whole cells.
            more = sizes.margin + sizes.stride * sizes.least - 1
            ends = np.arange(-sizes.margin, 0), np.arange(more) + jnp.int32(n)
            before, after = (jnp.take(images, _inside(at, n), axis=axis) for at in ends)
            images = lax.concatenate([before, images, after], axis)
            cells = (n + sizes.stride - 1) // sizes.stride + sizes.least - 1
            whole[axis] = 2 * sizes.margin + sizes.stride * cells
            wanted[axis] = (n + step - 1) // step
        result = network(lax.slice(images, (0, 0, 0, 0), whole))
        wanted[3:] = result.shape[3:]
        return lax.slice(result, [0] * result.ndim, wanted)

    return padded


def _inside(at: Any, n: Any) -> Any:
    """Compute `reflected`, whose own `max` does not accept a symbol for n."""
    period = jnp.maximum(jnp.asarray(2 * (n - 1), jnp.int32), 1)
    at = jnp.abs(at) % period
    return jnp.minimum(at, period - at)
