"""The operators of the paper: dilated convolution, its initialisation, upsampling."""

from dilax.ops.compilation_cache import keep_compiled
from dilax.ops.compiler import jit
from dilax.ops.dilated_conv import dilated_conv
from dilax.ops.initializers import identity_init
from dilax.ops.pooling import average_pool, max_pool, max_pool_with_places, unpool
from dilax.ops.receptive_field import ReceptiveField, receptive_field
from dilax.ops.upsampling import upsample_bilinear
from dilax.ops.windows import strided_conv

__all__ = [
    "ReceptiveField",
    "average_pool",
    "dilated_conv",
    "identity_init",
    "jit",
    "keep_compiled",
    "max_pool",
    "max_pool_with_places",
    "receptive_field",
    "strided_conv",
    "unpool",
    "upsample_bilinear",
]
