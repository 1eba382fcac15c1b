"""Whole Cityscapes images by Dilation10, rows over eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.data import DATASETS
from dilax.inference import Predictor
from dilax.models import (
    DilatedNet,
    FrontEnd,
    Layer,
    apply_over_rows,
    dilation10_cityscapes,
    init_params,
    row_mesh,
)
from dilax.runtime import jit

MARGIN = dilation10_cityscapes().margin
SHAPE = (1, 1024 + 2 * MARGIN, 2048 + 2 * MARGIN, 3)


@pytest.fixture(scope="module")
def slim():
    """Dilation10 with an eighth of the channels, of which the image decides."""
    model = dilation10_cityscapes(width_multiplier=1 / 8, head_channels=16)
    params = init_params(model, 0)
    params["front_end"]["final"]["kernel"] *= 1000
    return model, params


def _compiled(model, params, rows):
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    run = functools.partial(apply_over_rows, model, mesh=row_mesh(8))
    if rows == 1:  # whole maps: with gradients, none are in bands of rows

        def run(params, x):
            return jax.vjp(lambda p: model.apply({"params": p}, x), params)[0]

    return jit(run).lower(params, x).compile()


def _held(compiled):
    """Bytes of maps and of what is given, on a device."""
    account = compiled.memory_analysis()
    return account.temp_size_in_bytes + account.output_size_in_bytes


def test_dilation10_on_a_whole_image_takes_an_eighth_of_the_memory_each(slim):
    one, eight = (_compiled(*slim, rows) for rows in (1, 8))
    assert 1 / 8 <= _held(eight) / _held(one) <= 1.2 / 8
    params, x = slim[1], np.random.default_rng(0).uniform(-120, 130, SHAPE)
    x = x.astype(np.float32)
    expected = np.asarray(one(params, x))
    assert expected.shape == (1, 1024, 2048, 19)
    assert np.ptp(expected) > 1
    arguments = jax.device_put((params, x), eight.input_shardings[0])
    out = eight(*arguments)
    assert {s.data.shape for s in out.addressable_shards} == {(1, 128, 2048, 19)}
    error = np.linalg.norm(np.asarray(out) - expected)
    assert error <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("mode", ["tiles", "whole", "blend"])
def test_a_predictor_over_rows_predicts_the_same(mode):
    layers = (Layer("a", 3, 8), Layer("p", 2), Layer("b", 3, 8, dilation=2))
    model = DilatedNet(FrontEnd(19, layers))
    params = init_params(model, 0)
    params["front_end"]["final"]["kernel"] *= 1000
    spec = dataclasses.replace(DATASETS["cityscapes"], tile=(46, 46))
    image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    options = {"mode": mode}
    one = Predictor(model, params, spec, **options).probabilities(image)
    many = Predictor(model, params, spec, rows=4, **options).probabilities(image)
    assert np.ptp(one) > 0.1
    np.testing.assert_allclose(many, one, atol=1e-5)


def test_more_rows_than_devices_are_refused():
    with pytest.raises(ValueError, match="rows=9: this process has only 8 devices"):
        row_mesh(9)
