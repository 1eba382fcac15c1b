"""Table 3 and the table of seeds: figures that are known, and where they stand."""

import pytest

from dilax.report import seed_table, table3, table3_figures

NETWORKS = ("front_end", "basic", "large")
ENDS = ("", "_crf", "_crfrnn")
STAGES = [network + end for network in NETWORKS for end in ENDS]


def _run(seed, offset=0.0):
    """Mean IoUs of 10 %, 20 %, … in the order of the stages."""
    values = ((i + 1) / 10 + offset for i in range(9))
    stages = {n: {"mean_iou": v} for n, v in zip(STAGES, values, strict=True)}
    return {"seed": seed, "stages": stages}


def _cells(table):
    rows = [line for line in table.splitlines() if not line.startswith("|-")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_rows_are_what_follows_and_columns_are_the_networks():
    head, *rows = _cells(table3([_run(0)]))
    assert head[:4] == ["mean IoU, %", "front end", "+ Basic", "+ Large"]
    assert head[4:] == [f"paper: {title}" for title in head[1:4]]
    assert rows == [
        ["no CRF", "10.0", "40.0", "70.0", "69.8", "71.3", "72.1"],
        ["dense CRF", "20.0", "50.0", "80.0", "71.6", "72.7", "73.3"],
        ["CRF-RNN", "30.0", "60.0", "90.0", "72.5", "73.1", "73.9"],
    ]


def test_over_seeds_it_has_the_mean_and_the_sample_deviation():
    runs = [_run(0), _run(1, 0.02), _run(2, 0.04)]
    assert _cells(table3(runs))[1][1] == "12.0 ± 2.0"
    figures = table3_figures(runs)
    assert figures["seeds"] == [0, 1, 2]
    assert {*figures["stages"]} == {*STAGES}
    assert figures["stages"]["large_crfrnn"] == {
        "mean_iou": pytest.approx([0.9, 0.92, 0.94]),
        "mean": pytest.approx(0.92),
        "sd": pytest.approx(0.02),
        "paper": 0.739,
    }
    assert table3_figures(runs[:1])["stages"]["basic"]["sd"] is None


def test_seeds_stand_beside_each_other():
    head, *rows = _cells(seed_table([_run(3), _run(5, 0.01)]))
    assert head == ["mean IoU, %", "seed 3", "seed 5", "mean ± sd"]
    assert [row[0] for row in rows] == [name.replace("_", " ") for name in STAGES]
    assert rows[1] == ["front end crf", "20.0", "21.0", "20.5 ± 0.7"]


def test_controls_and_trimaps_show_where_there_are_any():
    run = _run(0)
    run["stages"]["basic"]["trimap_iou"] = {"4": 0.25}
    run["stages"]["basic_control"] = {"mean_iou": 0.3}
    run["stages"]["basic_control_crf"] = {"mean_iou": 0.35, "trimap_iou": {"4": 0.15}}
    whole, near = table3([run]).split("\n\n")
    head, *rows = _cells(whole)
    assert head[1:5] == ["front end", "+ Basic", "+ Large", "+ Basic undilated"]
    assert [row[4] for row in rows] == ["30.0", "35.0", "–"]
    assert rows[0][5:] == ["69.8", "71.3", "72.1"]
    head, *rows = _cells(near)
    assert head[0] == "mean IoU within 4 px of a boundary, %"
    assert rows == [
        ["no CRF", "–", "25.0", "–", "–"],
        ["dense CRF", "–", "–", "–", "15.0"],
        ["CRF-RNN", "–", "–", "–", "–"],
    ]
    figures = table3_figures([run])["stages"]
    assert figures["basic"]["trimap_iou"] == [0.25]
    assert figures["basic_control_crf"]["paper"] is None
    assert "trimap_iou" not in figures["basic_control"]
    assert "basic_control_crfrnn" not in figures
