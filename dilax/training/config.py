"""The configuration of a run, as plain data with every default in one place.

A recipe is a tuple of stages. Experiments build a `Config`; a run writes it into its
folder as `config.json`, and evaluation and prediction read it from there.
"""

import copy
import dataclasses
from dataclasses import field
from typing import Literal

from dilax.crf.search import CRFGrid
from dilax.data import Augmentation, Reading
from dilax.models import DEEP_STEM, VGG16, Block, ContextLayer, Layer, Named
from dilax.training.losses import LossConfig


@dataclasses.dataclass
class OptimizerConfig:
    """How parameters follow gradients (paper §4, §5, Appendix A).

    Attributes:
        name: `"sgd"` (whose momentum buffer includes the learning rate, as in Caffe),
            or `"adam"` with decoupled weight decay.
        learning_rate: after the warm-up, before any decay.
        momentum: of SGD; β1 of Adam.
        beta2: of Adam.
        weight_decay: of kernels only, never of biases or normalization.
        bias_multiplier: learning rate of biases relative to kernels.
        lr_multipliers: (layer, multiplier) pairs: the learning rate of layers relative
            to the others, such as `(("final", 10.0),)` for a layer that does not start
            from trained weights. A layer is given by a prefix of its name, or a glob;
            if several pairs match a parameter, their multipliers are multiplied. Layers
            with multiplier 0 are frozen, and no gradient is computed for them.
        schedule: `"step"` multiplies by the factors at `milestones`; `"poly"` decays to
            zero with power 0.9; `"cosine"` decays to zero along a half cosine.
        milestones: (step, factor) pairs of `"step"`.
        warmup: steps of linear warm-up.
        clip: largest global gradient norm; 0 does not clip.
        base_batch_size: the batch size that the learning rate is meant for. Another
            `batch_size` scales it: linearly for SGD (Goyal et al. 2017), with the
            square root for Adam (Krizhevsky 2014). 0 leaves the rate unchanged.

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

    Bandwidths are in pixels of the full-resolution image and in colour levels, 0..255;
    in training on images that are resized by `data.scale`, they are scaled as well.

    Attributes:
        kind: `"dense"`, whose parameters are given or searched; or `"rnn"` (CRF-RNN),
            whose weights and compatibility are trained, from 3·I, 5·I, and −I.
        spatial_sigma: bandwidth of the spatial kernel.
        spatial_weight: weight of the spatial kernel; `"dense"` only.
        bilateral_sigma_xy: bandwidth of the bilateral kernel in pixels.
        bilateral_sigma_rgb: bandwidth of the bilateral kernel in colour levels.
        bilateral_weight: weight of the bilateral kernel; `"dense"` only.
        iterations: steps of mean field; for `"rnn"`, in testing.
        train_steps: steps of mean field in training; `"rnn"` only.
        search: search the parameters on the validation split, and keep the best;
            otherwise those given here are used. `"dense"` only.
        search_images: number of images of the split to search on, evenly spread.
        grid: the values that the search tries, instead of the weights and bandwidths
            given above.

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
class ModelConfig:
    """Fields of `FrontEnd` or `ResNet`, `ContextModule`, and `DilatedNet`; see there.

    The context module's table belongs to the stage, because stages compare tables.

    Attributes:
        network: `"front_end"` is the network of the table `layers` or `blocks`;
            otherwise a name of `named_network`, which ignores the tables, `final_name`,
            `final_rates`, `padding`, and `stem`.
        blocks: a table of blocks makes the front end a `ResNet`, which ignores `layers`
            and `head_channels`.
        backbone: `"module:Class"`, your own `Backbone` instead of `network` and the
            tables. The module must be importable wherever the run is read. The class
            gets `num_classes`, and `width_multiplier`, `duc`, `remat`, and `dtype` if
            it has such fields.
        batch_norm: kind of batch normalization in the stages that train the front end,
            for networks that have any.

    Example:
        >>> ModelConfig(width_multiplier=0.125, padding="same").network
        'front_end'
    """

    network: Literal["front_end", Named] = "front_end"
    layers: tuple[Layer, ...] = VGG16
    width_multiplier: float = 1.0
    head_channels: int | None = None
    final_name: str = "final"
    padding: Literal["valid", "same", "reflect"] = "valid"
    blocks: tuple[Block, ...] = ()
    backbone: str = ""
    stem: tuple[tuple[int, int, int], ...] = DEEP_STEM
    batch_norm: Literal["running", "frozen"] = "running"
    final_rates: tuple[int, ...] = ()
    duc: int = 1
    context_prefix: str = "ctx_"
    context_padding: Literal["layer", "entry"] = "layer"
    context_sigma: float = 0.01
    upsample: bool = False


@dataclasses.dataclass
class StageConfig:
    """One stage of a recipe: what it trains, on what, for how long, from which weights.

    Attributes:
        name: names the stage's checkpoints and its column in the table.
        trains: `"front_end"`, `"context"`, `"crf"` or `"all"`; the rest stays frozen.
            The parameters of a dense CRF are searched, not trained.
        inputs: `"images"`, or `"maps"`: the front end's logits over whole images,
            computed once and stored (paper §5). Maps train only the context module.
        start: name of the stage whose parameters this one starts from; what that stage
            lacks (a context module) starts from its initialization.
        context: the context module's table; empty for the front end alone.
        steps: optimizer steps.
        batch_size: examples per optimizer step.
        extra: also train on the images of `data.extra`.
        full_tile_maps: store the maps of whole tiles, which extend beyond the image as
            in the joint network; otherwise of the image alone, surrounded by zeros, as
            in the release.
        edge_crops: take crops only at the left or right edge of the image (A.3).
        accumulate: number of parts into which a batch is divided to save memory; the
            loss is still summed over the whole batch and divided once.
        crop: (height, width) in pixels of the network's input, including margins; for
            maps, of the image region that they cover.
        optimizer: see `OptimizerConfig`.
        loss: see `LossConfig`.
        ema: decay of a moving average of the trained parameters, which evaluation,
            prediction, and later stages use instead of them; 0 keeps none. During the
            first steps the decay is at most (1 + step) / (10 + step).
        augmentation: see `Augmentation`; maps are only mirrored.
        evaluate_every: steps between evaluations during training; 0 never evaluates.
        checkpoint_every: steps between checkpoints.
        log_layers: also log each layer's gradient norm, to see where training diverges.
        remat: keep only the front end's maps at its pools, and compute the others again
            for the gradients: less memory for large crops, a third more time.
        crf: the CRF after the network, in training (`"rnn"`) and in evaluation; None is
            the network alone.
        model: the stage's network, if it is not the run's: ablations compare several.

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
    log_layers: bool = False
    remat: bool = False
    crf: CRFConfig | None = None
    model: ModelConfig | None = None

    def __post_init__(self) -> None:
        # Otherwise a recipe that changes a stage would change those made from it, too.
        for part in ("optimizer", "loss", "augmentation", "crf", "model"):
            setattr(self, part, copy.copy(getattr(self, part)))

    @property
    def crf_kind(self) -> Literal["", "dense", "rnn"]:
        """The kind of the stage's CRF; `""` without one."""
        return self.crf.kind if self.crf else ""


@dataclasses.dataclass
class DataConfig:
    """The images of a run.

    Attributes:
        dataset: a prepared set (`dilax data list`), your own `"folder"`,
            or `"scenes"`, which are rendered and need no files.
        variant: of a prepared set; `""` is its first.
        train: name of the split to train on.
        val: name of the split to evaluate on.
        extra: a prepared set with the same classes, whose training images are added in
            stages with `extra=True` (§5 trains on VOC and COCO).
        data_dir: folder of the files, or of all prepared sets; `--data_dir` sets it.
        images: for `"folder"`: folder of the images in `data_dir`; `""` finds it.
        labels: for `"folder"`: folder of the masks in `data_dir`; `""` finds it.
        classes: for `"folder"`: names, `"sky,tree"`, or a file of names; `""` reads
            classes.txt, or uses the values of the masks.
        masks: for `"folder"`: what masks contain, if it is in doubt.
        threshold: for `"folder"`: mask values from this one on are one class, the
            others another; 0 keeps the values.
        void: for `"folder"`: ids in masks that are ignored, such as `"0,255"`; `"none"`
            makes 255 a class; `""` ignores 255 if the other ids leave no doubt.
        orientation: for `"folder"`: whether images with an EXIF orientation, and their
            masks, are turned upright or read as stored if both fit; `""` turns them.
        tile: (height, width) of prediction tiles; None uses the data set's own, or the
            whole image if the network's layers pad, because seams would show.
        scale: factor by which images are resized before they enter the network.
        class_weight_power: p weights class c by frequency^(−p) in the loss, scaled so
            that the mean weight of a training pixel is 1; 0 weights all classes
            equally.
        skip_unreadable: skip files that cannot be read, and print their names.
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
    """How the devices of all processes share the work; it does not change results.

    Attributes:
        data: number of devices that share the examples; 0 uses all remaining ones.
        rows: number of devices that share the rows of an image's maps, for images that
            do not fit on one device.
        model: number of devices that share the channels of fc6 and fc7.
        shard_params: also divide parameters and the optimizer's state over `data`,
            instead of keeping a copy on each device: less memory, more communication.

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
    """The configuration of a run.

    Attributes:
        name: of the configuration, for messages and pages.
        model: the network.
        data: the images.
        stages: the recipe.
        reading: threads and memory for training images; it may change on resuming.
        mesh: how devices share the work; it may change on resuming.
        dtype: of the networks' computation. Parameters, the optimizer's state, logits,
            and the loss are always float32.
        seed: determines all randomness, together with the step.
        log_every: steps between lines of `metrics.jsonl`.
        eval_batch_size: number of prediction tiles that run together.
        pictures: number of images of the evaluation split in `pictures.png`.
        saved_predictions: maximum number of predictions of the evaluation split that
            each stage saves, evenly spread; `report.html` shows the worst and the best.
        boundaries: also measure trimap IoU and boundary F of each finished stage.
        init: weights that stages without `start` start from: a file or a name as
            `dilax.load_weights` takes (`"vgg16"` is downloaded), or the folder of a
            run; `""` starts from random weights. If it lacks `final`, fc6 with fc7, or
            the context module, these start from their initialization.
        init_key: which network of the file `init` to take, if it holds several, such as
            `"state_dict_ema"`; `""` takes the first that fits.
        reinit: layers that start from random weights though `init` has them, for other
            classes: prefixes of names, or globs, such as `("final", "ctx")`.
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
            ValueError: if there is none; it lists the names.
        """
        names = [stage.name for stage in self.stages]
        if name and name not in names:
            raise ValueError(f"stage {name!r}: this run has {', '.join(names)}")
        return self.stages[names.index(name) if name else -1]
