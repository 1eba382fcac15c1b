"""What a network's layers cost, by arithmetic: operations, bytes, and memory kept.

A convolution of h'·w' outputs, k×k taps, c input and d output maps takes b·h'·w'·k²·c·d
multiplications and as many additions; so does each of its two gradients. The dilation
is not in it (paper §2), but for taps that fall into padding by zeros: as in XLA's
account, they take no part. Lowerings that take fewer (Winograd's) are counted alike, so
that rates compare.

The layers of a network as it runs them on inputs of some size.

Found by listening to the network's own modules while its shapes are worked out, so
nothing here repeats an architecture, and nothing is computed.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dilax.models.dilated_net import DilatedNet
from dilax.models.layers import AveragePool, BatchNorm, DilatedConv, MaxPool
from dilax.ops.dilated_conv import pad_maps

Inputs = Literal["images", "maps"]
_HEARD = (DilatedConv, MaxPool, AveragePool, BatchNorm)


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """A layer by itself: `call(params, x)` computes what the network computes there.

    ReLU and dropout are no layers here: they run with the layer before them.

    Attributes:
        module: the module that holds it, such as `"front_end"`; `""` for the network.
        name: in the parameters, or of the pool's row in the table.
        layer: a module, or a function of maps.
        params: shapes of its parameters.
        input: shape and dtype of what the layer before gives it.
        output: shape and dtype of what it gives.
        pad: cells that the network puts around the input first.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> layer_calls(dilation8_camvid(), (1, 900, 900, 3))[0].name
        'conv1_1'
    """

    module: str
    name: str
    layer: nn.Module | Callable[[Any], Any]
    params: dict[str, Any]
    input: jax.ShapeDtypeStruct
    output: jax.ShapeDtypeStruct
    pad: int = 0

    def __call__(self, params: dict[str, Any], x: jax.Array) -> Any:
        x = pad_maps(x, ((self.pad, self.pad),) * 2, "zero")
        if isinstance(self.layer, nn.Module):
            return self.layer.apply({"params": params}, x)
        return self.layer(x)

    @property
    def dilation(self) -> int:
        """Of a convolution; 1 for all else."""
        return self.layer.dilation if isinstance(self.layer, DilatedConv) else 1

    @property
    def stride(self) -> int:
        """Of a convolution; 1 for all else."""
        return self.layer.stride if isinstance(self.layer, DilatedConv) else 1


def layer_calls(
    model: DilatedNet, shape: tuple[int, int, int, int], inputs: Inputs = "images"
) -> list[LayerCall]:
    """Every convolution, pool, normalisation and upsampling, in order.

    What FCN-8s enlarges inside, and SegNet's pools with places, are not among them:
    they cost little beside the convolutions.

    Args:
        model: the network.
        shape: (b, h, w, c) of its input: images with their margins, or maps.
        inputs: whether it gets images, or its front end's maps.

    Raises:
        ValueError: if the shape does not have four numbers, or is too small.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> calls = layer_calls(dilation8_camvid(), (1, 900, 900, 3))
        >>> calls[0].name, calls[0].output.shape
        ('conv1_1', (1, 898, 898, 64))
        >>> {call.name: call.output.shape for call in calls}["fc6"]
        (1, 66, 66, 4096)
    """
    if len(shape) != 4:
        raise ValueError(f"shape={shape}: is not (batch, height, width, channels)")
    heard: list[tuple[nn.Module, Any, Any]] = []
    maps: list[jax.ShapeDtypeStruct] = []  # that the context module takes

    def listen(function, args, kwargs, context):
        out = function(*args, **kwargs)
        if isinstance(context.module, _HEARD):
            heard.append((context.module, _shape(args[0]), _shape(out)))
        if context.module.path == ("context",) and context.method_name == "__call__":
            maps.append(_shape(args[0]))
        return out

    method = "__call__" if inputs == "images" else "from_maps"
    start = functools.partial(model.init_with_output, method=method)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    with nn.intercept_methods(listen):
        out, variables = jax.eval_shape(start, jax.random.key(0), x)
    calls = [_called(variables["params"], *call) for call in heard]
    return [*_with_pads(model, calls, maps), *_enlarging(model, calls, out)]


def _called(params, module: nn.Module, x, out) -> LayerCall:
    *modules, name = module.path
    shapes = params
    for part in module.path:
        shapes = shapes.get(part, {})  # a pool has no parameters
    alone = module.clone(parent=None)
    return LayerCall("/".join(modules), name, alone, shapes, x, out)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _with_pads(
    model: DilatedNet, calls: list[LayerCall], maps: list[jax.ShapeDtypeStruct]
) -> Iterator[LayerCall]:
    """The calls; a context module's take what the layers before give, and pad it."""
    before = maps  # of the next of its layers
    for call in calls:
        if model.context is not None and call.module == "context":
            [x] = before
            pad = (call.input.shape[1] - x.shape[1]) // 2
            given = jax.ShapeDtypeStruct(x.shape, call.input.dtype)
            call = dataclasses.replace(call, input=given, pad=pad)
            before = [call.output]
        yield call


def _enlarging(model: DilatedNet, calls: list[LayerCall], out) -> list[LayerCall]:
    """The rearrangement of DUC and the upsampling, which run as one."""
    source = calls[-1].output
    if source.shape == out.shape or model.map_stride == 1:
        return []
    enlarge = model.clone(context=None).enlarged
    maps = jax.ShapeDtypeStruct(source.shape, out.dtype)
    return [LayerCall("", "upsampling", enlarge, {}, maps, _shape(out))]


def undilated_twin(call: LayerCall) -> LayerCall:
    """The convolution with its taps side by side, on an input that gives as much.

    What dilation costs is the time of the one over the time of the other.

    Raises:
        ValueError: for a layer that is no convolution.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> calls = layer_calls(dilation8_camvid(), (1, 900, 900, 3))
        >>> [fc6] = [call for call in calls if call.name == "fc6"]
        >>> fc6.dilation, undilated_twin(fc6).dilation
        (4, 1)
    """
    if not isinstance(call.layer, DilatedConv):
        raise ValueError(f"call={call.name!r}: is no convolution")
    layer = call.layer.clone(dilation=1)
    fewer = (call.dilation - 1) * (layer.kernel_size - 1)
    if layer.padding != "valid" or call.pad >= fewer // 2:
        pad = call.pad - (fewer // 2 if layer.padding == "valid" else 0)
        return dataclasses.replace(call, layer=layer, pad=pad)
    b, h, w, c = call.input.shape
    x = jax.ShapeDtypeStruct((b, h - fewer, w - fewer, c), call.input.dtype)
    return dataclasses.replace(call, layer=layer, input=x)


class Work(NamedTuple):
    """Of a layer in one pass: forward, the input's or the kernel's gradient.

    Attributes:
        flops: of the products, two a multiply-add; what runs one number at a time
            (biases, ReLU, pools, normalisation, upsampling) is not counted.
        bytes: read and written where each array passes between memory and chip once.

    Example:
        >>> Work(4, 2) + Work(1, 1)
        Work(flops=5, bytes=3)
    """

    flops: int
    bytes: int

    def __add__(self, other: tuple) -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


NONE = Work(0, 0)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Of a layer.

    Attributes:
        call: the layer, with its shapes.
        parameters: how many it has.
        forward: always runs.
        input_gradient: runs where a layer before is trained.
        kernel_gradient: runs where the layer is trained; of biases and scales too.
        kept: bytes of what it reads that the gradients need later; what dropout drew,
            and which values ReLU let pass, is small beside it.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> network_cost(dilation8_camvid(), (1, 900, 900, 3)).layers[0].parameters
        1792
    """

    call: LayerCall
    parameters: int
    forward: Work
    input_gradient: Work = NONE
    kernel_gradient: Work = NONE
    kept: int = 0

    @property
    def passes(self) -> tuple[Work, Work, Work]:
        """Forward, input's and kernel's gradient; `NONE` where one does not run."""
        return self.forward, self.input_gradient, self.kernel_gradient

    @property
    def total(self) -> Work:
        """All passes together."""
        return sum(self.passes, NONE)


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """Of a network on one batch: its layers in order, and their sums.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> network_cost(dilation8_camvid(), (1, 900, 900, 3)).parameters
        134313443
    """

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """How many the layers have."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def kept(self) -> int:
        """Bytes of activations from the forward pass that the gradients need."""
        return sum(layer.kept for layer in self.layers)

    @property
    def forward(self) -> Work:
        """Of a prediction."""
        return sum((layer.forward for layer in self.layers), NONE)

    @property
    def total(self) -> Work:
        """Of a training step, the loss and the optimizer aside."""
        return sum((layer.total for layer in self.layers), NONE)


def network_cost(
    model: DilatedNet,
    shape: tuple[int, int, int, int],
    trained: Collection[str] = ("front_end", "context"),
    inputs: Inputs = "images",
) -> NetworkCost:
    """What each layer costs on inputs of this shape, in the model's dtype.

    Args:
        model: the network.
        shape: (b, h, w, c) of images with their margins, or of the front end's maps.
        trained: the modules whose parameters are trained; empty for prediction.
        inputs: whether the network gets images or maps.

    Raises:
        ValueError: if the shape does not fit the network.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> cost = network_cost(dilation8_camvid(), (1, 900, 900, 3))
        >>> round(cost.forward.flops / 1e9), cost.parameters
        (1583, 134313443)

    Source: two operations a multiply-add, as XLA's cost analysis counts.
    """
    layers: list[LayerCost] = []
    flows = False  # whether a gradient reaches the layer's input
    for call in layer_calls(model, shape, inputs):
        trains = bool(call.params) and call.module.split("/")[0] in trained
        layers.append(_layer_cost(call, flows, trains))
        flows = flows or trains
    return NetworkCost(tuple(layers))


def _layer_cost(call: LayerCall, flows: bool, trains: bool) -> LayerCost:
    leaves = jax.tree.leaves(call.params)
    x, y = _bytes(call.input), _bytes(call.output)
    every = x + y + sum(map(_bytes, leaves))
    conv = isinstance(call.layer, DilatedConv)
    linear = conv or call.name == "upsampling"  # its input's gradient ignores the input
    flops = 0
    if conv:
        flops = 2 * _multiply_adds(call)
    return LayerCost(
        call,
        sum(leaf.size for leaf in leaves),
        Work(flops, every),
        Work(flops, every if linear else every + x) if flows else NONE,
        Work(flops, every) if trains else NONE,
        x if trains or (flows and not linear) else 0,
    )


def _multiply_adds(call: LayerCall) -> int:
    """Pairs of an output and a tap that reads the map, or its reflection."""
    *taps, c, d = call.params["kernel"].shape
    reflects = getattr(call.layer, "padding", "") == "reflect"
    pairs = call.input.shape[0] * c * d
    for axis, count in enumerate(taps, 1):
        size, out = call.input.shape[axis], call.output.shape[axis]
        before, step = call.pad + _own_padding(call, count), call.stride
        starts = [call.dilation * tap - before for tap in range(count)]
        inside = [
            max(0, min(out, -((s - size) // step)) - max(0, -(s // step)))
            for s in starts
        ]
        pairs *= count * out if reflects else sum(inside)
    return pairs


def _own_padding(call: LayerCall, count: int) -> int:
    """Cells that a convolution of so many taps pads before the first one."""
    padding = getattr(call.layer, "padding", "valid")
    if isinstance(padding, int):
        return padding
    return 0 if padding == "valid" else call.dilation * (count - 1) // 2


def _bytes(array: jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize
