"""Compiled programs that outlive their process: what took long to compile is kept."""

import os
from pathlib import Path
from typing import Any

import jax


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
