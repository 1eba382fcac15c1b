"""Prediction: the released protocol, from images to label maps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_net import image_of, params_of

from dilax.data import DatasetSpec, colour_map, resize, scaled_size
from dilax.inference import Predictor, cut_tiles, plan_tiles
from dilax.models import ContextModule, DilatedNet, FrontEnd, Layer
from dilax.models.context import ContextLayer
from dilax.runtime import jit

# Field 24, stride 8, margin 8: one 3×3 layer with its taps 8 apart, and a pool.
TAPS = 8
FRONT_END = FrontEnd(3, (Layer("taps", 3, 5, dilation=TAPS), Layer("pool", 8)))
NET = DilatedNet(FRONT_END)
SPEC = DatasetSpec(
    "three", ("a", "b", "c"), colour_map(3), (90.0, 120.0, 150.0), tile=(80, 80)
)
SIZES = [(1, 1), (1, 7), (13, 5), (64, 64), (65, 130)]


@functools.cache
def _predictor(model=NET, spec=SPEC, batch_size=1):
    return Predictor(model, params_of(model), spec, batch_size)


# The released protocol, written a second time.


def _reflected(start, stop, n):
    """Pixels start..stop−1 of an axis of n pixels that is reflected without end."""
    at = np.arange(start, stop)
    return np.abs((at + n - 1) % max(2 * n - 2, 1) - (n - 1))


def _released_tiles(image, tile, margin):
    """Rows of tiles: pad, step by the tile without its margins, fill by reflection."""
    height, width = image.shape[:2]
    rows = _reflected(-margin, height + margin, height)
    columns = _reflected(-margin, width + margin, width)
    padded = image[np.ix_(rows, columns)]

    def at(y, x):
        part = padded[y : y + tile[0], x : x + tile[1]]
        filled = [
            _reflected(0, *sizes) for sizes in zip(tile, part.shape, strict=False)
        ]
        return part[np.ix_(*filled)]

    steps = [n - 2 * margin for n in tile]
    return [
        [at(y, x) for x in range(0, width, steps[1])]
        for y in range(0, height, steps[0])
    ]


def _network(tile):
    """Class probabilities of a tile's cells, in plain numpy."""
    layers = params_of(NET)["front_end"]
    x = tile[..., ::-1] - np.array(SPEC.mean)
    side = [n - 2 * TAPS for n in x.shape[:2]]
    total = layers["taps"]["bias"] + sum(
        x[TAPS * i :, TAPS * j :][: side[0], : side[1]] @ layers["taps"]["kernel"][i, j]
        for i in range(3)
        for j in range(3)
    )
    x = np.maximum(total, 0).reshape(side[0] // 8, 8, side[1] // 8, 8, -1).max((1, 3))
    logits = x @ layers["final"]["kernel"][0, 0] + layers["final"]["bias"]
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def _interpolated(maps, positions):
    """Maps read at (row, column) positions, linearly; clamped at the last cell."""
    for axis, at in enumerate(positions):
        cells = np.arange(maps.shape[axis])
        maps = np.apply_along_axis(
            lambda v, a, c: np.interp(a, c, v), axis, maps, at, cells
        )
    return maps


def _released_probabilities(image):
    rows = _released_tiles(image, SPEC.tile, NET.margin)
    maps = np.concatenate([np.concatenate(list(map(_network, r)), 1) for r in rows])
    return _interpolated(maps, [np.arange(n) / 8 for n in image.shape[:2]])


# Tiles.


@pytest.mark.parametrize(
    "size, tile, margin, rows, columns",
    [
        ((375, 500), (900, 900), 186, 1, 1),
        ((528, 529), (900, 900), 186, 1, 2),
        ((360, 480), (900, 1100), 186, 1, 1),
        ((1024, 2048), (1396, 1396), 186, 1, 2),
        ((1, 1), (900, 900), 186, 1, 1),
        ((129, 64), (100, 96), 16, 2, 1),
    ],
)
def test_tiles_cover_the_image_at_their_inner_size(size, tile, margin, rows, columns):
    grid = plan_tiles(size, tile, margin, 8)
    assert (grid.tile, grid.rows, grid.columns) == (tile, rows, columns)
    assert len(grid) == rows * columns


@pytest.mark.parametrize(
    "size, inner", [((1, 32), (32, 32)), ((33, 64), (64, 64)), ((65, 130), (96, 160))]
)
def test_without_a_tile_the_image_is_one_of_whole_cells(size, inner):
    grid = plan_tiles(size, None, 186, 8)
    assert grid.tile == tuple(n + 372 for n in inner)
    assert len(grid) == 1


def test_tiles_no_larger_than_their_margins_are_refused():
    message = r"tile=\(372, 900\): must be larger than twice the margin of 186"
    with pytest.raises(ValueError, match=message):
        plan_tiles((10, 10), (372, 900), 186, 8)
    with pytest.raises(ValueError, match=r"tile=\(16, 80\)"):
        Predictor(NET, {}, dataclasses.replace(SPEC, tile=(16, 80)))


@pytest.mark.parametrize(
    "size, tile, margin",
    [(size, (80, 96), 8) for size in SIZES]
    + [(size, (500, 460), 186) for size in [(1, 1), (2, 3), (97, 300)]]
    + [((90, 70), (44, 40), 0)],
)
def test_tiles_are_those_of_the_release(size, tile, margin):
    image = image_of(size)
    expected = np.concatenate(_released_tiles(image, tile, margin))
    tiles = cut_tiles(image, plan_tiles(size, tile, margin, 8))
    np.testing.assert_array_equal(tiles, expected)


def test_tiles_are_joined_side_by_side():
    image = image_of((90, 70))
    grid = plan_tiles((90, 70), (40, 32), 0, 8)
    joined = np.concatenate([*grid.bands(iter(cut_tiles(image, grid)))])
    assert joined.shape == (120, 96, 3)
    np.testing.assert_array_equal(joined[:90, :70], image)


# Predictions.


@pytest.mark.parametrize("size", SIZES)
def test_probabilities_are_those_of_the_released_protocol(size):
    image = image_of(size)
    ours, theirs = _predictor().probabilities(image), _released_probabilities(image)
    assert ours.shape == (*size, 3)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert size != SIZES[-1] or theirs.std((0, 1)).min() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_the_label_is_the_most_probable_class(size):
    image = image_of(size, 1)
    probabilities, labels = _predictor().probabilities(image), _predictor()(image)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert (labels.shape, labels.dtype) == (size, np.int32)
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))


def test_every_class_is_predicted_somewhere():
    assert set(np.unique(_predictor()(image_of((65, 130))))) == {0, 1, 2}


@pytest.mark.parametrize("size", [(64, 128), (65, 130)])
def test_tiles_and_the_whole_image_agree_where_neither_shows_its_filling(size):
    """Pixels past the start of the last cell are interpolated towards the filling."""
    image = image_of(size, 2)
    whole = _predictor(spec=dataclasses.replace(SPEC, tile=None))
    rows, columns = (8 * (-(-n // 8) - 1) + 1 for n in size)
    one, two = (p.probabilities(image)[:rows, :columns] for p in (_predictor(), whole))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_network_that_upsamples_itself_is_not_upsampled_again():
    model = DilatedNet(FRONT_END, upsample=True)
    image = image_of((40, 64))
    [[tile]] = _released_tiles(image, SPEC.tile, 8)
    x = jnp.asarray(tile[None, ..., ::-1] - np.array(SPEC.mean, np.float32))
    expected = jax.nn.softmax(jit(model.apply)({"params": params_of(model)}, x))[0]
    ours = _predictor(model).probabilities(image)
    assert expected.shape == (64, 64, 3)
    np.testing.assert_allclose(ours, expected[:40], atol=1e-5)
    assert np.abs(ours - _predictor().probabilities(image)).max() > 0.1


@pytest.mark.parametrize("scale", [0.5, 1.5])
@pytest.mark.parametrize("size", [(1, 1), (51, 70), (128, 90)])
def test_predictions_at_another_scale_are_resized_to_the_image(scale, size):
    image = image_of(size)
    inner = scaled_size(size, scale)
    small = _predictor().probabilities(resize(image, inner))
    positions = [
        (np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, inner, strict=True)
    ]
    predictor = _predictor(spec=dataclasses.replace(SPEC, scale=scale))
    expected = _interpolated(small, positions)
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=1e-5)
    np.testing.assert_array_equal(predictor(image), expected.argmax(-1))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_maps_have_one_cell_for_8_pixels_begun(scale):
    predictor = _predictor(spec=dataclasses.replace(SPEC, scale=scale))
    images = [image_of(size) for size in SIZES]
    for size, maps in zip(SIZES, predictor.maps(images), strict=True):
        inner = scaled_size(size, scale)
        assert maps.shape == (*(-(-n // 8) for n in inner), 3)


def test_maps_are_the_logits_of_the_front_end():
    image = image_of((65, 130))
    [maps] = _predictor().maps([image])
    cells = _predictor().probabilities(image)[::8, ::8]
    np.testing.assert_allclose(jax.nn.softmax(maps), cells, atol=1e-5)


def test_maps_are_what_the_context_module_sees():
    context = ContextModule(3, (ContextLayer("one", 1), ContextLayer("two", 2)))
    model = DilatedNet(FRONT_END, context)
    predictor = _predictor(model, dataclasses.replace(SPEC, tile=None))
    image = image_of((64, 96))
    [maps] = predictor.maps([image])
    assert maps.shape == (8, 12, 3)
    follow = jit(functools.partial(model.apply, method="from_maps"))
    logits = follow({"params": params_of(model)}, maps[None])
    cells = np.asarray(jax.nn.softmax(logits))[0]
    np.testing.assert_allclose(
        predictor.probabilities(image)[::8, ::8], cells, atol=1e-5
    )
    assert np.abs(cells - np.asarray(jax.nn.softmax(maps))).max() > 0.1


@pytest.mark.parametrize("tile", [(80, 80), None])
def test_the_batch_size_changes_no_prediction(tile):
    spec = dataclasses.replace(SPEC, tile=tile)
    sizes = [(1, 7), (64, 64), (65, 130)]
    images = [image_of(size, seed) for seed, size in enumerate(sizes)]
    alone, together = (
        list(_predictor(NET, spec, batch_size).stream(images)) for batch_size in (1, 3)
    )
    assert [a.shape for a in alone] == sizes
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, two)


def test_other_parameters_give_other_predictions_from_the_same_program():
    image, other = image_of((64, 64)), params_of(NET, seed=1)
    swapped = _predictor().with_params(other).probabilities(image)
    fresh = Predictor(NET, other, SPEC).probabilities(image)
    np.testing.assert_array_equal(swapped, fresh)
    assert np.abs(swapped - _predictor().probabilities(image)).max() > 0.1


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((6, 7, 5), np.uint8),
        ((6, 7, 3), np.float32),
        ((0, 7, 3), np.uint8),
    ],
)
def test_what_is_not_an_image_is_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"\(h, w, 3\) uint8 RGB, not \(\d, 7"):
        next(_predictor().stream([np.zeros(shape, dtype)]))


@pytest.mark.parametrize(
    "image, remedy",
    [
        (np.zeros((3, 6, 7), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.full((6, 7, 3), 0.5), r"\(255 \* image\)\.astype\(np\.uint8\)"),
        (object(), r"not \(\) object"),
        ("nowhere.jpg", r"nowhere\.jpg: cannot be read"),
        ([["a", "b"]], "uint8 RGB, not"),
    ],
)
def test_what_is_nearly_an_image_is_refused_with_the_remedy(image, remedy):
    with pytest.raises(ValueError, match=remedy):
        _predictor()(image)


def test_images_of_many_kinds_are_predicted_alike(tmp_path):
    torch = pytest.importorskip("torch")
    predictor, image = _predictor(), image_of((20, 30))
    expected, grey = predictor(image), image[..., 0]
    Image.fromarray(image).save(tmp_path / "a.png")
    for other in (
        jnp.asarray(image),
        torch.tensor(image),
        image.tolist(),
        Image.fromarray(image),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        np.dstack([image, np.full((20, 30), 255, np.uint8)]),
        image.astype(np.int64),
    ):
        np.testing.assert_array_equal(predictor(other), expected)
    np.testing.assert_array_equal(predictor([tmp_path / "a.png"] * 2)[1], expected)
    np.testing.assert_array_equal(predictor(jnp.asarray(image)[None])[0], expected)
    whole = predictor(np.dstack([grey] * 3))
    for other in (grey, grey[..., None], Image.fromarray(grey), grey.tolist()):
        np.testing.assert_array_equal(predictor(other), whole)
