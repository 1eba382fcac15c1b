"""The arithmetic of a network's cost: known figures, and what XLA and JAX count."""

import importlib
import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import KEY, RELEASES, TINY, assert_close, random_params

from dilax.models import (
    BASIC,
    ContextModule,
    DilatedNet,
    FrontEnd,
    Layer,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from dilax.ops.lowerings import DIRECT
from dilax.profiling import Work, layer_calls, network_cost
from dilax.profiling.roofline import Peak, device_peak, measured_peak

SHAPE = (2, 60, 56, 3)
NET = DilatedNet(FRONT := FrontEnd(5, TINY), ContextModule(5, BASIC[:4]))
HALF = DilatedNet(FrontEnd(5, TINY, dtype=jnp.bfloat16), upsample=True)


def _count(model, shape, differentiated=None):
    """Operations by XLA's account of the pass, of all parameters or of some modules."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(model.init, KEY, x)["params"]

    def forward(params, x):
        return model.apply({"params": params}, x)

    def backward(params, x):
        some = {name: params[name] for name in differentiated}
        return jax.grad(lambda some: forward({**params, **some}, x).sum())(some)

    function = backward if differentiated else forward
    analysis = jax.jit(function).lower(params, x).compile().cost_analysis()
    return analysis["flops"]


@pytest.mark.parametrize(
    "model, shape, gigaflops",
    [
        (DilatedNet(dilation8_voc().front_end), (1, 628, 628, 3), 491.5),
        (dilation8_camvid(), (1, 900, 900, 3), 1582.8),
    ],
)
def test_the_forward_pass_at_full_width_takes(model, shape, gigaflops):
    cost = network_cost(model, shape)
    assert cost.forward.flops / 1e9 == pytest.approx(gigaflops, abs=0.1)
    first = cost.layers[0].passes["forward"].flops  # the image needs no gradient
    assert cost.total.flops == 3 * cost.forward.flops - first


def test_one_layer_by_hand():
    """conv2 of TINY: 3×3 taps 2 apart on what pool1 leaves of 60×56 pixels."""
    by_name = {layer.call.name: layer for layer in network_cost(NET, SHAPE).layers}
    layer = by_name["conv2"]
    assert layer.call.input.shape == (2, 29, 27, 8)
    assert layer.call.output.shape == (2, 25, 23, 8)
    assert (layer.parameters, layer.call.dilation) == (3 * 3 * 8 * 8 + 8, 2)
    flops = 2 * (2 * 25 * 23 * 8) * (9 * 8)
    moved = 4 * (2 * 29 * 27 * 8 + 2 * 25 * 23 * 8 + 584)
    every = ("forward", "input_gradient", "kernel_gradient")
    assert layer.passes == dict.fromkeys(every, (flops, moved))
    assert layer.total == (3 * flops, 3 * moved)
    assert layer.kept == 4 * 2 * 29 * 27 * 8
    pool = by_name["pool1"]
    assert (pool.call.input.shape, pool.parameters) == ((2, 58, 54, 8), 0)
    assert pool.passes["forward"] == (0, 4 * 2 * 8 * (58 * 54 + 29 * 27))


@pytest.mark.parametrize("release", RELEASES, ids=lambda r: r.build.__name__)
def test_parameters_are_all_counted_once(release):
    model = release.build(release.classes)
    x = jax.ShapeDtypeStruct((1, 900, 900, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, KEY, x)["params"]
    cost = network_cost(model, x.shape)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert cost.parameters == count
    names = [layer.call.name for layer in cost.layers if layer.parameters]
    assert sorted(names) == sorted([*shapes["front_end"], *shapes["context"]])


def test_the_front_end_of_voc_has_as_many_parameters_as_released():
    model = DilatedNet(dilation8_voc(21).front_end)
    assert network_cost(model, (1, 400, 400, 3)).parameters == 134_346_581


@pytest.mark.parametrize("trained", [(), ("front_end", "context"), ("context",)])
def test_operations_are_those_that_xla_counts(trained, monkeypatch):
    """XLA also counts biases, ReLU and pools: the less, the more channels."""
    operator = importlib.import_module("dilax.ops.dilated_conv")
    monkeypatch.setattr(operator, "choose", lambda *args: DIRECT)
    model = NET.clone(front_end=FRONT.clone(width_multiplier=16.0))
    cost = network_cost(model, SHAPE, trained)
    counted = _count(model, SHAPE, trained)
    assert cost.total.flops == pytest.approx(counted, rel=0.02)
    passes = ["input_gradient" in layer.passes for layer in cost.layers]
    assert any(passes) == bool(trained)


def test_frozen_layers_have_no_gradients():
    layers = network_cost(NET, SHAPE, ["context"]).layers
    front = [layer for layer in layers if layer.call.module == "front_end"]
    assert {tuple(layer.passes) for layer in front} == {("forward",)}
    assert {layer.kept for layer in front} == {0}
    first = layers[len(front)]
    assert [*first.passes] == ["forward", "kernel_gradient"]
    assert first.passes["kernel_gradient"] == first.passes["forward"]
    assert network_cost(NET, SHAPE, []).kept == 0


def test_maps_run_through_the_context_module_alone():
    cost = network_cost(NET, (3, 20, 24, 5), ["context"], "maps")
    alone = network_cost(NET, SHAPE).layers[-5:]
    assert [layer.call.name for layer in cost.layers] == [
        layer.call.name for layer in alone
    ]
    first, last = cost.layers[0].call, cost.layers[-1].call
    assert (first.input.shape, first.pad) == ((3, 20, 24, 5), 0)
    assert (last.output.shape, last.pad) == ((3, 20, 24, 5), 0)


def test_what_is_kept_is_what_jax_keeps_for_the_gradients():
    """Padded inputs of all convolutions are among the residuals of `jax.vjp`."""
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    params = jax.eval_shape(NET.init, KEY, x)["params"]

    def residuals(params, x):
        return jax.vjp(lambda p: NET.apply({"params": p}, x), params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, params, x))
    held = Counter(leaf.shape for leaf in leaves if leaf.dtype == jnp.float32)
    layers = network_cost(NET, SHAPE).layers
    calls = [layer.call for layer in layers if layer.parameters]
    padded = [
        (b, h + 2 * call.pad, w + 2 * call.pad, c)
        for call in calls
        for b, h, w, c in [call.input.shape]
    ]
    assert not Counter(padded) - held
    kept = [layer.kept for layer in layers if layer.parameters]
    assert kept == [4 * call.input.size for call in calls]


def test_upsampling_moves_bytes_in_float32_and_layers_in_the_model_s_dtype():
    by_name = {layer.call.name: layer for layer in network_cost(HALF, SHAPE).layers}
    assert [*by_name] == ["conv1", "pool1", "conv2", "head", "final", "upsampling"]
    assert by_name["conv1"].call.output.dtype == jnp.bfloat16
    upsampling = by_name["upsampling"]
    assert upsampling.passes["forward"] == upsampling.passes["input_gradient"]
    assert upsampling.passes["forward"].bytes == 4 * 2 * 5 * 25 * 23 * (1 + 4)
    assert upsampling.kept == 0


@pytest.mark.parametrize("model", [NET, HALF], ids=["plain", "bfloat16"])
def test_the_layers_called_one_by_one_are_the_network(model):
    """…with the ReLU between them."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    params = random_params(model, x)
    out, calls = x, layer_calls(model, SHAPE)
    for call in calls:
        assert out.shape == call.input.shape
        out = call(params.get(call.module, {}).get(call.name, {}), out)
        assert (out.shape, out.dtype) == (call.output.shape, call.output.dtype)
        final = call.name in ("final", "ctx_final", "upsampling")
        out = out.astype(jnp.float32) if final else out
        out = out if final or call.name.startswith("pool") else jax.nn.relu(out)
    assert_close(
        out, model.apply({"params": params}, x), 2e-2 if model is HALF else 1e-4
    )


@pytest.mark.parametrize("padding", ["same", "reflect"])
def test_taps_that_fall_into_zeros_take_no_part(padding):
    """3×3 taps 3 apart on 4×9 cells: 3 of 4·3 pairs… by counting them all."""
    front = FrontEnd(2, (Layer("conv", 3, 1, dilation=3),), padding=padding)
    layer = network_cost(DilatedNet(front), (1, 4, 9, 1)).layers[0]
    pairs = [
        (y, x, dy, dx)
        for y, x, dy, dx in itertools.product(range(4), range(9), *[(-3, 0, 3)] * 2)
        if padding == "reflect" or (0 <= y + dy < 4 and 0 <= x + dx < 9)
    ]
    assert layer.passes["forward"].flops == 2 * len(pairs)


@pytest.mark.parametrize(
    "shape, message",
    [((60, 56, 3), r"shape=\(60, 56, 3\)"), ((1, 100, 900, 3), "padded input of")],
)
def test_shapes_that_do_not_fit_are_refused(shape, message, unchecked):
    with pytest.raises(ValueError, match=message):
        network_cost(dilation10_cityscapes(), shape)


# The roofline of this machine.


def test_the_least_time_is_that_of_the_slower_of_both():
    peak = Peak("a chip", flops=100.0, bandwidth=10.0)
    assert peak.seconds(Work(flops=500, bytes=10)) == 5
    assert peak.seconds(Work(flops=500, bytes=60)) == 6


@pytest.mark.parametrize(
    "device, dtype, teraflops, terabytes",
    [
        ("NVIDIA H200", "bfloat16", 989.4, 4.8),
        ("NVIDIA H100 80GB HBM3", "float32", 494.7, 3.35),
        ("NVIDIA H100 PCIe", "bfloat16", 756, 2),
        ("NVIDIA A100-SXM4-40GB", "float32", 156, 1.555),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312, 2.039),
        ("TPU v4", "bfloat16", 275, 1.228),
        ("TPU v5 lite", "float32", 197, 0.819),
        ("TPU v5p", "bfloat16", 459, 2.765),
    ],
)
def test_known_devices(device, dtype, teraflops, terabytes):
    peak = device_peak(dtype, device)
    assert peak.flops == pytest.approx(teraflops * 1e12)
    assert peak.bandwidth == pytest.approx(terabytes * 1e12)
    assert not peak.measured


def test_unknown_devices_are_refused():
    with pytest.raises(ValueError, match="device='NVIDIA GT 710': is not this one"):
        device_peak(jnp.float32, "NVIDIA GT 710")


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="measures a CPU")
def test_this_machine_is_measured_once():
    peak = device_peak()
    assert peak.measured
    assert 1e9 < peak.flops < 1e14
    assert 2e8 < peak.bandwidth < 2e12
    assert device_peak(jnp.float32, peak.device) is measured_peak("float32")
