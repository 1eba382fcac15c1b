"""Classes, splits and folders in the forms that annotation tools write."""

import os

import pytest

from dilax.data.folder import read_folder
from dilax.data.lists import read_classes

NAMES = [("bg", None, None), ("road", None, None), ("big house", None, None)]
IDS = [(name, None, i) for i, (name, _, _) in enumerate(NAMES)]
COLOURS = [("bg", (0, 0, 0), None), ("road", (250, 50, 83), None)]
BOTH = [(name, colour, i) for i, (name, colour, _) in enumerate(COLOURS)]
FORMS = {
    "names": ("a.txt", "bg\nroad\nbig house\n", NAMES),
    "BOM, comments, blank lines": (
        "a.txt",
        "\ufeff# the classes\nbg\n\nroad  # and lanes\r\nbig house\n",
        NAMES,
    ),
    "a header alone": ("a.csv", "class_name\nbg\nroad\nbig house\n", NAMES),
    "Roboflow": (
        "_classes.csv",
        "Pixel Value, Class\n0, bg\n1, road\n2, big house\n",
        IDS,
    ),
    "CVAT": (
        "labelmap.txt",
        "# label:color_rgb:parts:actions\nbg:0,0,0::\nroad:250,50,83:a,b:c\n",
        COLOURS,
    ),
    "labelme": ("labels.txt", "__ignore__\nbg\nroad\nbig house\n", NAMES),
    "ids": ("a.txt", "0 bg\n1 road\n2 big house\n", IDS),
    "ids, colons": ("a.txt", "0: bg\n1: road\n2: big house\n", IDS),
    "ids last": ("a.csv", "bg,0\nroad,1\nbig house,2\n", IDS),
    "id,name": ("a.csv", "id,name\n0,bg\n1,road\n2,big house\n", IDS),
    "semicolons": ("a.csv", "Name;Label ID\nbg;0\nroad;1\nbig house;2\n", IDS),
    "more columns": (
        "a.csv",
        "Idx,Ratio,Stuff,Name\n0,0.5,1,bg\n1,0.1,0,road\n2,0.1,0,big house\n",
        IDS,
    ),
    "colours": ("a.csv", "name,r,g,b\nbg,0,0,0\nroad,250,50,83\n", COLOURS),
    "colours first": ("a.txt", "0 0 0 bg\n250 50 83 road\n", COLOURS),
    "hexadecimal": ("a.txt", "#000000 bg\n#fa3253 road\n", COLOURS),
    "tuples": ("a.txt", "bg\t(0, 0, 0)\nroad\t(250, 50, 83)\n", COLOURS),
    "all": ("a.csv", "id,name,color\n0,bg,#000000\n1,road,#FA3253\n", BOTH),
    "all, bare": ("a.txt", "0 bg 0 0 0\n1 road 250 50 83\n", BOTH),
    "YOLO": ("data.yaml", "nc: 3\nnames: [bg, road, 'big house']\n", NAMES),
    "YOLO by id": (
        "data.yml",
        "path: x\nnames:\n  0: bg\n  1: road\n  2: big house\n",
        IDS,
    ),
    "JSON": ("a.json", '["bg", "road", "big house"]', NAMES),
    "JSON by id": ("a.json", '{"0": "bg", "1": "road", "2": "big house"}', IDS),
    "JSON by name": ("a.json", '{"bg": 0, "road": 1, "big house": 2}', IDS),
    "JSON, colours": ("a.json", '{"bg": [0, 0, 0], "road": [250, 50, 83]}', COLOURS),
    "CVAT's JSON": (
        "a.json",
        '[{"name": "bg", "color": "#000000", "attributes": []},'
        ' {"name": "road", "color": "#fa3253"}]',
        COLOURS,
    ),
    "Supervisely": (
        "meta.json",
        '{"classes": [{"title": "bg", "shape": "bitmap", "color": "#000000"},'
        ' {"title": "road", "color": "#FA3253"}], "tags": []}',
        COLOURS,
    ),
    "COCO": (
        "a.json",
        '{"images": [], "categories": [{"id": 0, "name": "bg"},'
        ' {"id": 1, "name": "road"}, {"id": 2, "name": "big house"}]}',
        IDS,
    ),
    "numbered names": (
        "a.txt",
        "lane 1\nlane 2\n",
        [("lane 1", None, None), ("lane 2", None, None)],
    ),
}


@pytest.mark.parametrize("name, text, expected", FORMS.values(), ids=FORMS)
def test_lists_of_tools_are_read(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, "utf-8")
    found = read_classes(tmp_path, name)
    assert [tuple(line) for line in found.lines] == expected
    assert found.has_ids == (expected[0][2] is not None)


@pytest.mark.parametrize(
    "name",
    ["void", "__ignore__", "Unlabelled", "un-annotated", "DON'T CARE", "ignore_label"],
)
def test_unlabelled_pixels_have_many_names(tmp_path, name):
    void = [line.void for line in read_classes(tmp_path, f"sky,{name},tree").lines]
    assert void == [False, name != "un-annotated", False]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.json", "[1, ", "is not a list of classes"),
        ("a.yaml", "3", "is not a list of classes"),
        ("a.json", '[{"colour": "#000000"}]', "has no name"),
        ("a.txt", "0 sky\n0 tree\n", "names 0 more than once"),
    ],
)
def test_what_is_no_list_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        read_classes(tmp_path, name)


# Lists of splits.


def _write(root, *patterns):
    for pattern in patterns:
        for i in range(4):
            path = root / pattern.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


SPLITS = {
    "a CSV per split": {
        "train.csv": "image,mask\n0.jpg,0.png\n1.jpg,1.png",
        "val.csv": "image\n2",
    },
    "numbered rows": {
        "train.csv": ",0\n0,images/0.jpg\n1,images/1.jpg",
        "val.tsv": "2.jpg\t2.png",
    },
    "one CSV": {
        "split.csv": "split,filename,label\ntrain,0.jpg,x\ntrain,1.jpg,y\nval,2.jpg,x"
    },
    "without a header": {
        "train.csv": "0.jpg,0.png\n1.jpg,1.png",
        "val.csv": "2.jpg,2.png",
    },
    "JSON per split": {
        "train.json": '["0", "1.jpg"]',
        "val.json": '[["2.jpg", "2.png"]]',
    },
    "JSON of objects": {
        "train.json": '[{"image": "0.jpg", "mask": "0.png"}, {"image": "1.jpg"}]',
        "val.json": '{"2.jpg": "2.png"}',
    },
    "one JSON": {"splits.json": '{"train": ["0", "1"], "validation": ["2"]}'},
    "COCO": {
        "train.json": '{"images": [{"file_name": "0.jpg"}, {"file_name": "1.jpg"}]}',
        "val.txt": "2",
    },
}


@pytest.mark.parametrize("lists", SPLITS.values(), ids=SPLITS)
def test_splits_are_tables_or_json(tmp_path, lists):
    _write(tmp_path, "images/{}.jpg", "labels/{}.png")
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
    found = read_folder(tmp_path).splits
    names = {split: [pair.id for pair in pairs] for split, pairs in found.items()}
    assert names == {"train": ["0", "1"], "val": ["2"]}
    assert found["val"][0].label == tmp_path / "labels/2.png"


def test_json_of_something_else_is_no_list_and_broken_json_is_named(tmp_path):
    _write(tmp_path, "images/{}.jpg", "labels/{}.png")
    (tmp_path / "train.json").write_text('{"lr": 0.1}')
    assert len(read_folder(tmp_path).splits["train"]) == 3
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(ValueError, match=r"train\.json: is not JSON"):
        read_folder(tmp_path)


# Exports whose images are elsewhere, and previews.

LONELY = {
    "CVAT": ("SegmentationClass/{}.png", "SegmentationObject/{}.png"),
    "labelme": (
        "a/SegmentationClass/{}.png",
        "a/SegmentationClassVisualization/{}.jpg",
    ),
    "Supervisely": ("ds/masks_machine/{}.png", "ds/masks_human/{}.png"),
    "masks": ("masks/{}.png",),
    "Cityscapes": ("gtFine/{}_gtFine_labelIds.png", "gtFine/{}_gtFine_color.png"),
}


@pytest.mark.parametrize("patterns", LONELY.values(), ids=LONELY)
def test_masks_without_images_are_refused_and_images_may_be_elsewhere(
    tmp_path, patterns
):
    _write(tmp_path / "data", *patterns)
    mask = os.path.dirname(patterns[0])
    with pytest.raises(
        ValueError,
        match=rf"no images found; found masks in \['{mask}'.*--images=FOLDER",
    ):
        read_folder(tmp_path / "data")
    _write(tmp_path, "elsewhere/{}.jpg")
    flags = {"images": str(tmp_path / "elsewhere")}
    if "gtFine" in mask:
        flags["labels"] = "*_labelIds.png"
    pair = read_folder(tmp_path / "data", **flags).splits["train"][0]
    assert (pair.image.parent.name, str(pair.label.parent)) == (
        "elsewhere",
        str(tmp_path / "data" / mask),
    )


def test_instances_and_previews_alone_are_no_masks(tmp_path):
    _write(tmp_path, "JPEGImages/{}.jpg", "SegmentationObject/{}.png")
    _write(tmp_path, "SegmentationClassVisualization/{}.jpg")
    message = "no masks found; .*instances in .*Object.*previews of masks in .*Visual"
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path)
    found = read_folder(tmp_path, labels="SegmentationObject").splits["train"][0]
    assert found.label.parent.name == "SegmentationObject"


def test_supervisely_names_masks_after_the_whole_name_of_the_image(tmp_path):
    _write(tmp_path, "ds/img/{}.jpg", "ds/masks_machine/{}.jpg.png")
    pair = read_folder(tmp_path).splits["train"][0]
    assert pair.label.name == pair.image.name + ".png"


def test_polygons_are_pointed_out(tmp_path):
    _write(tmp_path, "train/{}.jpg", "train/{}.json")
    with pytest.raises(ValueError, match=r"no masks found.*0\.json are not masks"):
        read_folder(tmp_path)


def test_other_kinds_of_pictures_are_read_or_counted(tmp_path):
    _write(tmp_path, "images/{}.jfif", "masks/{}.png", "images/raw_{}.CR2")
    notes = read_folder(tmp_path).notes
    assert any(
        n.startswith("not read: 4 files of the kinds .cr2, such as") for n in notes
    )


def test_brackets_in_a_pattern_may_be_those_of_a_name(tmp_path):
    _write(tmp_path, "set [v1]/{}.jpg", "masks/{}.png", "set v/{}.jpg")
    for images in ("set [v1]", "set [v1]/*.jpg", "set [v1]/[0-3].jpg"):
        found = read_folder(tmp_path, images=images, labels="masks").splits["train"]
        assert {pair.image.parent.name for pair in found} == {"set [v1]"}
