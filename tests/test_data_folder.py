"""Folders as people have them: each image with its own mask, in its split."""

import os
import time
import unicodedata

import pytest

from dilax.data.folder import read_folder

FOUR = ("0", "1", "2", "3")


def _write(root, *patterns, names=FOUR, **texts):
    """Empty files, and lists: pairing opens no image."""
    for pattern in patterns:
        for name in names:
            path = root / pattern.format(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    for name, text in texts.items():
        path = root / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def _pairs(root, **options):
    """(image, mask) of each split, as paths below the root."""
    return {
        split: [
            (os.path.relpath(p.image, root), os.path.relpath(p.label, root)) for p in s
        ]
        for split, s in read_folder(root, **options).splits.items()
    }


def _all_pairs(root, **options):
    return sorted(pair for split in _pairs(root, **options).values() for pair in split)


def _count(root, **options):
    return {split: len(pairs) for split, pairs in _pairs(root, **options).items()}


@pytest.fixture
def root(tmp_path):
    """A folder whose own path has the words that are searched for below it."""
    path = tmp_path / "labels" / "train masks é"
    path.mkdir(parents=True)
    return path


# Layouts: where images are, where masks are.

SPLIT = {
    "images/train": ("images/{split}/{}.jpg", "labels/{split}/{}.png"),
    "train/images": ("{split}/images/{}.jpg", "{split}/masks/{}.png"),
    "train and trainannot": ("{split}/{}.png", "{split}annot/{}.png"),
    "train_images": ("{split}_images/{}.png", "{split}-masks/{}.png"),
    "nested": (
        "a/b segmentation/{split}/img/{}.jpg",
        "a/b segmentation/{split}/gt/{}.png",
    ),
    "Cityscapes": (
        "leftImg8bit/{split}/ulm/u_{}_leftImg8bit.png",
        "gtFine/{split}/ulm/u_{}_gtFine_labelIds.png",
    ),
}
WHOLE = {
    "images and labels": ("images/{}.jpg", "labels/{}.png"),
    "images at the top": ("{}.jpg", "Ground Truth/{}.png"),
    "CamVid's own": ("701_StillsRaw_full/{}.png", "LabeledApproved_full/{}_L.png"),
    "spaces": ("my photos/Bild {} ü.jpg", "the masks/Bild {} ü_mask.png"),
    "OME": ("images/{}.ome.tif", "labels/{}.tif"),
    "other case": ("images/A{}.JPG", "labels/a{}.PNG"),
    "one folder": ("{}.png", "{}_mask.png"),
    "one folder, prefixes": ("all/img_{}.png", "all/mask_{}.png"),
    "one folder, formats": ("{}.jpg", "{}.png"),
    "folder per sample": ("{}/image.png", "{}/mask.png"),
    "masks in labels": ("labels/images/{}.jpg", "labels/masks/{}.png"),
    "unlabelled": ("unlabeled/{}.jpg", "segmentations/{}.png"),
    "no splits": ("valley/{}.jpg", "valley/masks/{}.png"),
    "Unicode forms": ("images/ü{}.jpg", unicodedata.normalize("NFD", "labels/ü{}.png")),
}


@pytest.mark.parametrize("image, mask", SPLIT.values(), ids=SPLIT)
@pytest.mark.parametrize("train, val", [("train", "val"), ("Training", "valid")])
def test_splits_are_folders_with_names_of_their_own(root, image, mask, train, val):
    expected = {}
    for split, name in {"train": train, "val": val}.items():
        patterns = [p.replace("{split}", name) for p in (image, mask)]
        _write(root, *patterns)
        expected[split] = [tuple(p.format(i) for p in patterns) for i in FOUR]
    assert _pairs(root) == expected


@pytest.mark.parametrize("image, mask", WHOLE.values(), ids=WHOLE)
def test_without_splits_a_fifth_is_held_out(root, image, mask):
    _write(root, image, mask)
    assert _count(root) == {"train": 3, "val": 1}
    assert _all_pairs(root) == [(image.format(i), mask.format(i)) for i in FOUR]


def test_names_that_end_like_masks_are_separate_samples(root):
    _write(root, "images/{}_l.png", "images/{}_r.png", "labels/{}_l.png")
    _write(root, "labels/{}_r.png")
    for image, mask in _all_pairs(root):
        assert image.removeprefix("images") == mask.removeprefix("labels")


@pytest.mark.parametrize("image", ["images/{place}/{}.jpg", "{place}/images/{}.jpg"])
def test_the_same_name_in_several_folders_is_paired_within_each(root, image):
    mask = image.replace("images", "labels").replace(".jpg", ".png")
    for place in ("bonn", "ulm"):
        _write(root, image.replace("{place}", place), mask.replace("{place}", place))
    pairs = _all_pairs(root)
    assert len(pairs) == 8
    for one, other in pairs:
        assert other == one.replace("images", "labels").replace(".jpg", ".png")


def test_masks_alone_may_be_split(root):
    _write(root, "images/{}.jpg")
    _write(root, "masks/train/{}.png", names=FOUR[:2])
    _write(root, "masks/val/{}.png", names=FOUR[2:])
    pairs = _pairs(root)
    assert pairs["val"] == [(f"images/{i}.jpg", f"masks/val/{i}.png") for i in "23"]
    assert len(pairs["train"]) == 2


def test_hidden_files_and_runs_are_no_images(root):
    _write(root, "images/{}.jpg", "labels/{}.png")
    _write(root, "images/._{}.jpg", ".thumbs/{}.jpg", "runs/a/predictions/{}.png")
    for name in ("config.json", "spec.json"):
        (root / "runs/a" / name).touch()
    assert _count(root) == {"train": 3, "val": 1}


# Splits.


def test_the_same_names_are_held_out_in_every_place(root, tmp_path):
    names = [f"{i:03d}" for i in range(40)]
    _write(root, "images/{}.jpg", "labels/{}.png", names=names)
    held_out = [image for image, _ in _pairs(root)["val"]]
    assert len(held_out) == 8
    moved = _write(tmp_path / "moved", "images/{}.jpg", "labels/{}.png", names=names)
    for path in (moved, root / ".." / root.name):
        assert [image for image, _ in _pairs(path)["val"]] == held_out
    assert held_out != [f"images/{i}.jpg" for i in names[:8]]


def test_val_is_taken_from_train_where_there_is_only_test(root):
    for split in ("train", "test"):
        _write(root, f"{split}/images/{{}}.jpg", f"{split}/labels/{{}}.png")
    assert _count(root) == {"train": 3, "val": 1, "test": 4}
    assert _pairs(root)["val"][0][0].startswith("train/")
    [note] = [n for n in read_folder(root).notes if "held out" in n]
    assert "a fifth of train, 1," in note and "val.txt" in note


def test_a_single_split_is_the_whole_set(root):
    _write(root, "val/images/{}.jpg", "val/masks/{}.png")
    assert _count(root) == {"train": 3, "val": 1}


LISTS = {
    "ids": ("0\n\n1\n", "2\n"),
    "names": ("0.jpg\n1.jpg", "2.jpg"),
    "paths": ("images/0.jpg\n/home/me/./images/1.jpg", r"C:\images\2.jpg"),
    "pairs": ("images/0.jpg labels/0.png\n1.jpg,\t1.png", "2.jpg 2.png"),
    "and more": ("0 1 1\n1 -1", "2 1"),
}


@pytest.mark.parametrize("train, val", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("names", [("train", "val"), ("a__train_list", "a__valid")])
def test_splits_are_lists(root, train, val, names):
    _write(root, "images/{}.jpg", "labels/{}.png", **{names[0]: train, names[1]: val})
    assert _pairs(root) == {
        "train": [(f"images/{i}.jpg", f"labels/{i}.png") for i in "01"],
        "val": [("images/2.jpg", "labels/2.png")],
    }
    assert "images in no split: 1" in read_folder(root).notes


def test_lists_pair_files_of_different_names(root):
    _write(root, "images/{}.jpg", names=["a 0", "a 1", "a 2"])
    _write(root, "labels/{}.png", names=["x", "a 0", "z"])
    lines = "images/a 0.jpg labels/x.png\na 1.jpg a 0.png"
    _write(root, train=lines, val="a 2.jpg z.png")
    masks = {"images/a 0.jpg": "x", "images/a 1.jpg": "a 0", "images/a 2.jpg": "z"}
    assert dict(_all_pairs(root)) == {i: f"labels/{m}.png" for i, m in masks.items()}


def test_lists_take_precedence_over_folders_and_find_their_own_split(root):
    for split in ("train", "val"):
        _write(root, f"{split}/{{}}.png", f"{split}annot/{{}}.png")
    line = "/SegNet/CamVid/train/2.png /SegNet/CamVid/trainannot/2.png"
    _write(root, train=f"{line}\n1", val="1")
    assert _pairs(root) == {
        "train": [(f"train/{i}.png", f"trainannot/{i}.png") for i in "21"],
        "val": [("val/1.png", "valannot/1.png")],
    }


def test_a_list_may_take_val_out_of_the_images_of_train(root):
    _write(root, "train/{}.png", "trainannot/{}.png", val="2\n3")
    assert _count(root) == {"train": 2, "val": 2}
    assert _pairs(root)["val"][0] == ("train/2.png", "trainannot/2.png")


def test_voc_is_found_with_the_lists_of_its_segmentation(root):
    masks = "VOC2012/SegmentationClass/{}.png"
    _write(
        root, "VOC2012/JPEGImages/{}.jpg", masks, "VOC2012/SegmentationObject/{}.png"
    )
    for kind, train in {"Main": "3", "Segmentation": "0\n1"}.items():
        lists = f"VOC2012__ImageSets__{kind}__"
        texts = {f"{lists}train": train, f"{lists}val": "2", f"{lists}trainval": ""}
        _write(root, **texts)
    assert _pairs(root)["train"] == [
        (f"VOC2012/JPEGImages/{i}.jpg", masks.format(i)) for i in "01"
    ]


# Incomplete and ambiguous folders, and the flags that choose.


def test_files_without_a_partner_are_named(root):
    _write(root, "images/{}.jpg", "labels/{}.png")
    (root / "images/2.jpg").unlink()
    (root / "labels/3.png").unlink()
    splits, notes = read_folder(root)
    [pair] = [p for pairs in splits.values() for p in pairs if not p.label.exists()]
    assert pair == ("3", root / "images/3.jpg", root / "labels/3_mask.png")
    assert f"masks without an image: 1, such as {root / 'labels/2.png'}" in notes


def test_a_mask_of_another_split_is_none(root):
    for split in ("train", "val"):
        _write(root, f"{split}/{{}}.png", f"{split}annot/{{}}.png")
    (root / "trainannot/3.png").unlink()
    assert _pairs(root)["train"][3] == ("train/3.png", "trainannot/3_mask.png")


AMBIGUOUS = {
    "two masks": (
        ("images/{}.jpg", "masks/{}.png", "gt/{}.png"),
        r"images/0\.jpg: has 2 masks, .*gt/0\.png, .*masks/0\.png; .*--labels",
        {"labels": "gt"},
        ("images/{}.jpg", "gt/{}.png"),
    ),
    "two kinds in one folder": (
        ("rgb/{}.png", "gtFine/{}_labelIds.png", "gtFine/{}_color.png"),
        r"rgb/0\.png: has 2 masks, .*color\.png, .*labelIds\.png; .*'\*_mask\.png'",
        {"labels": "*_labelIds.png"},
        ("rgb/{}.png", "gtFine/{}_labelIds.png"),
    ),
    "two images": (
        ("nir/{}.tif", "rgb/{}.png", "masks/{}.png"),
        r"masks/0\.png: .*nir/0\.tif .*rgb/0\.png; .*--images",
        {"images": "nir"},
        ("nir/{}.tif", "masks/{}.png"),
    ),
    "no masks": (
        ("a/{}.png", "b/{}.png"),
        r"no masks found; there are pictures in \['a', 'b'\]; .*--images",
        {"labels": "b"},
        ("a/{}.png", "b/{}.png"),
    ),
}


@pytest.mark.parametrize(
    "patterns, message, flags, expected", AMBIGUOUS.values(), ids=AMBIGUOUS
)
def test_ambiguous_files_are_named_and_flags_choose(
    root, patterns, message, flags, expected
):
    _write(root, *patterns)
    with pytest.raises(ValueError, match=message):
        read_folder(root)
    expected = [tuple(p.format(i) for p in expected) for i in FOUR]
    assert _all_pairs(root, **flags) == expected


def test_masks_may_be_elsewhere(root):
    _write(root, "pictures/{}.jpg")
    _write(root.parent / "elsewhere", "{}.png")
    for labels in ("../elsewhere", str(root.parent / "elsewhere")):
        assert _pairs(root, labels=labels)["val"][0][1].startswith("../elsewhere/")


def test_flags_leave_other_pictures_out(root):
    _write(root, "images/{}.jpg", "labels/{}.png", "docs/{}.png")
    for flags in ({"images": "images"}, {"images": "*.jpg", "labels": "labels/*.png"}):
        assert _count(root, **flags) == {"train": 3, "val": 1}


IMAGES, MASKS = "images/{}.jpg", "labels/{}.png"
REFUSED = {
    "no such line": ([IMAGES, MASKS], {"train": "0\n77\nx y"}, r"'77', 'x y'\]"),
    "no such mask": ([IMAGES, MASKS], {"train": "0.jpg 77.png"}, r"\['0.jpg 77.png'\]"),
    "empty list": ([IMAGES, MASKS], {"train": "\n"}, r"train\.txt: is empty"),
    "two images": (
        [f"{kind}/{p}/{{}}.png" for kind in ("images", "gt") for p in ("bonn", "ulm")],
        {"train": "ulm/0.png\n1"},
        r"train\.txt: '1' .*bonn.*ulm.*folder",
    ),
    "two lists": (
        [IMAGES, MASKS],
        {"a__train": "0", "b__train": "1"},
        r"a/train\.txt, .*b/train\.txt: .*rename",
    ),
    "no train": (
        [
            f"{split}/{kind}/{{}}.png"
            for split in ("val", "test")
            for kind in ("a", "gt")
        ],
        {},
        r"has only the splits \['test', 'val'\]",
    ),
    "other names": (
        ["images/a{}.jpg", "labels/b{}.png"],
        {},
        r"do not match, .*a0\.jpg and .*b0\.png; .*train\.txt",
    ),
    "nothing": ([], {}, "no images found; it contains no pictures"),
}


@pytest.mark.parametrize("patterns, lists, message", REFUSED.values(), ids=REFUSED)
def test_wrong_folders_are_refused_with_the_file(root, patterns, lists, message):
    _write(root, *patterns, **lists)
    with pytest.raises(ValueError, match=f"{root}.*{message}"):
        read_folder(root)


def test_one_image_and_wrong_flags_are_refused(root):
    _write(root, IMAGES, MASKS, names=["0"])
    with pytest.raises(ValueError, match=r"images/0\.jpg: one image is too few"):
        read_folder(root)
    with pytest.raises(ValueError, match=r"nowhere: no such folder; .*--data_dir"):
        read_folder(root / "nowhere")
    with pytest.raises(ValueError, match=r"--data_dir: give the folder of"):
        read_folder("")
    with pytest.raises(ValueError, match=r"annots: no such folder or .*--labels"):
        read_folder(root, labels="annots")


# A folder is listed once.


@pytest.fixture
def walks(monkeypatch):
    """The folders that are listed."""
    found, walk = [], os.walk

    def counted(path, **options):
        found.append(path)
        return walk(path, **options)

    monkeypatch.setattr(os, "walk", counted)
    return found


def _age(root, seconds):
    """Makes all changes old enough that later ones have another time."""
    at = time.time() - seconds
    for path in (root, *root.rglob("*")):
        os.utime(path, (at, at))


def test_a_folder_is_listed_again_only_after_it_changes(root, walks):
    _write(root, IMAGES, MASKS, train="0\n1", val="2")
    _age(root, 200)
    first = read_folder(root)
    assert read_folder(str(root)) == first and len(walks) == 1
    assert len(read_folder(root, images="images").splits["train"]) == 2
    del walks[:]
    (root / "val.txt").write_text("2\n3")
    assert _count(root) == {"train": 2, "val": 2}
    _age(root, 100)
    read_folder(root)
    _write(root, IMAGES, MASKS, names=["6"])
    (root / "train.txt").write_text("0\n1\n6")
    assert _count(root) == {"train": 3, "val": 2}
    assert len(walks) == 3


def test_changes_that_follow_at_once_are_seen(root):
    _write(root, IMAGES, MASKS)
    for count in (5, 6, 7):
        _write(root, IMAGES, MASKS, names=[str(count)])
        assert sum(_count(root).values()) == count
