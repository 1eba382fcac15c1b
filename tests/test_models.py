"""The networks: initialisation, padding, crops, dropout, dtype.

What single cells see of the image is tested in test_receptive_field.py.
"""

import dataclasses
import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import (
    KEY,
    RELEASES,
    SLIM,
    TINY,
    apply,
    assert_close,
    each_release,
    image,
    init_shapes,
    out_shape,
    random_params,
)

from dilax.models import (
    BASIC,
    CITYSCAPES,
    KITTI,
    LARGE,
    VGG16,
    ContextLayer,
    ContextModule,
    DilatedNet,
    FrontEnd,
    Layer,
    dilation8_voc,
)
from dilax.models.blocks import examples_over
from dilax.models.layers import Dropout
from dilax.runtime import jit

# What a context module starts from.


@pytest.mark.parametrize("table", [BASIC, LARGE, KITTI, CITYSCAPES])
@pytest.mark.parametrize("padding", ["layer", "entry"])
def test_a_module_without_noise_starts_as_max_0_x(table, padding):
    x = image(9, 11, 3)
    x = jnp.concatenate([x, jnp.abs(x)])
    module = ContextModule(3, table, padding=padding, sigma=0.0)
    y = np.asarray(jit(lambda x: module.init_with_output(KEY, x)[0])(x))
    np.testing.assert_allclose(y[0], np.maximum(0, x[0]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y[1], x[1], rtol=1e-5, atol=1e-5)


def test_initial_noise_is_sigma_over_the_multiplier_of_the_layer():
    multipliers = {"one": 1, "eight": 8, "four": 4}
    layers = tuple(ContextLayer(name, 1, m) for name, m in multipliers.items())
    module = ContextModule(6, layers, sigma=0.04)
    params = jit(module.init)(KEY, image(1, 1, 6))["params"]
    for name, multiplier in multipliers.items():
        noise = np.delete(params[f"ctx_{name}"]["kernel"], 1, axis=0)
        bound = 5 / math.sqrt(2 * noise.size)
        assert abs(noise.std() / (0.04 / multiplier) - 1) < bound
        assert not params[f"ctx_{name}"]["bias"].any()


def test_the_front_end_starts_from_he_et_al_and_a_final_layer_near_zero():
    model = FrontEnd(64, (Layer("conv", 3, 64),))
    params = jit(model.init)(KEY, image(3, 3))["params"]
    deviations = {name: layer["kernel"].std() for name, layer in params.items()}
    assert deviations["conv"] == pytest.approx(math.sqrt(2 / 27), rel=0.1)
    assert deviations["final"] == pytest.approx(0.001, rel=0.1)
    assert not params["conv"]["bias"].any() and not params["final"]["bias"].any()


# Padding: of the context module, and of the front end.


MAPS = image(44, 46, 2)


@functools.cache
def _padded_by(padding):
    """The output of one module on MAPS for each way to pad."""
    module = ContextModule(2, KITTI, padding=padding)
    return apply(module, random_params(module, MAPS), MAPS)


def test_padding_a_module_once_or_by_layer_differs_at_the_border_alone():
    layer, entry = _padded_by("layer"), _padded_by("entry")
    inner = (slice(None), slice(17, -17), slice(17, -17))
    assert_close(layer[inner], entry[inner], 1e-5)
    differ = np.abs(layer - entry).max(axis=(0, 3)) > 1e-3
    assert differ[0].any() and differ[-1].any()
    assert differ[:, 0].any() and differ[:, -1].any()


def test_a_module_without_padding_gives_the_interior():
    inner = _padded_by("layer")[:, 17:-17, 17:-17]
    assert_close(_padded_by("none"), inner, 1e-5)
    assert inner.shape == (1, 10, 12, 2)


def test_a_module_refuses_other_paddings(unchecked):
    with pytest.raises(ValueError, match="padding='same' is not one of '"):
        init_shapes(ContextModule(2, padding="same"), image(5, 5, 2))


@pytest.mark.parametrize("padding", ["same", "reflect"])
def test_a_front_end_that_pads_inside_needs_no_margin_and_covers_the_image(padding):
    model = FrontEnd(2, VGG16, padding=padding, **SLIM)
    assert model.margin == 0
    for size, cells in ((64, 8), (65, 9), (71, 9)):
        assert out_shape(model, size, 64, 3) == (1, cells, 8, 2)


@pytest.mark.parametrize("padding, constant", [("reflect", True), ("same", False)])
def test_reflection_in_each_layer_hides_the_border_of_a_constant_image(
    padding, constant
):
    x = jnp.ones((1, 12, 16, 3))
    model = FrontEnd(2, TINY, padding=padding)
    y = apply(model, random_params(model, x), x)
    assert bool(np.ptp(y, axis=(1, 2)).max() < 1e-5) is constant


def test_logits_of_a_crop_are_those_of_the_whole():
    front_end = FrontEnd(2, **SLIM)
    layers = (ContextLayer("conv1_1", 1), ContextLayer("conv2_1", 2))
    model = DilatedNet(front_end, ContextModule(2, layers, padding="none"))
    field = front_end.receptive_field
    rows, columns = (field.size + field.stride * n for n in (8, 7))
    down, right = 2 * field.stride, field.stride
    whole = image(rows + 3 * field.stride, columns + 2 * field.stride)
    params = random_params(model, whole)
    crop = whole[:, down : down + rows, right : right + columns]
    inside = apply(model, params, whole)[:, 2 : 2 + 3, 1 : 1 + 2]
    assert_close(apply(model, params, crop), inside)


# The parts of a network, training mode, dtype, and modules as values.


def _tiny_net(**options):
    front_end = FrontEnd(2, TINY, **options)
    context = ContextModule(2, KITTI, dtype=front_end.dtype)
    return DilatedNet(front_end, context, upsample=True)


@pytest.mark.parametrize("height", [1500, 1501, 1503])
def test_large_maps_in_bands_of_rows_are_those_computed_at_once(height):
    table = (Layer("a", 3, 16), Layer("b", 3, 16), Layer("pool", 2), Layer("c", 1, 4))
    net, x = FrontEnd(2, table), image(height, 641, 3)
    params = jit(net.init)(KEY, x[:, :9, :9])["params"]
    params["final"]["kernel"] *= 100

    def run(params):
        return net.apply({"params": params}, x)

    def memory(function):
        compiled = jit(function).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    bands = jit(run)(params)
    whole = jit(lambda params: jax.vjp(run, params)[0])(params)  # not in bands
    np.testing.assert_allclose(bands, whole, rtol=1e-4, atol=1e-5)
    assert memory(run) < 0.5 * memory(lambda params: jax.vjp(run, params)[0])


@pytest.mark.parametrize(
    "last, batch, width, strips",
    [
        (Layer("pool", 2), 8, 26, "[8,20,13,6]"),  # pairs of columns
        (Layer("pool", 3), 8, 26, ""),
        (Layer("pool", 2), 3, 26, "[9,20,6,6]"),  # strips, in pairs
        (Layer("pool", 3), 3, 25, "[9,20,13,3]"),
        (Layer("pool", 2), 3, 25, ""),  # whose last window has one column
        (Layer("c", 3, 8, dilation=2), 3, 34, "[9,20,17,3]"),
        (Layer("c", 3, 8, dilation=2), 1, 34, ""),  # strips would mostly overlap
    ],
)
def test_columns_on_tpus_are_arranged_without_changing_values_or_gradients(
    last, batch, width, strips, monkeypatch
):
    table = (Layer("a", 3, 6), Layer("b", 3, 8), last)
    net, x = FrontEnd(2, table), jax.random.normal(KEY, (batch, 20, width, 3))
    params = jit(net.init)(KEY, x)["params"]
    params["final"]["kernel"] *= 100
    params["b"]["bias"] += 0.3

    def run(params):
        y, pull = jax.vjp(lambda p: net.apply({"params": p}, x), params)
        return y, pull(y * y)

    def shapes():
        return str(jax.make_jaxpr(run)(params))

    wanted, before = jit(run)(params), shapes()
    jax.clear_caches()  # or the trace for CPUs is taken
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    after = shapes()
    assert ("[9," in after) == (batch == 3 and bool(strips))
    assert strips in after and (not strips or strips not in before)
    got = jax.jit(lambda params: run(params))(params)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        size = np.abs(other).max()
        assert size > 0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * size)


def test_strips_suit_the_examples_of_each_device(monkeypatch):
    net = FrontEnd(2, (Layer("a", 3, 6), Layer("b", 3, 8), Layer("pool", 2)))
    x = jax.random.normal(KEY, (8, 20, 26, 3))
    params = jit(net.init)(KEY, x)["params"]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")

    def shapes():
        jax.clear_caches()
        loss = jax.grad(lambda p: net.apply({"params": p}, x).sum())
        return str(jax.make_jaxpr(loss)(params))

    assert "[64,20,4,6]" not in shapes()
    with examples_over(8):
        assert "[64,20,4,6]" in shapes()  # eight strips of each example, in pairs


def test_a_network_is_its_front_end_and_then_its_context_module():
    model, x = _tiny_net(), image(26, 30)
    params = random_params(model, x)
    maps = apply(model, params, x, method="maps")
    alone = apply(model.front_end, params["front_end"], x)
    np.testing.assert_allclose(maps, alone, rtol=1e-6)
    whole = apply(model, params, x)
    assert_close(
        apply(model, params, jnp.asarray(maps), method="from_maps"), whole, 1e-5
    )
    context = apply(model.context, params["context"], jnp.asarray(maps))
    same = model.clone(context=None)
    enlarged = apply(same, {}, jnp.asarray(context), method="from_maps")
    assert_close(enlarged, whole, 1e-5)


def test_without_a_context_module_the_logits_are_the_maps():
    model, x = DilatedNet(FrontEnd(2, TINY)), image(26, 30)
    params = random_params(model, x)
    assert set(params) == {"front_end"}
    maps = apply(model, params, x, method="maps")
    np.testing.assert_array_equal(apply(model, params, x), maps)


def test_dropout_zeroes_half_and_doubles_the_rest_in_training_alone():
    model = FrontEnd(1, (Layer("head", 1, 1, dropout=0.5),))
    x = jnp.ones((1, 64, 64, 3))
    params = jax.tree.map(jnp.ones_like, random_params(model, x))
    params["final"]["bias"] = jnp.zeros(1)
    np.testing.assert_array_equal(apply(model, params, x), np.full((1, 64, 64, 1), 4))
    dropped = apply(model, params, x, train=True, rngs={"dropout": KEY})
    assert set(dropped.ravel()) == {0, 8}
    assert abs((dropped == 0).mean() - 0.5) < 0.05


@pytest.mark.parametrize("rate", [1e-6, 0.3])
def test_dropout_zeroes_the_share_that_it_is_given(rate):
    x = jnp.ones((2, 50, 50, 5))
    y = Dropout(rate).apply({}, x, train=True, rngs={"dropout": KEY})
    assert abs(float((y == 0).mean()) - rate) < 0.01


def test_training_mode_reaches_the_front_end_of_a_network_and_needs_a_key():
    model, x = _tiny_net(), image(20, 20)
    variables = {"params": random_params(model, x)}

    @jit
    def train(key):
        return model.apply(variables, x, train=True, rngs={"dropout": key})

    one, again, other = (np.asarray(train(jax.random.key(n))) for n in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda: model.apply(variables, x, train=True))


def test_bfloat16_computes_in_it_and_keeps_float32_parameters_and_logits():
    x, model = image(26, 30), _tiny_net()
    half = _tiny_net(dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(init_shapes(half, x))} == {
        "float32"
    }
    params = random_params(model, x)
    full, rounded = (apply(net, params, x) for net in (model, half))
    assert rounded.dtype == np.float32
    assert apply(half, params, x, method="maps").dtype == np.float32
    error = np.abs(rounded - full).max() / np.abs(full).max()
    assert 1e-4 < error < 0.05


def test_the_dtype_of_a_release_holds_for_both_parts():
    model = dilation8_voc(dtype=jnp.bfloat16)
    assert model.front_end.dtype == model.context.dtype == jnp.bfloat16


@each_release
def test_modules_of_equal_configuration_are_equal(release):
    model = release.build(5, **SLIM)
    assert model == release.build(5, **SLIM)
    assert hash(model) == hash(release.build(5, **SLIM))
    assert model != release.build(5)
    assert model not in [
        other.build(5, **SLIM) for other in RELEASES if other != release
    ]


@pytest.mark.parametrize("module", [FrontEnd(2), ContextModule(2), _tiny_net()])
def test_modules_are_dataclasses_and_frozen_once_bound(module):
    assert dataclasses.is_dataclass(module)
    bound = module.bind({})
    for name in module.__annotations__:
        with pytest.raises(flax.errors.SetAttributeFrozenModuleError):
            setattr(bound, name, None)
