"""What a profile writes, of a run of which every layer is known."""

import json

import pytest
from tiny_run import tiny_config, write_images

from dilax.training import check_run, profile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    config = tiny_config(write_images(root / "data"))
    config.stages[2].accumulate = 2
    spec = check_run(config, root / "run").spec
    return root, profile(config, spec, root / "profile", steps=2, repeats=1)


def test_stages_on_images_are_profiled(profiled):
    root, tables = profiled
    assert [*tables] == ["front_end", "joint"]
    for stage, table in tables.items():
        assert (root / "profile" / f"{stage}.md").read_text("utf-8") == table
    assert not (root / "run").exists()


def test_layers_are_those_of_the_images_that_run_together(profiled):
    root, tables = profiled
    first, joint = (
        json.loads((root / "profile" / f"{stage}.json").read_text("utf-8"))["layers"]
        for stage in tables
    )
    context = ["ctx_conv1_1", "ctx_conv1_2", "ctx_conv2_1", "ctx_final"]
    names = [row["layer"] for row in joint]
    front = [f"front_end/{name}" for name in ("conv1", "pool1", "fc", "final")]
    assert names == [*front, *(f"context/{name}" for name in context)]
    assert first[0]["output"] == [4, 18, 18, 6]
    assert joint[0]["output"] == [2, 18, 18, 6]
    assert "layers on 2 of 4 images of 20×20, 2 times per step" in tables["joint"]


def test_times_rates_and_the_traced_steps_are_written(profiled):
    root, _ = profiled
    record = json.loads((root / "profile" / "joint.json").read_text("utf-8"))
    assert len(record["step_seconds"]) == 2
    for row in record["layers"]:
        for figures in row["passes"].values():
            assert figures["rate"] == figures["flops"] / figures["seconds"]
            least = max(
                figures["flops"] / record["peak"]["flops"],
                figures["bytes"] / record["peak"]["bandwidth"],
            )
            assert figures["least_seconds"] == least
    (trace,) = (root / "profile" / "joint").rglob("*.xplane.pb")
    assert b"train" in trace.read_bytes()  # the annotation of steps
