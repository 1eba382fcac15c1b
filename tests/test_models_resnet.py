"""Dilated ResNets: the public definition, a twin in PyTorch, HDC's rates, DUC."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import (
    KEY,
    apply,
    assert_close,
    image,
    init_shapes,
    out_shape,
    random_params,
)
from resnet_twin import torch_resnet

from dilax.models import (
    BASIC,
    HDC50,
    HDC101,
    PLAIN_STEM,
    RESNET50,
    RESNET101,
    VGG16,
    ContextModule,
    DilatedNet,
    FrontEnd,
    Layer,
    ResNet,
    param_shapes,
    resnet_blocks,
    resnet_duc,
    with_rates,
)
from dilax.models.layers import BatchNorm
from dilax.ops import depth_to_space, dilated_conv, upsample_bilinear
from dilax.ops.lowerings import DIRECT
from dilax.profiling import layer_calls, network_cost
from dilax.weights import flat_shapes, load_weights

SLIM = {"width_multiplier": 1 / 16, "final_rates": (1, 2)}
FEW = resnet_blocks((1, 1, 2, 1), (1, 2), (5,))


def _count(model, part=""):
    """Parameters that gradients train, of the layers whose names hold a part."""
    shapes = flat_shapes(param_shapes(DilatedNet(model)))
    kept = ("kernel", "scale", "bias")
    return sum(
        int(np.prod(shape))
        for name, shape in shapes.items()
        if name.endswith(kept) and part in name
    )


@pytest.mark.parametrize(
    "counts, published", [(RESNET50, 25_557_032), (RESNET101, 44_549_160)]
)
def test_parameters_are_as_many_as_published_for_images_of_1000_classes(
    counts, published
):
    model = ResNet(1, resnet_blocks(counts), PLAIN_STEM, final_rates=())
    assert _count(model) - _count(model, "final") == published - 1001 * 2048 + 1048


def test_the_published_network_of_cityscapes():
    model = resnet_duc(19)
    shapes = param_shapes(model)["front_end"]
    head = 4 * (3 * 3 * 2048 * 19 * 16 + 19 * 16)
    assert _count(model.front_end, "final") == head
    # The stem: 3×3 convolutions to 64, 64 and 128 maps in place of 7×7 to 64.
    stem = 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * (64 + 64 + 128)
    plain = 49 * 3 * 64 + 2 * 64
    wider = 64 * (64 + 256)  # layer1_0 takes 128 maps
    backbone = 44_549_160 - 1000 * 2049
    assert _count(model.front_end) == backbone + stem - plain + wider + head
    assert shapes["conv3"]["kernel"].shape == (3, 3, 64, 128)
    assert shapes["layer3_22"]["conv2"]["kernel"].shape == (3, 3, 256, 256)
    assert shapes["final"]["c3"]["kernel"].shape == (3, 3, 2048, 304)
    assert (model.map_stride, model.output_stride, model.num_classes) == (8, 2, 19)


def test_hdc_s_rates_are_those_published():
    rates = [row.dilation for row in HDC101]
    assert rates[:7] == [1] * 7
    assert rates[7:30] == [2, 2, 5, 9] + [1, 2, 5, 9] * 4 + [1, 2, 5]
    assert rates[30:] == [5, 9, 17]
    assert [row.stride for row in HDC101].index(2) == 3
    assert [row.dilation for row in HDC50][-3:] == [5, 9, 17]


@pytest.mark.parametrize("size", [(64, 96), (61, 75), (1, 9)])
def test_maps_are_an_eighth_of_the_image_rounded_up(size):
    model = DilatedNet(ResNet(2, FEW, **SLIM))
    cells = tuple(-(-n // 8) for n in size)
    assert out_shape(model, *size, 3) == (1, *cells, 2)
    assert out_shape(model.clone(upsample=True), *size, 3)[1] == 8 * cells[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stem, blocks", [("deep", HDC50), ("plain", FEW)], ids=["hdc50", "few"]
)
def test_features_are_those_of_pytorch_from_the_same_weights(
    torch, tmp_path, stem, blocks
):
    table = {"stem": PLAIN_STEM} if stem == "plain" else {}
    model = ResNet(2, blocks, width_multiplier=1 / 8, **table)
    twin = torch_resnet(torch, model).eval()
    torch.save(twin.state_dict(), tmp_path / "twin.pth")
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    params, _ = load_weights(
        tmp_path / "twin.pth", DilatedNet(model), allow_missing=["final"]
    )
    rgb = np.random.default_rng(0).uniform(0.2, 0.8, (1, 61, 70, 3)).astype("f4")
    x = torch.tensor((rgb - mean) / deviation).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = twin(x).permute(0, 2, 3, 1).numpy()
    ours = (rgb - np.float32(mean))[..., ::-1] * 255
    assert_close(_features(model, params["front_end"], ours), expected)


def _features(model, params, x):
    """What the closing layer gets."""
    taken = []

    def listen(function, args, kwargs, context):
        if context.module.path == ("final",) and context.method_name == "__call__":
            taken.append(args[0])
        return function(*args, **kwargs)

    import flax.linen as nn

    def run(params, x):
        with nn.intercept_methods(listen):
            model.apply({"params": params}, x)
        return taken.pop()

    return np.asarray(jax.jit(run)(params, jnp.asarray(x)))


@pytest.mark.full
@pytest.mark.slow
def test_the_whole_backbone_is_that_of_pytorch_at_full_width(torch, tmp_path):
    model = ResNet(2, HDC101)
    twin = torch_resnet(torch, model).eval()
    torch.save(twin.state_dict(), tmp_path / "twin.pth")
    params, _ = load_weights(
        tmp_path / "twin.pth",
        DilatedNet(model),
        allow_missing=["final"],
    )["front_end"]
    rgb = np.random.default_rng(0).uniform(0, 1, (1, 64, 64, 3)).astype("f4")
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = torch.tensor((rgb - mean) / deviation).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = twin(x).permute(0, 2, 3, 1).numpy()
    assert_close(
        _features(model, params, (rgb - np.float32(mean))[..., ::-1] * 255), expected
    )


@pytest.mark.slow
def test_another_mean_pixel_goes_into_the_first_normalisation(torch, tmp_path):
    """Where no tap of the first layers lies outside the image."""
    model = ResNet(2, FEW[:1], final_rates=(), width_multiplier=1 / 8)
    twin = torch_resnet(torch, model)
    torch.save(twin.state_dict(), tmp_path / "twin.pth")
    options = {"allow_missing": ["final"]}
    net, path = DilatedNet(model), tmp_path / "twin.pth"
    own, _ = load_weights(path, net, **options)
    mean = np.array([90.0, 100.0, 130.0], np.float32)
    other, _ = load_weights(path, net, mean=tuple(mean.tolist()), **options)
    image = np.random.default_rng(0).uniform(0, 255, (1, 96, 96, 3)).astype("f4")
    known = np.float32([0.406 * 255, 0.456 * 255, 0.485 * 255])
    a = _features(model, own["front_end"], image - known)
    b = _features(model, other["front_end"], image - mean)
    assert_close(b[:, 3:-3, 3:-3], a[:, 3:-3, 3:-3])


def test_batch_normalisation_in_training_is_that_of_pytorch(torch):
    x = np.random.default_rng(0).normal(1, 3, (4, 5, 6, 7)).astype("f4")
    module = BatchNorm()
    params = module.init(KEY, jnp.asarray(x))["params"]
    y, changed = module.apply(
        {"params": params}, jnp.asarray(x), train=True, mutable=["batch_stats"]
    )
    twin = torch.nn.BatchNorm2d(7)
    expected = twin(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected.detach(), atol=1e-5)
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], twin.running_mean, atol=1e-6)
    np.testing.assert_allclose(stats["var"], twin.running_var, rtol=1e-5)


def test_frozen_normalisation_trains_as_it_predicts_and_no_gradient_meets_statistics():
    x = image(8, 8)
    module = BatchNorm(running=False)
    params = {"scale": 2.0, "bias": 1.0, "mean": 0.5, "var": 4.0}
    params = {name: jnp.full(3, value) for name, value in params.items()}
    y, changed = module.apply(
        {"params": params}, x, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y, (x - 0.5) + 1, atol=1e-5)
    assert not changed
    grads = jax.grad(lambda p: module.apply({"params": p}, x).sum())(params)
    assert not grads["mean"].any() and not grads["var"].any()
    assert grads["scale"].all() and grads["bias"].all()


@pytest.mark.slow
def test_cell_i_is_centred_on_pixel_8i():
    """A mirrored image gives mirrored maps where cells stand at both ends."""
    model = DilatedNet(ResNet(2, FEW, padding="reflect", **SLIM))
    assert model.receptive_field.centre == 0
    x = image(65, 81)
    params = random_params(model, x)
    params = jax.tree.map(lambda a: (a + a[:, ::-1]) / 2 if a.ndim == 4 else a, params)
    y = apply(model, params, x)
    assert_close(apply(model, params, x[:, :, ::-1]), y[:, :, ::-1])


@pytest.mark.full
@pytest.mark.slow
def test_rematerialised_blocks_give_the_same():
    model = ResNet(2, FEW, **SLIM)
    x = image(32, 32)
    params = random_params(model, x)

    def gradient(model):
        def loss(p):
            y, stats = model.apply(
                {"params": p}, x, train=True, mutable=["batch_stats"]
            )
            return (y**2).sum(), stats

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    one, two = gradient(model), gradient(model.clone(remat=True))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


TINY = (Layer("conv1", 3, 8), Layer("pool1", 2), Layer("conv2", 3, 8, dilation=2))


@pytest.mark.parametrize("context", [None, BASIC[:3]])
@pytest.mark.parametrize("rates", [(), (1, 2)])
def test_a_duc_head_fits_the_paper_s_front_end_and_context_module(context, rates):
    module = context and ContextModule(3 * 4, context)
    front_end = FrontEnd(3, TINY, final_rates=rates, duc=2)
    model = DilatedNet(front_end, module)
    x = image(40, 44)
    params = random_params(model, x)
    assert (model.num_classes, model.output_stride, model.map_stride) == (3, 1, 2)
    maps = apply(model, params, x, method="maps")
    scores = maps if module is None else apply(model, params, maps, method="from_maps")
    inner = [n - 2 * model.margin for n in (40, 44)]
    assert maps.shape == (1, inner[0] // 2, inner[1] // 2, 12)
    y = apply(model, params, x)
    assert y.shape == (1, *inner, 3)
    if module is None:
        np.testing.assert_array_equal(y, depth_to_space(jnp.asarray(maps), 2))
    else:
        np.testing.assert_allclose(y, scores, atol=1e-5)


@pytest.mark.slow
def test_what_duc_leaves_coarse_is_upsampled():
    model = DilatedNet(ResNet(3, FEW, duc=4, **SLIM), upsample=True)
    x = image(32, 40)
    params = random_params(model, x)
    assert model.output_stride == 1
    maps = jnp.asarray(apply(model, params, x, method="maps"))
    expected = upsample_bilinear(depth_to_space(maps, 4), 2, "centred")
    np.testing.assert_allclose(apply(model, params, x), expected, atol=1e-4)


def test_parallel_convolutions_are_their_sum():
    model = FrontEnd(3, TINY[:1], final_rates=(1, 3), padding="same")
    x = image(12, 14)
    params = random_params(model, x)
    features = jax.nn.relu(
        dilated_conv(x, params["conv1"]["kernel"], padding="same")
        + params["conv1"]["bias"]
    )
    expected = sum(
        dilated_conv(features, part["kernel"], dilation=rate, padding="same")
        + part["bias"]
        for part, rate in zip(params["final"].values(), (1, 3), strict=True)
    )
    assert_close(apply(model, params, x), expected)


def test_rates_go_into_any_table_s_dilated_layers():
    assert [r.dilation for r in with_rates(VGG16, (1, 2, 5, 4))][-5:] == [1, 2, 5, 4, 1]
    assert [r.dilation for r in with_rates(BASIC, (3, 5))] == [1, 1, 3, 5, 3, 5, 1]
    rate_2 = resnet_blocks(RESNET50, (2,), (2,))
    assert [r.dilation for r in with_rates(rate_2, (1, 2, 5))][-3:] == [1, 2, 5]
    with pytest.raises(ValueError, match=r"rates=\(0,\): must be one or more positive"):
        with_rates(VGG16, (0,))


@pytest.mark.parametrize("cell", [0, 3, 16])
def test_cells_that_do_not_divide_8_are_refused(cell):
    with pytest.raises(ValueError, match=f"cell={cell}: must be 1, 2, 4, or 8"):
        resnet_duc(cell=cell)


def test_the_layers_cost_what_xla_counts(monkeypatch):
    """XLA also counts biases, normalisation and sums of blocks."""
    operator = importlib.import_module("dilax.ops.dilated_conv")
    monkeypatch.setattr(operator, "choose", lambda *args: DIRECT)
    model = DilatedNet(ResNet(4, FEW, duc=2, final_rates=(1, 2)))
    shape = (1, 64, 64, 3)
    cost = network_cost(model, shape, ())
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    run = jax.jit(lambda p, x: model.apply({"params": p}, x))
    counted = run.lower(init_shapes(model, x), x).compile().cost_analysis()["flops"]
    assert cost.forward.flops == pytest.approx(counted, rel=0.02)


@pytest.mark.slow
def test_every_layer_by_itself_gives_what_the_network_computes_there():
    model = DilatedNet(ResNet(2, FEW, duc=2, **SLIM), upsample=True)
    calls = layer_calls(model, (1, 48, 40, 3))
    names = [call.name for call in calls]
    assert names[:3] == ["conv1", "bn1", "conv2"] and "maxpool" in names
    assert names[-3:] == ["c0", "c1", "upsampling"]
    for call in calls:
        like = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), call.params)
        given = jnp.ones(call.input.shape, call.input.dtype)
        assert jax.eval_shape(call, like, given).shape == call.output.shape
