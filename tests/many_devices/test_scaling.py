"""Figures on paper against the collectives that the compiler puts into a step."""

import pytest
from collectives import collective_bytes
from test_mesh import SPEC, _batch, _setup

from dilax.models import init_params
from dilax.profiling import network_cost
from dilax.profiling.roofline import plan
from dilax.training import MeshConfig
from dilax.training.step import init_state, jit_train_step, split_params


def _compiled(mesh):
    model, stage, placement = _setup(mesh)
    trained, frozen = placement.parameters(split_params(init_params(model, 0), stage))
    state = placement.parameters(init_state(trained, stage))
    step = jit_train_step(model, stage, SPEC, 0, placement)
    batch = placement.batch(_batch())
    compiled = step.lower(state, frozen, batch, None).compile()
    shape = (1, *batch["image"].shape[1:])
    return collective_bytes(compiled), network_cost(model, shape), stage.batch_size


@pytest.mark.parametrize("data, rows", [(8, 1), (2, 4), (1, 8), (4, 2)])
def test_bytes_between_devices_are_those_of_the_compiled_step(data, rows):
    found, cost, batch = _compiled(MeshConfig(data=data, rows=rows))
    expected = plan(cost, batch, data, rows)
    # A ring receives 2·(n − 1)/n times what each device sums. Counts of labels, and
    # rows that move once the margins are gone, come on top.
    summed = expected.gradients / (2 * 7 / 8)
    assert found["all-reduce"] == pytest.approx(summed, rel=0.05)
    if rows == 1:
        assert not found["collective-permute"]
    else:
        assert 1 <= found["collective-permute"] / expected.halos <= 1.35
    assert found["all-gather"] <= 0.1 * summed
