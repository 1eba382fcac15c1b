"""Receptive fields: the paper's figures, and what gradients say that cells see."""

import jax
import jaxtyping
import numpy as np
import pytest

from dilax.models import BASIC, CITYSCAPES, KITTI, ContextModule, FrontEnd
from dilax.ops import ReceptiveField, receptive_field
from dilax.runtime import jit


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
