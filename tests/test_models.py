"""The networks: sizes and names of the releases, PyTorch twins, padding and crops.

What single cells see of the image is tested in test_ops_receptive_field.py.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from dilax.models import (
    BASIC,
    CITYSCAPES,
    KITTI,
    LARGE,
    VGG16,
    VGG16_SLIM_HEAD,
    ContextLayer,
    ContextModule,
    DilatedNet,
    FrontEnd,
    Layer,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
    undilated,
)
from dilax.ops import jit

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default
SLIM = {"width_multiplier": 1 / 16, "head_channels": 8}
TINY = (
    Layer("conv1", 3, 8),
    Layer("pool1", 2),
    Layer("conv2", 3, 8, dilation=2),
    Layer("head", 1, 8, dropout=0.5),
)


class Release(NamedTuple):
    """A released network: what its definition says, and a twin is built from."""

    build: object
    classes: int
    final: str
    prefix: str
    dilations: dict[str, int]
    entry: int = 0
    upsample: bool = False


_SEVEN = {"conv1_1": 1, "conv1_2": 1, "conv2_1": 2, "conv3_1": 4, "conv4_1": 8}
_EIGHT = _SEVEN | {"conv5_1": 16}
_TEN = _EIGHT | {"conv6_1": 32, "conv7_1": 64}
_CLOSE = {"fc1": 1}
RELEASES = [
    Release(dilation8_voc, 21, "fc-final", "ct_", _EIGHT | _CLOSE, entry=33),
    Release(dilation8_camvid, 11, "final", "ctx_", _EIGHT | _CLOSE),
    Release(dilation7_kitti, 11, "final", "ctx_", _SEVEN | _CLOSE),
    Release(dilation10_cityscapes, 19, "final", "ctx_", _TEN | _CLOSE, upsample=True),
]
VGG_NAMES = [
    *("conv1_1", "conv1_2"),
    *("conv2_1", "conv2_2"),
    *("conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3"),
    *("conv5_1", "conv5_2", "conv5_3"),
    *("fc6", "fc7"),
]

each_release = pytest.mark.parametrize(
    "release", RELEASES, ids=[release.build.__name__ for release in RELEASES]
)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch")


@pytest.fixture
def unchecked(monkeypatch):
    """Our own checks alone, as users run them, without the annotations' checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def _image(h, w, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(1, h, w, channels)), jnp.float32)


def _shapes(model, x):
    return jax.eval_shape(model.init, KEY, x)["params"]


def _random_params(model, x, seed=0):
    """Weights that keep the signal alive, also where only centre taps see the map."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            values *= math.sqrt(2 / math.prod(leaf.shape[:-1]))
            values[leaf.shape[0] // 2, leaf.shape[1] // 2] *= leaf.shape[0]
        else:
            values = 0.2 * np.abs(values) + (path[-1].key == "scale")
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, _shapes(model, x))


def _apply(model, params, x, **kwargs):
    return np.asarray(
        jit(lambda p, x: model.apply({"params": p}, x, **kwargs))(params, x)
    )


def _out_shape(model, *shape):
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(lambda x: model.init_with_output(KEY, x)[0], x).shape


def _close(one, other, tolerance=1e-4):
    """Asserts that maps agree, and that there is something on them."""
    other = np.asarray(other)
    size = np.abs(other).max()
    assert np.ptp(other, axis=(1, 2)).max() > 0.02 * size > 0
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * size)


# Sizes, names and counts of the releases.


def _count(shapes, kind=("kernel", "bias")):
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key in kind)


def test_the_front_end_has_134346581_parameters_at_21_classes():
    assert _count(_shapes(FrontEnd(21), _image(380, 380))) == 134_346_581


@pytest.mark.parametrize("classes", [11, 21])
@pytest.mark.parametrize("table, factor", [(BASIC, 64), (LARGE, 15_422)])
def test_context_weights_number_a_multiple_of_c_squared(table, factor, classes):
    shapes = _shapes(ContextModule(classes, table), _image(1, 1, classes))
    assert _count(shapes, ("kernel",)) == factor * classes**2


def test_the_large_module_has_6803139_parameters_with_biases_at_21_classes():
    shapes = _shapes(dilation8_voc(), _image(380, 380))["context"]
    assert _count(shapes) == 6_803_139


@each_release
def test_layer_names_are_those_of_the_release(release):
    shapes = _shapes(release.build(), _image(380, 380))
    context = [release.prefix + name for name in (*release.dilations, "final")]
    assert set(shapes) == {"front_end", "context"}
    assert set(shapes["front_end"]) == {*VGG_NAMES, release.final}
    assert set(shapes["context"]) == set(context)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    assert {path[-1].key for path, _ in leaves} == {"kernel", "bias"}


@each_release
def test_the_tables_are_those_of_the_release(release):
    model = release.build()
    rows = {row.name: row.dilation for row in model.context.layers}
    assert list(rows.items()) == list(release.dilations.items())
    assert model.num_classes == model.context.num_classes == release.classes
    assert model.context.padding == ("entry" if release.entry else "layer")
    assert (model.margin, model.map_stride) == (186, 8)
    assert model.output_stride == (1 if release.upsample else 8)


def test_table_1_channels_of_the_large_module():
    assert [row.multiplier for row in LARGE] == [2, 2, 4, 8, 16, 32, 32]
    assert [row[:2] for row in LARGE] == [row[:2] for row in BASIC]


@each_release
@pytest.mark.parametrize(
    "pixels, cells",
    [
        ((500, 628), (16, 32)),
        ((852, 884), (60, 64)),
        ((1100, 900), (91, 66)),
        ((1396, 1640), (128, 159)),
    ],
)
def test_pixels_become_cells_as_in_the_release(release, pixels, cells):
    factor = 8 if release.upsample else 1
    expected = (1, factor * cells[0], factor * cells[1], release.classes)
    assert _out_shape(release.build(), *pixels, 3) == expected


@pytest.mark.parametrize("table", [VGG16, VGG16_SLIM_HEAD, TINY])
def test_an_image_with_its_margin_gives_a_cell_for_each_begun_stride(table):
    model = FrontEnd(2, table, **SLIM)
    stride = model.receptive_field.stride
    for size in range(1, 2 * stride + 2, 2):
        sides = [n + 2 * model.margin for n in (size, size + 1)]
        cells = [math.ceil(n / stride) for n in (size, size + 1)]
        assert _out_shape(model, *sides, 3) == (1, *cells, 2)


def test_width_and_head_channels_scale_the_layers():
    shapes = _shapes(FrontEnd(5, **SLIM), _image(380, 380))
    kernels = {name: leaf["kernel"].shape for name, leaf in shapes.items()}
    assert kernels["conv1_1"] == (3, 3, 3, 4)
    assert kernels["conv5_3"] == (3, 3, 32, 32)
    assert kernels["fc6"] == (7, 7, 32, 8)
    assert kernels["fc7"] == (1, 1, 8, 8)
    assert kernels["final"] == (1, 1, 8, 5)


def test_the_head_follows_the_width_unless_it_has_channels_of_its_own():
    shapes = _shapes(FrontEnd(5, width_multiplier=1 / 1000), _image(380, 380))
    assert shapes["fc6"]["kernel"].shape == (7, 7, 1, 4)
    assert shapes["conv1_1"]["kernel"].shape == (3, 3, 3, 1)


def test_dropout_of_one_half_follows_fc6_and_fc7():
    assert {r.name: r.dropout for r in VGG16 if r.dropout} == {"fc6": 0.5, "fc7": 0.5}


def test_undilated_changes_dilations_alone():
    assert [row.dilation for row in undilated(LARGE)] == [1] * 7
    assert [row[::2] for row in undilated(LARGE)] == [row[::2] for row in LARGE]
    x = _image(1, 1, 2)
    one, other = (ContextModule(2, t) for t in (LARGE, undilated(LARGE)))
    assert _shapes(one, x) == _shapes(other, x)
    assert other.receptive_field.size == 15


# The same networks in PyTorch.


def _torch_conv(torch, x, params, dilation=1, padding=0):
    kernel, bias = (torch.tensor(np.array(params[n])) for n in ("kernel", "bias"))
    weight = kernel.permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(
        x, weight, bias, dilation=dilation, padding=padding
    )


def _torch_front_end(torch, params, x, final):
    dilations = {"conv5_1": 2, "conv5_2": 2, "conv5_3": 2, "fc6": 4}
    for name in VGG_NAMES:
        x = torch.relu(_torch_conv(torch, x, params[name], dilations.get(name, 1)))
        if name in ("conv1_2", "conv2_2", "conv3_3"):
            x = torch.nn.functional.max_pool2d(x, 2, 2, ceil_mode=True)
    return _torch_conv(torch, x, params[final])


def _torch_context(torch, params, x, release):
    x = torch.nn.functional.pad(x, 4 * (release.entry,))
    for name, dilation in release.dilations.items():
        padding = 0 if release.entry else dilation
        layer = params[release.prefix + name]
        x = torch.relu(_torch_conv(torch, x, layer, dilation, padding))
    return _torch_conv(torch, x, params[release.prefix + "final"])


def _torch_upsample(torch, x):
    """`ctx_upsample`: bilinear kernel 16, stride 8, pad 4, one group a class."""
    taps = 1 - np.abs(np.arange(16) / 8 - 15 / 16)
    weight = torch.tensor(np.outer(taps, taps), dtype=torch.float32)
    weight = weight.expand(x.shape[1], 1, 16, 16)
    return torch.nn.functional.conv_transpose2d(
        x, weight, stride=8, padding=4, groups=x.shape[1]
    )


def _planes(torch, x):
    return torch.tensor(np.array(x)).permute(0, 3, 1, 2)


@each_release
def test_the_whole_network_equals_its_twin_in_torch(torch, release):
    x = _image(397, 412)  # odd: the pools hang over
    model = release.build(3, **SLIM)
    params = _random_params(model, x)
    y = _torch_front_end(torch, params["front_end"], _planes(torch, x), release.final)
    y = _torch_context(torch, params["context"], y, release)
    y = _torch_upsample(torch, y) if release.upsample else y
    assert y.shape[2:] == ((32, 40) if release.upsample else (4, 5))
    _close(_apply(model, params, x), y.permute(0, 2, 3, 1))


@each_release
def test_the_context_module_equals_its_twin_in_torch_on_large_maps(torch, release):
    maps = _image(70, 76, 2)
    context = release.build(2).context
    params = _random_params(context, maps)
    twin = _torch_context(torch, params, _planes(torch, maps), release)
    _close(_apply(context, params, maps), twin.permute(0, 2, 3, 1))


# What a context module starts from.


@pytest.mark.parametrize("table", [BASIC, LARGE, KITTI, CITYSCAPES])
@pytest.mark.parametrize("padding", ["layer", "entry"])
def test_a_module_without_noise_starts_as_max_0_x(table, padding):
    x = jnp.round(_image(9, 11, 3) * 64) / 64  # so that 32 parts sum up exactly
    x = jnp.concatenate([x, jnp.abs(x)])
    module = ContextModule(3, table, padding=padding, sigma=0.0)
    y = np.asarray(jit(lambda x: module.init_with_output(KEY, x)[0])(x))
    np.testing.assert_array_equal(y[0], np.maximum(0, x[0]))
    np.testing.assert_array_equal(y[1], x[1])


def test_initial_noise_is_sigma_over_the_multiplier_of_the_layer():
    multipliers = {"one": 1, "eight": 8, "four": 4}
    layers = tuple(ContextLayer(name, 1, m) for name, m in multipliers.items())
    module = ContextModule(6, layers, sigma=0.04)
    params = jit(module.init)(KEY, _image(1, 1, 6))["params"]
    for name, multiplier in multipliers.items():
        noise = np.delete(params[f"ctx_{name}"]["kernel"], 1, axis=0)
        bound = 5 / math.sqrt(2 * noise.size)
        assert abs(noise.std() / (0.04 / multiplier) - 1) < bound
        assert not params[f"ctx_{name}"]["bias"].any()


def test_the_front_end_starts_from_he_et_al_and_a_final_layer_near_zero():
    model = FrontEnd(64, (Layer("conv", 3, 64),))
    params = jit(model.init)(KEY, _image(3, 3))["params"]
    deviations = {name: layer["kernel"].std() for name, layer in params.items()}
    assert deviations["conv"] == pytest.approx(math.sqrt(2 / 27), rel=0.1)
    assert deviations["final"] == pytest.approx(0.001, rel=0.1)
    assert not params["conv"]["bias"].any() and not params["final"]["bias"].any()


# Padding: of the context module, and of the front end.


MAPS = _image(44, 46, 2)


@functools.cache
def _padded_by(padding, border="zero"):
    """The output of one module on MAPS for each way to pad."""
    module = ContextModule(2, KITTI, padding=padding, border=border)
    return _apply(module, _random_params(module, MAPS), MAPS)


def test_padding_a_module_once_or_by_layer_differs_at_the_border_alone():
    layer, entry = _padded_by("layer"), _padded_by("entry")
    inner = (slice(None), slice(17, -17), slice(17, -17))
    _close(layer[inner], entry[inner], 1e-5)
    differ = np.abs(layer - entry).max(axis=(0, 3)) > 1e-3
    assert differ[0].any() and differ[-1].any()
    assert differ[:, 0].any() and differ[:, -1].any()


def test_a_module_without_padding_gives_the_interior():
    inner = _padded_by("layer")[:, 17:-17, 17:-17]
    _close(_padded_by("none"), inner, 1e-5)
    assert inner.shape == (1, 10, 12, 2)


def test_padding_once_by_reflection_is_an_unpadded_module_on_the_reflected_map():
    reflected = np.pad(MAPS, ((0, 0), (17, 17), (17, 17), (0, 0)), mode="reflect")
    module = ContextModule(2, KITTI, padding="none")
    params = _random_params(module, MAPS)
    expected = _apply(module, params, jnp.asarray(reflected))
    _close(_padded_by("entry", "reflect"), expected, 1e-5)
    assert np.abs(_padded_by("entry") - expected).max() > 0.01


@pytest.mark.parametrize("padding", ["layer", "entry"])
@pytest.mark.parametrize("border, constant", [("reflect", True), ("zero", False)])
def test_reflection_hides_the_border_of_a_constant_map(padding, border, constant):
    maps = jnp.ones((1, 5, 7, 2))  # smaller than the dilations
    module = ContextModule(2, BASIC, padding=padding, border=border)
    y = _apply(module, _random_params(module, maps), maps)
    assert bool(np.ptp(y, axis=(1, 2)).max() < 1e-5) is constant


@pytest.mark.parametrize("field", ["padding", "border"])
def test_a_module_refuses_other_paddings_and_borders(unchecked, field):
    module = ContextModule(2, **{field: "same"})
    with pytest.raises(ValueError, match=f"{field}='same' is not one of '"):
        _shapes(module, _image(5, 5, 2))


@pytest.mark.parametrize("padding", ["same", "reflect"])
def test_a_front_end_that_pads_inside_needs_no_margin_and_covers_the_image(padding):
    model = FrontEnd(2, VGG16, padding=padding, **SLIM)
    assert model.margin == 0
    for size, cells in ((64, 8), (65, 9), (71, 9)):
        assert _out_shape(model, size, 64, 3) == (1, cells, 8, 2)


@pytest.mark.parametrize("padding, constant", [("reflect", True), ("same", False)])
def test_reflection_in_each_layer_hides_the_border_of_a_constant_image(
    padding, constant
):
    x = jnp.ones((1, 12, 16, 3))
    model = FrontEnd(2, TINY, padding=padding)
    y = _apply(model, _random_params(model, x), x)
    assert bool(np.ptp(y, axis=(1, 2)).max() < 1e-5) is constant


@pytest.mark.parametrize(
    "front_end",
    [FrontEnd(2, **SLIM), FrontEnd(2, TINY, norm=True)],
    ids=["VGG", "norm"],
)
def test_logits_of_a_crop_are_those_of_the_whole(front_end):
    layers = (ContextLayer("conv1_1", 1), ContextLayer("conv2_1", 2))
    model = DilatedNet(front_end, ContextModule(2, layers, padding="none"))
    field = front_end.receptive_field
    rows, columns = (field.size + field.stride * n for n in (8, 7))
    down, right = 2 * field.stride, field.stride
    whole = _image(rows + 3 * field.stride, columns + 2 * field.stride)
    params = _random_params(model, whole)
    crop = whole[:, down : down + rows, right : right + columns]
    inside = _apply(model, params, whole)[:, 2 : 2 + 3, 1 : 1 + 2]
    _close(_apply(model, params, crop), inside)


def test_normalisation_takes_the_scale_out_of_each_single_pixel():
    model, x = FrontEnd(2, (Layer("conv", 1, 16),), norm=True), _image(4, 5)
    params = _random_params(model, x)
    params["conv"]["bias"] = jnp.zeros(16)
    scales = jnp.linspace(10, 1000, 20).reshape(1, 4, 5, 1)
    _close(_apply(model, params, x * scales), _apply(model, params, x * 100), 1e-3)


# The parts of a network, training mode, dtype, and modules as values.


def _tiny_net(**options):
    front_end = FrontEnd(2, TINY, **options)
    context = ContextModule(2, KITTI, dtype=front_end.dtype)
    return DilatedNet(front_end, context, upsample=True)


def test_a_network_is_its_front_end_and_then_its_context_module():
    model, x = _tiny_net(), _image(26, 30)
    params = _random_params(model, x)
    maps = _apply(model, params, x, method="maps")
    alone = _apply(model.front_end, params["front_end"], x)
    np.testing.assert_allclose(maps, alone, rtol=1e-6)
    whole = _apply(model, params, x)
    _close(_apply(model, params, jnp.asarray(maps), method="from_maps"), whole, 1e-5)
    context = _apply(model.context, params["context"], jnp.asarray(maps))
    same = model.clone(context=None)
    enlarged = _apply(same, {}, jnp.asarray(context), method="from_maps")
    _close(enlarged, whole, 1e-5)


def test_without_a_context_module_the_logits_are_the_maps():
    model, x = DilatedNet(FrontEnd(2, TINY)), _image(26, 30)
    params = _random_params(model, x)
    assert set(params) == {"front_end"}
    maps = _apply(model, params, x, method="maps")
    np.testing.assert_array_equal(_apply(model, params, x), maps)


def test_dropout_zeroes_half_and_doubles_the_rest_in_training_alone():
    model = FrontEnd(1, (Layer("head", 1, 1, dropout=0.5),))
    x = jnp.ones((1, 64, 64, 3))
    params = jax.tree.map(jnp.ones_like, _random_params(model, x))
    params["final"]["bias"] = jnp.zeros(1)
    np.testing.assert_array_equal(_apply(model, params, x), np.full((1, 64, 64, 1), 4))
    dropped = _apply(model, params, x, train=True, rngs={"dropout": KEY})
    assert set(dropped.ravel()) == {0, 8}
    assert abs((dropped == 0).mean() - 0.5) < 0.05


def test_training_mode_reaches_the_front_end_of_a_network_and_needs_a_key():
    model, x = _tiny_net(), _image(20, 20)
    variables = {"params": _random_params(model, x)}

    @jit
    def train(key):
        return model.apply(variables, x, train=True, rngs={"dropout": key})

    one, again, other = (np.asarray(train(jax.random.key(n))) for n in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    with pytest.raises(flax.errors.InvalidRngError):
        jax.eval_shape(lambda: model.apply(variables, x, train=True))


def test_bfloat16_computes_in_it_and_keeps_float32_parameters_and_logits():
    x, model = _image(26, 30), _tiny_net()
    half = _tiny_net(dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(_shapes(half, x))} == {
        "float32"
    }
    params = _random_params(model, x)
    full, rounded = (_apply(net, params, x) for net in (model, half))
    assert rounded.dtype == np.float32
    assert _apply(half, params, x, method="maps").dtype == np.float32
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
