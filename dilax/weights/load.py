"""Load a file's arrays as the parameters of a network.

A parameter that is missing or has another shape is an error that names it, unless the
caller allowed it, and the report lists what happened to every layer.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from tabulate import tabulate

from dilax.models import DilatedNet, init_params, param_shapes
from dilax.models.layers import norm_name
from dilax.weights.formats import read_weights
from dilax.weights.resolve import (
    FIXED,
    Resolved,
    Shapes,
    layer_of,
    listed,
    resolve_weights,
    select_layers,
)
from dilax.weights.stored import Inputs, Shape, Weights, adapted, reading, shown

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """A report on what was loaded and what was not; `print` shows it as a table.

    Attributes:
        title: the file and its kind.
        rows: one per layer: its name in the file, the shapes of its arrays, and the
            layer that it became, or what happened instead.
        loaded: names of the parameters that come from the file.
        missing: names of the parameters that the file lacks; they keep their
            initialization.
        reinit: names of the parameters that keep their initialization as requested.
        left_over: names of the file's arrays that are not used.
        notes: which network of the file was used, and how the values were changed.

    Example:
        >>> rows = (("conv1", "(3, 3, 3, 4)", "conv1"),)
        >>> str(Report("net.npz", rows, ("conv1/kernel",))).splitlines()[0]
        'net.npz'
    """

    title: str
    rows: tuple[tuple[str, str, str], ...]
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    reinit: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        heads = ("in the file", "shape", "became")
        counts = (
            f"{len(self.loaded)} parameters loaded, {len(self.missing)} missing, "
            f"{len(self.reinit)} reinitialized; {len(self.left_over)} arrays unused"
        )
        table = tabulate(self.rows, heads, disable_numparse=True)
        return "\n".join((self.title, "", table, "", counts, *self.notes))


def flat_shapes(params: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shapes of parameters, or of other values with shapes, by name.

    Example:
        >>> flat_shapes({"front_end": {"final": {"bias": np.zeros(3)}}})
        {'front_end/final/bias': (3,)}
    """
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def check_weights(
    weights: Weights,
    shapes: Shapes,
    *,
    allow_missing: Sequence[str] = (),
    reinit: Sequence[str] = (),
    key: str = "",
) -> Report:
    """Check that a file has the parameters of a network, without reading their values.

    Args:
        weights: of the file.
        shapes: `"front_end/conv1_1/kernel"` → shape.
        allow_missing: layers that the file may lack, as patterns of `select_layers`.
        reinit: layers that are not loaded from the file, as such patterns.
        key: see `resolve_weights`.

    Raises:
        ValueError: naming the parameters that are missing or have another shape, a
            fixed layer with other values than ours, or a pattern that selects no layer.
    """
    fresh = select_layers(reinit, shapes, "reinit")
    allowed = select_layers(allow_missing, shapes, "allow_missing")
    found = resolve_weights(weights, shapes, key)
    missing = [n for n in shapes if n not in found.sources and n not in fresh]
    lost = [n for n in missing if n not in allowed]
    if lost:
        raise ValueError(
            f"{weights.path}: lacks {listed(lost)}. It holds {listed(weights.tensors)}."
            f" {_how_to_start_without(lost)}"
        )
    loaded = {n: s for n, s in found.sources.items() if n not in fresh}
    wrong = [
        f"{name} {shapes[name]} is {weights.tensors[source].shape} there"
        for name, source in loaded.items()
        if not weights.tensors[source].fits(shapes[name])
    ]
    if wrong:
        raise ValueError(
            f"{weights.path}: has other shapes: {listed(wrong)}. Name the layers that "
            "should start from their initialization in reinit"
        )
    _check_fixed(weights)
    return Report(
        title=f"{weights.path} ({weights.kind})",
        rows=tuple(_rows(weights, found, fresh, missing, shapes)),
        loaded=tuple(loaded),
        missing=tuple(missing),
        reinit=tuple(fresh),
        left_over=tuple(name for name in found.others if name != FIXED),
        notes=(found.note,) if found.note else (),
    )


def _how_to_start_without(lost: Sequence[str]) -> str:
    layers = list(dict.fromkeys(layer_of(name).partition("/")[2] for name in lost))
    if {"fc6", "fc7"} & set(layers) <= set(layers) <= {"fc6", "fc7", "final"}:
        return (
            "Files with only VGG-16's convolutions are used with "
            "--config.reinit=fc6,fc7,final (in Python, "
            'allow_missing=["fc6", "fc7", "final"]): these layers are trained from '
            "their initialization"
        )
    return (
        "Name the layers that may keep their initialization in reinit, such as "
        f"--config.reinit={','.join(layers[:3])} (in Python, also allow_missing)"
    )


def _check_fixed(weights: Weights) -> None:
    """Check that the releases' `ctx_upsample` is bilinear upsampling, as ours is."""
    stored = weights.tensors.get(FIXED)
    if stored is None:
        return
    ramp = 1 - np.abs(np.arange(16) / 8 - 15 / 16)
    with reading(weights.path, weights.kind):
        same = stored.shape[1:] == (1, 16, 16) and np.allclose(
            stored.read(), np.outer(ramp, ramp), rtol=0, atol=1e-5
        )
    if not same:
        raise ValueError(
            f"{weights.path}: {FIXED} {stored.shape} is not the bilinear upsampling by "
            "8 that this network has instead"
        )


def _rows(
    weights: Weights,
    found: Resolved,
    fresh: Collection[str],
    missing: Sequence[str],
    shapes: Shapes,
) -> Iterator[tuple[str, str, str]]:
    """Yield the layers of the file in its order, then those that it lacks."""
    targets = {source: name for name, source in found.sources.items()}
    listed_names = {*targets, *found.others}
    layers = collections.defaultdict(list)
    for name in weights.tensors:
        if name in listed_names:
            layers[layer_of(name)].append(name)
    for layer, names in layers.items():
        names.sort(key=lambda name: not name.endswith(("/kernel", ".weight")))
        shape = ", ".join(str(weights.tensors[name].shape) for name in names)
        became = [targets[name] for name in names if name in targets]
        if layer == layer_of(FIXED):
            fate = "left out: fixed, bilinear as it should be"
        elif not became:
            fate = "left over"
        elif became[0] in fresh:
            fate = f"left out: {layer_of(became[0])} is reinitialized"
        else:
            fate = f"{layer_of(became[0])} {shapes[became[0]]}"
        yield layer, shape, fate
    for layer in dict.fromkeys(map(layer_of, missing)):
        yield "", "", f"{layer}: missing, keeps its initialization"
    absent = (name for name in fresh if name not in found.sources)
    for layer in dict.fromkeys(map(layer_of, absent)):
        yield "", "", f"{layer}: reinitialized, not in the file"


def assign_weights(
    weights: Weights,
    model: DilatedNet,
    initial: Params,
    *,
    allow_missing: Sequence[str] = (),
    reinit: Sequence[str] = (),
    mean: tuple[float, ...] | None = None,
    key: str = "",
) -> tuple[Params, Report]:
    """Return the parameters of a network, as far as possible from a file.

    Args:
        weights: of the file.
        model: the network; it states which layer takes the image.
        initial: the network's initialization, which missing or reinitialized layers
            keep; if there are none of these, shapes (`param_shapes`) are enough.
        allow_missing: see `check_weights`.
        reinit: see `check_weights`.
        mean: mean pixel of the images that the network will take. The first layer's
            bias is adapted to the difference from the file's mean.
        key: see `resolve_weights`.

    Returns:
        New parameters, float32, and a report on where they came from.

    Raises:
        ValueError: as `check_weights`, and naming layers whose values are not finite.
    """
    shapes = flat_shapes(initial)
    report = check_weights(
        weights, shapes, allow_missing=allow_missing, reinit=reinit, key=key
    )
    found = resolve_weights(weights, shapes, key)
    with reading(weights.path, weights.kind):
        values = {
            name: weights.tensors[found.sources[name]].fitted(shapes[name])
            for name in report.loaded
        }
    bad = [n for n, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise ValueError(f"{weights.path}: not finite: {listed(bad)}")
    flat = traverse_util.flatten_dict(initial, sep="/")
    try:
        note = _adapt(values, found.inputs, model, flat, mean)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from error
    merged = {**flat, **{n: jnp.asarray(value) for n, value in values.items()}}
    params = traverse_util.unflatten_dict(merged, sep="/")
    return params, dataclasses.replace(report, notes=(*report.notes, note))


def _adapt(
    values: dict[str, np.ndarray],
    inputs: Inputs | None,
    model: DilatedNet,
    flat: Mapping[str, Any],
    mean: tuple[float, ...] | None,
) -> str:
    """Convert the first layer for our images; return a note on it."""
    first = model.front_end.first_layer
    kernel, bias, sign = f"front_end/{first}/kernel", f"front_end/{first}/bias", 1.0
    if kernel not in values:
        return f"{first} is not from the file; it takes whatever it learns to take"
    if inputs is None:
        return (
            "the file does not state the mean pixel of its network, so the first layer "
            "was not adapted"
        )
    if bias not in flat:
        # The layer is normalized, so the change of its outputs is subtracted from the
        # mean of the normalization instead.
        bias, sign = f"front_end/{norm_name(first)}/mean", -1.0
    before = sign * (values[bias] if bias in values else np.asarray(flat[bias]))
    values[kernel], after = adapted(values[kernel], before, inputs, mean)
    values[bias] = sign * after
    now = shown(mean or inputs.mean)
    return f"{first} took {inputs}; it takes BGR minus {now} now"


def load_weights(
    path: str | Path,
    model: DilatedNet,
    *,
    allow_missing: Sequence[str] = (),
    reinit: Sequence[str] = (),
    mean: tuple[float, ...] | None = None,
    inputs: Inputs | None = None,
    key: str = "",
    seed: int = 0,
) -> tuple[dict[str, Any], Report]:
    """Load weights of Caffe, Keras, PyTorch, safetensors, or NumPy.

    The file may contain VGG-16 trained on ImageNet (with or without fc6 and fc7), one
    of the four released networks, or parameters that `save_weights` wrote. Dense layers
    become convolutions. If the file's network takes other images, its first layer is
    converted for ours: BGR on the 0..255 scale minus a mean pixel.

    Args:
        path: see `read_weights`.
        model: the network, with the same width as in the file.
        allow_missing: layers that the file may lack: prefixes of names or globs, such
            as `"final"`, `"ctx"`, `"context"`. They keep their initialization.
        reinit: layers that keep their initialization although the file has them, such
            as for other classes.
        mean: the mean pixel (B, G, R) that is subtracted from our images, `spec.mean`;
            None uses that of the file's network.
        inputs: see `read_weights`.
        key: the network of the file to load, if several fit, such as
            `"state_dict_ema"`; see `resolve_weights`.
        seed: of the initialization.

    Returns:
        Parameters like those of `model.init`, float32, and a `Report` (print it) on
        what was loaded, missing, unused, or converted.

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
    options: dict[str, Any] = {
        "allow_missing": allow_missing,
        "reinit": reinit,
        "key": key,
    }
    known = check_weights(weights, flat_shapes(initial), **options)
    if known.missing or known.reinit:
        initial = init_params(model, seed, channels)
    return assign_weights(weights, model, initial, mean=mean, **options)
