"""Which array of a file becomes which parameter of a network, by name and shape.

Nothing is left to chance: what is missing or misshapen is an error that names it,
unless the caller named it first.

What became of the layers of a file, as a table.
"""

import collections
import dataclasses
import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from tabulate import tabulate

from dilax.weights.names import FIXED
from dilax.weights.stored import Shape, Weights, reading


class Row(NamedTuple):
    """A layer of the file, or one of the network that the file lacks.

    Attributes:
        layer: its name in the file; empty for one that the file lacks.
        shape: of its arrays in the file.
        where: the layer that it became, with its kernel's shape, or what else happened.

    Example:
        >>> Row("conv1_1", "64 x 3 x 3 x 3", "front_end/conv1_1").layer
        'conv1_1'
    """

    layer: str
    shape: str
    where: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What was loaded and what was not; `print` shows it as a table.

    Attributes:
        title: the file and its kind.
        rows: a layer each.
        loaded: names of the parameters that come from the file.
        missing: of those that the file lacks; they keep the initialisation.
        reinit: of those that keep the initialisation.
        left_over: names of the file's arrays that no parameter takes.
        notes: what was done to the values.

    Example:
        >>> rows = (Row("conv1", "(3, 3, 3, 4)", "conv1"),)
        >>> str(Report("net.npz", rows, ("conv1/kernel",))).splitlines()[0]
        'net.npz'
    """

    title: str
    rows: tuple[Row, ...]
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    reinit: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        heads = ("in the file", "shape", "became")
        counts = (
            f"{len(self.loaded)} parameters loaded, {len(self.missing)} missing, "
            f"{len(self.reinit)} reinitialized; {len(self.left_over)} arrays left over"
        )
        table = tabulate(self.rows, heads, disable_numparse=True)
        return "\n".join((self.title, "", table, "", counts, *self.notes))


_LISTED = 12
Shapes = Mapping[str, Shape]


def check_weights(
    weights: Weights,
    shapes: Shapes,
    *,
    allow_missing: Sequence[str] = (),
    reinit: Sequence[str] = (),
) -> Report:
    """Whether a file has the parameters of a network; their values are not read.

    Args:
        weights: of the file.
        shapes: `"front_end/conv1_1/kernel"` → shape.
        allow_missing: layers that the file may lack, as `chosen` takes them.
        reinit: layers that are not taken from the file, likewise.

    Raises:
        ValueError: naming what is missing or misshapen, a fixed layer with other
            values than ours, or a pattern that no layer matches.

    Example:
        >>> from pathlib import Path
        >>> from dilax.weights.stored import Stored
        >>> stored = Stored((1, 1, 3, 2), "hwio", lambda: np.ones((1, 1, 3, 2)))
        >>> weights = Weights(Path("net.npz"), "npz", {"final/kernel": stored})
        >>> shapes = {"front_end/final/kernel": (1, 1, 3, 2)}
        >>> check_weights(weights, shapes).loaded
        ('front_end/final/kernel',)
    """
    kept = chosen(reinit, shapes, "reinit")
    allowed = chosen(allow_missing, shapes, "allow_missing")
    found = sources(weights, shapes)
    missing = [n for n in shapes if n not in found and n not in kept]
    lost = [n for n in missing if n not in allowed]
    if lost:
        raise ValueError(
            f"{weights.path}: lacks {listed(lost)}. It holds {listed(weights.tensors)}."
            " Name the layers that may keep their initialization in allow_missing or "
            "reinit"
        )
    loaded = {n: found[n] for n in shapes if n in found and n not in kept}
    _check_shapes(weights, loaded, shapes)
    _check_fixed(weights)
    used = {*found.values(), FIXED}
    left_over = tuple(n for n in weights.tensors if n not in used)
    return Report(
        title=f"{weights.path} ({weights.kind})",
        rows=tuple(_rows(weights, found, kept, missing, shapes)),
        loaded=tuple(loaded),
        missing=tuple(missing),
        reinit=tuple(kept),
        left_over=left_over,
    )


def flat_shapes(params: Mapping[str, Any]) -> dict[str, Shape]:
    """Parameters, or what has their shapes, as name → shape.

    Example:
        >>> flat_shapes({"front_end": {"final": {"bias": np.zeros(3)}}})
        {'front_end/final/bias': (3,)}
    """
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def chosen(
    patterns: Sequence[str], names: Collection[str], argument: str
) -> dict[str, None]:
    """The parameters that patterns name, in order.

    Args:
        patterns: beginnings of names, or globs, with or without the module: `"final"`,
            `"ctx"`, `"context"`, `"front_end/fc*"`.
        names: of all parameters.
        argument: for the message.

    Raises:
        ValueError: naming a pattern that matches none.

    Example:
        >>> list(chosen(["ctx"], ["front_end/final/bias", "context/ctx_fc1/bias"], "x"))
        ['context/ctx_fc1/bias']
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = [n for n in names if matches_layer(pattern, n)]
        if not matches:
            layers = dict.fromkeys(map(_layer, names))
            raise ValueError(
                f"{argument}={pattern!r}: is none of the layers {listed(layers)}"
            )
        found |= dict.fromkeys(matches)
    return {name: None for name in names if name in found}


def matches_layer(pattern: str, name: str) -> bool:
    """Whether a pattern, as `chosen` takes it, names a parameter.

    Example:
        >>> matches_layer("ctx", "context/ctx_conv1_1/kernel")
        True
    """
    return any(
        fnmatch.fnmatchcase(form, f"{pattern}*")
        for form in (name, name.partition("/")[2])
    )


def sources(weights: Weights, names: Collection[str]) -> dict[str, str]:
    """The array of the file for each parameter that it has.

    It has the parameter's name, or the name without the module where that is no other
    parameter's too.

    Example:
        >>> from pathlib import Path
        >>> from dilax.weights.stored import Stored
        >>> stored = Stored((1, 1, 3, 2), "hwio", lambda: np.ones((1, 1, 3, 2)))
        >>> weights = Weights(Path("net.npz"), "npz", {"final/kernel": stored})
        >>> sources(weights, ["front_end/final/kernel", "front_end/final/bias"])
        {'front_end/final/kernel': 'final/kernel'}
    """
    short = collections.Counter(name.partition("/")[2] for name in names)
    found = {}
    for name in names:
        own = name.partition("/")[2]
        if name in weights.tensors:
            found[name] = name
        elif own in weights.tensors and short[own] == 1:
            found[name] = own
    return found


def _check_shapes(weights: Weights, loaded: dict[str, str], shapes: Shapes) -> None:
    wrong = [
        f"{name} {shapes[name]} is {weights.tensors[source].shape} there"
        for name, source in loaded.items()
        if not weights.tensors[source].fits(shapes[name])
    ]
    if wrong:
        raise ValueError(
            f"{weights.path}: has other shapes: {listed(wrong)}. Layers that shall "
            "start from their initialization are named by reinit"
        )


def _check_fixed(weights: Weights) -> None:
    """`ctx_upsample` of the release is bilinear: ours is built in, and has to agree."""
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
            "8 that this network has in its place"
        )


def _rows(
    weights: Weights,
    found: dict[str, str],
    kept: Collection[str],
    missing: Sequence[str],
    shapes: Shapes,
) -> Iterator[Row]:
    """The layers of the file in its order, then those that it lacks."""
    layers: dict[str, list[str]] = {}
    for name in weights.tensors:
        layers.setdefault(_layer(name), []).append(name)
    targets = {source: name for name, source in found.items()}
    for layer, names in layers.items():
        names.sort(key=lambda name: not name.endswith("/kernel"))
        became = [targets[name] for name in names if name in targets]
        shape = ", ".join(str(weights.tensors[name].shape) for name in names)
        yield Row(layer, shape, _fate(layer, became, kept, shapes))
    for layer in dict.fromkeys(map(_layer, missing)):
        yield Row("", "", f"{layer}: missing, keeps its initialization")
    for layer in dict.fromkeys(_layer(name) for name in kept if name not in found):
        yield Row("", "", f"{layer}: reinitialized, not in the file")


def _fate(layer: str, became: list[str], kept: Collection[str], shapes: Shapes) -> str:
    if layer == _layer(FIXED):
        return "left out: fixed, bilinear as it should be"
    if not became:
        return "left over"
    if became[0] in kept:
        return f"left out: {_layer(became[0])} is reinitialized"
    return f"{_layer(became[0])} {shapes[became[0]]}"


def _layer(name: str) -> str:
    return name.rpartition("/")[0]


def listed(items: Collection[str], between: str = ", ") -> str:
    """Names for a message, the first of them where there are many."""
    more = f"{between}and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return between.join(list(items)[:_LISTED]) + more
