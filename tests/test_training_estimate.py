"""What a run will take: the steps it really has, on images it really gets."""

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import quick_environment, tiny_config, write_images

from dilax.training import build_spec, estimate
from dilax.training.estimate import Cost, EmptyRun, plan_step


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    config = tiny_config(write_images(tmp_path_factory.mktemp("data")))
    spec = build_spec(config)
    large = dataclasses.replace(config)
    large.stages = tuple(
        dataclasses.replace(s, crop=(146, 146)) if s.inputs == "images" else s
        for s in config.stages
    )
    return estimate(config, spec), estimate(large, spec)


@pytest.mark.slow
def test_stages_on_images_are_measured_and_those_on_maps_are_not(costs):
    small, _ = costs
    assert {name: cost.steps for name, cost in small.items()} == {
        "front_end": 6,
        "joint": 4,
    }
    assert all(0 < cost.seconds < 5 for cost in small.values())


def test_larger_crops_take_more_memory(costs):
    small, large = (cost["front_end"].memory for cost in costs)
    inputs = 4 * 146 * 146 * 3
    activations = 4 * 144 * 144 * 6 * np.dtype(np.float32).itemsize
    assert small < inputs + activations < large < 20 * (inputs + activations)


def test_operations_are_the_network_s_three_passes_on_the_whole_batch(costs):
    """conv1 of 3 → 6 maps, which needs no gradient of the image; fc, final."""
    small, _ = costs
    conv, fc, final = (4 * 18 * 18 * 27 * 6, 4 * 9 * 9 * 6 * 8, 4 * 9 * 9 * 8 * 3)
    assert small["front_end"].flops == 2 * (2 * conv + 3 * (fc + final))
    text = str(small["front_end"]._replace(seconds=0.5, memory=12_340_000))
    assert text == "6 steps of 500 ms (0.00098 GFLOP, 0 GFLOP/s), 00:03 in all; 0.01 GB"


def test_operations_of_parts_add_up(tmp_path):
    config = tiny_config(write_images(tmp_path))
    spec, (stage, *_) = build_spec(config), config.stages
    whole = plan_step(config, spec, stage)
    stage.accumulate = 2
    parts = plan_step(config, spec, stage)
    assert (parts.together * 2, parts.times) == (whole.together, whole.times * 2)
    assert parts.flops == whole.flops
    run = EmptyRun(parts.compile(), parts.arguments)
    assert run() > 0 and run() > 0
    assert int(run.state.step) == 2


def test_a_step_that_does_not_fit_is_not_run(tmp_path, monkeypatch):
    config = tiny_config(write_images(tmp_path))
    module = sys.modules["dilax.training.estimate"]  # the name is the function's, too
    monkeypatch.setattr(module, "device_memory", lambda: 10_000)
    cost = estimate(config, build_spec(config))["front_end"]
    assert not cost.seconds and cost.memory > cost.room == 10_000
    assert "does not fit" in str(cost) and "raise accumulate" in str(cost)


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the "
        "total memory required for HLO temporaries (18.50G) exceeds available HBM "
        "(15.75G). HLO module: jit_step.\nSee https://openxla.org/xla/errors/error_1000",
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.50G of "
        "15.75G hbm. Exceeded hbm capacity by 2.75G.",
    ],
)
def test_what_a_tpu_s_compiler_refuses_does_not_fit(message, tmp_path, monkeypatch):
    """The compiler of a TPU does not return a program that is too large."""
    config = tiny_config(write_images(tmp_path))
    module = sys.modules["dilax.training.estimate"]
    planned = SimpleNamespace(flops=1)

    def refuse():
        raise jax.errors.JaxRuntimeError(message)

    planned.compile = refuse
    monkeypatch.setattr(module, "plan_step", lambda *_: planned)
    cost = estimate(config, build_spec(config))["front_end"]
    assert (cost.memory, cost.room, cost.seconds) == (18.5 * 2**30, 15.75 * 2**30, 0)
    assert "does not fit" in str(cost)


def test_what_a_device_has_is_shown_beside_what_a_step_needs():
    cost = Cost(memory=2 * 10**9, room=16 * 10**9, seconds=0.5, steps=1, flops=10**9)
    assert str(cost).endswith("2.00 GB of 16.00")


PROGRAM = """
import sys
from pathlib import Path
import jax
from tiny_run import tiny_config, write_images
from dilax.training import check_run, estimate, train

root = Path(sys.argv[1])
jax.config.update("jax_compilation_cache_dir", str(root / "cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
config = tiny_config(write_images(root / "data"))
config.data.class_weight_power = 0.5
estimate(config, check_run(config, root / "run").spec)
assert not (root / "run").exists()

def steps():
    return {p.name for p in (root / "cache").glob("jit_step-*-cache")}

before = steps()
train(config, root / "run")
print(len(before), len(steps() - before))
"""


@pytest.mark.slow
def test_training_does_not_compile_again_what_was_compiled_to_estimate(tmp_path):
    """Two stages train on images; the third, on maps, is not estimated."""
    (tmp_path / "run.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py", tmp_path],
        capture_output=True,
        text=True,
        env=quick_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 1"


def test_what_cannot_train_is_refused_first(tmp_path):
    config = tiny_config(write_images(tmp_path))
    config.stages[0].crop = (20, 21)
    with pytest.raises(ValueError, match=r"stages\[0\]\.crop\[1\]=21: .*multiple of"):
        estimate(config, build_spec(config))
