"""The data layer's transforms: reflection, sizes, colours, channels."""

import jax.numpy as jnp
import numpy as np
import pytest

from dilax.data import (
    Augmentation,
    CropGeometry,
    ImageExample,
    reflect_pad,
    rescale,
    resize,
    scaled_size,
    subtract_mean,
)
from dilax.data.transforms import jitter_colours

MARGIN, STRIDE = 5, 4
GEOMETRY = CropGeometry(crop=(26, 34), margin=MARGIN, stride=STRIDE)


def _class_at(y, x):
    return (7 * y + 13 * x) % 250


def _coordinates(height, width):
    """An image whose pixels tell where they are, and a label that follows from it."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y, x, 0 * y], -1).astype(np.uint8)
    return image, _class_at(y, x).astype(np.uint8)


@pytest.mark.parametrize(
    "row, expected",
    [
        ([1, 2, 3], [1, 2, 3, 2, 1, 2, 3, 2, 1, 2]),
        ([1, 2], [1, 2, 1, 2, 1, 2, 1, 2, 1]),
        ([7], [7] * 8),
    ],
)
def test_reflection_does_not_repeat_the_edge_and_bounces(row, expected):
    assert reflect_pad(np.array([row]), 0, 0, 4, 3)[0].tolist() == expected


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6), (2, 3), (40, 30)])
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


def test_other_channels_are_reversed_and_16_bits_brought_to_255():
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


def test_resized_labels_have_no_new_ids():
    label = np.random.default_rng(0).choice([0, 7, 255], (23, 31)).astype(np.uint8)
    for size in ((50, 40), (9, 13), (1, 1)):
        result = resize(label, size)
        assert result.shape == size
        assert set(np.unique(result)) <= {0, 7, 255}
    np.testing.assert_array_equal(
        resize(label, (46, 62)), label.repeat(2, 0).repeat(2, 1)
    )


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


def test_colours_stay_at_strength_0():
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    result = jitter_colours(image, np.random.default_rng(1), 0.0)
    np.testing.assert_array_equal(result, image)


def test_brightness_varies_within_the_strength():
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = set()
    for seed in range(40):
        result = jitter_colours(grey, np.random.default_rng(seed), 0.3)
        assert len(np.unique(result)) == 1
        values.add(int(result[0, 0, 0]))
    assert 69 <= min(values) < 80
    assert 120 < max(values) <= 130


def test_colours_vary_where_it_is_asked_for_and_labels_never():
    sample = dict(zip(("image", "label"), _coordinates(16, 24), strict=True))
    plain, varied = (
        ImageExample(GEOMETRY, Augmentation(mirror=False, colour=strength))(
            sample, np.random.default_rng(3)
        )
        for strength in (0.0, 0.5)
    )
    assert (plain["image"] != varied["image"]).any()
    np.testing.assert_array_equal(plain["label"], varied["label"])
