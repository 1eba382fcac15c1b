"""dilax: dense prediction with dilated convolutions, in JAX and Flax.

The networks, training and prediction of *Multi-Scale Context Aggregation by Dilated
Convolutions* (Yu & Koltun, ICLR 2016).
"""

from dilax.crf import CRFRNN, DenseCRF
from dilax.datasets import DATASETS, DatasetSpec
from dilax.evaluation import evaluate
from dilax.inference import Predictor
from dilax.models import (
    ContextModule,
    DilatedNet,
    FrontEnd,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from dilax.ops import dilated_conv, identity_init, receptive_field
from dilax.training import load_checkpoint, load_predictor, train
from dilax.weights import load_weights, save_weights

__version__ = "0.1.0"

__all__ = [
    "CRFRNN",
    "DATASETS",
    "ContextModule",
    "DatasetSpec",
    "DenseCRF",
    "DilatedNet",
    "FrontEnd",
    "Predictor",
    "dilated_conv",
    "dilation7_kitti",
    "dilation8_camvid",
    "dilation8_voc",
    "dilation10_cityscapes",
    "evaluate",
    "identity_init",
    "load_checkpoint",
    "load_predictor",
    "load_weights",
    "receptive_field",
    "save_weights",
    "train",
]
