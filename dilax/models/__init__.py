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
from dilax.models.dilated_net import (
    DilatedNet,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
    resnet_duc,
)
from dilax.models.front_end import VGG16, VGG16_SLIM_HEAD, FrontEnd, Layer
from dilax.models.layer_calls import LayerCall, layer_calls, undilated_twin
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

__all__ = [
    "BASIC",
    "CITYSCAPES",
    "DEEP_STEM",
    "HDC50",
    "HDC101",
    "KITTI",
    "LARGE",
    "PLAIN_STEM",
    "RESNET50",
    "RESNET101",
    "VGG16",
    "VGG16_SLIM_HEAD",
    "Block",
    "ContextLayer",
    "ContextModule",
    "DilatedNet",
    "FrontEnd",
    "Layer",
    "LayerCall",
    "LayerCost",
    "NetworkCost",
    "ResNet",
    "Work",
    "apply_over_rows",
    "dilation7_kitti",
    "dilation8_camvid",
    "dilation8_voc",
    "dilation10_cityscapes",
    "init_params",
    "layer_calls",
    "network_cost",
    "param_shapes",
    "resnet_blocks",
    "resnet_duc",
    "row_mesh",
    "undilated",
    "undilated_twin",
    "with_rates",
]
