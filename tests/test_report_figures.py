"""Sheets and figures: size, panels, colours, legends, and the files written."""

import argparse

import numpy as np
import pytest
from PIL import Image

from dilax.data import DATASETS, DatasetSpec, colour_map
from dilax.inference import palette_image, save_image
from dilax.report import field_figure, picture_figure, prediction_sheet, save_figure
from dilax.training.serialization import to_json
from experiments import figures, tables

SPEC = DATASETS["camvid"]


def _seen(panel):
    """Which pixels of a panel of Figure 1 are in the field, and the dots' places."""
    mesh, dots = panel.collections
    return mesh.get_array().reshape(17, 17), dots.get_offsets()


def test_figure_1_has_the_paper_s_fields_and_dots():
    panels = field_figure((1, 2, 4)).axes
    assert [p.get_title() for p in panels] == ["(a) 3×3", "(b) 7×7", "(c) 15×15"]
    for panel, rate, size in zip(panels, (1, 2, 4), (3, 7, 15), strict=True):
        seen, dots = _seen(panel)
        assert seen.sum() == size**2
        expected = {(x, y) for x in (-rate, 0, rate) for y in (-rate, 0, rate)}
        assert {tuple(map(int, dot)) for dot in dots} == expected


def test_holes_stay_white():
    *_, last = field_figure((2, 2, 2)).axes
    seen = last.collections[0].get_array()
    assert seen.sum() == 49  # of 169: 120 are never seen


def test_rows_and_columns_hold_the_pictures_in_order(tmp_path):
    pictures = [np.full((30, 40, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    columns = {"(a) Image": pictures[:2], "(b) Ours": pictures[2:]}
    figure = picture_figure(columns, SPEC, classes=[0, 2], notes=["one", "two"])
    shown = [panel.get_images()[0].get_array() for panel in figure.axes]
    assert [int(picture[0, 0, 0]) for picture in shown] == [10, 30, 20, 40]
    assert [panel.get_title() for panel in figure.axes[:2]] == [*columns]
    assert [panel.get_ylabel() for panel in figure.axes[::2]] == ["one", "two"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ["Building", "Sky"]
    png, pdf = save_figure(figure, tmp_path / "new" / "figure2")
    assert png.read_bytes()[1:4] == b"PNG" and pdf.read_bytes()[:4] == b"%PDF"


def test_long_legends_take_several_lines_below_the_pictures(tmp_path):
    spec = DATASETS["cityscapes"]
    picture = np.zeros((64, 128, 3), np.uint8)
    figure = picture_figure({"a": [picture], "b": [picture]}, spec, classes=range(19))
    save_figure(figure, tmp_path / "figure")  # which arranges it
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [*spec.classes]
    box, below = legend.get_window_extent(), figure.axes[0].get_window_extent().y0
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert box.y0 >= 0 and box.y1 <= below


def test_figure_5_follows_the_way_of_the_joint_stage(tmp_path, monkeypatch):
    """Not another network that the run trained before."""
    sample = {"image": np.zeros((4, 4, 3), np.uint8)}
    monkeypatch.setattr(figures, "open_evaluation", lambda *_: (None, SPEC, [sample]))
    monkeypatch.setattr(figures, "load_predictor", lambda _, stage: lambda image: stage)
    config = tables.recipe(5, "scenes")
    assert config.stages[0].name == "segnet"
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "results.json").write_text("{}")
    values = argparse.Namespace(runs=[tmp_path], data_dir="", images=[], rows=1)
    assert figures.side_by_side(5, values).predictions == {
        "Front end": ["front_end"],
        "+ Context": ["basic"],
        "+ Joint": ["joint"],
    }


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--figure=2"], "--runs: figure 2 shows trained runs; give their folders"),
        (["--figure=4", "--runs=nowhere"], "--runs=nowhere: has no results"),
        (["--figure=1", "--rows=0"], "--rows=0: must be 1 or more"),
        (["--figure=1", "--rates=0"], "must be one or more (kernel, rate) > 0"),
    ],
)
def test_what_cannot_be_drawn_says_why(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        figures.main([*flags, f"--workdir={tmp_path}"])
    assert message in capsys.readouterr().err


# Sheets of predictions.

THREE = DatasetSpec("three", ("a", "b", "c"), colour_map(3), (1.0, 2.0, 3.0))
WHITE, GREY = (255, 255, 255), (90, 90, 90)
HEIGHT, GAP, LINE = 80, 6, 22  # pixels


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
            save_image(palette_image(_halves(left, 0, shape), THREE), path)
    return prediction_sheet(samples, files, THREE, HEIGHT)


def test_a_sheet_has_one_row_per_image_and_one_column_per_stage(sheet):
    width = GAP + 4 * (HEIGHT * 60 // 40 + GAP)
    assert sheet.size == (width, LINE + 2 * (HEIGHT + GAP) + LINE + GAP)
    assert sheet.mode == "RGB"


def test_panels_have_the_colours_of_their_classes_on_white(sheet):
    black, red, green = THREE.palette
    expected = np.full((sheet.height, sheet.width, 3), 255, np.uint8)
    rows = [
        [(GREY, GREY), (red, WHITE), (red, black), (green, black)],
        [(GREY, GREY), (red, WHITE), (green, black), (red, black)],
    ]
    for i, (row, width) in enumerate(zip(rows, (120, 40), strict=True)):
        top = LINE + i * (HEIGHT + GAP)
        for column, (left, right) in enumerate(row):
            x = GAP + column * (120 + GAP)
            expected[top : top + HEIGHT, x : x + width // 2] = left
            expected[top : top + HEIGHT, x + width // 2 : x + width] = right
    panels = slice(LINE, LINE + 2 * (HEIGHT + GAP))
    np.testing.assert_array_equal(np.asarray(sheet)[panels], expected[panels])


def test_titles_are_above_and_the_legend_below(sheet):
    pixels = np.asarray(sheet)
    for column in range(4):
        left = GAP + column * (120 + GAP)
        assert (pixels[:LINE, left : left + 120] < 128).any()
    legend = pixels[LINE + 2 * (HEIGHT + GAP) :].reshape(-1, 3)
    for colour in THREE.palette:
        assert (legend == colour).all(-1).sum() >= 100


def test_a_long_legend_is_broken_into_lines():
    names = tuple(f"a long name {i}" for i in range(20))
    spec = DatasetSpec("many", names, colour_map(20), (1.0, 2.0, 3.0))
    sample = {"image": np.zeros((8, 8, 3), np.uint8), "label": np.zeros((8, 8), "u1")}
    sheet = prediction_sheet([sample], {}, spec, 100)
    assert isinstance(sheet, Image.Image)
    assert sheet.width == GAP + 2 * (100 + GAP)
    legend = np.asarray(sheet)[LINE + 100 + GAP :]
    assert len(legend) == 20 * LINE + GAP
    for i, colour in enumerate(spec.palette):
        line = legend[i * LINE : (i + 1) * LINE].reshape(-1, 3)
        assert (line == colour).all(-1).sum() >= 100
