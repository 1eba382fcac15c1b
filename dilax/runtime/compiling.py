"""Compiled programs that outlive their process: what took long to compile is kept.

Compiler options, in one place: what XLA needs to be told on each backend.

On the CPU, XLA moves convolutions into a library fusion that is 3-9 times slower
than its own path on the layers of VGG-16; one option keeps them out, and leaves in
single products. (With products and what surrounds them, jaxlib 0.10.2 computes the
wrong numbers for exp(x) @ ones.) Another one keeps optimization barriers: without them
what gradients are to compute again (rematerialisation) is merged with what was computed
before, and saves no memory. What runs once, as initialisation does, is compiled with
less optimisation: that takes a quarter of the time, and draws the same numbers. Options
are probed once, and dropped with a log line where they are unknown.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax import lax

_WANTED = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        "xla_disable_hlo_passes": "cse_barrier_expander",
    },
}
_RUN_ONCE = {"cpu": {"xla_backend_optimization_level": "1"}}


@functools.cache
def compiler_options(backend: str | None = None, once: bool = False) -> dict[str, str]:
    """The options of the tables above that this backend's compiler knows.

    Args:
        backend: `"cpu"`, `"gpu"` or `"tpu"`; None takes the default backend.
        once: whether the program runs once, so that compiling takes the longest.
    """
    backend = backend or jax.default_backend()
    wanted = _WANTED.get(backend, {}) | (_RUN_ONCE.get(backend, {}) if once else {})
    return {name: value for name, value in wanted.items() if _known(name, value)}


def _known(name: str, value: str) -> bool:
    try:
        probe = jax.jit(
            lambda x: lax.optimization_barrier(x + 1), compiler_options={name: value}
        )
        probe(0)
    except Exception as error:  # the compiler raises its own runtime error type
        logging.info("Compiler option %s dropped: %s", name, error)
        return False
    return True


def jit(fun: Callable, once: bool = False, **kwargs: Any) -> Any:
    """`jax.jit` with the options of this backend; for top-level functions only.

    JAX refuses compiler options on a jit inside another jit, so library functions
    stay plain, and whoever runs them (a training step, a predictor) calls this.

    Args:
        fun: the function to compile.
        once: see `compiler_options`.
        **kwargs: passed to `jax.jit`.

    Returns:
        What `jax.jit` returns.

    Example:
        >>> jit(lambda x: 2 * x)(3).item()
        6
    """
    return jax.jit(fun, compiler_options=compiler_options(None, once) or None, **kwargs)


def keep_compiled() -> Path:
    """Lets JAX keep what takes over a second to compile, for top-level programs only.

    In the folder that `JAX_COMPILATION_CACHE_DIR` or JAX's own setting names, else in
    the user's cache folder. Nothing is ever deleted there; the folder may be.

    Returns:
        The folder.

    Example:
        >>> keep_compiled().is_absolute()
        True

    Source: JAX's persistent compilation cache.
    """
    settings: Any = jax.config  # whose type does not list them
    if settings.jax_compilation_cache_dir is None:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches) / "dilax" / "compiled"
        settings.update("jax_compilation_cache_dir", str(folder))
    return Path(settings.jax_compilation_cache_dir)
