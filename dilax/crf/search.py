"""Search for a dense CRF's parameters on validation images (paper §5).

A coarse grid first, then a finer one around its best point (Chen et al. 2015, §5). All
parameters are scales, so the values of a grid differ by ratios, and the fine grid has
steps of half a ratio: √2 where the coarse one has 2.

The record of a search is a JSON file. It is replaced as a whole after every image, and
an interrupted search continues from it.
"""

import dataclasses
import itertools
import json
import math
import operator
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dilax.crf.dense_crf import DenseCRF
from dilax.data import Chosen, evenly_spread
from dilax.data.pixels import as_uint8
from dilax.evaluation.confusion import Scores, image_scores
from dilax.runtime.files import whole_or_not_at_all

Point = dict[str, Any]
_CPU_THREADS = 4  # each holds the filters and marginals of an image


@dataclasses.dataclass(frozen=True)
class CRFGrid:
    """The values to try for each parameter of a dense CRF, in all combinations.

    A parameter with one value is fixed. The default spans the published values of Chen
    et al., and goes down to weights that change little, for networks that no CRF helps.

    Attributes:
        bilateral_weight: weight of the bilateral kernel.
        bilateral_sigma_xy: its bandwidth in pixels.
        bilateral_sigma_rgb: its bandwidth in colour levels, 0..255.
        spatial_weight: weight of the spatial kernel.
        spatial_sigma: its bandwidth in pixels.

    Raises:
        ValueError: if a parameter has no value, or one that is not positive.

    Example:
        >>> grid = CRFGrid((1.0, 4.0), (50.0,), (3.0, 12.0))
        >>> len(grid.points())
        4
        >>> grid.around(grid.points()[0]).bilateral_weight
        (0.5, 1.0, 2.0)
    """

    bilateral_weight: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    bilateral_sigma_xy: tuple[float, ...] = (30.0, 60.0, 120.0)
    bilateral_sigma_rgb: tuple[float, ...] = (3.0, 6.0, 12.0)
    spatial_weight: tuple[float, ...] = (3.0,)
    spatial_sigma: tuple[float, ...] = (3.0,)

    def __post_init__(self):
        for name, values in dataclasses.asdict(self).items():
            if not values or not all(0 < v < math.inf for v in values):
                raise ValueError(
                    f"grid: {name}={values!r}; must be one or more positive numbers"
                )
            ordered = tuple(sorted({float(v) for v in values}))
            object.__setattr__(self, name, ordered)

    def points(self) -> list[Point]:
        """Return every combination, as arguments of `DenseCRF`.

        Combinations with the same bandwidths follow each other, by rising weights.
        """
        values = dataclasses.asdict(self)
        order = sorted(values, key=lambda name: "sigma" not in name)
        found = itertools.product(*(values[name] for name in order))
        return [dict(zip(order, point, strict=True)) for point in found]

    def around(self, point: Point) -> "CRFGrid":
        """Return the fine grid: `point`, and half a step up and down from it.

        A step is the ratio to the next value, and half a step its square root. Beyond
        the last value, the step before it is repeated.
        """
        fine = {}
        for name, values in dataclasses.asdict(self).items():
            here, ratios = point[name], [b / a for a, b in itertools.pairwise(values)]
            i, last = values.index(here), len(ratios) - 1
            steps = [(max(i - 1, 0), -0.5), (min(i, last), 0.5)] if ratios else []
            # Three digits, for people.
            ends = [float(f"{here * ratios[j] ** power:.3g}") for j, power in steps]
            fine[name] = (here, *ends)
        return CRFGrid(**fine)


@dataclasses.dataclass(frozen=True)
class CRFSearch:
    """The result of a search.

    Attributes:
        best: the CRF with the highest mean IoU of all that were tried.
        mean_iou: its mean IoU on the images of the search.
        without: mean IoU without a CRF, on the same images.
        points: every point in the order tried: its parameters, `"mean_iou"`, and
            `"round"`, which is `"coarse"` or `"fine"`.

    Example:
        >>> found = CRFSearch(DenseCRF(), mean_iou=0.7, without=0.68, points=())
        >>> found.improves
        True
    """

    best: DenseCRF
    mean_iou: float
    without: float
    points: tuple[Point, ...]

    @property
    def improves(self) -> bool:
        """Whether the best CRF is better than none."""
        return self.mean_iou > self.without


_DEFAULT_GRID = CRFGrid()
_mean_iou = operator.itemgetter("mean_iou")


def search_crf(
    predictor: Any,
    source: Sequence[dict],
    path: Path,
    *,
    images: int = 100,
    grid: CRFGrid = _DEFAULT_GRID,
    iterations: int = 10,
    title: str = "search CRF",
) -> CRFSearch:
    """Find the dense CRF with the highest mean IoU, on a grid and a finer one.

    How long it will take is printed first. CRFs with the same bandwidths share their
    filters, and groups of them run in parallel, on all devices.

    Args:
        predictor: a `Predictor` without a CRF. It predicts every image once for each of
            the two grids, which takes little time beside the CRFs.
        source: `{image, label, id}` samples of the validation set.
        path: the record. A finished search is read from it.
        images: how many of the source's images to take, evenly spread.
        grid: the coarse grid.
        iterations: of the mean field.
        title: of the progress bar; "" prints nothing.

    Returns:
        The best CRF, its mean IoU, and that without a CRF.

    Raises:
        ValueError: if a number is not positive, the images have no labelled pixel, or
            the record belongs to another search.

    Example:
        >>> import tempfile
        >>> from dilax.data import DATASETS
        >>> from dilax.inference import Predictor
        >>> from dilax.models import DilatedNet, FrontEnd
        >>> model = DilatedNet(FrontEnd(21, ()))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        >>> predictor = Predictor(model, params, DATASETS["voc"])
        >>> image = np.zeros((8, 8, 3), np.uint8)
        >>> source = [{"image": image, "label": image[..., 0], "id": "black"}]
        >>> grid = CRFGrid((4.0,), (30.0,), (3.0,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "search.json"
        ...     search = search_crf(predictor, source, path, grid=grid, title="")
        >>> len(search.points), search.best.bilateral_sigma_xy
        (1, 30.0)

    Source: Yu & Koltun 2016, §5; Chen et al. 2015, "Semantic Image Segmentation with
    Deep Convolutional Nets and Fully Connected CRFs".
    """
    for name, value in (("images", images), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be 1 or more")
    if not len(source):
        raise ValueError("source: has no images to search on")
    chosen = Chosen(source, evenly_spread(len(source), images))
    record = _Record(Path(path), _identity(predictor, chosen, grid, iterations))
    points = grid.points()
    tried = len(points) + len(grid.around(points[0]).points()) - 1
    total = tried * len(chosen)
    if title and not record.path.exists():
        minutes = total * _seconds(predictor, chosen[0], iterations) / 60
        tqdm.write(
            f"{title}: {tried} CRFs on {len(chosen)} images, about {minutes:.1f} "
            f"minutes on {len(jax.local_devices())} x {jax.devices()[0].device_kind}"
        )
    with tqdm(total=total, desc=title, unit="CRF", disable=not title) as bar:
        found = _measure(record, "coarse", points, predictor, chosen, bar)
        best = max(found, key=_mean_iou)
        middle = {name: best[name] for name in points[0]}
        fine = [point for point in grid.around(middle).points() if point != middle]
        if fine:
            found += _measure(record, "fine", fine, predictor, chosen, bar)
    best, without = max(found, key=_mean_iou), record.content["without"]
    crf = DenseCRF(**{name: best[name] for name in points[0]}, iterations=iterations)
    search = CRFSearch(crf, best["mean_iou"], without, tuple(found))
    record.write(best=best, improves=search.improves)
    if title:
        tqdm.write(
            f"{title}: mean IoU {100 * search.mean_iou:.2f} % with the best CRF, "
            f"{100 * without:.2f} % without one ({path})"
        )
    return search


class _Record:
    """What a search has found so far: `content`, and a file.

    Args:
        path: of the file; what it contains is read.
        search: what identifies the search, JSON.

    Raises:
        ValueError: if the file is the record of another search, or no record.
    """

    def __init__(self, path: Path, search: dict[str, Any]):
        self.path = path
        self.content: dict[str, Any] = {"search": search, "points": []}
        if not path.exists():
            return
        try:
            self.content = json.loads(path.read_text("utf-8"))
            intact = self.content.pop("checksum") == _checksum(self.content)
            then = self.content["search"]
        except (ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            raise ValueError(
                f"{path}: not the record of a search for CRF parameters, or damaged; "
                "move it"
            )
        changed = [
            f"{key}: {then.get(key)} there, {value} here"
            for key, value in json.loads(json.dumps(search)).items()
            if then.get(key) != value
        ]
        if changed:
            raise ValueError(
                f"{path}: the record of another search ({'; '.join(changed)}); move "
                "it, or give another path"
            )

    def write(self, **news: Any) -> None:
        """Add `news` to the content and write the file."""
        self.content |= news
        whole = self.content | {"checksum": _checksum(self.content)}
        with whole_or_not_at_all(self.path) as partial:
            partial.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


def _checksum(content: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"


def _identity(
    predictor: Any, source: Sequence[dict], grid: CRFGrid, iterations: int
) -> dict[str, Any]:
    """Return what distinguishes a search from others."""
    checksum = 0
    for leaf in jax.tree.leaves(predictor.params):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    views = [f"{v.scale:g}{' mirrored' * v.mirrored}" for v in predictor.views]
    return {
        "data": predictor.spec.name,
        "images": len(source),
        "first": source[0]["id"],
        "last": source[len(source) - 1]["id"],
        "network": f"{checksum:08x}, {predictor.mode}, {', '.join(views)}",
        "iterations": iterations,
        "grid": dataclasses.asdict(grid),
    }


def _seconds(predictor: Any, sample: dict, iterations: int) -> float:
    """Return the time of one CRF on an image, without that of compiling it."""
    probabilities = predictor.probabilities(sample["image"])
    crf, image = DenseCRF(iterations=iterations), as_uint8(sample["image"])
    jax.block_until_ready(crf(probabilities, image))
    start = time.perf_counter()
    jax.block_until_ready(crf(probabilities, image))
    return time.perf_counter() - start


def _measure(
    record: _Record,
    name: str,
    points: list[Point],
    predictor: Any,
    source: Sequence[dict],
    bar: tqdm,
) -> list[Point]:
    """Return the points of a round with their mean IoUs, measured or recorded."""
    content, classes = record.content, predictor.spec.classes
    if found := [point for point in content["points"] if point["round"] == name]:
        bar.update(len(points) * len(source))
        return found
    begun = content.get("under_way", {"images": 0, "counts": 0})
    # Confusion matrices without a CRF, then with that of each point.
    counts = np.zeros((1 + len(points), len(classes), len(classes)), np.int64)
    counts += np.array(begun["counts"])
    bar.update(len(points) * begun["images"])
    groups = [
        [DenseCRF(**p, iterations=content["search"]["iterations"]) for p in group]
        for _, group in itertools.groupby(
            points, lambda p: [value for key, value in p.items() if "sigma" in key]
        )
    ]
    # Two threads keep an accelerator busy, and save a sixth on two CPU cores.
    threads = 2 * len(jax.local_devices())
    if jax.default_backend() == "cpu":
        threads = min(os.cpu_count() or 1, _CPU_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        for i in range(begun["images"], len(source)):
            counts += np.stack([*_counts(predictor, source[i], groups, pool, bar)])
            record.write(under_way={"images": i + 1, "counts": counts.tolist()})
    if not counts.any():
        raise ValueError("source: none of the images has a labelled pixel")
    without, *ious = (Scores(classes, count).mean_iou for count in counts)
    found = [
        {**point, "mean_iou": iou, "round": name}
        for point, iou in zip(points, ious, strict=True)
    ]
    del content["under_way"]
    record.write(without=without, points=content["points"] + found)
    return found


def _counts(
    predictor: Any,
    sample: dict,
    groups: list[list[DenseCRF]],
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> Iterator[np.ndarray]:
    """Yield an image's confusion matrix without a CRF, then with each CRF.

    The CRFs of a group share the filters of the image.
    """
    image, spec = sample["image"], predictor.spec
    probabilities = predictor.probabilities(image)

    def count(guess: np.ndarray) -> np.ndarray:
        label, void = sample["label"], spec.ignore_label
        return image_scores(spec.classes, label, guess, void).confusion

    def refine(crfs: list[DenseCRF], device: Any) -> list[np.ndarray]:
        with jax.default_device(device):
            kernels = crfs[0].prepare(as_uint8(image))
            there = jnp.asarray(probabilities)
            return [count(np.asarray(crf(there, kernels).argmax(-1))) for crf in crfs]

    yield count(probabilities.argmax(-1))
    for found in pool.map(refine, groups, itertools.cycle(jax.local_devices())):
        yield from found
        bar.update(len(found))
