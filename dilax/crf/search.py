"""The parameters of a dense CRF by grid search on a validation set (paper §5).

Coarse, then fine around the best (Chen et al. 2015, §5).

Which parameters of a dense CRF a search tries, coarse and fine (Chen et al. 2015).

All are scales, so values stand in ratios to each other: the coarse grid's default steps
are factors of 2, and the fine grid's half of that, factors of √2.

The written record of a search for CRF parameters: JSON, from which it goes on.

The file is whole at any time. The round that is under way keeps its confusion matrices
there; of a finished one stay the figures.
"""

import dataclasses
import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from dilax.crf.dense_crf import DenseCRF
from dilax.data import evenly_spread
from dilax.data.pixels import as_uint8
from dilax.evaluation.confusion import Scores, empty_confusion
from dilax.evaluation.evaluate import count_image
from dilax.runtime.files import whole_or_not_at_all

Point = dict[str, float]


@dataclasses.dataclass(frozen=True)
class CRFGrid:
    """The values of each parameter; all their combinations are tried.

    A parameter of one value is fixed. The default's span what Chen et al. published,
    with weights below theirs, which change little, for networks that no CRF helps.

    Attributes:
        bilateral_weight: of the kernel that sees position and colour.
        bilateral_sigma_xy: its bandwidth in pixels.
        bilateral_sigma_rgb: its bandwidth in units of colour, 0..255.
        spatial_weight: of the kernel that sees position alone.
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
                    f"grid: {name}={values!r}; must be positive numbers, one at least"
                )
            ordered = tuple(sorted({float(v) for v in values}))
            object.__setattr__(self, name, ordered)

    def points(self) -> list[Point]:
        """Every combination, as arguments of `DenseCRF`.

        Those of equal bandwidths stand together, by rising weights.
        """
        values = dataclasses.asdict(self)
        order = sorted(values, key=lambda name: "sigma" not in name)
        found = itertools.product(*(values[name] for name in order))
        return [dict(zip(order, point, strict=True)) for point in found]

    def around(self, point: Point) -> "CRFGrid":
        """The fine grid: a point of this one, and half a step up and down from it.

        A step is the ratio to the next value, half a step its square root; beyond the
        last value, the step before is taken again.
        """
        values = dataclasses.asdict(self)
        return CRFGrid(**{n: _around(v, point[n]) for n, v in values.items()})


def _around(values: tuple[float, ...], value: float) -> tuple[float, ...]:
    if len(values) == 1:
        return values
    ratios = [b / a for a, b in itertools.pairwise(values)]
    i = values.index(value)
    down, up = ratios[max(i - 1, 0)], ratios[min(i, len(ratios) - 1)]
    return _rounded(value / math.sqrt(down)), value, _rounded(value * math.sqrt(up))


def _rounded(value: float) -> float:
    """To three digits, for people."""
    return float(f"{value:.3g}")


@dataclasses.dataclass
class Round:
    """One grid's figures, as far as they are known.

    Attributes:
        name: `"coarse"` or `"fine"`.
        points: of the grid.
        counts: (1 + points, k, k) pixels of the first `done` images: without a CRF,
            then with each.
        done: how many images are counted.
    """

    name: str
    points: list[Point]
    counts: np.ndarray
    done: int = 0

    @classmethod
    def empty(cls, name: str, points: list[Point], num_classes: int) -> "Round":
        """Before the first image."""
        counts = np.zeros((1 + len(points), num_classes, num_classes), np.int64)
        return cls(name, points, counts)

    @property
    def mean_ious(self) -> list[float]:
        """Without a CRF, then of each point."""
        names = tuple(map(str, range(self.counts.shape[1])))
        return [Scores(names, counts).mean_iou for counts in self.counts]


class SearchRecord:
    """A file that says what was searched, what is found, and what is under way.

    Args:
        path: of the file; what is there already is read.
        search: what makes a search this one, JSON.

    Raises:
        ValueError: if the file is the record of another search, or none at all.
    """

    def __init__(self, path: Path, search: dict[str, Any]):
        self.path = Path(path)
        self.content: dict[str, Any] = {"search": search, "rounds": {}}
        if self.path.exists():
            self.content = _read(self.path)
            _check_same(self.path, self.content["search"], search)

    def finished(self, name: str) -> dict[str, Any]:
        """The figures of a finished round: `without`, and `points` with theirs."""
        return self.content["rounds"].get(name, {})

    def under_way(self, fresh: Round) -> Round:
        """The round as far as it came; `fresh` if it has not begun."""
        kept = self.content.get("under_way")
        if not kept or kept["name"] != fresh.name:
            return fresh
        counts = np.array([row.split() for row in kept["counts"]], np.int64)
        return dataclasses.replace(
            fresh, counts=counts.reshape(fresh.counts.shape), done=kept["images"]
        )

    def keep(self, round: Round) -> None:
        """Writes how far a round is."""
        self.content["under_way"] = {
            "name": round.name,
            "images": round.done,
            "counts": [" ".join(map(str, c.ravel())) for c in round.counts],
        }
        self._write()

    def finish(self, round: Round) -> None:
        """Writes a round's figures."""
        without, *found = round.mean_ious
        points = [
            {**point, "mean_iou": iou}
            for point, iou in zip(round.points, found, strict=True)
        ]
        self.content.pop("under_way", None)
        self.content["rounds"][round.name] = {"without": without, "points": points}
        self._write()

    def conclude(self, conclusion: dict[str, Any]) -> None:
        """Writes what came of it all."""
        self.content |= conclusion
        self._write()

    def _write(self) -> None:
        with whole_or_not_at_all(self.path) as partial:
            text = json.dumps(self.content, indent=1) + "\n"
            partial.write_text(text, "utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if {"search", "rounds"} <= content.keys():
            return content
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path}: not the record of a search for CRF parameters; move it")


def _check_same(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to mix two searches, naming what differs."""
    now = json.loads(json.dumps(now))
    changed = [key for key in now if then.get(key) != now[key]]
    if changed:
        what = "; ".join(f"{k}: {then.get(k)} there, {now[k]} here" for k in changed)
        raise ValueError(
            f"{path}: the record of another search ({what}); move it, or give another "
            "path"
        )


_DEFAULT_GRID = CRFGrid()
_CPU_THREADS = 4  # of the memory of an image's filters and marginals each


@dataclasses.dataclass(frozen=True)
class CRFSearch:
    """What a search found.

    Attributes:
        best: the CRF of the highest mean IoU, of all that were tried.
        mean_iou: with it, on the images of the search.
        without: without a CRF, on the same images.
        points: every point, in the order tried: its parameters, `"mean_iou"` and
            `"round"`, `"coarse"` or `"fine"`.

    Example:
        >>> found = CRFSearch(DenseCRF(), mean_iou=0.7, without=0.68, points=())
        >>> found.improves
        True
    """

    best: DenseCRF
    mean_iou: float
    without: float
    points: tuple[dict[str, Any], ...]

    @property
    def improves(self) -> bool:
        """Whether the best CRF is better than none."""
        return self.mean_iou > self.without

    def table(self, count: int = 10, style: str = "github") -> str:
        """The best points, and no CRF, by falling mean IoU, in per cent.

        Args:
            count: of points.
            style: a format of `tabulate`.
        """
        names = [n for n in self.points[0] if n not in ("mean_iou", "round")]
        best = sorted(self.points, key=lambda p: -p["mean_iou"])[:count]
        rows = [([f"{p[n]:g}" for n in names], p["mean_iou"]) for p in best]
        rows.append((["no CRF", *[""] * (len(names) - 1)], self.without))
        rows.sort(key=lambda row: -row[1])
        return tabulate(
            [[*cells, f"{100 * iou:.2f}"] for cells, iou in rows],
            headers=[*(n.replace("_", " ") for n in names), "mean IoU, %"],
            tablefmt=style,
            disable_numparse=True,
            colalign=["right"] * (len(names) + 1),
        )


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
    """Measures mean IoU with every CRF of a grid, then of a finer one around the best.

    Every image is predicted once for each of the two grids, and none is kept: that is
    little beside the time that the CRFs take. Filters are built once for all weights;
    those of several bandwidths run side by side, on all devices.

    Args:
        predictor: a `Predictor` without a CRF.
        source: `{image, label, id}` samples of the validation set.
        path: the record, JSON; a search that was interrupted goes on from it, and one
            that was finished is read from it.
        images: how many of the source's images to take, evenly spread.
        grid: the coarse grid.
        iterations: of the mean field.
        title: of the progress bar; "" shows none.

    Returns:
        The best CRF, its mean IoU, and that without a CRF; also in the record.

    Raises:
        ValueError: if a number is not positive, the images hold no labelled pixel, or
            the record is that of another search.

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
        no CRF of the grid is better than none: mean IoU ...
        >>> len(search.points), search.best.bilateral_sigma_xy
        (1, 30.0)

    Source: Yu & Koltun 2016, §5; Chen et al. 2015, "Semantic Image Segmentation with
    Deep Convolutional Nets and Fully Connected CRFs".
    """
    _check_arguments(source, images, iterations)
    indices = evenly_spread(len(source), images)
    identity = _identity(predictor, source, indices, grid, iterations)
    record = SearchRecord(path, identity)
    tried = len(grid.points()) + len(grid.around(grid.points()[0]).points()) - 1
    total = len(indices) * tried
    with tqdm(total=total, desc=title, unit="CRF", disable=not title) as bar:
        search = _Search(predictor, source, indices, iterations, record, bar)
        points = search.figures("coarse", grid.points())
        best = _parameters(_best(points))
        fine = [p for p in grid.around(best).points() if p != best]
        points += search.figures("fine", fine) if fine else []
    return _concluded(record, points, iterations)


@dataclasses.dataclass
class _Search:
    """What the two rounds have in common."""

    predictor: Any
    source: Sequence[dict]
    indices: list[int]
    iterations: int
    record: SearchRecord
    bar: tqdm

    def figures(self, name: str, points: list[Point]) -> list[dict[str, Any]]:
        """The points of a round with their mean IoUs, measured or from the record."""
        if self.record.finished(name):
            self.bar.update(len(points) * len(self.indices))
        else:
            self.record.finish(self._measured(name, points))
        found = self.record.finished(name)["points"]
        return [{**point, "round": name} for point in found]

    def _measured(self, name: str, points: list[Point]) -> Round:
        fresh = Round.empty(name, points, self.predictor.spec.num_classes)
        round = self.record.under_way(fresh)
        self.bar.update(len(points) * round.done)
        groups = list(_of_equal_bandwidths(points, self.iterations))
        pool = ThreadPoolExecutor(_workers())
        try:
            for index in self.indices[round.done :]:
                counts = self._counts(pool, groups, self.source[index])
                round.counts += np.concatenate(counts)
                round.done += 1
                self.record.keep(round)
        finally:
            pool.shutdown(cancel_futures=True)
        if not round.counts.any():
            raise ValueError("source: none of the images has a labelled pixel")
        return round

    def _counts(
        self, pool: ThreadPoolExecutor, groups: list, sample: dict
    ) -> list[np.ndarray]:
        """(1 + points, k, k) of an image, in parts."""
        probabilities = self.predictor.probabilities(sample["image"])
        devices = itertools.cycle(jax.local_devices())
        running = [
            pool.submit(self._group, crfs, probabilities, sample, device)
            for crfs, device in zip(groups, devices, strict=False)
        ]
        counts = [self._count(sample["label"], probabilities.argmax(-1))[None]]
        for part in running:
            counts.append(part.result())
            self.bar.update(len(counts[-1]))
        return counts

    def _group(
        self, crfs: list[DenseCRF], probabilities: np.ndarray, sample: dict, device: Any
    ) -> np.ndarray:
        """(points, k, k) of CRFs that share their filters."""
        with jax.default_device(device):
            kernels = crfs[0].prepare(as_uint8(sample["image"]))
            there = jnp.asarray(probabilities)
            counts = []
            for crf in crfs:
                guess = jnp.argmax(crf(there, kernels), -1)
                counts.append(self._count(sample["label"], np.asarray(guess)))
        return np.stack(counts)

    def _count(self, label: np.ndarray, guess: np.ndarray) -> np.ndarray:
        """(k, k) of one image."""
        spec = self.predictor.spec
        empty = empty_confusion(spec.num_classes)
        words = count_image(empty, label, guess, spec.ignore_label)
        return np.asarray(words)[..., 0].astype(np.int64)


def _of_equal_bandwidths(
    points: list[Point], iterations: int
) -> Iterator[list[DenseCRF]]:
    """The CRFs of the points, those that share their filters together."""

    def bandwidths(point: Point) -> list[float]:
        return [value for name, value in point.items() if "sigma" in name]

    for _, group in itertools.groupby(points, bandwidths):
        yield [_crf(point, iterations) for point in group]


def _crf(point: dict[str, Any], iterations: int) -> DenseCRF:
    return DenseCRF(**point, iterations=iterations)


def _workers() -> int:
    """Threads: two keep an accelerator busy; on two CPU cores, two save a sixth."""
    if jax.default_backend() == "cpu":
        return min(os.cpu_count() or 1, _CPU_THREADS)
    return 2 * len(jax.local_devices())


def _check_arguments(source: Sequence[dict], images: int, iterations: int) -> None:
    for name, value in (("images", images), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be 1 or more")
    if not len(source):
        raise ValueError("source: holds no images to search on")


def _identity(
    predictor: Any,
    source: Sequence[dict],
    indices: list[int],
    grid: CRFGrid,
    iterations: int,
) -> dict[str, Any]:
    """What makes a search this one: its record is not taken for another's."""
    checksum = 0
    for leaf in jax.tree.leaves(predictor.params):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    views = [f"{v.scale:g}{' mirrored' * v.mirrored}" for v in predictor.views]
    return {
        "data": predictor.spec.name,
        "images": len(indices),
        "first": source[indices[0]]["id"],
        "last": source[indices[-1]]["id"],
        "network": f"{checksum:08x}, {predictor.mode}, {', '.join(views)}",
        "iterations": iterations,
        "grid": dataclasses.asdict(grid),
    }


def _best(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the highest mean IoU; of equal ones, the first."""
    return max(points, key=lambda p: p["mean_iou"])


def _parameters(point: dict[str, Any]) -> Point:
    return {n: v for n, v in point.items() if n not in ("mean_iou", "round")}


def _concluded(
    record: SearchRecord, points: list[dict[str, Any]], iterations: int
) -> CRFSearch:
    """Writes what came of it, and says so if it is nothing."""
    best, without = _best(points), record.content["rounds"]["coarse"]["without"]
    crf = _crf(_parameters(best), iterations)
    found = CRFSearch(crf, best["mean_iou"], without, tuple(points))
    record.conclude({"best": best, "without": without, "improves": found.improves})
    if not found.improves:
        tqdm.write(
            f"no CRF of the grid is better than none: mean IoU {100 * without:.2f} "
            f"without, {100 * found.mean_iou:.2f} with the best ({record.path})"
        )
    return found
