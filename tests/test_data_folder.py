"""Folders as people have them: each image with its own mask, in its split."""

import os
import time
import unicodedata

import pytest

from dilax.data.folder import read_folder

SIX = [f"{i}" for i in range(6)]


def _write(root, *patterns, names=SIX, **texts):
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


@pytest.fixture
def root(tmp_path):
    """A folder whose own path says what the folders below say."""
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
    "one folder, beginnings": ("all/img_{}.png", "all/mask_{}.png"),
    "one folder, formats": ("{}.jpg", "{}.png"),
    "folder per sample": ("{}/image.png", "{}/mask.png"),
    "masks in labels": ("labels/images/{}.jpg", "labels/masks/{}.png"),
    "unlabelled": ("unlabeled/{}.jpg", "segmentations/{}.png"),
    "no splits": ("valley/{}.jpg", "valley/masks/{}.png"),
}


@pytest.mark.parametrize("image, mask", SPLIT.values(), ids=SPLIT)
@pytest.mark.parametrize(
    "names", [{"train": "train", "val": "val"}, {"train": "Training", "val": "valid"}]
)
def test_splits_are_folders_and_names_may_be_the_same_in_both(root, image, mask, names):
    expected = {}
    for split, name in names.items():
        patterns = [p.replace("{split}", name) for p in (image, mask)]
        _write(root, *patterns)
        expected[split] = [tuple(p.format(i) for p in patterns) for i in SIX]
    assert _pairs(root) == expected


@pytest.mark.parametrize("image, mask", WHOLE.values(), ids=WHOLE)
def test_without_splits_a_fifth_is_held_out(root, image, mask):
    _write(root, image, mask)
    pairs = _pairs(root)
    assert (len(pairs["train"]), len(pairs["val"])) == (5, 1)
    expected = [(image.format(i), mask.format(i)) for i in SIX]
    assert sorted(pairs["train"] + pairs["val"]) == expected


def test_the_two_forms_of_a_letter_are_one(root):
    _write(root, "images/ü{}.jpg", unicodedata.normalize("NFD", "labels/ü{}.png"))
    assert len(_pairs(root)["train"]) == 5


def test_names_that_end_like_masks_are_told_apart(root):
    _write(root, "images/{}_l.png", "images/{}_r.png", "labels/{}_l.png")
    _write(root, "labels/{}_r.png")
    for image, mask in _pairs(root)["train"]:
        assert image.removeprefix("images") == mask.removeprefix("labels")


@pytest.mark.parametrize(
    "image, mask",
    [("images/{place}/{}.jpg", "labels/{place}/{}.png")]
    + [("{place}/images/{}.jpg", "{place}/labels/{}.png")],
)
def test_the_same_name_in_several_folders_is_paired_within_each(root, image, mask):
    for place in ("bonn", "ulm"):
        _write(root, image.replace("{place}", place), mask.replace("{place}", place))
    pairs = [pair for split in _pairs(root).values() for pair in split]
    assert len(pairs) == 12
    for image, mask in pairs:
        assert mask == image.replace("images", "labels").replace(".jpg", ".png")


def test_masks_alone_may_be_split(root):
    _write(root, "images/{}.jpg")
    _write(root, "masks/train/{}.png", names=SIX[:4])
    _write(root, "masks/val/{}.png", names=SIX[4:])
    pairs = _pairs(root)
    assert pairs["val"] == [(f"images/{i}.jpg", f"masks/val/{i}.png") for i in "45"]
    assert len(pairs["train"]) == 4


def test_hidden_files_and_runs_are_no_images(root):
    _write(root, "images/{}.jpg", "labels/{}.png")
    _write(root, "images/._{}.jpg", ".thumbs/{}.jpg", "runs/a/predictions/{}.png")
    for name in ("config.json", "spec.json"):
        (root / "runs/a" / name).touch()
    assert len(_pairs(root)["train"]) == 5


# Splits.


def test_the_same_names_are_held_out_in_every_place(root, tmp_path):
    names = [f"{i:03d}" for i in range(100)]
    _write(root, "images/{}.jpg", "labels/{}.png", names=names)
    held = [image for image, _ in _pairs(root)["val"]]
    assert len(held) == 20
    moved = _write(tmp_path / "moved", "images/{}.jpg", "labels/{}.png", names=names)
    assert [image for image, _ in _pairs(moved)["val"]] == held
    assert _pairs(root / ".." / root.name)["val"] == _pairs(root)["val"]
    assert held != [f"images/{i}.jpg" for i in names[:20]]


def test_val_is_taken_from_train_where_there_is_only_test(root):
    for split in ("train", "test"):
        _write(root, f"{split}/images/{{}}.jpg", f"{split}/labels/{{}}.png")
    pairs = _pairs(root)
    assert {split: len(s) for split, s in pairs.items()} == {
        "train": 5,
        "val": 1,
        "test": 6,
    }
    assert pairs["val"][0][0].startswith("train/")
    [note] = [n for n in read_folder(root).notes if "held out" in n]
    assert "a fifth of train, 1," in note and "val.txt" in note


def test_one_split_alone_is_all_there_is(root):
    _write(root, "val/images/{}.jpg", "val/masks/{}.png")
    assert {split: len(s) for split, s in _pairs(root).items()} == {
        "train": 5,
        "val": 1,
    }


def test_without_images_to_train_on_it_says_what_there_is(root):
    for split in ("val", "test"):
        _write(root, f"{split}/images/{{}}.jpg", f"{split}/labels/{{}}.png")
    with pytest.raises(ValueError, match=r"has only \['test', 'val'\]"):
        read_folder(root)


LISTS = {
    "ids": ("0\n1\n\n2\n", "3\n"),
    "names": ("0.jpg\n1.jpg\n2.jpg", "3.jpg"),
    "paths": (
        "images/0.jpg\n./images/1.jpg\n/home/me/images/2.jpg",
        r"C:\images\3.jpg",
    ),
    "pairs": ("images/0.jpg labels/0.png\n1.jpg\t1.png\n2.jpg, 2.png", "3.jpg 3.png"),
    "and more": ("0 1 1\n1 2 1\n2 -1", "3 1"),
}


@pytest.mark.parametrize("train, val", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize(
    "names", [("train", "val"), ("lists__train_list", "lists__valid")]
)
def test_splits_are_lists(root, train, val, names):
    _write(root, "images/{}.jpg", "labels/{}.png", **{names[0]: train, names[1]: val})
    assert _pairs(root) == {
        "train": [(f"images/{i}.jpg", f"labels/{i}.png") for i in "012"],
        "val": [("images/3.jpg", "labels/3.png")],
    }
    assert "images in no split: 2" in read_folder(root).notes


def test_lists_pair_what_names_do_not(root):
    names = [f"a {i}" for i in range(3)]
    _write(root, "images/{}.jpg", names=names)
    _write(root, "labels/{}.png", names=["x", "a 0", "z"])
    _write(
        root, train="images/a 0.jpg labels/x.png\na 1.jpg a 0.png", val="a 2.jpg z.png"
    )
    assert _pairs(root) == {
        "train": [
            ("images/a 0.jpg", "labels/x.png"),
            ("images/a 1.jpg", "labels/a 0.png"),
        ],
        "val": [("images/a 2.jpg", "labels/z.png")],
    }


def test_lists_go_before_folders_and_find_their_own_split(root):
    for split in ("train", "val"):
        _write(root, f"{split}/{{}}.png", f"{split}annot/{{}}.png")
    lines = "/SegNet/CamVid/{0}/{1}.png /SegNet/CamVid/{0}annot/{1}.png"
    _write(root, train=lines.format("train", 2) + "\n1", val="1")
    assert _pairs(root) == {
        "train": [(f"train/{i}.png", f"trainannot/{i}.png") for i in "21"],
        "val": [("val/1.png", "valannot/1.png")],
    }


def test_a_list_may_take_val_out_of_the_images_of_train(root):
    _write(root, "train/{}.png", "trainannot/{}.png", val="4\n5")
    pairs = _pairs(root)
    assert [image for image, _ in pairs["val"]] == ["train/4.png", "train/5.png"]
    assert [image for image, _ in pairs["train"]] == [f"train/{i}.png" for i in "0123"]


def test_voc_is_found_with_the_lists_of_its_segmentation(root):
    _write(root, "VOC2012/JPEGImages/{}.jpg", "VOC2012/SegmentationClass/{}.png")
    _write(root, "VOC2012/SegmentationObject/{}.png")
    sets = {"Main": "5", "Segmentation": "0\n1"}
    for kind, text in sets.items():
        lists = f"VOC2012__ImageSets__{kind}__"
        _write(
            root, **{f"{lists}train": text, f"{lists}val": "2", f"{lists}trainval": ""}
        )
    pairs = _pairs(root)
    assert pairs["train"] == [
        (f"VOC2012/JPEGImages/{i}.jpg", f"VOC2012/SegmentationClass/{i}.png")
        for i in "01"
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("0\n77\nx y", r"names 2 files .* \['77', 'x y'\]"),
        ("0.jpg 77.png", r"names 1 files .* \['0.jpg 77.png'\]"),
        ("\n", "is empty"),
    ],
)
def test_a_wrong_list_is_named_with_its_lines(root, text, message):
    _write(root, "images/{}.jpg", "labels/{}.png", train=text)
    with pytest.raises(ValueError, match=rf"{root}/train\.txt: {message}"):
        read_folder(root)


def test_a_line_that_could_be_two_images_is_refused(root):
    for place in ("bonn", "ulm"):
        _write(root, f"images/{place}/{{}}.jpg", f"labels/{place}/{{}}.png")
    _write(root, train="ulm/0.jpg\n1")
    with pytest.raises(ValueError, match=r"train\.txt: '1' .*bonn.*ulm.*folder"):
        read_folder(root)


def test_two_lists_of_one_split_are_refused(root):
    _write(root, "images/{}.jpg", "labels/{}.png", a__train="0", b__train="1")
    with pytest.raises(ValueError, match=r"a/train\.txt, .*b/train\.txt: .*rename"):
        read_folder(root)


# Ambiguous folders, and the flags that choose.


def test_files_without_a_partner_are_named(root):
    _write(root, "images/{}.jpg", "labels/{}.png")
    (root / "images/4.jpg").unlink()
    (root / "labels/3.png").unlink()
    splits, notes = read_folder(root)
    [pair] = [p for pairs in splits.values() for p in pairs if not p.label.exists()]
    assert pair == ("3", root / "images/3.jpg", root / "labels/3_mask.png")
    assert f"masks without an image: 1, such as {root / 'labels/4.png'}" in notes


def test_a_mask_of_another_split_is_none(root):
    for split in ("train", "val"):
        _write(root, f"{split}/{{}}.png", f"{split}annot/{{}}.png")
    (root / "trainannot/3.png").unlink()
    assert _pairs(root)["train"][3] == ("train/3.png", "trainannot/3_mask.png")


AMBIGUOUS = {
    "two masks": (
        ("images/{}.jpg", "masks/{}.png", "gt/{}.png"),
        r"images/0\.jpg: has 2 masks, .*gt/0\.png, .*masks/0\.png; .* --labels",
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
    "other names": (
        ("images/a{}.jpg", "labels/b{}.png"),
        r"no mask .*a0\.jpg and .*b0\.png; .*train\.txt",
        {},
        None,
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
    if expected:
        pairs = [pair for split in _pairs(root, **flags).values() for pair in split]
        assert sorted(pairs) == [tuple(p.format(i) for p in expected) for i in SIX]


def test_masks_may_be_elsewhere(root):
    _write(root, "pictures/{}.jpg")
    _write(root.parent / "elsewhere", "{}.png")
    for labels in ("../elsewhere", str(root.parent / "elsewhere")):
        assert _pairs(root, labels=labels)["val"][0][1].startswith("../elsewhere/")


def test_other_pictures_are_left_out_by_a_flag(root):
    _write(root, "images/{}.jpg", "labels/{}.png", "docs/{}.png")
    assert len(_pairs(root, images="images")["train"]) == 5
    assert len(_pairs(root, images="*.jpg", labels="labels/*.png")["train"]) == 5


def test_the_wrong_folder_is_named_with_its_flag(root):
    with pytest.raises(ValueError, match=r"nowhere: no such folder; .*--data_dir"):
        read_folder(root / "nowhere")
    with pytest.raises(ValueError, match=r"--data_dir: the folder of .* is missing"):
        read_folder("")
    with pytest.raises(
        ValueError, match=r"no images found; there are pictures in \[\]"
    ):
        read_folder(root)
    _write(root, "images/{}.jpg", "labels/{}.png")
    with pytest.raises(
        ValueError, match=r"annots: no such folder or files; .*--labels"
    ):
        read_folder(root, labels="annots")


def test_one_image_is_too_few(root):
    _write(root, "images/{}.jpg", "labels/{}.png", names=["0"])
    with pytest.raises(ValueError, match=r"images/0\.jpg: one image is too few"):
        read_folder(root)


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
    _write(root, "images/{}.jpg", "labels/{}.png", train="0\n1", val="2")
    _age(root, 200)
    first = read_folder(root)
    assert read_folder(str(root)) == first and len(walks) == 1
    assert len(read_folder(root, images="images").splits["train"]) == 2
    del walks[:]
    (root / "val.txt").write_text("2\n3")
    assert len(read_folder(root).splits["val"]) == 2
    _age(root, 100)
    read_folder(root)
    _write(root, "images/{}.jpg", "labels/{}.png", names=["6"])
    (root / "train.txt").write_text("0\n1\n6")
    assert len(read_folder(root).splits["train"]) == 3
    assert len(walks) == 3


def test_changes_that_follow_at_once_are_seen(root):
    _write(root, "images/{}.jpg", "labels/{}.png")
    for count in (7, 8, 9):
        _write(root, "images/{}.jpg", "labels/{}.png", names=[str(count)])
        assert sum(map(len, read_folder(root).splits.values())) == count
