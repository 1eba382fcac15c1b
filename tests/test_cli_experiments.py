import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import quick_environment, write_images

from dilax.cli import modes, overridden
from dilax.training import with_network_of_init
from dilax.training.initial import locate_init
from experiments import table3, voc

ROOT = Path(__file__).parent.parent
TINY = (  # the quickstart, small enough for a test
    "--config.data.dataset=folder",
    "--config.model.layers="
    "(('conv1', 3, 6, 1, 0.0), ('pool1', 2, 0, 1, 0.0), ('fc', 1, 8, 1, 0.0))",
    "--config.stages[0].steps=3",
    "--config.stages[0].crop=(20, 20)",
    "--config.stages[1].steps=2",
    "--config.stages[1].crop=(24, 32)",
    "--config.stages.control.steps=2",
    "--config.stages.control.crop=(24, 32)",
    "--config.stages.joint.steps=2",
    "--config.stages.joint.crop=(20, 20)",
    *(
        f"--config.stages.{name}.context=(('conv1_1', 1, 1), ('conv2_1', {rate}, 1))"
        for name, rate in (("context", 2), ("control", 1), ("joint", 2))
    ),
)


def _run(*flags, experiment="voc", cwd=None):
    command = [sys.executable, ROOT / "experiments" / f"{experiment}.py", *flags]
    env = quick_environment()
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def test_fields_are_set_by_index_by_name_and_as_literals():
    config = overridden(
        voc.quickstart(),
        [
            "--config.seed=3",
            "--config.stages[0].steps=7",
            "--config.stages.joint.optimizer.learning_rate=1e-5",
            "--config.stages[0].crop=(286,278)",
            "--config.data.skip_unreadable=true",
            "--config.data.tile=(64, 64)",
            "--config.data.dataset=camvid",
            "--config.model.head_channels=none",
        ],
    )
    assert config.seed == 3
    assert config.stages[0].steps == 7
    assert config.stage("joint").optimizer.learning_rate == 1e-5
    assert config.stages[0].crop == (286, 278)
    assert (config.data.skip_unreadable, config.data.tile) == (True, (64, 64))
    assert (config.data.dataset, config.model.head_channels) == ("camvid", None)
    assert voc.quickstart().seed == 0


def test_fields_of_a_crf_and_of_its_grid_are_set():
    path = "--config.stages.basic_crf.crf"
    flags = [f"{path}.search=false", f"{path}.grid.bilateral_weight=(1.0, 3.0)"]
    config = overridden(table3.scenes(), flags)
    crf = config.stage("basic_crf").crf
    assert (crf.search, crf.grid.bilateral_weight) == (False, (1.0, 3.0))
    other = config.stage("large_crf").crf
    assert other == table3.scenes().stage("large_crf").crf


@pytest.mark.parametrize(
    "text, value",
    [
        ("final,ctx", ("final", "ctx")),
        ("final", ("final",)),
        ("('final', 'ctx')", ("final", "ctx")),
        ("()", ()),
    ],
)
def test_words_of_a_tuple_are_divided_by_commas(text, value):
    config = overridden(voc.quickstart(), [f"--config.reinit={text}"])
    assert config.reinit == value


def test_a_stage_s_field_is_that_stage_s_alone():
    path = "--config.stages.context.optimizer.learning_rate=0.125"
    config = overridden(voc.quickstart(), [path])
    rates = [s.optimizer.learning_rate for s in config.stages]
    assert rates.count(0.125) == 1
    assert config.stage("context").optimizer.learning_rate == 0.125


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.sede=3", "no 'sede'; did you mean seed"),
        ("--config.lr=3", r"stages\.NAME\.optimizer\.learning_rate.*--lr_factor"),
        ("--config.stages.joint.lr=3", r"stages\.NAME\.optimizer\.learning_rate"),
        ("--config.batch_size=3", r"did you mean --config\.stages\.NAME\.batch_size"),
        ("--config.stages[7].steps=1", "no '7'"),
        ("--config.stages.join.steps=1", "did you mean joint"),
        ("--config.stages[0].crop[0]=9", "give the whole tuple"),
        ("--config.seed.x=1", "no 'x'|whole tuple"),
        ("--config.seed", "give a value, --config.seed=VALUE"),
        ("--config.seed=abc", "'abc' is not a whole number @ --config.seed"),
        ("--config.seed=2.5", "2.5 is not a whole number @ --config.seed"),
        ("--config.data.skip_unreadable=maybe", "'maybe' is not true or false"),
        (
            "--config.data.dataset=vok",
            r"vok not among .'voc'.* @ --config.data.dataset",
        ),
        ("--config.stages[0].crop=3", r"--config.stages\[0\].crop"),
    ],
)
def test_wrong_overrides_say_what_is_wrong(override, message):
    with pytest.raises(ValueError, match=message):
        overridden(voc.quickstart(), [override])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        (["--config=quickstrat", "--workdir=x"], "<quickstart|small|vgg|paper>"),
        ([], "--workdir: give the folder of the run"),
        (
            ["--config=small", "--workdir=x", "--data_dir=nowhere"],
            "nowhere: Pascal VOC 2012 is not prepared there",
        ),
        (["--mode=eval", "--workdir=x"], "config.json: not the folder of a run"),
        (["--seeds=0,one", "--workdir=x"], "--seeds=0,one: must be distinct"),
        (["--seeds=1,1", "--workdir=x"], "--seeds=1,1: must be distinct"),
        (["--weights=town", "--mode=predict", "--input=x"], "pretrained 'town': "),
        (["--weights=camvid", "--workdir=x"], "replaces --workdir"),
    ],
)
def test_wrong_flags_end_in_one_message_and_leave_nothing(flags, message, tmp_path):
    done = _run(*flags, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_explains_the_experiment_and_the_flags():
    text = _run("--help").stdout
    for part in (
        "§4 and §5",
        "--config",
        "--mode: <train|eval|predict|submit|export|import_weights|report|compare>",
        "--workdir",
    ):
        assert part in text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run in a relative folder with spaces and letters beyond ASCII."""
    root = tmp_path_factory.mktemp("drive é")
    data = write_images(root / "my images ü")
    flags = ["--workdir=my run ö", f"--data_dir={data}", "--profile", "--lr_factor=2"]
    done = _run(*flags, *TINY, cwd=root)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def test_one_flag_multiplies_all_learning_rates(trained):
    config = json.loads((trained[0] / "my run ö" / "config.json").read_text("utf-8"))
    rates = [stage["optimizer"]["learning_rate"] for stage in config["stages"]]
    recipe = [stage.optimizer.learning_rate for stage in voc.quickstart().stages]
    assert rates == [2 * rate for rate in recipe]


def test_a_run_to_start_from_brings_its_network():
    config = overridden(voc.small(), ["--config.init=camvid"])
    found = with_network_of_init(config)
    assert found.model.network == "drn_light" and found.stages == config.stages
    assert Path(locate_init("camvid", fetch=True)).parts[-2:] == (
        "pretrained",
        "camvid",
    )
    file = dataclasses.replace(config, init="vgg16")
    assert with_network_of_init(file) is file


@pytest.mark.slow
def test_train_says_first_what_it_will_take(trained):
    _, printed = trained
    lines = printed[: printed.index("mean IoU")].splitlines()
    assert "classes: dark" in "".join(lines)  # what was found comes before all else
    lines = lines[[line.startswith("compiling") for line in lines].index(True) :]
    assert lines[0].startswith("compiling each stage")
    assert lines[1].endswith(", without evaluation:")
    assert [line.partition(" steps of ")[0] for line in lines[2:4]] == [
        "  front_end: 3",
        "  joint: 2",
    ]


@pytest.mark.slow
def test_profile_traces_the_steps_and_tells_the_time_of_layers(trained):
    root, printed = trained
    folder = root / "my run ö" / "profile"
    for stage in ("front_end", "joint"):
        (trace,) = (folder / stage).rglob("*.xplane.pb")
        assert trace.stat().st_size > 1000
        table = (folder / f"{stage}.md").read_text("utf-8")
        assert table in printed
        record = json.loads((folder / f"{stage}.json").read_text("utf-8"))
        assert all(f"| {row['layer']} " in table for row in record["layers"])


@pytest.mark.slow
def test_train_prints_the_table_and_writes_the_pictures(trained):
    root, printed = trained
    for part in ("front end", "context", "control", "joint", "mean IoU", "dark"):
        assert part in printed
    with Image.open(root / "my run ö" / "pictures.png") as sheet:
        assert sheet.width > 6 * 160
    assert (root / "my run ö" / "results.json").exists()


@pytest.mark.slow
def test_train_leaves_a_page_with_what_each_image_scored(trained):
    root, printed = trained
    page = root / "my run ö" / "report.html"
    assert f"page: {page}" in printed
    text = page.read_text("utf-8")
    assert "All 4 stages are complete." in text and "my run ö" in text
    assert "effective: spread" in text and 'id="gallery-data"' in text


@pytest.mark.slow
def test_eval_gives_the_figures_of_training_in_a_new_process(trained):
    root, printed = trained
    flags = ["--mode=eval", "--workdir=my run ö", "--stage=joint", "--boundaries"]
    done = _run(*flags, "--output=figures.json", cwd=root)
    assert done.returncode == 0, done.stderr
    assert "| boundary F " in done.stdout
    figures = json.loads((root / "figures.json").read_text())["stages"]["joint"]
    assert 0 <= figures["trimap_iou"]["1"] <= 1
    wanted = next(line for line in printed.splitlines() if "mean IoU" in line)
    got = next(line for line in done.stdout.splitlines() if "mean IoU" in line)
    assert got.split("|")[2].strip() == wanted.split("|")[5].strip()


@pytest.mark.slow
def test_predict_writes_label_maps_and_overlays_and_names_what_failed(trained):
    root, _ = trained
    photos = root / "photos"
    photos.mkdir()
    Image.fromarray(np.full((5, 7, 3), 230, np.uint8)).save(photos / "tiny.png")
    Image.fromarray(np.full((40, 90), 20, np.uint8)).save(photos / "grey ß.png")
    (photos / "broken.jpg").write_bytes(b"not an image")
    flags = ["--mode=predict", "--workdir=my run ö", "--input=photos", "--output=out"]
    done = _run(*flags, cwd=root)
    assert done.returncode == 1
    assert "1 not predicted" in done.stderr
    assert "broken.jpg" in done.stderr
    names = {p.name for p in (root / "out").iterdir()}
    assert names - {"legend.png"} == {
        f"{n}{s}.png" for n in ("tiny", "grey ß") for s in ("", "_overlay")
    }
    with Image.open(root / "out" / "tiny.png") as labels:
        assert (labels.mode, labels.size) == ("P", (7, 5))
        assert labels.getpalette()[:6] == [0, 0, 0, 128, 0, 0]


@pytest.mark.slow
def test_predict_keeps_sub_folders_and_goes_on_where_it_was(trained):
    root, _ = trained
    for name in ("a", "x/y/b"):
        path = root / "many" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 50, 3), 20, np.uint8)).save(path)
    flags = [
        *("--mode=predict", "--workdir=my run ö", "--input=many", "--output=done"),
        *("--outputs=labels,probabilities", "--tiling=blend", "--scales=0.75,1"),
        "--mirror",
    ]
    done = _run(*flags, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "2 predicted: done" in done.stdout
    files = sorted(p for p in (root / "done").rglob("*") if p.is_file())
    ends = (".png", "_probabilities.npz")
    assert [p.relative_to(root / "done").as_posix() for p in files] == [
        f"{name}{end}" for name in ("a", "x/y/b") for end in ends
    ]
    with np.load(files[1]) as archive, Image.open(files[0]) as labels:
        odds = archive["probabilities"]
        np.testing.assert_array_equal(odds.argmax(-1), np.asarray(labels))
    np.testing.assert_allclose(odds, odds[:, ::-1], atol=1e-6)  # --mirror
    files[0].unlink()
    again = _run(*flags, cwd=root)
    assert "1 predicted: done" in again.stdout
    assert "1 were there already; --overwrite predicts them again" in again.stdout


@pytest.mark.slow
def test_predict_reads_standard_input_and_refuses_a_bomb(trained):
    root, _ = trained
    Image.fromarray(np.full((40, 30), 20, np.uint8)).save(root / "grey.png")
    command = [sys.executable, ROOT / "experiments" / "voc.py", "--mode=predict"]
    command += ["--workdir=my run ö", "--input=-", "--output=piped"]
    with (root / "grey.png").open("rb") as file:
        done = subprocess.run(
            [*command, "--max_pixels=1199"],
            stdin=file,
            cwd=root,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "stdin: has 30x40 pixels, more than --max_pixels=1199" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_predict_says_in_one_message_what_cannot_be_written(trained):
    root, _ = trained
    Image.fromarray(np.full((4, 3), 20, np.uint8)).save(root / "one.png")
    flags = ["--mode=predict", "--workdir=my run ö", "--input=one.png"]
    done = _run(*flags, "--output=one.png/x", cwd=root)
    assert (done.returncode, done.stderr.count("error: ")) == (1, 1)
    assert "one.png/x: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "weights", "wanted"),
    [
        (None, "", "run/network.zip"),
        (None, "camvid", "network.zip"),  # never in the folder of a network of ours
        ("mine.zip", "camvid", "mine.zip"),
        ("mine.zip", "", "mine.zip"),
    ],
)
def test_what_is_written_lies_in_the_run_s_folder_or_here(output, weights, wanted):
    values = types.SimpleNamespace(output=output, weights=weights, workdir="run")
    assert modes.output_of(values, "network.zip") == Path(wanted)


def test_scales_are_numbers():
    values = types.SimpleNamespace(scales=["1", "big"])
    with pytest.raises(ValueError, match="--scales=1,big: could not convert"):
        modes.predictor_of(values, 1)


@pytest.mark.slow
def test_overrides_are_refused_where_the_run_decides(trained):
    root, _ = trained
    done = _run("--mode=eval", "--workdir=my run ö", "--config.seed=1", cwd=root)
    assert done.returncode == 1
    assert "only train takes --config" in done.stderr
