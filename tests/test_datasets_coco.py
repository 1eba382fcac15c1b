"""COCO: objects and segments become exactly these pixels, or are refused by name."""

import io
import json
import re
import subprocess
import sys
import zipfile
from copy import deepcopy

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dilax.datasets import coco
from dilax.datasets.coco import Coco
from dilax.datasets.prepared import open_prepared, prepare
from dilax.datasets.spec import COCO

HEIGHT, WIDTH = 8, 10
NUMBERS = {  # of COCO's categories; the last three are none of VOC's
    "person": 1,
    "bicycle": 2,
    "car": 3,
    "motorcycle": 4,
    "airplane": 5,
    "bus": 6,
    "train": 7,
    "boat": 9,
    "bird": 16,
    "cat": 17,
    "dog": 18,
    "horse": 19,
    "sheep": 20,
    "cow": 21,
    "bottle": 44,
    "chair": 62,
    "couch": 63,
    "potted plant": 64,
    "dining table": 67,
    "tv": 72,
    "giraffe": 25,
    "cup": 47,
    "grass-merged": 193,
}
# Down the columns: 17 pixels outside, 21 inside (from row 1 of column 2 to row 5 of
# column 4), 42 outside.
RUNS = {"size": [HEIGHT, WIDTH], "counts": [17, 21, 42]}
# Rows 1 to 4 of columns 3 and 4: runs 25 4 4 4 43, of which the last two are written
# as differences 0 and 39. 25 = 0b11001 takes two characters, since the fifth bit of the
# last one is the sign; so does 39 = 0b1_00111.
PACKED = {"size": [HEIGHT, WIDTH], "counts": "i0440W1"}


def _box(x0, y0, x1, y1):
    """A polygon around the pixels of columns x0 … x1 − 1 and rows y0 … y1 − 1."""
    return [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]


def _object(image, category, *rings, crowd=0, **changes):
    return {
        "segmentation": [*rings],
        "area": 1.0,
        "iscrowd": crowd,
        "image_id": image,
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "category_id": NUMBERS[category],
    } | changes


def _image(number, name):
    return {"license": 3, "file_name": name, "height": HEIGHT, "width": WIDTH} | {
        "id": number
    }


def _json(images, annotations, **things):
    categories = [
        {"supercategory": "any", "id": number, "name": name}
        | ({"isthing": int(name != "grass-merged")} if things else {})
        for name, number in NUMBERS.items()
        if things or name != "grass-merged"
    ]
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": images,
        "annotations": [{"id": 900 + i} | a for i, a in enumerate(annotations)],
        "categories": categories,
    }


VAL = {
    139: "objects that overlap",
    285: "a crowd, run lengths",
    632: "nothing of VOC's",
    724: "a crowd alone",
}
INSTANCES_VAL = _json(
    [_image(number, f"{number:012}.jpg") for number in VAL],
    [
        _object(139, "person", _box(2, 2, 4, 5)),
        _object(139, "couch", _box(1, 1, 7, 6)),
        _object(139, "cup", _box(3, 0, 10, 8)),
        _object(139, "dining table", _box(6, 5, 9, 7), _box(9, 0, 10, 2)),
        _object(285, "person", _box(0, 4, 4, 7)),
        _object(285, "person", crowd=1, segmentation=RUNS),
        _object(285, "cup", crowd=1, segmentation={**RUNS, "counts": [0, 80]}),
        _object(285, "tv", segmentation=PACKED),
        _object(632, "giraffe", _box(0, 0, 5, 5)),
        _object(724, "sheep", crowd=1, segmentation=RUNS),
    ],
)
INSTANCES_TRAIN = _json(
    [_image(9, "000000000009.jpg")],
    [_object(9, "airplane", _box(-3, -1, 2, 2), _box(7, 6, 12, 9))],
)


def _label(*boxes):
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x0, y0, x1, y1, value in boxes:
        label[y0:y1, x0:x1] = value
    return label


def _class(name):
    return COCO.classes.index(name)


SOFA, PERSON, TABLE = _class("sofa"), _class("person"), _class("diningtable")
TV, PLANE = _class("tvmonitor"), _class("aeroplane")
LABELS = {
    "000000000009": _label((0, 0, 2, 2, PLANE), (7, 6, 10, 8, PLANE)),
    # The person is smaller than the sofa, and so is the table, though listed later.
    "000000000139": _label(
        (1, 1, 7, 6, SOFA),
        (2, 2, 4, 5, PERSON),
        (6, 5, 9, 7, TABLE),
        (9, 0, 10, 2, TABLE),
    ),
    "000000000285": _label(
        (2, 1, 3, 8, 255),
        (3, 0, 4, 8, 255),
        (4, 0, 5, 6, 255),
        (0, 4, 4, 7, PERSON),
        (3, 1, 5, 5, TV),
    ),
}


def _photo(grey=False):
    pixels = np.full((HEIGHT, WIDTH) if grey else (HEIGHT, WIDTH, 3), 90, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def _png(segments):
    """Segment ids as RGB: R + 256 G + 65536 B."""
    ids = np.asarray(segments, np.uint32)
    file = io.BytesIO()
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    Image.fromarray(rgb).save(file, "png")
    return file.getvalue()


# 139: 70007 (a person, all three bytes) on 300 (a sofa), 7 (grass), 0 (unlabelled);
# 285: a crowd of people, 9; 632: a giraffe; 724: a crowd alone.
PANOPTIC_139 = np.full((HEIGHT, WIDTH), 7)
PANOPTIC_139[1:6, 1:7] = 300
PANOPTIC_139[2:5, 2:4] = 70007
PANOPTIC_139[7] = 0
SEGMENTS = {
    139: (PANOPTIC_139, {7: "grass-merged", 300: "couch", 70007: "person"}),
    285: (np.full((HEIGHT, WIDTH), 9), {9: "person", 10: "tv"}),
    632: (np.full((HEIGHT, WIDTH), 5), {5: "giraffe"}),
    724: (np.full((HEIGHT, WIDTH), 5), {5: "sheep"}),
}
CROWDS = {(285, 9), (724, 5)}


def _segment(image, number, name):
    return {
        "id": number,
        "category_id": NUMBERS[name],
        "iscrowd": int((image, number) in CROWDS),
    } | {"bbox": [0, 0, 1, 1], "area": 1}


PANOPTIC_VAL = _json(
    INSTANCES_VAL["images"],
    [
        {
            "segments_info": [_segment(image, n, name) for n, name in known.items()],
            "file_name": f"{image:012}.png",
            "image_id": image,
        }
        for image, (_, known) in SEGMENTS.items()
    ],
    things=True,
)


def _files():
    """The files of 2017, as they are when unpacked."""
    files = {
        "annotations/instances_train2017.json": INSTANCES_TRAIN,
        "annotations/instances_val2017.json": INSTANCES_VAL,
        "annotations/panoptic_val2017.json": PANOPTIC_VAL,
        "train2017/000000000009.jpg": _photo(),
    }
    files |= {f"val2017/{n:012}.jpg": _photo(grey=n == 285) for n in VAL}
    masks = {
        f"annotations/panoptic_val2017/{n:012}.png": _png(ids)
        for n, (ids, _) in SEGMENTS.items()
    }
    return deepcopy(files) | masks


def _bytes(content):
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def _unpacked(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(_bytes(content))
    return root


def _zip(target, files):
    with zipfile.ZipFile(target, "w") as archive:
        for folder in sorted({name.rsplit("/", 1)[0] for name in files}):
            archive.writestr(f"{folder}/", b"")
        for name, content in files.items():
            archive.writestr(name, _bytes(content))


def _archives(root, files):
    """The files as they are downloaded: the segments are a zip in a zip."""
    inner = io.BytesIO()
    prefix = "annotations/panoptic_val2017/"
    masks = {n: c for n, c in files.items() if n.startswith(prefix)}
    _zip(inner, {n.removeprefix("annotations/"): c for n, c in masks.items()})
    for name, start in {
        "train2017.zip": "train2017/",
        "val2017.zip": "val2017/",
        "annotations_trainval2017.zip": "annotations/instances_",
    }.items():
        _zip(root / name, {n: c for n, c in files.items() if n.startswith(start)})
    panoptic = "annotations/panoptic_val2017"
    _zip(
        root / "panoptic_annotations_trainval2017.zip",
        {
            f"{panoptic}.json": files[f"{panoptic}.json"],
            f"{panoptic}.zip": inner.getvalue(),
        },
    )
    return root


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """Sets as small as these count as whole."""
    published = dict(coco._IMAGES)
    coco._IMAGES.update(train2017=1, val2017=len(VAL), train2014=1, val2014=1)
    yield
    coco._IMAGES.update(published)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return _archives(tmp_path_factory.mktemp("archives"), _files())


def _prepared(source, data_dir, variant="", **options):
    return prepare("coco", source, data_dir, variant=variant, verify=False, **options)


def _open(data_dir, split, variant=""):
    samples = open_prepared("coco", COCO, str(data_dir), split, variant)
    return {sample["id"]: sample for sample in samples}


def _metadata(folder):
    return json.loads((folder / "metadata.json").read_text())


@pytest.fixture(scope="module")
def instances(source, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("instances")
    _prepared(source, data_dir)
    return data_dir


@pytest.fixture(scope="module")
def panoptic(source, tmp_path_factory):
    return _prepared(source, tmp_path_factory.mktemp("panoptic"), "panoptic_2017")


# What is prepared.


def test_the_variants():
    names = [variant.name for variant in Coco.BUILDER_CONFIGS]
    assert names == ["instances_2017", "instances_2014", "panoptic_2017"]
    assert all(archive.size and len(archive.digest) == 64 for archive in Coco.ARCHIVES)


def test_images_with_a_single_object_of_vocs_are_taken(instances):
    assert [*_open(instances, "train")] == ["000000000009"]
    assert [*_open(instances, "val")] == ["000000000139", "000000000285"]


@pytest.mark.parametrize("image", LABELS)
def test_objects_are_painted_to_the_pixel(instances, image):
    samples = _open(instances, "train") | _open(instances, "val")
    np.testing.assert_array_equal(samples[image]["label"], LABELS[image])


def test_image_files_keep_their_bytes(instances):
    folder = instances / "dilax_coco" / "instances_2017" / "1.0.0"
    records = tfds.builder_from_directory(folder).as_data_source(
        "val", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert [r["image"] for r in records] == [_photo(), _photo(grey=True)]
    grey = _open(instances, "val")["000000000285"]["image"]
    assert grey.shape == (HEIGHT, WIDTH, 3) and (grey == 90).all()


def test_unpacked_files_give_the_same(instances, tmp_path):
    _prepared(_unpacked(tmp_path / "coco" / "here", _files()), tmp_path)
    for split in ("train", "val"):
        one, other = _open(instances, split), _open(tmp_path, split)
        assert [*one] == [*other]
        for image, sample in one.items():
            np.testing.assert_array_equal(sample["label"], other[image]["label"])


def test_2014_has_names_and_a_split_of_its_own(tmp_path):
    name = "COCO_train2014_000000000009"
    listed = INSTANCES_TRAIN | {"images": [_image(9, f"{name}.jpg")]}
    _zip(tmp_path / "train2014.zip", {f"train2014/{name}.jpg": _photo()})
    _zip(
        tmp_path / "annotations_trainval2014.zip",
        {
            "annotations/instances_train2014.json": listed,
            "annotations/instances_val2014.json": listed,
        },
    )
    folder = _prepared(tmp_path, tmp_path, "instances_2014")
    samples = _open(tmp_path, "train", "instances_2014")
    np.testing.assert_array_equal(samples[name]["label"], LABELS["000000000009"])
    assert [*samples] == [name]
    assert [*tfds.builder_from_directory(folder).info.splits] == ["train"]


def test_every_image_gets_its_own_label(tmp_path):
    """Labels are made in several threads."""
    numbers = range(1, 61)
    files = {f"val2017/{n:012}.jpg": _photo() for n in numbers}
    files["annotations/instances_val2017.json"] = _json(
        [_image(n, f"{n:012}.jpg") for n in numbers],
        [_object(n, "cat", _box(n % 10, n // 10, n % 10 + 1, 8)) for n in numbers],
    )
    _prepared(_unpacked(tmp_path, files), tmp_path, partial=True)
    samples = _open(tmp_path, "val")
    assert [*samples] == [f"{n:012}" for n in numbers]
    for n, sample in zip(numbers, samples.values(), strict=True):
        box = (n % 10, n // 10, n % 10 + 1, 8, _class("cat"))
        np.testing.assert_array_equal(sample["label"], _label(box))


def test_nothing_imports_tensorflow(source, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dilax.datasets import coco, prepared, spec\n"
        "folder, source = map(Path, sys.argv[1:])\n"
        "prepared.prepare('coco', source, folder, partial=True, verify=False)\n"
        "split = prepared.open_prepared('coco', spec.COCO, str(folder), 'val')\n"
        "print(split[1]['label'].max(), 'tensorflow' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["255", "False"]


# The panoptic variant.


PANOPTIC = {
    "000000000139": _label(
        (1, 1, 7, 6, SOFA), (2, 2, 4, 5, PERSON), (0, 7, 10, 8, 255)
    ),
    "000000000285": _label((0, 0, 10, 8, 255)),
}


def _assert_panoptic(data_dir):
    samples = _open(data_dir, "val", "panoptic_2017")
    assert [*samples] == [*PANOPTIC]
    for image, label in PANOPTIC.items():
        np.testing.assert_array_equal(samples[image]["label"], label)


def test_segments_are_looked_up_to_the_pixel(panoptic):
    _assert_panoptic(panoptic.parents[2])
    assert [*tfds.builder_from_directory(panoptic).info.splits] == ["val"]


def test_the_share_that_is_unlike_the_instances_is_recorded(panoptic):
    # 139: 8 pixels of table and 10 unlabelled; 285: all but the 8 of 21 of the crowd
    # that neither person nor television covers.
    measured = {"images": 2, "pixels": 160, "share": 90 / 160, "void_share": 82 / 160}
    assert _metadata(panoptic) == {
        "partial": False,
        "unlike_instances": {"val": measured},
    }


def test_without_instances_nothing_is_recorded_even_where_it_was(tmp_path):
    files, variant = _files(), "panoptic_2017"
    folder = _prepared(_unpacked(tmp_path / "all", files), tmp_path, variant)
    assert "unlike_instances" in _metadata(folder)
    files = {name: c for name, c in files.items() if "instances" not in name}
    alone = _unpacked(tmp_path / "alone", files)
    assert _prepared(alone, tmp_path, variant, overwrite=True) == folder
    assert _metadata(folder) == {"partial": False}
    _assert_panoptic(tmp_path)


# What is not whole.


def _refused(tmp_path, files, *parts, variant=""):
    """The message, which has these parts in this order."""
    source = _unpacked(tmp_path / "source", files)
    match = ".*".join(map(re.escape, parts))
    with pytest.raises(ValueError, match=f"(?s){match}") as caught:
        _prepared(source, tmp_path / "data", variant)
    assert not [*(tmp_path / "data").glob("**/1.0.0")], "something stayed behind"
    return str(caught.value)


def test_images_that_are_listed_but_not_there_are_named(tmp_path):
    files = _files()
    for number in (139, 632):
        del files[f"val2017/{number:012}.jpg"]
    message = _refused(tmp_path, files, "val: val2017/000000000139.jpg is missing")
    assert "632" not in message, "this one has nothing of VOC's"
    folder = _prepared(tmp_path / "source", tmp_path, partial=True)
    assert [*_open(tmp_path, "val")] == ["000000000285"]
    assert _metadata(folder)["partial"] is True


def test_a_missing_png_of_segments_is_named(tmp_path):
    files = _files()
    del files["annotations/panoptic_val2017/000000000285.png"]
    match = "val: annotations/panoptic_val2017/000000000285.png is missing"
    _refused(tmp_path, files, match, variant="panoptic_2017")


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_a_list_that_is_too_short_is_refused_unless_partial(kind, tmp_path):
    files = _files()
    file = f"annotations/{kind}_val2017.json"
    for part in ("images", "annotations"):
        kept = [e for e in files[file][part] if 724 not in (e["id"], e.get("image_id"))]
        files[file][part] = kept
    match = f"{file}: 3 images are listed, 4 published"
    _refused(tmp_path, files, match, variant=f"{kind}_2017")
    folder = _prepared(tmp_path / "source", tmp_path, f"{kind}_2017", partial=True)
    assert _metadata(folder)["partial"] is True
    assert len(_open(tmp_path, "val", f"{kind}_2017")) == 2


def test_splits_without_images_and_archives_of_other_variants_do_not_matter(tmp_path):
    files = _files()
    del files["train2017/000000000009.jpg"]
    files["annotations/instances_train2017.json"] = b"{"
    source = _unpacked(tmp_path / "source", files)
    (source / "train2014.zip").write_bytes(b"broken")
    (source / "panoptic_annotations_trainval2017.zip").write_bytes(b"broken")
    folder = _prepared(source, tmp_path)
    assert [*tfds.builder_from_directory(folder).info.splits] == ["val"]


def test_what_is_no_coco_is_refused_with_what_to_give(tmp_path):
    _refused(tmp_path, {"a.txt": b"a"}, "holds no COCO", "--from names a folder")


# What is wrong in the files.


def _with(place, **changes):
    """Changes an entry: `place` is a list's name and an index."""

    def spoil(content):
        content[place[0]][place[1]].update(changes)

    return spoil


def _without(place, key):
    return lambda content: content[place[0]][place[1]].pop(key)


def _runs(counts):
    return {"size": [HEIGHT, WIDTH], "counts": counts}


FIRST, CROWD = ("annotations", 0), ("annotations", 5)
HUGE = 10**400


@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda c: c.pop("images"), "'images' is None where list is expected"),
        (lambda c: c.pop("annotations"), "'annotations' is None"),
        (lambda c: c.pop("categories"), "'categories' is None"),
        (
            lambda c: c["annotations"].append(7),
            "'image_id' is None where int is expected, in 7",
        ),
        (lambda c: c["images"].append(7), "'id' is None where int is expected, in 7"),
        (_without(("images", 0), "file_name"), "'file_name' is None"),
        (_with(("images", 0), height="8"), "139.jpg: 'height' is '8' where int"),
        (_with(("images", 0), width=0), "139.jpg: width is 0"),
        (_with(("categories", 0), name="people"), "has no category for person"),
        (_without(FIRST, "image_id"), "'image_id' is None"),
        (_with(FIRST, image_id=140), "annotation 900: is of image 140, which is not"),
        (_without(FIRST, "iscrowd"), "annotation 900: 'iscrowd' is None"),
        (_with(FIRST, category_id=12), "annotation 900: category 12 is not listed"),
        (_without(FIRST, "segmentation"), "segmentation is None, which is neither"),
        (_with(FIRST, segmentation=[]), "the segmentation has no polygon"),
        (_with(FIRST, segmentation=[[1, 2, 3, 4]]), "3.0, 4.0]) is no polygon"),
        (_with(FIRST, segmentation=[_box(1, 1, 2, 2)[1:]]), "is no polygon"),
        (_with(FIRST, segmentation=[_box(1, 1, 2, 200)]), "is no polygon"),
        (_with(FIRST, segmentation=[[1, 2, 3, 4, 5, "6"]]), "'6'] is no polygon"),
        (_with(FIRST, segmentation=[[1, 2, 3, 4, 5, HUGE]]), "is no polygon"),
        (_with(FIRST, segmentation=[[1, 2, 3, 4, 5, np.nan]]), "is no polygon"),
        (_with(FIRST, segmentation=[1, 2, 3, 4, 5, 6]), "900: 1 is no polygon"),
        (
            _with(CROWD, segmentation={**RUNS, "size": [10, 8]}),
            "of [10, 8] pixels, the image has [8, 10]",
        ),
        (
            _with(CROWD, segmentation=_runs([17, 21, 41])),
            "[17, 21, 41] do not add up to the 80 pixels",
        ),
        (
            _with(CROWD, segmentation=_runs([17, 21, 43])),
            "[17, 21, 43] do not add up to the 80 pixels",
        ),
        (_with(CROWD, segmentation=_runs([90, -10])), "[90, -10] do not add up"),
        (_with(CROWD, segmentation=_runs(None)), "None do not add up"),
        (_with(CROWD, segmentation=_runs("i0440W")), "'i0440W' do not add up"),
        (_with(CROWD, segmentation=_runs("i044")), "'i044' do not add up"),
        (_with(CROWD, segmentation=_runs("i0440W1é")), "do not add up"),
    ],
)
def test_wrong_instances_are_refused_by_name(spoil, match, tmp_path):
    files = _files()
    spoil(files["annotations/instances_val2017.json"])
    message = _refused(tmp_path, files, match)
    assert message.startswith("annotations/instances_val2017.json: ")
    assert message.endswith("get the file as COCO publishes it")


@pytest.mark.parametrize(
    "content", [b'{"images": [', b"", b"\xff\xfe\x00", b"[" * 10**6, b"[]"]
)
def test_a_file_that_is_no_json_of_coco_is_refused(content, tmp_path):
    files = _files() | {"annotations/instances_val2017.json": content}
    message = _refused(tmp_path, files, "get the file as COCO publishes it")
    assert message.startswith("annotations/instances_val2017.json: ")


@pytest.mark.parametrize(
    "key, value, match",
    [
        ("id", 0, "000000000139.png: segment id 0 is none of 1 … 16777215"),
        ("id", 1 << 24, "segment id 16777216 is none of"),
        ("id", 8, "such as (7, 0, 0); segments_info does not list"),
        ("category_id", 12, "000000000139.png: category 12 is not listed"),
        ("iscrowd", None, "000000000139.png: 'iscrowd' is None"),
    ],
)
def test_wrong_segments_are_refused_by_name(key, value, match, tmp_path):
    files = _files()
    content = files["annotations/panoptic_val2017.json"]
    content["annotations"][0]["segments_info"][0][key] = value
    _refused(tmp_path, files, match, variant="panoptic_2017")


@pytest.mark.parametrize(
    "content, match",
    [
        (_photo(grey=True), "139.png: is not an RGB image of ids but of L"),
        (b"no image", "139.png: cannot be read as an image"),
        (_png(PANOPTIC_139[:5]), "139.png: is 10x5, according to the instances its"),
    ],
)
def test_wrong_pngs_of_segments_are_refused_by_name(content, match, tmp_path):
    files = _files() | {"annotations/panoptic_val2017/000000000139.png": content}
    _refused(tmp_path, files, match, variant="panoptic_2017")
