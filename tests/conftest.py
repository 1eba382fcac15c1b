"""What several test modules share."""

import os
from collections import Counter
from pathlib import Path

import jax
import jaxtyping
import pytest


def pytest_configure(config):
    """Compiling is most of the time that tests take.

    So compiled programs are kept between tests, and between runs of the tests.
    """
    folder = str(config.cache.mkdir("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # of processes that tests start
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    _compile_quickly()


def _compile_quickly():
    """Has XLA make machine code in two thirds of the time, which is slower.

    How it rewrites programs stays the same. Processes that tests start are not told:
    some of them train for long.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0", prepend=" ")
        jax.devices()  # which reads it


def pytest_collection_modifyitems(items):
    """Files with the longest tests first, so that no process is left with one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    several = "test_many_devices.py", "test_training_hosts.py"
    items.sort(key=lambda item: (item.path.name not in several, -slow[item.path]))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that `DILAX_DATA` names."""
    folder = os.environ.get("DILAX_DATA")
    if not folder:
        pytest.skip("DILAX_DATA does not name a folder of real data")
    return Path(folder)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="compares with PyTorch")


@pytest.fixture
def unchecked(monkeypatch):
    """Our own checks alone, as users run them, without the annotations' checks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
