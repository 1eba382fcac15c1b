"""Whole images, tiles and blended tiles; scales and mirroring; batches; memory."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.datasets import DATASETS, DatasetSpec, colour_map, read_pixels
from dilax.inference import Predictor
from dilax.inference.blend import plan_blend
from dilax.inference.cells import View, resize_in_bands
from dilax.inference.tiles import plan_tiles, reflected
from dilax.input import reflect_pad, resize, subtract_mean
from dilax.models import KITTI, ContextLayer, ContextModule, DilatedNet, FrontEnd, Layer
from dilax.ops import jit

# Field 24, stride 8, margin 8.
FRONT_END = FrontEnd(3, (Layer("taps", 3, 5, dilation=8), Layer("pool", 8)))
NET = DilatedNet(FRONT_END)
# Radius 4 cells, padded with zeros in every layer.
CONTEXT = DilatedNet(
    FRONT_END, ContextModule(3, (ContextLayer("one", 1), ContextLayer("three", 3)))
)
RADIUS = 4
SLIM = (
    *(Layer("conv1", 3, 8), Layer("pool1", 2), Layer("conv2", 3, 16)),
    *(Layer("pool2", 2), Layer("conv3", 3, 16), Layer("pool3", 2)),
    *(Layer("conv4", 3, 32, dilation=2), Layer("head", 1, 32)),
)
SPEC = DatasetSpec(
    "three", ("a", "b", "c"), colour_map(3), (90.0, 120.0, 150.0), tile=(80, 96)
)
SIZES = [(1, 1), (1, 7), (64, 80), (65, 81), (130, 250), (200, 91)]


def _image(size, seed=0):
    """Blotches of colour under noise."""
    rng = np.random.default_rng(seed)
    blotches = rng.integers(0, 256, (size[0] // 20 + 1, size[1] // 20 + 1, 3))
    image = np.kron(blotches, np.ones((20, 20, 1)))[: size[0], : size[1]]
    return np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)


@functools.cache
def _params(model, seed=0):
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
def _predictor(model=NET, spec=SPEC, batch_size=1, **options):
    return Predictor(model, _params(model), spec, batch_size, **options)


def _cells(predictor, image):
    """The joined probabilities at the network's own resolution."""
    seen = predictor._cell_bands(
        [image], View(1.0), predictor._run_tiles, predictor._plan
    )
    return np.concatenate(list(next(seen)))


# Where the protocol makes tiles and whole images equal.


def _windows(n, tile, margin, field, stride=8):
    """What each joined cell of an axis of n pixels sees of it: a list of positions."""
    grid = plan_tiles((n, 1), (tile, 2 * margin + 1) if tile else None, margin, stride)
    positions = np.arange(n)[:, None, None]
    for part in grid.cut(positions):
        seen = part[:, 0, 0]
        for start in range(0, len(seen) - 2 * margin, stride):
            yield seen[start : start + field].tolist()


def _alike(n, tile, margin, field):
    """(cell in tiles, cell in the whole image) pairs that see the same."""
    whole = {}
    for i, window in enumerate(_windows(n, None, margin, field)):
        whole.setdefault(tuple(window), i)
    pairs = [
        (j, whole[tuple(window)])
        for j, window in enumerate(_windows(n, tile, margin, field))
        if tuple(window) in whole
    ]
    return np.array(pairs).T


@pytest.mark.parametrize("size", SIZES)
def test_cells_that_see_the_same_are_the_same_in_tiles_and_whole(size):
    image = _image(size, 2)
    tiles, whole = (_cells(_predictor(mode=m), image) for m in ("tiles", "whole"))
    (ours, theirs), (left, right) = (
        _alike(n, tile, 8, 24) for n, tile in zip(size, SPEC.tile, strict=True)
    )
    assert {*range(-(-size[0] // 8))} <= {*ours}  # all of the image's, here
    assert {*range(-(-size[1] // 8))} <= {*left}
    np.testing.assert_allclose(
        tiles[np.ix_(ours, left)], whole[np.ix_(theirs, right)], atol=1e-6
    )


def test_the_odd_tile_of_kitti_gives_the_cells_of_the_whole_image_where_they_align():
    """The second tile begins at pixel 1268, between two cells of the whole image.

    The third begins at 2536, a cell's. The last cell of a tile sees 4 pixels less.
    """
    spec = DATASETS["kitti"]
    model = DilatedNet(FrontEnd(11, width_multiplier=1 / 32))
    image = _image((500, 2700), 3)
    every = [
        _cells(Predictor(model, _params(model), spec, mode=mode), image)
        for mode in ("tiles", "whole")
    ]
    assert [cells.shape for cells in every] == [(120, 477, 11), (64, 340, 11)]
    (ours, theirs), (left, right) = (
        _alike(n, tile, 186, 380)
        for n, tile in zip(image.shape, spec.tile)  # noqa: B905
    )
    np.testing.assert_array_equal(ours[:63], range(63))
    first, third = left[left < 159], left[left >= 318]
    np.testing.assert_array_equal(first, range(158))
    np.testing.assert_array_equal(third[:21], 318 + np.arange(21))
    assert not ((left >= 159) & (left < 318)).any()
    one, two = every[0][np.ix_(ours, left)], every[1][np.ix_(theirs, right)]
    assert np.median(two.std((0, 1))) > 1e-3
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_with_context_tiles_and_whole_agree_away_from_the_borders_of_tiles():
    spec = dataclasses.replace(SPEC, tile=(112, 128))
    image = _image((130, 250), 4)
    one, two = (
        _cells(_predictor(CONTEXT, spec, mode=m), image)[:17, :32]
        for m in ("tiles", "whole")
    )
    inner = [(n - 16) // 8 for n in spec.tile]
    near = [
        np.array([_to_border(i, n, cells) < RADIUS for i in range(cells)])
        for n, cells in zip(inner, (17, 32), strict=True)
    ]
    away = ~near[0][:, None] & ~near[1]
    assert away.sum() > 100
    np.testing.assert_allclose(one[away], two[away], atol=1e-6)
    assert np.abs(one - two)[~away].max() > 0.01


def _to_border(cell, inner, count):
    """Cells between a cell and the nearest border between two tiles, or the filling."""
    own = cell % inner
    before = own if cell >= inner else inner
    return min(before, inner - 1 - own, count - 1 - cell)


# Blending.


@pytest.mark.parametrize("size", SIZES[2:])
def test_blended_tiles_of_a_front_end_are_the_whole_image(size):
    """Whatever overlaps sees the same; the last cell begun is filled otherwise."""
    image = _image(size, 5)
    one, two = (
        _predictor(mode=mode).probabilities(image) for mode in ("blend", "whole")
    )
    rows, columns = (8 * (n // 8 - 1) + 1 for n in size)
    assert two.std((0, 1)).min() > 0.05
    np.testing.assert_allclose(one[:rows, :columns], two[:rows, :columns], atol=1e-5)


def test_a_network_that_upsamples_itself_is_blended_before_it_does():
    model = DilatedNet(FRONT_END, upsample=True)
    image = _image((130, 250), 6)
    one, two = (
        _predictor(model, mode=mode).probabilities(image) for mode in ("blend", "whole")
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
        probabilities = Predictor(model, params, spec, mode=mode).probabilities(image)
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


# Test-time augmentation.


def test_mirrored_predictions_are_averaged_pixel_on_pixel():
    image = _image((70, 130), 7)
    plain = _predictor().probabilities(image)
    other = _predictor().probabilities(image[:, ::-1])[:, ::-1]
    both = _predictor(mirror=True).probabilities(image)
    assert np.abs(plain - other).max() > 0.1
    np.testing.assert_allclose(both, (plain + other) / 2, atol=1e-6)
    np.testing.assert_array_equal(_predictor(mirror=True)(image), both.argmax(-1))


@pytest.mark.parametrize("mode", ["tiles", "whole", "blend"])
@pytest.mark.parametrize("own", [1.0, 0.5])
def test_scales_are_averaged_each_resized_to_the_image(mode, own):
    image = _image((70, 300), 8)
    scales = (0.75, 1.0, 1.25)
    spec = dataclasses.replace(SPEC, scale=own)
    each = [
        Predictor(
            NET, _params(NET), dataclasses.replace(SPEC, scale=own * s), mode=mode
        ).probabilities(image)
        for s in scales
    ]
    together = Predictor(NET, _params(NET), spec, mode=mode, scales=scales)
    mean = together.probabilities(image)
    np.testing.assert_allclose(mean, np.mean(each, 0), atol=1e-6)
    np.testing.assert_allclose(mean.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("size", [(300, 77), (521, 77), (1400, 231), (601, 154)])
def test_large_images_are_resized_in_bands_alike(size):
    image = _image((601, 154), 11)
    ours, theirs = resize_in_bands(image, size), resize(image, size)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.astype(int), theirs, atol=1)
    assert (ours == theirs).mean() > 0.95


def test_a_symmetric_image_has_a_symmetric_prediction():
    half = _image((64, 90), 9)
    image = np.concatenate([half, half[:, ::-1]], 1)
    both = _predictor(mode="blend", mirror=True).probabilities(image)
    np.testing.assert_allclose(both, both[:, ::-1], atol=1e-6)
    alone = _predictor(mode="blend").probabilities(image)
    assert np.abs(alone - alone[:, ::-1]).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tile"}, "mode='tile': must be one of tiles, whole, blend"),
        ({"scales": ()}, r"scales=\(\): must be positive"),
        ({"scales": (1.0, 0.0)}, r"scales=\(1.0, 0.0\)"),
        ({"mode": "blend", "overlap": 0.6}, "overlap=0.6: must be between 0 and 0.5"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Predictor(NET, {}, SPEC, **options)


def test_a_tile_to_blend_holds_a_cell_beside_its_margins():
    spec = dataclasses.replace(SPEC, tile=(23, 80))
    with pytest.raises(
        ValueError, match=r"tile=\(23, 80\): .* 8 pixels, by 8 at least"
    ):
        Predictor(NET, {}, spec, mode="blend")


# Calls, bands, compilations.


def test_images_of_one_size_are_predicted_in_one_call():
    images = np.stack([_image((50, 90), seed) for seed in range(3)])
    alone = [_predictor()(image) for image in images]
    for batch in (images, list(images)):
        labels = _predictor(batch_size=2)(batch)
        assert (labels.shape, labels.dtype) == ((3, 50, 90), np.int32)
        np.testing.assert_array_equal(labels, alone)
    assert _predictor().probabilities(images[:2]).shape == (2, 50, 90, 3)
    with pytest.raises(ValueError, match="of one size; `stream` takes any"):
        _predictor()([images[0], images[0, :20]])


@pytest.mark.parametrize("mode", ["tiles", "whole", "blend"])
def test_bands_are_the_label_map_in_8_bits(mode):
    image = _image((530, 300), 10)
    predictor = _predictor(mode=mode)
    bands = list(predictor.bands(image))
    assert [band.shape for band in bands] == [(256, 300), (256, 300), (18, 300)]
    assert {band.dtype for band in bands} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(np.concatenate(bands), predictor(image))
    parts = list(predictor.bands(image, probabilities=True))
    np.testing.assert_array_equal(np.concatenate(parts), predictor.probabilities(image))


@pytest.mark.parametrize(
    "options", [{}, {"mode": "blend"}, {"mirror": True, "scales": (0.5, 1.0)}]
)
def test_images_of_all_sizes_share_one_program(options):
    predictor = Predictor(NET, _params(NET), SPEC, **options)
    for seed, size in enumerate(SIZES):
        predictor(_image(size, seed))
    assert predictor._run_tiles._cache_size() == 1
    assert predictor._read_labels._cache_size() == 1


def test_tiles_of_uint8_and_uint16_images_do_not_share_a_batch():
    deep = _image((64, 64)).astype(np.uint16) * 257
    both = list(_predictor(batch_size=2).stream([_image((64, 64)), deep]))
    np.testing.assert_array_equal(*both)


def test_reflection_goes_on_without_end():
    for n in (1, 2, 3, 5):
        expected = np.pad(np.arange(n), (11, 17), mode="reflect")
        np.testing.assert_array_equal(reflected(np.arange(-11, n + 17), n), expected)


_IN_BOUNDED_MEMORY = """
import json, dataclasses, sys
import jax, jax.numpy as jnp, numpy as np
from dilax.datasets import DATASETS
from dilax.inference import Predictor
from dilax.models import DilatedNet, FrontEnd, Layer

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1000 * int(next(l for l in lines if l.startswith("VmHWM")).split()[1])

layers = (Layer("a", 3, 8), Layer("p", 2), Layer("b", 3, 8, 2), Layer("q", 4))
model = DilatedNet(FrontEnd(21, layers))
params = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
spec = dataclasses.replace(DATASETS["voc"], tile=None)
image = np.random.default_rng(0).integers(0, 256, (4000, 4000, 3), np.uint8)
before = peak()
rows = sum(len(b) for b in Predictor(model, params, spec, mode="blend").bands(image))
after = peak()
whole = jax.ShapeDtypeStruct((1, 4000, 4000, 3), jnp.uint8)
run = Predictor(model, params, spec, mode="whole")._run_tiles
need = run.lower(params, whole).compile().memory_analysis().temp_size_in_bytes
print(json.dumps({"rows": rows, "more": after - before, "whole": need}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_large_image_is_blended_in_memory_that_the_whole_would_break():
    done = subprocess.run(
        [sys.executable, "-c", _IN_BOUNDED_MEMORY], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == 4000
    assert found["more"] < 300e6 < found["whole"]
