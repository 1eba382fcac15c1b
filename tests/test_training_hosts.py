"""Jobs of several processes and devices: the run that one process makes by itself."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import quick_environment, write_images

from dilax import load_checkpoint

JOB = Path(__file__).with_name("tiny_job.py")
STAGES = ("front_end", "context", "joint")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The folder of the run that one process made."""
    workdir = tmp_path_factory.mktemp("alone")
    _finish([_start(data, workdir)])
    return workdir


def _start(data, workdir, *flags, devices=1):
    command = [sys.executable, str(JOB), f"--data_dir={data}", f"--workdir={workdir}"]
    force = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [*command, "--noestimate", *flags],
        env=quick_environment(force) | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _start_two(data, workdir, *flags, second=()):
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = [f"--coordinator=127.0.0.1:{port}", "--processes=2", *flags]
    return [
        _start(data, workdir, *job, f"--process_id={i}", *(second if i else ()))
        for i in range(2)
    ]


def _finish(processes, code=0):
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == code, output[-3000:]
    return outputs


def _wait_for(condition, processes):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        assert all(p.poll() is None for p in processes), "ended too early"
        time.sleep(0.05)


def _kill(*processes):
    for process in processes:
        process.kill()
        process.wait()


def _assert_same_run(workdir, expected):
    for stage in STAGES:
        ours, theirs = (load_checkpoint(w, stage)[1] for w in (workdir, expected))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b) + 1e-7
    ours, theirs = ((w / "results.md").read_text() for w in (workdir, expected))
    assert ours == theirs


def test_two_processes_make_the_run_of_one_though_they_were_killed(
    data, alone, tmp_path
):
    job = _start_two(data, tmp_path)
    _wait_for((tmp_path / "maps" / "front_end").exists, job)
    _kill(*job)
    first, second = _finish(_start_two(data, tmp_path))
    assert "mean IoU" in first and "mean IoU" not in second  # one talks
    _assert_same_run(tmp_path, alone)
    for name in ("metrics.jsonl", "spec.json", "pictures.png"):
        assert (tmp_path / name).exists()


@pytest.mark.full
def test_two_processes_keep_the_average_of_one_and_its_loss(data, tmp_path):
    flags = [
        *("--config.stages.front_end.ema=0.5", "--config.stages.joint.ema=0.9"),
        "--config.stages.joint.loss.name=dice",
        "--config.data.class_weight_power=0.5",
    ]
    _finish([_start(data, tmp_path / "alone", *flags)])
    _finish(_start_two(data, tmp_path / "two", *flags))
    _assert_same_run(tmp_path / "two", tmp_path / "alone")


@pytest.mark.full
def test_a_job_ends_when_one_of_its_processes_dies(data, alone, tmp_path):
    """Which takes JAX a minute and a half to find out."""
    job = _start_two(data, tmp_path)
    _wait_for((tmp_path / "checkpoints" / "front_end" / "2").exists, job)
    _kill(job[1])
    output = job[0].communicate(timeout=200)[0]
    assert job[0].returncode != 0, output[-2000:]
    _finish(_start_two(data, tmp_path))
    _assert_same_run(tmp_path, alone)


@pytest.mark.full
def test_a_signal_to_one_process_saves_and_ends_all(data, alone, tmp_path):
    job = _start_two(data, tmp_path, "--config.log_every=1")
    _wait_for((tmp_path / "metrics.jsonl").exists, job)
    job[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=200)[0] for process in job]
    if "stopped and saved" in outputs[1]:  # else it was not in a training step
        assert {p.returncode for p in job} == {128 + signal.SIGTERM}
    _finish(_start_two(data, tmp_path, "--config.log_every=1"))
    assert (tmp_path / "results.md").read_text() == (alone / "results.md").read_text()


def test_processes_that_differ_are_refused_by_all(data, tmp_path):
    outputs = _finish(_start_two(data, tmp_path, second=["--config.seed=1"]), code=1)
    assert all("process 1 has another configuration" in out for out in outputs)
    assert not (tmp_path / "config.json").exists()


def test_a_coordinator_that_is_not_there_is_named(data, tmp_path):
    flags = ["--coordinator=127.0.0.1:9", "--processes=2", "--process_id=1"]
    process = _start(data, tmp_path, *flags, "--join_timeout=2")
    output = process.communicate(timeout=100)[0]
    assert process.returncode != 0
    assert "127.0.0.1:9" in output


def test_a_run_moves_from_eight_devices_to_one_to_two(data, alone, tmp_path):
    """Killed in the middle of two stages, continued on other devices."""
    marks = {
        8: tmp_path / "checkpoints" / "front_end" / "2",
        1: tmp_path / "checkpoints" / "joint" / "2",
    }
    for devices, mark in marks.items():
        process = _start(data, tmp_path, devices=devices)
        _wait_for(mark.exists, [process])
        _kill(process)
    mesh = ["--config.mesh.data=1", "--config.mesh.rows=2"]
    _finish([_start(data, tmp_path, *mesh, devices=2)])
    _assert_same_run(tmp_path, alone)
