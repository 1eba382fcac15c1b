"""What training takes on many devices, on paper."""

import jax.numpy as jnp
import pytest

from dilax.models import dilation10_cityscapes
from dilax.profiling import network_cost
from dilax.profiling.roofline import H100, best_plan, halo_bytes, plan

CROP = 1396


@pytest.fixture(scope="module")
def cost():
    net = dilation10_cityscapes(dtype=jnp.bfloat16)
    return network_cost(net, (1, CROP, CROP, 3))


def test_one_device_tells_others_nothing(cost):
    alone = plan(cost, 1, 1, 1)
    assert alone.gradients == alone.halos == 0
    assert alone.seconds == pytest.approx(cost.total.flops / H100.flops)
    assert alone.memory == 12 * cost.parameters + cost.kept


def test_halos_are_the_rows_that_taps_reach_there_and_back(cost):
    layers = {layer.call.name: layer for layer in cost.layers}
    # 7 taps, 4 apart; 165 columns of 512 channels; 2 bytes; forward and back.
    assert halo_bytes(layers["fc6"], 8) == 2 * 24 * 152 * 512 * 2
    assert (
        halo_bytes(layers["conv1_1"], 8) == 2 * CROP * 3 * 4
    )  # images get no gradient
    assert halo_bytes(layers["pool1"], 8) == halo_bytes(layers["fc7"], 8) == 0
    # Dilation 64 reaches 128 rows; on two devices the other one has but half of 128.
    assert halo_bytes(layers["ctx_conv7_1"], 2) == 2 * 64 * 128 * 19 * 2
    assert halo_bytes(layers["fc6"], 1) == 0


def test_gradients_go_round_a_ring(cost):
    eight = plan(cost, 8, 8, 1)
    assert eight.gradients == pytest.approx(2 * 7 / 8 * 4 * cost.parameters)
    assert plan(cost, 8, 4, 2).gradients == eight.gradients


def test_a_batch_that_does_not_fit_is_cut_into_the_fewest_parts(cost):
    state = 12 * cost.parameters
    small = H100._replace(memory=state + 2.5 * cost.kept)
    assert plan(cost, 8, 1, 1, small).parts == 4
    assert plan(cost, 8, 2, 1, small).parts == 2
    assert plan(cost, 8, 1, 1, H100._replace(memory=float(state))).parts == 0


def test_the_best_mesh_is_the_fastest_that_fits(cost):
    tiny = H100._replace(memory=12 * cost.parameters + 0.3 * cost.kept)
    best = best_plan(cost, 8, 8, tiny)
    assert best.parts and best.rows >= 4
    assert best_plan(cost, 8, 2, tiny) is None
    assert best_plan(cost, 8, 8).data == 8


def test_rows_that_fill_maps_up_are_computed_too(cost):
    eight, alone = plan(cost, 1, 1, 8), plan(cost, 1, 1, 1)
    arithmetic = eight.seconds - (eight.gradients + eight.halos) / H100.inside
    assert 1 / 8 < arithmetic / alone.seconds < 1.2 / 8


def test_data_divides_the_batch(cost):
    with pytest.raises(ValueError, match="data=3: does not divide the batch of 8"):
        plan(cost, 8, 3, 1)
