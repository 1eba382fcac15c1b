"""A network small enough to be computed by eye, and predictors of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dilax.data import DatasetSpec, colour_map
from dilax.inference import Predictor
from dilax.models import DilatedNet, FrontEnd, Layer

# Field 24, stride 8, margin 8.
FRONT_END = FrontEnd(3, (Layer("taps", 3, 5, dilation=8), Layer("pool", 8)))
NET = DilatedNet(FRONT_END)
SPEC = DatasetSpec(
    "three", ("a", "b", "c"), colour_map(3), (90.0, 120.0, 150.0), tile=(80, 96)
)
SIZES = [(1, 1), (1, 7), (64, 80), (65, 81), (130, 250), (200, 91)]


def image_of(size, seed=0):
    """Blotches of colour under noise."""
    rng = np.random.default_rng(seed)
    blotches = rng.integers(0, 256, (size[0] // 20 + 1, size[1] // 20 + 1, 3))
    image = np.kron(blotches, np.ones((20, 20, 1)))[: size[0], : size[1]]
    return np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)


@functools.cache
def params_of(model, seed=0):
    """Random weights, with logits of about ±2."""
    rng = np.random.default_rng(seed)
    x = jnp.zeros((1, 400, 400, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(
        lambda s: rng.normal(0, np.prod(s.shape[:-1]) ** -0.5, s.shape).astype("f4"),
        shapes,
    )
    params["front_end"]["final"]["kernel"] *= 0.05
    return params


@functools.cache
def predictor_of(model=NET, spec=SPEC, batch_size=1, **options):
    return Predictor(model, params_of(model), spec, batch_size, **options)
