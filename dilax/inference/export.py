"""A network in one file that runs where JAX runs, without dilax.

`jax.export` lowers it to StableHLO for CPU, GPU and TPU, with free batch and image
sizes. The file is a zip that `numpy.load` reads: the lowered network, its parameters
as arrays (inside StableHLO they would be constants to fold, with a limit of 2 GB), a
description for callers as JSON, and a README with a program that runs it.

Source: https://docs.jax.dev/en/latest/export/export.html
"""

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
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

_TEXT = Template("""\
# A network for $dataset

Written by dilax, which is not needed to run it: `pip install jax flatbuffers numpy`.

```python
import json

import jax
import numpy as np
from jax import export

file = np.load("$file")  # a zip: .npy members come as arrays, others as bytes
about = json.loads(file["about.json"])
network = export.deserialize(bytearray(file["network.jax_export"]))
names = [name for name in file.files if name.startswith("weights/")]
weights = jax.device_put({name: file[name] for name in names})
options = about["compiler_options"].get(jax.default_backend())
run = jax.jit(network.call, compiler_options=options)


def predict(image):
    margin, stride, step = (about[n] for n in ("margin", "stride", "output_stride"))
    ends = [(margin, margin + -n % stride) for n in image.shape[:2]]
    padded = np.pad(image, (*ends, (0, 0)), "reflect")
    rows, columns = (-(-n // step) for n in image.shape[:2])
    return np.asarray(run(weights, padded[None])[0])[:rows, :columns]
```

**Input.** Images $input_shape
of $pixels, 0 to $top, channels $channels; the network subtracts the mean pixel itself.
The input includes $margin pixels of padding on every side of the image; `rows` and
`columns` must be at least $least. Other sizes are refused with an error that names
them. Each new size is compiled once.$scaling

**Output.** $output $output_shape: $meaning.
Classes, their colours (RGB), and the numbers used above are in `about.json`.

**Platforms.** $platforms. Convolutions run at the precision that JAX takes by
default, which is below float32 on GPUs (TF32) and TPUs (bfloat16).

**CPUs.** The compiler options in `about.json`, if any, are not part of the network.
Without them, XLA's own choice of convolutions may be several times slower. They are
experimental: where your version refuses them, pass `compiler_options=None`.

**Versions.** Exported by JAX $jax. JAX promises to run it with a JAX and jaxlib up to
six months newer and three weeks older, see "Compatibility guarantees" on
<https://docs.jax.dev/en/latest/export/export.html>. For other compilers,
`network.mlir_module_serialized` is portable StableHLO.
""")

_MEANINGS = {
    "probabilities": "softmax over the classes, {at}",
    "logits": "scores before the softmax, {at}",
    "labels": "the most probable class of each pixel inside the margin",
}


def readme(file: str, about: dict[str, Any]) -> str:
    """Return the README of an exported network, with a program that runs it.

    Args:
        file: name of the exported file.
        about: the content of its `about.json`.
    """
    step, scale = about["output_stride"], about["scale"]
    at = "at every pixel" if step == 1 else f"at every {step}th pixel"
    words = {
        "file": file,
        "top": 255 if about["pixels"] == "uint8" else 65535,
        "meaning": _MEANINGS[about["output"]].format(at=at),
        "scaling": f"\nResize images by {scale:g} first." if scale != 1 else "",
        "platforms": ", ".join(about["platforms"]),
    }
    return _TEXT.substitute(about | words)


Output = Literal["probabilities", "logits", "labels"]
Pixels = Literal["uint8", "uint16"]

PLATFORMS = ("cpu", "cuda", "tpu")
_WEIGHTS = "weights/"  # before the parameters' names in the file


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


def export_model(
    model: DilatedNet,
    params: Any,
    spec: DatasetSpec,
    path: Path,
    output: Output = "probabilities",
    pixels: Pixels = "uint8",
) -> Path:
    """Write a network as StableHLO for `PLATFORMS`, with everything to run it.

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
    path = Path(path)
    check_arguments(model, spec, path, ".zip", output, pixels)
    weights = flat_weights(params)
    exported = _exported(model, spec, weights, output, pixels)
    about = describe(model, spec, output, pixels) | _shapes(exported)
    texts = {
        "README.md": readme(path.name, about),
        "about.json": json.dumps(about, indent=1) + "\n",
    }
    with whole_or_not_at_all(path) as partial:
        _write(partial, texts, bytes(exported.serialize()), weights)
    return path


def check_arguments(
    model: DilatedNet,
    spec: DatasetSpec,
    path: Path,
    suffix: str,
    output: str,
    pixels: str,
) -> None:
    """Raise ValueError if an argument is not allowed; see `export_model`."""
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


def flat_weights(params: Any) -> dict[str, np.ndarray]:
    """Return the parameters as NumPy arrays, by their names in the file."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return {_WEIGHTS + n: np.asarray(value, np.float32) for n, value in flat.items()}


def sizes_taken(model: DilatedNet) -> Sizes:
    """Return the sizes that give a whole number of cells."""
    margin, stride = model.margin, model.front_end.receptive_field.stride
    if model.context is not None and model.context.padding == "none":
        margin += model.map_stride * model.context.receptive_field.margin
    least = [width * at // stride + 1 for width, at in _reflections(model)]
    return Sizes(margin, stride, max(least, default=1))


def _reflections(model: DilatedNet) -> Iterator[tuple[int, int]]:
    """Yield (width in cells, stride) of each padding by reflection in the network."""
    stride = 1
    if model.front_end.padding == "reflect":
        for kernel, dilation, step, padding in model.front_end.rows:
            if padding or step == 1:
                yield (dilation * (kernel - 1) + 1) // 2, stride
            stride *= step


def network_function(model: DilatedNet, spec: DatasetSpec, output: Output) -> Callable:
    """Return `f(weights, images)`, from pixels to `output` (see `export_model`)."""
    mean = np.asarray(spec.mean, np.float32)

    def network(weights: Mapping[str, jax.typing.ArrayLike], images: jax.Array):
        names = {name.removeprefix(_WEIGHTS): w for name, w in weights.items()}
        params = traverse_util.unflatten_dict(names, sep="/")
        x = as_float(lax.rev(images, (3,))) - mean
        logits: Any = model.apply({"params": params}, x)
        return logits if output == "logits" else _finished(model, logits, output)

    return network


def _finished(model: DilatedNet, logits: jax.Array, output: Output) -> jax.Array:
    probabilities = jax.nn.softmax(logits)
    if output == "probabilities":
        return probabilities
    if model.output_stride > 1:
        probabilities = upsample_bilinear(probabilities, model.output_stride)
    return jnp.argmax(probabilities, -1).astype(np.min_scalar_type(model.num_classes))


def _exported(model, spec, weights, output, pixels) -> export.Exported:
    sizes, channels = sizes_taken(model), len(spec.mean)
    shape = export.symbolic_shape(
        "batch, {1}*rows + {0}, {1}*columns + {0}, {2}".format(
            2 * sizes.margin, sizes.stride, channels
        ),
        constraints=[f"rows >= {sizes.least}", f"columns >= {sizes.least}"],
    )
    network = jax.jit(network_function(model, spec, output))
    shapes = {n: jax.ShapeDtypeStruct(w.shape, w.dtype) for n, w in weights.items()}
    with _without_source_paths():
        images = jax.ShapeDtypeStruct(shape, np.dtype(pixels))
        return export.export(network, platforms=PLATFORMS)(shapes, images)


@contextlib.contextmanager
def _without_source_paths() -> Iterator[None]:
    """Keep the paths of this machine out of the StableHLO."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def describe(model: DilatedNet, spec: DatasetSpec, output: str, pixels: str) -> dict:
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


def _shapes(exported: export.Exported) -> dict:
    return {
        "input_shape": str(exported.in_avals[-1].shape),
        "output_shape": str(exported.out_avals[0].shape),
        "platforms": exported.platforms,
        "jax": jax.__version__,
        "compiler_options": {"cpu": compiler_options("cpu")},
    }


def _write(path: Path, texts: dict[str, str], network: bytes, weights: dict) -> None:
    """Write an uncompressed zip; equal networks give equal bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in texts.items():
            archive.writestr(_entry(name), text)
        archive.writestr(_entry("network.jax_export"), network)
        for name, array in weights.items():
            with archive.open(_entry(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o644 << 16  # the same on all systems
    return info
