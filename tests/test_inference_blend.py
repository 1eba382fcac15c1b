"""Overlapping tiles: the whole image's cells, no seams, bounded memory."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_net import FRONT_END, SIZES, image_of, predictor_of

from dilax.data import DATASETS, read_pixels, reflect_pad, resize, subtract_mean
from dilax.inference import Predictor
from dilax.inference.tiles import plan_blend
from dilax.models import KITTI, ContextModule, DilatedNet, FrontEnd, Layer
from dilax.runtime import jit

SLIM = (
    *(Layer("conv1", 3, 8), Layer("pool1", 2), Layer("conv2", 3, 16)),
    *(Layer("pool2", 2), Layer("conv3", 3, 16), Layer("pool3", 2)),
    *(Layer("conv4", 3, 32, dilation=2), Layer("head", 1, 32)),
)


@pytest.mark.parametrize("size", SIZES[2:])
def test_blended_tiles_of_a_front_end_are_the_whole_image(size):
    """Whatever overlaps sees the same; the last cell begun is filled otherwise."""
    image = image_of(size, 5)
    one, two = (
        predictor_of(mode=mode).probabilities(image) for mode in ("blend", "whole")
    )
    rows, columns = (8 * (n // 8 - 1) + 1 for n in size)
    assert two.std((0, 1)).min() > 0.05
    np.testing.assert_allclose(one[:rows, :columns], two[:rows, :columns], atol=1e-5)


def test_a_network_that_upsamples_itself_is_blended_before_it_does():
    model = DilatedNet(FRONT_END, upsample=True)
    image = image_of((130, 250), 6)
    one, two = (
        predictor_of(model, mode=mode).probabilities(image)
        for mode in ("blend", "whole")
    )
    assert two.std((0, 1)).min() > 0.05
    np.testing.assert_allclose(one[4:124, 4:244], two[4:124, 4:244], atol=1e-5)
    # At the border zeros stand outside the map, which leave the order as it is.
    np.testing.assert_array_equal(one[:4].argmax(-1), two[:4].argmax(-1))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("cells", [1, 8, 9, 31, 100])
def test_tiles_overlap_as_asked_and_their_weights_sum_to_one(cells, overlap):
    grid = plan_blend((8 * cells, 8), (80, 80), 8, 8, overlap)
    assert grid.inner == (8, 8)
    assert grid.rows[-1] + 8 == max(8, cells)
    assert np.diff(grid.rows).max(initial=0) <= 8 * (1 - overlap)
    constant = np.broadcast_to(np.float32([2, 3]), (8, 8, 2))
    bands = list(grid.bands(iter([constant] * len(grid))))
    np.testing.assert_allclose(
        np.concatenate(bands), np.broadcast_to([2, 3], (cells, 1, 2)), rtol=1e-6
    )


def test_a_tile_s_weight_falls_steadily_from_its_middle():
    grid = plan_blend((8 * 14, 8), (80, 80), 8, 8, 0.25)
    assert grid.rows == (0, 6)
    ones = [np.full((8, 8, 1), i, np.float32) for i in (1, 0)]
    share = np.concatenate(list(grid.bands(iter(ones))))[:, 0, 0]
    np.testing.assert_allclose(share, [1] * 6 + [0.75, 0.25] + [0] * 6, atol=1e-6)


def test_where_no_tile_is_named_one_of_1024_pixels_is_taken():
    assert plan_blend((9, 9), None, 186, 8, 0.25).tile == (1020, 1020)
    assert plan_blend((9, 9), None, 0, 8, 0.25).tile == (1024, 1024)
    assert plan_blend((9, 9), None, 700, 8, 0.25).tile == (2800, 2800)
    assert plan_blend((9, 9), DATASETS["kitti"].tile, 186, 8, 0.25).tile == (852, 1636)


def _seams(probabilities, starts, inner, axis):
    """The mean change between cells across borders of tiles, by that elsewhere."""
    cells = probabilities[::8, ::8]
    steps = np.abs(np.diff(cells, axis=axis)).sum(-1).mean(1 - axis)
    ends = {*starts, *(start + inner for start in starts)}
    across = sorted(e - 1 for e in ends if 0 < e <= len(steps))
    return steps[across].mean() / np.delete(steps, across).mean()


@pytest.mark.slow
def test_blending_leaves_no_seams_in_a_photograph(real_data):
    """A random slim network whose context module's zeros show at tiles' borders."""
    image = resize(read_pixels(real_data / "images" / "dog.jpg"), (466, 700))
    model = DilatedNet(FrontEnd(21, SLIM), ContextModule(21, KITTI, sigma=0.1))
    tile = (256 + 2 * model.margin,) * 2
    spec = dataclasses.replace(DATASETS["voc"], tile=tile)
    params = _spread(model, image, spec)
    grid = plan_blend(image.shape[:2], tile, model.margin, 8, 0.25)
    assert (len(grid.rows), len(grid.columns)) == (3, 4)
    places = {"tiles": [range(0, 88, 32)] * 2, "blend": [grid.rows, grid.columns]}
    seams = {}
    for mode, axes in places.items():
        predictor = Predictor(model, params, spec, mode=mode, resize=False)
        probabilities = predictor.probabilities(image)
        seams[mode] = [_seams(probabilities, axes[i], 32, i) for i in (0, 1)]
    assert min(seams["tiles"]) > 1.5, seams
    assert max(seams["blend"]) < 1.1, seams


def _spread(model, image, spec):
    """Initial parameters, but every class differs over the image.

    The front end's maps have mean 2 and deviation 1, the logits 0 and 2.
    """
    x = subtract_mean(reflect_pad(image, *[model.margin] * 4), spec.mean)[None]
    params = jit(model.init)(jax.random.key(1), x[:, :100, :100])["params"]
    params = jax.tree.map(np.array, params)
    run = jit(model.apply, static_argnames="method")
    maps = np.asarray(run({"params": params}, x, method="maps"))
    maps = _rescale(params["front_end"]["final"], maps, 2, 1)
    logits = np.asarray(run({"params": params}, maps, method="from_maps"))
    _rescale(params["context"]["ctx_final"], logits, 0, 2)
    return params


def _rescale(layer, maps, mean, deviation):
    """Gives a closing layer, and its maps, another mean and deviation."""
    factor = deviation / maps.std((0, 1, 2))
    shift = mean - maps.mean((0, 1, 2)) * factor
    layer["kernel"] *= factor
    layer["bias"] = layer["bias"] * factor + shift
    return maps * factor + shift


_IN_BOUNDED_MEMORY = """
import json, dataclasses, sys
import jax, jax.numpy as jnp, numpy as np
from dilax.data import DATASETS
from dilax.inference import Predictor
from dilax.models import DilatedNet, FrontEnd, Layer

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1000 * int(next(l for l in lines if l.startswith("VmHWM")).split()[1])

layers = (Layer("a", 3, 8), Layer("p", 2), Layer("b", 3, 8, 2), Layer("q", 4))
model = DilatedNet(FrontEnd(21, layers))
params = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
spec = dataclasses.replace(DATASETS["voc"], tile=None)
image = np.random.default_rng(0).integers(0, 256, (6000, 4000, 3), np.uint8)
before = peak()
rows = sum(len(b) for b in Predictor(model, params, spec, mode="blend").bands(image))
after = peak()
whole = jax.ShapeDtypeStruct((1, 6000, 4000, 3), jnp.float32)
lowered = jax.jit(model.apply).lower({"params": params}, whole)
need = lowered.compile().memory_analysis().temp_size_in_bytes
print(json.dumps({"rows": rows, "more": after - before, "whole": need}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_large_image_is_blended_in_memory_that_the_whole_would_break():
    done = subprocess.run(
        [sys.executable, "-c", _IN_BOUNDED_MEMORY], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == 6000
    assert found["more"] < 300e6 < found["whole"]
