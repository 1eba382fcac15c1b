"""Receptive fields: sizes, gradients, gridding, effective fields, and the command."""

import itertools
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_config, write_images

import dilax
from dilax.cli.receptive_field import main
from dilax.models import (
    BASIC,
    CITYSCAPES,
    KITTI,
    ContextModule,
    FrontEnd,
    effective_field,
)
from dilax.ops import (
    ReceptiveField,
    dilated_conv,
    gridding,
    receptive_field,
    suggest_rates,
)
from dilax.report import field_as_text, heat_picture, stack_picture
from dilax.runtime import jit

# The paper's figures, and what gradients say that cells see.


def test_figure_1_doubling_dilations_give_fields_of_2_to_the_i_plus_2_minus_1():
    layers = [(3, 2**i) for i in range(8)]
    sizes = [receptive_field(layers[: i + 1]).size for i in range(8)]
    assert sizes == [2 ** (i + 2) - 1 for i in range(8)]
    assert sizes[:4] == [3, 7, 15, 31]


def test_table_1_the_basic_module():
    layers = [(3, row.dilation) for row in BASIC] + [(1,)]
    sizes = [receptive_field(layers[: n + 1]).size for n in range(8)]
    assert sizes == [3, 5, 9, 17, 33, 65, 67, 67]


@pytest.mark.parametrize("table, size", [(BASIC, 67), (KITTI, 35), (CITYSCAPES, 259)])
def test_context_modules_see(table, size):
    field = ContextModule(2, table).receptive_field
    assert field == ReceptiveField(size, stride=1)
    assert field.margin == (size - 1) // 2


def test_the_front_end_sees_380_pixels_with_stride_8_and_wants_a_margin_of_186():
    field = FrontEnd(21).receptive_field
    assert field == ReceptiveField(380, stride=8)
    assert field.margin == FrontEnd(21).margin == 186


def test_cell_0_of_the_unpadded_front_end_centres_on_pixel_3_5_of_the_image():
    field = FrontEnd(21).receptive_field
    assert (field.size - 1) / 2 - field.margin == 3.5


def test_dilation_and_stride_may_be_left_out():
    assert receptive_field([(3,), (3, 2)]) == receptive_field([(3, 1, 1), (3, 2, 1)])
    assert receptive_field([]) == ReceptiveField(1, 1)


@pytest.mark.parametrize(
    "layer", [(0,), (3, -1), (3, 1, 0), (3.0,), (), (3, 1, 1, -1), (3, 1, 1, 0, 1)]
)
def test_other_layers_are_refused(monkeypatch, layer):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"is not \(kernel, dilation, stride\) > 0"):
        receptive_field([(3,), layer])


def _positive(params, seed=0):
    """Weights that neither cancel nor die, and whose layers' gains are about 1."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = max(1, np.prod(leaf.shape[:-1]))
        return (rng.uniform(0.5, 1.5, leaf.shape) / fan_in).astype(np.float32)

    return jax.tree.map(draw, params)


def _influence(model, x):
    """cell → for each pixel whether the cell, of any channel, depends on it."""
    params = _positive(jax.eval_shape(model.init, jax.random.key(0), x))

    @jit
    def gradient(row, column):
        return jax.grad(lambda x: model.apply(params, x)[0, row, column].sum())(x)

    return lambda *cell: (np.asarray(gradient(*cell)) != 0).any(axis=(0, 3))


def _extent(mask, axis):
    seen = np.flatnonzero(mask.any(axis=1 - axis))
    return int(seen[0]), int(seen[-1]) + 1


def test_a_front_end_cell_i_depends_on_pixels_8i_to_8i_plus_380():
    x = np.random.default_rng(0).uniform(1, 2, (1, 372 + 24, 372 + 32, 3))
    model = FrontEnd(2, width_multiplier=1 / 32, head_channels=2)
    influence = _influence(model, x.astype(np.float32))
    for cell in [(0, 0), (1, 2), (2, 3)]:
        mask = influence(*cell)
        for axis, i in enumerate(cell):
            assert _extent(mask, axis) == (8 * i, 8 * i + 380)


@pytest.mark.parametrize("padding, first", [("layer", -33), ("none", 0)])
def test_a_basic_context_cell_depends_on_exactly_67_by_67_cells(padding, first):
    x = np.random.default_rng(0).uniform(1, 2, (1, 76, 72, 1)).astype(np.float32)
    influence = _influence(ContextModule(1, BASIC, padding=padding), x)
    cell = (36 - 33 - first, 34 - 33 - first)
    expected = np.zeros((76, 72), bool)
    expected[3:70, 1:68] = True
    np.testing.assert_array_equal(influence(*cell), expected)


def test_the_undilated_stack_sees_only_15():
    x = np.ones((1, 21, 21, 1), np.float32)
    table = tuple(row._replace(dilation=1) for row in BASIC)
    mask = _influence(ContextModule(1, table), x)(10, 10)
    assert [_extent(mask, axis) for axis in (0, 1)] == [(3, 18), (3, 18)]


# The gridding checker against brute force and gradients; effective fields.


RNG = np.random.default_rng(0)
RANDOM = [
    [(int(RNG.integers(1, 5)), int(RNG.integers(1, 6))) for _ in range(n)]
    for n in (1, 2, 2, 3, 3, 3, 4, 4)
]


def _paths(layers):
    """How often each pixel is reached, one path at a time: a choice of taps each."""
    taps = [range(0, k * r, r) for k, r in layers]
    size = sum((k - 1) * r for k, r in layers) + 1
    counts = np.zeros((size, size), int)
    for rows in itertools.product(*taps):
        for columns in itertools.product(*taps):
            counts[sum(rows), sum(columns)] += 1
    return counts


@pytest.mark.parametrize("layers", RANDOM, ids=str)
def test_the_checker_counts_as_brute_force_does(layers):
    if np.prod([k for k, _ in layers]) > 100:
        layers = layers[:3]
    expected, found = _paths(layers), gridding(layers)
    np.testing.assert_array_equal(np.outer(found.counts, found.counts), expected)
    assert found.unseen == (expected == 0).sum()
    assert found.has_holes == (expected == 0).any()
    assert found.size == len(expected) == receptive_field(layers).size


def test_the_published_rates_leave_no_holes_where_rate_2_does():
    hdc = [row.dilation for row in dilax.models.HDC101 if row.name > "layer3"]
    assert not gridding(hdc).has_holes
    assert gridding([2] * 23 + [4] * 3).has_holes


@pytest.mark.parametrize(
    "rates, distances, holds, unseen",
    [
        ([1, 2, 5], (1, 2, 5), True, 0),
        ([1, 2, 9], (3, 5, 9), False, 25**2 - 21**2),
        ([2, 2, 2], (2, 2, 2), True, 13**2 - 7**2),  # satisfied in spite of holes
        ([1], (1,), True, 0),
        ([3], (3,), False, 7**2 - 3**2),
    ],
)
def test_hdc_rule_and_holes_of_known_rates(rates, distances, holds, unseen):
    found = gridding(rates)
    assert (found.distances, found.rule_holds) == (distances, holds)
    assert (found.unseen, found.has_holes) == (unseen, unseen > 0)


@pytest.mark.parametrize(
    "layers", [[(3, 2)] * 3, [(3, 1), (3, 2), (3, 5)], *RANDOM[:2]], ids=str
)
def test_gradients_of_a_stack_reach_exactly_the_pixels_counted(layers):
    """With kernels of ones, the gradient is the number of paths."""
    found = gridding(layers)

    def cell(x):
        for kernel, rate in layers:
            x = dilated_conv(x, jnp.ones((kernel, kernel, 1, 1)), dilation=rate)
        return x[0, 2, 1, 0]

    x = jnp.zeros((1, found.size + 4, found.size + 3, 1))
    gradient = np.asarray(jax.grad(cell)(x))[0, ..., 0]
    expected = np.zeros_like(gradient)
    inside = expected[2 : 2 + found.size, 1 : 1 + found.size]
    inside[:] = np.outer(found.counts, found.counts)
    np.testing.assert_array_equal(gradient, expected)
    assert (gradient == 0).sum() - (expected.size - inside.size) == found.unseen


@pytest.mark.parametrize(
    "layers", [[2, 2, 2], [5, 9, 17], [2] * 22, [4], [(5, 3), (3, 7)], [(7, 4), (1, 1)]]
)
def test_suggested_rates_reach_as_far_and_leave_no_holes(layers):
    suggested = suggest_rates(layers)
    before, after = gridding(layers), gridding(suggested)
    assert before.has_holes and not after.has_holes
    assert after.size == before.size
    assert len(suggested) >= len(layers)


@pytest.mark.parametrize("total, count", [(6, 3), (13, 3), (9, 4), (12, 3)])
def test_no_rates_with_a_smaller_largest_one_would_do(total, count):
    """Against all lists of so many rates that reach as far."""
    smallest = min(
        max(rates)
        for rates in itertools.product(range(1, total + 1), repeat=count)
        if sum(rates) == total and not gridding(rates).has_holes
    )
    given = [total - count + 1] + [1] * (count - 1)
    assert max(rate for _, rate in suggest_rates(given)) == smallest


@pytest.mark.parametrize("layers", [[], [0], [(3, 1), (0, 2)], [-1]])
def test_invalid_layers_are_rejected(layers):
    with pytest.raises(ValueError, match="must be"):
        gridding(layers)


def test_figure_1_as_a_picture():
    picture = stack_picture([1, 2, 4], pixel=4)
    assert picture.shape == (60, 3 * 60 + 2 * 8, 3)
    seen = picture[2::4, 2::4, 2] < 255
    panels = np.split(seen[:, : 3 * 17 - 2], [15, 17, 32, 34], axis=1)[::2]
    assert [int(panel.sum()) for panel in panels] == [3**2, 7**2, 15**2]
    assert panels[0][6:9, 6:9].all()
    assert stack_picture([(2, 1), (2, 2)], pixel=4).shape == (16, 40, 3)


def test_letters_are_dots_where_nothing_is_seen():
    lines = field_as_text(gridding([2, 2])).split("\n")
    dots = np.array([[letter == "·" for letter in line] for line in lines])
    np.testing.assert_array_equal(dots, _paths([(3, 2), (3, 2)]) == 0)


def _boxes(rates):
    def network(x):
        for rate in rates:
            x = dilated_conv(x, jnp.full((3, 3, 1, 1), 1 / 9), dilation=rate)
        return x

    return network


def test_the_effective_field_of_box_filters_is_known():
    """Heat is the square of the paths' counts; its spread follows."""
    found = gridding([1, 2, 3])
    images = np.zeros((2, 17, 19, 1), np.float32)
    field = effective_field(_boxes([1, 2, 3]), images, cell=(1, 2))
    share = found.counts**2 / (found.counts**2).sum()
    inside = field.heat[1:14, 2:15]
    np.testing.assert_allclose(inside, np.outer(share, share), rtol=1e-4)
    assert field.heat.sum() == pytest.approx(1) == pytest.approx(inside.sum())
    assert field.centre == pytest.approx((7, 8))
    sigma = np.sqrt(share @ (np.arange(13) - 6.0) ** 2)
    assert field.spread == pytest.approx((sigma, sigma))
    assert field.side(1 - 1e-9) == 13
    assert field.side(inside[6, 6] - 1e-6) == 1


def test_the_effective_field_sums_over_outputs_and_images_in_expectation():
    weights = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype("f4")
    images = np.zeros((400, 3, 3, 2), np.float32)
    field = effective_field(lambda x: dilated_conv(x, jnp.asarray(weights)), images)
    expected = (weights**2).sum((2, 3))
    np.testing.assert_allclose(field.heat, expected / expected.sum(), rtol=0.15)


def test_cells_beyond_the_maps_and_dead_cells_are_refused():
    images = np.zeros((1, 9, 9, 1), np.float32)
    with pytest.raises(ValueError, match=r"cell=\(7, 0\): the maps have 7 x 7 cells"):
        effective_field(_boxes([1]), images, cell=(7, 0))
    with pytest.raises(ValueError, match="depends on no pixel"):
        effective_field(lambda x: 0 * x, images)


def test_heat_pictures_are_coloured_only_inside_the_field():
    field = effective_field(_boxes([1, 2]), np.zeros((1, 11, 11, 1), np.float32))
    picture = heat_picture(field)
    assert (picture[5, 6] < 255).any() and (picture[0, 1] == 255).all()


def _output(capsys, *argv):
    main([*map(str, argv)])
    return capsys.readouterr().out


def test_the_command_describes_rates(capsys, tmp_path):
    text = _output(capsys, 2, 2, 2, "--picture", tmp_path / "a.png")
    assert "unseen     120 of 169" in text and "1 2 3: the same field" in text
    assert "satisfied, although there are holes" in text
    assert Image.open(tmp_path / "a.png").size == (3 * 13 * 18 + 2 * 36, 13 * 18)
    text = _output(capsys, 1, 2, 4)
    assert "layer by layer 3, 7, 15" in text and "unseen     0 of 225" in text
    assert "field      9 x 9" in _output(capsys, "5:1", "3:2")


def test_the_command_describes_networks(capsys):
    text = _output(capsys, "--network=dilation8_camvid")
    assert (
        "front end: 380 x 380 pixels, a score every 8, the first centred on pixel 3.5"
        in text
    )
    assert "context module: 67 x 67 scores of the front end" in text
    assert f"network: {380 + 66 * 8} x" in text
    resnet = _output(capsys, "--network=resnet101_duc")
    assert "a score every 8, the first centred on pixel 0" in resnet


@pytest.mark.slow
def test_the_command_measures_a_run(capsys, tmp_path):
    config = tiny_config(write_images(tmp_path / "data"))
    config.stages = config.stages[:1]
    dilax.train(config, tmp_path / "run")
    heat = tmp_path / "heat.png"
    text = _output(capsys, "--run", tmp_path / "run", "--picture", heat)
    assert "front end: 4 x 4 pixels, a score every 2" in text
    share, side = re.search(r"(\d+)% within (\d+) x", text).groups()
    assert (share, int(side) <= 5) == ("95", True)
    assert heat.exists()


@pytest.mark.parametrize("argv", [[], ["1", "--network=resnet50_duc"], ["0"]])
def test_the_command_reports_errors(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_function_is_exported_by_the_package():
    assert dilax.receptive_field is receptive_field
