"""A small COCO in the official layout, and what its pixels are."""

import io
import json
import zipfile
from copy import deepcopy

import numpy as np
import pytest
from PIL import Image

from dilax.data.builders.coco import Coco
from dilax.data.prepared import open_prepared, prepare
from dilax.data.spec import COCO

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
# Rows 1 to 4 of columns 3 and 4.
SCREEN = {"size": [HEIGHT, WIDTH], "counts": [25, 4, 4, 4, 43]}


def box(x0, y0, x1, y1):
    """A polygon around the pixels of columns x0 … x1 − 1 and rows y0 … y1 − 1."""
    return [float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]


def object_of(image, category, *rings, crowd=0, **changes):
    return {
        "segmentation": [*rings],
        "area": 1.0,
        "iscrowd": crowd,
        "image_id": image,
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "category_id": NUMBERS[category],
    } | changes


def image_of(number, name):
    return {"license": 3, "file_name": name, "height": HEIGHT, "width": WIDTH} | {
        "id": number
    }


def json_of(images, annotations, **things):
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
INSTANCES_VAL = json_of(
    [image_of(number, f"{number:012}.jpg") for number in VAL],
    [
        object_of(139, "person", box(2, 2, 4, 5)),
        object_of(139, "couch", box(1, 1, 7, 6)),
        object_of(139, "cup", box(3, 0, 10, 8)),
        object_of(139, "dining table", box(6, 5, 9, 7), box(9, 0, 10, 2)),
        object_of(285, "person", box(0, 4, 4, 7)),
        object_of(285, "person", crowd=1, segmentation=RUNS),
        object_of(285, "cup", crowd=1, segmentation={**RUNS, "counts": [0, 80]}),
        object_of(285, "tv", segmentation=SCREEN),
        object_of(632, "giraffe", box(0, 0, 5, 5)),
        object_of(724, "sheep", crowd=1, segmentation=RUNS),
    ],
)
INSTANCES_TRAIN = json_of(
    [image_of(9, "000000000009.jpg")],
    [object_of(9, "airplane", box(-3, -1, 2, 2), box(7, 6, 12, 9))],
)


def label_of(*boxes):
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for x0, y0, x1, y1, value in boxes:
        label[y0:y1, x0:x1] = value
    return label


def class_of(name):
    return COCO.classes.index(name)


SOFA, PERSON, TABLE = class_of("sofa"), class_of("person"), class_of("diningtable")
TV, PLANE = class_of("tvmonitor"), class_of("aeroplane")
LABELS = {
    "000000000009": label_of((0, 0, 2, 2, PLANE), (7, 6, 10, 8, PLANE)),
    # The person is smaller than the sofa, and so is the table, though listed later.
    "000000000139": label_of(
        (1, 1, 7, 6, SOFA),
        (2, 2, 4, 5, PERSON),
        (6, 5, 9, 7, TABLE),
        (9, 0, 10, 2, TABLE),
    ),
    "000000000285": label_of(
        (2, 1, 3, 8, 255),
        (3, 0, 4, 8, 255),
        (4, 0, 5, 6, 255),
        (0, 4, 4, 7, PERSON),
        (3, 1, 5, 5, TV),
    ),
}


def photo(grey=False):
    pixels = np.full((HEIGHT, WIDTH) if grey else (HEIGHT, WIDTH, 3), 90, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def png_of(segments):
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


def segment_of(image, number, name):
    return {
        "id": number,
        "category_id": NUMBERS[name],
        "iscrowd": int((image, number) in CROWDS),
    } | {"bbox": [0, 0, 1, 1], "area": 1}


PANOPTIC_VAL = json_of(
    INSTANCES_VAL["images"],
    [
        {
            "segments_info": [segment_of(image, n, name) for n, name in known.items()],
            "file_name": f"{image:012}.png",
            "image_id": image,
        }
        for image, (_, known) in SEGMENTS.items()
    ],
    things=True,
)


def coco_files():
    """The files of 2017, as they are when unpacked."""
    files = {
        "annotations/instances_train2017.json": INSTANCES_TRAIN,
        "annotations/instances_val2017.json": INSTANCES_VAL,
        "annotations/panoptic_val2017.json": PANOPTIC_VAL,
        "train2017/000000000009.jpg": photo(),
    }
    files |= {f"val2017/{n:012}.jpg": photo(grey=n == 285) for n in VAL}
    masks = {
        f"annotations/panoptic_val2017/{n:012}.png": png_of(ids)
        for n, (ids, _) in SEGMENTS.items()
    }
    return deepcopy(files) | masks


def content_of(content):
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def unpack(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content_of(content))
    return root


def write_zip(target, files):
    with zipfile.ZipFile(target, "w") as archive:
        for folder in sorted({name.rsplit("/", 1)[0] for name in files}):
            archive.writestr(f"{folder}/", b"")
        for name, content in files.items():
            archive.writestr(name, content_of(content))


def archives_of(root, files):
    """The files as they are downloaded: the segments are a zip in a zip."""
    inner = io.BytesIO()
    prefix = "annotations/panoptic_val2017/"
    masks = {n: c for n, c in files.items() if n.startswith(prefix)}
    write_zip(inner, {n.removeprefix("annotations/"): c for n, c in masks.items()})
    for name, start in {
        "train2017.zip": "train2017/",
        "val2017.zip": "val2017/",
        "annotations_trainval2017.zip": "annotations/instances_",
    }.items():
        write_zip(root / name, {n: c for n, c in files.items() if n.startswith(start)})
    panoptic = "annotations/panoptic_val2017"
    write_zip(
        root / "panoptic_annotations_trainval2017.zip",
        {
            f"{panoptic}.json": files[f"{panoptic}.json"],
            f"{panoptic}.zip": inner.getvalue(),
        },
    )
    return root


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """Sets as small as these count as complete."""
    few = {"train2017": 1, "val2017": len(VAL), "train2014": 1, "val2014": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coco, "LISTED", few)
        yield


def prepared(source, data_dir, variant="", **options):
    return prepare("coco", source, data_dir, variant=variant, verify=False, **options)


def opened(data_dir, split, variant=""):
    samples = open_prepared("coco", COCO, str(data_dir), split, variant)
    return {sample["id"]: sample for sample in samples}


def metadata_of(folder):
    return json.loads((folder / "metadata.json").read_text())
