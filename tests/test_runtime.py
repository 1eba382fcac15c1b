"""Compiler options, the compilation cache, and the job that a process joins."""

import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from dilax.ops import dilated_conv
from dilax.runtime.compiling import compiler_options, jit, known_options
from dilax.runtime.processes import (
    differing_process,
    gathered,
    is_writer,
    job_settings,
    join_job,
    own_share,
)

# Compiler options that XLA knows, and a cache that outlives a process.


KNOWN = {"xla_backend_optimization_level": "1"}  # as old as XLA, on every backend
ON_CPU = jax.default_backend() == "cpu"

PROGRAM = """
import jax
from dilax.runtime import jit, keep_compiled
folder = keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(
    lambda name, **kw: name.endswith("cache_hits") and hits.append(name)
)
def doubled(x): return 2 * x
assert float(jit(doubled)(3.0)) == 6
print(folder)
print(len(list(folder.glob("jit_doubled-*-cache"))), len(hits) > 0)
"""


def test_options_and_values_that_the_compiler_does_not_know_are_dropped():
    assert known_options({"xla_no_such_option": "1"} | KNOWN) == KNOWN
    assert known_options({"xla_backend_optimization_level": "high"}) == {}


@pytest.mark.skipif(not ON_CPU, reason="the order that XLA chooses on CPUs")
def test_transformed_kernels_are_not_all_in_memory_at_once():
    kernel = jax.ShapeDtypeStruct((7, 7, 64, 256), jnp.float32)
    x = jax.ShapeDtypeStruct((1, 30, 30, 64), jnp.float32)
    convolve = jit(lambda x, k: dilated_conv(x, k, dilation=4, lowering="winograd"))
    memory = convolve.lower(x, kernel).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 4 * kernel.size / 7  # of eleven


def test_options_are_found_inside_another_function_s_trace():
    found = []
    jax.jit(lambda x: (found.append(known_options(KNOWN)), x)[1])(1.0)
    assert found == [KNOWN]


@pytest.mark.skipif(
    jaxlib.__version__ != "0.10.2" or not ON_CPU,
    reason="the options are experimental: known for sure to jaxlib 0.10.2 on CPUs",
)
def test_options_of_cpus():
    options = {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        "xla_disable_hlo_passes": "cse_barrier_expander",
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    }
    assert compiler_options() == options
    assert compiler_options(once=True) == options | KNOWN
    inner = jit(lambda x: x + 1)
    with pytest.raises(ValueError, match="compiler_options"):  # so it has some
        jax.jit(lambda x: inner(x))(1)


def test_tpus_have_no_options():
    assert compiler_options("tpu") == compiler_options("tpu", True) == {}


def test_jit_returns_what_jax_jit_returns():
    x = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)

    def function(x, power):
        return {"product": x @ x, "power": x**power}

    ours = jit(function, static_argnames="power")(x, power=3)
    theirs = jax.jit(function, static_argnames="power")(x, power=3)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array)


def test_products_with_constants_are_right():
    def gaussians():
        distance = jnp.arange(16.0)[:, None] - jnp.arange(16.0)
        return jnp.exp(-(distance**2)) @ jnp.ones((16, 24))

    distance = np.arange(16.0)[:, None] - np.arange(16.0)
    sums = np.exp(-(distance**2)).sum(1, keepdims=True)
    np.testing.assert_allclose(jit(gaussians)(), sums + np.zeros(24), 1e-6)


@pytest.mark.parametrize("axes", [None, (0, 1, 2)])
def test_sums_of_millions_of_terms_are_accurate(axes):
    x = np.random.default_rng(0).random((1, 1024, 2048, 5), np.float32)
    total = jit(lambda x: (x.sum(axes), (x * x).sum(axes)))(x)
    wide = x.astype(float)
    expected = wide.sum(axes), (wide * wide).sum(axes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 5e-6), total, expected)


def _run(**environment):
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=kept | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, folder",
    [("XDG_CACHE_HOME", "dilax/compiled"), ("JAX_COMPILATION_CACHE_DIR", "")],
)
def test_a_second_process_finds_what_the_first_compiled(tmp_path, name, folder):
    wanted = str(tmp_path / folder)
    assert _run(**{name: str(tmp_path)}) == [wanted, "1", "False"]
    assert _run(**{name: str(tmp_path)}) == [wanted, "1", "True"]


# Which job a process joins, by flags or by the environment.


TORCHRUN = {
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "16",
    "RANK": "9",
    "LOCAL_RANK": "1",
}


def _flags(**given):
    none = dict.fromkeys(("coordinator", "processes", "process_id"))
    return SimpleNamespace(**{**none, "distributed": False, "join_timeout": 1, **given})


def test_a_process_alone_joins_nothing():
    assert job_settings(_flags(), TORCHRUN) is None  # unless asked to


def test_flags_name_a_job():
    flags = _flags(coordinator="host:1234", processes=4, process_id=3)
    assert job_settings(flags, {}) == {
        "coordinator_address": "host:1234",
        "num_processes": 4,
        "process_id": 3,
    }


def test_torchrun_s_variables_name_a_job():
    assert job_settings(_flags(distributed=True), TORCHRUN) == {
        "coordinator_address": "10.0.0.1:29500",
        "num_processes": 16,
        "process_id": 9,
        "local_device_ids": [1],
    }


def test_other_clusters_are_left_to_jax():
    assert job_settings(_flags(distributed=True), {"SLURM_JOB_ID": "1"}) == {}


@pytest.mark.parametrize(
    "given, message",
    [
        ({"coordinator": "a:1"}, "--coordinator: give --processes and --process_id"),
        ({"processes": 2}, "--processes: give --coordinator"),
        ({"process_id": 0}, "--process_id: give --coordinator"),
        (
            {"coordinator": "a:1", "processes": 2, "process_id": 2},
            "--process_id=2: must be 0 to 1",
        ),
        (
            {"coordinator": "host", "processes": 2, "process_id": 0},
            "--coordinator=host: must be HOST:PORT",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        job_settings(_flags(**given), {})


def test_a_coordinator_that_does_not_answer_is_named():
    flags = _flags(coordinator="127.0.0.1:9", processes=2, process_id=1)
    with pytest.raises(ValueError, match=r"coordinator=127\.0\.0\.1:9: did not answer"):
        join_job(flags)


def test_one_process_has_and_writes_all():
    assert is_writer()
    assert own_share([3, 1, 2]) == [3, 1, 2]
    every = gathered(np.array([[2**40, -1]]))
    assert every.tolist() == [[[2**40, -1]]]
    assert differing_process("anything") is None
