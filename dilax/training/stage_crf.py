"""The CRF of a stage: built, trained with or after the network, or searched (§5).

A CRF-RNN's parameters are `params["crf"]`. It trains on the pixels of the crop without
its margin: the network's probabilities are upsampled as in prediction, the augmented
crop is the image, and every pixel has a label. Where a crop extends beyond its image,
image and probabilities are continued by reflection, and labels are ignored.

A dense CRF's parameters are given, or found by a search, and stored in a file.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dilax.crf import CRFRNN, DenseCRF
from dilax.crf.search import search_crf
from dilax.data import DatasetSpec
from dilax.data.pixels import as_float
from dilax.inference import Predictor
from dilax.inference.predictor import log_probabilities
from dilax.models import DilatedNet, init_params, param_shapes
from dilax.runtime import jit
from dilax.runtime.files import write_text
from dilax.runtime.processes import is_writer, wait_for_all
from dilax.training.config import CRFConfig, StageConfig
from dilax.training.serialization import from_json, to_json

Params = dict[str, Any]


def build_rnn(config: CRFConfig, num_classes: int, scale: float = 1.0) -> CRFRNN:
    """Return the CRF-RNN of a stage, for images that are resized by `scale`."""
    return CRFRNN(
        num_classes,
        spatial_sigma=config.spatial_sigma * scale,
        bilateral_sigma_xy=config.bilateral_sigma_xy * scale,
        bilateral_sigma_rgb=config.bilateral_sigma_rgb,
        train_steps=config.train_steps,
        test_steps=config.iterations,
    )


def init_stage(
    model: DilatedNet, stage: StageConfig, spec: DatasetSpec, seed: int
) -> Params:
    """Initialize the parameters of a stage's network and of its CRF-RNN."""
    network = init_params(model, seed, len(spec.mean))
    return {**network, **jit(lambda: _init_crf(stage, spec))()}


def stage_shapes(model: DilatedNet, stage: StageConfig, spec: DatasetSpec) -> Params:
    """Return the shapes of `init_stage`'s result, without computing it."""
    crf = jax.eval_shape(lambda: _init_crf(stage, spec))
    return {**param_shapes(model, len(spec.mean)), **crf}


def _init_crf(stage: StageConfig, spec: DatasetSpec) -> Params:
    if stage.crf is None or stage.crf.kind == "dense":
        return {}
    rnn = build_rnn(stage.crf, spec.num_classes)
    logits = jnp.zeros((1, 8, 8, spec.num_classes))
    image = jnp.zeros((1, 8, 8, len(spec.mean)), jnp.uint8)
    return {"crf": rnn.init(jax.random.key(0), logits, image)["params"]}


def rnn_logits(
    model: DilatedNet,
    stage: StageConfig,
    spec: DatasetSpec,
    params: Params,
    logits: jax.Array,
    images: jax.Array,
) -> jax.Array:
    """Refine the network's logits with the CRF-RNN, in training.

    Args:
        model: the stage's network.
        stage: the stage.
        spec: the data set; `spec.scale` scales the bandwidths.
        params: of the CRF-RNN.
        logits: (b, h', w', k) at the network's own resolution.
        images: (b, h, w, c) uint8 or uint16, including the margin.

    Returns:
        (b, h − 2·margin, w − 2·margin, k).
    """
    assert stage.crf is not None
    rnn = build_rnn(stage.crf, spec.num_classes, spec.scale)
    margin = model.margin
    inside = images[:, margin : -margin or None, margin : -margin or None]
    unary = log_probabilities(logits, model.output_stride)
    refined: Any = rnn.apply({"params": params}, unary, as_float(inside), train=True)
    return refined


def label_stride(model: DilatedNet, stage: StageConfig) -> int:
    """Return the distance between labels in training, in image pixels."""
    return 1 if stage.crf_kind == "rnn" else model.output_stride


def find_dense(stage: StageConfig, predictor: Predictor, val, workdir: Path) -> None:
    """Store the parameters of a stage's dense CRF, searched or as configured.

    As in §5, the search uses the images on which the stage is evaluated, too. An
    interrupted search resumes.

    Args:
        stage: a stage with a dense CRF.
        predictor: predictor of the network that the CRF refines.
        val: the evaluation images.
        workdir: the run's folder.
    """
    config, path = stage.crf, dense_file(workdir, stage)
    assert config is not None
    if not path.exists() and is_writer():
        if config.search:
            best = search_crf(
                predictor,
                val,
                workdir / "crf" / f"{stage.name}_search.json",
                images=config.search_images,
                grid=config.grid,
                iterations=config.iterations,
                title=f"search {stage.name}",
            ).best
            names = [field.name for field in dataclasses.fields(CRFConfig)]
            found = {name: v for name, v in vars(best).items() if name in names}
            config = dataclasses.replace(config, **found)
        write_text(path, to_json(config))
    wait_for_all(f"dense CRF of {stage.name}")


def found_dense(workdir: Path, stage: StageConfig) -> DenseCRF:
    """Return the dense CRF whose parameters `find_dense` stored.

    Raises:
        ValueError: naming the file, if it is missing.
    """
    path = dense_file(workdir, stage)
    if not path.is_file():
        raise ValueError(f"{path}: no dense CRF of stage {stage.name!r}; train first")
    config = from_json(CRFConfig, path)
    return DenseCRF(
        config.spatial_sigma,
        config.spatial_weight,
        config.bilateral_sigma_xy,
        config.bilateral_sigma_rgb,
        config.bilateral_weight,
        config.iterations,
    )


def dense_file(workdir: Path, stage: StageConfig) -> Path:
    """Return where the parameters of a stage's dense CRF are stored."""
    return Path(workdir) / "crf" / f"{stage.name}.json"
