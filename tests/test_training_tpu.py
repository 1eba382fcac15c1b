"""Training steps compiled for TPUs that are not here, if `libtpu` is installed."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest
from collectives import collective_bytes

from dilax.data import DATASETS
from dilax.models import BASIC, init_params
from dilax.training import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
)
from dilax.training.config import build_model
from dilax.training.sharding import Placement
from dilax.training.step import init_state, jit_train_step, split_params

SPEC = DATASETS["camvid"]


@pytest.fixture(scope="module")
def tpus():
    """The eight devices of a v5e slice, of which the compiler knows enough."""
    pytest.importorskip("libtpu", reason="compiles for TPUs")
    from jax.experimental import topologies

    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # no machine of that cloud is asked
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices


@pytest.fixture
def for_tpu(monkeypatch, tpus):
    """What is compiled is as on a machine that has them."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "devices", lambda *a: list(tpus))


@pytest.mark.slow
@pytest.mark.parametrize("data, rows", [(8, 1), (2, 4)])
def test_a_step_compiles_for_eight_tpus(for_tpu, monkeypatch, data, rows):
    stage = StageConfig(
        "joint",
        trains="all",
        context=BASIC,
        batch_size=16,
        accumulate=2,
        crop=(628, 628),
        optimizer=OptimizerConfig(),
    )
    config = Config(
        "tpu",
        DataConfig("camvid"),
        ModelConfig(width_multiplier=1 / 16),
        (stage,),
        dtype="bfloat16",
        mesh=MeshConfig(data=data, rows=rows),
    )
    model = build_model(config, stage, SPEC.num_classes)
    placement = Placement(config, stage, model)
    with monkeypatch.context() as here:
        here.undo()  # shapes are worked out on this machine
        params = init_params(model, 0)
        state = init_state(params, stage)
    shaped = functools.partial(jax.tree.map, _shape)
    given = placement.shardings(state)
    state = shaped(state, given)
    batch = {
        "image": jnp.zeros((16, 628, 628, 3), jnp.uint8),
        "label": jnp.zeros((16, 32, 32), jnp.uint8),
    }
    batch = jax.tree.map(lambda x: _shape(x, placement.batch_sharding), batch)
    step = jit_train_step(model, stage, SPEC, 0, placement)
    trained, frozen = split_params(state.params, stage)
    assert not frozen and trained
    compiled = step.lower(state, {}, batch, None).compile()
    found = collective_bytes(compiled)
    assert bool(found["collective-permute"]) == (rows > 1)
    assert compiled.memory_analysis().temp_size_in_bytes < 16e9  # of a v5e


def _shape(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
