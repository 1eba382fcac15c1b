"""Caffe's files: both forms of layers, and broken ones."""

import numpy as np
import pytest
from broken_files import check_broken
from weight_files import (
    caffe_layer,
    caffemodel,
    field,
    varint,
    vgg_layers,
)

from dilax.weights import read_weights
from dilax.weights.caffe import fields, varints

LAYERS = {n: v for n, v in vgg_layers().items() if n in ("conv1_1", "conv1_2", "fc7")}
BILINEAR = np.outer(*(1 - np.abs(np.arange(16) / 8 - 15 / 16),) * 2)


def _written(folder, content):
    path = folder / "a.caffemodel"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", ["layer", "v1"])
@pytest.mark.parametrize("dims", ["shape", "legacy"])
@pytest.mark.parametrize("values", ["packed", "one by one", "double"])
def test_every_form_of_a_layer_is_read(form, dims, values, tmp_path):
    path = _written(tmp_path, caffemodel(LAYERS, form, dims, values))
    tensors = read_weights(path).tensors
    assert set(tensors) == {f"{n}/{p}" for n in LAYERS for p in ("kernel", "bias")}
    for name, (kernel, bias) in LAYERS.items():
        for part, array in (("kernel", kernel), ("bias", bias)):
            stored = tensors[f"{name}/{part}"]
            assert stored.fits(array.shape)
            np.testing.assert_array_equal(stored.fitted(array.shape), array)


def test_a_blob_in_parts_and_unknown_fields_are_read(tmp_path):
    array = np.arange(6, dtype="<f4")
    parts = b"".join(field(5, part.tobytes()) for part in (array[:2], array[2:]))
    shape = field(7, varint(1 << 3) + varint(6))  # not packed
    content = field(99, b"?") + field(98, 7) + varint(97 << 3 | 1) + bytes(8) + shape
    net = caffe_layer("a", "InnerProduct", [content + parts])
    stored = read_weights(_written(tmp_path, net)).tensors["a/kernel"]
    np.testing.assert_array_equal(stored.read(), array)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**35, 2**63, 2**64 - 1])
def test_numbers_of_any_length_are_read(number):
    [(key, value)] = fields(memoryview(field(3, number)))
    assert (key, value) == (3, number)
    signed = number - (number >> 63 << 64)
    assert list(varints(memoryview(varint(number)))) == [signed]


# Broken files.


def _net(*blobs):
    return caffe_layer("conv1_1", "Convolution", list(blobs))


def _shape(*sides):
    return field(7, field(1, b"".join(map(varint, sides))))


SOUND = field(5, bytes(24))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (field(1, b"no layers"), "no layers with weights"),
        (
            _net(SOUND + field(7, field(1, varint(2**60)))),
            "24 bytes .* 1152921504606846976",
        ),
        (
            _net(SOUND + field(7, field(1, varint(2**64 - 6)))),
            "24 bytes do not fit -6",
        ),
        (_net(SOUND + _shape(*[3] * 9)), "24 bytes do not fit"),
        (_net(SOUND + b"".join(field(i, 2**40) for i in (1, 2, 3, 4))), "24 bytes"),
        (
            varint(100 << 3 | 2) + varint(2**60) + b"abc",
            "a field of 1152921504606846976",
        ),
        (varint(100 << 3 | 2) + b"\xff" * 12, "more than ten bytes"),
        (varint(100 << 3 | 3), "wire type 3"),
        (varint(100 << 3 | 5) + b"ab", "a field of 4 bytes, but 2 are left"),
        (b"\x80", "cut off"),
        (_net(field(5, 7)), "a number instead"),
        (_net(field(7, 7)), "a number instead"),
        (caffe_layer("a", "ReLU", [SOUND[:2]]), "a field of 24 bytes, but 0 are left"),
        (field(2, field(1, b"V0")), "Caffe's first form"),
        (2 * _net(field(5, bytes(4))), "two layers are called 'conv1_1'"),
        (field(100, field(1, b"\xff\xfe") + field(7, SOUND)), "utf-8"),
    ],
)
def test_a_broken_file_is_refused_with_the_reason(content, message, tmp_path):
    path = _written(tmp_path, content)
    with pytest.raises(ValueError, match=f"a.caffemodel: cannot be read .*{message}"):
        read_weights(path)


@pytest.mark.parametrize("form", ["layer", "v1"])
def test_no_broken_file_does_harm(form, unchecked, tmp_path):
    content = caffemodel(LAYERS, form)
    assert check_broken(tmp_path / "a.caffemodel", content, LAYERS, 60) > 30
