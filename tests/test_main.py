"""`python -m dilax`: its commands, and the doctor's verdict."""

import subprocess
import sys
from pathlib import Path

import pytest

from dilax import __main__ as command
from dilax.cli import doctor

ROOT = Path(__file__).parent.parent


def test_without_a_command_it_tells_which_there_are(capsys):
    assert command.main([]) == command.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"python -m dilax {name}" in text for name in command.COMMANDS)
    scripts = {word for word in text.split() if word.startswith("experiments/")}
    assert scripts and all((ROOT / script).is_file() for script in scripts)


def test_an_unknown_command_is_named_with_those_there_are(capsys):
    assert command.main(["docter"]) == 2
    assert (
        "docter: is no command; there are doctor, data" in capsys.readouterr().err
    )


def test_commands_take_their_own_flags(capsys):
    assert command.main(["receptive_field", "1", "2", "4"]) == 0
    assert "15 x 15" in capsys.readouterr().out


@pytest.mark.slow
def test_the_doctor_finds_this_machine_well():
    done = subprocess.run(
        [sys.executable, "-m", "dilax", "doctor", "--data_dir=nowhere"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("jax ", "nowhere: not there", "devices", "all is well"):
        assert part in done.stdout
    assert done.stdout.count("\nok ") == 4
    assert "WARNING" not in done.stderr


def test_what_fails_is_named_and_the_rest_goes_on(capsys):
    def broken():
        raise ValueError("off by 3\nand more")

    checks = [("sums", broken), ("rest", lambda: "fine")]
    assert doctor.run_checks(checks) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAILED  sums: ValueError: off by 3 (")
    assert lines[1].startswith("ok      rest: fine (")
    assert lines[-1].startswith("not well: sums failed, in ")


def test_the_arithmetic_is_found_wrong_where_it_is(monkeypatch):
    assert "Eq. 2" in doctor.check_convolution()
    monkeypatch.setattr(doctor, "dilated_conv", lambda x, k, dilation: x[:, :8, :8, :2])
    with pytest.raises(ValueError, match=r"dilated convolution is off by"):
        doctor.check_convolution()


def test_a_loss_that_does_not_fall_is_found(monkeypatch, tmp_path):
    def train(config, workdir):
        workdir.mkdir()
        (workdir / "metrics.jsonl").write_text('{"loss": 2.0}\n{"loss": 1.9}\n')

    monkeypatch.setattr(doctor, "train", train)
    with pytest.raises(ValueError, match=r"loss 2.00 → 1.90.*must fall by a fifth"):
        doctor.check_run(tmp_path)
