"""Data sets on disk: read right, or refused with the name of the file."""

import re

import numpy as np
import pytest
from PIL import Image

from dilax.datasets import (
    DATASETS,
    DatasetSpec,
    ImageLabelFiles,
    colour_map,
    folder_spec,
    list_images,
    open_source,
    read_image,
)
from dilax.datasets.files import folder_pairs

SPEC = DatasetSpec("three", ("a", "b", "c"), colour_map(3), (1.0, 2.0, 3.0))
LAYOUTS = {
    "voc": (
        "VOC2012/JPEGImages/{}.jpg",
        "VOC2012/SegmentationClass/{}.png",
        "VOC2012/ImageSets/Segmentation/train.txt",
    ),
    "camvid": ("train/{}.png", "trainannot/{}.png", "train.txt"),
    "folder": ("images/train/{}.png", "labels/train/{}.png", None),
}


def _grey(value, shape=(6, 8)):
    return np.full(shape, value, np.uint8)


def _save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def _write_set(root, layout, names, encoding="utf-8"):
    """Sample i is an image of grey 20·i with the label i."""
    image, label, listing = LAYOUTS[layout]
    for i, name in enumerate(names):
        _save(root / image.format(name), _grey(20 * i, (6, 8, 3)))
        _save(root / label.format(name), _grey(i))
    if listing:
        (root / listing).parent.mkdir(parents=True, exist_ok=True)
        (root / listing).write_text("\n".join(names) + "\n\n", encoding)
    return root


def _open(root, dataset="folder", split="train", **options):
    return open_source(layout, SPEC, str(root), split, **options)


@pytest.fixture
def two(tmp_path):
    """A plain folder of two good samples, `a` and `b`, for tests to spoil `b`."""
    return _write_set(tmp_path, "folder", ["a", "b"])


# Real data.


@pytest.mark.parametrize(
    "name, folder, split, count, size",
    [
        ("camvid", "CamVid", "train", 367, (360, 480)),
        ("camvid", "CamVid", "val", 101, (360, 480)),
        ("voc", "VOCdevkit", "train", 311, None),
        ("voc", "VOCdevkit", "val", 161, None),
    ],
)
def test_real_sets_are_complete(real_data, name, folder, split, count, size):
    spec = DATASETS[name]
    source = open_source(name, spec, str(real_data / folder), split)
    assert len(source) == count
    seen = set()
    for sample in (source[0], source[count - 1]):
        assert sample["image"].shape == (*sample["label"].shape, 3)
        assert size in (None, sample["label"].shape)
        seen |= set(np.unique(sample["label"]).tolist())
    assert len(seen) > 2
    assert seen <= {*range(spec.num_classes), 255}


def test_voc_is_found_from_the_devkit_and_from_the_year(real_data):
    root = real_data / "VOCdevkit"
    ids = [
        open_source("voc", DATASETS["voc"], str(folder), "val")[3]["id"]
        for folder in (root, root / "VOC2012")
    ]
    listed = (root / "VOC2012/ImageSets/Segmentation/val.txt").read_text().split()
    assert ids == [listed[3]] * 2


# The three layouts.


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("folder, encoding", [("s", "utf-8"), ("é x/ß 1", "utf-8-sig")])
def test_images_come_with_their_own_labels(tmp_path, layout, folder, encoding):
    names = ["0 ä", "1", "2"] if layout == "folder" else ["2", "0 ä", "1"]
    source = _open(_write_set(tmp_path / folder, layout, names, encoding), layout)
    assert [sample["id"] for sample in source] == names
    for i, sample in enumerate(source):
        assert sample["image"].dtype == sample["label"].dtype == np.uint8
        np.testing.assert_allclose(sample["image"], _grey(20 * i, (6, 8, 3)), atol=2)
        np.testing.assert_array_equal(sample["label"], _grey(i))


def test_camvid_images_may_be_jpegs(tmp_path):
    _write_set(tmp_path, "camvid", ["0"])
    (tmp_path / "train/0.png").unlink()
    _save(tmp_path / "train/0.jpg", _grey(90, (6, 8, 3)))
    assert abs(int(_open(tmp_path, "camvid")[0]["image"].mean()) - 90) <= 2


def test_lists_that_end_in_aug_take_the_labels_of_sbd(tmp_path):
    root = _write_set(tmp_path, "voc", ["0"]) / "VOC2012"
    _save(root / "SegmentationClassAug/0.png", _grey(2))
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("0\n")
    assert (_open(tmp_path, "voc", "train_aug")[0]["label"] == 2).all()
    assert (_open(tmp_path, "voc")[0]["label"] == 0).all()


@pytest.mark.parametrize("bilevel", [False, True])
def test_labels_may_be_palette_or_bilevel_images(two, bilevel):
    ids = np.arange(48).reshape(6, 8) % 5 % 2
    label = Image.fromarray(ids.astype(bool) if bilevel else ids.astype(np.uint8))
    if not bilevel:
        label.putpalette([9, 9, 9, 200, 0, 0])
    label.save(two / "labels/train/a.png")
    np.testing.assert_array_equal(_open(two)[0]["label"], ids)


# Wrong folders and lists.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_folder_is_named_with_its_flag(tmp_path, layout):
    with pytest.raises(ValueError, match=r"nowhere.*: no such folder.*--data_dir"):
        _open(tmp_path / "nowhere", layout)


@pytest.mark.parametrize("layout, part", [("camvid", "train"), ("folder", "images")])
def test_a_folder_without_images_is_refused(tmp_path, layout, part):
    _write_set(tmp_path, layout, ["0"])
    for path in (tmp_path / part).rglob("*.png"):
        path.rename(path.with_suffix(".text"))
    with pytest.raises(ValueError, match=r"train: holds no images .*\.jpg"):
        _open(tmp_path, layout)


@pytest.mark.parametrize("layout", ["voc", "camvid"])
@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_list_is_refused(tmp_path, layout, text):
    (_write_set(tmp_path, layout, ["0"]) / LAYOUTS[layout][2]).write_text(text)
    with pytest.raises(ValueError, match=r"train\.txt: is empty"):
        _open(tmp_path, layout)


@pytest.mark.parametrize("layout", ["voc", "camvid"])
def test_a_missing_list_is_refused_with_those_that_are_there(tmp_path, layout):
    listing = _write_set(tmp_path, layout, ["0"]) / LAYOUTS[layout][2]
    listing.rename(listing.with_name("other.txt"))
    with pytest.raises(ValueError, match=r"train\.txt: no such list.*\['other'\]"):
        _open(tmp_path, layout)


def test_a_list_that_is_not_text_is_refused(tmp_path):
    (_write_set(tmp_path, "camvid", ["0"]) / "train.txt").write_bytes(b"\xff\xfe0")
    with pytest.raises(ValueError, match=r"train\.txt: is not UTF-8"):
        _open(tmp_path, "camvid")


def test_an_unknown_layout_and_a_missing_flag_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"layout='coco'.*scenes, voc, camvid, folder"):
        _open(tmp_path, "coco")
    with pytest.raises(ValueError, match=r"--data_dir.*three images is missing"):
        _open("")


# Wrong files. Headers are read at once, pixels on access.


def _truncated_jpeg(root):
    (root / "images/train/b.png").unlink()
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    path = root / "images/train/b.jpg"
    _save(path, noise)
    path.write_bytes(path.read_bytes()[:-30])


def _text_as_jpeg(root):
    (root / "images/train/b.png").unlink()
    (root / "images/train/b.jpg").write_text("not a picture")


def _label(array):
    return lambda root: _save(root / "labels/train/b.png", array)


WRONG_HEADERS = {
    "no label": (
        lambda root: (root / "labels/train/b.png").unlink(),
        r"b\.png: missing.*b\.png",
    ),
    "other size": (
        _label(_grey(0, (5, 8))),
        r"images.*b\.png: image is 8x6, its label 8x5",
    ),
    "RGB label": (
        _label(_grey(0, (6, 8, 3))),
        r"labels.*b\.png: a label is a grey or palette image .* mode RGB",
    ),
    "16-bit label": (
        _label(np.zeros((6, 8), np.uint16)),
        r"labels.*b\.png: a label is a grey or palette image .* mode I;16",
    ),
    "text": (_text_as_jpeg, r"b\.jpg: not an image"),
}
WRONG_PIXELS = {
    "truncated": (
        _truncated_jpeg,
        r"b\.jpg: cannot be read as an image \(.*truncated",
    ),
    "16-bit image": (
        lambda root: _save(root / "images/train/b.png", np.zeros((6, 8), np.uint16)),
        r"images.*b\.png: cannot be read .*more than 8 bits",
    ),
}


def _each(cases):
    return pytest.mark.parametrize("spoil, message", cases.values(), ids=cases)


@_each(WRONG_HEADERS)
def test_a_wrong_header_is_named_on_opening_with_the_remedy(two, spoil, message):
    spoil(two)
    with pytest.raises(ValueError, match=f"(?s)1 unreadable:.*{message}.*skip_unread"):
        _open(two)


@_each(WRONG_HEADERS)
def test_a_wrong_header_can_be_left_out(two, caplog, spoil, message):
    spoil(two)
    source = _open(two, skip_unreadable=True)
    assert [sample["id"] for sample in source] == ["a"]
    assert re.search(f"Left out: .*{message}", caplog.text)


@_each(WRONG_PIXELS)
def test_wrong_pixels_are_named_on_access_with_the_remedy(two, spoil, message):
    spoil(two)
    # Not by open_source, of whose result the type checker reads a sample.
    source = ImageLabelFiles(folder_pairs(two, "train"), SPEC)
    assert source[0]["id"] == "a"
    with pytest.raises(ValueError, match=f"{message}.*skip_unreadable=True"):
        source[1]


@_each(WRONG_PIXELS)
def test_wrong_pixels_can_be_ignored_and_are_logged_once(two, caplog, spoil, message):
    spoil(two)
    source = _open(two, skip_unreadable=True)
    for sample in (source[1], source[1]):
        assert sample["image"].shape == (6, 8, 3)
        assert sample["label"].shape == (6, 8)
        assert (sample["label"] == 255).all()
    assert caplog.text.count("Left out") == 1


@pytest.mark.parametrize("skip", [False, True])
def test_label_ids_that_are_no_class_raise_and_are_never_skipped(two, skip):
    ids = np.array([[1, 3], [77, 255]], np.uint8).repeat(4, 1).repeat(3, 0)
    _save(two / "labels/train/b.png", ids)
    source = ImageLabelFiles(folder_pairs(two, "train"), SPEC, skip)
    message = r"labels.*b\.png: label ids \[3, 77\] .* 3 classes of three .* 255"
    with pytest.raises(ValueError, match=message):
        source[1]


def test_ten_wrong_files_are_named_and_the_rest_counted(tmp_path):
    _write_set(tmp_path, "folder", "abcdefghijkl")
    for path in (tmp_path / "labels/train").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="12 unreadable") as error:
        _open(tmp_path)
    assert str(error.value).count("missing") == 10
    assert "and 2 more" in str(error.value)
    with pytest.raises(ValueError, match="none of 12 images is readable"):
        _open(tmp_path, skip_unreadable=True)


def test_an_image_of_absurd_size_is_a_wrong_header(two, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"a\.png: not an image .*48 pixels"):
        _open(two)


# Single images, and plain folders.


def test_grey_and_transparent_images_become_rgb(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    _save(tmp_path / "grey.png", grey)
    _save(tmp_path / "clear.png", np.dstack([_grey(v) for v in (1, 2, 3, 128)]))
    assert (read_image(tmp_path / "grey.png") == grey[..., None]).all()
    assert (read_image(tmp_path / "clear.png") == [1, 2, 3]).all()


@pytest.mark.parametrize("upright, shape, red", [(True, (3, 2), 1), (False, (2, 3), 0)])
def test_photographs_are_turned_upright_on_demand(tmp_path, upright, shape, red):
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 0] = 255, 0, 0
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    _save(tmp_path / "x.png", image, exif=exif)
    result = read_image(tmp_path / "x.png", upright=upright)
    assert result.shape == (*shape, 3)
    assert np.argwhere(result[..., 0]).tolist() == [[0, red]]


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.jpg: cannot be read as an image"):
        read_image(tmp_path / "x.jpg")


def test_images_are_listed_by_name_and_other_files_are_not(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", "c.tiff", "png"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.png", "b.JPG", "c.tiff"]
    assert list(list_images(tmp_path / "b.JPG")) == [tmp_path / "b.JPG"]
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        list_images(tmp_path / "nowhere")


def test_a_plain_folder_names_its_classes(tmp_path):
    (tmp_path / "classes.txt").write_text("sky\n\n tall tree \nground\n")
    spec = folder_spec(tmp_path, (1.0, 2.0, 3.0))
    assert spec.name == tmp_path.name
    assert spec.classes == ("sky", "tall tree", "ground")
    assert spec.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    assert spec.mean == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot be read"),
        (" \n", "is empty"),
        ("sky\ntree\nsky", "names sky more than once"),
        ("\n".join(map(str, range(256))), "256 classes are more than 255"),
    ],
)
def test_a_wrong_list_of_classes_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt: .*{message}"):
        folder_spec(tmp_path, (1.0, 2.0, 3.0))
