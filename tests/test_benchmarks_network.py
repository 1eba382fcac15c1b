"""The networks that benchmarks compare: PyTorch's computes what ours does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="module")
def network(request):
    """The benchmark's module; PyTorch is what it compares with."""
    pytest.importorskip("torch")
    from benchmarks import network

    return network


@pytest.mark.slow
@pytest.mark.parametrize("side", ["eager", "dilax"])
def test_both_sides_give_the_same_probabilities(network, side):
    case = network.Case("forward", 1 / 32, "float32", 396, 2)
    params = network.random_params(case.model)
    cells = network.runner(side, case, params)()
    assert cells.shape == (2, 3, 3, 11)
    x = jnp.asarray(case.images, jnp.float32) - jnp.asarray(case.spec.mean)
    logits = case.model.apply({"params": params}, x)
    assert np.ptp(cells) > 1e-3  # the image decides
    np.testing.assert_allclose(cells, jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["step", "joint"])
def test_both_sides_take_the_same_losses_without_dropout(network, monkeypatch, what):
    def no_dropout(*args, **kwargs):
        net = released.build(*args, **kwargs)
        layers = [row._replace(dropout=0.0) for row in net.front_end.layers]
        return net.clone(front_end=net.front_end.clone(layers=tuple(layers)))

    released = network.RELEASED["dilation8_camvid"]
    without = {"dilation8_camvid": released._replace(build=no_dropout)}
    monkeypatch.setattr(network, "RELEASED", without)
    case = network.Case(what, 1 / 32, "float32", 396, 2)
    params = network.random_params(case.model)
    ours, theirs = (network.runner(s, case, params) for s in ("dilax", "eager"))
    first = ours(), theirs()
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    second = ours(), theirs()
    assert second[0] != first[0]
    assert second[0] - first[0] == pytest.approx(second[1] - first[1], rel=0.2)


def test_the_table_and_the_plot_show_the_median_of_the_ratios(network, tmp_path):
    seconds = {"dilax": [1.0, 3.0, 2.0], "eager": [2.0, 2.0, 2.0]}
    case = network.Case("step", 0.25, "float32", 628, 1)._asdict()
    result = {
        **case,
        "title": "step 628²",
        "seconds": seconds,
        "ratios": {"eager": network._ratio(*seconds.values())},
        "apart": {"eager": 0.02},
        "memory": {"dilax": 1.5e9, "eager": 2e9},
    }
    row = network.table([result]).splitlines()[-1]
    assert "2 (1 – 3)" in row
    assert "| 1.00 " in row and "| 1.50 " in row and "| 2.00 " in row
    pytest.importorskip("matplotlib")
    network.plot([result], str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_memory_is_this_process_s(network):
    if not network._CPUINFO.exists():
        pytest.skip("an account of memory as Linux keeps it")
    before = network._memory("VmHWM")
    block = np.ones(50_000_000)
    assert network._memory("VmHWM") - before > 0.5 * block.nbytes
