"""What a run will take: the steps it really has, on images it really gets."""

import dataclasses

import numpy as np
import pytest
from tiny_run import tiny_config, write_images

from dilax.training import build_spec, estimate


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    config = tiny_config(write_images(tmp_path_factory.mktemp("data")))
    spec = build_spec(config)
    large = dataclasses.replace(config)
    large.stages = tuple(
        dataclasses.replace(s, crop=(146, 146)) if s.inputs == "images" else s
        for s in config.stages
    )
    return estimate(config, spec), estimate(large, spec)


def test_stages_on_images_are_measured_and_those_on_maps_are_not(costs):
    small, _ = costs
    assert {name: cost.steps for name, cost in small.items()} == {
        "front_end": 6,
        "joint": 4,
    }
    assert all(0 < cost.seconds < 5 for cost in small.values())


def test_larger_crops_take_more_memory(costs):
    small, large = (cost["front_end"].memory for cost in costs)
    inputs = 4 * 146 * 146 * 3
    activations = 4 * 144 * 144 * 6 * np.dtype(np.float32).itemsize
    assert small < inputs + activations < large < 20 * (inputs + activations)


def test_what_cannot_train_is_refused_first(tmp_path):
    config = tiny_config(write_images(tmp_path))
    config.stages[0].crop = (20, 21)
    with pytest.raises(ValueError, match=r"stages\[0\]\.crop\[1\]=21: .*multiple of"):
        estimate(config, build_spec(config))
