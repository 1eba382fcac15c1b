"""Whole images and tiles; scales and mirroring; batches and bands."""

import dataclasses
import logging

import jax
import numpy as np
import pytest
from small_net import FRONT_END, NET, SIZES, SPEC, image_of, params_of, predictor_of

from dilax.data import DATASETS, resize
from dilax.inference import Predictor
from dilax.inference.cells import resize_in_bands
from dilax.inference.tiles import plan_tiles, reflected
from dilax.models import ContextLayer, ContextModule, DilatedNet, FrontEnd

# Radius 4 cells, padded with zeros in every layer.
CONTEXT = DilatedNet(
    FRONT_END, ContextModule(3, (ContextLayer("one", 1), ContextLayer("three", 3)))
)
RADIUS = 4


def _cells(predictor, image):
    """The joined probabilities at the network's own resolution."""
    [logits] = predictor.maps([image], full_tiles=True)
    return np.asarray(jax.nn.softmax(logits))


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
    image = image_of(size, 2)
    tiles, whole = (_cells(predictor_of(mode=m), image) for m in ("tiles", "whole"))
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
    image = image_of((500, 2700), 3)
    every = [
        _cells(Predictor(model, params_of(model), spec, mode=mode), image)
        for mode in ("tiles", "whole")
    ]
    assert [cells.shape for cells in every] == [(120, 474, 11), (64, 340, 11)]
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
    image = image_of((130, 250), 4)
    one, two = (
        predictor_of(CONTEXT, spec, mode=m).probabilities(image)[::8, ::8]
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


# Test-time augmentation.


def test_mirrored_predictions_are_averaged_pixel_on_pixel():
    image = image_of((70, 130), 7)
    plain = predictor_of().probabilities(image)
    other = predictor_of().probabilities(image[:, ::-1])[:, ::-1]
    both = predictor_of(mirror=True).probabilities(image)
    assert np.abs(plain - other).max() > 0.1
    np.testing.assert_allclose(both, (plain + other) / 2, atol=1e-6)
    np.testing.assert_array_equal(predictor_of(mirror=True)(image), both.argmax(-1))


@pytest.mark.parametrize("mode", ["tiles", "whole", "blend"])
@pytest.mark.parametrize("own", [1.0, 0.5])
def test_scales_are_averaged_each_resized_to_the_image(mode, own):
    image = image_of((70, 300), 8)
    scales = (0.75, 1.0, 1.25)
    spec = dataclasses.replace(SPEC, scale=own)
    each = [
        Predictor(
            NET, params_of(NET), dataclasses.replace(SPEC, scale=own * s), mode=mode
        ).probabilities(image)
        for s in scales
    ]
    together = Predictor(NET, params_of(NET), spec, mode=mode, scales=scales)
    mean = together.probabilities(image)
    np.testing.assert_allclose(mean, np.mean(each, 0), atol=1e-6)
    np.testing.assert_allclose(mean.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("size", [(300, 77), (521, 77), (1400, 231), (601, 154)])
def test_large_images_are_resized_in_bands_alike(size):
    image = image_of((601, 154), 11)
    ours, theirs = resize_in_bands(image, size), resize(image, size)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.astype(int), theirs, atol=1)
    assert (ours == theirs).mean() > 0.95


def test_a_symmetric_image_has_a_symmetric_prediction():
    half = image_of((64, 90), 9)
    image = np.concatenate([half, half[:, ::-1]], 1)
    both = predictor_of(mode="blend", mirror=True).probabilities(image)
    np.testing.assert_allclose(both, both[:, ::-1], atol=1e-6)
    alone = predictor_of(mode="blend").probabilities(image)
    assert np.abs(alone - alone[:, ::-1]).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tile"}, "mode='tile': must be one of tiles, whole, blend"),
        ({"scales": ()}, r"scales=\(\): must be"),
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
        ValueError, match=r"tile=\(23, 80\): .* 8 pixels, by at least 8"
    ):
        Predictor(NET, {}, spec, mode="blend")


# Calls, bands, compilations.


def test_images_of_one_size_are_predicted_in_one_call():
    images = np.stack([image_of((50, 90), seed) for seed in range(3)])
    alone = [predictor_of()(image) for image in images]
    for batch in (images, list(images)):
        labels = predictor_of(batch_size=2)(batch)
        assert (labels.shape, labels.dtype) == ((3, 50, 90), np.int32)
        np.testing.assert_array_equal(labels, alone)
    assert predictor_of().probabilities(images[:2]).shape == (2, 50, 90, 3)
    with pytest.raises(ValueError, match="the same size; `stream` takes any"):
        predictor_of()([images[0], images[0, :20]])


@pytest.mark.parametrize("mode", ["tiles", "whole", "blend"])
def test_bands_are_the_label_map_in_8_bits(mode):
    image = image_of((530, 300), 10)
    predictor = predictor_of(mode=mode)
    bands = list(predictor.bands(image))
    assert [band.shape for band in bands] == [(256, 300), (256, 300), (18, 300)]
    assert {band.dtype for band in bands} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(np.concatenate(bands), predictor(image))
    parts = list(predictor.bands(image, probabilities=True))
    np.testing.assert_array_equal(np.concatenate(parts), predictor.probabilities(image))


@pytest.mark.parametrize(
    "options", [{}, {"mode": "blend"}, {"mirror": True, "scales": (0.5, 1.0)}]
)
def test_images_of_all_sizes_share_two_programs(options, caplog):
    predictor = Predictor(NET, params_of(NET), SPEC, **options)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for seed, size in enumerate(SIZES):
            predictor(image_of(size, seed))
    compiled = [r for r in caplog.records if r.getMessage().startswith("Compiling")]
    assert len(compiled) == 2  # one for the tiles, one that reads the maps


def test_tiles_of_uint8_and_uint16_images_do_not_share_a_batch():
    deep = image_of((64, 64)).astype(np.uint16) * 257
    both = list(predictor_of(batch_size=2).stream([image_of((64, 64)), deep]))
    np.testing.assert_array_equal(*both)


def test_reflection_goes_on_without_end():
    for n in (1, 2, 3, 5):
        expected = np.pad(np.arange(n), (11, 17), mode="reflect")
        np.testing.assert_array_equal(reflected(np.arange(-11, n + 17), n), expected)
