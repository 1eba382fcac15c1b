"""The tests in tests/many_devices, in a process that sees eight devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("many_devices")


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(f.name for f in FOLDER.glob("test_*.py")))
def test_on_eight_devices(file):
    env = {
        **os.environ,
        # Most of what it takes is compiling, which is quicker so.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 "
        "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTEST_ADDOPTS": "",
    }
    plain = ["-p", "no:xdist", "-o", "addopts=--strict-markers", "-q"]
    hooks = ["--jaxtyping-packages=dilax,beartype.beartype"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, *hooks, str(FOLDER / file)],
        env=env,
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
