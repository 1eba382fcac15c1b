"""The benchmark of the lowerings: which layers it times, and in which ways."""

import pytest

from benchmarks import lowerings as tune
from dilax.ops.lowerings import LOWERINGS


def test_the_layers_of_the_front_end_come_first_each_once():
    shapes = list(tune.shapes())
    assert len(set(shapes)) == len(shapes)
    fc6 = shapes.index(tune.Shape(7, 512, 4096, 4, 32))
    assert shapes[0] == tune.Shape(3, 3, 64, 1, 626)
    assert fc6 < shapes.index(tune.Shape(7, 128, 1024, 4, 32))
    dilations = {s.dilation for s in shapes if s.channels == s.out == 19}
    assert dilations == {1, 2, 4, 8, 16, 32, 64}


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
    assert tune.ways(single) == ["direct", "examples", "taps"]


def test_the_sums_of_what_is_chosen_are_between_the_fastest_and_what_was_timed(
    monkeypatch,
):
    shapes = [tune.Shape(3, 64, 64, 1, 70), tune.Shape(1, 256, 256, 1, 40)]
    seconds = dict.fromkeys(LOWERINGS, 0.2) | {"winograd": 0.1, "taps": 0.3}
    monkeypatch.setattr(tune, "shapes", lambda: shapes)
    monkeypatch.setattr(tune, "measure", lambda *_: seconds)
    lines = tune.compare(["float32"], minutes=1).splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[-3:]
    ]
    assert rows == [
        ["float32", "forward", "400", "200", "400"],
        ["float32", "input", "400", "200", "400"],
        ["float32", "kernel", "500", "200", "400"],
    ]
