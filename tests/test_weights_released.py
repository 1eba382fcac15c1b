"""The four released networks' `.caffemodel`s, with OpenCV's reader as an oracle."""

import jax
import numpy as np
import pytest
from networks import SLIM, VGG_NAMES, each_release, random_params
from weight_files import blob, caffe_layer, caffemodel, layers_of, oihw, vgg_layers

from dilax.data import DATASETS
from dilax.models import dilation10_cityscapes
from dilax.runtime import jit
from dilax.weights import CAFFE, Inputs, read_weights
from dilax.weights.load import assign_weights

BILINEAR = np.outer(*(1 - np.abs(np.arange(16) / 8 - 15 / 16),) * 2)


def _written(folder, content):
    path = folder / "a.caffemodel"
    path.write_bytes(content)
    return path


def release_layers(release, params):
    """The layers of a released network as its `.caffemodel` has them."""
    net = b""
    for name, (kernel, bias) in layers_of(params).items():
        net += caffe_layer(name, "Convolution", [blob(oihw(kernel)), blob(bias)])
    if release.upsample:
        weight = np.broadcast_to(BILINEAR, (release.classes, 1, 16, 16))
        net += caffe_layer("ctx_upsample", "Deconvolution", [blob(weight)])
    return net


def _prototxt(release, params, height, width):
    """The definition of the release, with the widths of these parameters."""
    channels = {name: len(bias) for name, (_, bias) in layers_of(params).items()}
    lines = [f'input: "data" input_shape {{ dim: [1, 3, {height}, {width}] }}']
    last = "data"

    def add(name, kind, options, top=None):
        nonlocal last
        lines.append(
            f'layer {{ name: "{name}" type: "{kind}" bottom: "{last}" '
            f'top: "{top or name}" {options} }}'
        )
        last = top or name

    def convolve(name, kernel, dilation=1, pad=0, relu=True):
        add(
            name,
            "Convolution",
            f"convolution_param {{ num_output: {channels[name]} kernel_size: {kernel} "
            f"dilation: {dilation} pad: {pad} }}",
        )
        if relu:
            add(f"{name}_relu", "ReLU", "", top=name)

    for name in VGG_NAMES:
        dilation = {"conv5": 2, "fc6": 4}.get(name.partition("_")[0], 1)
        convolve(name, {"fc6": 7, "fc7": 1}.get(name, 3), dilation)
        if name in ("conv1_2", "conv2_2", "conv3_3"):
            size = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"
            add(f"pool{name[4]}", "Pooling", size)
    convolve(release.final, 1, relu=False)
    pad = release.entry
    for name, dilation in release.dilations.items():
        convolve(release.prefix + name, 3, dilation, pad if release.entry else dilation)
        pad = 0
    convolve(f"{release.prefix}final", 1, relu=False)
    if release.upsample:
        add(
            "ctx_upsample",
            "Deconvolution",
            f"convolution_param {{ num_output: {release.classes} bias_term: false "
            f"kernel_size: 16 stride: 8 pad: 4 group: {release.classes} }}",
        )
    add("prob", "Softmax", "")
    return "\n".join(lines)


@pytest.fixture(scope="module", params=["sizes that fit", "odd sizes"])
def image(request):
    height, width = (388, 412) if request.param == "sizes that fit" else (397, 403)
    rng = np.random.default_rng(0)
    return rng.uniform(-120, 140, (1, height, width, 3)).astype(np.float32)


@pytest.mark.slow
@each_release
def test_released_networks_give_the_probabilities_that_opencv_gives(
    release, image, tmp_path
):
    cv2 = pytest.importorskip("cv2", reason="compares with OpenCV")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("this OpenCV reads no Caffe files")
    model = release.build(**SLIM)
    run = jit(lambda params, x: model.apply({"params": params}, x))
    made = _tempered(run, random_params(model, image), image)
    path = _written(tmp_path, release_layers(release, made))
    definition = tmp_path / "a.prototxt"
    definition.write_text(_prototxt(release, made, *image.shape[1:3]))
    net = cv2.dnn.readNetFromCaffe(str(definition), str(path))
    net.setInput(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    expected = net.forward().transpose(0, 2, 3, 1)
    zeros = jax.tree.map(np.zeros_like, made)
    params, report = assign_weights(read_weights(path), model, zeros)
    assert not report.left_over and not report.missing
    logits = np.asarray(run(params, image))
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    found = shifted / shifted.sum(-1, keepdims=True)
    assert found.shape == expected.shape
    assert np.ptp(expected, axis=(1, 2)).max() > 0.05 and expected.max() < 0.99
    assert np.abs(found - expected).max() <= 1e-5


def _tempered(run, params, image):
    """The last layer scaled so that probabilities are neither all alike nor 0 and 1."""
    scale = 1 / np.std(run(params, image))
    [last] = (name for name in params["context"] if name.endswith("final"))
    layer = params["context"][last]
    layer |= {part: values * scale for part, values in layer.items()}
    return params


@each_release
def test_the_mean_of_a_release_is_that_of_its_data_set(release, tmp_path):
    model = release.build(**SLIM)
    params = random_params(model, np.zeros((1, 397, 412, 3), np.float32))
    weights = read_weights(_written(tmp_path, release_layers(release, params)))
    dataset = release.build.__name__.split("_")[1]
    assert weights.inputs == Inputs(DATASETS[dataset].mean)


def test_vgg_s_mean_is_its_own_and_that_of_other_networks_is_unknown(tmp_path):
    layers = vgg_layers()
    del layers["fc8"]  # vgg_conv
    assert read_weights(_written(tmp_path, caffemodel(layers))).inputs == CAFFE
    layers["fc8_voc"] = layers["fc7"]
    assert read_weights(_written(tmp_path, caffemodel(layers))).inputs is None


@pytest.mark.parametrize("change", ["value", "shape"])
def test_another_upsampling_than_the_bilinear_one_is_refused(change, tmp_path):
    model = dilation10_cityscapes(**SLIM)
    params = random_params(model, np.zeros((1, 397, 412, 3), np.float32))
    weight = np.tile(BILINEAR, (19, 1, 1, 1))
    if change == "value":
        weight[3, 0, 7, 7] += 0.01
    else:
        weight = weight[..., :8, :8]
    net = b"".join(
        caffe_layer(name, "Convolution", [blob(oihw(kernel)), blob(bias)])
        for name, (kernel, bias) in layers_of(params).items()
    )
    net += caffe_layer("ctx_upsample", "Deconvolution", [blob(weight)])
    with pytest.raises(ValueError, match=r"ctx_upsample/kernel \(19, .* not the bilin"):
        assign_weights(read_weights(_written(tmp_path, net)), model, params)
