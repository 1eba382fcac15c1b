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
)
from dilax.models.front_end import VGG16, VGG16_SLIM_HEAD, FrontEnd, Layer
from dilax.models.layer_calls import LayerCall, layer_calls, undilated_twin
from dilax.models.over_rows import apply_over_rows, row_mesh
from dilax.models.parameters import init_params, param_shapes

__all__ = [
    "BASIC",
    "CITYSCAPES",
    "KITTI",
    "LARGE",
    "VGG16",
    "VGG16_SLIM_HEAD",
    "ContextLayer",
    "ContextModule",
    "DilatedNet",
    "FrontEnd",
    "Layer",
    "LayerCall",
    "LayerCost",
    "NetworkCost",
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
    "row_mesh",
    "undilated",
    "undilated_twin",
]
