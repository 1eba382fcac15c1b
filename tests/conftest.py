"""What several test modules share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data that `DILAX_DATA` names."""
    folder = os.environ.get("DILAX_DATA")
    if not folder:
        pytest.skip("DILAX_DATA does not name a folder of real data")
    return Path(folder)
