"""What own images are like: measured, named, and reported before anything trains."""

import os
import re

import numpy as np
import pytest
import tifffile
from layouts import encoded, photo, unpacked
from PIL import Image

from dilax.data import DatasetSpec, open_source, survey_folder
from dilax.training import from_json
from dilax.training.serialization import to_json

COLOURS = {"sky": (128, 128, 128), "tree": (128, 128, 0), "road": (128, 64, 128)}
TABLE = np.array([*COLOURS.values(), (0, 0, 0)], np.uint8)
LISTED = "".join(f"{n} {r} {g} {b}\n" for n, (r, g, b) in COLOURS.items())


def _ids(seed, values, size=(6, 8), kind=np.uint8):
    """As many pixels of each value, in any order."""
    every = np.resize(np.asarray(values, kind), size[0] * size[1])
    return np.random.default_rng(seed).permutation(every).reshape(size)


def _write(root, masks, suffix="png"):
    """Grey 10, 20, … with the masks, as arrays or images."""
    for i, mask in enumerate(masks):
        image = np.full((6, 8, 3), 10 * (i % 9 + 1), np.uint8)
        unpacked(root, {f"images/{i}.png": encoded(image)})
        (root / "masks").mkdir(exist_ok=True)
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        mask.save(root / f"masks/{i}.{suffix}")
    return root


def _of_ids(root, values, kind=np.uint8, count=5):
    return _write(root, [_ids(i, values, kind=kind) for i in range(count)])


def _of_colours(root, count=5, lines=4):
    return _write(root, [TABLE[_ids(i, range(lines))] for i in range(count)])


def _palette(ids, colours):
    image = Image.fromarray(ids)
    image.putpalette([level for colour in colours for level in colour])
    return image


def _tiff(path, pixels):
    config = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
    tifffile.imwrite(path, pixels, photometric="minisblack", **config)


def _labels(root, spec):
    """All labels, in order of the files."""
    sources = [open_source("folder", spec, str(root), s) for s in ("train", "val")]
    samples = [sample for source in sources for sample in source]
    return [s["label"] for s in sorted(samples, key=lambda sample: sample["id"])]


# Images.


def test_the_mean_pixel_is_that_of_the_training_images(tmp_path):
    _of_ids(tmp_path, [0, 1])
    unpacked(tmp_path, {"images/0.png": encoded(np.full((6, 8, 3), (1, 2, 9)))})
    (tmp_path / "val.txt").write_text("4")
    found = survey_folder(tmp_path)
    # The others are 20, 30 and 40 in every channel; channels are reversed.
    assert found.spec.mean == (99 / 4, 92 / 4, 91 / 4)
    assert found.sizes == {(6, 8): 4}
    assert found.notes[:2] == [
        "images: 4 train, 1 val",
        "images/0.png has the mask masks/0.png",
    ]
    assert re.search("3 of 8 bits; all are 8x6; .* 24.75, 23.0, 22.75", found.notes[2])


def test_the_mean_weighs_each_pixel_and_the_common_size_is_named(tmp_path):
    _of_ids(tmp_path, [0, 1], count=4)
    large = {
        "images/2.png": encoded(np.full((12, 8, 3), 70)),
        "masks/2.png": encoded(_ids(0, [0, 1], (12, 8))),
    }
    unpacked(tmp_path, large)
    (tmp_path / "val.txt").write_text("3")
    found = survey_folder(tmp_path)
    assert found.spec.mean == ((10 + 20 + 2 * 70) / 4,) * 3
    assert found.sizes == {(6, 8): 2, (12, 8): 1}
    assert "2 of 3 are 8x6" in found.notes[2]


def test_many_channels_of_16_bits_are_scaled_to_255(tmp_path):
    _of_ids(tmp_path, [0, 1])
    for path in sorted((tmp_path / "images").iterdir()):
        path.unlink()
        pixels = np.full((6, 8, 6), 257 * np.arange(1, 7), np.uint16)
        _tiff(path.with_suffix(".tif"), pixels)
    found = survey_folder(tmp_path)
    assert found.spec.mean == (6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    assert found.notes[3].startswith("channels: 6 of 16 bits; all are 8x6; ")


@pytest.mark.parametrize(
    "odd, message",
    [
        (np.zeros((6, 8), np.uint16), "1 x 16 bits .* 1 x 8"),
        (np.zeros((6, 8, 5), np.uint8), "5 x 8 bits .* 1 x 8"),
    ],
)
def test_images_of_another_kind_are_named(tmp_path, odd, message):
    _of_ids(tmp_path, [0, 1])
    for path in (tmp_path / "images").iterdir():
        Image.open(path).convert("L").save(path)
    (tmp_path / "images/2.png").unlink()
    _tiff(tmp_path / "images/2.tif", odd)
    with pytest.raises(ValueError, match=rf"2\.tif: has {message}"):
        survey_folder(tmp_path)


def test_grey_images_among_colour_images_are_read_as_colour(tmp_path):
    _of_ids(tmp_path, [0, 1])
    Image.open(tmp_path / "images/0.png").convert("L").save(tmp_path / "images/0.png")
    spec = survey_folder(tmp_path).spec
    samples = open_source("folder", spec, str(tmp_path), "train")
    assert [sample["image"].shape[2] for sample in samples] == [3] * 4
    assert len(spec.mean) == 3


# Masks of ids.

IDS = {
    "from 0": ([0, 1, 2, 255], ["id 0", "id 1", "id 2"], [0, 1, 2, 255]),
    "sparse": ([3, 7, 40], ["id 3", "id 7", "id 40"], [0, 1, 2]),
    "0 and 255": ([0, 255], ["id 0", "id 255"], [0, 1]),
    "sparse and 255": ([0, 9, 31, 255], ["id 0", "id 9", "id 31"], [0, 1, 2, 255]),
    "16 bits": ([0, 999, 65535], ["id 0", "id 999"], [0, 1, 255]),
    "many": (range(255), [f"id {i}" for i in range(255)], range(255)),
}


@pytest.mark.parametrize("values, classes, train", IDS.values(), ids=IDS)
def test_classes_are_the_ids_in_the_masks(tmp_path, values, classes, train):
    kind = np.uint16 if max(values) > 255 else np.uint8
    masks = [_ids(i, np.roll(values, 48 * i), kind=kind) for i in range(6)]
    spec = survey_folder(_write(tmp_path, masks)).spec
    assert spec.classes == tuple(classes)
    table = np.zeros(65536, int)
    table[[*values]] = train
    for mask, label in zip(masks, _labels(tmp_path, spec), strict=True):
        np.testing.assert_array_equal(label, table[mask])


def test_the_shares_of_classes_are_reported(tmp_path):
    notes = survey_folder(_of_ids(tmp_path / "a", [0, 1, 1, 255])).notes
    assert "masks contain ids; 2 classes: id 0 25.0%, id 1 50.0%" in notes
    assert "ignored: 25.0% of the pixels" in notes
    notes = survey_folder(_of_ids(tmp_path / "b", [0, 2]), classes="a,b,c").notes
    assert notes[-1] == "no pixels of b"
    notes = survey_folder(_of_ids(tmp_path / "c", [0, 255, 255, 255])).notes
    assert "masks contain ids; 2 classes: id 0 25.0%, id 255 75.0%" in notes
    assert "255 is a class" in notes[-1]


NAMED = {
    "from 0": ([0, 1, 2], "a,b,c", "abc", ()),
    "more names than ids": ([0, 2], "a,b,c", "abc", ()),
    "a void": ([0, 1, 2], "a, void ,c", "ac", ((0, 0), (1, 255), (2, 1))),
    "0 and 255": ([0, 255], "a,b", "ab", ((0, 0), (255, 1))),
    "255 ignored": ([0, 1, 255], "a,b", "ab", ()),
    "255 named": ([0, 128, 255], "a,b,c", "abc", ((0, 0), (128, 1), (255, 2))),
    "sparse": ([3, 40, 255], "a,b", "ab", ((3, 0), (40, 1))),
    "sparse, void": ([3, 7, 40], "a,Ignore,b", "ab", ((3, 0), (7, 255), (40, 1))),
}


@pytest.mark.parametrize("values, flag, classes, label_map", NAMED.values(), ids=NAMED)
def test_names_belong_to_the_ids_in_order(tmp_path, values, flag, classes, label_map):
    spec, notes, _ = survey_folder(_of_ids(tmp_path, values), classes=flag)
    assert spec.classes == tuple(classes)
    assert spec.label_map == label_map
    assert spec.num_classes == len(spec.palette)
    if 40 in values:
        assert "in order: 3 is a, " in notes[-1] and "40 is b" in notes[-1]


@pytest.mark.parametrize("differing", [False, True])
def test_palette_images_hold_ids_unless_their_palettes_differ(tmp_path, differing):
    tables = [TABLE[:3], TABLE[[1, 0, 2]] if differing else TABLE[:3]]
    ids = [_ids(i, [0, 1, 2]) for i in range(6)]
    _write(tmp_path, [_palette(ids[i], tables[i % 2]) for i in range(6)])
    found = survey_folder(tmp_path)
    assert found.spec.colour_masks == differing
    assert any("palettes differ" in note for note in found.notes) == differing
    palette = np.array(found.spec.palette)
    for i, label in enumerate(_labels(tmp_path, found.spec)):
        if differing:
            np.testing.assert_array_equal(palette[label], tables[i % 2][ids[i]])
        else:
            np.testing.assert_array_equal(label, ids[i])


# Masks of colours.


@pytest.mark.parametrize("alpha", [False, True])
def test_classes_are_the_colours_in_the_masks(tmp_path, alpha):
    masks = [TABLE[_ids(i, range(4))] for i in range(5)]
    clear = [np.dstack([m, np.full((6, 8), 90, np.uint8)]) for m in masks]
    found = survey_folder(_write(tmp_path, clear if alpha else masks))
    assert found.spec.classes == ("#000000", "#804080", "#808000", "#808080")
    assert found.spec.palette == ((0, 0, 0), (128, 64, 128), (128, 128, 0), (128,) * 3)
    assert found.spec.colour_masks
    palette = np.array(found.spec.palette)
    for mask, label in zip(masks, _labels(tmp_path, found.spec), strict=True):
        np.testing.assert_array_equal(palette[label], mask)


LINES = {
    "name first": LISTED + "void 0 0 0",
    "commas": "name,r,g,b\n" + LISTED.replace(" ", ",") + "unlabelled,0,0,0",
    "colour first": "128 128 128\tsky\n128 128 0\ttree\n128 64 128 road\n0 0 0 Void",
}


@pytest.mark.parametrize(
    "form, where",
    [(form, "classes.txt") for form in LINES]
    + [("commas", where) for where in ("flag", "elsewhere", "below")],
)
def test_a_list_names_colours_and_what_is_ignored(tmp_path, form, where):
    text = LINES[form]
    root = _of_colours(tmp_path / "data")
    flag = {"classes.txt": "", "below": "my names"}.get(where, str(tmp_path / "x"))
    path = {"classes.txt": root / "classes.txt", "below": root / flag}.get(where, flag)
    if where == "flag":
        flag = text.removeprefix("name,r,g,b\n").replace(",", " ").replace("\n", ",")
    else:
        (tmp_path / path).write_text(text)
    spec, notes, _ = survey_folder(root, classes=flag)
    assert spec.classes == tuple(COLOURS)
    assert spec.palette == tuple(COLOURS.values())
    assert spec.void_colours == ((0, 0, 0),)
    assert notes[4:] == [
        "masks contain colours; 3 classes: sky 25.0%, tree 25.0%, road 25.0%",
        "ignored: 25.0% of the pixels",
    ]
    table = np.array([0, 1, 2, 255])
    for i, label in enumerate(_labels(root, spec)):
        np.testing.assert_array_equal(label, table[_ids(i, range(4))])


@pytest.mark.parametrize(
    "write, classes, message",
    [
        (_of_colours, LISTED, r"0\.png: \(0, 0, 0\) .* 60 pixels .*'void 0 0 0'"),
        (_of_colours, "sky,tree,road,void", r"'sky 0 0 0'; .* \(128, 64, 128\)"),
        (_of_ids, "a,b", r"masks/0\.png: contains id 9; .* 2, .* 3 ids .*0, 1, 9"),
    ],
)
def test_a_value_without_a_name_is_refused(tmp_path, write, classes, message):
    root = write(tmp_path) if write is _of_colours else write(tmp_path, [0, 1, 9])
    with pytest.raises(ValueError, match=message) as refused:
        survey_folder(root, classes=classes.strip().replace("\n", ","))
    assert "--classes" in str(refused.value)


def test_black_masks_among_colours_may_be_grey(tmp_path):
    masks = [np.zeros((6, 8), np.uint8), *(TABLE[_ids(i, [1, 3])] for i in range(4))]
    classes = survey_folder(_write(tmp_path, masks)).spec.classes
    assert classes == ("#000000", "#808000")


def test_equal_channels_are_ids_unless_the_list_has_their_colours(tmp_path):
    grey = [np.dstack([_ids(i, [0, 255])] * 3) for i in range(5)]
    _write(tmp_path, grey)
    spec = survey_folder(tmp_path, classes="ground,crack").spec
    assert (spec.colour_masks, spec.label_map) == (False, ((0, 0), (255, 1)))
    spec = survey_folder(tmp_path, classes="crack 255 255 255,ground 0 0 0").spec
    assert (spec.colour_masks, spec.classes) == (True, ("crack", "ground"))
    np.testing.assert_array_equal(_labels(tmp_path, spec)[0], grey[0][..., 0] == 0)


def test_smoothed_edges_show_as_rare_colours(tmp_path):
    masks = [TABLE[_ids(i, range(2), (120, 160))] for i in range(5)]
    for mask in masks:
        mask[0, 0] = 77, 78, 79
    _write(tmp_path, masks)
    unpacked(
        tmp_path, {f"images/{i}.png": encoded(photo(0, 120, 160)) for i in "01234"}
    )
    note = survey_folder(tmp_path).notes[-1]
    assert note.startswith("rare colours: 1, such as (77, 78, 79) in ")
    assert "smoothed" in note and "--classes" in note


# Wrong masks and lists.

WRONG_MASKS = {
    "JPEG": ([_ids(0, [0, 255])] * 3, "jpg", r"0\.jpg: JPEG .*threshold=128"),
    "ignored": ([_ids(0, [255])] * 3, "png", "all pixels are ignored"),
    "many ids": (
        [np.arange(48, dtype=np.uint16).reshape(6, 8) + 48 * i for i in range(6)],
        "png",
        r"masks/5\.png: masks contain 287 ids, more than 255 classes; .*objects",
    ),
    "many colours": (
        [photo(i) for i in range(6)],
        "png",
        r"masks contain 28\d colours, more than 255 classes; .*smoothed.*PNG",
    ),
    "both kinds": (
        [TABLE[_ids(0, range(3))], _ids(0, [0, 999], kind=np.uint16)],
        "png",
        r"masks/1\.png: contains no colours",
    ),
}


@pytest.mark.parametrize(
    "masks, suffix, message", WRONG_MASKS.values(), ids=WRONG_MASKS
)
def test_impossible_masks_are_named_with_the_remedy(tmp_path, masks, suffix, message):
    with pytest.raises(ValueError, match=message):
        survey_folder(_write(tmp_path, masks, suffix))


def test_a_wrong_list_of_classes_is_refused(tmp_path):
    _of_ids(tmp_path, [0, 1])
    wrong = {
        " \n": "is empty",
        "sky\ntree\nsky": "names sky more than once",
        "sky 1 2 3\ntree 1 2 3": r"names \(1, 2, 3\) more than once",
        "sky 1 2 333": "'sky 1 2 333': .* 0 to 255",
        "void": "has 0 classes",
        "\n".join(map(str, range(256))): "has 256 classes",
    }
    for text, message in wrong.items():
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(ValueError, match=rf"classes\.txt: {message}"):
            survey_folder(tmp_path)
    for missing in ("crack", "../classes.txt"):
        with pytest.raises(ValueError, match=f"--classes={missing}: no such file"):
            survey_folder(tmp_path, classes=missing)


# Files that cannot be read, and reading once.


def test_unreadable_files_stop_or_are_left_out(tmp_path):
    _of_ids(tmp_path, [0, 1], count=10)
    (tmp_path / "masks/3.png").unlink()
    (tmp_path / "images/4.png").write_bytes(b"no image")
    whole = (tmp_path / "images/5.png").read_bytes()
    (tmp_path / "images/5.png").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"(?s)2 of 10.*4\.png: cannot.*3\.png: has"):
        survey_folder(tmp_path)
    found = survey_folder(tmp_path, skip_unreadable=True)
    left = [note for note in found.notes if "left out" in note]
    assert re.match(r"2 are left out, such as .*4\.png: cannot", left[0])
    assert found.spec.classes == ("id 0", "id 1")


def test_a_test_split_needs_no_masks_but_those_it_has_count(tmp_path):
    _of_ids(tmp_path, [0, 1])
    files = {f"images/test/{i}.png": encoded(photo(i)) for i in (6, 7, 8)}
    unpacked(tmp_path, files)
    assert survey_folder(tmp_path).spec.num_classes == 2
    unpacked(tmp_path, {"masks/test/7.png": encoded(_ids(0, [0, 2]))})
    assert survey_folder(tmp_path).spec.num_classes == 3


def test_files_are_read_once_unless_they_change(tmp_path):
    _of_ids(tmp_path, [0, 1])
    first = survey_folder(tmp_path)
    # Other pixels that claim to be as old are not noticed: nothing is read again.
    mask = tmp_path / "masks/2.png"
    modified = mask.stat().st_mtime_ns
    mask.write_bytes(encoded(_ids(0, [0, 1, 2])))
    os.utime(mask, ns=(modified, modified))
    assert survey_folder(tmp_path) == first
    assert survey_folder(tmp_path, classes="a,b").spec.mean == first.spec.mean
    os.utime(mask)
    assert survey_folder(tmp_path).spec.num_classes == 3


def test_what_was_found_can_be_saved(tmp_path):
    classes = "void 0 0 0," + LISTED.strip().replace("\n", ",")
    for spec in (
        survey_folder(_of_ids(tmp_path / "a", [3, 17, 255])).spec,
        survey_folder(_of_colours(tmp_path / "b"), classes=classes).spec,
    ):
        (tmp_path / "spec.json").write_text(to_json(spec))
        assert from_json(DatasetSpec, tmp_path / "spec.json") == spec
