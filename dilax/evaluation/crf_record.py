"""The written record of a search for CRF parameters: JSON, from which it goes on.

The file is whole at any time. The round that is under way keeps its confusion matrices
there; of a finished one stay the figures.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from dilax.datasets.writing import whole_or_not_at_all
from dilax.evaluation.confusion import Scores
from dilax.evaluation.crf_grid import Point


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
