"""What several test modules share."""

import os
from pathlib import Path

import jaxtyping
import pytest


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
