"""The operators of the paper: dilated convolution, its initialization, upsampling."""

from dilax.ops.dilated_conv import dilated_conv, identity_init
from dilax.ops.pooling import average_pool, max_pool, max_pool_with_places, unpool
from dilax.ops.receptive_fields import (
    Gridding,
    ReceptiveField,
    gridding,
    receptive_field,
    suggest_rates,
)
from dilax.ops.upsampling import depth_to_space, upsample_bilinear

__all__ = [
    "Gridding",
    "ReceptiveField",
    "average_pool",
    "depth_to_space",
    "dilated_conv",
    "gridding",
    "identity_init",
    "max_pool",
    "max_pool_with_places",
    "receptive_field",
    "suggest_rates",
    "unpool",
    "upsample_bilinear",
]
