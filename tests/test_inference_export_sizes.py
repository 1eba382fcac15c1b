"""The sizes of images that exported networks take."""

import jax
import numpy as np
import pytest
from exported import ENLARGING, direct, images, load, write

from dilax.inference.export import sizes_taken
from dilax.models import VGG16_SLIM_HEAD, ContextModule, DilatedNet, FrontEnd, Layer


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
