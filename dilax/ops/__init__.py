"""The operators of the paper: dilated convolution, its initialisation, upsampling."""

from dilax.ops.compilation_cache import keep_compiled
from dilax.ops.compiler import jit
from dilax.ops.depth_to_space import depth_to_space
from dilax.ops.dilated_conv import dilated_conv
from dilax.ops.initializers import identity_init
from dilax.ops.pooling import average_pool, max_pool, max_pool_with_places, unpool
from dilax.ops.receptive_field import ReceptiveField, receptive_field
from dilax.ops.upsampling import upsample_bilinear

__all__ = [
    "ReceptiveField",
    "average_pool",
    "depth_to_space",
    "dilated_conv",
    "identity_init",
    "jit",
    "keep_compiled",
    "max_pool",
    "max_pool_with_places",
    "receptive_field",
    "unpool",
    "upsample_bilinear",
]
