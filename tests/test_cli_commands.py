"""The `dilax` command: its modes and tools, their help, and the doctor's verdict."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dilax import __main__ as command
from dilax.cli import doctor
from dilax.cli.options import OPTIONS

ROOT = Path(__file__).parent.parent


def _dilax(*args, cwd=None):
    """The command as installed, in a process of its own: absl's flags are global."""
    return subprocess.run(
        [sys.executable, "-m", "dilax", *args], capture_output=True, text=True, cwd=cwd
    )


def test_without_a_command_it_lists_commands_and_experiments(capsys):
    assert command.main([]) == command.main(["--help"]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert {*command.MODES, *command.TOOLS, "voc", "camvid", "folder"} <= {*lines}
    assert "figures" not in lines  # a script, but nothing that trains


@pytest.mark.parametrize("argv", [["docter"], ["train", "vok"]])
def test_unknown_names_are_refused_with_those_that_exist(argv, capsys):
    assert command.main(argv) == 2
    error = capsys.readouterr().err
    assert argv[-1] in error and ("doctor" in error or "camvid" in error)


def test_tools_take_their_own_flags(capsys):
    assert command.main(["receptive-field", "1", "2", "4"]) == 0
    assert "15 x 15" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "compare", "import-weights"])
def test_a_mode_explains_its_own_flags_and_no_others(mode, tmp_path):
    text = _dilax(mode, "--help", cwd=tmp_path).stdout
    assert f"dilax {mode} --" in text
    for name, option in OPTIONS.items():
        shown = f"--{name}:" in text or f"--[no]{name}:" in text
        assert shown == (mode.replace("-", "_") in option.modes), name


@pytest.mark.slow
def test_training_is_the_experiment_s_script(tmp_path):
    text = _dilax("train", "table3", "--help", cwd=tmp_path).stdout
    assert "Table 3" in text and "<scenes|camvid|" in text
    wrong = _dilax("train", "voc", "--config.sede=1", "--workdir=x", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("error:")) == (1, 1)
    assert "did you mean seed" in wrong.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_prediction_needs_no_experiment(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "street.png")
    done = _dilax(
        "predict",
        "--weights=camvid",
        "--input=street.png",
        "--output=out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "street.png").size == (64, 48)
    lost = _dilax("predict", "--workdir=nowhere", "--input=street.png", cwd=tmp_path)
    assert lost.returncode == 1 and "nowhere" in lost.stderr


@pytest.mark.slow
def test_the_doctor_finds_this_machine_well():
    done = subprocess.run(
        [sys.executable, "-m", "dilax", "doctor", "--data_dir=nowhere"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("jax ", "nowhere: no such folder", "devices", "everything works"):
        assert part in done.stdout
    assert done.stdout.count("\nok ") == 4
    assert "WARNING" not in done.stderr


@pytest.mark.slow
def test_the_doctor_names_a_platform_that_is_missing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dilax", "doctor"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "none_such"},
    )
    assert done.returncode == 1
    assert "FAILED  devices" in done.stdout and "none_such" in done.stdout
    assert "Traceback" not in done.stderr


def test_what_fails_is_named_and_the_rest_goes_on(capsys):
    def broken():
        raise ValueError("off by 3\nand more")

    checks = [("sums", broken), ("rest", lambda: "fine")]
    assert doctor.run_checks(checks) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAILED  sums: ValueError: off by 3 (")
    assert lines[1].startswith("ok      rest: fine (")
    assert lines[-1].startswith("failed: sums (")


def test_the_arithmetic_is_found_wrong_where_it_is(monkeypatch):
    assert "Eq. 2" in doctor.check_convolution()
    monkeypatch.setattr(doctor, "dilated_conv", lambda x, k, dilation: x[:, :8, :8, :2])
    with pytest.raises(ValueError, match=r"dilated convolution is off by"):
        doctor.check_convolution()


LOSSES = """\
{"stage": "front_end", "step": 5, "loss": 2.0}
{"stage": "front_end", "step": 10, "loss": 1.9}
"""


def test_a_loss_that_does_not_fall_is_found(monkeypatch, tmp_path):
    def train(config, workdir):
        workdir.mkdir()
        (workdir / "metrics.jsonl").write_text(LOSSES)

    monkeypatch.setattr(doctor.training, "train", train)
    with pytest.raises(ValueError, match=r"loss 2.00 → 1.90.*must fall by a fifth"):
        doctor.check_run(tmp_path)
