"""The data layer: labels that belong to their pixels; reflection, sizes, colours."""

import collections
import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from dilax.data import (
    Augmentation,
    CropGeometry,
    ImageExample,
    reflect_pad,
    resize,
    scaled_size,
    subtract_mean,
)
from dilax.data.transforms import (
    MapExample,
    check_crop,
    jitter_colours,
    reflected,
    rescale,
)

MARGIN, STRIDE = 5, 4
GEOMETRY = CropGeometry(crop=(26, 34), margin=MARGIN, stride=STRIDE)
SIZES = [(40, 50), (16, 24), (17, 9), (9, 50), (3, 30), (2, 2), (1, 1), (1, 60)]


def _class_at(y, x):
    return (7 * y + 13 * x) % 250


def _coordinates(height, width):
    """A sample whose pixels are their coordinates, and a label that follows from it."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y, x, 0 * y], -1).astype(np.uint8)
    return {"image": image, "label": _class_at(y, x).astype(np.uint8)}


def _examples(example, sample, count):
    return [example(sample, np.random.default_rng(seed)) for seed in range(count)]


def _unchanged(geometry=GEOMETRY):
    return ImageExample(geometry, Augmentation(mirror=False))


# Crops.


@pytest.mark.parametrize("size", SIZES)
def test_a_label_is_that_of_the_pixel_below_its_cell(size):
    flips = set()
    example = ImageExample(GEOMETRY, Augmentation(mirror=True))
    for crop in _examples(example, _coordinates(*size), 24):
        assert crop["image"].shape == (26, 34, 3)
        below = crop["image"][MARGIN:-MARGIN:STRIDE, MARGIN:-MARGIN:STRIDE].astype(int)
        valid = crop["label"] != 255
        np.testing.assert_array_equal(
            crop["label"][valid], _class_at(below[..., 0], below[..., 1])[valid]
        )
        inside = [min(4, -(-size[0] // STRIDE)), min(6, -(-size[1] // STRIDE))]
        assert valid[: inside[0], : inside[1]].all()
        assert valid.sum() == np.prod(inside)
        flips.add(np.sign(int(below[0, 1, 1]) - below[0, 0, 1]))
    assert size[1] < 8 or flips == {-1, 1}


@pytest.mark.parametrize("size", SIZES)
def test_a_crop_shows_the_image_and_its_reflection(size):
    sample = _coordinates(*size)
    for crop in _examples(_unchanged(), sample, 8):
        top, left = (int(v) - MARGIN for v in crop["image"][MARGIN, MARGIN, :2])
        rows = reflected(top + np.arange(26), size[0])
        columns = reflected(left + np.arange(34), size[1])
        expected = sample["image"][np.ix_(rows, columns)]
        np.testing.assert_array_equal(crop["image"], expected)


def test_every_place_within_the_padding_is_drawn_about_equally_often():
    crops = _examples(_unchanged(), _coordinates(16 + 2, 24 + 3), 150)
    places = collections.Counter(
        tuple(crop["image"][MARGIN, MARGIN, :2].tolist()) for crop in crops
    )
    assert set(places) == set(itertools.product(range(3), range(4)))
    assert min(places.values()) > 4


def test_edge_crops_are_at_either_end_of_the_image():
    geometry = dataclasses.replace(GEOMETRY, edge_crops=True)
    crops = _examples(_unchanged(geometry), _coordinates(16, 60), 20)
    lefts = {int(crop["image"][MARGIN, MARGIN, 1]) for crop in crops}
    assert lefts == {0, 60 - geometry.inner[1]}


def test_labels_at_stride_1_cover_the_inside_of_the_crop():
    geometry = CropGeometry((26, 34), MARGIN, 1)
    [crop] = _examples(_unchanged(geometry), _coordinates(40, 50), 1)
    inner = crop["image"][MARGIN:-MARGIN, MARGIN:-MARGIN].astype(int)
    expected = _class_at(inner[..., 0], inner[..., 1])
    np.testing.assert_array_equal(crop["label"], expected)


def test_image_and_label_are_resized_together():
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:50, 30:] = 255
    sample = {"image": image, "label": image[..., 0] // 255}
    example = ImageExample(GEOMETRY, Augmentation(scales=(0.5, 2.0)), scale=0.7)
    shares = []
    for crop in _examples(example, sample, 30):
        below = crop["image"][MARGIN:-MARGIN:STRIDE, MARGIN:-MARGIN:STRIDE, 0]
        pure = np.isin(below, (0, 255)) & (crop["label"] != 255)
        np.testing.assert_array_equal(crop["label"][pure], below[pure] // 255)
        shares.append(crop["label"][crop["label"] != 255].mean())
    assert min(shares) < 0.4 < 0.6 < max(shares)


def test_the_crops_of_the_paper_fit():
    for crop in (500, 628, 852, 884, 900, 1396, 380):
        check_crop(crop, 186, 8, "--crop")


@pytest.mark.parametrize(
    "crop, lower, upper",
    [(501, 500, 508), (507, 500, 508), (372, 380, 388), (9, 380, 388)],
)
def test_a_crop_that_does_not_fit_names_crops_that_do(crop, lower, upper):
    message = rf"^--crop={crop}: .* {lower} and {upper}$"
    with pytest.raises(ValueError, match=message):
        check_crop(crop, 186, 8, "--crop")
    check_crop(lower, 186, 8, "--crop")
    check_crop(upper, 186, 8, "--crop")


# Stored maps.


def _maps(height, width):
    """Maps whose cells are their coordinates + 1, and a label that is its columns."""
    rows, columns = -(-height // 8), -(-width // 8)
    maps = np.stack(np.mgrid[:rows, :columns], -1).astype(np.float32) + 1
    label = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    return {"image": maps, "label": label}


@pytest.mark.parametrize("size", [(40, 64), (37, 61), (8, 100), (64, 57), (5, 3)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_cells_of_stored_maps_keep_their_pixels(size, mirrored):
    example = MapExample((4, 6), 8, 1, 255, Augmentation(mirror=mirrored))
    flips = set()
    for crop in _examples(example, _maps(*size), 20):
        assert crop["image"].shape == (4, 6, 2)
        columns = crop["image"][0, :, 1].astype(int) - 1
        row = crop["label"][0]
        for cell, pixels in zip(columns, row.reshape(6, 8), strict=True):
            own = [x for x in range(8 * cell, 8 * cell + 8) if 0 <= x < size[1]]
            assert sorted(set(pixels) - {255}) == own
        valid = row[row != 255]
        flips.add(bool(valid[0] > valid[-1]))
    assert flips == {False, mirrored}


@pytest.mark.parametrize("width", [64, 61])
def test_a_mirrored_cell_keeps_the_label_of_its_own_first_pixel(width):
    example = MapExample((4, 6), 8, 8, 255, Augmentation(mirror=True))
    flipped = 0
    for crop in _examples(example, _maps(40, width), 20):
        columns = crop["image"][..., 1].astype(int) - 1
        np.testing.assert_array_equal(crop["label"], 8 * columns)
        flipped += columns[0, 0] > columns[0, -1]
    assert 0 < flipped < 20


def test_smaller_maps_are_padded_with_zeros_and_ignored_labels():
    sample = _maps(13, 21)
    [crop] = _examples(MapExample((4, 6), 8, 8, 99, Augmentation(False)), sample, 1)
    expected = np.zeros((4, 6, 2), np.float32)
    expected[:2, :3] = sample["image"]
    np.testing.assert_array_equal(crop["image"], expected)
    assert crop["label"].tolist() == [[0, 8, 16, 99, 99, 99]] * 2 + [[99] * 6] * 2


def test_every_crop_of_the_maps_is_drawn():
    example = MapExample((4, 6), 8, 8, 255, Augmentation(False))
    crops = _examples(example, _maps(8 * 5, 8 * 8), 80)
    places = {tuple(crop["image"][0, 0].astype(int).tolist()) for crop in crops}
    assert places == set(itertools.product(range(1, 3), range(1, 4)))


# Reflection, sizes, colours, channels.


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_reflected_positions_are_those_of_numpy(n):
    expected = np.pad(np.arange(n), (11, 17), mode="reflect")
    np.testing.assert_array_equal(reflected(np.arange(-11, n + 17), n), expected)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6), (40, 30)])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (3, 1, 2, 5), (20, 31, 7, 64)])
def test_reflection_is_that_of_opencv(size, pads):
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = cv2.copyMakeBorder(image, *pads, cv2.BORDER_REFLECT_101)
    np.testing.assert_array_equal(reflect_pad(image, *pads), theirs)


@pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])
def test_the_mean_is_subtracted_from_bgr(array):
    result = subtract_mean(array([[[10, 20, 30]]], np.uint8), (1.0, 2.0, 13.5))
    assert result.dtype == np.float32
    assert np.asarray(result).tolist() == [[[29.0, 18.0, -3.5]]]


def test_other_channels_are_reversed_and_16_bits_scaled():
    image = np.array([[[0, 257, 65535, 514]]], np.uint16)
    result = subtract_mean(image, (0.5, 5.0, 0.0, 1.0))
    np.testing.assert_allclose(result, [[[1.5, 250.0, 1.0, -1.0]]], atol=1e-5)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_images_of_any_channels_are_resized_channel_by_channel(kind, channels):
    top = np.iinfo(kind).max
    image = np.linspace(0, top, 8 * channels).reshape(2, 4, channels).astype(kind)
    result = resize(image, (4, 8))
    assert result.shape == (4, 8, channels)
    assert result.dtype == kind
    for c in range(channels):
        rgb = np.repeat(image[..., c : c + 1] // (top // 255), 3, -1).astype(np.uint8)
        expected = resize(rgb, (4, 8))[..., 0].astype(int)
        np.testing.assert_allclose(result[..., c] // (top // 255), expected, atol=1)


def test_resized_labels_have_no_new_ids():
    label = np.random.default_rng(0).choice([0, 7, 255], (23, 31)).astype(np.uint8)
    for size in ((50, 40), (9, 13), (1, 1)):
        result = resize(label, size)
        assert result.shape == size
        assert set(np.unique(result)) <= {0, 7, 255}
    doubled = label.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(resize(label, (46, 62)), doubled)


def test_resized_images_are_interpolated_between_pixel_centres():
    image = np.tile(np.array([[[0], [100]]], np.uint8), (1, 1, 3))
    assert resize(image, (1, 4))[0, :, 0].tolist() == [0, 25, 75, 100]
    assert resize(image, (1, 2)) is image


@pytest.mark.parametrize(
    "shape, scale, size",
    [((360, 480, 3), 0.5, (180, 240)), ((5, 3), 0.01, (1, 1)), ((3, 7), 2.0, (6, 14))],
)
def test_scaled_sizes_are_rounded_and_never_0(shape, scale, size):
    assert scaled_size(shape, scale) == size
    image, label = np.zeros((*shape[:2], 3), np.uint8), np.zeros(shape[:2], np.uint8)
    assert [a.shape[:2] for a in rescale(image, label, scale)] == [size] * 2


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_brightness_and_contrast_vary_for_any_channels(kind):
    top = int(np.iinfo(kind).max)
    image = np.array([top // 4, top // 2], kind).reshape(1, 2, 1).repeat(4, 2)
    means, spans = [], []
    for seed in range(40):
        result = jitter_colours(image, np.random.default_rng(seed), 0.3) / top
        means.append(result.mean())
        spans.append(np.ptp(result) / result.mean())
    assert 0.25 < min(means) < 0.3 < 0.45 < max(means) < 0.5
    assert 0.45 < min(spans) < 0.55 < 0.75 < max(spans) < 0.9


def test_brightness_varies_within_the_strength_and_not_at_0():
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = set()
    for seed in range(40):
        result = jitter_colours(grey, np.random.default_rng(seed), 0.3)
        assert len(np.unique(result)) == 1
        values.add(int(result[0, 0, 0]))
    assert 69 <= min(values) < 80
    assert 120 < max(values) <= 130
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    result = jitter_colours(image, np.random.default_rng(1), 0.0)
    np.testing.assert_array_equal(result, image)


def test_colours_vary_on_demand_and_labels_never():
    plain, varied = (
        ImageExample(GEOMETRY, Augmentation(mirror=False, colour=strength))(
            _coordinates(16, 24), np.random.default_rng(3)
        )
        for strength in (0.0, 0.5)
    )
    assert (plain["image"] != varied["image"]).any()
    np.testing.assert_array_equal(plain["label"], varied["label"])
