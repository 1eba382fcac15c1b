"""Figures: their panels, what they show, and the files that they are written to."""

import numpy as np
import pytest

from dilax.data import DATASETS
from dilax.report import field_figure, picture_figure, save_figure
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
    (legend,) = figure.artists
    assert [text.get_text() for text in legend.texts] == ["Building", "Sky"]
    png, pdf = save_figure(figure, tmp_path / "new" / "figure2")
    assert png.read_bytes()[1:4] == b"PNG" and pdf.read_bytes()[:4] == b"%PDF"


def test_long_legends_take_several_lines_below_the_pictures():
    spec = DATASETS["cityscapes"]
    picture = np.zeros((64, 128, 3), np.uint8)
    figure = picture_figure({"image": [picture]}, spec, classes=range(19))
    assert len(figure.artists) > 1
    names = [text.get_text() for legend in figure.artists for text in legend.texts]
    assert {*names} == {*spec.classes}


def test_figure_5_follows_the_way_of_the_joint_stage(tmp_path):
    """Not another network that the run trained before."""
    config = tables.recipe(5, "scenes")
    assert config.stages[0].name == "segnet"
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "results.json").write_text("{}")
    assert {t: s.name for t, s in figures._training([tmp_path]).items()} == {
        "Front end": "front_end",
        "+ Context": "basic",
        "+ Joint": "joint",
    }


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--figure=2"], "--runs: figure 2 shows trained runs; name their folders"),
        (["--figure=4", "--runs=nowhere"], "--runs=nowhere: has no results"),
        (["--figure=1", "--rows=0"], "--rows=0: must be 1 or more"),
        (["--figure=1", "--rates=0"], "must be (kernel, rate) > 0"),
    ],
)
def test_what_cannot_be_drawn_says_why(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        figures.main([*flags, f"--workdir={tmp_path}"])
    assert message in capsys.readouterr().err
