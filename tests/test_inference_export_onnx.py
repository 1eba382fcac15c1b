"""ONNX files: what onnxruntime gives is what dilax gives."""

import errno
import json
import pathlib
import sys
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported import ENLARGING, NETWORKS, SMALL, direct, params_of, spec_of
from networks import assert_close

from dilax.inference import export_onnx
from dilax.inference.export import sizes_taken
from dilax.models import DilatedNet


@pytest.fixture
def onnxruntime():
    pytest.importorskip("jax2onnx", reason="converts to ONNX")
    return pytest.importorskip("onnxruntime", reason="runs ONNX")


def _export(tmp_path, name, output="logits", pixels="uint8"):
    model = (NETWORKS | ENLARGING)[name]
    params, spec = params_of(model), spec_of(name)
    path = tmp_path / "network.onnx"
    assert export_onnx(model, params, spec, path, output, pixels) == path
    return model, params, spec, path


def _run(onnxruntime, path, x):
    [result] = onnxruntime.InferenceSession(path).run(None, {"images": x})
    return result


def _expected(model, params, spec, x):
    """The logits of images that are padded outside, as the StableHLO file asks for."""
    sizes = sizes_taken(model)
    margin, stride, least = sizes
    ends = [(margin, margin + -n % stride + (least - 1) * stride) for n in x.shape[1:3]]
    padded = np.pad(x, [(0, 0), *ends, (0, 0)], "reflect")
    rows, columns = (-(-n // model.output_stride) for n in x.shape[1:3])
    return direct(model, params, spec, padded)[:, :rows, :columns]


def _images(*shape, dtype=np.uint8):
    high = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, high, shape, dtype, endpoint=True)


@pytest.mark.parametrize("name", ["voc", "cityscapes", *SMALL, *ENLARGING])
def test_one_file_takes_any_size_and_batch(tmp_path, onnxruntime, name):
    model, params, spec, path = _export(tmp_path, name)
    for shape in ((1, 16, 24, 3), (2, 41, 55, 3), (1, 1, 39, 3)):
        x = _images(*shape)
        assert_close(
            _run(onnxruntime, path, x), _expected(model, params, spec, x), 1e-4
        )


@pytest.mark.parametrize("name", ["front end", "same", "voc"])
def test_probabilities_and_labels_are_those_of_the_logits(tmp_path, onnxruntime, name):
    model, params, spec, path = _export(tmp_path, name, "probabilities")
    x, stride = _images(2, 19, 21, 3), model.output_stride
    logits = _expected(model, params, spec, x)
    assert_close(_run(onnxruntime, path, x), np.asarray(jax.nn.softmax(logits)), 1e-4)
    *_, path = _export(tmp_path, name, "labels")
    labels = _run(onnxruntime, path, x)
    assert labels.dtype == np.uint8 and labels.shape == (2, 19, 21)
    np.testing.assert_array_equal(labels[:, ::stride, ::stride], logits.argmax(-1))


def test_16_bit_images(tmp_path, onnxruntime):
    model, params, spec, path = _export(tmp_path, "front end", pixels="uint16")
    x = _images(1, 9, 11, 3, dtype=np.uint16)
    assert_close(_run(onnxruntime, path, x), _expected(model, params, spec, x), 1e-4)


def test_a_network_of_bfloat16_is_computed_in_float32(tmp_path, onnxruntime):
    single, spec, path = SMALL["front end"], spec_of("front end"), tmp_path / "x.onnx"
    half = DilatedNet(single.front_end.clone(dtype=jnp.bfloat16))
    params, x = params_of(single), _images(1, 9, 11, 3)
    export_onnx(half, params, spec, path, "logits")
    assert_close(_run(onnxruntime, path, x), _expected(single, params, spec, x), 1e-4)


def test_the_file_says_what_a_caller_must_know(tmp_path, onnxruntime):
    *_, spec, path = _export(tmp_path, "voc")
    session = onnxruntime.InferenceSession(path)
    about = session.get_modelmeta().custom_metadata_map
    about = {name: json.loads(value) for name, value in about.items()}
    assert about["classes"] == list(spec.classes)
    known = {"margin": 0, "stride": 1, "output_stride": 8, "output": "logits"}
    assert about.items() >= known.items()
    [taken], [given] = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type) == ("images", "tensor(uint8)")
    assert taken.shape == ["batch", "height", "width", 3] and given.name == "logits"


# What is not written.


def test_without_the_converter_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'dilax\[onnx\]'"):
        _export(tmp_path, "front end")
    assert not list(tmp_path.iterdir())


def test_another_suffix_is_refused(tmp_path):
    model = NETWORKS["front end"]
    with pytest.raises(ValueError, match=r"x\.zip.*\.onnx"):
        path = tmp_path / "x.zip"
        export_onnx(model, params_of(model), spec_of("front end"), path)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    monkeypatch.setitem(sys.modules, "jax2onnx", MagicMock())
    with pytest.raises(OSError, match=r"network\.onnx"):
        _export(tmp_path, "front end")
    assert not list(tmp_path.iterdir())
