"""Matching the arrays of a file to the parameters of a network.

Arrays are matched by name. In PyTorch's files, names have prefixes: training scripts
wrap networks in others (`module.`, `model.`, a Lightning module's attribute), and state
dictionaries in dictionaries. Both precede the names of the layers, joined by dots, so
one search finds both: for the prefix below which most of the wanted parameters are.
"""

import collections
import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from dilax.weights.stored import TORCHVISION, Inputs, Shape, Weights

CONVOLUTIONS = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
)
DENSE = ("fc6", "fc7", "fc8")
VGG = (*CONVOLUTIONS, *DENSE)
FIXED = "ctx_upsample/kernel"  # of the releases: bilinear; ours has no parameters

# torchvision counts ReLU and pooling in `features`, dropout too in `classifier`. A
# network that took `features` alone has the numbers alone.
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_TORCH = (
    {f"features.{i}": n for i, n in zip(_FEATURES, CONVOLUTIONS, strict=True)}
    | {f"{i}": n for i, n in zip(_FEATURES, CONVOLUTIONS, strict=True)}
    | {f"classifier.{i}": n for i, n in zip((0, 3, 6), DENSE, strict=True)}
    | {"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"}  # timm
)
# torchvision's ResNets: conv1, bn1, layer1.0.conv1, layer1.0.downsample.0 and .1; of a
# deeper stem, conv1 to conv3.
_RESNET = re.compile(
    r"(?:layer(\d+)\.(\d+)\.)?(?:((?:conv|bn)[1-3])|downsample\.([01]))"
)
# Modules that wrap another one, wherever they are in a name.
_WRAPPERS = (
    *("module", "_orig_mod", "_forward_module"),
    *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
)

Shapes = Mapping[str, Shape]


def from_torch(name: str) -> str:
    """Return our name of a PyTorch parameter; others keep theirs, with slashes.

    Example:
        >>> from_torch("features.0.weight"), from_torch("classifier.6.bias")
        ('conv1_1/kernel', 'fc8/bias')
        >>> from_torch("front_end.conv1_1.weight")
        'front_end/conv1_1/kernel'
        >>> from_torch("layer1.0.downsample.1.bias"), from_torch("bn1.running_mean")
        ('layer1_0/downsample_bn/bias', 'bn1/mean')
    """
    layer, _, kind = name.rpartition(".")
    if resnet := _RESNET.fullmatch(layer):
        group, block, part, down = resnet.groups()
        ours = {"0": "downsample", "1": "downsample_bn"}[down] if down else part
        is_norm = "bn" in ours
        kind = {"weight": "scale" if is_norm else "kernel"}.get(kind, kind)
        kind = kind.removeprefix("running_") if is_norm else kind
        return f"layer{group}_{block}/{ours}/{kind}" if group else f"{ours}/{kind}"
    kind = {"weight": "kernel"}.get(kind, kind)
    return f"{_TORCH.get(layer, layer.replace('.', '/'))}/{kind}"


def selects(pattern: str, name: str) -> bool:
    """Whether a pattern, as `select_layers` takes it, selects a parameter.

    Example:
        >>> selects("ctx", "context/ctx_conv1_1/kernel")
        True
    """
    return any(
        fnmatch.fnmatchcase(form, f"{pattern}*")
        for form in (name, name.partition("/")[2])
    )


def select_layers(
    patterns: Sequence[str], names: Collection[str], argument: str
) -> dict[str, None]:
    """Return the parameters that patterns select, in order.

    Args:
        patterns: prefixes of names, or globs, with or without the module: `"final"`,
            `"ctx"`, `"context"`, `"front_end/fc*"`.
        names: of all parameters.
        argument: for the message.

    Raises:
        ValueError: naming a pattern that selects none.

    Example:
        >>> names = ["front_end/final/bias", "context/ctx_fc1/bias"]
        >>> list(select_layers(["ctx"], names, "reinit"))
        ['context/ctx_fc1/bias']
    """
    for pattern in patterns:
        if not any(selects(pattern, name) for name in names):
            layers = dict.fromkeys(map(layer_of, names))
            raise ValueError(
                f"{argument}={pattern!r}: must be one of the layers {listed(layers)}"
            )
    return {n: None for n in names if any(selects(p, n) for p in patterns)}


def layer_of(name: str) -> str:
    """Return the layer that an array belongs to, by our names or PyTorch's."""
    return name.rpartition("/" if "/" in name else ".")[0]


def listed(items: Collection[str], most: int = 12) -> str:
    """Join names for a message; if there are many, only the first of them."""
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(list(items)[:most]) + more


class Resolved(NamedTuple):
    """The arrays of a file that a network takes.

    Attributes:
        sources: parameter → name of its array in the file.
        others: names of the other arrays of the network, which are not used.
        inputs: the images that the file's network takes, if known.
        note: which of several networks in the file was chosen; or nothing.
    """

    sources: dict[str, str]
    others: tuple[str, ...]
    inputs: Inputs | None
    note: str = ""


def resolve_weights(weights: Weights, shapes: Shapes, key: str = "") -> Resolved:
    """Find the arrays of a file that are a network's parameters.

    An array has a parameter's name, or the name without the module if that is unique.
    In PyTorch's files, all of them are below one prefix: the one with the most
    parameters of the right shape. If several have equally many, such as a state
    dictionary and its moving average, the first is used and the note says so.

    Args:
        weights: of the file.
        shapes: of the network's parameters by name.
        key: the dictionary or module of the file to use, such as `"state_dict_ema"` or
            `"model.teacher"`; by default the one that fits.

    Raises:
        ValueError: if the file has no such key, two arrays match the same parameter, or
            VGG-16's convolutions have batch normalization between them.

    Example:
        >>> from pathlib import Path
        >>> from dilax.weights.stored import Stored
        >>> bias = Stored((4,), "oihw", None)
        >>> names = ["model.module.conv1_1.bias", "optimizer.conv1_1.bias", "loss"]
        >>> weights = Weights(Path("a.pth"), "PyTorch", dict.fromkeys(names, bias))
        >>> resolve_weights(weights, {"front_end/conv1_1/bias": (4,)}).sources
        {'front_end/conv1_1/bias': 'model.module.conv1_1.bias'}
    """
    short = collections.Counter(name.partition("/")[2] for name in shapes)
    wanted = {own: name for name in shapes if short[own := name.partition("/")[2]] == 1}
    wanted |= {name: name for name in shapes}
    networks: dict[str, dict[str, list[str]]] = {}  # prefix → parameter → arrays
    torchvisions = set()  # prefixes of torchvision's names
    for source in weights.tensors:
        for prefix, ours, known in _readings(source):
            if (name := wanted.get(ours)) and _below(prefix, key):
                networks.setdefault(prefix, {}).setdefault(name, []).append(source)
                if known:
                    torchvisions.add(prefix)
    if key and not networks:
        keys = dict.fromkeys(n.partition(".")[0] for n in weights.tensors if "." in n)
        raise ValueError(
            f"{weights.path}: init_key={key!r} holds no parameter of the network; the "
            f"file has {listed(keys) or 'one network, without keys'}"
        )
    if not networks:
        return Resolved({}, tuple(weights.tensors), weights.inputs)

    def score(prefix: str) -> tuple[bool, int, int]:
        found = networks[prefix]
        fits = (weights.tensors[s[0]].fits(shapes[n]) for n, s in found.items())
        # An optimizer's moments have the parameters' names and shapes, too.
        moments = not key and re.search(r"(^|\.)optim", prefix)
        return not moments, sum(fits), len(found)

    best = max(map(score, networks))
    # Of the prefixes that lead to the same arrays, the shortest comes first.
    fitting: dict[tuple, str] = {}
    for prefix, found in networks.items():
        if score(prefix) == best:
            fitting.setdefault(tuple(map(tuple, found.values())), prefix)
    prefix, *rivals = fitting.values()
    sources = {n: networks[prefix][n] for n in shapes if n in networks[prefix]}
    for name, same in sources.items():
        if len(same) > 1:
            raise ValueError(
                f"{weights.path}: two arrays are called {name}: {listed(same)}"
            )
    taken = {same[0] for same in sources.values()}
    others = tuple(n for n in weights.tensors if _below(n, prefix) and n not in taken)
    # Refuse vgg16_bn, whose convolutions are useless without its normalization.
    parents = {layer_of(layer_of(name)) for name in taken}
    norms = [n for n in others if n.endswith(".running_mean")]
    if any(layer_of(layer_of(name)) in parents for name in norms):
        raise ValueError(
            f"{weights.path}: has batch normalization ({norms[0]}) where the network "
            "has none"
        )
    note = f"the parameters are those below {prefix!r}" if prefix else ""
    if rivals:
        note = (
            f"the file holds {len(rivals) + 1} networks that fit, and the parameters "
            f"are those of the first, {prefix!r}. --config.init_key=NAME (in Python, "
            f"key=NAME) takes another: {listed(rivals)}"
        )
    inputs = weights.inputs or (TORCHVISION if prefix in torchvisions else None)
    return Resolved({n: same[0] for n, same in sources.items()}, others, inputs, note)


def _readings(source: str) -> Iterator[tuple[str, str, bool]]:
    """Split a name in a file: (prefix, our name of the rest, whether torchvision's)."""
    head, slash, tail = source.partition("/")
    parts = head.split(".")
    parts[-1] += slash + tail
    for i, part in enumerate(parts):
        if part in _WRAPPERS:
            continue  # belongs to the prefix
        rest = ".".join(part for part in parts[i:] if part not in _WRAPPERS)
        layer = layer_of(rest)
        resnet = layer.startswith("layer") and _RESNET.fullmatch(layer)
        known = not slash and bool(layer in _TORCH or resnet)
        yield ".".join(parts[:i]), rest if slash else from_torch(rest), known


def _below(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")
