"""Recipes with CRFs and of the paper's tables: their stages, and how these train."""

import json
from dataclasses import replace

import pytest
from tiny_run import TABLE, write_images

import dilax
from dilax.models import BASIC, LARGE, undilated
from dilax.report import PAPER
from dilax.report.paper import steps_of, system_of
from dilax.training import (
    CRFConfig,
    DataConfig,
    StageConfig,
    rnn_stage,
    structured,
    with_crfs,
)
from dilax.training.build import check_config
from dilax.training.step import build_schedule
from experiments import camvid, cityscapes, deeplab, figures, kitti, table3, tables, voc

# Recipes with CRFs: which stages they have, and what each stands on.


NINE = [
    *("front_end", "front_end_crf", "front_end_crfrnn"),
    *("basic", "basic_crf", "basic_crfrnn"),
    *("large", "large_crf", "large_crfrnn"),
]


CONTROLS = ["basic_control", "large_control"]
MODULES = {"front_end": (), "basic": BASIC, "large": LARGE}
MODULES |= {f"{name}_control": undilated(MODULES[name]) for name in ("basic", "large")}
FIFTEEN = NINE + [name + end for name in CONTROLS for end in ("", "_crf", "_crfrnn")]
STAGES = {
    table3.camvid_scratch: FIFTEEN,
    table3.camvid_vgg: FIFTEEN,
    table3.voc_vgg: FIFTEEN,
    table3.camvid_narrow: NINE[::3] + CONTROLS,
}


@pytest.mark.parametrize("make", table3.CONFIGURATIONS.values())
def test_table_3_has_stages_that_differ_in_nothing_else(make):
    stages = {stage.name: stage for stage in make().stages}
    assert list(stages) == STAGES.get(make, NINE)
    networks = {name: stage for name, stage in stages.items() if not stage.crf}
    for name, stage in networks.items():
        assert stage.context == MODULES[name]
    modules = [stage for stage in networks.values() if stage.context]
    assert networks["front_end"].start == ""
    assert {stage.start for stage in modules} == {"front_end"}
    same = [replace(stage, steps=0) for stage in modules]
    if make is table3.camvid_vgg:  # whose Large is too wide for Basic's learning rate
        for stage in same:
            stage.optimizer.learning_rate = 0.0
    assert _kinds(same) == 1
    for control in networks.keys() & set(CONTROLS):
        module = networks[control.removesuffix("_control")]
        assert _kinds([module, networks[control]]) == 1
    for end, kind in (("_crf", "dense"), ("_crfrnn", "rnn")):
        follow = [stage for stage in stages.values() if stage.crf_kind == kind]
        assert _kinds(follow) == bool(follow)
        for stage in follow:
            assert stage.trains == "crf"
            assert stage.start == stage.name.removesuffix(end)
            assert stage.context == networks[stage.start].context


def _kinds(stages):
    """How many stages there are that differ in more than names and modules."""
    return len({repr(replace(s, name="", start="", context=())) for s in stages})


@pytest.mark.parametrize(
    ("make", "experiment"),
    [
        (table3.camvid, camvid),
        (table3.voc, voc),
        (table3.kitti, kitti),
        (table3.cityscapes, cityscapes),
    ],
)
def test_the_table_trains_the_networks_of_the_other_experiments(make, experiment):
    ours, theirs = make(), experiment.small()
    assert (ours.data, ours.model) == (theirs.data, theirs.model)
    for name, other in (("front_end", "front_end"), ("basic", "context")):
        stage = replace(ours.stage(name), name=other, evaluate_every=0)
        wanted = replace(theirs.stage(other), evaluate_every=0)
        assert stage == wanted


def test_changing_one_stage_leaves_those_made_from_it_alone():
    config = structured(voc.small(), CRFConfig(), rnn_stage(10, 1, (64, 64)))
    before = repr(config.stage("basic")), repr(config.stage("basic_crfrnn"))
    config.stage("large").optimizer.learning_rate = 1.0
    config.stage("large").augmentation.mirror = False
    config.stage("large_crfrnn").crf.iterations = 99
    assert before == (repr(config.stage("basic")), repr(config.stage("basic_crfrnn")))


def test_a_recipe_whose_context_trains_jointly_keeps_its_way():
    config = structured(kitti.paper(), CRFConfig(), rnn_stage(10, 1, (628, 628)))
    large = config.stage("large")
    assert (large.trains, large.start, large.context) == ("all", "front_end", LARGE)
    assert large.crop == kitti.paper().stage("joint").crop


def test_the_paper_s_recipe_ends_with_crfs_on_the_joint_network():
    names = [stage.name for stage in voc.paper().stages]
    assert names == ["front_end", "context", "joint", "joint_crf", "joint_crfrnn"]
    rnn = voc.paper().stages[-1].crf
    sigmas = (rnn.spatial_sigma, rnn.bilateral_sigma_xy, rnn.bilateral_sigma_rgb)
    assert sigmas == (3.0, 160.0, 3.0)
    assert (rnn.train_steps, rnn.iterations) == (5, 10)


def test_stages_with_crfs_are_named_after_their_network():
    network = StageConfig("net", trains="all", context=BASIC)
    given = CRFConfig(search=False)
    dense, rnn = with_crfs(network, given, rnn_stage(7, 2, (8, 8), iterations=3))
    assert (dense.name, dense.crf, dense.context) == ("net_crf", given, BASIC)
    assert (rnn.name, rnn.steps, rnn.crf.iterations) == ("net_crfrnn", 7, 3)


# The paper's tables: every row has its stage, and all train alike.


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
