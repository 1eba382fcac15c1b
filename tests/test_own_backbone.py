"""A Flax network of one's own as the front end, as docs/recipes.md shows it."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import linen as nn

import dilax
from dilax.cli import overridden
from dilax.training import estimate, quickstart
from experiments import camvid

RECIPES = Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def own():
    """What the recipe defines, after it has run."""
    section = RECIPES.read_text("utf-8").split("## Your own backbone")[1]
    first = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    names: dict = {"__name__": "mynet"}
    exec(compile(first, str(RECIPES), "exec"), names)
    return names


def test_the_recipe_learns_and_predicts_images_of_any_size(own):
    assert own["losses"][-1] < 0.6 * own["losses"][0]
    image = np.full((35, 46, 3), 90, np.uint8)
    assert own["predictor"](image).shape == (35, 46)
    assert own["model"].output_stride == 1 and own["model"].map_stride == 4


def test_a_configuration_trains_it_and_its_run_predicts(own, tmp_path, monkeypatch):
    module = type(sys)("mynet")
    module.Small = own["Small"]
    monkeypatch.setitem(sys.modules, "mynet", module)
    sizes = [f"--config.stages[{i}].steps=1" for i in range(4)]
    sizes += [f"--config.stages[{i}].crop=(32, 32)" for i in range(4)]
    config = quickstart()
    config = overridden(config, ["--config.model.backbone=mynet:Small", *sizes])
    config.stages = config.stages[:1]
    cost = estimate(config, dilax.training.build_spec(config))["front_end"]
    assert cost.memory > 0 and "operations unknown" in str(cost)
    dilax.train(config, tmp_path)
    predictor = dilax.load_predictor(tmp_path)
    assert type(predictor.model.front_end) is own["Small"]
    assert predictor(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)


def test_it_pads_inside_so_images_are_not_cut_into_the_release_s_tiles():
    config = overridden(camvid.paper(), ["--config.model.backbone=mynet:Small"])
    assert dilax.training.build_spec(camvid.paper()).tile == (900, 1100)
    assert dilax.training.build_spec(config).tile is None


@pytest.mark.parametrize("name", ["nowhere:Net", "mynet", "flax.linen:Dense", "os:no"])
def test_what_is_no_backbone_is_refused_with_the_remedy(name):
    config = overridden(quickstart(), [f"--config.model.backbone={name}"])
    message = rf"model.backbone={name}.*(not found.*module:Class|dilax.Backbone)"
    with pytest.raises(ValueError, match=message):
        dilax.training.check_run(config, Path("not made"))
    with pytest.raises(TypeError, match="Backbone"):
        dilax.DilatedNet(nn.Dense(3))
