"""The tests in tests/many_devices, in a process that sees eight devices."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import quick_environment

FOLDER = Path(__file__).with_name("many_devices")


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(f.name for f in FOLDER.glob("test_*.py")))
def test_on_eight_devices(file):
    env = quick_environment("--xla_force_host_platform_device_count=8")
    env |= {"JAX_PLATFORMS": "cpu", "PYTEST_ADDOPTS": ""}
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
