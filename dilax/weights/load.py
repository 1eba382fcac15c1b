"""`load_weights`: from a file to parameters in one call.

A file's arrays become the parameters of a network.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dilax.models import DilatedNet, init_params, param_shapes
from dilax.models.layers import norm_name
from dilax.weights.caffe import read_caffe
from dilax.weights.flat import read_npz, read_safetensors
from dilax.weights.keras import read_keras
from dilax.weights.match import Report, check_weights, flat_shapes, listed, sources
from dilax.weights.published import PUBLISHED, fetch_weights
from dilax.weights.pytorch import read_torch
from dilax.weights.stored import Inputs, Shape, Weights, adapted, reading, shown

Params = dict[str, Any]


def place_weights(
    weights: Weights,
    model: DilatedNet,
    initial: Params,
    *,
    allow_missing: Sequence[str] = (),
    reinit: Sequence[str] = (),
    mean: tuple[float, ...] | None = None,
) -> tuple[Params, Report]:
    """The parameters of a network, from a file where it has them.

    Args:
        weights: of the file.
        model: says which layer takes the image.
        initial: the network's parameters so far, which missing or reinitialized layers
            keep; where there are none of these, shapes (`param_shapes`) are enough.
        allow_missing: see `check_weights`.
        reinit: see `check_weights`.
        mean: of the images that the network will see; a difference to the file's goes
            into the first layer's bias.

    Returns:
        New parameters, float32, and what was loaded from where.

    Raises:
        ValueError: as `check_weights`, and naming layers whose values are not finite.

    Example:
        >>> from pathlib import Path
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> from dilax.weights.stored import Stored
        >>> model = DilatedNet(FrontEnd(2, (Layer("a", 3, 4),)))
        >>> stored = Stored((1, 1, 4, 2), "hwio", lambda: np.ones((1, 1, 4, 2)))
        >>> weights = Weights(Path("net.npz"), "npz", {"final/kernel": stored})
        >>> params, report = place_weights(
        ...     weights,
        ...     model,
        ...     init_params(model, seed=0),
        ...     allow_missing=["a", "final/bias"],
        ... )
        >>> report.loaded, float(params["front_end"]["final"]["kernel"].sum())
        (('front_end/final/kernel',), 8.0)
    """
    shapes = flat_shapes(initial)
    report = check_weights(weights, shapes, allow_missing=allow_missing, reinit=reinit)
    found = sources(weights, shapes)
    values = {n: _values(weights, found[n], shapes[n]) for n in report.loaded}
    bad = [n for n, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise ValueError(f"{weights.path}: not finite: {listed(bad)}")
    flat = traverse_util.flatten_dict(initial, sep="/")
    note = _adapt(values, weights, model, flat, mean)
    merged = {**flat, **{n: jnp.asarray(value) for n, value in values.items()}}
    params = traverse_util.unflatten_dict(merged, sep="/")
    return params, dataclasses.replace(report, notes=(note,))


def _values(weights: Weights, source: str, shape: Shape) -> np.ndarray:
    with reading(weights.path, weights.kind):
        return weights.tensors[source].fitted(shape)


def _adapt(
    values: dict[str, np.ndarray],
    weights: Weights,
    model: DilatedNet,
    flat: Mapping[str, Any],
    mean: tuple[float, ...] | None,
) -> str:
    """Rewrites the first layer for our images; returns what to say about it."""
    first = model.front_end.first_layer
    kernel, bias, sign = _first_parameters(first, flat)
    if kernel not in values:
        return f"{first} is not from the file; it takes whatever it learns to take"
    if weights.inputs is None:
        return (
            "the file does not say which mean pixel its network expects subtracted: "
            "nothing was done about it"
        )
    before = sign * (values[bias] if bias in values else np.asarray(flat[bias]))
    try:
        changed = adapted(values[kernel], before, weights.inputs, mean)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    values[kernel], values[bias] = changed[0], sign * changed[1]
    now = shown(mean or weights.inputs.mean)
    return f"{first} took {weights.inputs}; it takes BGR minus {now} now"


def _first_parameters(first: str, flat: Mapping[str, Any]) -> tuple[str, str, float]:
    """Names of the first kernel and of what shifts its outputs, and the shift's sign.

    A layer without a bias is normalised: what would be added to its outputs is taken
    from the mean that the normalisation subtracts.
    """
    kernel, bias = (f"front_end/{first}/{part}" for part in ("kernel", "bias"))
    if bias in flat:
        return kernel, bias, 1.0
    return kernel, f"front_end/{norm_name(first)}/mean", -1.0


_READERS: dict[str, tuple[str, Callable[[Path], Weights]]] = {
    ".caffemodel": ("Caffe", read_caffe),
    ".h5": ("Keras", read_keras),
    ".hdf5": ("Keras", read_keras),
    ".pth": ("PyTorch", read_torch),
    ".pt": ("PyTorch", read_torch),
    ".safetensors": ("safetensors", read_safetensors),
    ".npz": ("npz", read_npz),
}


def read_weights(path: str | Path, inputs: Inputs | None = None) -> Weights:
    """What a file of weights holds, under our names; the values are read later.

    Args:
        path: `.caffemodel`, `.h5`, `.hdf5`, `.pth`, `.pt`, `.safetensors` or `.npz`; or
            a name of `PUBLISHED`, such as `"vgg16"`, which `fetch_weights` downloads.
        inputs: how the file's network takes its images, where that is not what the kind
            of the file says.

    Raises:
        ValueError: naming the file, if it is missing, of another kind, or broken. No
            file can make this run code or reserve memory for more than it holds.

    Example:
        >>> import tempfile
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> from dilax.weights import save_weights
        >>> model = DilatedNet(FrontEnd(5, (Layer("conv1", 3, 4),)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(init_params(model, seed=1), f"{folder}/net.npz")
        ...     sorted(read_weights(f"{folder}/net.npz").tensors)[:1]
        ['front_end/conv1/bias']
    """
    if isinstance(path, str) and path in PUBLISHED:
        path = fetch_weights(path)
    path = Path(path).expanduser()
    if path.suffix not in _READERS:
        raise ValueError(
            f"{path}: weights are read from files that end in {', '.join(_READERS)}"
        )
    kind, read = _READERS[path.suffix]
    with reading(path, kind):
        weights = read(path)
    if inputs is None:
        return weights
    return Weights(weights.path, weights.kind, weights.tensors, inputs)


def load_weights(
    path: str | Path,
    model: DilatedNet,
    *,
    allow_missing: Sequence[str] = (),
    reinit: Sequence[str] = (),
    mean: tuple[float, ...] | None = None,
    inputs: Inputs | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], Report]:
    """Load weights of Caffe, Keras, PyTorch, safetensors or NumPy.

    The file may contain VGG-16 trained on ImageNet (with or without fc6 and fc7), one
    of the four released networks, or what `save_weights` wrote. Dense layers become
    convolutions. If the file's network takes other images, its first layer is rewritten
    for ours: BGR on the 0..255 scale minus a mean pixel.

    Args:
        path: see `read_weights`.
        model: the network, of any width that the file has.
        allow_missing: layers that the file may lack: beginnings of names or globs, such
            as `"final"`, `"ctx"`, `"context"`. They keep their initialization.
        reinit: layers that keep their initialization although the file has them, for
            other classes.
        mean: the mean pixel (B, G, R) that is subtracted from our images, `spec.mean`.
            None: the one that the file's network expects.
        inputs: see `read_weights`.
        seed: of the initialization.

    Returns:
        Parameters like those of `model.init`, float32, and a `Report` (print it) of
        what was loaded, missing, left over, or rewritten.

    Raises:
        ValueError: naming the layers that are missing, of another shape (with both), or
            not finite; or the file, if it cannot be read.

    Example:
        >>> import tempfile
        >>> from dilax.models import FrontEnd, Layer, init_params
        >>> from dilax.weights import save_weights
        >>> model = DilatedNet(FrontEnd(5, (Layer("conv1", 3, 4),)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(init_params(model, seed=1), f"{folder}/net.npz")
        ...     params, report = load_weights(f"{folder}/net.npz", model)
        >>> params["front_end"]["conv1"]["kernel"].shape, len(report.loaded)
        ((3, 3, 3, 4), 4)
    """
    weights = read_weights(path, inputs)
    initial = param_shapes(model, channels := len(mean) if mean else 3)
    options: dict[str, Any] = {"allow_missing": allow_missing, "reinit": reinit}
    known = check_weights(weights, flat_shapes(initial), **options)
    if known.missing or known.reinit:
        initial = init_params(model, seed, channels)
    return place_weights(weights, model, initial, mean=mean, **options)
