"""Eight small images on disk, and a recipe that trains on them in seconds."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from dilax.models import BASIC, Layer
from dilax.training import Config, DataConfig, ModelConfig, OptimizerConfig, StageConfig

TABLE = (Layer("conv1", 3, 6), Layer("pool1", 2), Layer("fc", 1, 8, dropout=0.5))
CLASSES = ("dark", "light", "red")


def write_images(root: Path, count: int = 8, size: tuple[int, int] = (24, 32)) -> Path:
    """Plain folders of images whose class can be read off each pixel's colour."""
    colours = np.array([[20, 20, 20], [230, 230, 230], [230, 20, 20]], np.uint8)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            cells = rng.integers(3, size=(size[0] // 8, size[1] // 8))
            label = np.kron(cells, np.ones((8, 8))).astype(np.uint8)
            noise = rng.integers(-15, 16, (*size, 3))
            image = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
            label[:, -2:] = 255
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            Image.fromarray(label).save(root / "labels" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def quick_environment(flags: str = "") -> dict[str, str]:
    """For processes that compile longer than they run; see conftest.py."""
    return {**os.environ, "XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"}


def optimizer(rate: float = 0.02, **fields) -> OptimizerConfig:
    return OptimizerConfig("adam", learning_rate=rate, **fields)


def tiny_config(data_dir: Path, **fields) -> Config:
    """Front end, context on maps, joint: 6, 4 and 4 steps."""
    common = {"batch_size": 4, "checkpoint_every": 2, "optimizer": optimizer()}
    front_end = StageConfig(
        "front_end",
        trains="front_end",
        steps=6,
        crop=(20, 20),
        evaluate_every=3,
        **common,
    )
    context = StageConfig(
        "context",
        trains="context",
        inputs="maps",
        start="front_end",
        context=BASIC[:3],
        steps=4,
        crop=(24, 32),
        evaluate_every=2,
        **common,
    )
    joint = StageConfig(
        "joint",
        trains="all",
        inputs="images",
        start="context",
        context=BASIC[:3],
        steps=4,
        crop=(20, 20),
        **common,
    )
    settings = {"log_every": 1, "pictures": 2, "eval_batch_size": 3, **fields}
    return Config(
        "tiny",
        DataConfig("folder", data_dir=str(data_dir)),
        ModelConfig(layers=TABLE),
        (front_end, context, joint),
        **settings,
    )


def config_of(layers, **options) -> Config:
    """A configuration of nothing but these layers, and options of the run."""
    return Config("layers", DataConfig(), ModelConfig(layers=layers), (), **options)
