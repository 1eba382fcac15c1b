"""`python -m benchmarks`: its parts, and the report that they are written into."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import TINY
from tiny_run import quick_environment

from benchmarks import __main__ as benchmarks
from benchmarks import duc
from benchmarks import lowerings as tune
from benchmarks.__main__ import GPU, Part
from benchmarks.undilated import over_undilated, undilated_twin
from dilax.models import DilatedNet, FrontEnd, dilation8_camvid
from dilax.ops import upsample_bilinear
from dilax.ops.lowerings import LOWERINGS
from dilax.profiling import layer_calls, network_cost
from dilax.profiling.roofline import Peak

# All parts into one report, whatever happens to one of them.


ROOT = Path(__file__).parent.parent
ABSENT = ("array_record", "cattrs", "grain", "pycocotools", "tensorboardX")
ABSENT += ("tensorflow_datasets", "importlib_resources", "tifffile", "torch")
# A machine without these packages, in every process that finds this on its path.
BARE = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def commands(monkeypatch):
    """Parts are Python statements instead of modules."""
    monkeypatch.setattr(
        benchmarks, "arguments", lambda part, out, data: ["-c", part.command]
    )


def test_a_part_that_fails_is_told_and_the_others_go_on(commands, tmp_path):
    parts = [
        Part("first", "print('one')", 1),
        Part("second", "print('half'); raise SystemExit('broken')", 1),
        Part("third", "print('three')", 1),
    ]
    assert benchmarks.report(parts, tmp_path, "") == ["second"]
    text = (tmp_path / "report.md").read_text()
    sections = text.split("\n## ")
    assert sections[0].count("jax") == 1  # the machine
    assert "one" in sections[1] and "Failed" not in sections[1]
    assert "half" in sections[2] and "exit code 1:\nbroken" in sections[2]
    assert "three" in sections[3]


def test_a_part_is_ended_with_all_that_it_started(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = (
        "import subprocess, sys; print('begun', flush=True);"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    start = time.monotonic()
    out, failure = benchmarks.run(["-c", code], seconds=1.5)
    assert time.monotonic() - start < 3
    assert out.strip() == "begun" and "took longer" in failure
    time.sleep(3)
    assert not mark.exists()


def test_what_does_not_fit_into_the_time_is_named(commands, tmp_path):
    parts = [Part("late", "print('never')", 1)]
    assert benchmarks.report(parts, tmp_path, "", minutes=0.1) == ["late"]
    assert "no time was left" in (tmp_path / "report.md").read_text()


def test_parts_that_want_images_are_left_out_without(tmp_path):
    part = Part("predict", "predict --data_dir={data}", 1)
    assert benchmarks.report([part], tmp_path, "") == []
    assert "--data_dir=FOLDER" in (tmp_path / "report.md").read_text()
    filled = benchmarks.arguments(part, "out", "some images")
    assert filled == ["-m", "benchmarks.predict", "--data_dir=some images"]


def test_comparisons_are_drawn(commands, tmp_path):
    pytest.importorskip("matplotlib")
    result = {"title": "step 628²", "width": 1, "dtype": "float32"}
    record = {"results": [{**result, "ratios": {"eager": 0.8}}]}
    (tmp_path / "step.json").write_text(json.dumps(record))
    benchmarks.report([], tmp_path, "")
    assert (tmp_path / "compared.png").stat().st_size > 1000


def test_the_first_parts_fit_into_the_eight_minutes_of_a_gpu():
    assert sum(part.minutes for part in GPU[:3]) <= 8
    assert {part.name for part in GPU[:3]} == {"forward", "step", "layers"}


def _run_bare(command, folder):
    """What a command prints on this processor without what bare machines lack."""
    (folder / "sitecustomize.py").write_text(BARE)
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *command],
        env=quick_environment() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FIRST, *OTHERS = [p for p in GPU if "network" in p.command][:3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [FIRST, *(pytest.param(p, marks=pytest.mark.full) for p in OTHERS)]
)
def test_a_bare_machine_compares_networks(part, tmp_path):
    command = benchmarks.arguments(part, str(tmp_path), "")
    small = ["--widths=0.03125", "--sizes=396", "--crop=396", "--against="]
    if "dilation10" in part.command:
        small += ["--crop=1396", "--widths=0.015625"]
    small += ["--batch=1", "--repeats=1", "--nomemory"]
    out = _run_bare([*command, *small], tmp_path)
    [result] = json.loads((tmp_path / f"{part.name}.json").read_text())["results"]
    assert len(result["seconds"]["dilax"]) == 1
    assert result["title"] in out


@pytest.mark.slow
def test_a_bare_machine_takes_the_commands_of_the_other_parts(tmp_path):
    layers, lowerings = (
        benchmarks.arguments(part, str(tmp_path), "")
        for part in GPU
        if "network" not in part.command
    )
    out = _run_bare([*layers, "--nomeasure"], tmp_path)
    assert "ctx_conv2_1" in out
    out = _run_bare([*lowerings, "--minutes=0"], tmp_path)
    assert "fastest, ms" in out


# The networks that are compared: PyTorch's computes what ours does.


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
        "ratios": {"eager": network.median_ratio(*seconds.values())},
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
    if not Path("/proc/self/status").exists():
        pytest.skip("an account of memory as Linux keeps it")
    before = network.process_memory("VmHWM")
    block = np.ones(50_000_000)
    assert network.process_memory("VmHWM") - before > 0.5 * block.nbytes


# The lowerings: which layers are timed, and in which ways.


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


# The heads that benchmarks/duc.py compares give scores of the same pixels.


HEADS = duc.heads(features=6, classes=3)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_scores_at_every_pixel(name):
    head, params = HEADS[name]
    x = jnp.ones((1, 5, 4, 6))
    assert head(params, x).shape == (1, 40, 32, 3)
    by_params, by_x = duc.gradient(head)(params, x)
    assert by_x.shape == x.shape
    assert all(bool((leaf != 0).any()) for leaf in by_params.values())


def test_the_transposed_convolution_with_a_bilinear_kernel_is_bilinear_upsampling():
    head, params = HEADS["transposed convolution ×8"]
    ramp = 1 - np.abs(np.arange(16) - 7.5) / 8
    kernel = np.einsum("i,j,ab->ijab", ramp, ramp, np.eye(3))
    params = {**params, "up": jnp.asarray(kernel, jnp.float32)}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 4, 6)), jnp.float32)
    bilinear, _ = HEADS["bilinear ×8"]
    np.testing.assert_allclose(head(params, x), bilinear(params, x), atol=1e-5)
    assert upsample_bilinear(x, 8, "centred").shape == (1, 40, 32, 6)


def test_the_table_has_a_row_for_each_head_and_bilinear_upsampling_is_1():
    table = duc.rows(side=3, features=4, classes=2, repeats=1)
    assert [row[0] for row in table] == list(HEADS)
    assert (table[0][3], table[0][5]) == ("1.0", "1.0")
    assert float(table[0][2]) > 0


# The price of dilation, layer by layer.


SHAPE = (1, 30, 30, 3)


def test_the_undilated_twin_gives_as_much_from_less():
    calls = {c.name: c for c in layer_calls(dilation8_camvid(), (1, 900, 900, 3))}
    sides = {"conv5_1": (100, 0), "fc6": (72, 0), "ctx_conv4_1": (66, 0)}
    for name, (side, pad) in sides.items():
        twin = undilated_twin(calls[name])
        assert (*twin.input.shape[1:3], twin.pad) == (side, side, pad)
        x = jnp.zeros(twin.input.shape)
        out = jax.eval_shape(twin, twin.params, x)
        assert (out.shape, twin.dilation) == (calls[name].output.shape, 1)
    padded = layer_calls(DilatedNet(FrontEnd(2, TINY, padding="same")), SHAPE)[2]
    assert undilated_twin(padded).input.shape == padded.input.shape


def test_only_dilated_layers_are_compared_with_undilated_ones():
    layers = network_cost(DilatedNet(FrontEnd(3, TINY)), SHAPE).layers
    slow = Peak("so slow that nothing needs to run often", 1e6, 1e6)
    [(name, ratios)] = over_undilated(layers, slow, 1).items()
    assert name == "front_end/conv2"
    assert [*ratios] == ["forward", "input_gradient", "kernel_gradient"]
    assert all(ratio > 0 for ratio in ratios.values())
