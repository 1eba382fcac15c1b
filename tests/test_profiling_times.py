"""Timing single layers: the passes that run, and what each of them computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import TINY

from dilax.models import DilatedNet, FrontEnd
from dilax.profiling import layer_calls, network_cost
from dilax.profiling.layer_costs import (
    PASSES,
    PassTime,
    alternating_samples,
    repeated,
    time_layers,
)
from dilax.profiling.roofline import Peak

NET = DilatedNet(FrontEnd(3, TINY))
SLOW = Peak("slow", 1e6, 1e6)  # so slow that nothing needs to run often
CONV = layer_calls(NET, (1, 30, 30, 3))[2]


@pytest.fixture(scope="module")
def times():
    cost = network_cost(NET, (1, 30, 30, 3))
    names = [layer.call.name for layer in cost.layers]
    return dict(zip(names, time_layers(cost.layers, SLOW, 2, twins=True), strict=True))


def test_the_passes_that_run_are_timed(times):
    assert [*times] == ["conv1", "pool1", "conv2", "head", "final"]
    runs = {name: [*passes] for name, passes in times.items()}
    assert runs.pop("conv1") == ["forward", "kernel_gradient"]
    assert runs.pop("pool1") == ["forward", "input_gradient"]
    assert set(map(tuple, runs.values())) == {tuple(PASSES)}
    each = [time.seconds for passes in times.values() for time in passes.values()]
    assert all(0 < seconds < 1 for seconds in each)


def test_only_dilated_layers_are_compared_with_undilated_ones(times):
    ratios = {
        name: [time.over_undilated for time in passes.values() if time.over_undilated]
        for name, passes in times.items()
    }
    assert len(ratios.pop("conv2")) == 3
    assert not any(ratios.values())


def test_a_layer_is_timed_without_its_twin_unless_asked():
    layers = network_cost(NET, (1, 30, 30, 3), ()).layers[2:3]
    (time,) = time_layers(layers, SLOW, 1)
    assert time == {"forward": PassTime(time["forward"].seconds)}
    with pytest.raises(ValueError, match="repeats=0: must be 1 or more"):
        time_layers(layers, SLOW, 0)


def test_samples_alternate_and_the_compiling_one_is_left_out():
    seen = []

    def sampler(name):
        def sample():
            seen.append(name)
            return float(len(seen))

        return sample

    found = alternating_samples([sampler("a"), sampler("b")], 2)
    assert seen == ["a", "b"] * 3
    assert found == [[3.0, 5.0], [4.0, 6.0]]


def test_each_pass_computes_what_its_name_says():
    """Against the gradients of Σ y·g, whose terms are known for one output."""
    rng = np.random.default_rng(0)
    params, x, g = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype),
        (CONV.params, CONV.input, CONV.output),
    )
    forward, by_x, by_params = (p(CONV, params, x, g) for p in PASSES.values())
    np.testing.assert_allclose(forward, CONV(params, x))
    bias = by_params["bias"]
    np.testing.assert_allclose(bias, g.sum((0, 1, 2)), rtol=1e-4)
    corner = jnp.einsum("co,o->c", params["kernel"][0, 0], g[0, 0, 0])
    np.testing.assert_allclose(by_x[0, 0, 0], corner, rtol=1e-4)


def test_a_loop_on_the_device_runs_as_often_as_asked():
    """Counted by a callback from inside; the last output is the result."""
    seen = []

    def double(x):
        jax.debug.callback(lambda: seen.append(1), ordered=True)
        return 2 * x

    out = jax.jit(lambda x: repeated(double, (x,), 5))(jnp.float32(3))
    jax.effects_barrier()
    assert (float(out), len(seen)) == (6.0, 5)
