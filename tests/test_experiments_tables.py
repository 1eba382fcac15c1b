"""The recipes of the paper's tables: every row has its stage, and all train alike."""

import json

import pytest
from tiny_run import TABLE, write_images

import dilax
from dilax.report import PAPER
from dilax.report.paper import steps_of, system_of
from dilax.training import DataConfig
from dilax.training.build import check_config
from dilax.training.step import build_schedule
from experiments import deeplab, figures, tables

NUMBERS = range(2, 9)


@pytest.mark.parametrize("name", tables.SMALL)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_recipe_has_a_stage_for_every_row_that_is_not_quoted(number, name):
    config = tables.recipe(number, name)
    check_config(config)
    found = {system_of(config, stage) for stage in config.stages}
    assert {row.system for row in PAPER[number].rows if row.system} <= found
    assert config.data.dataset == name


@pytest.mark.parametrize("number", [2, 4, 5, 6])
def test_systems_train_alike(number):
    config = tables.recipe(number, "camvid")
    networks = [stage for stage in config.stages if stage.trains == "front_end"]
    assert len(networks) >= 2
    first, *others = networks
    for stage in others:
        for field in ("batch_size", "crop", "optimizer", "loss", "augmentation"):
            assert getattr(stage, field) == getattr(first, field)
        model = stage.model or config.model
        assert model.width_multiplier == config.model.width_multiplier
        assert model.upsample  # so that all are scored at every pixel


@pytest.mark.parametrize("number", [5, 6])
def test_steps_on_images_are_as_many_for_every_row(number):
    """What the joint stage takes is not given to the front end before."""
    config = tables.recipe(number, "scenes")
    totals = set()
    for row in PAPER[number].rows:
        stages = [s for s in config.stages if system_of(config, s) == row.system]
        if stages:
            first, *_, last = map(int, f"{steps_of(config, stages[-1])} + 0".split("+"))
            joint = stages[-1].steps if stages[-1].trains == "all" else last
            totals.add(first + joint)
    assert totals == {500}


def test_deeplab_s_own_recipe_is_rows_of_table_4():
    config = deeplab.paper()
    check_config(config)
    network, crf = (system_of(config, stage) for stage in config.stages)
    assert network == PAPER[5].rows[4].system
    assert crf == PAPER[4].rows[0].system
    rate = build_schedule(config.stages[0].optimizer, 6000)
    rates = [float(rate(step)) for step in (0, 1999, 2001, 4001)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])


def test_a_recipe_changes_none_of_the_one_that_it_starts_from():
    before = tables.scenes()
    for number in NUMBERS:
        tables.recipe(number, "scenes")
    assert tables.scenes() == before


@pytest.mark.slow
def test_a_table_trains_is_written_and_drawn(tmp_path, capsys):
    config = tables.recipe(7, "scenes")
    config.data = DataConfig("folder", data_dir=str(write_images(tmp_path / "data")))
    config.model.layers, config.pictures = TABLE, 0
    for stage in config.stages:
        stage.steps, stage.batch_size, stage.crop = 2, 2, (24, 32)
    run = tmp_path / "run"
    results = dilax.train(config, run)["stages"]["joint"]
    text = tables.write_table(7, [run], tmp_path / "out")
    assert (tmp_path / "out" / "table7.md").read_text() == text + "\n"
    written = json.loads((tmp_path / "out" / "table7.json").read_text())
    validation, test = written["rows"]
    ours = validation["ours"]["0"]
    assert (ours["stage"], ours["steps"]) == ("joint", "2 + 2 + 2")
    assert ours["iou"] == results["iou_per_class"]
    assert test["ours"] is None and "--mode=submit" in test["note"]
    figures.main(["--figure=5", f"--runs={run}", f"--workdir={tmp_path}", "--rows=2"])
    assert "figure5.png" in capsys.readouterr().out
    assert (tmp_path / "figure5.pdf").stat().st_size > 1000
    with pytest.raises(SystemExit):
        figures.main(["--figure=2", f"--runs={run}", "--images=100", "--rows=1"])
    told = capsys.readouterr().err
    assert "no run has FCN-8s, DeepLab; experiments/tables.py --table=2 trains" in told
    assert "--images=100: there are 8 images, 0 to 7" in told
