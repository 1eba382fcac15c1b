"""`python -m benchmarks`: all parts into one report, whatever befalls one of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.__main__ import GPU, Part

ROOT = Path(__file__).parent.parent
ABSENT = ("array_record", "cattrs", "grain", "pycocotools", "tensorboardX")
ABSENT += ("tensorflow_datasets", "importlib_resources", "tifffile", "torch")
# A machine without these packages, in every process that finds this on its path.
BARE = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def commands(monkeypatch):
    """Parts are Python statements instead of modules."""
    monkeypatch.setattr(
        benchmarks, "arguments", lambda part, out, data: ["-c", part.command]
    )


def test_a_part_that_fails_is_told_and_the_others_go_on(commands, tmp_path):
    parts = [
        Part("first", "print('one')", 1),
        Part("second", "print('half'); raise SystemExit('broken')", 1),
        Part("third", "print('three')", 1),
    ]
    assert benchmarks.report(parts, tmp_path, "") == ["second"]
    text = (tmp_path / "report.md").read_text()
    sections = text.split("\n## ")
    assert sections[0].count("jax") == 1  # the machine
    assert "one" in sections[1] and "Failed" not in sections[1]
    assert "half" in sections[2] and "exit code 1:\nbroken" in sections[2]
    assert "three" in sections[3]


def test_a_part_is_ended_with_all_that_it_started(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = (
        "import subprocess, sys; print('begun', flush=True);"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    start = time.monotonic()
    out, failure = benchmarks.run(["-c", code], seconds=1.5)
    assert time.monotonic() - start < 3
    assert out.strip() == "begun" and "took longer" in failure
    time.sleep(3)
    assert not mark.exists()


def test_what_does_not_fit_into_the_time_is_named(commands, tmp_path):
    parts = [Part("late", "print('never')", 1)]
    assert benchmarks.report(parts, tmp_path, "", minutes=0.1) == ["late"]
    assert "no time was left" in (tmp_path / "report.md").read_text()


def test_parts_that_want_images_are_left_out_without(tmp_path):
    part = Part("predict", "predict --data_dir={data}", 1)
    assert benchmarks.report([part], tmp_path, "") == []
    assert "--data_dir=FOLDER" in (tmp_path / "report.md").read_text()
    filled = benchmarks.arguments(part, "out", "some images")
    assert filled == ["-m", "benchmarks.predict", "--data_dir=some images"]


def test_comparisons_are_drawn(commands, tmp_path):
    pytest.importorskip("matplotlib")
    result = {"title": "step 628²", "width": 1, "dtype": "float32"}
    record = {"results": [{**result, "ratios": {"eager": 0.8}}]}
    (tmp_path / "step.json").write_text(json.dumps(record))
    benchmarks.report([], tmp_path, "")
    assert (tmp_path / "compared.png").stat().st_size > 1000


def test_the_first_parts_fit_into_the_eight_minutes_of_a_gpu():
    assert sum(part.minutes for part in GPU[:3]) <= 8
    assert {part.name for part in GPU[:3]} == {"forward", "step", "layers"}


def _run_bare(command, folder):
    """What a command prints on this processor without what bare machines lack."""
    (folder / "sitecustomize.py").write_text(BARE)
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FIRST, *OTHERS = [p for p in GPU if "network" in p.command][:3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [FIRST, *(pytest.param(p, marks=pytest.mark.full) for p in OTHERS)]
)
def test_a_bare_machine_compares_networks(part, tmp_path):
    command = benchmarks.arguments(part, str(tmp_path), "")
    small = ["--widths=0.03125", "--sizes=396", "--crop=396", "--against="]
    if "dilation10" in part.command:
        small += ["--crop=1396", "--widths=0.015625"]
    small += ["--batch=1", "--repeats=1", "--nomemory"]
    out = _run_bare([*command, *small], tmp_path)
    [result] = json.loads((tmp_path / f"{part.name}.json").read_text())["results"]
    assert len(result["seconds"]["dilax"]) == 1
    assert result["title"] in out


@pytest.mark.slow
def test_a_bare_machine_takes_the_commands_of_the_other_parts(tmp_path):
    layers, lowerings = (
        benchmarks.arguments(part, str(tmp_path), "")
        for part in GPU
        if "network" not in part.command
    )
    out = _run_bare([*layers, "--nomeasure"], tmp_path)
    assert "ctx_conv2_1" in out
    out = _run_bare([*lowerings, "--minutes=0"], tmp_path)
    assert "fastest, ms" in out
