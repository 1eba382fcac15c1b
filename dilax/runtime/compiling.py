"""Compilation: XLA's options for each backend, and a cache of compiled programs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax import lax
from jax.sharding import SingleDeviceSharding

from dilax.runtime.files import user_cache

_WANTED: dict[str, dict[str, Any]] = {
    "cpu": {
        # XLA moves convolutions into a library fusion that is 3-9 times slower than its
        # own path on the layers of VGG-16. This keeps them out, and leaves in single
        # products only: with products and the operations around them, jaxlib 0.10.2
        # computes wrong numbers for exp(x) @ ones.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
        # Keeps optimization barriers. Without them the operations that gradients should
        # compute again (rematerialization) are merged with their first computation, and
        # save no memory.
        "xla_disable_hlo_passes": "cse_barrier_expander",
        # By default, XLA orders operations so that as many as possible can run at once.
        # All of Winograd's transformed kernels are then in memory together, although
        # each operation uses all cores anyway.
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    },
}
# For programs that run once, such as initialization: less optimization compiles in a
# quarter of the time and draws the same numbers.
_RUN_ONCE: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": "1"}}


@functools.cache
def compiler_options(backend: str | None = None, once: bool = False) -> dict[str, Any]:
    """Return the options of the tables above that the backend's compiler knows.

    Args:
        backend: `"cpu"`, `"gpu"` or `"tpu"`; None takes the default backend.
        once: whether the program runs only once, so that most of its time is
            compilation.
    """
    backend = backend or jax.default_backend()
    wanted = _WANTED.get(backend, {}) | (_RUN_ONCE.get(backend, {}) if once else {})
    return known_options(wanted)


def known_options(options: dict[str, Any]) -> dict[str, Any]:
    """Drop the options that the default backend does not know, with a log line."""
    known = {}
    there = SingleDeviceSharding(jax.devices()[0])  # which may be the compiler's alone
    x = jax.ShapeDtypeStruct((), jnp.int32, sharding=there)
    for name, value in options.items():
        try:
            # Compiled without a call, which inside another function's trace would
            # refuse the options and lose them for the whole process.
            probe = jax.jit(lambda x: lax.optimization_barrier(x + 1)).lower(x)
            probe.compile({name: value})
        except Exception as error:  # the compiler raises its own runtime error type
            logging.info("Compiler option %s dropped: %s", name, error)
        else:
            known[name] = value
    return known


def jit(fun: Callable, once: bool = False, **kwargs: Any) -> Any:
    """Call `jax.jit` with the compiler options of this backend.

    Only for top-level functions, such as a training step: JAX refuses compiler options
    on a jit inside another jit.

    Args:
        fun: the function to compile.
        once: whether it runs only once; see `compiler_options`.
        **kwargs: passed to `jax.jit`.

    Returns:
        The compiled function of `jax.jit`.

    Example:
        >>> jit(lambda x: 2 * x)(3).item()
        6
    """
    options = compiler_options(jax.default_backend(), once) or None
    return jax.jit(fun, compiler_options=options, **kwargs)


def keep_compiled() -> Path:
    """Turn on JAX's persistent compilation cache; for top-level programs only.

    The cache keeps programs that take over a second to compile, in the folder of
    `JAX_COMPILATION_CACHE_DIR` or of JAX's own setting, else in the user's cache
    folder. JAX never deletes anything there, but you can delete the folder.

    Returns:
        The folder.

    Example:
        >>> keep_compiled().is_absolute()
        True

    Source: JAX's persistent compilation cache.
    """
    settings: Any = jax.config  # its type does not list the settings
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(user_cache("compiled")))
    return Path(settings.jax_compilation_cache_dir)
