"""The networks of the literature: counts, shapes, and twins in PyTorch."""

import functools
import importlib
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from named_twins import TWINS, Twin
from networks import KEY, assert_close, image

import dilax
from dilax.models import (
    BASIC,
    DRN_C_26,
    DRN_D_22,
    DRN_D_54,
    ContextModule,
    DilatedNet,
    FrontEnd,
    Named,
    apply_over_rows,
    init_params,
    named_network,
    param_shapes,
    row_mesh,
)
from dilax.models.zoo import RELEASES
from dilax.ops.lowerings import DIRECT
from dilax.profiling import network_cost
from dilax.runtime import jit

NAMES = get_args(Named)
each_network = pytest.mark.parametrize("name", NAMES)
KINDS = "fcn8s", "deeplab_msc", "segnet", "drn_d_22"
OTHERS = [name for name in NAMES if name not in KINDS]
one_of_each_kind = pytest.mark.parametrize("name", KINDS)


def slim(name, classes=5, **options):
    """A network with a sixteenth of the channels."""
    given = {"width_multiplier": 1 / 16, "head_channels": 24, **options}
    return DilatedNet(named_network(name, classes, **given))


@functools.cache
def random_params(model, seed=0):
    """Weights that keep the signal alive, and statistics as if it had been trained."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind, values = path[-1].key, rng.normal(size=leaf.shape)
        if kind == "kernel":
            values *= (2 / np.prod(leaf.shape[:-1])) ** 0.5
        elif kind in ("scale", "var"):
            values = 1 + 0.3 * np.abs(values)
        else:
            values = 0.2 * values
        return jnp.asarray(values, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(model))


def apply(model, x, **kw):
    run = jit(lambda p, x: model.apply({"params": p}, x, **kw))
    return run(random_params(model), x)


# Parameters, at 21 classes: the figures of the papers and of the public code.

VGG = 14_714_688
COUNTS = {
    "fcn8s": 134_362_751,
    "deeplab": 65_140_565,
    "deeplab_7x7": 134_346_581,
    "deeplab_largefov": 20_505_429,
    "segnet": 29_455_125,
}
# Of the public classifiers, with 1000 classes: 513 weights for each class.
DRN_COUNTS = {
    "drn_c_26": 21_126_584,
    "drn_d_22": 16_393_752,
    "drn_d_38": 26_501_912,
    "drn_d_54": 35_809_176,
}


def _count(name, classes=21):
    shapes = param_shapes(DilatedNet(named_network(name, classes)))
    leaves = jax.tree_util.tree_leaves_with_path(shapes["front_end"])
    learned = [leaf for path, leaf in leaves if path[-1].key not in ("mean", "var")]
    return sum(leaf.size for leaf in learned)


@pytest.mark.parametrize("name, count", {**COUNTS, **DRN_COUNTS}.items())
def test_a_network_has_as_many_parameters_as_its_public_definition(name, count):
    assert _count(name, 1000 if name in DRN_COUNTS else 21) == count


def test_the_counts_are_those_of_the_papers_tables_in_millions():
    """DeepLab's Table 2: 65.1, 134.3 and 20.5 million; 29.5 for SegNet."""
    rounded = {name: round(count / 1e6, 1) for name, count in COUNTS.items()}
    assert rounded == {
        "fcn8s": 134.4,
        "deeplab": 65.1,
        "deeplab_7x7": 134.3,
        "deeplab_largefov": 20.5,
        "segnet": 29.5,
    }


@pytest.mark.parametrize("name", ["deeplab", "deeplab_largefov"])
def test_branches_add_two_layers_of_128_and_scores_each(name):
    inputs = (3, 64, 128, 256, 512)
    layers = sum(9 * c * 128 + 128 + 128 * 128 + 128 for c in inputs)
    more = _count(name.replace("deeplab", "deeplab_msc")) - _count(name)
    assert more == layers + 5 * (128 * 21 + 21)


# Shapes.


@each_network
def test_logits_cover_the_image_at_the_networks_stride(name):
    model = DilatedNet(named_network(name, 21))
    stride = 1 if name in ("fcn8s", "segnet") else 8
    assert model.output_stride == model.map_stride == stride and model.margin == 0
    for h, w in ((360, 480), (65, 71)):
        x = jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32)
        shape = jax.eval_shape(lambda x: model.init_with_output(KEY, x)[0], x).shape
        assert shape == (1, -(-h // stride), -(-w // stride), 21)


def _outputs(name, h, w):
    """Layer → shape of what it gives."""
    model, found = named_network(name, 21), {}

    def keep(module, method):
        found["/".join(module.path)] = module
        return method == "__call__" and bool(module.path)

    def run(x):
        return model.init_with_output(KEY, x, capture_intermediates=keep, mutable=True)[
            1
        ]["intermediates"]

    shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32))
    flat = jax.tree_util.tree_leaves_with_path(shapes)
    return {
        "/".join(k.key for k in path if hasattr(k, "key")).removesuffix(
            "/__call__"
        ): leaf.shape[1:]
        for path, leaf in flat
    }


@pytest.mark.parametrize(
    "name, layers",
    {
        "fcn8s": {  # an image of 500×500, as the definition's own shapes
            "conv1_1": (698, 698, 64),
            "conv5_3": (44, 44, 512),
            "fc6": (16, 16, 4096),
            "score_fr": (16, 16, 21),
            "score_pool4": (44, 44, 21),
            "score_pool3": (88, 88, 21),
        },
        "deeplab": {"conv4_1": (63, 63, 512), "fc6": (63, 63, 4096)},
        "deeplab_msc": {"image_conv": (63, 63, 128), "pool2_scores": (63, 63, 21)},
        "segnet": {
            "conv5_3": (32, 32, 512),
            "conv5_1_D": (32, 32, 512),
            "conv4_1_D": (63, 63, 256),
            "conv3_1_D": (125, 125, 128),
            "conv2_1_D": (250, 250, 64),
            "conv1_1_D": (500, 500, 21),
        },
        "drn_d_54": {
            "stem": (500, 500, 16),
            "level2_0": (250, 250, 32),
            "level3_0": (125, 125, 256),
            "level4_0": (63, 63, 512),
            "level6_2": (63, 63, 2048),
            "level8_0": (63, 63, 512),
        },
        "drn_light": {
            "stem": (250, 250, 32),
            "level1_0": (125, 125, 48),
            "level6_0": (63, 63, 128),
        },
    }.items(),
)
def test_layers_give_the_shapes_of_the_public_definition(name, layers):
    found = _outputs(name, 500, 500)
    assert {layer: found[layer] for layer in layers} == layers


def test_an_unknown_network_is_refused_with_those_that_are_there(unchecked):
    with pytest.raises(ValueError, match=r"network='vgg19': must be one of fcn8s, "):
        named_network("vgg19", 2)


# Twins in PyTorch.


@each_network
def test_logits_agree_with_a_twin_in_pytorch(name, torch):
    """On 8k + 1 pixels, where the definitions' own sizes are ours."""
    model, x = slim(name), image(65, 81)
    twin = Twin(torch, jax.device_get(random_params(model)))
    with torch.no_grad():
        given = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
        wanted = TWINS[name](twin, given).permute(0, 2, 3, 1).numpy()
    assert_close(np.asarray(apply(model, x)), wanted)


# Behaviour.


@pytest.mark.slow
@one_of_each_kind
def test_rematerialisation_changes_neither_logits_nor_parameters(name):
    plain, again = slim(name), slim(name, remat=True)
    assert jax.tree.structure(param_shapes(plain)) == jax.tree.structure(
        param_shapes(again)
    )
    x, params = image(32, 40), random_params(plain)

    def gradient(model):
        return jit(jax.grad(lambda p: model.apply({"params": p}, x).sum()))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        gradient(plain),
        gradient(again),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n if n in KINDS else pytest.param(n, marks=pytest.mark.full) for n in NAMES],
)
def test_a_context_module_plugs_onto_each(name):
    alone = slim(name)
    model = alone.clone(context=ContextModule(5, BASIC, sigma=0.0))
    params = {**random_params(alone), "context": init_params(model, 0)["context"]}
    x = image(32, 32)
    maps = apply(alone, x)
    got = jit(lambda p, x: model.apply({"params": p}, x))(params, x)
    np.testing.assert_allclose(got, np.maximum(maps, 0), atol=1e-4 * np.abs(maps).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segnet", "drn_d_22"])
@pytest.mark.parametrize("remat", [False, True])
def test_batch_statistics_move_a_tenth_of_the_way_where_they_may(name, remat):
    x, params = image(32, 32), random_params(slim(name))

    def train(**options):
        model = slim(name, remat=remat, **options)
        return jit(
            lambda p, x: model.apply(
                {"params": p}, x, train=True, mutable=["batch_stats"]
            )
        )(params, x)

    frozen, unchanged = train(batch_norm="frozen")
    np.testing.assert_allclose(frozen, apply(slim(name), x), rtol=1e-5, atol=1e-5)
    assert not unchanged
    changed = train()[1]["batch_stats"]["front_end"]
    first = "stem" if name.startswith("drn") else "conv1_1"
    conv = params["front_end"][first]
    maps = jax.lax.conv_general_dilated(
        x, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + conv.get("bias", 0)
    before, after = params["front_end"][f"{first}_bn"], changed[f"{first}_bn"]
    wanted = 0.9 * before["mean"] + 0.1 * maps.mean((0, 1, 2))
    np.testing.assert_allclose(after["mean"], wanted, rtol=1e-4, atol=1e-4)
    wanted = 0.9 * before["var"] + 0.1 * maps.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(after["var"], wanted, rtol=1e-3)
    norms = [path for path in _names(params["front_end"]) if "bn" in path[-1]]
    assert sorted(_names(changed)) == sorted(norms)


@each_network
def test_rows_are_not_spread_over_devices(name):
    """Whatever stands in the way first; the paper's own front end is spread."""
    model, x = slim(name), image(32, 32)
    assert not model.front_end.shards_rows and FrontEnd(5).shards_rows
    with pytest.raises(ValueError, match="cannot be divided by rows"):
        jax.eval_shape(
            lambda p: apply_over_rows(model, p, x, row_mesh(1)), param_shapes(model)
        )


@each_network
def test_a_duc_head_stands_for_the_scores_of_an_eighth(name):
    if name in ("fcn8s", "segnet"):
        pytest.skip("their scores are of every pixel")
    model = slim(name, duc=4)
    assert (model.output_stride, model.map_stride, model.num_classes) == (2, 8, 5)
    x = jax.ShapeDtypeStruct((1, 33, 40, 3), jnp.float32)
    shape = jax.eval_shape(lambda x: model.init_with_output(KEY, x)[0], x).shape
    assert shape == (1, 20, 20, 5)


def test_cells_stand_on_every_eighth_pixel_from_the_first_one_on():
    for name in NAMES:
        model = slim(name)
        if name in ("fcn8s", "segnet"):
            with pytest.raises(ValueError, match="no receptive field"):
                _ = model.receptive_field
            continue
        field = model.receptive_field
        assert (field.stride, field.centre) == (8, 0)


@one_of_each_kind
def test_bfloat16_reaches_every_layer_and_logits_are_float32(name):
    half, x = slim(name, dtype=jnp.bfloat16), image(32, 32)
    full, got = np.asarray(apply(slim(name), x)), apply(half, x)
    assert got.dtype == jnp.float32
    # Rounding may change which cell of a window is the largest, so not cell by cell.
    agreement = np.corrcoef(np.asarray(got).ravel(), full.ravel())[0, 1]
    assert 0.97 < agreement < 1 - 1e-7


def test_tables_of_residual_networks_differ_as_c_and_d_differ():
    assert [row.kind for row in DRN_C_26][:2] == ["basic", "basic"]
    assert [row.kind for row in DRN_D_22][:2] == ["conv", "conv"]
    assert DRN_C_26[2:6] == DRN_D_22[2:6]
    assert DRN_D_54[5].outputs == 2048


@one_of_each_kind
def test_costs_count_every_convolution_and_the_context_module(name, monkeypatch):
    """Against the compiler's count of the program; it counts taps on padding, too."""
    operator = importlib.import_module("dilax.ops.dilated_conv")
    monkeypatch.setattr(operator, "choose", lambda *args: DIRECT)
    alone = DilatedNet(named_network(name, 5, width_multiplier=1 / 2))
    model = alone.clone(context=ContextModule(5, BASIC, padding="entry"))
    shapes, size = param_shapes(model), (1, 128, 160, 3)
    layers = [functools.reduce(lambda t, k: t[k], n, shapes) for n in _names(shapes)]
    cost = network_cost(model, size)
    assert cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(layers))
    assert len([call for call in cost.layers if call.parameters]) == len(layers)
    x = jax.ShapeDtypeStruct(size, jnp.float32)
    program = jax.jit(lambda p, x: model.apply({"params": p}, x))
    counted = program.lower(shapes, x).cost_analysis()["flops"]
    assert 0.75 * counted < cost.forward.flops < counted


def _names(tree, before=()):
    """Of the innermost groups of parameters."""
    if not any(isinstance(child, dict) for child in tree.values()):
        yield before
    for name, child in tree.items():
        yield from _names(child, (*before, name)) if isinstance(child, dict) else ()


def test_every_network_is_built_by_name():
    for name, released in RELEASES.items():
        assert dilax.build(name, released().num_classes) == released()
    model = dilax.build("segnet", 4, width_multiplier=1 / 32)
    assert (model.num_classes, model.output_stride) == (4, 1)
    with pytest.raises(ValueError, match=r"'vgg': no such network; .* drn_d_22"):
        dilax.build("vgg", 4)
    with pytest.raises(ValueError, match="duc=2: fcn8s already returns scores"):
        dilax.build("fcn8s", 4, duc=2)
