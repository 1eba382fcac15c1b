"""The tuner of `dilated_conv`: what it times, chooses and writes."""

import json

import pytest

from benchmarks import tune_dilated_conv as tune
from dilax.ops.lowerings import LOWERINGS


def test_the_layers_of_the_front_end_come_first_each_once():
    shapes = list(tune.shapes())
    assert len(set(shapes)) == len(shapes)
    fc6 = shapes.index(tune.Shape(7, 512, 4096, 4, 32))
    assert shapes[0] == tune.Shape(3, 3, 64, 1, 626)
    assert fc6 < shapes.index(tune.Shape(7, 128, 1024, 4, 32))
    dilations = {s.dilation for s in shapes if s.channels == s.out == 19}
    assert dilations == {1, 2, 4, 8, 16, 32, 64}


@pytest.mark.parametrize(
    "seconds, chosen",
    [
        ({"direct": 1.0, "taps": 0.96}, "direct"),
        ({"direct": 1.0, "taps": 0.94, "rows": 0.9}, "rows"),
        ({"direct": 1.0, "phases": 2.0}, "direct"),
        ({"direct": 4e-4, "taps": 3e-4}, "direct"),
    ],
)
def test_direct_yields_only_to_what_is_clearly_faster(seconds, chosen):
    assert tune.fastest(seconds) == chosen


@pytest.mark.slow
def test_every_way_of_a_pass_gives_an_array_of_the_same_shape():
    shape = tune.Shape(3, 4, 5, 2, 6)
    sizes = {"forward": (2, 6, 6, 5), "input": (2, 10, 10, 4), "kernel": (3, 3, 4, 5)}
    for name, (make, arguments) in tune.passes(shape, 2, "float32").items():
        for way in tune.ways(shape):
            assert make(way)(*arguments).shape == sizes[name]


def test_ways_that_are_the_same_are_timed_once():
    dilated, plain, single = (
        tune.Shape(*s, 6) for s in ((3, 4, 5, 2), (3, 4, 5, 1), (1, 4, 5, 1))
    )
    assert tune.ways(dilated) == list(LOWERINGS)
    assert {*LOWERINGS} - {*tune.ways(plain)} == {"phases"}
    assert tune.ways(single) == ["direct", "taps"]


def test_rows_replace_those_of_the_same_backend_and_type(tmp_path):
    def row(backend, dtype, forward):
        return {"backend": backend, "dtype": dtype, "forward": forward}

    table = tmp_path / "table.json"
    others = [row("cpu", "float32", "taps"), row("gpu", "bfloat16", "phases")]
    table.write_text(json.dumps([*others, row("gpu", "float32", "taps")]))
    new = [row("gpu", "float32", "direct"), row("gpu", "float32", "rows")]
    tune.write(new, table)
    assert json.loads(table.read_text()) == [*others, *new]


def test_the_table_that_is_shipped_holds_known_lowerings():
    for row in json.loads(tune.TABLE.read_text()):
        assert {row[name] for name in ("forward", "input", "kernel")} <= set(LOWERINGS)
        assert row["dtype"] in ("float32", "bfloat16")
        assert len(row["channels"]) == 2 and row["cells"] > 0
