"""The paper's figures, and the tables that set ours beside them."""

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
from dilax.report import PAPER, collect, paper_figures, paper_table
from dilax.report.paper import System
from dilax.report.runs import system_of
from dilax.training import quickstart
from dilax.training.serialization import to_json

ROWS = [(n, row) for n, table in PAPER.items() for row in table.rows]


def _ids(rows):
    return [f"{number}-{row.name}" for number, row in rows]


@pytest.mark.parametrize("number, row", ROWS, ids=_ids(ROWS))
def test_a_row_s_figures_give_its_mean(number, row):
    """Of VOC, whose mean counts the background besides, what it leaves for that."""
    table = PAPER[number]
    assert len(row.iou) == len(table.columns)
    total = sum(row.iou)
    if number <= 4:
        assert 91 < 21 * row.mean - total < 95
    else:
        assert total / len(row.iou) == pytest.approx(row.mean, abs=0.051)


@pytest.mark.parametrize("number, count", [(2, 4), (3, 9), (4, 7), (5, 6), (6, 3)])
def test_a_table_has_its_rows(number, count):
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
def test_what_nothing_here_can_be_is_quoted(number, quoted):
    found = {row.name for row in PAPER[number].rows if row.note == "quoted"}
    assert found == quoted
    assert all(row.system is None for row in PAPER[number].rows if row.name in found)


def test_a_system_is_known_by_its_network_context_and_crf():
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


def test_ours_stand_beside_the_paper_s_and_what_is_missing_says_so(tmp_path):
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


def test_seeds_are_gathered_and_a_later_folder_counts(tmp_path):
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


def test_folders_that_do_not_fit_are_refused(tmp_path):
    one = _folder(tmp_path / "a", ("sky", "tree"), 0.5)
    other = _folder(tmp_path / "b", ("sky", "tree"), 0.5, data="camvid")
    with pytest.raises(ValueError, match="are of camvid val, scenes val; give runs"):
        collect([one, other])
    empty = write_images(tmp_path / "images")
    with pytest.raises(ValueError, match=r"--runs=.*images: has no results; give"):
        collect([empty])


@pytest.mark.slow
def test_the_command_collects_what_other_experiments_found(tmp_path):
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
