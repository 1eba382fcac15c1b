"""Infrastructure: compilation, processes, sharded rows, files, downloads."""

from dilax.runtime.compiling import jit, keep_compiled
from dilax.runtime.processes import Interrupted

__all__ = ["Interrupted", "jit", "keep_compiled"]
