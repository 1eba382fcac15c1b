"""Recipes with CRFs: which stages they have, and what each stands on."""

from dataclasses import replace

import pytest

from dilax.models import BASIC, LARGE, undilated
from dilax.training import CRFConfig, StageConfig, rnn_stage, structured, with_crfs
from experiments import camvid, cityscapes, kitti, table3, voc

NINE = [
    *("front_end", "front_end_crf", "front_end_crfrnn"),
    *("basic", "basic_crf", "basic_crfrnn"),
    *("large", "large_crf", "large_crfrnn"),
]


CONTROLS = ["basic_control", "large_control"]
MODULES = {"front_end": (), "basic": BASIC, "large": LARGE}
MODULES |= {f"{name}_control": undilated(MODULES[name]) for name in ("basic", "large")}
STAGES = {
    table3.camvid_scratch: NINE
    + [name + end for name in CONTROLS for end in ("", "_crf", "_crfrnn")],
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
    assert _kinds([replace(stage, steps=0) for stage in modules]) == 1
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
