"""Sizes, names and counts of the released networks, and their PyTorch twins."""

import math

import jax
import numpy as np
import pytest
from networks import (
    RELEASES,
    SLIM,
    TINY,
    VGG_NAMES,
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
    LARGE,
    VGG16,
    VGG16_SLIM_HEAD,
    ContextModule,
    FrontEnd,
    dilation8_voc,
    undilated,
)

# Sizes, names and counts of the releases.


def _count(shapes, kind=("kernel", "bias")):
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key in kind)


def test_the_front_end_has_134346581_parameters_at_21_classes():
    assert _count(init_shapes(FrontEnd(21), image(380, 380))) == 134_346_581


@pytest.mark.parametrize("classes", [11, 21])
@pytest.mark.parametrize("table, factor", [(BASIC, 64), (LARGE, 15_422)])
def test_context_weights_number_a_multiple_of_c_squared(table, factor, classes):
    shapes = init_shapes(ContextModule(classes, table), image(1, 1, classes))
    assert _count(shapes, ("kernel",)) == factor * classes**2


def test_the_large_module_has_6803139_parameters_with_biases_at_21_classes():
    shapes = init_shapes(dilation8_voc(), image(380, 380))["context"]
    assert _count(shapes) == 6_803_139


@each_release
def test_layer_names_are_those_of_the_release(release):
    shapes = init_shapes(release.build(), image(380, 380))
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
    assert out_shape(release.build(), *pixels, 3) == expected


@pytest.mark.parametrize("table", [VGG16, VGG16_SLIM_HEAD, TINY])
def test_an_image_with_its_margin_gives_a_cell_for_each_begun_stride(table):
    model = FrontEnd(2, table, **SLIM)
    stride = model.receptive_field.stride
    for size in range(1, 2 * stride + 2, 2):
        sides = [n + 2 * model.margin for n in (size, size + 1)]
        cells = [math.ceil(n / stride) for n in (size, size + 1)]
        assert out_shape(model, *sides, 3) == (1, *cells, 2)


def test_width_and_head_channels_scale_the_layers():
    shapes = init_shapes(FrontEnd(5, **SLIM), image(380, 380))
    kernels = {name: leaf["kernel"].shape for name, leaf in shapes.items()}
    assert kernels["conv1_1"] == (3, 3, 3, 4)
    assert kernels["conv5_3"] == (3, 3, 32, 32)
    assert kernels["fc6"] == (7, 7, 32, 8)
    assert kernels["fc7"] == (1, 1, 8, 8)
    assert kernels["final"] == (1, 1, 8, 5)


def test_the_head_follows_the_width_unless_it_has_channels_of_its_own():
    shapes = init_shapes(FrontEnd(5, width_multiplier=1 / 1000), image(380, 380))
    assert shapes["fc6"]["kernel"].shape == (7, 7, 1, 4)
    assert shapes["conv1_1"]["kernel"].shape == (3, 3, 3, 1)


def test_dropout_of_one_half_follows_fc6_and_fc7():
    assert {r.name: r.dropout for r in VGG16 if r.dropout} == {"fc6": 0.5, "fc7": 0.5}


def test_undilated_changes_dilations_alone():
    assert [row.dilation for row in undilated(LARGE)] == [1] * 7
    assert [row[::2] for row in undilated(LARGE)] == [row[::2] for row in LARGE]
    x = image(1, 1, 2)
    one, other = (ContextModule(2, t) for t in (LARGE, undilated(LARGE)))
    assert init_shapes(one, x) == init_shapes(other, x)
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


def _torch_twin(torch, params, x, release):
    y = _torch_front_end(torch, params["front_end"], _planes(torch, x), release.final)
    y = _torch_context(torch, params["context"], y, release)
    y = _torch_upsample(torch, y) if release.upsample else y
    return y.permute(0, 2, 3, 1)


@each_release
def test_the_whole_network_equals_its_twin_in_torch(torch, release):
    x = image(397, 412)  # odd: the pools hang over
    model = release.build(3, **SLIM)
    params = random_params(model, x)
    y = _torch_twin(torch, params, x, release)
    assert y.shape[1:3] == ((32, 40) if release.upsample else (4, 5))
    assert_close(apply(model, params, x), y)


@pytest.mark.slow
@pytest.mark.parametrize(
    "release",
    [pytest.param(RELEASES[0], marks=pytest.mark.full), RELEASES[3]],
    ids=["Large", "10"],
)
def test_at_full_width_it_equals_its_twin_in_torch(torch, release):
    x = image(397, 404)
    model = release.build()
    params = random_params(model, x)
    assert_close(apply(model, params, x), _torch_twin(torch, params, x, release))


@each_release
def test_the_context_module_equals_its_twin_in_torch_on_large_maps(torch, release):
    maps = image(70, 76, 2)
    context = release.build(2).context
    params = random_params(context, maps)
    twin = _torch_context(torch, params, _planes(torch, maps), release)
    assert_close(apply(context, params, maps), twin.permute(0, 2, 3, 1))
