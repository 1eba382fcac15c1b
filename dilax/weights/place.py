"""A file's arrays become the parameters of a network."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from dilax.models import DilatedNet
from dilax.models.layers import norm_name
from dilax.weights.inputs import adapted, shown
from dilax.weights.match import check_weights, flat_shapes, listed, sources
from dilax.weights.report import Report
from dilax.weights.stored import Shape, Weights, reading

Params = dict[str, Any]


def place_weights(
    weights: Weights,
    model: DilatedNet,
    initial: Params,
    *,
    allow_missing: Sequence[str] = (),
    reset: Sequence[str] = (),
    mean: tuple[float, ...] | None = None,
) -> tuple[Params, Report]:
    """The parameters of a network, from a file where it has them.

    Args:
        weights: of the file.
        model: says which layer takes the image.
        initial: the network's parameters so far; what is missing or reset keeps them.
            Where nothing is, their shapes (`param_shapes`) are enough.
        allow_missing: see `check_weights`.
        reset: see `check_weights`.
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
    report = check_weights(weights, shapes, allow_missing=allow_missing, reset=reset)
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
