"""The networks of the literature in PyTorch, from the papers and public definitions.

Layer by layer; they take our parameters one after the other in their own order.
"""

import functools

import numpy as np

from dilax.models.layers import norm_name


class Twin:
    """Runs our parameters, in the order in which they are asked for, with PyTorch."""

    def __init__(self, torch, params):
        self.torch, self.functional = torch, torch.nn.functional
        self.params = params["front_end"]

    def conv(self, x, name, stride=1, padding=None, dilation=1):
        layer = self._at(name)
        kernel = self._tensor(layer["kernel"]).permute(3, 2, 0, 1)
        if padding is None:
            padding = dilation * (kernel.shape[2] - 1) // 2
        bias = self._tensor(layer["bias"]) if "bias" in layer else None
        return self.functional.conv2d(x, kernel, bias, stride, padding, dilation)

    def norm(self, x, name):
        layer = self._at(name)
        values = [layer[part] for part in ("mean", "var", "scale", "bias")]
        return self.functional.batch_norm(x, *map(self._tensor, values), eps=1e-5)

    def _at(self, name):
        return functools.reduce(lambda t, key: t[key], name.split("/"), self.params)

    def _tensor(self, array):
        return self.torch.tensor(np.asarray(array))


def _vgg(twin, x, pool, dilations=(1, 1, 1, 1, 1), entry=1):
    """Maps behind each of the five pools of VGG-16."""
    found = []
    for block, (depth, dilation) in enumerate(
        zip((2, 2, 3, 3, 3), dilations, strict=True), 1
    ):
        for number in range(1, depth + 1):
            name = f"conv{block}_{number}"
            padding = entry if name == "conv1_1" else dilation
            x = twin.conv(x, name, padding=padding, dilation=dilation).relu()
        x = pool(x, block)
        found.append(x)
    return found


def _head(twin, x, **fc6):
    x = twin.conv(x, "fc6", **fc6).relu()
    return twin.conv(x, "fc7").relu()


def _fcn8s(twin, x):
    functional, torch = twin.functional, twin.torch

    def pool(x, _):
        return functional.max_pool2d(x, 2, 2, ceil_mode=True)

    def enlarge(x, factor):
        size = 2 * factor
        ramp = 1 - (torch.arange(size) + 0.5 - factor).abs() / factor
        kernel = torch.outer(ramp, ramp).expand(x.shape[1], 1, size, size)
        return functional.conv_transpose2d(x, kernel, stride=factor, groups=x.shape[1])

    def cut(x, offset, like):
        h, w = like.shape[2:]
        return x[:, :, offset : offset + h, offset : offset + w]

    _, _, pool3, pool4, pool5 = _vgg(twin, x, pool, entry=100)
    scores = twin.conv(_head(twin, pool5, padding=0), "score_fr")
    scores = enlarge(scores, 2)
    scores = scores + cut(twin.conv(pool4, "score_pool4"), 5, scores)
    scores = enlarge(scores, 2)
    scores = scores + cut(twin.conv(pool3, "score_pool3"), 9, scores)
    return cut(enlarge(scores, 8), 31, x)


def _deeplab(twin, x, *, dilation, padding, averages=False, branches=False):
    functional = twin.functional

    def pool(x, block):
        return functional.max_pool2d(x, 3, 2 if block < 4 else 1, 1)

    image, found = x, _vgg(twin, x, pool, (1, 1, 1, 1, 2))
    x = functional.avg_pool2d(found[-1], 3, 1, 1) if averages else found[-1]
    scores = twin.conv(_head(twin, x, dilation=dilation, padding=padding), "final")
    if branches:
        names = ("image", "pool1", "pool2", "pool3", "pool4")
        maps = (image, *found[:4])
        for name, y, stride in zip(names, maps, (8, 4, 2, 1, 1), strict=True):
            y = twin.conv(y, f"{name}_conv", stride=stride).relu()
            scores = scores + twin.conv(
                twin.conv(y, f"{name}_fc").relu(), f"{name}_scores"
            )
    return scores


def _segnet(twin, x):
    functional, kept = twin.functional, []

    def layer(x, name):
        return twin.norm(twin.conv(x, name), f"{name}_bn").relu()

    depths = (2, 2, 3, 3, 3)
    for block, depth in enumerate(depths, 1):
        for number in range(1, depth + 1):
            x = layer(x, f"conv{block}_{number}")
        kept.append(x.shape[2:])
        x, places = functional.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        kept.append(places)
    for block, depth in reversed([*enumerate(depths, 1)]):
        places, size = kept.pop(), kept.pop()
        x = functional.max_unpool2d(x, places, 2, 2, output_size=size)
        for number in range(depth, 0, -1):
            name = f"conv{block}_{number}_D"
            x = twin.conv(x, name) if name == "conv1_1_D" else layer(x, name)
    return x


def _drn(twin, x, *, levels, arch="D", block="basic", light=False):
    """The authors' network, from its constructor's arguments, or our light one."""

    def layer(x, name, **options):
        *block, last = name.split("/")
        return twin.norm(
            twin.conv(x, name, **options), "/".join([*block, norm_name(last)])
        )

    def plain(x, name, stride, dilation, residual):
        return layer(x, f"{name}/conv1", stride=stride, dilation=dilation).relu()

    def basic(x, name, stride, dilation, residual):
        y = layer(x, f"{name}/conv1", stride=stride, dilation=dilation).relu()
        y = layer(y, f"{name}/conv2", dilation=dilation)
        return _joined(x, y, name, stride, residual)

    def bottleneck(x, name, stride, dilation, residual):
        y = layer(x, f"{name}/conv1").relu()
        y = layer(y, f"{name}/conv2", stride=stride, dilation=dilation).relu()
        return _joined(x, layer(y, f"{name}/conv3"), name, stride, residual)

    def _joined(x, y, name, stride, residual):
        if not residual:
            return y.relu()
        if stride > 1 or x.shape[1] != y.shape[1]:
            x = layer(x, f"{name}/shortcut", stride=stride)
        return (x + y).relu()

    ends = basic if arch == "C" else plain
    middle = basic if block == "basic" else bottleneck
    kinds = (ends, ends, middle, middle, middle, middle, ends, ends)
    first, strides, dilations = 1, (1, 2, 2, 2, 1, 1, 1, 1), (1, 1, 1, 1, 2, 4, 2, 1)
    if light:
        kinds = (basic, basic, basic, basic, plain, plain)
        first, strides, dilations = 2, (2, 2, 1, 1, 1, 1), (1, 1, 2, 4, 2, 1)
    x = layer(x, "stem", stride=first).relu()
    for number, (kind, depth) in enumerate(zip(kinds, levels, strict=True), 1):
        for index in range(depth):
            stride = strides[number - 1] if index == 0 else 1
            given = stride, dilations[number - 1], number < len(kinds) - 1
            x = kind(x, f"level{number}_{index}", *given)
    return twin.conv(x, "final")


SMALL, LARGE = (1, 1, 2, 2, 2, 2, 1, 1), (1, 1, 3, 4, 6, 3, 1, 1)
TWINS = {
    "fcn8s": _fcn8s,
    "deeplab": functools.partial(_deeplab, dilation=4, padding=6),
    "deeplab_7x7": functools.partial(_deeplab, dilation=4, padding=12),
    "deeplab_msc": functools.partial(_deeplab, dilation=4, padding=6, branches=True),
    "deeplab_largefov": functools.partial(
        _deeplab, dilation=12, padding=12, averages=True
    ),
    "deeplab_msc_largefov": functools.partial(
        _deeplab, dilation=12, padding=12, averages=True, branches=True
    ),
    "segnet": _segnet,
    "drn_c_26": functools.partial(_drn, levels=SMALL, arch="C", block="basic"),
    "drn_d_22": functools.partial(_drn, levels=SMALL, arch="D", block="basic"),
    "drn_d_38": functools.partial(_drn, levels=LARGE, arch="D", block="basic"),
    "drn_d_54": functools.partial(_drn, levels=LARGE, arch="D", block="bottleneck"),
    "drn_light": functools.partial(_drn, levels=(1, 2, 2, 2, 1, 1), light=True),
}
