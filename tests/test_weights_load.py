"""Weights that are missing, of another shape, not finite, or of unknown inputs."""

import jax
import numpy as np
import pytest
from networks import SLIM, random_params
from weight_files import (
    IMAGE,
    VGG_MEAN,
    caffemodel,
    keras_file,
    shapes_of,
    torch_arrays,
    vgg,
    vgg_layers,
)

import dilax
from dilax.data import DATASETS
from dilax.models import DilatedNet, FrontEnd, Layer, dilation8_camvid
from dilax.weights import read_weights, save_weights
from dilax.weights.load import assign_weights
from dilax.weights.resolve import resolve_weights

MEAN = DATASETS["camvid"].mean
LAYERS = vgg_layers()


def _write_caffe(path):
    path.write_bytes(caffemodel(LAYERS))


def _write_own(path, mean=VGG_MEAN):
    nested = {"front_end": {n: dict(kernel=k, bias=b) for n, (k, b) in LAYERS.items()}}
    save_weights(nested, path, mean=mean)


FRESH = random_params(vgg(), IMAGE, seed=7)


def _loaded(path, **options):
    """A front end with the layers of a file; `final`, which it lacks, stays fresh."""
    return _placed(path, **options)[0]


def _placed(path, **options):
    options = {"allow_missing": ("final",), **options}
    return assign_weights(read_weights(path), vgg(), FRESH, **options)


def test_without_a_mean_the_values_of_the_file_stay_bit_for_bit(tmp_path):
    path = tmp_path / "a.caffemodel"
    _write_caffe(path)
    params = _loaded(path)["front_end"]
    for name, (kernel, bias) in LAYERS.items():
        if name != "fc8":
            np.testing.assert_array_equal(params[name]["kernel"], kernel)
            np.testing.assert_array_equal(params[name]["bias"], bias)


def test_the_report_tells_every_layer_and_the_classifier_is_left_over(tmp_path):
    path = tmp_path / "a.caffemodel"
    _write_caffe(path)
    text = str(_placed(path, mean=MEAN)[1])
    for line in (
        "conv1_1 (4, 3, 3, 3), (4,) front_end/conv1_1 (3, 3, 3, 4)",
        "fc6 (8, 32, 7, 7), (8,) front_end/fc6 (7, 7, 32, 8)",
        "fc8 (10, 8, 1, 1), (10,) left over",
        "front_end/final: missing, keeps its initialization",
        "30 parameters loaded, 2 missing, 0 reinitialized; 2 arrays unused",
        "conv1_1 took BGR minus (B, G, R) = (103.939, 116.779, 123.68); it takes "
        "BGR minus (110.703, 108.778, 105.412) now",
    ):
        assert line in " ".join(text.split())


def test_what_is_missing_is_named_unless_it_was_allowed(tmp_path):
    path = tmp_path / "notop.h5"
    keras_file(path, LAYERS, top=False)
    with pytest.raises(ValueError, match=r"notop.h5: lacks front_end/fc6/bias, .*fc7"):
        _loaded(path)
    params = _loaded(path, allow_missing=("front_end/fc?", "final"))
    for name in ("fc6", "fc7", "final"):
        assert _same(params["front_end"][name], FRESH["front_end"][name])


def test_one_call_loads_reports_and_starts_the_rest_by_the_seed(tmp_path):
    model = DilatedNet(FrontEnd(2, (Layer("conv1_1", 3, 4), Layer("conv1_2", 3, 4))))
    path = tmp_path / "a.caffemodel"
    _write_caffe(path)
    params, report = dilax.load_weights(path, model, allow_missing=("final",), seed=5)
    fresh = dilax.models.init_params(model, 5)["front_end"]["final"]
    assert _same(params["front_end"]["final"], fresh)
    kernel = params["front_end"]["conv1_2"]["kernel"]
    np.testing.assert_array_equal(kernel, LAYERS["conv1_2"][0])
    assert "4 parameters loaded, 2 missing" in str(report)
    save_weights(params, tmp_path / "a.npz")
    assert _same(params, dilax.load_weights(tmp_path / "a.npz", model)[0])


def test_a_network_whose_file_lacks_one_layer_of_many_is_refused(tmp_path):
    path = tmp_path / "a.caffemodel"
    layers = {n: v for n, v in LAYERS.items() if n != "conv3_2"}
    path.write_bytes(caffemodel(layers))
    with pytest.raises(ValueError, match="lacks front_end/conv3_2/bias"):
        _loaded(path)


@pytest.mark.parametrize("argument", ["allow_missing", "reinit"])
def test_a_pattern_that_names_no_layer_is_an_error(argument, tmp_path):
    path = tmp_path / "a.npz"
    _write_own(path)
    with pytest.raises(ValueError, match=f"{argument}='fianl': .*front_end/conv1_1"):
        _loaded(path, **{argument: ("fianl",)})


def test_another_shape_is_refused_with_both_unless_the_layer_is_reinitialized(tmp_path):
    save_weights(random_params(dilation8_camvid(**SLIM), IMAGE), tmp_path / "a.npz")
    weights = read_weights(tmp_path / "a.npz")
    other = dilation8_camvid(3, **SLIM)
    fresh = random_params(other, IMAGE, seed=1)
    message = r"ctx_conv1_2/kernel \(3, 3, 3, 3\) is \(3, 3, 11, 11\) there"
    with pytest.raises(ValueError, match=message):
        assign_weights(weights, other, fresh)
    params, report = assign_weights(weights, other, fresh, reinit=("final", "ctx"))
    assert _same(params["context"], fresh["context"])
    assert _same(params["front_end"]["final"], fresh["front_end"]["final"])
    assert not _same(params["front_end"]["fc7"], fresh["front_end"]["fc7"])
    assert "left out: context/ctx_fc1 is reinitialized" in str(report)
    assert set(report.loaded) | set(report.reinit) == set(shapes_of(other))


def _same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_their_layer(value, tmp_path):
    layers = {n: (k.copy(), b) for n, (k, b) in LAYERS.items()}
    layers["conv4_2"][0][1, 1, 0, 0] = value
    path = tmp_path / "a.caffemodel"
    path.write_bytes(caffemodel(layers))
    with pytest.raises(ValueError, match="not finite: front_end/conv4_2/kernel"):
        _loaded(path)


def test_numbers_too_large_for_float32_are_not_finite(tmp_path):
    kernel, bias = LAYERS["fc7"]
    wide = {**LAYERS, "fc7": (np.full(kernel.shape, 1e300), bias)}
    path = tmp_path / "a.caffemodel"
    path.write_bytes(caffemodel(wide, values="double"))
    with pytest.raises(ValueError, match="not finite: front_end/fc7/kernel"):
        _loaded(path)


def test_whole_numbers_are_no_weights(tmp_path):
    arrays = torch_arrays(LAYERS)
    arrays["features.2.bias"] = arrays["features.2.bias"].astype(np.int32)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=r"a\.npz: .* int32, not floating-point"):
        _loaded(tmp_path / "a.npz")


def test_a_mean_of_other_channels_is_refused(tmp_path):
    _write_own(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="the first kernel has 3 channels"):
        _loaded(tmp_path / "a.npz", mean=(1.0, 2.0))


def test_where_the_file_does_not_say_its_mean_nothing_is_folded(tmp_path):
    _write_own(tmp_path / "a.npz", mean=None)
    params, report = _placed(tmp_path / "a.npz", mean=MEAN)
    bias = params["front_end"]["conv1_1"]["bias"]
    np.testing.assert_array_equal(bias, LAYERS["conv1_1"][1])
    assert "was not adapted" in str(report)


@pytest.mark.parametrize("name", ["weights.onnx", "weights", "config.json"])
def test_other_kinds_of_files_are_told(name, tmp_path):
    with pytest.raises(ValueError, match=r"end in \.caffemodel, \.h5"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("suffix", ["caffemodel", "h5", "pth", "safetensors", "npz"])
@pytest.mark.parametrize("content", [None, b"", b"<html>404 Not Found</html>" * 9])
def test_missing_empty_and_wrong_files_are_named(suffix, content, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"a.{suffix}: cannot be read as"):
        read_weights(path)


def test_no_short_name_is_taken_for_two_layers(tmp_path):
    model = dilation8_camvid(3, **SLIM)
    twice = DilatedNet(model.front_end, model.context.clone(prefix=""))
    params = random_params(twice, IMAGE)
    save_weights(params, tmp_path / "a.npz")
    weights = read_weights(tmp_path / "a.npz")
    assert _same(params, assign_weights(weights, twice, params)[0])
    np.savez(
        tmp_path / "b.npz", **{"final/kernel": params["front_end"]["final"]["kernel"]}
    )
    assert not resolve_weights(
        read_weights(tmp_path / "b.npz"), shapes_of(twice)
    ).sources
