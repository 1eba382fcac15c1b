"""What a run is, as plain data with every default in one place.

A recipe is a tuple of stages. Experiments build a `Config`; a run writes it into its
folder as `config.json`, and evaluation and prediction read it there.
"""

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Literal

import jax.numpy as jnp

from dilax.crf.search import CRFGrid
from dilax.data import DATASETS, Augmentation, DatasetSpec, Reading, survey_folder
from dilax.data.classes import MaskReading
from dilax.data.survey import Survey
from dilax.models import ContextLayer, DilatedNet
from dilax.runtime.files import printable
from dilax.runtime.processes import is_writer
from dilax.training.losses import LossConfig
from dilax.training.network import ModelConfig, build_network


@dataclasses.dataclass
class OptimizerConfig:
    """How parameters follow gradients (paper §4, §5, Appendix A).

    Attributes:
        name: `"sgd"` (momentum buffer that holds the learning rate, as Caffe's does),
            or `"adam"` with decoupled weight decay.
        learning_rate: after the warm-up, before any decay.
        momentum: of SGD; β1 of Adam.
        beta2: of Adam.
        weight_decay: on kernels only, never on biases or normalisation.
        bias_multiplier: learning rate of biases relative to kernels.
        lr_multipliers: (layer, multiplier) pairs: the learning rate of layers relative
            to the others, such as `(("final", 10.0),)` for a layer that does not start
            from trained weights. A layer is the beginning of a name, or a glob; a
            parameter that several pairs name is multiplied by all of them. Layers with
            multiplier 0 are frozen, and no gradient is computed for them.
        schedule: `"step"` multiplies by the factors at `milestones`; `"poly"` goes to
            zero with power 0.9; `"cosine"` goes to zero along a half cosine.
        milestones: (step, factor) pairs of `"step"`.
        warmup: steps of linear warm-up.
        clip: largest global gradient norm; 0 does not clip.
        base_batch_size: the batch size that the learning rate is meant for. Another
            `batch_size` scales it: in proportion for SGD (Goyal et al. 2017), by the
            square root for Adam (Krizhevsky 2014). 0 keeps the rate as it is.

    Example:
        >>> OptimizerConfig("adam", learning_rate=2e-3, warmup=50).schedule
        'step'
    """

    name: Literal["sgd", "adam"] = "sgd"
    _: dataclasses.KW_ONLY
    learning_rate: float = 1e-3
    momentum: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 5e-4
    bias_multiplier: float = 2.0
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    schedule: Literal["step", "poly", "cosine"] = "step"
    milestones: tuple[tuple[int, float], ...] = ()
    warmup: int = 0
    clip: float = 0.0
    base_batch_size: int = 0


@dataclasses.dataclass
class CRFConfig:
    """The CRF on top of a stage's network (§5).

    Bandwidths are in pixels of the full-resolution image and in steps of its colours,
    0..255; training on images that are resized by `data.scale` resizes them along.

    Attributes:
        kind: `"dense"`, whose parameters are given or searched; or `"rnn"`, whose
            weights and compatibility train (CRF-RNN), from 3·I, 5·I and −I.
        spatial_sigma: bandwidth of the spatial kernel, of both kinds.
        spatial_weight: of `"dense"`.
        bilateral_sigma_xy: of both kinds, in place.
        bilateral_sigma_rgb: of both kinds, in colour.
        bilateral_weight: of `"dense"`.
        iterations: steps of mean field; of `"rnn"`, in testing.
        train_steps: of `"rnn"`: steps of mean field in training.
        search: of `"dense"`: search its parameters on the validation split, and keep
            the best; else those given here stand.
        search_images: of the split, evenly spread, to search on.
        grid: what the search tries; the weights and bandwidths given above count for
            nothing then.

    Example:
        >>> CRFConfig("rnn", bilateral_sigma_xy=160.0).train_steps
        5
    """

    kind: Literal["dense", "rnn"] = "dense"
    spatial_sigma: float = 1.0
    spatial_weight: float = 1.0
    bilateral_sigma_xy: float = 80.0
    bilateral_sigma_rgb: float = 13.0
    bilateral_weight: float = 1.0
    iterations: int = 10
    train_steps: int = 5
    search: bool = True
    search_images: int = 100
    grid: CRFGrid = field(default_factory=CRFGrid)


@dataclasses.dataclass
class StageConfig:
    """One stage of a recipe: what trains, on what, how long, from where.

    Attributes:
        name: names the stage's checkpoints and its column in the table.
        trains: `"front_end"`, `"context"`, `"crf"` or `"all"`; the rest stays frozen.
            A dense CRF has nothing that steps could train: its parameters are found.
        inputs: `"images"`, or `"maps"`: the front end's logits over whole images,
            computed once and stored (paper §5). Maps train only the context module.
        start: name of the stage whose parameters this one starts from; what that stage
            lacks (a context module) starts from its initialisation.
        context: the context module's table; empty for the front end alone.
        steps: optimizer steps.
        batch_size: examples of an optimizer step.
        extra: train on the images of `data.extra` besides.
        full_tile_maps: store the maps of whole tiles, which continue beyond the image
            as in the joint network; else of the image alone, with zeros around it as
            in the release.
        edge_crops: take crops only at the left or right edge of the image (A.3).
        accumulate: parts into which a batch is cut to save memory; the loss is still
            summed over the whole batch and divided once.
        crop: (height, width) in pixels of the network's input, margins included; for
            maps, of the image region that they cover.
        optimizer: see there.
        loss: see there.
        ema: above 0, a moving average of the trained parameters is kept, and evaluated,
            predicted with and started from instead of them; as much of it is left after
            a step. Early it is less, (1 + step) / (10 + step).
        augmentation: see there; maps are mirrored only.
        evaluate_every: steps between evaluations while training; 0 never.
        checkpoint_every: steps between checkpoints.
        remat: keep only what lies between the front end's pools, and compute its maps
            again for the gradients: less memory for large crops, a third more time.
        crf: what follows the network, in training (`"rnn"`) and in evaluation; None is
            the network alone.
        model: the stage's network where it is not the run's, as ablations compare
            several.

    Example:
        >>> StageConfig("front_end", trains="front_end", steps=60_000).crf_kind
        ''
    """

    name: str
    _: dataclasses.KW_ONLY
    trains: Literal["front_end", "context", "crf", "all"]
    inputs: Literal["images", "maps"] = "images"
    start: str = ""
    context: tuple[ContextLayer, ...] = ()
    extra: bool = False
    full_tile_maps: bool = True
    edge_crops: bool = False
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    crop: tuple[int, int] = (500, 500)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    ema: float = 0.0
    augmentation: Augmentation = field(default_factory=Augmentation)
    evaluate_every: int = 0
    checkpoint_every: int = 500
    remat: bool = False
    crf: CRFConfig | None = None
    model: ModelConfig | None = None

    @property
    def crf_kind(self) -> Literal["", "dense", "rnn"]:
        """Of the stage's CRF; `""` without one."""
        return self.crf.kind if self.crf else ""


@dataclasses.dataclass
class DataConfig:
    """Which images.

    Attributes:
        dataset: a prepared set (`dilax data list`), your own `"folder"`,
            or `"scenes"`, which are rendered and need no files.
        variant: of a prepared set; `""` is its first.
        train: name of the split to train on.
        val: name of the split to evaluate on.
        extra: a prepared set of the same classes whose training images join in stages
            that ask for it (§5 trains on VOC and COCO).
        data_dir: folder of the files, or of all prepared sets; `--data_dir` sets it.
        images: folder: of the images, below `data_dir`; `""` looks for it.
        labels: folder: of the masks, below `data_dir`; `""` looks for it.
        classes: folder: names, `"sky,tree"`, or a file of them; `""` takes classes.txt,
            or what the masks hold.
        masks: folder: what masks hold, where that is in doubt.
        threshold: folder: values of masks from here on are one class, others another;
            0 keeps the values.
        void: folder: ids in masks that are ignored, such as `"0,255"`; `"none"` makes
            255 a class; `""` ignores 255 where the other ids leave no doubt.
        orientation: folder: whether images with an EXIF orientation, and their masks,
            are turned upright or read as stored where both fit; `""` turns them.
        tile: (height, width) of prediction tiles; None takes the data set's own, or the
            whole image where the network pads inside and seams would show.
        scale: images are resized by this on their way into the network.
        class_weight_power: p weighs class c by frequency^(−p) in the loss, scaled so
            that the mean weight of a training pixel is 1; 0 weighs all alike.
        skip_unreadable: leave out, and name, files that cannot be read.
        seed: of the rendered scenes.

    Example:
        >>> DataConfig("camvid", scale=0.5).val
        'val'
    """

    dataset: Literal[
        "voc", "coco", "camvid", "kitti", "cityscapes", "folder", "scenes"
    ] = "voc"
    _: dataclasses.KW_ONLY
    variant: str = ""
    train: str = "train"
    val: str = "val"
    extra: Literal["", "voc", "coco"] = ""
    data_dir: str = ""
    images: str = ""
    labels: str = ""
    classes: str = ""
    masks: Literal["", "ids", "colours", "alpha"] = ""
    threshold: float = 0.0
    void: str = ""
    orientation: Literal["", "upright", "stored"] = ""
    tile: tuple[int, int] | None = None
    scale: float = 1.0
    class_weight_power: float = 0.0
    skip_unreadable: bool = False
    seed: int = 0


@dataclasses.dataclass
class MeshConfig:
    """How the devices of all processes share the work; it changes no result.

    Attributes:
        data: devices over which examples are spread; 0 takes all that are left.
        rows: devices over which the rows of an image's maps are spread, for images
            that one device does not hold.
        model: devices over which the channels of fc6 and fc7 are spread.
        shard_params: spread parameters and the optimizer's state over `data`, too,
            instead of a copy on each: less memory, more talk.

    Example:
        >>> MeshConfig(rows=8).data
        0
    """

    data: int = 0
    rows: int = 1
    model: int = 1
    shard_params: bool = False


@dataclasses.dataclass
class Config:
    """A run.

    Attributes:
        name: of the configuration, for messages and pages.
        model: the network.
        data: the images.
        stages: the recipe.
        reading: threads and memory for training images; it may change on resuming.
        mesh: how devices share the work; it may change on resuming.
        dtype: of the networks' computation. Parameters, the optimizer's state, logits
            and the loss are float32 in either.
        seed: with the step, decides all randomness.
        log_every: steps between lines of `metrics.jsonl`.
        eval_batch_size: prediction tiles that run together.
        pictures: how many images of the evaluation split to show in `pictures.png`.
        saved_predictions: how many predictions of the evaluation split each stage saves
            at most, evenly spread; `report.html` shows the worst and the best of them.
        boundaries: measure trimap IoU and boundary F of each finished stage, too.
        init: weights that stages without `start` start from: a file or a name as
            `dilax.load_weights` takes (`"vgg16"` is downloaded), or the folder of a
            run; `""` starts from random weights. If it lacks `final`, fc6 with fc7, or
            the context module, these start from their initialization.
        init_key: which network of the file `init` to take, if it holds several, such as
            `"state_dict_ema"`; `""` takes the first that fits.
        reinit: layers that start from random weights though `init` has them, for other
            classes: beginnings of names or globs, such as `("final", "ctx")`.
        needs_init: the recipe is meant to start from ImageNet weights: refuse to start
            without, unless `init` is None (`--config.init=none`).

    Example:
        >>> stages = (StageConfig("front_end", trains="front_end"),)
        >>> Config("mine", DataConfig("scenes"), ModelConfig(), stages).stage().crop
        (500, 500)
    """

    name: str
    data: DataConfig
    model: ModelConfig
    stages: tuple[StageConfig, ...]
    reading: Reading = field(default_factory=Reading)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    log_every: int = 20
    eval_batch_size: int = 1
    pictures: int = 6
    saved_predictions: int = 200
    boundaries: bool = False
    init: str | None = ""
    init_key: str = ""
    reinit: tuple[str, ...] = ()
    needs_init: bool = False

    def stage(self, name: str = "") -> StageConfig:
        """The stage of this name; the last one by default.

        Raises:
            ValueError: if there is none, with the names that there are.
        """
        names = [stage.name for stage in self.stages]
        if name and name not in names:
            raise ValueError(f"stage {name!r}: this run has {', '.join(names)}")
        return self.stages[names.index(name) if name else -1]


_announced: set[tuple[str, ...]] = set()


def survey(data: DataConfig) -> Survey:
    """What the folder of a configuration contains; see `survey_folder`.

    What was found and decided is printed, once in a process.
    """
    found = survey_folder(
        data.data_dir,
        data.images,
        data.labels,
        data.classes,
        data.skip_unreadable,
        reading=MaskReading(data.masks, float(data.threshold), str(data.void)),
        orientation=data.orientation,
    )
    key = (str(Path(data.data_dir).expanduser().resolve()), *found.notes)
    if is_writer() and key not in _announced:
        _announced.add(key)
        lines = [f"{data.data_dir}:", *(f"  {note}" for note in found.notes)]
        print(printable("\n".join(lines)))
    return found


def build_spec(config: Config) -> DatasetSpec:
    """The data set's facts, with the configuration's tile and scale.

    Example:
        >>> from dilax.training.recipes import quickstart
        >>> build_spec(quickstart()).num_classes
        8
    """
    data = config.data
    if data.dataset == "folder":
        spec = survey(data).spec
    else:
        spec = DATASETS[data.dataset]
    if data.dataset == "camvid" and data.variant != "original":
        spec = dataclasses.replace(spec, image_size=(360, 480))
    pads = config.model.padding != "valid" or config.model.network != "front_end"
    own = None if pads else spec.tile
    return dataclasses.replace(spec, tile=data.tile or own, scale=data.scale)


def build_model(config: Config, stage: StageConfig, num_classes: int) -> DilatedNet:
    """The network of a stage: its front end with its context module."""
    return build_network(
        stage.model or config.model,
        num_classes,
        stage.context,
        trains_front_end=stage.trains in ("front_end", "all"),
        remat=stage.remat,
        dtype=jnp.dtype(config.dtype),
    )
