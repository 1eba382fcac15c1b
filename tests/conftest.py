"""Fixtures and settings for all tests."""

import os
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jaxtyping
import pytest


def pytest_configure(config):
    """Keep compiled programs between tests, as compiling takes most of their time.

    They are kept between runs as well, unless pytest's cache is off.
    """
    cache = getattr(config, "cache", None)  # absent with -p no:cacheprovider
    folder = str(cache.mkdir("compiled") if cache else tempfile.mkdtemp("dilax"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # of processes that tests start
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    _compile_quickly()


def _compile_quickly():
    """Let XLA generate slower machine code in two thirds of the time.

    Its rewriting of programs stays the same. Processes that tests start keep the
    default: some of them train for long.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0", prepend=" ")
        jax.devices()  # which reads it


def pytest_collection_modifyitems(items):
    """Start with the files that take longest, so that both processes end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    several = "test_many_devices.py", "test_training_hosts.py"
    items.sort(key=lambda item: (item.path.name not in several, -slow[item.path]))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data that `DILAX_DATA` names, or skip."""
    folder = os.environ.get("DILAX_DATA")
    if not folder:
        pytest.skip("DILAX_DATA does not name a folder of real data")
    return Path(folder)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch")


@pytest.fixture
def unchecked(monkeypatch):
    """Turn the checks of annotations off, as they are for users."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
