"""Your own images and masks.

    python experiments/folder.py --data_dir=DIR --workdir=runs/mine
    python experiments/folder.py --config=pretrained --data_dir=DIR --workdir=runs/mine
    dilax predict --workdir=runs/mine --input=photo.jpg

Nothing needs to be renamed or converted. DIR contains images and masks in folders of
any names: a folder called mask, label, annotation, gt, … contains masks, and a mask
belongs to the image of the same name, apart from endings such as _mask. If they are not
found, give folders, or patterns such as '*_mask.png', with --images and --labels.
Folders or lists called train, val, and test are the splits (lists have one image, or
one image and its mask, per line); without val, a fifth of the training images is held
out.

Masks are grey or palette images of class ids (255 is ignored), or colour images.
Images have any number of channels, with 8 or 16 bits (TIFF for more than three
channels, or for 16-bit colour), and are turned upright by their EXIF orientation.
--classes=sky,tree or --classes=FILE names the classes, one per line, with their ids
(0 sky) or the colours of masks (sky 70 130 180); lists of CVAT, labelme, Roboflow,
COCO, and YOLO are read, too. A class called void is ignored. Without --classes,
classes.txt in DIR is read, or the classes are those that the masks contain. If it is
unclear what masks mean, training stops and names the flag that decides; docs/data.md
lists all such cases.

small       A small network from random weights, trained in stages, at a size that suits
            the images and the machine. Before training starts, it prints what was found
            and chosen, and the time and memory needed. Every choice can be set
            (--config.data.scale=1, --config.stages.front_end.crop=(256,256), …).
            --config.init=camvid --config.reinit=final,ctx starts from the street
            network that comes with dilax, at the scale at which it was trained.
pretrained  VGG-16 at full width from trained convolutions: the front end, then Basic
            context on its maps, in about half an hour on one CPU core. For images with
            three channels, especially if there are few of them. Downloads Keras's file
            of the convolutions (59 MB) once; --config.init=vgg16 or FILE uses others.

--crf=dense or --crf=rnn adds a last stage, which refines the network's predictions
along the edges of the image. dense searches the CRF's parameters on the validation
images and prints how long that will take; rnn trains them. A CRF can also be added to a
run that was trained without one.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from dilax.cli import run
from dilax.crf import CRFGrid
from dilax.data import Augmentation, DatasetSpec
from dilax.models import VGG16_SLIM_HEAD
from dilax.training import (
    Config,
    CRFConfig,
    DataConfig,
    ModelConfig,
    Schedule,
    StageConfig,
    fine_tuned,
    from_json,
    from_scratch,
    rnn_stage,
    with_crfs,
)
from dilax.training.build import survey
from dilax.training.initial import locate_init
from dilax.weights import PUBLISHED

# The shorter side of the network's input, and the longest side of a crop, in pixels.
_SIZES = {"small": {"cpu": (192, 288)}, "pretrained": {"cpu": (360, 288)}}
_SIZES_ELSEWHERE = (512, 768)
# The number of epochs of the front end, and the limits on its steps. Those of
# `pretrained` take half an hour on one CPU core.
_EPOCHS = 60
_STEPS = {"small": (600, 6000), "pretrained": (600, 1000)}
_MOST_MAPS = 96  # with more, a context module takes too long
# A search for a CRF tries 12 CRFs on up to 50 images with this many pixels in total,
# which takes about ten minutes on two CPU cores.
_SEARCH_PIXELS = 10_000_000


def small() -> Config:
    """The slim network; `fit` replaces the zeros."""
    return _small(scale=0.0, crop=(0, 0), steps=0)


def pretrained() -> Config:
    """VGG-16 from trained convolutions; `fit` replaces the zeros."""
    config = _pretrained(scale=0.0, crop=(0, 0), steps=0)
    config.model.duc = 0
    return config


def _small(scale: float, crop: tuple[int, int], steps: int) -> Config:
    config = from_scratch(
        "small",
        DataConfig(
            "folder",
            scale=scale,
            class_weight_power=0.5,  # mean IoU counts rare classes as much as others
        ),
        ModelConfig(
            layers=VGG16_SLIM_HEAD,  # fc6 is 3×3, not 7×7: a fifth of the arithmetic
            width_multiplier=1 / 8,
            head_channels=128,
            padding="same",  # otherwise small crops would be mostly margin
            upsample=True,  # a loss at every pixel, for thin objects
        ),
        crop=crop,
        augmentation=Augmentation(scales=(0.75, 1.5), colour=0.2),
        front_end=Schedule(steps, batch_size=4, learning_rate=1.5e-3),
        context=Schedule(steps and 600, batch_size=8, learning_rate=2e-3),
        joint=Schedule(steps // 4, batch_size=4, learning_rate=3e-4),
    )
    front_end, context, _, joint = config.stages  # without the undilated control
    config.stages = (front_end, context, joint)
    return config


def _pretrained(scale: float, crop: tuple[int, int], steps: int) -> Config:
    data = DataConfig("folder", scale=scale, class_weight_power=0.4)
    config = fine_tuned(data, crop, (steps, steps and 600, 0))
    config.name, config.stages = "pretrained", config.stages[:2]
    return config


def refined(config: Config, kind: str) -> Config:
    """Return the configuration with a CRF after its last stage.

    Args:
        config: stays unchanged.
        kind: `"dense"`, `"rnn"`, or `"none"`.
    """
    if kind == "none":
        return config
    dense, rnn = with_crfs(
        config.stages[-1],
        CRFConfig("dense"),
        rnn_stage(100, 2, (0, 0), bilateral_sigma_rgb=10.0),
    )
    stage = dense if kind == "dense" else rnn
    return dataclasses.replace(config, stages=(*config.stages, stage))


def fit(config: Config, values: Any) -> Config:
    """Choose what the command line does not set, and print it.

    A run that has started keeps its choices.

    Args:
        config: zeros are replaced by choices.
        values: of the flags.
    """
    data = dataclasses.replace(
        config.data,
        images=values.images or config.data.images,
        labels=values.labels or config.data.labels,
        classes=values.classes or config.data.classes,
    )
    found = survey(data)
    if config.init in PUBLISHED and (channels := len(found.spec.mean)) != 3:
        raise ValueError(
            f"--config.init={config.init}: needs images with 3 channels, but these "
            f"have {channels}; --config=small --config.init=none starts from random "
            "weights"
        )
    began = Path(values.workdir).expanduser() / "config.json"
    if began.exists():
        chosen = from_json(Config, began)
    else:
        backend = jax.default_backend()
        scale = data.scale or scale_of_init(config, found.sizes)
        chosen = choose(found.sizes, backend, scale, config.name)
    data = dataclasses.replace(data, scale=data.scale or chosen.data.scale)
    duc = config.model.duc or chosen.model.duc
    if not config.model.duc or config.model.final_name in config.reinit:
        while duc > 1 and duc**2 * len(found.spec.classes) > _MOST_MAPS:
            duc //= 2
    networks = [stage for stage in config.stages if not stage.crf]
    stages = [
        dataclasses.replace(
            stage,
            steps=stage.steps or choice.steps,
            crop=stage.crop if any(stage.crop) else choice.crop,
        )
        for stage, choice in zip(networks, chosen.stages, strict=False)
    ]
    last = stages[-1]
    stages += [_fit_crf(s, last.crop, found.sizes) for s in config.stages if s.crf]
    print(f"images at {data.scale:g} of their size; steps and crops:")
    for stage in stages:
        height, width = stage.crop
        what = f"{stage.steps} of {stage.batch_size} {width}x{height}"
        if stage.crf and stage.crf.kind == "dense":
            what = f"a search on up to {stage.crf.search_images} validation images"
        print(f"  {stage.name}: {what}")
    return dataclasses.replace(
        config,
        data=data,
        model=dataclasses.replace(config.model, duc=duc),
        stages=tuple(stages),
    )


def _fit_crf(
    stage: StageConfig, crop: tuple[int, int], sizes: Mapping[tuple[int, int], int]
) -> StageConfig:
    """Return a stage with a CRF for images of these sizes."""
    height, width = _median(sizes)
    short = min(height, width)
    sigma, sigma_xy = max(1.0, short / 360), max(1.0, short / 6)
    crf = dataclasses.replace(
        stage.crf or CRFConfig(),
        spatial_sigma=sigma,
        bilateral_sigma_xy=sigma_xy,
        search_images=min(max(2, _SEARCH_PIXELS // (height * width)), 50),
        grid=CRFGrid(
            bilateral_weight=(0.5, 2.0),
            bilateral_sigma_xy=(sigma_xy / 2, sigma_xy * 2),
            bilateral_sigma_rgb=(13.0,),
            spatial_weight=(1.0,),
            spatial_sigma=(sigma,),
        ),
    )
    return dataclasses.replace(stage, crop=crop, crf=crf)


def scale_of_init(config: Config, sizes: Mapping[tuple[int, int], int]) -> float:
    """Return the scale that shows images as the network to start from was trained.

    Args:
        config: its `init` may be a run, or a network that comes with dilax.
        sizes: as for `choose`.

    Returns:
        0 if no such network is given.
    """
    path = Path(locate_init(config.init or "", fetch=False)) / "spec.json"
    if not config.init or not path.exists():
        return 0.0
    theirs = from_json(DatasetSpec, path)
    if theirs.image_size is None:
        return theirs.scale
    pixels = np.average([h * w for h, w in sizes], weights=[*sizes.values()])
    factor = theirs.scale * math.sqrt(math.prod(theirs.image_size) / pixels)
    return min(1.0, float(f"{factor:.2g}"))


def choose(
    sizes: Mapping[tuple[int, int], int],
    backend: str,
    scale: float = 0.0,
    name: str = "small",
) -> Config:
    """The configuration for images of these sizes.

    Args:
        sizes: (height, width) → number of images.
        backend: JAX's name of it: `"cpu"`, `"gpu"`, ….
        scale: of the images; 0 chooses it.
    """
    scale, crop = choose_crop(_median(sizes), backend, scale, name)
    recipe, batch_size = (_small, 4) if name == "small" else (_pretrained, 2)
    fewest, most = _STEPS[name]
    steps = min(max(_EPOCHS * sum(sizes.values()) // batch_size, fewest), most)
    return recipe(scale, crop, steps)


def _median(sizes: Mapping[tuple[int, int], int]) -> tuple[int, int]:
    every = np.repeat([*sizes], [*sizes.values()], 0)
    height, width = np.median(every, 0).astype(int).tolist()
    return height, width


def choose_crop(
    size: tuple[int, int], backend: str, scale: float = 0.0, name: str = "small"
) -> tuple[float, tuple[int, int]]:
    """Return (scale, crop) for images of (height, width); crops are multiples of 8."""
    short, limit = _SIZES[name].get(backend, _SIZES_ELSEWHERE)
    scale = scale or min(1.0, float(f"{short / min(size):.2g}"))
    crop = [max(8, min(int(n * scale), limit) // 8 * 8) for n in size]
    return scale, (crop[0], crop[1])


if __name__ == "__main__":
    flags.DEFINE_string("images", "", "Folder or pattern of the images [found].")
    flags.DEFINE_string("labels", "", "Folder or pattern of the masks [found].")
    flags.DEFINE_string("classes", "", "Names, a,b,c, or a file [those of the masks].")
    kinds = ("none", "dense", "rnn")
    flags.DEFINE_enum("crf", "none", kinds, "A CRF after the network, as a last stage.")
    recipes = {
        "small": lambda: refined(small(), flags.FLAGS.crf),
        "pretrained": lambda: refined(pretrained(), flags.FLAGS.crf),
    }
    run(recipes, __doc__, fit)
