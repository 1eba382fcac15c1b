"""Exported networks: they give what dilax gives, anywhere, or are not written."""

import dataclasses
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from exported import (
    ENLARGING,
    NETWORKS,
    SMALL,
    direct,
    images,
    load,
    params_of,
    spec_of,
    write,
)
from networks import assert_close

import dilax
from dilax.data import DATASETS, reflect_pad
from dilax.inference import Predictor
from dilax.inference import export as exporting
from dilax.inference.export import export_model, sizes_taken
from dilax.models import VGG16_SLIM_HEAD, ContextModule, DilatedNet, FrontEnd, Layer
from dilax.runtime import jit

each_network = pytest.mark.parametrize("name", NETWORKS)


def _program(path):
    """The lines of the README that run the network."""
    text = np.load(path)["README.md"].decode()
    [lines] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return lines


def _softmax(logits):
    return np.asarray(jax.nn.softmax(logits))


# What the networks give.


@pytest.mark.slow
@each_network
def test_one_file_gives_what_the_network_gives_at_any_size_and_batch(tmp_path, name):
    model, params, spec, path = write(tmp_path, name)
    network, weights, _ = load(path)
    run = jit(network.call)
    for shape in ((1, 2, 3), (2, 5, 2)):
        x = images(model, *shape)
        assert_close(run(weights, x), direct(model, params, spec, x), 1e-5)


def test_probabilities_are_the_softmax(tmp_path):
    model, params, spec, path = write(tmp_path, "same", "probabilities")
    network, weights, _ = load(path)
    x = images(model, 2, 3, 4)
    assert_close(
        network.call(weights, x), _softmax(direct(model, params, spec, x)), 1e-5
    )


@pytest.mark.parametrize("name", ["front end", "same"])
def test_labels_are_the_predictors(tmp_path, name):
    model, params, spec, path = write(tmp_path, name, "labels")
    network, weights, _ = load(path)
    x = images(model, 1, 40, 32)  # whole steps of the predictor's one tile
    margin, step = model.margin, 4 * model.map_stride
    height, width = ((n - 2 * margin) // step * step for n in x.shape[1:3])
    image = x[0, :height, :width]
    padded = reflect_pad(image, margin, margin, margin, margin)
    labels = np.asarray(network.call(weights, padded[None])[0])
    assert labels.dtype == np.uint8 and len(np.unique(labels)) > 2
    np.testing.assert_array_equal(labels, Predictor(model, params, spec)(image))


@pytest.mark.parametrize("channels, dtype", [(4, np.uint16), (1, np.uint8)])
def test_images_need_not_be_8_bit_rgb(tmp_path, channels, dtype):
    pixels = np.dtype(dtype).name
    model, params, spec, path = write(
        tmp_path, "front end", channels=channels, pixels=pixels
    )
    network, weights, _ = load(path)
    x = images(model, 1, 3, 3, channels, dtype)
    assert_close(network.call(weights, x), direct(model, params, spec, x), 1e-5)


def test_a_network_in_bfloat16_gives_float32(tmp_path):
    model = DilatedNet(FrontEnd(5, SMALL["same"].front_end.layers, dtype="bfloat16"))
    params, path = params_of(model), tmp_path / "x.zip"
    export_model(model, params, spec_of("same"), path, "logits")
    network, weights, _ = load(path)
    [aval] = network.out_avals
    assert aval.dtype == np.float32
    x = images(model, 1, 3, 3)
    assert_close(
        network.call(weights, x), direct(model, params, spec_of("same"), x), 1e-5
    )


# What stands in the file.


def test_the_file_says_what_a_caller_must_know(tmp_path):
    _, _, spec, path = write(tmp_path, "cityscapes", "probabilities")
    network, _, about = load(path)
    assert network.platforms == ("cpu", "cuda", "tpu") == tuple(about["platforms"])
    assert about["classes"] == list(spec.classes)
    assert [tuple(colour) for colour in about["palette"]] == list(spec.palette)
    assert about["mean"] == [73.16, 82.91, 72.39] and about["channels"] == "RGB"
    known = {"margin": 186, "stride": 8, "least": 1, "output_stride": 1, "scale": 1.0}
    assert about.items() >= known.items()
    assert about["input_shape"] == "(batch, 8*rows + 372, 8*columns + 372, 3)"
    assert about["output_shape"] == "(batch, 8*rows, 8*columns, 19)"
    assert about["output"] == "probabilities" and about["jax"] == jax.__version__
    text = np.load(path)["README.md"].decode()
    assert about["input_shape"] in text and "$" not in text


def test_nothing_tells_of_the_machine_that_wrote_it(tmp_path):
    *_, path = write(tmp_path, "same")
    content = path.read_bytes()
    for folder in (Path(dilax.__file__).parent, Path(jax.__file__).parent, tmp_path):
        assert str(folder).encode() not in content


def test_a_network_is_the_same_to_the_byte(tmp_path):
    one = write(tmp_path, "same")[-1].read_bytes()
    assert write(tmp_path, "same")[-1].read_bytes() == one


@pytest.mark.parametrize("name", ["voc", "same"])
def test_free_sizes_make_no_gathers_of_slices(tmp_path, name):
    *_, path = write(tmp_path, name, "labels")
    network, *_ = load(path)
    assert "gather" not in network.mlir_module()


def test_the_readme_says_by_how_much_images_are_resized(tmp_path):
    model, path = SMALL["same"], tmp_path / "x.zip"
    half = dataclasses.replace(spec_of("same"), scale=0.5)
    for spec, said in ((spec_of("same"), False), (half, True)):
        export_model(model, params_of(model), spec, path)
        text = np.load(path)["README.md"].decode()
        assert ("Resize images by 0.5 first." in text) == said


# The README's lines.


@pytest.mark.parametrize("output", ["logits", "probabilities", "labels"])
@pytest.mark.parametrize("name", ["front end", "same"])
def test_the_readme_runs_the_network(tmp_path, monkeypatch, name, output):
    model, params, spec, path = write(tmp_path, name, output)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(_program(path), names)
    image = images(model, 1, 20, 15)[0][:33, :28]
    got, margin, stride = names["predict"](image), model.margin, model.map_stride
    ends = (margin, margin + -33 % stride, margin, margin)
    logits = direct(model, params, spec, reflect_pad(image, *ends)[None])[0]
    if output == "labels":
        assert got.shape == (33, 28)
        cells = got[:: model.output_stride, :: model.output_stride]
        want = logits.argmax(-1)[: len(cells), : cells.shape[1]]
        np.testing.assert_array_equal(cells, want)
    else:
        want = logits if output == "logits" else _softmax(logits)
        assert_close(got[None], want[None, : len(got)], 1e-5)


def test_it_runs_where_dilax_is_not(tmp_path):
    model, params, spec, path = write(tmp_path, "same", "probabilities")
    image = images(model, 1, 20, 20)[0]
    np.save(tmp_path / "image.npy", image)
    lines = [
        "import sys",
        "sys.modules.update(dilax=None, flax=None)  # cannot be imported",
        _program(path),
        "np.save('result.npy', predict(np.load('image.npy')))",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONPATH", None)
    program = [sys.executable, "-c", "\n".join(lines)]
    subprocess.run(program, cwd=tmp_path, env=environment, check=True, timeout=120)
    want = _softmax(direct(model, params, spec, image[None]))
    assert_close(np.load(tmp_path / "result.npy")[None], want, 1e-5)


# What is not written.


def _try(path, name="front end", output="logits", pixels="uint8", spec=None):
    model = NETWORKS[name]
    spec = spec or spec_of(name)
    return export_model(model, params_of(model), spec, path, output, pixels)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"path": Path("x.onnx")}, r"path='x.onnx'.*\.zip"),
        ({"output": "scores"}, "output='scores'.*probabilities, logits, labels"),
        ({"pixels": "float32"}, "pixels='float32'.*uint8, uint16"),
        ({"spec": DATASETS["voc"]}, "21 classes, the network 5"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, monkeypatch, unchecked, wrong, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        _try(**{"path": tmp_path / "x.zip", **wrong})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file_to_write(tmp_path):
    (tmp_path / "x.zip").mkdir()
    with pytest.raises(ValueError, match="must be a file"):
        _try(tmp_path / "x.zip")


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        _try(tmp_path / "file" / "x.zip")
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_what_stops_half_way_leaves_what_was_there(tmp_path, monkeypatch, stop):
    def fail(*args, **kwargs):
        raise stop

    (tmp_path / "x.zip").write_text("before")
    monkeypatch.setattr(exporting.np.lib.format, "write_array", fail)
    with pytest.raises(type(stop)) as caught:
        _try(tmp_path / "x.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
    assert (tmp_path / "x.zip").read_text() == "before"
    if isinstance(stop, OSError):
        assert caught.value.filename == str(tmp_path / "x.zip")


def test_a_new_folder_is_made(tmp_path):
    assert _try(tmp_path / "new" / "x.zip").stat().st_size > 0


# The sizes of images that exported networks take.


@pytest.mark.parametrize(
    "model, sizes",
    [
        (DilatedNet(FrontEnd(2)), (186, 8, 1)),
        (DilatedNet(FrontEnd(2, padding="same"), None, True), (0, 8, 1)),
        # Pool after pool, fc6 at an eighth reflects by 8 cells: 9 are needed.
        (DilatedNet(FrontEnd(2, VGG16_SLIM_HEAD, padding="reflect")), (0, 8, 9)),
        # A kernel of 9 reflects by 4 pixels, which are 2 cells after the pool.
        (
            DilatedNet(
                FrontEnd(2, (Layer("a", 9, 2), Layer("b", 2)), padding="reflect")
            ),
            (0, 2, 3),
        ),
        (DilatedNet(FrontEnd(2), ContextModule(2, padding="none")), (450, 8, 1)),
        # Five pools inside, and enlarged again.
        (ENLARGING["fcn8s"], (0, 32, 1)),
        (ENLARGING["segnet"], (0, 32, 1)),
    ],
)
def test_the_sizes_a_network_takes(model, sizes):
    assert sizes_taken(model) == sizes


@pytest.mark.parametrize("name", ["front end", "reflect", "entry", "none"])
def test_the_smallest_size_gives_that_many_cells(tmp_path, name):
    model, params, spec, path = write(tmp_path, name)
    network, weights, about = load(path)
    x = images(model, 1, 0, 0)
    logits = network.call(weights, x)
    assert logits.shape == (1, about["least"], about["least"], 5)
    np.testing.assert_allclose(logits, direct(model, params, spec, x), 1e-4, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENLARGING)
def test_networks_that_enlarge_inside_take_any_batch_and_size(tmp_path, name):
    model, params, spec, path = write(tmp_path, name)
    network, weights, about = load(path)
    assert about["input_shape"] == "(batch, 32*rows, 32*columns, 3)"
    assert about["output_shape"] == "(batch, 32*rows, 32*columns, 5)"
    for shape in ((1, 0, 1), (2, 2, 0)):
        x = images(model, *shape)
        logits = jax.jit(network.call)(weights, x)
        np.testing.assert_allclose(logits, direct(model, params, spec, x), 1e-4, 1e-4)


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((1, 15, 14, 3), np.uint8, r"2\*rows \+ 10.* = 15|remainder 1.*2\*rows \+ 10"),
        ((1, 14, 10, 3), np.uint8, r">= 1 for dimension variable 'columns'"),
        ((14, 14, 3), np.uint8, r"Rank mismatch.*2\*rows \+ 10"),
        ((1, 14, 14, 4), np.uint8, r"Shape mismatch.*\(1, 14, 14, 4\)"),
        ((1, 14, 14, 3), np.float32, r"expected uint8 and called with float32"),
    ],
)
def test_other_images_are_refused_with_the_rule(tmp_path, shape, dtype, message):
    *_, path = write(tmp_path, "front end")
    network, weights, _ = load(path)
    with pytest.raises(ValueError, match=message):
        jax.jit(network.call)(weights, np.zeros(shape, dtype))
