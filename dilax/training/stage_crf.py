"""The CRF of a stage: built, trained after or with the network, and found again (§5).

A CRF-RNN's parameters are `params["crf"]`. It trains on the pixels of the crop without
its margin: there the network's probabilities are upsampled as the predictor upsamples
them, the augmented crop is the image, and a label stands at every pixel. Where a crop
reaches beyond its image, both see the image's reflection, and no label counts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dilax.crf import CRFRNN, DenseCRF
from dilax.data import DatasetSpec
from dilax.data.pixels import as_float
from dilax.inference.predictor import log_probabilities
from dilax.models import DilatedNet, init_params, param_shapes
from dilax.runtime import jit
from dilax.training.config import CRFConfig, StageConfig

Params = dict[str, Any]


def build_rnn(config: CRFConfig, num_classes: int, scale: float = 1.0) -> CRFRNN:
    """The CRF-RNN of a stage, for images that are resized by `scale`."""
    return CRFRNN(
        num_classes,
        spatial_sigma=config.spatial_sigma * scale,
        bilateral_sigma_xy=config.bilateral_sigma_xy * scale,
        bilateral_sigma_rgb=config.bilateral_sigma_rgb,
        train_steps=config.train_steps,
        test_steps=config.iterations,
    )


def build_dense(config: CRFConfig) -> DenseCRF:
    """The dense CRF with the parameters of the configuration."""
    return DenseCRF(
        config.spatial_sigma,
        config.spatial_weight,
        config.bilateral_sigma_xy,
        config.bilateral_sigma_rgb,
        config.bilateral_weight,
        config.iterations,
    )


def init_stage(
    model: DilatedNet, stage: StageConfig, spec: DatasetSpec, seed: int
) -> Params:
    """Fresh parameters of a stage: the network's, and those of its CRF-RNN."""
    network = init_params(model, seed, len(spec.mean))
    return {**network, **jit(lambda: _init_crf(stage, spec))()}


def stage_shapes(model: DilatedNet, stage: StageConfig, spec: DatasetSpec) -> Params:
    """What `init_stage` gives, as shapes: nothing is computed."""
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
    """The network's logits → those of the CRF-RNN, in training.

    Args:
        model: the stage's network.
        stage: see there.
        spec: `spec.scale` makes bandwidths as much smaller as the images are.
        params: of the CRF-RNN.
        logits: (b, h', w', k) at the network's own resolution.
        images: (b, h, w, c) uint8 or uint16, the margin included.

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
    """Image pixels from one label to the next, in the stage's training."""
    return 1 if stage.crf_kind == "rnn" else model.output_stride
