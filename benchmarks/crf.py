"""`DenseCRF` and pydensecrf2 (C++): seconds per image, and the error of their filters.

    python -m benchmarks.crf --data_dir=FOLDER [--images=5] [--methods=auto,lattice]

Images are resized to 500×375; class probabilities are blurred noise of 21 classes, like
those of a coarse network. Both sides run 10 iterations with symmetric normalization and
the kernels 3/3 and 80/13/10, alternately, image by image; ratios are medians over the
images. Preparation (features, lattice, and normalization, which depend on the image
alone) and inference are timed separately; compile time is excluded.

The second table filters one class's probabilities on a part of each image with every
method, and compares the results with the exact sum over all pairs of pixels.
"""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.special
from absl import app, flags, logging
from PIL import Image
from tabulate import tabulate

import dilax
from dilax.crf import ExactFilter, build_lattice
from dilax.crf.kernels import bilateral_features
from dilax.data import evenly_spread, read_pixels
from dilax.data.pairing import IMAGE_SUFFIXES

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of images, such as VOC's JPEGImages."
)
_IMAGES = flags.DEFINE_integer("images", 5, "Number of images.", lower_bound=1)
_METHODS = flags.DEFINE_list(
    "methods", ["auto", "lattice"], "Methods of DenseCRF to time."
)
_CLASSES = flags.DEFINE_integer("classes", 21, "Number of classes.", lower_bound=2)
_ITERATIONS = flags.DEFINE_integer("iterations", 10, "Mean-field updates.")
_PART = flags.DEFINE_integer("part", 96, "Rows and columns for the exact sum; 0: none.")

SIZE = (375, 500)
SPATIAL = (3.0, 3.0)  # bandwidth, weight
BILATERAL = (80.0, 13.0, 10.0)  # bandwidths of positions and colours, weight


def probabilities(shape: tuple[int, int], classes: int, seed: int) -> np.ndarray:
    """Return smooth class probabilities (h, w, k), confident in most places."""
    noise = np.random.default_rng(seed).normal(size=(*shape, classes))
    logits = 400 * scipy.ndimage.gaussian_filter(noise, (16, 16, 0))
    return scipy.special.softmax(logits, axis=-1).astype(np.float32)


def ours(method: str, p: np.ndarray, image: np.ndarray) -> tuple[float, float, Any]:
    """Return the seconds of preparation and of inference, and the marginals."""
    crf = dilax.DenseCRF(
        *SPATIAL, *BILATERAL, iterations=_ITERATIONS.value, method=method
    )
    start = time.perf_counter()
    ready = jax.block_until_ready(crf.prepare(image))
    prepared = time.perf_counter()
    marginals = np.asarray(crf(p, ready))
    return prepared - start, time.perf_counter() - prepared, marginals


def theirs(p: np.ndarray, image: np.ndarray) -> tuple[float, float, Any]:
    """Do the same with pydensecrf2."""
    from pydensecrf import densecrf

    (height, width, k), (sigma, weight) = p.shape, SPATIAL
    sigma_xy, sigma_rgb, bilateral_weight = BILATERAL
    start = time.perf_counter()
    crf = densecrf.DenseCRF2D(width, height, k)
    crf.addPairwiseGaussian(sxy=sigma, compat=weight)
    crf.addPairwiseBilateral(
        sxy=sigma_xy, srgb=sigma_rgb, rgbim=image, compat=bilateral_weight
    )
    prepared = time.perf_counter()
    unary = -np.log(np.maximum(p, 1e-8)).reshape(-1, k).T
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    marginals = np.array(crf.inference(_ITERATIONS.value))
    seconds = time.perf_counter() - prepared
    return prepared - start, seconds, marginals.T.reshape(p.shape)


def speed_table(images: Sequence[np.ndarray]) -> str:
    """Return medians over the images; ratios are of runs in turn on the same image."""
    maps = [probabilities(SIZE, _CLASSES.value, i) for i in range(len(images))]
    ways: dict[str, Callable] = {
        m: lambda p, image, m=m: ours(m, p, image) for m in _METHODS.value
    }
    ways["pydensecrf2"] = theirs
    firsts = {name: way(maps[0], images[0]) for name, way in ways.items()}
    runs: dict[str, list] = {name: [] for name in ways}
    for p, image in zip(maps, images, strict=True):
        for name, way in ways.items():
            way(p, image)  # compiles for what this image needs
            runs[name].append(way(p, image))
    rows = [_row(n, firsts[n], runs[n], runs["pydensecrf2"]) for n in ways]
    headers = ["", "prepare, ms", "infer, ms", "× pydensecrf2", "first call, s"]
    headers += ["labels alike", "mean |Δ|"]
    return tabulate(rows, headers, "github", disable_numparse=True)


def _row(name: str, first: tuple, runs: list, reference: list) -> list[str]:
    prepare, infer = (1000 * statistics.median(r[i] for r in runs) for i in (0, 1))
    pairs = list(zip(runs, reference, strict=True))
    ratio = statistics.median(sum(a[:2]) / sum(b[:2]) for a, b in pairs)
    alike = np.mean([np.mean(a[2].argmax(-1) == b[2].argmax(-1)) for a, b in pairs])
    apart = np.mean([np.abs(a[2] - b[2]).mean() for a, b in pairs])
    return [
        name,
        f"{prepare:.0f}",
        f"{infer:.0f}",
        f"{ratio:.2f}",
        f"{sum(first[:2]):.1f}",
        f"{100 * alike:.2f} %",
        f"{apart:.1e}",
    ]


def accuracy_table(images: Sequence[np.ndarray]) -> str:
    """Compare the filters, normalized on both sides, on one class's probabilities."""
    errors: dict[str, list[float]] = {"lattice": [], "pydensecrf2": []}
    for i, image in enumerate(images):
        part = image[: _PART.value, : _PART.value]
        p = probabilities(part.shape[:2], 2, i)
        features = bilateral_features(jnp.asarray(part), *BILATERAL[:2])
        truth = _normalised(ExactFilter(features), p)
        scale = np.abs(truth).mean()
        found = _normalised(build_lattice(features), p)
        errors["lattice"].append(np.abs(found - truth).mean() / scale)
        found = _message_of_theirs(p, part)
        errors["pydensecrf2"].append(np.abs(found - truth).mean() / scale)
    rows = [[name, *(f"{100 * e:.3f}" for e in row)] for name, row in errors.items()]
    headers = ["mean |error|, %", *(f"image {i}" for i in range(len(images)))]
    return tabulate(rows, headers, "github", disable_numparse=True)


def _normalised(gaussian: Callable, p: np.ndarray) -> np.ndarray:
    values = jnp.asarray(p[..., :1].reshape(-1, 1))
    root = jnp.sqrt(gaussian(jnp.ones_like(values)))
    return np.asarray(gaussian(values / root) / root).ravel()


def _message_of_theirs(p: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return what one iteration adds to the first class's logit, for a weight of 1."""
    from pydensecrf import densecrf

    height, width, _ = image.shape
    crf = densecrf.DenseCRF2D(width, height, 2)
    unary = -np.log(p.reshape(-1, 2).T.astype(np.float64)).astype(np.float32)
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    sigma_xy, sigma_rgb, _ = BILATERAL
    only_first = np.array([1, 0], np.float32)
    crf.addPairwiseBilateral(
        sxy=sigma_xy,
        srgb=sigma_rgb,
        rgbim=np.array(image),
        compat=-only_first,
    )
    logits = np.log(np.array(crf.inference(1), np.float64))
    return (logits[0] - logits[1]) - (unary[1] - unary[0])


def main(argv: list[str]) -> None:
    """Print the tables."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if not _DATA_DIR.value:
        raise app.UsageError("--data_dir: a folder of images is missing")
    paths = sorted(Path(_DATA_DIR.value).iterdir())
    paths = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    chosen = [paths[i] for i in evenly_spread(len(paths), _IMAGES.value)]
    read = (Image.fromarray(read_pixels(path, 3)) for path in chosen)
    images = [np.array(image.resize(SIZE[::-1])) for image in read]
    print(
        f"\n{len(images)} images of {SIZE[1]}x{SIZE[0]}, {_CLASSES.value} classes, "
        f"{_ITERATIONS.value} iterations; jax {jax.__version__} on "
        f"{jax.devices()[0].device_kind}\n"
    )
    print(speed_table(images))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\npeak memory of the process: {peak:.2f} GB\n")
    if _PART.value:
        print(accuracy_table(images))


if __name__ == "__main__":
    app.run(main)
