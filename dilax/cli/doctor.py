"""`dilax doctor`: show what is installed, and test whether it works.

The self-test takes about ten seconds: it checks the arithmetic of Eq. 2, trains a small
run on rendered scenes, whose loss must fall, predicts with its network, and writes its
page.
"""

import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from dilax import training
from dilax.cli.command import tool_parser
from dilax.data import DATASETS, Scenes, prepared
from dilax.inference import Predictor, save_image
from dilax.models import Layer
from dilax.ops import dilated_conv
from dilax.report import write_page
from dilax.runtime import jit
from dilax.training.records import read_metrics

_EXTRAS = {
    "av": "videos: pip install 'dilax[video]'",
    "onnxruntime": "ONNX: pip install 'dilax[onnx]'",
    "ipywidgets": "notebooks: pip install 'dilax[notebooks]'",
}
_PACKAGES = ("pillow", "tensorflow-datasets", "matplotlib", "Jinja2", "scipy")
_SIDE, _BATCH, _STEPS = 64, 4, 40
SCENES = DATASETS["scenes"]
Check = tuple[str, Callable[[], str]]


def main(argv: list[str] | None = None) -> int:
    """Print what is installed, test it, and return 0 if everything works, else 1."""
    parser = tool_parser("doctor", __doc__)
    parser.add_argument("--data_dir", type=Path, help="folder of prepared data sets")
    values = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # no warning of orbax matters here
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # a platform that is not there
        given = os.environ.get("JAX_PLATFORMS", "")
        print(f"FAILED  devices: JAX finds none (JAX_PLATFORMS={given}) {error}")
        return 1
    rows = [*_installed(), *_prepared(values.data_dir or prepared.default_data_dir())]
    print(f"{tabulate(rows, tablefmt='plain')}\n")
    with tempfile.TemporaryDirectory(prefix="dilax-doctor") as folder:
        return run_checks(checks(Path(folder)))


def _installed() -> list[list[str]]:
    found = training.machine()
    packages = {**found["versions"], **training.versions(_PACKAGES)}
    rows = [[name, version or "not installed"] for name, version in packages.items()]
    free = shutil.disk_usage(".").free
    rows += [
        ["system", found["system"]],
        ["devices", f"{found['devices']} x {found['device']} ({found['platform']})"],
        ["disk", f"{tqdm.format_sizeof(free, 'B')} free here"],
    ]
    for name, remedy in _EXTRAS.items():
        missing = importlib.util.find_spec(name) is None
        rows.append([name, f"not installed; for {remedy}" if missing else "installed"])
    return rows


def _prepared(root: Path) -> list[list[str]]:
    root = root.expanduser()
    rows = [
        ["prepared data", str(root) if root.is_dir() else f"{root}: no such folder"]
    ]
    for name in prepared.NAMES:
        variants = prepared.builder_class(name).BUILDER_CONFIGS
        folders = {v.name: prepared.prepared_dir(name, v.name, root) for v in variants}
        there = [variant for variant, folder in folders.items() if folder.is_dir()]
        remedy = f"not prepared; dilax data prepare {name}"
        rows.append([f"  {name}", ", ".join(there) or remedy])
    return [*rows, ["  scenes", "always available: rendered"]]


def run_checks(checks: list[Check]) -> int:
    """Run the checks in order, print the result of each, then the verdict.

    Args:
        checks: (name, function that returns what it found, or raises).

    Returns:
        0 if all passed, else 1.

    Example:
        >>> run_checks([("sums", lambda: "1 + 1 = 2")])  # doctest: +ELLIPSIS
        ok      sums: 1 + 1 = 2 (0.0 s)
        <BLANKLINE>
        everything works (0.0 s)
        0
    """
    failed, start = [], time.perf_counter()
    for name, check in checks:
        began = time.perf_counter()
        try:
            mark, found = "ok    ", check()
        except Exception as error:  # any failure is a finding
            mark, found = "FAILED", f"{type(error).__name__}: {error}".split("\n")[0]
            failed.append(name)
        seconds = time.perf_counter() - began
        print(f"{mark}  {name}: {found} ({seconds:.1f} s)", flush=True)
    verdict = f"failed: {', '.join(failed)}" if failed else "everything works"
    print(f"\n{verdict} ({time.perf_counter() - start:.1f} s)")
    return 1 if failed else 0


def check_convolution() -> str:
    """Compare Eq. 2, (F *_l k)(p) = Σ_{s + l t = p} F(s) k(t), with `dilated_conv`.

    Raises:
        ValueError: if they differ.
    """
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 12, 12, 3)), rng.normal(size=(3, 3, 3, 2))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    by_hand = sum(
        x[:, 2 * i : 2 * i + 8, 2 * j : 2 * j + 8] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    with jax.default_matmul_precision("highest"):
        found = jit(lambda a, b: dilated_conv(a, b, dilation=2))(x, kernel)
    worst = float(abs(np.asarray(found) - by_hand).max())
    if worst > 1e-4:
        raise ValueError(f"dilated convolution is off by {worst:.1e}")
    return f"dilated convolution agrees with Eq. 2 to {worst:.0e}"


def check_run(folder: Path) -> str:
    """Train, save, and evaluate a small network on a folder of rendered scenes.

    Args:
        folder: empty, for the images and for the run.

    Raises:
        ValueError: if the loss does not fall.
    """
    data = folder / "data"
    for split in ("train", "val"):
        for sample in list(Scenes(split, count=_BATCH, size=_SIDE)):
            for kind, array in (("images", "image"), ("labels", "label")):
                path = data / kind / split / f"{sample['id']}.png"
                save_image(Image.fromarray(np.asarray(sample[array], np.uint8)), path)
    (data / "classes.txt").write_text("\n".join(SCENES.classes) + "\n")
    stage = training.StageConfig(
        "front_end",
        trains="front_end",
        steps=_STEPS,
        batch_size=_BATCH,
        crop=(_SIDE, _SIDE),
        optimizer=training.OptimizerConfig("adam", learning_rate=5e-3),
    )
    layers = (Layer("conv1", 3, 16), Layer("pool1", 2), Layer("fc", 1, 32))
    config = training.Config(
        "doctor",
        data=training.DataConfig("folder", data_dir=str(data)),
        model=training.ModelConfig(layers=layers),
        stages=(stage,),
        log_every=5,
    )
    training.train(config, folder / "run")
    losses = [line["loss"] for line in read_metrics(folder / "run")]
    fell = f"loss {losses[0]:.2f} → {losses[-1]:.2f} in {_STEPS} steps"
    if not losses[-1] < 0.8 * losses[0]:
        raise ValueError(f"{fell}: it must fall by a fifth")
    return fell


def check_prediction(folder: Path) -> str:
    """Load the network that `check_run` trained, and predict an image.

    Raises:
        ValueError: if the result is not a label map of the image.
    """
    image = Scenes("val", count=1, size=_SIDE)[0]["image"]
    labels = Predictor(*training.load_checkpoint(folder / "run"))(image)
    if labels.shape != image.shape[:2] or labels.max() >= len(SCENES.classes):
        raise ValueError(f"wrong labels: {labels.shape}, up to {labels.max()}")
    return f"{len(np.unique(labels))} classes in {_SIDE} x {_SIDE} pixels"


def check_page(folder: Path) -> str:
    """Write the page of the run of `check_run`."""
    return f"{write_page(folder / 'run').stat().st_size / 1e3:.0f} kB"


def checks(folder: Path) -> list[Check]:
    """Return the self-test, in order: later checks read files that earlier ones wrote.

    Args:
        folder: empty.

    Example:
        >>> [name for name, _ in checks(Path("nowhere"))]
        ['arithmetic', 'training', 'prediction', 'page']
    """
    return [
        ("arithmetic", check_convolution),
        ("training", lambda: check_run(folder)),
        ("prediction", lambda: check_prediction(folder)),
        ("page", lambda: check_page(folder)),
    ]
