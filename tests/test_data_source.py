"""Pairs of files: read right, or refused with the name of the file and the remedy."""

import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_run import write_images

from dilax.data import DatasetSpec, colour_map, evenly_spread
from dilax.data.lists import read_lines
from dilax.data.pairing import Pair
from dilax.data.source import ImageLabelFiles, open_source

SPEC = DatasetSpec("three", ("a", "b", "c"), colour_map(3), (1.0, 2.0, 3.0))


def _grey(value, shape=(6, 8), kind=np.uint8):
    return np.full(shape, value, kind)


def _save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def _pairs(root, names="ab"):
    """Sample i is an image of grey 20·i with the label i."""
    pairs = []
    for i, name in enumerate(names):
        pair = Pair(name, root / f"images/{name}.png", root / f"labels/{name}.png")
        _save(pair.image, _grey(20 * i, (6, 8, 3)))
        _save(pair.label, _grey(i))
        pairs.append(pair)
    return pairs


@pytest.fixture
def two(tmp_path):
    """Two good pairs, `a` and `b`, for tests to break `b`."""
    return _pairs(tmp_path)


def test_images_come_with_their_own_labels(tmp_path):
    source = ImageLabelFiles(_pairs(tmp_path, ["0 ä", "1", "2"]), SPEC)
    assert [sample["id"] for sample in source] == ["0 ä", "1", "2"]
    for i, sample in enumerate(source):
        assert sample["image"].dtype == sample["label"].dtype == np.uint8
        np.testing.assert_array_equal(sample["image"], _grey(20 * i, (6, 8, 3)))
        np.testing.assert_array_equal(sample["label"], _grey(i))


@pytest.mark.parametrize("channels, kind", [(6, np.uint16), (4, np.uint8)])
def test_images_keep_their_channels_and_bits(two, channels, kind):
    pixels = np.arange(6 * 8 * channels).reshape(6, 8, -1).astype(kind)
    pair = two[0]._replace(image=two[0].image.with_suffix(".tif"))
    tifffile.imwrite(
        pair.image, pixels, photometric="minisblack", planarconfig="contig"
    )
    spec = DatasetSpec("other", ("a",), colour_map(1), (1.0,) * channels)
    [sample] = ImageLabelFiles([pair], spec)
    assert sample["image"].dtype == kind
    np.testing.assert_array_equal(sample["image"], pixels)


def test_ids_on_disk_become_train_ids_however_large(two):
    _save(two[0].label, np.array([[7, 60000] * 4] * 6, np.uint16))
    _save(two[1].label, np.array([[255, 9] * 4] * 6, np.uint8))
    label_map = ((7, 1), (9, 255), (60000, 0))
    spec = DatasetSpec("two", ("a", "b"), colour_map(2), SPEC.mean, label_map=label_map)
    labels = [sample["label"][0, :2].tolist() for sample in ImageLabelFiles(two, spec)]
    assert labels == [[1, 0], [255, 255]]


def test_colours_become_train_ids_or_are_refused(two):
    colours = np.array([(9, 8, 7), (0, 0, 0), (128, 0, 0)], np.uint8)
    palette, void = ((9, 8, 7), (128, 0, 0)), ((0, 0, 0),)
    spec = DatasetSpec(
        "two", ("a", "b"), palette, SPEC.mean, void_colours=void, colour_masks=True
    )
    ids = np.arange(48).reshape(6, 8) % 3
    _save(two[0].label, colours[ids])
    source = ImageLabelFiles(two, spec)
    np.testing.assert_array_equal(source[0]["label"], np.array([0, 255, 1])[ids])
    _save(two[0].label, colours[ids] // 2)
    message = rf"{two[0].label}: 32 pixels .*\(4, 4, 3\), \(64, 0, 0\); .*--classes"
    with pytest.raises(ValueError, match=message):
        source[0]


# Wrong files. Headers are read at once, pixels on access.


def _break_header(pair, case):
    """Breaks a file; returns the pair, and what the message says."""
    match case:
        case "no image":
            pair.image.unlink()
            return pair, r"images/b\.png: is missing"
        case "no mask":
            pair.label.unlink()
            return pair, r"images/b\.png: has no mask; .*labels/b\.png"
        case "other size":
            _save(pair.label, _grey(0, (5, 8)))
            return pair, r"images/b\.png: is 8x6, its mask 8x5"
        case "turned":
            _save(pair.image, _grey(0, (8, 6, 3)))
            return pair, r"images/b\.png: is 6x8, its mask 8x6; .*EXIF"
        case "text":
            pair.image.write_text("not a picture")
            return pair, r"images/b\.png: cannot be read as an image"
    path = pair.image.with_suffix(".tif")
    tifffile.imwrite(path, _grey(0, (6, 8, 5)), photometric="minisblack")
    return pair._replace(image=path), r"images/b\.tif: has 5 channels, not 3"


@pytest.mark.parametrize(
    "case", ["no image", "no mask", "other size", "turned", "text", "channels"]
)
def test_a_wrong_header_is_named_on_opening_or_skipped(two, caplog, case):
    wrong, message = _break_header(two[1], case)
    with pytest.raises(ValueError, match=f"(?s)1 of 2.*{message}.*skip_unreadable"):
        ImageLabelFiles([two[0], wrong], SPEC)
    source = ImageLabelFiles([two[0], wrong], SPEC, skip_unreadable=True)
    assert [sample["id"] for sample in source] == ["a"]
    assert re.search(message, caplog.text)


@pytest.mark.parametrize("case", ["image", "mask", "colours"])
def test_wrong_pixels_are_named_on_access_or_ignored(two, caplog, case):
    broken = two[1].image if case == "image" else two[1].label
    if case == "colours":
        _save(broken, _grey((0, 9, 0), (6, 8, 3)))
    else:
        noise = np.random.default_rng(0).integers(0, 3, (6, 8), np.uint8)
        _save(broken, np.dstack([noise] * 3) if case == "image" else noise)
        broken.write_bytes(broken.read_bytes()[:-30])
    source = ImageLabelFiles(two, SPEC)
    assert source[0]["id"] == "a"
    with pytest.raises(ValueError, match=f"{broken}: .*skip_unreadable=True"):
        source[1]
    source = ImageLabelFiles(two, SPEC, skip_unreadable=True)
    for sample in (source[1], source[1]):
        assert sample["image"].shape == (6, 8, 3)
        assert sample["label"].shape == (6, 8)
        assert (sample["label"] == 255).all()
    assert caplog.text.count(str(broken)) == 1


@pytest.mark.parametrize("skip", [False, True])
def test_ids_of_no_class_raise_and_are_never_skipped(two, skip):
    ids = np.array([[1, 3], [60000, 255]], np.uint16).repeat(4, 1).repeat(3, 0)
    _save(two[1].label, ids)
    source = ImageLabelFiles(two, SPEC, skip)
    message = rf"{two[1].label}: label ids \[3, 60000\] .*three; .*--classes"
    with pytest.raises(ValueError, match=message):
        source[1]


def test_ten_wrong_files_are_named_and_the_rest_counted(tmp_path):
    pairs = _pairs(tmp_path, "abcdefghijkl")
    for pair in pairs:
        pair.label.unlink()
    for skip in (False, True):
        with pytest.raises(ValueError, match=r"(?s)12 of 12 .*a\.png.*2 more") as error:
            ImageLabelFiles(pairs, SPEC, skip)
        assert str(error.value).count("has no mask") == 10


def test_an_image_of_absurd_size_is_a_wrong_header(two, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"a\.png: cannot be read .*48 pixels"):
        ImageLabelFiles(two, SPEC)


@pytest.mark.parametrize(
    "dataset, split, message",
    [
        ("folder", "test", r"data: has no split 'test'; it has \['train', 'val'\]"),
        ("vok", "train", r"data\.dataset='vok': must be one of folder, voc"),
    ],
)
def test_data_that_there_is_not_is_refused(tmp_path, dataset, split, message):
    data = write_images(tmp_path / "data", count=2)
    with pytest.raises(ValueError, match=message):
        open_source(dataset, SPEC, str(data), split)


# Lists.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines_are_stripped_and_empty_ones_dropped(tmp_path, encoding):
    (tmp_path / "x.txt").write_text(" a b\r\n\n\tü \n \n", encoding)
    assert read_lines(tmp_path / "x.txt") == ["a b", "ü"]


@pytest.mark.parametrize(
    "content, message",
    [(b"\n \n", "is empty"), (b"\xff\xfe0", "is not UTF-8"), (None, "cannot be read")],
)
def test_a_list_without_lines_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.txt: {message}"):
        read_lines(tmp_path / "x.txt")


@pytest.mark.parametrize("count, n", [(10, 4), (3, 7), (5, 5), (4, 0), (0, 3)])
def test_indices_are_spread_evenly(count, n):
    indices = evenly_spread(count, n)
    assert len(indices) == min(count, n)
    assert indices[:1] == [0] * (len(indices) > 0)
    gaps = np.diff([*indices, count]) if indices else [0]
    assert max(gaps) - min(gaps) <= 1
