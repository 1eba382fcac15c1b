"""Figures whose times are made up, so that every number of the table is known."""

import json

import pytest
from networks import TINY

from dilax.models import DilatedNet, FrontEnd, dilation8_camvid
from dilax.profiling import network_cost
from dilax.profiling.layer_costs import (
    PASSES,
    PassTime,
    layer_figures,
    layer_json,
    layer_table,
)
from dilax.profiling.roofline import Peak

NET = DilatedNet(FrontEnd(3, TINY))
COST = network_cost(NET, (1, 30, 30, 3))
PEAK = Peak("a chip", flops=1e9, bandwidth=1e18)


def _times(*seconds, ratios=(None, None, None)):
    each = zip(PASSES, seconds, ratios, strict=True)
    return {name: PassTime(s, ratio) for name, s, ratio in each if s is not None}


TIMES = [
    _times(0.004, None, 0.002),
    _times(0.0, 0.001, None),
    _times(0.001, 0.002, 0.005, ratios=(1.0, 1.25, 0.5)),
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
    assert row["× undilated"] == "1.00 / 1.25 / 0.50"
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
    assert figures["over_undilated"] == 1.25
    assert [*by_name["front_end/pool1"]["passes"]] == ["forward", "input_gradient"]


def test_times_of_other_layers_are_refused():
    with pytest.raises(ValueError, match="times: 4 for 5 layers"):
        layer_figures(COST, PEAK, TIMES[1:])
