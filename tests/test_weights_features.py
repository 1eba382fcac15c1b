"""The same network from every kind of file, and on a photograph."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from networks import apply, random_params
from PIL import Image
from weight_files import (
    IMAGE,
    IMAGENET,
    TORCHVISION,
    VGG_MEAN,
    caffemodel,
    keras_file,
    oihw,
    torch_arrays,
    vgg,
    vgg_layers,
)

import dilax
from dilax.data import DATASETS
from dilax.models import DilatedNet, FrontEnd, Layer
from dilax.runtime import jit
from dilax.weights import CAFFE, Inputs, flat_shapes, read_weights, save_weights
from dilax.weights import TORCHVISION as TORCHVISION_INPUTS
from dilax.weights.load import assign_weights
from dilax.weights.resolve import resolve_weights

MEAN = DATASETS["camvid"].mean
LAYERS = vgg_layers()


def _write_caffe(path, **form):
    path.write_bytes(caffemodel(LAYERS, **form))


def _write_own(path):
    nested = {"front_end": {n: dict(kernel=k, bias=b) for n, (k, b) in LAYERS.items()}}
    save_weights(nested, path, mean=VGG_MEAN)


def _write_torch(path, **options):
    torch = pytest.importorskip("torch", reason="writes its own files")
    state = {n: torch.tensor(a) for n, a in torch_arrays(LAYERS).items()}
    torch.save(state, path, **options)


FILES = {
    "caffe.caffemodel": _write_caffe,
    "old.caffemodel": functools.partial(_write_caffe, form="v1", dims="legacy"),
    "old.h5": lambda path: keras_file(path, LAYERS),
    "new.h5": lambda path: keras_file(path, LAYERS, "new"),
    "model.h5": lambda path: keras_file(path, LAYERS, "model"),
    "three.weights.h5": lambda path: keras_file(path, LAYERS, "3"),
    "named.weights.h5": lambda path: keras_file(path, LAYERS, "3 named"),
    "torch.pth": _write_torch,
    "legacy.pth": functools.partial(_write_torch, _use_new_zipfile_serialization=False),
    "torch.safetensors": lambda path: safetensors.numpy.save_file(
        torch_arrays(LAYERS), path
    ),
    "torch.npz": lambda path: np.savez(path, **torch_arrays(LAYERS)),
    "own.safetensors": _write_own,
    "own.npz": _write_own,
}


@pytest.fixture(scope="module")
def photo():
    """(1, 397, 412, 3) BGR on the 0..255 scale; odd sizes, so that pools hang over."""
    rng = np.random.default_rng(3)
    return rng.uniform(0, 255, IMAGE.shape).astype(np.float32)


@pytest.fixture(scope="module")
def features():
    """Logits of the slim front end, compiled once."""
    model = vgg()
    run = jit(lambda params, x: model.apply({"params": params}, x))
    return lambda params, x: np.asarray(run(params, jnp.asarray(x)))


FRESH = random_params(vgg(), IMAGE, seed=7)


def _loaded(path, **options):
    """A front end with the layers of a file; `final`, which it lacks, stays fresh."""
    return _placed(path, **options)[0]


def _placed(path, **options):
    options = {"allow_missing": ("final",), **options}
    return assign_weights(read_weights(path), vgg(), FRESH, **options)


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_features(name, photo, features, tmp_path):
    FILES[name](tmp_path / name)
    params = _loaded(tmp_path / name, mean=MEAN)
    start = FRESH["front_end"]["final"]
    own = {n: dict(kernel=k, bias=b) for n, (k, b) in LAYERS.items() if n != "fc8"}
    expected = features({"front_end": {**own, "final": start}}, photo - VGG_MEAN)
    found = features(params, photo - np.array(MEAN, np.float32))
    assert np.ptp(expected, axis=(1, 2)).min() > 1e-2 * np.abs(expected).max()
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-5


def test_torchvision_s_network_on_its_inputs_is_ours_on_ours(torch, photo, tmp_path):
    """conv1_1 and conv1_2 by PyTorch, on RGB normalised as torchvision does."""
    arrays = torch_arrays(LAYERS)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    table = (Layer("conv1_1", 3, 4), Layer("conv1_2", 3, 4))
    model = DilatedNet(FrontEnd(4, table))
    params, _ = dilax.load_weights(
        tmp_path / "a.safetensors", model, allow_missing=("final",), mean=MEAN
    )
    params["front_end"]["final"] = dict(kernel=np.eye(4)[None, None], bias=np.zeros(4))
    rgb = torch.tensor(photo[..., ::-1].copy() / 255).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(IMAGENET[k])[:, None, None] for k in ("mean", "std"))
    x = (rgb - mean) / std
    for i in ("0", "2"):
        weight, bias = (
            torch.tensor(arrays[f"features.{i}.{part}"]) for part in ("weight", "bias")
        )
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias))
    expected = x.permute(0, 2, 3, 1).numpy()
    found = apply(model, params, jnp.asarray(photo - np.array(MEAN, np.float32)))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["keras", "torch", "caffe"])
def test_a_dense_layer_computes_the_same_as_a_convolution(kind, tmp_path):
    """fc6 on the only place of a 7×7 map, and as its framework multiplies matrices."""
    rng = np.random.default_rng(0)
    conv = rng.normal(size=(1, 1, 3, 4)).astype(np.float32)
    dense = rng.normal(size=(7 * 7 * 4, 6)).astype(np.float32)
    zero = np.zeros(4, np.float32), np.ones(6, np.float32)
    model = DilatedNet(FrontEnd(6, (Layer("conv1_1", 1, 4), Layer("fc6", 7, 6))))
    x = rng.uniform(0, 9, (1, 7, 7, 3)).astype(np.float32)
    maps = np.maximum(x @ conv[0, 0], 0)
    flat = maps.ravel() if kind == "keras" else maps.transpose(0, 3, 1, 2).ravel()
    expected = np.maximum(flat @ dense + 1, 0)
    path = tmp_path / {"keras": "a.h5", "torch": "a.npz", "caffe": "a.caffemodel"}[kind]
    _write_dense(path, conv, dense, zero)
    inputs = Inputs((0.0, 0.0, 0.0))
    params, _ = dilax.load_weights(path, model, allow_missing=("final",), inputs=inputs)
    params["front_end"]["final"] = dict(kernel=np.eye(6)[None, None], bias=np.zeros(6))
    np.testing.assert_allclose(apply(model, params, x).ravel(), expected, rtol=1e-5)


def _write_dense(path, conv, dense, biases):
    if path.suffix == ".h5":
        layers = {"conv1_1": (conv, biases[0]), "fc6": (dense, biases[1])}
        return keras_file(path, layers)
    names = [TORCHVISION[n] for n in ("conv1_1", "fc6")]
    if path.suffix == ".npz":
        weights = oihw(conv), dense.T
        arrays = {f"{n}.weight": w for n, w in zip(names, weights, strict=True)}
        arrays |= {f"{n}.bias": b for n, b in zip(names, biases, strict=True)}
        return np.savez(path, **arrays)
    # A convolution's (h, w, in, out) whose rows are the matrix that Caffe keeps.
    kernel = dense.T.reshape(6, 4, 7, 7).transpose(2, 3, 1, 0)
    layers = {"conv1_1": (conv, biases[0]), "fc6": (kernel, biases[1])}
    path.write_bytes(caffemodel(layers, "v1", "legacy"))


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("caffe.caffemodel", CAFFE),
        ("old.h5", CAFFE),
        ("torch.npz", TORCHVISION_INPUTS),
        ("own.npz", Inputs(VGG_MEAN)),
    ],
)
def test_a_file_says_which_inputs_its_network_takes(name, inputs, tmp_path):
    FILES[name](tmp_path / name)
    weights = read_weights(tmp_path / name)
    assert resolve_weights(weights, flat_shapes(FRESH)).inputs == inputs


def _pooled(map_, size):
    """A map's middle, averaged over 2×2, as large as the features."""
    top, left = ((n - 2 * m) // 2 for n, m in zip(map_.shape, size, strict=True))
    middle = map_[top : top + 2 * size[0], left : left + 2 * size[1]]
    return middle.reshape(size[0], 2, size[1], 2).mean((1, 3))


def _alike(a, b):
    return np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]


def _statistics(params, model, rgb):
    """What tells trained features from random ones, see below."""
    x = rgb[..., ::-1] - np.array(MEAN, np.float32)
    maps = np.maximum(apply(model, params, jnp.asarray(x[None]))[0], 0)
    grey = rgb.mean(-1)
    edges = _pooled(np.hypot(*np.gradient(grey)), maps.shape[:2])
    live = maps.reshape(-1, maps.shape[-1]).T
    live = live[live.std(1) > 0]
    between = np.corrcoef(live) - np.eye(len(live))
    light = _pooled(grey, maps.shape[:2])
    return {
        "live": len(live),
        "edges": _alike(maps.mean(-1), edges),
        "alike": np.abs(between).mean(),
        "light": np.mean([abs(_alike(channel, light)) for channel in live]),
    }


def test_real_kernels_see_edges_in_a_photograph_and_random_ones_do_not(real_data):
    """conv1_1 to conv2_2 of VGG-16 as it was trained, on a dog."""
    table = (
        *(Layer("conv1_1", 3, 64), Layer("conv1_2", 3, 64), Layer("pool1", 2)),
        *(Layer("conv2_1", 3, 128), Layer("conv2_2", 3, 128)),
    )
    model = DilatedNet(FrontEnd(128, table))
    path = real_data / "vgg16_partial" / "vgg16_conv1_conv2_f32.npz"
    final = dict(kernel=np.eye(128, dtype=np.float32)[None, None], bias=np.zeros(128))
    real, _ = dilax.load_weights(
        path, model, allow_missing=("final",), inputs=CAFFE, mean=MEAN
    )
    fresh = dilax.models.init_params(model, 0)
    with Image.open(real_data / "images" / "dog.jpg") as file:
        rgb = np.asarray(file.convert("RGB"), np.float32)[:200, :240]
    found, random = (
        _statistics({"front_end": {**p["front_end"], "final": final}}, model, rgb)
        for p in (real, fresh)
    )
    # Every channel answers to something, together to edges; few channels repeat one
    # another, and few are but the light.
    assert found["live"] == 128
    assert found["edges"] > 0.6 > 0.4 > random["edges"]
    assert found["alike"] < 0.16 < 0.2 < random["alike"]
    assert found["light"] < 0.25 < 0.35 < random["light"]
