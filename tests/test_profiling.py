"""Times of single layers, the table of them, and what a profile of a run writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import TINY
from tiny_run import tiny_config, write_images

from dilax.models import BASIC, DilatedNet, FrontEnd, dilation8_camvid
from dilax.profiling import layer_calls, network_cost
from dilax.profiling.layer_costs import (
    PASSES,
    layer_figures,
    layer_json,
    layer_table,
    repeated,
    time_layers,
)
from dilax.profiling.roofline import Peak
from dilax.training import check_run, profile

# Timing single layers: the passes that run, and what each of them computes.


NET = DilatedNet(FrontEnd(3, TINY))
SLOW = Peak("slow", 1e6, 1e6)  # so slow that nothing needs to run often
CONV = layer_calls(NET, (1, 30, 30, 3))[2]


@pytest.fixture(scope="module")
def times():
    cost = network_cost(NET, (1, 30, 30, 3))
    names = [layer.call.name for layer in cost.layers]
    return dict(zip(names, time_layers(cost.layers, SLOW, 2), strict=True))


def test_the_passes_that_run_are_timed(times):
    assert [*times] == ["conv1", "pool1", "conv2", "head", "final"]
    runs = {name: [*passes] for name, passes in times.items()}
    assert runs.pop("conv1") == ["forward", "kernel_gradient"]
    assert runs.pop("pool1") == ["forward", "input_gradient"]
    assert set(map(tuple, runs.values())) == {tuple(PASSES)}
    each = [seconds for passes in times.values() for seconds in passes.values()]
    assert all(0 < seconds < 1 for seconds in each)


def test_a_pass_has_at_least_one_sample():
    with pytest.raises(ValueError, match="repeats=0: must be 1 or more"):
        time_layers(network_cost(NET, (1, 30, 30, 3), ()).layers, SLOW, 0)


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


# Figures whose times are made up, so that every number of the table is known.


COST = network_cost(NET, (1, 30, 30, 3))
PEAK = Peak("a chip", flops=1e9, bandwidth=1e18)


def _times(*seconds):
    each = zip(PASSES, seconds, strict=True)
    return {name: s for name, s in each if s is not None}


TIMES = [
    _times(0.004, None, 0.002),
    _times(0.0, 0.001, None),
    _times(0.001, 0.002, 0.005),
    _times(0.001, 0.001, 0.001),
    _times(0.001, 0.001, 0.0),
]


def _cells(table):
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return {row[0]: dict(zip(header, row, strict=False)) for row in rows}


def test_times_rates_and_shares():
    """conv2 takes 2·10²·8·72 products; the chip 0.0922 ms a pass."""
    cells = _cells(layer_table(layer_figures(COST, PEAK, TIMES)))
    row = cells["front_end/conv2"]
    assert row["output"] == "1×10×10×8"
    assert row["dilation"] == "2"
    assert row["GFLOP"] == " / ".join(["0.000115"] * 3)
    assert row["ms"] == "1 / 2 / 5"
    assert row["GFLOP/s"] == "0 / 0 / 0"
    assert row["roofline, %"] == "12 / 6 / 2"
    assert row["time, %"] == "40.0"
    assert cells["front_end/conv1"]["ms"] == "4 / – / 2"
    total = cells["all"]
    assert (total["ms"], total["time, %"]) == ("7 / 5 / 8", "100.0")


def test_without_times_the_table_tells_the_work():
    cells = _cells(layer_table(layer_figures(COST, PEAK)))
    row = cells["front_end/conv2"]
    assert (row["parameters"], row["kept, MB"]) == ("584", "0.00627")
    assert row["least ms"] == "0.115 / 0.115 / 0.115"
    assert cells["all"]["parameters"] == f"{COST.parameters:,}"
    assert "ms" not in row


def test_modules_are_summed_where_there_are_several():
    cost = network_cost(dilation8_camvid(), (1, 900, 900, 3), ())
    cells = _cells(layer_table(layer_figures(cost, PEAK)))
    assert cells["all"]["GFLOP"] == "1.58e+03 / – / –"
    assert cells["context"]["parameters"] == f"{7 * (9 * 121 + 11) + 132:,}"
    single = _cells(layer_table(layer_figures(COST, PEAK)))
    assert not {"front_end", "context"} & {*single}


def test_json_holds_every_figure():
    rows = json.loads(json.dumps(layer_json(layer_figures(COST, PEAK, TIMES))))
    by_name = {row["layer"]: row for row in rows}
    row = by_name["front_end/conv2"]
    assert (row["output"], row["parameters"]) == ([1, 10, 10, 8], 584)
    figures = row["passes"]["input_gradient"]
    flops = 2 * 10 * 10 * 8 * 9 * 8
    assert (figures["flops"], figures["seconds"]) == (flops, 0.002)
    assert figures["rate"] == flops / 0.002
    assert figures["roofline"] == pytest.approx(flops / 1e9 / 0.002)
    assert [*by_name["front_end/pool1"]["passes"]] == ["forward", "input_gradient"]


def test_times_of_other_layers_are_refused():
    with pytest.raises(ValueError, match="times: 4 for 5 layers"):
        layer_figures(COST, PEAK, TIMES[1:])


# What a profile writes, of a run of which every layer is known.


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    config = tiny_config(write_images(root / "data"))
    config.stages[2].accumulate = 2
    for stage in config.stages[1:]:
        stage.context = BASIC[:1]
    spec = check_run(config, root / "run").spec
    return root, profile(config, spec, root / "profile", steps=2, repeats=1)


@pytest.mark.slow
def test_stages_on_images_are_profiled(profiled):
    root, tables = profiled
    assert [*tables] == ["front_end", "joint"]
    for stage, table in tables.items():
        assert (root / "profile" / f"{stage}.md").read_text("utf-8") == table
    assert not (root / "run").exists()


@pytest.mark.slow
def test_layers_are_those_of_the_images_that_run_together(profiled):
    root, tables = profiled
    first, joint = (
        json.loads((root / "profile" / f"{stage}.json").read_text("utf-8"))["layers"]
        for stage in tables
    )
    context = ["ctx_conv1_1", "ctx_final"]
    names = [row["layer"] for row in joint]
    front = [f"front_end/{name}" for name in ("conv1", "pool1", "fc", "final")]
    assert names == [*front, *(f"context/{name}" for name in context)]
    assert first[0]["output"] == [4, 18, 18, 6]
    assert joint[0]["output"] == [2, 18, 18, 6]
    assert "layers on 2 of 4 images of 20×20, 2 times per step" in tables["joint"]


@pytest.mark.slow
def test_times_rates_and_the_traced_steps_are_written(profiled):
    root, _ = profiled
    record = json.loads((root / "profile" / "joint.json").read_text("utf-8"))
    assert len(record["step_seconds"]) == 2
    for row in record["layers"]:
        for figures in row["passes"].values():
            assert figures["rate"] == figures["flops"] / figures["seconds"]
            least = max(
                figures["flops"] / record["peak"]["flops"],
                figures["bytes"] / record["peak"]["bandwidth"],
            )
            assert figures["least_seconds"] == least
    (trace,) = (root / "profile" / "joint").rglob("*.xplane.pb")
    assert b"train" in trace.read_bytes()  # the annotation of steps
