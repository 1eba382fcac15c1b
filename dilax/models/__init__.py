"""Networks for dense prediction."""

from dilax.models.context import (
    BASIC,
    CITYSCAPES,
    KITTI,
    LARGE,
    ContextLayer,
    ContextModule,
    undilated,
)
from dilax.models.cost import LayerCost, NetworkCost, Work, network_cost
from dilax.models.deeplab import DEEPLAB, DEEPLAB_7X7, DEEPLAB_LARGE_FOV, MULTI_SCALE
from dilax.models.dilated_net import (
    DilatedNet,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from dilax.models.drn import DRN, DRN_C_26, DRN_D_22, DRN_D_38, DRN_D_54, Level
from dilax.models.fcn import FCN8s
from dilax.models.front_end import VGG16, VGG16_SLIM_HEAD, Branch, FrontEnd, Layer, Pool
from dilax.models.layer_calls import LayerCall, layer_calls, undilated_twin
from dilax.models.named import Named, named_network
from dilax.models.parameters import STATS, init_params, network_variables, param_shapes
from dilax.models.segnet import SegNet

__all__ = [
    "BASIC",
    "CITYSCAPES",
    "DEEPLAB",
    "DEEPLAB_7X7",
    "DEEPLAB_LARGE_FOV",
    "DRN",
    "DRN_C_26",
    "DRN_D_22",
    "DRN_D_38",
    "DRN_D_54",
    "KITTI",
    "LARGE",
    "MULTI_SCALE",
    "STATS",
    "VGG16",
    "VGG16_SLIM_HEAD",
    "Branch",
    "ContextLayer",
    "ContextModule",
    "DilatedNet",
    "FCN8s",
    "FrontEnd",
    "Layer",
    "LayerCall",
    "LayerCost",
    "Level",
    "Named",
    "NetworkCost",
    "Pool",
    "SegNet",
    "Work",
    "dilation7_kitti",
    "dilation8_camvid",
    "dilation8_voc",
    "dilation10_cityscapes",
    "init_params",
    "layer_calls",
    "named_network",
    "network_cost",
    "network_variables",
    "param_shapes",
    "undilated",
    "undilated_twin",
]
