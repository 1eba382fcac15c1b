"""How fast training images are read, and how long a training step waits for them.

    dilax data prepare camvid --from CamVid
    python -m benchmarks.input --dataset=camvid [--data_dir=DIR] [--steps=60]

The first table shows how many images per second one core decodes, and how many it
decodes and augments as the experiment's `--config=small` does. The second trains its
front end for some steps with each way of reading, and shows the share of time that a
step waits for its batch; the first steps, which fill the buffers, do not count.
"""

import dataclasses
import importlib
import time

import jax
import numpy as np
from absl import app, flags, logging
from tabulate import tabulate

from dilax.data import (
    CropGeometry,
    ImageExample,
    Reading,
    open_source,
    training_batches,
)
from dilax.data.pipeline import cache_on_host
from dilax.models import init_params
from dilax.runtime import jit
from dilax.training import build_spec
from dilax.training.build import build_model
from dilax.training.step import init_state, make_train_step, split_params

_SETS = ["voc", "coco", "camvid", "kitti", "cityscapes"]
_DATASET = flags.DEFINE_enum("dataset", "camvid", _SETS, "A prepared data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of all prepared data sets.")
_STEPS = flags.DEFINE_integer(
    "steps", 60, "Steps for each way of reading.", lower_bound=1
)
_WARM = 10


def _rate(function, count: int) -> float:
    start = time.process_time()
    for i in range(count):
        function(i)
    return count / (time.process_time() - start)


def _one_core(source, example, count: int) -> list[list]:
    rng = np.random.default_rng(0)
    size = "{1}x{0}".format(*source[0]["image"].shape)
    decoded = _rate(lambda i: source[i], count)
    both = _rate(lambda i: example(source[i], rng), count)
    return [[size, f"{decoded:.0f}", f"{both:.0f}"]]


def _waiting(step, state, frozen, batches) -> list[str]:
    """Return milliseconds per step, and the share of waiting, once the loop runs."""
    waited = 0.0
    for number in range(_WARM + _STEPS.value):
        if number == _WARM:
            jax.block_until_ready(state)
            start, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready(metrics)
    spent = time.perf_counter() - start
    return [f"{1000 * spent / _STEPS.value:.0f}", f"{100 * waited / spent:.2f} %"]


def main(argv: list[str]) -> None:
    """Print the two tables."""
    del argv
    logging.set_verbosity(logging.WARNING)
    config = importlib.import_module(f"experiments.{_DATASET.value}").small()
    stage, spec = config.stages[0], build_spec(config)
    split, data_dir = config.data.train, _DATA_DIR.value
    source = open_source(_DATASET.value, spec, data_dir, split)
    model = build_model(config, stage, spec.num_classes)
    geometry = CropGeometry(stage.crop, model.margin, model.output_stride)
    example = ImageExample(geometry, stage.augmentation, spec.scale)
    print(f"\n{spec.name}, {split}: {len(source)} images, {jax.default_backend()}\n")
    headers = ["size", "decoded / s a core", "decoded and augmented / s a core"]
    print(
        tabulate(_one_core(source, example, min(200, len(source))), headers, "github")
    )
    trained, frozen = split_params(init_params(model, 0), stage)
    step = jit(make_train_step(model, stage, spec, 0))
    state = init_state(trained, stage)
    plain = Reading()
    ways = {
        f"{plain.threads} threads": (source, plain),
        "1 thread": (source, dataclasses.replace(plain, threads=1)),
        "cached on the host": (cache_on_host(source), plain),
    }
    rows = []
    for name, (images, reading) in ways.items():
        batches = training_batches(
            images, example, stage.batch_size, 0, reading=reading
        )
        rows.append([name, *_waiting(step, state, frozen, batches)])
    print()
    print(tabulate(rows, ["read by", "ms per step", "waiting"], "github"))
    print()


if __name__ == "__main__":
    app.run(main)
