"""Compiler options: what a compiler does not know is dropped, the rest is used."""

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from dilax.runtime import compiling as compiler

KNOWN = {"xla_backend_optimization_level": "1"}  # as old as XLA, on every backend
UNKNOWN = {"xla_no_such_option": "1"}


@pytest.fixture
def wanted(monkeypatch):
    """Sets the options wanted of the default backend, and forgets earlier probes."""

    def want(options):
        compiler.compiler_options.cache_clear()
        monkeypatch.setitem(compiler._WANTED, jax.default_backend(), options)

    yield want
    compiler.compiler_options.cache_clear()


def test_options_that_the_compiler_does_not_know_are_dropped(wanted):
    wanted(UNKNOWN | KNOWN)
    assert compiler.compiler_options() == KNOWN


def test_values_that_the_compiler_does_not_know_are_dropped(wanted):
    wanted({"xla_backend_optimization_level": "high"})
    assert compiler.compiler_options() == {}


def test_each_option_is_probed_once(wanted, monkeypatch):
    wanted(KNOWN)
    probed = []
    monkeypatch.setattr(compiler, "_known", lambda *option: not probed.append(option))
    assert compiler.compiler_options() == compiler.compiler_options() == KNOWN
    assert probed == list(KNOWN.items())


def test_backends_of_which_nothing_is_wanted_have_no_options():
    assert compiler.compiler_options("tpu") == {}


@pytest.mark.skipif(
    jaxlib.__version__ != "0.10.2" or jax.default_backend() != "cpu",
    reason="the option is experimental: known for sure to jaxlib 0.10.2 on CPUs",
)
def test_on_cpus_the_slow_fusion_is_off_and_barriers_are_kept():
    assert compiler.compiler_options() == {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }


def test_programs_that_run_once_say_so_on_cpus_alone(wanted):
    wanted({})
    on_cpu = jax.default_backend() == "cpu"
    assert compiler.compiler_options(once=True) == (KNOWN if on_cpu else {})
    assert compiler.compiler_options() == compiler.compiler_options("tpu", True) == {}


def test_products_of_what_is_computed_with_constants_are_right():
    def gaussians():
        distance = jnp.arange(16.0)[:, None] - jnp.arange(16.0)
        return jnp.exp(-(distance**2)) @ jnp.ones((16, 24))

    distance = np.arange(16.0)[:, None] - np.arange(16.0)
    sums = np.exp(-(distance**2)).sum(1, keepdims=True)
    np.testing.assert_allclose(compiler.jit(gaussians)(), sums + np.zeros(24), 1e-6)


@pytest.mark.parametrize("options", [KNOWN, UNKNOWN, {}])
def test_jit_hands_the_known_options_to_jax(wanted, monkeypatch, options):
    wanted(options)
    known = compiler.compiler_options(None, False)
    given = []
    monkeypatch.setattr(jax, "jit", lambda fun, **kwargs: given.append((fun, kwargs)))
    compiler.jit(abs, static_argnums=0)
    assert given == [(abs, {"compiler_options": known or None, "static_argnums": 0})]


@pytest.mark.parametrize("options", [KNOWN, UNKNOWN])
def test_jit_returns_what_jax_jit_returns(wanted, options):
    wanted(options)
    x = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)

    def fun(x, power):
        return {"product": x @ x, "power": x**power}

    ours = compiler.jit(fun, static_argnames="power")(x, power=3)
    theirs = jax.jit(fun, static_argnames="power")(x, power=3)
    jax.tree.map(np.testing.assert_allclose, ours, theirs)


@pytest.mark.parametrize(
    "function",
    [lambda x: x.sum(), lambda x: x.sum((0, 1, 2)), lambda x: (x * x).sum()],
    ids=["all", "pixels", "squares"],
)
def test_sums_of_millions_of_terms_are_accurate_with_our_compiler_options(function):
    x = np.random.default_rng(0).random((1, 1024, 2048, 5), np.float32)
    np.testing.assert_allclose(
        compiler.jit(function)(x), function(x.astype(float)), rtol=5e-6
    )
