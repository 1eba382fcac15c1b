"""The data layer: labels that belong to their pixels, batches that can be resumed."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from dilax.data import (
    Augmentation,
    CropGeometry,
    ImageExample,
    MapExample,
    Reading,
    check_crop,
    in_order,
    training_batches,
)
from dilax.data.transforms import crop_maps, cut_crop, draw_place

MARGIN, STRIDE = 5, 4
GEOMETRY = CropGeometry(crop=(26, 34), margin=MARGIN, stride=STRIDE)
SIZES = [(40, 50), (16, 24), (17, 9), (9, 50), (3, 30), (2, 2), (1, 1), (1, 60)]


def _reflected(at, n):
    """Where index `at` of an endlessly reflected axis of n pixels comes from."""
    return int(abs((at + n - 1) % max(2 * n - 2, 1) - (n - 1)))


def _class_at(y, x):
    return (7 * y + 13 * x) % 250


def _coordinates(height, width):
    """An image whose pixels tell where they are, and a label that follows from it."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y, x, 0 * y], -1).astype(np.uint8)
    return image, _class_at(y, x).astype(np.uint8)


def _sample(seed, size=(21, 30)):
    image, label = _coordinates(*size)
    image[..., 2] = seed
    return {"image": image, "label": label + seed, "id": str(seed)}


def random_crop(image, label, rng, geometry):
    return cut_crop(image, label, draw_place(label.shape, rng, geometry), geometry)


def _examples(example, sample, count):
    return [example(sample, np.random.default_rng(seed)) for seed in range(count)]


# Crops.


@pytest.mark.parametrize("size", SIZES)
def test_a_label_is_that_of_the_pixel_below_its_cell(size):
    sample = dict(zip(("image", "label"), _coordinates(*size), strict=True))
    example = ImageExample(GEOMETRY, Augmentation(mirror=True))
    flips = set()
    for crop in _examples(example, sample, 24):
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
    image, label = _coordinates(*size)
    for seed in range(8):
        crop = random_crop(image, label, np.random.default_rng(seed), GEOMETRY)["image"]
        top, left = (int(v) - MARGIN for v in crop[MARGIN, MARGIN, :2])
        rows = [_reflected(top + i, size[0]) for i in range(26)]
        columns = [_reflected(left + j, size[1]) for j in range(34)]
        np.testing.assert_array_equal(crop, image[np.ix_(rows, columns)])


def test_every_place_within_the_padding_is_drawn_about_equally_often():
    image, label = _coordinates(16 + 2, 24 + 3)
    rng = np.random.default_rng(0)
    places = collections.Counter(
        tuple(random_crop(image, label, rng, GEOMETRY)["image"][MARGIN, MARGIN, :2])
        for _ in range(600)
    )
    assert set(places) == set(itertools.product(range(3), range(4)))
    assert min(places.values()) > 25


def test_halves_stand_at_either_end_of_the_image():
    image, label = _coordinates(16, 60)
    geometry = dataclasses.replace(GEOMETRY, halves=True)
    lefts = {
        int(random_crop(image, label, rng, geometry)["image"][MARGIN, MARGIN, 1])
        for rng in map(np.random.default_rng, range(20))
    }
    assert lefts == {0, 60 - geometry.inner[1]}


def test_labels_at_stride_1_cover_the_inside_of_the_crop():
    image, label = _coordinates(40, 50)
    crop = random_crop(
        image, label, np.random.default_rng(1), CropGeometry((26, 34), MARGIN, 1)
    )
    inner = crop["image"][MARGIN:-MARGIN, MARGIN:-MARGIN].astype(int)
    np.testing.assert_array_equal(
        crop["label"], _class_at(inner[..., 0], inner[..., 1])
    )


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


@pytest.mark.parametrize("crop", [500, 628, 852, 884, 900, 1396, 380])
def test_the_crops_of_the_paper_fit(crop):
    assert check_crop(crop, 186, 8, "--crop") is None


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


def _maps(height, width, stride=8):
    """Maps whose cells tell where they are, and a label that tells its columns."""
    rows, columns = -(-height // stride), -(-width // stride)
    maps = np.stack(np.mgrid[:rows, :columns], -1).astype(np.float32)
    return maps, np.tile(np.arange(width, dtype=np.uint8), (height, 1))


@pytest.mark.parametrize("size", [(40, 64), (37, 61), (8, 100), (64, 57), (5, 3)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_cells_of_stored_maps_keep_their_pixels(size, mirrored):
    maps, label = _maps(*size)
    example = MapExample((4, 6), 8, 1, 255, Augmentation(mirror=mirrored))
    flips = set()
    for crop in _examples(example, {"image": maps + 1, "label": label}, 20):
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
    maps, label = _maps(40, width)
    example = MapExample((4, 6), 8, 8, 255, Augmentation(mirror=True))
    flipped = 0
    for crop in _examples(example, {"image": maps, "label": label}, 20):
        columns = crop["image"][..., 1].astype(int)
        np.testing.assert_array_equal(crop["label"], 8 * columns)
        flipped += columns[0, 0] > columns[0, -1]
    assert 0 < flipped < 20


@pytest.mark.parametrize("stride", [1, 8])
def test_map_labels_are_sampled_from_the_first_pixel_of_a_cell(stride):
    maps, label = _maps(80, 96)
    rng = np.random.default_rng(0)
    crop = crop_maps(maps, label, rng, (4, 6), 8, stride)
    first = 8 * int(crop["image"][0, 0, 1])
    expected = range(first, first + 48, stride)
    assert crop["label"].shape == (32 // stride, 48 // stride)
    assert crop["label"][0].tolist() == list(expected)


def test_smaller_maps_are_filled_up_with_zeros_and_ignored_labels():
    maps, label = _maps(13, 21)
    crop = crop_maps(maps + 1, label, np.random.default_rng(0), (4, 6), 8, 8, 99)
    expected = np.zeros((4, 6, 2), np.float32)
    expected[:2, :3] = maps + 1
    np.testing.assert_array_equal(crop["image"], expected)
    assert crop["label"].tolist() == [[0, 8, 16, 99, 99, 99]] * 2 + [[99] * 6] * 2


def test_every_crop_of_the_maps_is_drawn():
    maps, label = _maps(8 * 5, 8 * 8)
    rng = np.random.default_rng(0)
    draws = [crop_maps(maps, label, rng, (4, 6), 8, 8)["image"] for _ in range(80)]
    places = {tuple(d[0, 0].astype(int).tolist()) for d in draws}
    assert places == set(itertools.product(range(2), range(3)))


# Batches.


def _numbered(sample, rng):
    return {"image": sample["image"], "label": rng.integers(0, 2**31, (3,))}


def _batches(count, seed=0, start=0, size=4, threads=2, samples=10, shard=(0, 1)):
    source = [{"image": np.full((2, 2), i)} for i in range(samples)]
    batches = training_batches(
        source, _numbered, size, seed, start, Reading(threads), shard
    )
    return list(itertools.islice(batches, count))


def _numbers(batches):
    return [int(i) for batch in batches for i in batch["image"][:, 0, 0]]


@pytest.mark.parametrize("start", [1, 2, 5, 7])
def test_a_batch_is_the_same_whatever_the_start(start):
    whole, rest = _batches(9), _batches(9 - start, start=start)
    for one, two in zip(whole[start:], rest, strict=True):
        assert one.keys() == two.keys() == {"image", "label"}
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_batch_is_the_same_whatever_the_threads():
    jax.tree.map(np.testing.assert_array_equal, _batches(6), _batches(6, threads=1))


@pytest.mark.parametrize("shards", [2, 4])
@pytest.mark.parametrize("start", [0, 3])
def test_the_parts_of_several_hosts_are_the_batch_of_one(shards, start):
    whole = _batches(4, start=start)
    parts = [_batches(4, start=start, shard=(i, shards)) for i in range(shards)]
    for batch, *own in zip(whole, *parts, strict=True):
        for name, array in batch.items():
            rows = [part[name] for part in own]
            assert {len(r) for r in rows} == {4 // shards}
            np.testing.assert_array_equal(np.concatenate(rows), array)


def test_hosts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match="batch_size=4: 3 processes"):
        _batches(1, shard=(0, 3))


@pytest.mark.slow
def test_a_batch_is_the_same_from_worker_processes():
    source = [_sample(i) for i in range(5)]
    example = ImageExample(GEOMETRY, Augmentation(scales=(0.7, 1.4), colour=0.1))
    ways = Reading(2), Reading(2, processes=2)
    one, two = (
        list(itertools.islice(training_batches(source, example, 4, 0, 1, way), 5))
        for way in ways
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_another_seed_gives_another_order_and_other_augmentation():
    one, two = _batches(5, seed=0), _batches(5, seed=1)
    assert _numbers(one) != _numbers(two)
    draws = [set(np.ravel([b["label"] for b in run]).tolist()) for run in (one, two)]
    assert not draws[0] & draws[1]


@pytest.mark.parametrize("size", [1, 4, 5, 20])
def test_an_epoch_is_every_sample_once_in_an_order_of_its_own(size):
    numbers = _numbers(_batches(40 // size, size=size))
    epochs = [numbers[i : i + 10] for i in range(0, 40, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_sample_is_augmented_anew_in_every_epoch():
    draws = np.ravel([batch["label"] for batch in _batches(10)])
    assert len(set(draws.tolist())) == 4 * 10 * 3


@pytest.mark.parametrize(
    "count, size, lengths",
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (3, 1, [1, 1, 1])],
)
def test_samples_in_order_come_once_each_and_the_last_list_is_shorter(
    count, size, lengths
):
    source = [{"id": i, "image": np.zeros((i + 1, 3))} for i in range(count)]
    chunks = list(in_order(source, size, threads=2))
    assert [len(chunk) for chunk in chunks] == lengths
    samples = list(itertools.chain.from_iterable(chunks))
    assert [s["id"] for s in samples] == list(range(count))
    assert [len(s["image"]) for s in samples] == list(range(1, count + 1))
