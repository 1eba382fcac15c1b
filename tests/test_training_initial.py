"""Runs that start from weights: of a file, of another run, of a released network."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from networks import RELEASES, SLIM, each_release, init_shapes, random_params
from tiny_run import tiny_config, write_images
from weight_files import IMAGE, blob, caffe_layer, layers_of, oihw

import dilax
from dilax.cli import overridden
from dilax.data import DATASETS
from dilax.models import BASIC, VGG16_SLIM_HEAD
from dilax.training import DataConfig, ModelConfig, OptimizerConfig, import_weights
from dilax.training.build import build_model, build_spec
from dilax.training.initial import check_fits, check_init, params_from_init
from dilax.training.run import check_run
from dilax.weights import Inputs, save_weights
from dilax.weights.stored import adapted
from experiments import camvid, cityscapes, coco, kitti, voc

MEAN = (20.0, 30.0, 40.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images")


def _still(data, **fields):
    """The tiny recipe of one stage that ends where it starts."""
    config = tiny_config(data, **fields)
    rule = OptimizerConfig("sgd", learning_rate=0.0, weight_decay=0.0)
    first = dataclasses.replace(config.stages[0], optimizer=rule, steps=1)
    config.stages = (dataclasses.replace(first, evaluate_every=0),)
    return config


def _model(config):
    spec = build_spec(config)
    return build_model(config, config.stages[0], spec.num_classes), spec


def _shapes(config):
    return init_shapes(_model(config)[0], np.zeros((1, 20, 20, 3), np.float32))


def _file(config, folder, **changes):
    """Weights of the tiny front end; layers that are None are left out."""
    image = np.zeros((1, 20, 20, 3), np.float32)
    front_end = random_params(_model(config)[0], image)["front_end"]
    front_end = {n: v for n, v in (front_end | changes).items() if v is not None}
    save_weights({"front_end": front_end}, folder / "a.npz", mean=MEAN)
    return front_end


def _equal(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_a_run_starts_from_a_file_and_says_what_it_took(data, tmp_path, capsys):
    config = _still(data)
    given = _file(config, tmp_path, final=None)
    config.init = str(tmp_path / "a.npz")
    dilax.train(config, tmp_path / "run")
    found = dilax.load_checkpoint(tmp_path / "run")[1]["front_end"]
    kernel, bias = adapted(
        *(np.asarray(given["conv1"][part]) for part in ("kernel", "bias")),
        Inputs(MEAN),
        _model(config)[1].mean,
    )
    np.testing.assert_array_equal(found["conv1"]["kernel"], kernel)
    np.testing.assert_array_equal(found["conv1"]["bias"], bias)
    assert not np.array_equal(bias, given["conv1"]["bias"])
    assert _equal(found["fc"], given["fc"])
    text = (tmp_path / "run" / "init.txt").read_text("utf-8")
    assert "stage front_end" in text and "front_end/final: missing" in text
    assert text.partition("\n")[2] in capsys.readouterr().out


def test_a_run_that_goes_on_does_not_need_the_file_again(data, tmp_path):
    config = _still(data)
    _file(config, tmp_path)
    config.init = str(tmp_path / "a.npz")
    results = dilax.train(config, tmp_path / "run")
    (tmp_path / "a.npz").unlink()
    (tmp_path / "run" / "results.json").unlink()
    assert dilax.train(config, tmp_path / "run") == results
    other = dataclasses.replace(config, init=None)
    with pytest.raises(ValueError, match=r"another configuration \(init"):
        dilax.train(other, tmp_path / "run")


def test_weights_that_do_not_fit_are_refused_before_the_folder_is_taken(data, tmp_path):
    config = _still(data)
    given = _file(config, tmp_path, fc=None)
    config.init = str(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="lacks front_end/fc/bias"):
        dilax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    _file(config, tmp_path, fc=given["conv1"])
    with pytest.raises(ValueError, match=r"front_end/fc/.* is .* there"):
        dilax.train(config, tmp_path / "run")
    config.init = str(tmp_path / "b.npz")
    with pytest.raises(ValueError, match=r"b\.npz: .* No such file"):
        dilax.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a run whose only stage has a context module."""
    config = _still(data)
    joint = dataclasses.replace(config.stages[0], trains="all", context=BASIC[:3])
    config.stages = (joint,)
    workdir = tmp_path_factory.mktemp("trained") / "run"
    dilax.train(config, workdir)
    return workdir, config


def _fine_tuning(trained, data, **fields):
    config = dataclasses.replace(trained[1], init=str(trained[0]), **fields)
    model, spec = _model(config)
    fresh = random_params(model, np.zeros((1, 20, 20, 3), np.float32), seed=9)
    check_fits(config, spec)
    params, report = params_from_init(config, spec, model, fresh)
    return dilax.load_checkpoint(trained[0])[1], fresh, params, report


def test_a_run_starts_from_another_run_s_folder(trained, data):
    given, _, params, report = _fine_tuning(trained, data)
    assert _equal(given, params)
    assert not (report.missing or report.reinit or report.left_over)


def test_layers_that_are_reset_keep_the_initialization(trained, data):
    reset = ("final", "ctx")
    given, fresh, params, report = _fine_tuning(trained, data, reinit=reset)
    assert _equal(params["context"], fresh["context"])
    assert _equal(params["front_end"]["final"], fresh["front_end"]["final"])
    assert _equal(params["front_end"]["fc"], given["front_end"]["fc"])
    assert len(report.reinit) == 2 + 2 * 4


def test_stages_without_the_module_leave_it_and_its_resetting_aside(trained, data):
    config = dataclasses.replace(
        _still(data), init=str(trained[0]), reinit=("final", "ctx")
    )
    config.stages = (*config.stages, *tiny_config(data).stages[1:])
    model, spec = _model(config)
    check_fits(config, spec)
    fresh = random_params(model, np.zeros((1, 20, 20, 3), np.float32))
    params, report = params_from_init(config, spec, model, fresh)
    assert set(params) == {"front_end"}
    assert "context/ctx_final/kernel" in report.left_over
    config.reinit = ("fianl",)
    with pytest.raises(ValueError, match=r"--config\.reinit='fianl': must be one of"):
        check_fits(config, spec)


def test_a_context_module_in_part_is_refused(trained, data, tmp_path):
    params = dilax.load_checkpoint(trained[0])[1]
    del params["context"]["ctx_conv2_1"]
    save_weights(params, tmp_path / "a.npz")
    config = dataclasses.replace(trained[1], init=str(tmp_path / "a.npz"))
    with pytest.raises(ValueError, match="lacks context/ctx_conv2_1/bias"):
        check_fits(config, _model(config)[1])
    save_weights({"front_end": params["front_end"]}, tmp_path / "a.npz")
    check_fits(config, _model(config)[1])


@pytest.mark.parametrize("experiment", [voc, coco, camvid, kitti, cityscapes])
def test_the_paper_s_recipes_ask_for_weights(experiment):
    config = experiment.paper()
    with pytest.raises(ValueError, match=r"(?s)vgg16-397923af.*init=FILE.*init=none"):
        check_init(config)
    check_init(overridden(config, ["--config.init=none"]))
    check_init(overridden(config, ["--config.init=vgg16.pth"]))
    assert not experiment.small().needs_init


@pytest.mark.parametrize("field", [{"reinit": ("final",)}, {"init_key": "ema"}])
def test_choosing_layers_without_weights_is_refused(field, data):
    config = tiny_config(data, **field)
    with pytest.raises(ValueError, match=rf"--config\.{next(iter(field))}"):
        check_init(config)


# VGG-16's convolutions alone.


def _convolutions(data, folder, without=("fc6", "fc7", "final")):
    """A narrow VGG-16's configuration, and a file of it that lacks some layers."""
    config = _still(data)
    config.model = ModelConfig(
        layers=VGG16_SLIM_HEAD, width_multiplier=1 / 64, padding="same", upsample=True
    )
    config.stages[0].crop = (16, 16)
    _file(config, folder, **dict.fromkeys(without))
    config.init = str(folder / "a.npz")
    return config


def _started(config):
    model, spec = _model(config)
    fresh = random_params(model, np.zeros((1, 16, 16, 3), np.float32), seed=9)
    check_fits(config, spec)
    return (fresh, *params_from_init(config, spec, model, fresh))


def test_convolutions_alone_are_enough(data, tmp_path):
    fresh, params, report = _started(_convolutions(data, tmp_path))
    head = ("fc6", "fc7", "final")
    assert all(
        _equal(params["front_end"][n], fresh["front_end"][n]) == (n in head)
        for n in fresh["front_end"]
    )
    assert len(report.loaded) == 26 and len(report.missing) == 6
    assert "front_end/fc6: missing, keeps its initialization" in str(report)
    assert "--config.reinit=fc6,fc7,final" in report.notes[-1]


def test_a_recipe_for_all_of_vgg_warns(data, tmp_path):
    config = _convolutions(data, tmp_path)
    config.needs_init, config.name = True, "paper"
    report = _started(config)[2]
    assert report.notes[-1].startswith("WARNING: ")
    assert "'paper' and its learning rates are meant" in report.notes[-1]


def test_a_head_that_is_reinitialized_is_no_surprise(data, tmp_path):
    config = _convolutions(data, tmp_path)
    config.needs_init, config.reinit = True, ("fc6", "fc7")
    report = _started(config)[2]
    assert len(report.reinit) == 4 and len(report.notes) == 1
    assert "front_end/fc7: reinitialized, not in the file" in str(report)


def test_a_head_in_part_is_refused(data, tmp_path):
    config = _convolutions(data, tmp_path, without=("fc7",))
    with pytest.raises(ValueError, match=r"lacks front_end/fc7/bias.*=fc6,fc7,final"):
        check_fits(config, _model(config)[1])


def test_missing_data_is_found_before_weights_are_downloaded(data, tmp_path):
    config = dataclasses.replace(tiny_config(tmp_path / "none"), init="vgg16")
    with pytest.raises(ValueError, match="none"):
        check_run(config, tmp_path / "run")


def test_a_run_starts_from_the_network_that_a_key_names(data, tmp_path):
    config = _still(data)
    given = _file(config, tmp_path)
    arrays = {}
    for factor, network in enumerate(("net", "net_ema"), 1):
        for layer, parts in given.items():
            kernel = oihw(np.asarray(parts["kernel"]))
            arrays[f"{network}.{layer}.weight"] = factor * kernel
            arrays[f"{network}.{layer}.bias"] = parts["bias"]
    np.savez(tmp_path / "a.npz", **arrays)
    for key, factor in (("", 1), ("net_ema", 2)):
        config.init, config.init_key = str(tmp_path / "a.npz"), key
        _, params, report = _started(config)
        expected = factor * given["fc"]["kernel"]
        np.testing.assert_array_equal(params["front_end"]["fc"]["kernel"], expected)
        assert ("--config.init_key" in report.notes[0]) == (key == "")
    config.init_key = "ema"
    with pytest.raises(ValueError, match=r"init_key='ema' .* has net, net_ema"):
        check_fits(config, _model(config)[1])


def test_full_width_on_camvid_starts_from_convolutions():
    config = camvid.vgg()
    check_init(config)
    check_init(overridden(config, ["--config.init=none"]))
    assert (config.init, config.reinit) == ("vgg16_keras", ("fc6", "fc7"))
    names = [stage.name for stage in config.stages]
    assert names == ["front_end", "context", "control", "joint"]


# Released networks.


def _released(release, folder, without=(), **options):
    model = release.build(**{**SLIM, **options})
    params = random_params(model, IMAGE)
    net = b"".join(
        caffe_layer(name, "Convolution", [blob(oihw(kernel)), blob(bias)])
        for name, (kernel, bias) in layers_of(params).items()
        if name not in without
    )
    (folder / "a.caffemodel").write_bytes(net)
    return model, params


NAMES = ("dilation8_pascal_voc", "dilation8_camvid", "dilation7_kitti")
BY_BUILDER = dict(
    zip((r.build for r in RELEASES), (*NAMES, "dilation10_cityscapes"), strict=True)
)


@each_release
def test_a_released_network_becomes_the_folder_of_a_run(release, tmp_path):
    model, params = _released(release, tmp_path)
    network = BY_BUILDER[release.build]
    folder = tmp_path / "run"
    report = import_weights(tmp_path / "a.caffemodel", network, folder, **SLIM)
    built, found, spec = dilax.load_checkpoint(folder)
    assert built == model
    assert _equal(found, params)
    assert spec == DATASETS[release.build.__name__.split("_")[1]]
    assert not (report.left_over or report.missing)
    assert str(report) in (folder / "init.txt").read_text("utf-8")
    assert json.loads((folder / "config.json").read_text("utf-8"))["name"] == network
    with pytest.raises(ValueError, match="contains a run"):
        import_weights(tmp_path / "a.caffemodel", network, folder, **SLIM)


def test_what_cannot_be_imported_leaves_nothing_behind(data, tmp_path):
    release = RELEASES[1]
    _released(release, tmp_path, without=("ctx_fc1",))
    path, folder = tmp_path / "a.caffemodel", tmp_path / "run"
    with pytest.raises(ValueError, match="lacks context/ctx_fc1/bias"):
        import_weights(path, "dilation8_camvid", folder, **SLIM)
    with pytest.raises(ValueError, match="must be one of dilation8_pascal_voc"):
        import_weights(path, "dilation9", folder)
    images = DataConfig("folder", data_dir=str(data))
    with pytest.raises(ValueError, match="has 3 classes, dilation8_camvid 11"):
        import_weights(path, "dilation8_camvid", folder, data=images, **SLIM)
    assert not folder.exists()
