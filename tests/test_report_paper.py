"""The paper's tables: their numbers, and our results next to them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import write_images

from dilax.data import DATASETS
from dilax.evaluation import Scores
from dilax.models import LARGE, undilated
from dilax.report import (
    PAPER,
    collect,
    paper_figures,
    paper_table,
    seed_table,
)
from dilax.report.paper import System, system_of
from dilax.training import quickstart
from dilax.training.serialization import to_json
from experiments.table3 import table3, table3_figures


def test_the_iou_of_a_row_gives_its_mean():
    """On VOC, the mean includes the background, whose IoU is between 91 and 95."""
    for number, table in PAPER.items():
        for row in table.rows:
            assert len(row.iou) == len(table.columns), (number, row.name)
            total = sum(row.iou)
            if number <= 4:
                assert 91 < 21 * row.mean - total < 95, (number, row.name)
            else:
                mean = total / len(row.iou)
                assert mean == pytest.approx(row.mean, abs=0.051), (number, row.name)


@pytest.mark.parametrize("number, count", [(2, 4), (3, 9), (4, 7), (5, 6), (6, 3)])
def test_tables_have_the_rows_of_the_paper(number, count):
    assert len(PAPER[number].rows) == count


@pytest.mark.parametrize(
    "number, name", [(2, "voc"), (5, "camvid"), (6, "kitti"), (7, "cityscapes")]
)
def test_columns_are_the_classes_of_the_data_set(number, name):
    classes = DATASETS[name].classes
    assert PAPER[number].columns == classes[-len(PAPER[number].columns) :]


def test_the_columns_of_table_8_are_the_categories():
    names = {name for name, _ in DATASETS["cityscapes"].categories}
    assert {*PAPER[8].columns} == names


@pytest.mark.parametrize(
    "number, quoted",
    [(2, set()), (5, {"ALE", "SuperParsing", "Liu and He"}), (6, {"Ros et al."})],
)
def test_systems_of_others_are_quoted(number, quoted):
    found = {row.name for row in PAPER[number].rows if row.note == "quoted"}
    assert found == quoted
    assert all(row.system is None for row in PAPER[number].rows if row.name in found)


def test_systems_are_identified_by_network_context_and_crf():
    config = quickstart()
    stage = config.stage("joint")
    stage.context = LARGE
    assert system_of(config, stage) == System(context="large")
    stage.context = undilated(LARGE)
    assert system_of(config, stage).context == "other"
    config.model.network = "segnet"
    assert system_of(config, config.stage("front_end")) == System("segnet")


# On folders of runs, whose results are written by hand.


def _scores(classes, iou):
    """What a stage's results hold, all classes with one IoU: n hits, one miss."""
    hits = round(1000 * iou)
    counts = np.diag(np.full(len(classes), hits)).astype(object)
    for i in range(len(classes)):
        counts[i, (i + 1) % len(classes)] = (1000 - hits) // 2
    return Scores(tuple(classes), counts).as_dict()


def _folder(path, classes, iou, seed=0, data="scenes", stage="front_end", **model):
    """The folder of a run with one stage."""
    config = quickstart()
    config.stages = tuple(s for s in config.stages if s.name == "front_end")
    config.stages[0].name, config.seed = stage, seed
    for name, value in model.items():
        setattr(config.model, name, value)
    path.mkdir(parents=True)
    (path / "config.json").write_text(to_json(config))
    results = {"data": data, "split": "val", "images": 7, "seed": seed}
    results["stages"] = {stage: _scores(classes, iou)}
    (path / "results.json").write_text(json.dumps(results))
    return path


def _cells(text):
    """The lines of the first table."""
    first = text.split("\n\n")[1].splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in first]


def test_results_are_next_to_the_paper_s_and_missing_rows_are_noted(tmp_path):
    run = _folder(tmp_path / "a", ("sky", "tree"), 0.5, network="segnet")
    table = paper_table(5, collect([run]))
    cells = {line[0]: line[1:] for line in _cells(table)}
    assert cells["SegNet"] == ["50.0", "46.4", "250", ""]
    assert cells["ALE"] == ["–", "53.6", "", "quoted"]
    needed = (
        "not in these runs: front_end, the basic context module; --table=5 trains it"
    )
    assert cells["Dilation8"] == ["–", "65.3", "", needed]
    assert (
        "ours on scenes val, 7 images; the paper's on the test set of CamVid" in table
    )
    ours, theirs = table.split("\n\n")[2:]
    assert "sky" in ours and "Building" in theirs and "82.6" in theirs


def test_the_same_classes_share_a_table(tmp_path):
    classes = DATASETS["camvid"].classes
    run = _folder(tmp_path / "a", classes, 0.5, data="camvid", network="segnet")
    *_, last = paper_table(5, collect([run])).split("\n\n")
    [line] = [line for line in last.splitlines() if line.startswith("| Building")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == [
        *("– (73.4)", "– (70.4)", "– (66.8)", "50.0 (68.7)", "– (81.5)", "– (82.6)"),
    ]


def test_seeds_are_averaged_and_the_last_folder_of_a_seed_counts(tmp_path):
    for seed, iou in ((0, 0.5), (1, 0.6)):
        _folder(tmp_path / "a" / f"seed{seed}", ("sky", "tree"), iou, seed)
    newer = _folder(tmp_path / "b", ("sky", "tree"), 0.8, seed=1)
    found = collect([tmp_path / "a"])
    assert [s["mean_iou"] for s in found.scores(System())] == pytest.approx([0.5, 0.6])
    assert _cells(paper_table(2, found))[-1][1] == "55.0 ± 7.1"
    both = collect([tmp_path / "a", newer])
    assert [s["mean_iou"] for s in both.scores(System())] == pytest.approx([0.5, 0.8])
    figures = paper_figures(2, both)["rows"][-1]
    assert [*figures["ours"]] == ["0", "1"]
    assert figures["ours"]["1"]["iou"]["sky"] == pytest.approx(0.8)
    assert figures["quoted"]["iou"]["sofa"] == 0.499
    json.dumps(figures)


def test_categories_are_measured_where_the_data_set_has_none(tmp_path):
    classes = ("sky", "water", "grass")
    run = _folder(tmp_path / "a", classes, 0.5)
    groups = (("sky", ("sky",)), ("ground", ("water", "grass")))
    scores = collect([run], groups).scores(System())[0]
    assert scores["iou_per_category"]["sky"] == pytest.approx(0.5)
    # 500 of each hit, 250 of water taken for grass: 1250 of 1250 + 250 + 250.
    assert scores["iou_per_category"]["ground"] == pytest.approx(1250 / 1750)


def test_unlike_folders_are_rejected(tmp_path):
    one = _folder(tmp_path / "a", ("sky", "tree"), 0.5)
    other = _folder(tmp_path / "b", ("sky", "tree"), 0.5, data="camvid")
    with pytest.raises(ValueError, match="are of camvid val, scenes val; give runs"):
        collect([one, other])
    empty = write_images(tmp_path / "images")
    with pytest.raises(ValueError, match=r"--runs=.*images: has no results; give"):
        collect([empty])


@pytest.mark.slow
def test_the_command_collects_results_of_other_experiments(tmp_path):
    run = _folder(tmp_path / "a", ("sky", "tree"), 0.5, network="segnet")
    script = Path(__file__).parent.parent / "experiments" / "tables.py"
    flags = ["--table=5", "--mode=collect", f"--runs={run}", "--workdir=out"]
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "table5.md").read_text().strip() == done.stdout.strip()
    rows = json.loads((tmp_path / "out" / "table5.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["ours"]] == ["SegNet"]


# Table 3 and seeds, from results of known runs.

NETWORKS = ("front_end", "basic", "large")
ENDS = ("", "_crf", "_crfrnn")
STAGES = [network + end for network in NETWORKS for end in ENDS]


def _table3_run(seed, offset=0.0):
    """Mean IoUs of 10 %, 20 %, … in the order of the stages."""
    values = ((i + 1) / 10 + offset for i in range(9))
    stages = {n: {"mean_iou": v} for n, v in zip(STAGES, values, strict=True)}
    return {"seed": seed, "stages": stages}


def _table_cells(table):
    rows = [line for line in table.splitlines() if not line.startswith("|-")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_table_3_has_networks_as_columns_and_crfs_as_rows():
    head, *rows = _table_cells(table3([_table3_run(0)]))
    assert head[:4] == ["mean IoU, %", "front end", "+ Basic", "+ Large"]
    assert head[4:] == [f"paper: {title}" for title in head[1:4]]
    assert rows == [
        ["no CRF", "10.0", "40.0", "70.0", "69.8", "71.3", "72.1"],
        ["dense CRF", "20.0", "50.0", "80.0", "71.6", "72.7", "73.3"],
        ["CRF-RNN", "30.0", "60.0", "90.0", "72.5", "73.1", "73.9"],
    ]


def test_table_3_over_seeds_has_mean_and_sample_deviation():
    runs = [_table3_run(0), _table3_run(1, 0.02), _table3_run(2, 0.04)]
    assert _table_cells(table3(runs))[1][1] == "12.0 ± 2.0"
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


def test_seeds_are_columns():
    head, *rows = _table_cells(seed_table([_table3_run(3), _table3_run(5, 0.01)]))
    assert head == ["mean IoU, %", "seed 3", "seed 5", "mean ± sd"]
    assert [row[0] for row in rows] == [name.replace("_", " ") for name in STAGES]
    assert rows[1] == ["front end crf", "20.0", "21.0", "20.5 ± 0.7"]


def test_controls_and_trimaps_are_shown_if_present():
    run = _table3_run(0)
    run["stages"]["basic"]["trimap_iou"] = {"4": 0.25}
    run["stages"]["basic_control"] = {"mean_iou": 0.3}
    run["stages"]["basic_control_crf"] = {"mean_iou": 0.35, "trimap_iou": {"4": 0.15}}
    whole, near = table3([run]).split("\n\n")
    head, *rows = _table_cells(whole)
    assert head[1:5] == ["front end", "+ Basic", "+ Large", "+ Basic undilated"]
    assert [row[4] for row in rows] == ["30.0", "35.0", "–"]
    assert rows[0][5:] == ["69.8", "71.3", "72.1"]
    head, *rows = _table_cells(near)
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
