"""dilax: dense prediction with dilated convolutions, in JAX and Flax.

The networks, training and prediction of *Multi-Scale Context Aggregation by Dilated
Convolutions* (Yu & Koltun, ICLR 2016).
"""

from dilax import ops
from dilax.crf import CRFRNN, DenseCRF
from dilax.datasets import DATASETS, DatasetSpec
from dilax.evaluation import evaluate
from dilax.inference import Predictor
from dilax.models import (
    ContextModule,
    DilatedNet,
    FrontEnd,
    ResNet,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
    resnet_duc,
)
from dilax.ops import dilated_conv, identity_init
from dilax.receptive_field import effective_field, gridding
from dilax.training import load_checkpoint, load_predictor, pretrained, train
from dilax.weights import load_weights, save_weights

# Its arithmetic is the function of that name; the room of that name was loaded above,
# and no import gives the name to it again.
receptive_field = ops.receptive_field

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
