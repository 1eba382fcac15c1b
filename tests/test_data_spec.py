"""Data sets: classes, colours and numbers, as published."""

import json

import numpy as np
import pytest
from PIL import Image

from dilax.data import DATASETS, colour_map, distinct_colours

ROAD_SCENE = {
    "Building": (128, 0, 0),
    "Tree": (128, 128, 0),
    "Sky": (128, 128, 128),
    "Car": (64, 0, 128),
    "Sign": (192, 128, 128),
    "Road": (128, 64, 128),
    "Pedestrian": (64, 64, 0),
    "Fence": (64, 64, 128),
    "Pole": (192, 192, 128),
    "Sidewalk": (0, 0, 192),
    "Bicyclist": (0, 128, 192),
}
# The classes in the order of the ids in the public CamVid files; 11 is unlabelled.
CAMVID_ON_DISK = (
    *("Sky", "Building", "Pole", "Road", "Sidewalk", "Tree"),
    *("Sign", "Fence", "Car", "Pedestrian", "Bicyclist"),
)


def test_the_voc_colour_map_has_its_published_colours():
    published = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        6: (0, 128, 128),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    colours = colour_map(256)
    assert {index: colours[index] for index in published} == published


@pytest.mark.parametrize(
    "name, classes, mean, tile",
    [
        ("voc", 21, (102.93, 111.36, 116.52), (900, 900)),
        ("camvid", 11, (110.70313206, 108.77808759, 105.41212523), (900, 1100)),
        ("kitti", 11, (96.19429688, 95.55136972, 91.34692262), (852, 1640)),
        ("cityscapes", 19, (72.39, 82.91, 73.16), (1396, 1396)),
    ],
)
def test_data_sets_have_the_numbers_of_the_release(name, classes, mean, tile):
    spec = DATASETS[name]
    assert spec.num_classes == len(spec.palette) == len(set(spec.classes)) == classes
    assert len(set(spec.palette)) == classes
    assert (spec.mean, spec.tile, spec.scale) == (mean, tile, 1.0)


@pytest.mark.parametrize("name", ["camvid", "kitti"])
def test_road_scenes_have_the_classes_and_colours_of_the_release(name):
    spec = DATASETS[name]
    own = dict(zip(spec.classes, spec.palette, strict=True))
    assert [*own.items()] == [*ROAD_SCENE.items()]


def test_classes_that_need_context_are_classes():
    for spec in DATASETS.values():
        assert set(spec.context_classes) <= set(spec.classes)


def test_ids_on_disk_are_train_ids_where_there_is_no_map():
    table = DATASETS["voc"].label_table()
    assert table[:21].tolist() == list(range(21))
    assert table[255] == 255
    assert (table[21:255] == -1).all()


def test_camvid_ids_on_disk_become_the_order_of_the_release():
    spec, order = DATASETS["camvid"], list(ROAD_SCENE)
    table = spec.label_table()
    assert table[:11].tolist() == [order.index(name) for name in CAMVID_ON_DISK]
    assert table[11] == table[255] == 255
    assert (table[12:255] == -1).all()
    assert table[spec.disk_ids()].tolist() == list(range(11))


def test_cityscapes_has_the_train_ids_and_colours_of_its_own_table(real_data):
    rows = json.loads((real_data / "cityscapes/labels_table.json").read_text())
    rows = [row for row in rows if 0 <= row["trainId"] < 255]
    rows.sort(key=lambda row: row["trainId"])
    spec = DATASETS["cityscapes"]
    assert spec.classes == tuple(row["name"] for row in rows)
    assert spec.palette == tuple(tuple(row["color"]) for row in rows)
    assert spec.disk_ids().tolist() == [row["id"] for row in rows]


def test_real_voc_masks_have_our_palette(real_data):
    masks = real_data / "VOCdevkit/VOC2012/SegmentationClass"
    with Image.open(next(masks.iterdir())) as file:
        assert file.getpalette() == list(np.ravel(colour_map(256)))


def test_distinct_colours_are_further_apart_than_a_data_set_s():
    def nearest(colours):
        a = np.array(colours, float)
        away = np.linalg.norm(a[:, None] - a[None], axis=-1)
        return (away + 1e9 * np.eye(len(a))).min()

    ours = distinct_colours(11)
    assert len(set(ours)) == 11 and ours == distinct_colours(30)[:11]
    assert nearest(ours) > 100 > nearest(DATASETS["camvid"].palette)
