"""Pairs of files: read right, or refused with the name of the file and the remedy."""

import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from dilax.data import DatasetSpec, ImageLabelFiles, colour_map, list_images
from dilax.data.image_files import Pair, read_lines

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
    """Two good pairs, `a` and `b`, for tests to spoil `b`."""
    return _pairs(tmp_path)


def test_images_come_with_their_own_labels(tmp_path):
    source = ImageLabelFiles(_pairs(tmp_path, ["0 ä", "1", "2"]), SPEC)
    assert [sample["id"] for sample in source] == ["0 ä", "1", "2"]
    for i, sample in enumerate(source):
        assert sample["image"].dtype == sample["label"].dtype == np.uint8
        np.testing.assert_array_equal(sample["image"], _grey(20 * i, (6, 8, 3)))
        np.testing.assert_array_equal(sample["label"], _grey(i))


@pytest.mark.parametrize("channels, kind", [(6, np.uint16), (4, np.uint8)])
def test_images_of_any_channels_and_bits_come_as_they_are(two, channels, kind):
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


def test_colours_become_train_ids(two):
    colours = np.array([(9, 8, 7), (0, 0, 0), (128, 0, 0)], np.uint8)
    spec = DatasetSpec(
        "colours",
        ("a", "b"),
        ((9, 8, 7), (128, 0, 0)),
        SPEC.mean,
        void_colours=((0, 0, 0),),
        colour_masks=True,
    )
    ids = np.arange(48).reshape(6, 8) % 3
    _save(two[0].label, colours[ids])
    expected = np.array([0, 255, 1])[ids]
    source = ImageLabelFiles(two, spec)
    np.testing.assert_array_equal(source[0]["label"], expected)
    _save(two[0].label, colours[ids] // 2)
    message = (
        rf"{two[0].label}: 32 pixels have colours that stand for no class, such as "
        r"\(4, 4, 3\), \(64, 0, 0\); .*line in --classes.*void"
    )
    with pytest.raises(ValueError, match=message):
        source[0]


# Wrong files. Headers are read at once, pixels on access.


def _truncated(pair):
    pair.image.write_bytes(pair.image.read_bytes()[:-30])


def _cut_short(pair):
    _save(pair.label, np.random.default_rng(0).integers(0, 3, (6, 8), np.uint8))
    pair.label.write_bytes(pair.label.read_bytes()[:-30])


WRONG_HEADERS = {
    "no image": (lambda pair: pair.image.unlink(), r"images/b\.png: is missing"),
    "no label": (
        lambda pair: pair.label.unlink(),
        r"images/b\.png: has no mask, such as .*labels/b\.png",
    ),
    "other size": (
        lambda pair: _save(pair.label, _grey(0, (5, 8))),
        r"images/b\.png: is 8x6, its mask 8x5",
    ),
    "turned": (
        lambda pair: _save(pair.image, _grey(0, (8, 6, 3))),
        r"images/b\.png: is 6x8, its mask 8x6; does its EXIF orientation turn it\?",
    ),
    "text": (
        lambda pair: pair.image.write_text("not a picture"),
        r"images/b\.png: cannot be read as an image",
    ),
    "channels": (
        lambda pair: tifffile.imwrite(
            pair.image.rename(pair.image.with_suffix(".tif")),
            _grey(0, (6, 8, 5)),
            photometric="minisblack",
        ),
        r"images/b\.tif: has 5 channels, not 3",
    ),
}
WRONG_PIXELS = {
    "truncated image": (_truncated, r"images/b\.png: cannot be read as an image"),
    "truncated mask": (_cut_short, r"labels/b\.png: cannot be read as an image"),
    "colours": (
        lambda pair: _save(pair.label, _grey((0, 9, 0), (6, 8, 3))),
        r"labels/b\.png: holds colours where class ids are wanted",
    ),
}


def _each(cases):
    return pytest.mark.parametrize("spoil, message", cases.values(), ids=cases)


def _spoilt(two, spoil):
    spoil(two[1])
    tiff = two[1].image.with_suffix(".tif")
    return [two[0], two[1]._replace(image=tiff)] if tiff.exists() else two


@_each(WRONG_HEADERS)
def test_a_wrong_header_is_named_on_opening_with_the_remedy(two, spoil, message):
    two = _spoilt(two, spoil)
    with pytest.raises(ValueError, match=f"(?s)1 unusable:.*{message}.*skip_unread"):
        ImageLabelFiles(two, SPEC)


@_each(WRONG_HEADERS)
def test_a_wrong_header_can_be_left_out(two, caplog, spoil, message):
    source = ImageLabelFiles(_spoilt(two, spoil), SPEC, skip_unreadable=True)
    assert [sample["id"] for sample in source] == ["a"]
    assert re.search(f"Left out: .*{message}", caplog.text)


@_each(WRONG_PIXELS)
def test_wrong_pixels_are_named_on_access_with_the_remedy(two, spoil, message):
    spoil(two[1])
    source = ImageLabelFiles(two, SPEC)
    assert source[0]["id"] == "a"
    with pytest.raises(ValueError, match=f"{message}.*skip_unreadable=True"):
        source[1]


@_each(WRONG_PIXELS)
def test_wrong_pixels_can_be_ignored_and_are_logged_once(two, caplog, spoil, message):
    spoil(two[1])
    source = ImageLabelFiles(two, SPEC, skip_unreadable=True)
    for sample in (source[1], source[1]):
        assert sample["image"].shape == (6, 8, 3)
        assert sample["label"].shape == (6, 8)
        assert (sample["label"] == 255).all()
    assert caplog.text.count("Left out") == 1


@pytest.mark.parametrize("skip", [False, True])
def test_ids_that_are_no_class_raise_and_are_never_skipped(two, skip):
    ids = np.array([[1, 3], [60000, 255]], np.uint16).repeat(4, 1).repeat(3, 0)
    _save(two[1].label, ids)
    source = ImageLabelFiles(two, SPEC, skip)
    message = (
        r"labels.*b\.png: ids \[3, 60000\] are none of the 3 .* three; .*--classes"
    )
    with pytest.raises(ValueError, match=message):
        source[1]


def test_ten_wrong_files_are_named_and_the_rest_counted(tmp_path):
    pairs = _pairs(tmp_path, "abcdefghijkl")
    for pair in pairs:
        pair.label.unlink()
    with pytest.raises(ValueError, match="12 unusable") as error:
        ImageLabelFiles(pairs, SPEC)
    assert str(error.value).count("has no mask") == 10
    assert "and 2 more" in str(error.value)
    with pytest.raises(ValueError, match=r"(?s)none of 12 images .*a\.png"):
        ImageLabelFiles(pairs, SPEC, skip_unreadable=True)


def test_an_image_of_absurd_size_is_a_wrong_header(two, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"a\.png: cannot be read .*48 pixels"):
        ImageLabelFiles(two, SPEC)


# Lists and folders.


def test_images_are_listed_by_name_and_other_files_are_not(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "c.tiff", "png"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG", "c.tiff"]
    assert list(list_images(tmp_path / "b.JPG")) == [tmp_path / "b.JPG"]
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: holds no images .*\.jpg"):
        list_images(tmp_path / "empty")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lines_are_stripped_and_empty_ones_are_none(tmp_path, encoding):
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
