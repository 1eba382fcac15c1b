"""What runs the science: compiling, processes, sharded rows, and whole files."""

from dilax.runtime.compiling import jit, keep_compiled
from dilax.runtime.processes import Interrupted

__all__ = [
    "Interrupted",
    "jit",
    "keep_compiled",
]
