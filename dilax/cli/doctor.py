"""`dilax doctor`: what is installed and found, and whether it works.

The self-test takes some ten seconds: the arithmetic of Eq. 2, a small run on rendered
scenes whose loss must fall, a prediction by what it saved, and its page.
"""

import argparse
import importlib.util
import json
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

from dilax.data import DATASETS, Scenes
from dilax.inference import Predictor, save_image
from dilax.models import Layer
from dilax.ops import dilated_conv
from dilax.report import write_page
from dilax.runtime import jit
from dilax.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    StageConfig,
    load_checkpoint,
    machine,
    train,
    versions,
)

_EXTRAS = {
    "av": "videos: pip install 'dilax[video]'",
    "onnxruntime": "ONNX: pip install 'dilax[onnx]'",
    "ipywidgets": "notebooks: pip install 'dilax[notebooks]'",
}
_OTHERS = ("pillow", "tensorflow-datasets", "matplotlib", "Jinja2", "scipy")
_SIDE, _BATCH, _STEPS = 64, 4, 40
SCENES = DATASETS["scenes"]
Check = tuple[str, Callable[[], str]]


def main(argv: list[str] | None = None) -> int:
    """Prints what there is, tests it, and returns 0 if all is well, else 1."""
    parser = argparse.ArgumentParser("dilax doctor", description=__doc__)
    parser.add_argument("--data_dir", type=Path, help="of prepared data sets")
    values = parser.parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # orbax warns of what is no matter here
    print(f"{tabulate(_told(values.data_dir), tablefmt='plain')}\n")
    with tempfile.TemporaryDirectory(prefix="dilax-doctor") as folder:
        return run_checks(checks(Path(folder)))


def _told(data_dir: Path | None) -> list[list[str]]:
    found = machine()
    names = {**found["versions"], **versions(_OTHERS)}
    used = shutil.disk_usage(".")
    rows = [[name, version or "not installed"] for name, version in names.items()]
    rows += [
        ["system", found["system"]],
        ["devices", f"{found['devices']} x {found['device']} ({found['platform']})"],
        ["disk", f"{used.free / 1e9:.0f} GB free here"],
    ]
    for name, remedy in _EXTRAS.items():
        there = importlib.util.find_spec(name) is not None
        rows.append([name, "there" if there else f"absent; for {remedy}"])
    return rows + _data_told(data_dir)


def _data_told(data_dir: Path | None) -> list[list[str]]:
    from dilax.data.prepared import NAMES, builder_class, default_data_dir, prepared_dir

    root = (data_dir or default_data_dir()).expanduser()
    rows = [["prepared data", str(root) if root.is_dir() else f"{root}: not there"]]
    for name in NAMES:
        variants = [variant.name for variant in builder_class(name).BUILDER_CONFIGS]
        there = [v for v in variants if prepared_dir(name, v, root).is_dir()]
        how = f"absent; dilax data prepare {name}"
        rows.append([f"  {name}", ", ".join(there) or how])
    return [*rows, ["  scenes", "always there: rendered"]]


def run_checks(checks: list[Check]) -> int:
    """Runs the checks in order and says what became of each, then the verdict.

    Args:
        checks: (what is checked, what checks it and says what it found).

    Returns:
        0 if all passed, else 1.

    Example:
        >>> run_checks([("sums", lambda: "1 + 1 = 2")])  # doctest: +ELLIPSIS
        ok      sums: 1 + 1 = 2 (0.0 s)
        <BLANKLINE>
        all is well, in 0.0 s
        0
    """
    failed, start = [], time.perf_counter()
    for name, check in checks:
        begun = time.perf_counter()
        try:
            mark, found = "ok    ", check()
        except Exception as error:  # whatever it is: that is what is being asked
            mark, found = "FAILED", f"{type(error).__name__}: {error}".split("\n")[0]
            failed.append(name)
        seconds = time.perf_counter() - begun
        print(f"{mark}  {name}: {found} ({seconds:.1f} s)", flush=True)
    whole = time.perf_counter() - start
    verdict = f"not well: {', '.join(failed)} failed" if failed else "all is well"
    print(f"\n{verdict}, in {whole:.1f} s")
    return 1 if failed else 0


def check_convolution() -> str:
    """Eq. 2, (F *_l k)(p) = Σ_{s + l t = p} F(s) k(t), by hand and by the library.

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
    return f"dilated convolution is Eq. 2 to {worst:.0e}"


def check_run(folder: Path) -> str:
    """A small run of a folder of rendered scenes: training, checkpoint, evaluation.

    Args:
        folder: empty, for the images and for the run.

    Raises:
        ValueError: if the loss does not fall.
    """
    _write_scenes(folder / "data")
    train(_config(folder / "data"), folder / "run")
    lines = (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    fell = f"loss {losses[0]:.2f} → {losses[-1]:.2f} in {_STEPS} steps"
    if not losses[-1] < 0.8 * losses[0]:
        raise ValueError(f"{fell}: it must fall by a fifth")
    return fell


def check_prediction(folder: Path) -> str:
    """Loads what `check_run` trained, and predicts an image with it.

    Raises:
        ValueError: if what comes back is not a label map of the image.
    """
    image = Scenes("val", count=1, size=_SIDE)[0]["image"]
    labels = Predictor(*load_checkpoint(folder / "run"))(image)
    if labels.shape != image.shape[:2] or labels.max() >= len(SCENES.classes):
        raise ValueError(f"labels {labels.shape} up to {labels.max()}")
    return f"{len(np.unique(labels))} classes in {_SIDE} x {_SIDE} pixels"


def check_page(folder: Path) -> str:
    """Writes the page of what `check_run` trained."""
    return f"{write_page(folder / 'run').stat().st_size / 1e3:.0f} kB"


def _write_scenes(root: Path) -> None:
    for split in ("train", "val"):
        scenes = Scenes(split, count=_BATCH, size=_SIDE)
        for sample in (scenes[i] for i in range(_BATCH)):
            for kind, array in (("images", "image"), ("labels", "label")):
                path = root / kind / split / f"{sample['id']}.png"
                save_image(Image.fromarray(np.asarray(sample[array], np.uint8)), path)
    (root / "classes.txt").write_text("\n".join(SCENES.classes) + "\n")


def _config(data: Path) -> Config:
    """A front end of two layers, on whole images."""
    layers = (Layer("conv1", 3, 16), Layer("pool1", 2), Layer("fc", 1, 32))
    stage = StageConfig(
        "front_end",
        "front_end",
        steps=_STEPS,
        batch_size=_BATCH,
        crop=(_SIDE, _SIDE),
        optimizer=OptimizerConfig("adam", 5e-3),
    )
    source = DataConfig("folder", data_dir=str(data))
    return Config("doctor", source, ModelConfig(layers=layers), (stage,), log_every=5)


def checks(folder: Path) -> list[Check]:
    """The self-test, in order: later checks use what earlier ones wrote.

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
