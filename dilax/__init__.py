"""dilax: dense prediction with dilated convolutions, in JAX and Flax.

The networks, training and prediction of *Multi-Scale Context Aggregation by Dilated
Convolutions* (Yu & Koltun, ICLR 2016).
"""

from dilax.crf import CRFRNN, DenseCRF
from dilax.data import DATASETS, DatasetSpec
from dilax.evaluation import evaluate
from dilax.inference import Predictor
from dilax.models import (
    ContextModule,
    DilatedNet,
    FrontEnd,
    ResNet,
    build,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
    effective_field,
    resnet_duc,
)
from dilax.ops import dilated_conv, gridding, identity_init, receptive_field
from dilax.training import load_checkpoint, load_predictor, pretrained, train
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
    "ResNet",
    "build",
    "dilated_conv",
    "dilation7_kitti",
    "dilation8_camvid",
    "dilation8_voc",
    "dilation10_cityscapes",
    "effective_field",
    "evaluate",
    "gridding",
    "identity_init",
    "load_checkpoint",
    "load_predictor",
    "load_weights",
    "pretrained",
    "receptive_field",
    "resnet_duc",
    "save_weights",
    "train",
]
