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
    resnet_duc,
)
from dilax.models.drn import DRN, DRN_C_26, DRN_D_22, DRN_D_38, DRN_D_54, Level
from dilax.models.fcn import FCN8s
from dilax.models.front_end import VGG16, VGG16_SLIM_HEAD, Branch, FrontEnd, Layer, Pool
from dilax.models.layer_calls import LayerCall, layer_calls, undilated_twin
from dilax.models.named import Named, named_network
from dilax.models.over_rows import apply_over_rows, row_mesh
from dilax.models.parameters import init_params, param_shapes
from dilax.models.resnet import (
    DEEP_STEM,
    HDC50,
    HDC101,
    PLAIN_STEM,
    RESNET50,
    RESNET101,
    Block,
    ResNet,
    resnet_blocks,
    with_rates,
)
from dilax.models.segnet import SegNet

__all__ = [
    "BASIC",
    "CITYSCAPES",
    "DEEPLAB",
    "DEEPLAB_7X7",
    "DEEPLAB_LARGE_FOV",
    "DEEP_STEM",
    "DRN",
    "DRN_C_26",
    "DRN_D_22",
    "DRN_D_38",
    "DRN_D_54",
    "HDC50",
    "HDC101",
    "KITTI",
    "LARGE",
    "MULTI_SCALE",
    "PLAIN_STEM",
    "RESNET50",
    "RESNET101",
    "VGG16",
    "VGG16_SLIM_HEAD",
    "Block",
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
    "ResNet",
    "SegNet",
    "Work",
    "apply_over_rows",
    "dilation7_kitti",
    "dilation8_camvid",
    "dilation8_voc",
    "dilation10_cityscapes",
    "init_params",
    "layer_calls",
    "named_network",
    "network_cost",
    "param_shapes",
    "resnet_blocks",
    "resnet_duc",
    "row_mesh",
    "undilated",
    "undilated_twin",
    "with_rates",
]
