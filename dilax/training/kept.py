"""Predictions that a stage's evaluation leaves behind, to look at: palette PNGs."""

import json
from pathlib import Path

import numpy as np

from dilax.evaluation import image_scores
from dilax.inference import palette_image, save_image
from dilax.ops.hosts import gathered
from dilax.training.config import StageConfig
from dilax.training.metrics import write_text
from dilax.training.run import Run, kept_indices


def predictions_folder(workdir: Path, stage: str) -> Path:
    """Where a stage's kept predictions lie: `0017.png` is of evaluation image 17.

    Example:
        >>> predictions_folder(Path("runs/voc"), "joint").as_posix()
        'runs/voc/predictions/joint'
    """
    return workdir / "predictions" / stage


class KeptPredictions:
    """Takes an evaluation's predictions, and keeps some as files, with their scores.

    The same images of every stage are kept, so that stages compare. Of several
    processes each writes its own share; the scores are written by the first one.

    Args:
        run: the run.
        stage: that is evaluated.
    """

    def __init__(self, run: Run, stage: StageConfig):
        self._run = run
        self._folder = predictions_folder(run.workdir, stage.name)
        self._chosen = kept_indices(run.config, len(run.val))
        self._scores = np.full(len(run.val), np.nan)

    def add(self, index: int, sample: dict, prediction: np.ndarray) -> None:
        """Keeps the prediction of image `index`, if it is among the chosen."""
        if index not in self._chosen:
            return
        spec = self._run.spec
        picture = palette_image(prediction, spec)
        save_image(picture, self._folder / f"{index:04d}.png")
        found = image_scores(
            spec.classes, sample["label"], prediction, spec.ignore_label
        )
        self._scores[index] = found.mean_iou

    def finish(self) -> None:
        """Writes `scores.json`: the mean IoU of each kept image, null of none."""
        every = gathered(self._scores)
        known = np.where(np.isnan(every), 0, every).sum(0)
        none = np.isnan(every).all(0)
        scores = {
            str(i): None if none[i] else round(float(known[i]), 6)
            for i in sorted(self._chosen)
        }
        write_text(self._folder / "scores.json", json.dumps(scores) + "\n")
