import dataclasses
import itertools
import json

import pytest
from tiny_run import tiny_config, write_images

from dilax.data import Augmentation, DatasetSpec
from dilax.models import (
    BASIC,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from dilax.training import Config, CRFConfig, check_run
from dilax.training.build import build_model, build_spec, check_config
from dilax.training.serialization import from_json, to_json
from experiments import camvid, cityscapes, coco, kitti, table3, voc

SETS = (voc, coco, camvid, kitti, cityscapes)
CONFIGS = (
    voc.quickstart,
    *(s.small for s in SETS),
    *(s.paper for s in SETS),
    *table3.CONFIGURATIONS.values(),
)


@pytest.mark.parametrize("make", CONFIGS)
def test_every_configuration_is_sound_and_survives_its_file(make, tmp_path):
    config = make()
    check_config(config)
    path = tmp_path / "config.json"
    path.write_text(to_json(config), "utf-8")
    assert from_json(Config, path) == config
    path.write_text(to_json(build_spec(config)), "utf-8")
    assert from_json(DatasetSpec, path) == build_spec(config)


def _of_version_0_1(value):
    """Configuration data with the field names and the fields of version 0.1."""
    if isinstance(value, list):
        return [_of_version_0_1(item) for item in value]
    if not isinstance(value, dict):
        return value
    old = {name: _of_version_0_1(item) for name, item in value.items()}
    if "lr_multipliers" in old:
        pairs = old.pop("lr_multipliers")
        old |= {"fast_layers": [layer for layer, _ in pairs], "fast_multiplier": 10.0}
        old["for_batch"] = old.pop("base_batch_size")
    if "edge_crops" in old:
        old["halves"] = old.pop("edge_crops")
        old["surroundings"] = old.pop("full_tile_maps")
    if "min_kept" in old:
        old |= {"least": old.pop("min_kept"), "balance": ""}
    if "threads" in old:
        old["hold"] = old.pop("cache")
    if "saved_predictions" in old:
        old["kept"], old["reset"] = old.pop("saved_predictions"), old.pop("reinit")
    if "context_prefix" in old:
        old |= {"context_border": "zero", "norm": False}
    return old


def test_configurations_of_version_0_1_are_read(tmp_path, caplog):
    config = cityscapes.paper()
    config.reinit = ("final",)
    config.stages[0].optimizer.lr_multipliers = (("final", 10.0),)
    path = tmp_path / "config.json"
    old = _of_version_0_1(json.loads(to_json(config)))
    path.write_text(json.dumps(old))
    assert from_json(Config, path) == config
    assert "by version 0.1" in caplog.text and "reset as reinit" in caplog.text
    old["model"]["norm"] = True
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"config.json: norm: .* version 0\.1"):
        from_json(Config, path)


@pytest.mark.parametrize(
    ("make", "network"),
    [
        (voc.paper, dilation8_voc()),
        (coco.paper, dilation8_voc()),
        (camvid.paper, dilation8_camvid()),
        (kitti.paper, dilation7_kitti()),
        (cityscapes.paper, dilation10_cityscapes()),
    ],
)
def test_paper_configurations_build_the_released_networks(make, network):
    config = make()
    built = build_model(config, config.stages[-1], network.num_classes)
    assert built == network


def test_paper_recipes_are_those_of_the_paper():
    front = voc.paper().stage("front_end")
    assert (front.steps, front.batch_size, front.crop) == (60_000, 14, (500, 500))
    rule = front.optimizer
    assert (rule.name, rule.learning_rate, rule.momentum) == ("sgd", 1e-3, 0.9)
    assert (rule.weight_decay, rule.bias_multiplier) == (5e-4, 2.0)
    front, joint = camvid.paper().stages
    assert (front.steps, front.batch_size, front.crop) == (20_000, 8, (628, 628))
    assert (front.optimizer.learning_rate, front.optimizer.momentum) == (1e-4, 0.99)
    assert (joint.batch_size, joint.crop) == (1, (852, 852))
    assert (joint.optimizer.learning_rate, joint.optimizer.momentum) == (1e-5, 0.9)


def _row(stage):
    rule = stage.optimizer
    return (
        stage.steps,
        stage.batch_size,
        stage.crop,
        rule.learning_rate,
        rule.momentum,
    )


def test_the_recipe_of_coco_is_that_of_section_5():
    mixed, front_end, *_ = coco.paper().stages
    assert _row(mixed) == (140_000, 14, (500, 500), 1e-3, 0.9)
    assert mixed.optimizer.milestones == ((100_000, 0.1),)
    assert _row(front_end) == (50_000, 14, (500, 500), 1e-5, 0.9)
    assert (mixed.extra, front_end.extra, front_end.start) == (True, False, "mixed")
    assert coco.paper().data.extra == "coco"
    assert voc.paper().stages[0].steps == 60_000


def test_the_recipes_of_kitti_and_cityscapes_are_those_of_the_appendix():
    front_end, joint = kitti.paper().stages
    assert _row(front_end) == (10_000, 8, (628, 628), 1e-4, 0.99)
    assert _row(joint) == (20_000, 1, (900, 900), 1e-5, 0.99)
    front_end, context, joint = cityscapes.paper().stages
    assert _row(front_end) == (40_000, 8, (628, 628), 1e-4, 0.99)
    assert _row(context) == (24_000, 100, (1024, 2048), 1e-4, 0.99)
    assert _row(joint) == (60_000, 1, (1396, 1396), 1e-5, 0.99)
    assert (joint.edge_crops, context.inputs) == (True, "maps")


@pytest.mark.parametrize("paper", [s.paper for s in SETS])
def test_the_context_module_has_the_layers_that_the_set_is_said_to_have(paper):
    config = paper()
    closing = 1  # the 1×1 convolution counts as a layer too
    layers = len(config.stages[-1].context) + closing
    assert layers == build_spec(config).context_layers


def test_tiles_are_the_release_s_where_margins_hide_their_seams():
    assert build_spec(camvid.paper()).tile == (900, 1100)
    assert build_spec(camvid.small()).tile is None
    config = camvid.small()
    config.data.tile = (184, 240)
    assert build_spec(config).tile == (184, 240)


def test_control_is_the_context_stage_with_dilation_one():
    for make in (voc.quickstart, voc.small, camvid.small):
        stages = {stage.name: stage for stage in make().stages}
        context, control = stages["context"], stages["control"]
        assert {row.dilation for row in control.context} == {1}
        same = dataclasses.replace(control, name="context", context=context.context)
        assert same == context
        assert len(control.context) == len(context.context)


DENSE, RNN = CRFConfig("dense"), CRFConfig("rnn")


def test_a_dense_crf_needs_no_crop_and_stands_on_its_network(tmp_path):
    config = _changed(tmp_path, 2, trains="crf", crf=DENSE, crop=(3, 3))
    check_config(config)
    assert [stage.crf_kind for stage in config.stages] == ["", "", "dense"]


def _changed(tmp_path, index, **fields):
    config = tiny_config(tmp_path)
    for name, value in fields.items():
        setattr(config.stages[index], name, value)
    return config


@pytest.mark.parametrize(
    ("index", "fields", "message"),
    [
        (0, {"crop": (21, 20)}, r"stages\[0\]\.crop\[0\]=21: \(crop - 2\).* 20 and 22"),
        (2, {"crop": (20, 3)}, r"stages\[2\]\.crop\[1\]=3"),
        (1, {"start": "fornt_end"}, r"start='fornt_end': must be .*front_end"),
        (1, {"start": ""}, r"stages\[1\]: to train a context module"),
        (1, {"name": "front_end"}, r"name='front_end': must be a"),
        (1, {"name": "a b"}, r"name='a b'"),
        (1, {"trains": "all"}, r"inputs='maps'"),
        (0, {"steps": 0}, r"stages\[0\]\.steps=0: must be positive"),
        (0, {"context": BASIC}, r"stages\[0\]\.context: no stage trains it"),
        (0, {"augmentation": Augmentation(scales=(2.0, 1.0))}, r"scales=\(2.0, 1.0\)"),
        (0, {"accumulate": 3}, r"batch_size=4: is not a multiple of accumulate=3"),
        (0, {"trains": "crf"}, r"stages\[0\]\.trains='crf': the stage has no CRF"),
        (0, {"crf": RNN}, r"stages\[0\]\.crf: \.trains='front_end' does not"),
        (1, {"crf": RNN}, r"stages\[1\]\.crf: \.trains='context' does not"),
        (2, {"crf": DENSE}, r"stages\[2\]\.crf\.kind='dense': cannot be"),
        (2, {"trains": "crf", "crf": RNN, "start": ""}, r"trains='crf': give the"),
        (2, {"trains": "crf", "crf": DENSE, "context": ()}, r"start='context', bec"),
        (2, {"crf": CRFConfig("rnn", 0.0)}, r"\]\.crf\.spatial_sigma=0.0: must be pos"),
        (2, {"crf": CRFConfig("rnn", train_steps=0)}, r"train_steps=0: must be pos"),
        (
            2,
            {"trains": "crf", "crf": CRFConfig(bilateral_weight=-1.0)},
            r"\.crf\.bilateral_weight=-1.0: must not be negative",
        ),
    ],
)
def test_impossible_stages_are_refused_by_name(tmp_path, index, fields, message):
    with pytest.raises(ValueError, match=message):
        check_config(_changed(tmp_path, index, **fields))


def test_a_crf_that_trains_and_rows_over_devices_exclude_each_other(tmp_path):
    config = _changed(tmp_path, 2, trains="crf", crf=RNN)
    config.mesh.rows = 2
    with pytest.raises(ValueError, match=r"mesh\.rows=2: --config\.stages\[2\]\.crf"):
        check_config(config)


def test_more_images_come_from_a_set_of_the_same_classes(tmp_path):
    config = tiny_config(write_images(tmp_path / "data"))
    config.data.extra = "coco"
    with pytest.raises(ValueError, match=r"data\.extra=coco: has other classes than"):
        check_run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("owner", "field", "value"),
    [
        (lambda c: c, "log_every", 0),
        (lambda c: c, "eval_batch_size", 0),
        (lambda c: c.data, "scale", -1.0),
        (lambda c: c.model, "width_multiplier", 0.0),
        (lambda c: c.data, "tile", (3, 4)),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(tmp_path, owner, field, value):
    config = tiny_config(tmp_path)
    setattr(owner(config), field, value)
    with pytest.raises(ValueError, match=field):
        check_config(config)


@pytest.mark.parametrize(
    ("field", "value"), [("name", "sdg"), ("schedule", "cos"), ("momentum", None)]
)
def test_values_outside_a_fields_type_are_refused_by_path(tmp_path, field, value):
    config = tiny_config(tmp_path)
    setattr(config.stages[1].optimizer, field, value)
    with pytest.raises(ValueError, match=rf"stages\[1\]\.optimizer\.{field}"):
        check_config(config)


def test_stage_is_the_last_one_unless_named(tmp_path):
    config = tiny_config(tmp_path)
    assert config.stage().name == "joint"
    assert config.stage("context").start == "front_end"
    with pytest.raises(ValueError, match="'nope': this run has front_end, context"):
        config.stage("nope")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json: not the folder of a run"),
        ('{"name": "x"}', "config.json: does not fit this version: .*stages"),
        ("{", "config.json: does not fit this version"),
    ],
)
def test_unreadable_config_is_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        from_json(Config, path)


def test_all_crops_of_a_configuration_divide_into_cells():
    crops = itertools.chain(*(s.crop for s in voc.paper().stages if s.inputs != "maps"))
    assert all((crop - 372) % 8 == 0 for crop in crops)
