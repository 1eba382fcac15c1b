"""What other networks' layers are called here: VGG-16 and the four releases."""

import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from dilax.data import DATASETS
from dilax.models import (
    DilatedNet,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from dilax.weights.stored import CAFFE, TORCHVISION, Inputs, Stored

_CONVOLUTIONS = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
)
_DENSE = ("fc6", "fc7", "fc8")
VGG = (*_CONVOLUTIONS, *_DENSE)

# torchvision counts ReLU and pooling in `features`, dropout too in `classifier`.
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
TORCH = (
    {f"features.{i}": n for i, n in zip(_FEATURES, _CONVOLUTIONS, strict=True)}
    | {f"classifier.{i}": n for i, n in zip((0, 3, 6), _DENSE, strict=True)}
    | {"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"}  # timm
)

# torchvision's ResNets: conv1, bn1, layer1.0.conv1, layer1.0.downsample.0 and .1; of a
# deeper stem, conv1 to conv3.
_RESNET = re.compile(
    r"(?:layer(\d+)\.(\d+)\.)?(?:((?:conv|bn)[1-3])|downsample\.([01]))"
)

# Keras's own names, and those of its `.weights.h5`, which counts layers of a kind.
KERAS = (
    {f"block{n[4]}_conv{n[6]}": n for n in _CONVOLUTIONS}
    | dict(zip(("fc1", "fc2", "predictions"), _DENSE, strict=True))
    | {f"layers/conv2d_{i}": n for i, n in enumerate(_CONVOLUTIONS)}
    | {f"layers/dense_{i}": n for i, n in enumerate(_DENSE)}
)

FIXED = "ctx_upsample/kernel"


def from_torch(name: str) -> str:
    """Our name of a PyTorch parameter; others keep theirs, with slashes.

    Example:
        >>> from_torch("features.0.weight"), from_torch("classifier.6.bias")
        ('conv1_1/kernel', 'fc8/bias')
        >>> from_torch("front_end.conv1_1.weight")
        'front_end/conv1_1/kernel'
        >>> from_torch("layer3.0.conv2.weight")
        'layer3_0/conv2/kernel'
        >>> from_torch("layer1.0.downsample.1.bias")
        'layer1_0/downsample_bn/bias'
        >>> from_torch("bn1.weight"), from_torch("bn1.running_mean")
        ('bn1/scale', 'bn1/mean')
    """
    layer, _, kind = name.removeprefix("module.").rpartition(".")
    if resnet := _RESNET.fullmatch(layer):
        return _from_resnet(resnet, kind)
    kind = {"weight": "kernel"}.get(kind, kind)
    return f"{TORCH.get(layer, layer.replace('.', '/'))}/{kind}"


def _from_resnet(layer: re.Match, kind: str) -> str:
    group, block, part, down = layer.groups()
    ours = {"0": "downsample", "1": "downsample_bn"}[down] if down else part
    is_norm = "bn" in ours
    kind = {"weight": "scale" if is_norm else "kernel"}.get(kind, kind)
    kind = kind.removeprefix("running_") if is_norm else kind
    return f"layer{group}_{block}/{ours}/{kind}" if group else f"{ours}/{kind}"


def from_keras(path: str, layer: str = "") -> str:
    """Our name of a data set of a Keras file; others keep theirs.

    A `.weights.h5` file numbers layers of a kind, and starts again in every nested
    block. Keras 3 also writes the layer's own name, which is unique.

    Args:
        path: of the data set in the file.
        layer: the layer's own name, where the file has it.

    Example:
        >>> from_keras("block1_conv1/block1_conv1_W_1:0")
        'conv1_1/kernel'
        >>> from_keras("model_weights/fc1/fc1/bias:0")
        'fc6/bias'
        >>> from_keras("layers/conv2d/vars/0")
        'conv1_1/kernel'
        >>> from_keras("block2/layers/conv2d/vars/0", "block2_conv1")
        'conv2_1/kernel'
    """
    folder, _, last = path.rpartition("/")
    kind = re.fullmatch(r"(?:.*_)?(W|kernel|b|bias)(?:_\d+)?(?::0)?|([01])", last)
    folder = folder.replace("_layer_checkpoint_dependencies", "layers")
    counted = re.sub(r"(layers/(?:conv2d|dense))(?=/|$)", r"\1_0", folder)
    parts = counted.split("/")
    pairs = ["/".join(pair) for pair in itertools.pairwise(parts)]
    layers = [KERAS[name] for name in (*parts, *pairs, layer) if name in KERAS]
    if not kind or not layers:
        return path
    is_kernel = kind[1] in ("W", "kernel") or kind[2] == "0"
    return f"{layers[-1]}/{'kernel' if is_kernel else 'bias'}"


class Released(NamedTuple):
    """A released network: how it is built, and the data set that it is for.

    Example:
        >>> RELEASED["dilation8_pascal_voc"].dataset
        'voc'
    """

    build: Callable[..., DilatedNet]
    dataset: str


RELEASED = {
    "dilation8_pascal_voc": Released(dilation8_voc, "voc"),
    "dilation8_camvid": Released(dilation8_camvid, "camvid"),
    "dilation7_kitti": Released(dilation7_kitti, "kitti"),
    "dilation10_cityscapes": Released(dilation10_cityscapes, "cityscapes"),
}


def torch_inputs(names: Collection[str]) -> Inputs | None:
    """What torchvision's networks take, if the parameters are named as theirs are."""
    layers = {name.removeprefix("module.").rpartition(".")[0] for name in names}
    known = layers & set(TORCH) or "layer1.0.conv1" in layers
    return TORCHVISION if known else None


def caffe_inputs(tensors: Mapping[str, Stored]) -> Inputs | None:
    """What a Caffe file's network takes: VGG's mean, or that of a release's data set.

    None for other networks: the mean is not in the file, and guessing would be worse.
    """
    layers = {name.rpartition("/")[0] for name in tensors}
    if layers <= set(VGG):
        return CAFFE
    for build, dataset in RELEASED.values():
        model = build()
        own = _own_layers(model)
        last = tensors.get(f"{own[-1]}/bias")
        same = layers - {*VGG, FIXED.rpartition("/")[0]} == set(own)
        if same and last and math.prod(last.shape) == model.num_classes:
            return Inputs(DATASETS[dataset].mean)
    return None


def _own_layers(model: DilatedNet) -> tuple[str, ...]:
    """The layers of a released network that VGG-16 lacks."""
    context = model.context
    assert context is not None
    names: Collection[str] = (*(row.name for row in context.layers), "final")
    return (model.front_end.final_name, *(context.prefix + name for name in names))
