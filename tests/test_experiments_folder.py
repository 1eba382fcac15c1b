"""Your own images, from a folder of any kind to predictions, with no file edited."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_run import quick_environment
from weight_files import keras_file, vgg_layers

import dilax
from dilax.cli import overridden
from dilax.data import open_source
from dilax.inference import predict_photos
from dilax.training import open_evaluation, with_network_of_init
from dilax.training.build import check_config
from dilax.training.serialization import to_json
from experiments import folder

SCRIPT = Path(__file__).parent.parent / "experiments/folder.py"
CONTEXT = "context=(('conv1_1', 1, 1), ('conv2_1', 2, 1))"
TINY = (  # the slim network and its stages, small enough for a test
    "--config.model.layers="
    "(('conv1', 3, 6, 1, 0.0), ('pool1', 2, 0, 1, 0.0), ('pool2', 2, 0, 1, 0.0), "
    "('pool3', 2, 0, 1, 0.0), ('fc', 1, 8, 1, 0.0))",
    "--config.stages.front_end.steps=3",
    "--config.stages.context.steps=2",
    "--config.stages.joint.steps=2",
    f"--config.stages.context.{CONTEXT}",
    f"--config.stages.joint.{CONTEXT}",
    "--config.pictures=2",
)
COLOURS = np.array([(128, 64, 128), (0, 0, 0), (64, 0, 128)], np.uint8)


# What is chosen.


@pytest.mark.parametrize(
    "name, size, backend, given, scale, crop",
    [
        ("small", (360, 480), "cpu", 0, 0.53, (184, 248)),
        ("small", (480, 360), "cpu", 0, 0.53, (248, 184)),
        ("small", (1024, 2048), "cpu", 0, 0.19, (192, 288)),
        ("small", (1024, 2048), "gpu", 0, 0.5, (512, 768)),
        ("small", (360, 480), "gpu", 0, 1.0, (360, 480)),
        ("small", (24, 33), "cpu", 0, 1.0, (24, 32)),
        ("small", (5, 300), "cpu", 0, 1.0, (8, 288)),
        ("small", (60000, 90000), "cpu", 0, 0.0032, (192, 288)),
        ("small", (1024, 2048), "cpu", 1.0, 1.0, (288, 288)),
        ("small", (1024, 2048), "cpu", 0.1, 0.1, (96, 200)),
        ("pretrained", (360, 480), "cpu", 0, 1.0, (288, 288)),
        ("pretrained", (1024, 2048), "cpu", 0, 0.35, (288, 288)),
        ("pretrained", (24, 33), "cpu", 0, 1.0, (24, 32)),
        ("pretrained", (1024, 2048), "gpu", 0, 0.5, (512, 768)),
    ],
)
def test_the_crop_suits_the_images_and_the_machine(
    name, size, backend, given, scale, crop
):
    assert folder.choose_crop(size, backend, given, name) == (scale, crop)


@pytest.mark.parametrize(
    "name, count, steps",
    [
        ("small", 1, [600, 600, 150]),
        ("small", 100, [1500, 600, 375]),
        ("small", 5000, [6000, 600, 1500]),
        ("pretrained", 1, [600, 600]),
        ("pretrained", 30, [900, 600]),
        ("pretrained", 5000, [1000, 600]),
    ],
)
def test_steps_suit_the_number_of_images(name, count, steps):
    config = folder.choose({(360, 480): count}, "cpu", name=name)
    assert [s.steps for s in config.stages] == steps
    check_config(config)


def test_the_scale_is_that_at_which_the_network_to_start_from_knows_images():
    config = dataclasses.replace(folder.small(), init="camvid")
    assert folder.scale_of_init(config, {(3000, 4000): 3}) == 0.12
    assert folder.scale_of_init(config, {(3000, 4000): 1, (360, 480): 70}) == 0.71
    assert folder.scale_of_init(config, {(90, 120): 5}) == 1
    assert folder.scale_of_init(folder.small(), {(3000, 4000): 3}) == 0


def test_the_median_size_decides():
    config = folder.choose({(100, 200): 3, (110, 190): 1, (2000, 3000): 3}, "cpu")
    assert config.data.scale == 1
    assert {stage.crop for stage in config.stages} == {(104, 200)}


def _write_images(count=10, size=(24, 32)):
    """Own names and folders; classes, which are stripes, can be read off the pixels."""
    rng = np.random.default_rng(0)
    for i in range(count):
        ids = np.repeat(rng.integers(0, 3, size[1] // 8), 8)[None].repeat(size[0], 0)
        yield f"Bild {i} ü", ids, rng.integers(0, 20, (*size, 6)) + 90 * ids[..., None]


def _save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(array).save(path)


def _colours(root):
    for name, ids, pixels in _write_images():
        _save(root / f"my photos/{name}.png", pixels[..., :3].astype(np.uint8))
        _save(root / f"my masks/{name}_L.png", COLOURS[ids])
    (root / "classes.txt").write_text("road 128 64 128\ncar 64 0 128\nvoid 0 0 0\n")


def _six_channels(root):
    for name, ids, pixels in _write_images():
        _save(root / f"train/{name}.tif", (pixels * 200).astype(np.uint16))
        _save(root / f"trainannot/{name}.png", (ids * 300).astype(np.uint16))


def _grey(root):
    for i, (name, ids, pixels) in enumerate(_write_images()):
        split = "train" if i < 8 else "val"
        _save(root / f"{split}/{name}.png", pixels[..., 0].astype(np.uint8))
        _save(root / f"{split}/{name}_mask.png", (ids > 0) * np.uint8(255))


def _grey_16_bits(root):
    for name, ids, pixels in _write_images():
        _save(root / f"images/{name}.png", (pixels[..., 0] * 200).astype(np.uint16))
        _save(root / f"gt/{name}.png", ids.astype(np.uint8))


def _fitted(data, workdir, *overrides, recipe=folder.small, **flags):
    """The configuration as the command line makes it."""
    config = recipe()
    config.data.data_dir = str(data)
    config = overridden(config, list(overrides))
    unset = dict.fromkeys(("images", "labels", "classes"), "")
    config = folder.fit(config, SimpleNamespace(workdir=str(workdir), **unset | flags))
    check_config(config)
    return config


def test_what_the_command_line_says_is_kept_and_the_rest_follows_it(tmp_path, capsys):
    _colours(tmp_path / "data")
    given = ("--config.data.scale=0.5", "--config.stages.joint.steps=7")
    config = _fitted(tmp_path / "data", tmp_path / "run", *given, labels="*_L.png")
    assert (config.data.scale, config.data.labels) == (0.5, "*_L.png")
    assert {stage.crop for stage in config.stages} == {(8, 16)}
    assert [stage.steps for stage in config.stages] == [600, 600, 7]
    printed = capsys.readouterr().out
    assert "images at 0.5 of their size; steps and crops:\n" in printed
    assert "  front_end: 600 of 4 16x8\n" in printed
    assert "  joint: 7 of 4 16x8\n" in printed


@pytest.mark.parametrize("kind", ["none", "dense", "rnn"])
def test_a_run_goes_on_with_what_it_chose(tmp_path, kind):
    def recipe():
        return folder.refined(folder.small(), kind)

    data, run = tmp_path / "data", tmp_path / "run"
    _colours(data)
    config = _fitted(data, run, "--config.data.scale=0.5", recipe=recipe)
    run.mkdir()
    (run / "config.json").write_text(to_json(config))
    assert _fitted(data, run, recipe=recipe) == config


@pytest.mark.parametrize("factor, images, sigma_xy", [(1, 50, 4), (120, 2, 480)])
def test_a_crf_suits_the_images_and_its_search_is_bounded(
    tmp_path, capsys, factor, images, sigma_xy
):
    for i in range(2):
        image = np.zeros((24 * factor, 32 * factor), np.uint8)
        image[: 12 * factor] = 1
        _save(tmp_path / f"images/{i}.png", image)
        _save(tmp_path / f"masks/{i}.png", image)

    def recipe():
        return folder.refined(folder.pretrained(), "dense")

    config = _fitted(tmp_path, tmp_path / "run", "--config.init=", recipe=recipe)
    last = config.stages[-1]
    assert (last.name, last.start) == ("context_crf", "context")
    assert last.crf.bilateral_sigma_xy == sigma_xy
    said = f"  context_crf: a search on up to {images} validation images"
    assert said in capsys.readouterr().out.splitlines()


# From trained convolutions.


def test_trained_convolutions_are_loaded_by_name_unless_others_are_given(tmp_path):
    _colours(data := tmp_path / "data")
    options = {"recipe": folder.pretrained}
    config = _fitted(data, tmp_path / "run", **options)
    assert (config.init, config.model.duc) == ("vgg16_keras", 2)
    assert config.model.width_multiplier == 1
    given = _fitted(data, tmp_path / "run", "--config.init=a.h5", **options)
    assert given.init == "a.h5"


def test_many_classes_have_coarse_scores(tmp_path):
    _colours(data := tmp_path / "data")
    with (data / "classes.txt").open("a") as file:
        file.writelines(f"class{i} {i} 0 0\n" for i in range(1, 24))
    config = _fitted(data, tmp_path / "run", recipe=folder.pretrained)
    assert config.model.duc == 1
    streets = with_network_of_init(dataclasses.replace(folder.small(), init="camvid"))
    assert streets.model.duc == 4
    for given, duc in (((), 4), (("--config.reinit=final,ctx",), 1)):
        config = _fitted(data, tmp_path / "run", *given, recipe=lambda: streets)
        assert config.model.duc == duc


def test_images_that_trained_convolutions_cannot_take_are_refused(tmp_path):
    _six_channels(tmp_path)
    with pytest.raises(ValueError, match="vgg16_keras: needs images with 3 channels, "):
        _fitted(tmp_path, tmp_path / "run", recipe=folder.pretrained)


def test_a_run_starts_from_convolutions_alone(tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    _colours(data)
    keras_file(tmp_path / "vgg.h5", vgg_layers(), top=False)
    flags = (
        f"init={tmp_path / 'vgg.h5'}",
        *("model.width_multiplier=0.0625", "model.head_channels=4"),
        *("stages.front_end.steps=1", "pictures=0"),
    )
    flags = (f"--config.{flag}" for flag in flags)
    config = _fitted(data, run, *flags, recipe=folder.pretrained)
    config.stages = config.stages[:1]
    dilax.train(config, run)
    report = (run / "init.txt").read_text("utf-8")
    assert "26 parameters loaded, 2 missing, 4 reinitialized; 0 arrays unused" in report
    assert "front_end/fc6: reinitialized, not in the file" in report


def test_what_cannot_be_read_is_left_out_on_demand(tmp_path):
    _grey(tmp_path)
    (tmp_path / "train/Bild 3 ü_mask.png").unlink()
    with pytest.raises(ValueError, match=r"3 ü\.png: has no mask.*\n.*skip_unreadable"):
        _fitted(tmp_path, tmp_path / "run")
    _fitted(tmp_path, tmp_path / "run", skip := "--config.data.skip_unreadable=true")
    for path in (tmp_path / "train").glob("*ü.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no readable training images are left"):
        _fitted(tmp_path, tmp_path / "run", skip)


# Kinds of images and masks, through a network and back to files.

KINDS = {
    "colours": (
        _colours,
        [
            "images: 8 train, 2 val",
            r"my photos/Bild \d ü\.png has the mask my masks/Bild \d ü_L\.png",
            "no images are called val, so a fifth of train, 2, is held out; .*",
            r"channels: 3 of 8 bits; all are 32x24; mean pixel, .*: [\d.]+, [\d.]+, .*",
            r"masks contain colours; 2 classes: road \d\d\.\d%, car \d\d\.\d%",
            r"ignored: \d\d\.\d% of the pixels",
        ],
    ),
    "six channels of 16 bits": (
        _six_channels,
        [
            "images: 8 train, 2 val",
            r"train/Bild \d ü\.tif has the mask trainannot/Bild \d ü\.png",
            "no images are called val, .*",
            r"channels: 6 of 16 bits; all are 32x24; mean pixel, .*: ([\d.]+, ){5}.*",
            r"masks contain ids; 3 classes: id 0 .*%, id 300 .*%, id 600 .*%",
        ],
    ),
    "grey, 0 and 255": (
        _grey,
        [
            "images: 8 train, 2 val",
            r"train/Bild 0 ü\.png has the mask train/Bild 0 ü_mask\.png",
            r"channels: 1 of 8 bits; all are 32x24; mean pixel, .*: [\d.]+",
            r"masks contain ids; 2 classes: id 0 \d\d\.\d%, id 255 \d\d\.\d%",
            "masks contain only 0 and 255, so 255 is a class, not ignored",
        ],
    ),
    "grey, 16 bits": (
        _grey_16_bits,
        [
            "images: 8 train, 2 val",
            r"images/Bild \d ü\.png has the mask gt/Bild \d ü\.png",
            "no images are called val, .*",
            r"channels: 1 of 16 bits; all are 32x24; mean pixel, .*: [\d.]+",
            r"masks contain ids; 3 classes: id 0 .*%, id 1 .*%, id 2 .*%",
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("write, notes", KINDS.values(), ids=KINDS)
def test_any_kind_is_described_trained_on_evaluated_and_predicted(
    tmp_path, capsys, write, notes
):
    data, run = tmp_path / "data é", tmp_path / "run"
    write(data)
    config = _fitted(data, run, *TINY)
    printed = capsys.readouterr().out.splitlines()
    for line, pattern in zip(printed, [str(data), *notes], strict=False):
        assert re.fullmatch(rf"( *){pattern}:?", line), (pattern, line)
    config.stages = config.stages[:1]
    found = dilax.train(config, run)["stages"]["front_end"]

    spec, source = open_evaluation(run)[1:]
    predictor = dilax.Predictor(*dilax.load_checkpoint(run))
    assert dilax.evaluate(predictor, source).as_dict() == found
    labelled = sum(int((sample["label"] != 255).sum()) for sample in source)
    assert np.sum(found["confusion"]) == labelled > 0

    image = open_source("folder", spec, str(data), "train")[0]
    [path] = (p for p in data.rglob(f"{image['id']}.*") if _is_photo(p))
    assert not predict_photos(predictor, path, tmp_path / "out").problems
    with Image.open(tmp_path / f"out/{image['id']}.png") as labels:
        assert (labels.mode, labels.size) == ("P", (32, 24))
        np.testing.assert_array_equal(np.asarray(labels), predictor(image["image"]))
    with Image.open(tmp_path / f"out/{image['id']}_overlay.png") as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", (32, 24))
        assert np.asarray(overlay).max() > 60


def _is_photo(path):
    return path.parent.name in ("my photos", "train", "images")


# Whole runs, as a user starts them.


def _run(*flags, cwd=None):
    command = [sys.executable, SCRIPT, *map(str, flags)]
    env = quick_environment()
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


COST = r"[\d.]+ ms \([\d.]+ GFLOP, \d+ GFLOP/s\), 00:00 in all; 0\.\d\d GB"


@pytest.mark.slow
def test_it_says_what_it_chose_and_will_take_and_adds_a_crf(tmp_path):
    _colours(tmp_path / "data")
    flags = ["--data_dir=data", "--workdir=data/run", *TINY]  # the run lies in the data
    done = _run(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = [
        "data:",
        *(f"  {note}" for note in KINDS["colours"][1]),
        "images at 1 of their size; steps and crops:",
        "  front_end: 3 of 4 32x24",
        "  context: 2 of 8 32x24",
        "  joint: 2 of 4 32x24",
        "compiling each stage, to estimate memory and time …",
        r"on \d+ x .+, without evaluation:",
        rf"  front_end: 3 steps of {COST}",
        rf"  joint: 2 steps of {COST}",
        "  not estimated, as they train on maps or search a CRF: context",
        "",
    ]
    lines = done.stdout.splitlines()
    for line, pattern in zip(lines, wanted, strict=False):
        assert re.fullmatch(pattern, line), (pattern, line)
    with Image.open(tmp_path / "data/run/pictures.png") as sheet:
        assert sheet.width > 6 * 160
    results = tmp_path / "data/run/results.json"
    before = json.loads(results.read_text())["stages"]
    flags += ["--crf=dense", f"--config.stages.joint_crf.{CONTEXT}"]
    again = _run(*flags, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "search joint_crf: 12 CRFs on 2 images, about " in again.stdout
    after = json.loads(results.read_text())["stages"]
    assert list(after) == [*before, "joint_crf"]
    assert {name: after[name] for name in before} == before


def test_a_wrong_folder_ends_in_one_message_and_leaves_nothing(tmp_path):
    done = _run("--workdir=run", "--data_dir=nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere: no such folder; set it with --data_dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
