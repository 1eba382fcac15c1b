"""A network in one file that runs without dilax: StableHLO for JAX, or ONNX.

`jax.export` lowers it to StableHLO for CPU, GPU and TPU, with free batch and image
sizes. The file is a zip that `numpy.load` reads: the lowered network, its parameters
as arrays (inside StableHLO they would be constants to fold, with a limit of 2 GB), a
description for callers as JSON, and a README with a program that runs it.

ONNX is written by the converter jax2onnx (pip install 'dilax[onnx]').

Source: https://docs.jax.dev/en/latest/export/export.html,
https://github.com/enpasos/jax2onnx, https://onnx.ai/onnx
"""

import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export, lax

from dilax.data import DatasetSpec
from dilax.data.pixels import as_float
from dilax.models import DilatedNet
from dilax.ops import upsample_bilinear
from dilax.runtime.compiling import compiler_options
from dilax.runtime.files import whole_or_not_at_all

Output = Literal["probabilities", "logits", "labels"]
Pixels = Literal["uint8", "uint16"]

PLATFORMS = ("cpu", "cuda", "tpu")
_WEIGHTS = "weights/"  # before the parameters' names in the file
_OPSET = 18  # of ONNX
_MEANINGS = {
    "probabilities": "softmax over the classes, {at}",
    "logits": "scores before the softmax, {at}",
    "labels": "the most probable class of each pixel inside the margin",
}


class Sizes(NamedTuple):
    """The image sizes that a network takes: 2·margin + stride·n pixels, n ≥ least.

    Attributes:
        margin: pixels around the image on every side.
        stride: image pixels from one cell of the coarsest maps to the next; networks
            that upsample inside (FCN-8s, SegNet) have coarser maps than their last.
        least: the smallest n; above 1 if the network pads maps by reflection, because
            these must be larger than the padding.
    """

    margin: int
    stride: int
    least: int


def sizes_taken(model: DilatedNet) -> Sizes:
    """Return the sizes that give a whole number of cells."""
    # A network of the user's own may state its stride without a table of layers.
    front_end = model.front_end
    stride = max(front_end.receptive_field.stride, front_end.output_stride)
    margin = model.margin
    if model.context is not None and model.context.padding == "none":
        margin += model.map_stride * model.context.receptive_field.margin
    least, at = 1, 1
    if front_end.padding == "reflect":
        for kernel, dilation, step, padding in front_end.rows:
            if padding or step == 1:  # reflects by half of its reach
                reach = (dilation * (kernel - 1) + 1) // 2
                least = max(least, reach * at // stride + 1)
            at *= step
    return Sizes(margin, stride, least)


def export_model(
    model: DilatedNet,
    params: Any,
    spec: DatasetSpec,
    path: Path,
    output: Output = "probabilities",
    pixels: Pixels = "uint8",
) -> Path:
    """Write a network as StableHLO for `PLATFORMS`, with all that is needed to run it.

    The exported function takes the weights by name, and RGB images (batch, h, w,
    channels) with h = 2·margin + stride·rows and w = 2·margin + stride·columns. It
    subtracts the mean pixel itself. The file is written atomically.

    Args:
        model: the network.
        params: its parameters, `{"front_end": …, "context": …}`.
        spec: the data set's name, classes, palette, mean pixel, and scale.
        path: the file, `.zip`.
        output: `"logits"` or `"probabilities"`, (batch, h', w', classes) float32 at the
            network's own resolution, an eighth or the image's; or `"labels"`, (batch,
            stride·rows, stride·columns) uint8: the classes of the pixels within the
            margin, from probabilities upsampled as the release's script does.
        pixels: the images' type.

    Returns:
        The path.

    Raises:
        ValueError: if the path is not a `.zip`, an argument is not allowed, or the data
            set has another number of classes.
        OSError: naming the file, if it cannot be written.

    Example:
        >>> import tempfile
        >>> from dilax.data import DATASETS
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> model = DilatedNet(FrontEnd(21, (Layer("a", 3, 4), Layer("p", 2))))
        >>> params = init_params(model, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "net.zip")
        ...     path = export_model(model, params, DATASETS["voc"], path)
        ...     sorted(zipfile.ZipFile(path).namelist())[:2]
        ['README.md', 'about.json']
    """
    path = _checked(path, ".zip", model, spec, output, pixels)
    weights = _flat_weights(params)
    exported = _exported(model, spec, weights, output, pixels)
    about = _description(model, spec, output, pixels) | {
        "input_shape": str(exported.in_avals[-1].shape),
        "output_shape": str(exported.out_avals[0].shape),
        "platforms": exported.platforms,
        "jax": jax.__version__,
        "compiler_options": {"cpu": compiler_options("cpu")},
    }
    members: dict[str, str | bytes] = {
        "README.md": _readme(path.name, about),
        "about.json": json.dumps(about, indent=1) + "\n",
        "network.jax_export": bytes(exported.serialize()),
    }
    # Without compression and dates, so that equal networks give equal bytes.
    with whole_or_not_at_all(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, content in members.items():
            archive.writestr(_entry(name), content)
        for name, array in weights.items():
            with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return path


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
    path = _checked(path, ".onnx", model, spec, output, pixels)
    proto = _converted(model, params, spec, output, pixels)
    about = _description(model, spec, output, pixels)
    about |= {"margin": 0, "stride": 1, "least": 1}  # callers need not pad
    for name, value in about.items():
        proto.metadata_props.add(key=name, value=json.dumps(value))
    with whole_or_not_at_all(path) as partial:
        partial.write_bytes(proto.SerializeToString())
    return path


def _checked(
    path: Path, suffix: str, model: DilatedNet, spec: DatasetSpec, output, pixels
) -> Path:
    """Return the path, after checking all arguments; see `export_model`."""
    path = Path(path)
    if path.suffix.lower() != suffix or path.is_dir():
        raise ValueError(f"path={str(path)!r}: must be a file that ends in {suffix}")
    for name, value, allowed in (
        ("output", output, Output),
        ("pixels", pixels, Pixels),
    ):
        if value not in get_args(allowed):
            choices = ", ".join(get_args(allowed))
            raise ValueError(f"{name}={value!r}: must be one of {choices}")
    if spec.num_classes != model.num_classes:
        raise ValueError(
            f"spec: {spec.name} has {spec.num_classes} classes, the network "
            f"{model.num_classes}"
        )
    return path


def _description(model: DilatedNet, spec: DatasetSpec, output, pixels) -> dict:
    """Describe an exported network for its callers, for a JSON file."""
    sizes = sizes_taken(model)
    return {
        "dataset": spec.name,
        "classes": spec.classes,
        "palette": spec.palette,
        "channels": "RGB" if len(spec.mean) == 3 else "in the order of the file",
        "pixels": pixels,
        "mean": spec.mean[::-1],  # in the order of the channels
        "scale": spec.scale,
        "margin": sizes.margin,
        "stride": sizes.stride,
        "least": sizes.least,
        "output": output,
        "output_stride": 1 if output == "labels" else model.output_stride,
    }


def _readme(file: str, about: dict[str, Any]) -> str:
    """Return the README of an exported network, with a program that runs it."""
    step, scale = about["output_stride"], about["scale"]
    at = "at every pixel" if step == 1 else f"at every {step}th pixel"
    words = {
        "file": file,
        "top": 255 if about["pixels"] == "uint8" else 65535,
        "meaning": _MEANINGS[about["output"]].format(at=at),
        "scaling": f"\nResize images by {scale:g} first." if scale != 1 else "",
        "platforms": ", ".join(about["platforms"]),
    }
    text = Path(__file__).with_name("export_readme.md").read_text("utf-8")
    return Template(text).substitute(about | words)


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o644 << 16  # the same on all systems
    return info


def _flat_weights(params: Any) -> dict[str, np.ndarray]:
    """Return the parameters as NumPy arrays, by their names in the file."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return {_WEIGHTS + n: np.asarray(value, np.float32) for n, value in flat.items()}


def _network_function(model: DilatedNet, spec: DatasetSpec, output: Output) -> Callable:
    """Return `f(weights, images)`, from pixels to `output` (see `export_model`)."""
    mean = np.asarray(spec.mean, np.float32)

    def network(weights: Mapping[str, jax.typing.ArrayLike], images: jax.Array):
        names = {name.removeprefix(_WEIGHTS): w for name, w in weights.items()}
        params = traverse_util.unflatten_dict(names, sep="/")
        x = as_float(lax.rev(images, (3,))) - mean
        logits: Any = model.apply({"params": params}, x)
        if output == "logits":
            return logits
        probabilities = jax.nn.softmax(logits)
        if output == "probabilities":
            return probabilities
        if model.output_stride > 1:
            probabilities = upsample_bilinear(probabilities, model.output_stride)
        labels = jnp.argmax(probabilities, -1)
        return labels.astype(np.min_scalar_type(model.num_classes))

    return network


def _exported(model, spec, weights, output, pixels) -> export.Exported:
    margin, stride, least = sizes_taken(model)
    sides = ", ".join(f"{stride}*{n} + {2 * margin}" for n in ("rows", "columns"))
    shape = export.symbolic_shape(
        f"batch, {sides}, {len(spec.mean)}",
        constraints=[f"rows >= {least}", f"columns >= {least}"],
    )
    network = jax.jit(_network_function(model, spec, output))
    shapes = {n: jax.ShapeDtypeStruct(w.shape, w.dtype) for n, w in weights.items()}
    images = jax.ShapeDtypeStruct(shape, np.dtype(pixels))
    # Keeps the paths of this machine out of the StableHLO.
    limit = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, limit)
    jax.config.update(limit, 0)
    try:
        return export.export(network, platforms=PLATFORMS)(shapes, images)
    finally:
        jax.config.update(limit, before)


def _converted(model, params, spec, output, pixels) -> Any:
    """Return a network as ONNX for images of any size, which it pads itself."""
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise ValueError(
            f"ONNX is written by jax2onnx: pip install 'dilax[onnx]' ({error})"
        ) from error
    # It warns about shapes inside the graph that are known only at run time.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    # In float32, because runtimes lack bfloat16 convolutions.
    parts = {
        name: part.clone(dtype=jnp.float32)
        for name, part in (("front_end", model.front_end), ("context", model.context))
        if hasattr(part, "dtype")  # a network of the user's own may have none
    }
    single = model.clone(**parts)
    network, weights = _network_function(single, spec, output), _flat_weights(params)
    step = 1 if output == "labels" else model.output_stride
    padded = _padding(lambda images: network(weights, images), sizes_taken(model), step)
    # The converter requires each free size to be one symbol.
    shape = export.symbolic_shape(
        f"batch, height, width, {len(spec.mean)}",
        constraints=["height >= 1", "width >= 1"],
    )
    with jax.disable_jit():  # the converter cannot handle nested functions
        return to_onnx(
            padded,
            [jax.ShapeDtypeStruct(shape, np.dtype(pixels))],
            model_name=spec.name,
            opset=_OPSET,
            input_names=["images"],
            output_names=[output],
        )


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
