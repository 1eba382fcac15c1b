import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax
from dilax.runtime import jit, keep_compiled
folder = keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(
    lambda name, **kw: name.endswith("cache_hits") and hits.append(name)
)
def doubled(x): return 2 * x
assert float(jit(doubled)(3.0)) == 6
print(folder)
print(len(list(folder.glob("jit_doubled-*-cache"))), len(hits) > 0)
"""


def _run(**environment):
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=kept | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, folder",
    [("XDG_CACHE_HOME", "dilax/compiled"), ("JAX_COMPILATION_CACHE_DIR", "")],
)
def test_a_second_process_finds_what_the_first_compiled(tmp_path, name, folder):
    wanted = str(tmp_path / folder)
    assert _run(**{name: str(tmp_path)}) == [wanted, "1", "False"]
    assert _run(**{name: str(tmp_path)}) == [wanted, "1", "True"]
