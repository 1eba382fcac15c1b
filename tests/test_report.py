"""The sheet of pictures: its size, and every colour in its place."""

import numpy as np
import pytest
from PIL import Image

from dilax.data import DatasetSpec, colour_map
from dilax.inference import palette_image, save_image
from dilax.report import prediction_sheet
from dilax.report.figures import _GAP, _LINE

SPEC = DatasetSpec("three", ("a", "b", "c"), colour_map(3), (1.0, 2.0, 3.0))
WHITE, GREY = (255, 255, 255), (90, 90, 90)
HEIGHT = 80


def _halves(left, right, shape):
    """A label map of two classes, side by side."""
    labels = np.full(shape, left, np.uint8)
    labels[:, shape[1] // 2 :] = right
    return labels


@pytest.fixture
def sheet(tmp_path):
    """Two images, one wide and one narrow, and two stages' predictions of them."""
    shapes = [(40, 60), (40, 20)]
    samples = [
        {"image": np.full((*shape, 3), 90, np.uint8), "label": _halves(1, 255, shape)}
        for shape in shapes
    ]
    files = {}
    for stage, classes in {"front_end": (1, 2), "joint": (2, 1)}.items():
        files[stage] = [tmp_path / f"{stage}{i}.png" for i in (0, 1)]
        for path, left, shape in zip(files[stage], classes, shapes, strict=True):
            save_image(palette_image(_halves(left, 0, shape), SPEC), path)
    return prediction_sheet(samples, files, SPEC, HEIGHT)


def test_the_sheet_holds_a_row_an_image_and_a_column_a_stage(sheet):
    width = _GAP + 4 * (HEIGHT * 60 // 40 + _GAP)
    assert sheet.size == (width, _LINE + 2 * (HEIGHT + _GAP) + _LINE + _GAP)
    assert sheet.mode == "RGB"


@pytest.mark.parametrize("row, width", [(0, 120), (1, 40)])
@pytest.mark.parametrize("column", range(4))
def test_panels_show_the_colours_of_their_classes(sheet, row, width, column):
    black, red, green = SPEC.palette
    expected = [
        (GREY, GREY),
        (red, WHITE),
        ((red, green)[row], black),
        ((green, red)[row], black),
    ][column]
    left, top = _GAP + column * (120 + _GAP), _LINE + row * (HEIGHT + _GAP)
    panel = np.asarray(sheet)[top : top + HEIGHT, left : left + width]
    halves = np.split(panel, 2, axis=1)
    for half, colour in zip(halves, expected, strict=True):
        assert (half == colour).all()


def test_between_the_panels_the_sheet_is_white(sheet):
    pixels = np.asarray(sheet)
    assert (pixels[:, :_GAP] == 255).all()
    assert (pixels[_LINE:, _GAP + 120 : 2 * _GAP + 120][: 2 * HEIGHT] == 255).all()
    below = _LINE + HEIGHT
    assert (pixels[below : below + _GAP] == 255).all()


def test_titles_stand_above_and_the_legend_of_all_classes_below(sheet):
    pixels = np.asarray(sheet)
    for column in range(4):
        left = _GAP + column * (120 + _GAP)
        assert (pixels[:_LINE, left : left + 120] < 128).any()
    legend = pixels[_LINE + 2 * (HEIGHT + _GAP) :].reshape(-1, 3)
    for colour in SPEC.palette:
        assert (legend == colour).all(-1).sum() >= 100


def test_a_long_legend_is_broken_into_lines():
    names = tuple(f"a long name {i}" for i in range(20))
    spec = DatasetSpec("many", names, colour_map(20), (1.0, 2.0, 3.0))
    sample = {"image": np.zeros((8, 8, 3), np.uint8), "label": np.zeros((8, 8), "u1")}
    sheet = prediction_sheet([sample], {}, spec, 100)
    assert isinstance(sheet, Image.Image)
    assert sheet.width == _GAP + 2 * (100 + _GAP)
    legend = np.asarray(sheet)[_LINE + 100 + _GAP :]
    assert len(legend) == 20 * _LINE + _GAP
    for i, colour in enumerate(spec.palette):
        line = legend[i * _LINE : (i + 1) * _LINE].reshape(-1, 3)
        assert (line == colour).all(-1).sum() >= 100
