"""The parameters of a dense CRF by grid search on a validation set (paper §5).

Coarse, then fine around the best (Chen et al. 2015, §5).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dilax.crf import DenseCRF
from dilax.evaluation.crf_grid import CRFGrid
from dilax.inference import Predictor


@dataclasses.dataclass(frozen=True)
class CRFSearch:
    """What a search found.

    Attributes:
        best: the CRF of the highest mean IoU, of all that were tried.
        mean_iou: with it, on the images of the search.
        without: without a CRF, on the same images.
        points: every point, in the order tried: its parameters, `"mean_iou"` and
            `"round"`, `"coarse"` or `"fine"`.
    """

    best: DenseCRF
    mean_iou: float
    without: float
    points: tuple[dict[str, Any], ...]

    @property
    def improves(self) -> bool:
        """Whether the best CRF is better than none."""
        return self.mean_iou > self.without


def search_crf(
    predictor: Predictor,
    source: Sequence[dict],
    path: Path,
    *,
    images: int = 100,
    grid: CRFGrid = CRFGrid(),  # noqa: B008
    iterations: int = 10,
    title: str = "search CRF",
) -> CRFSearch:
    """Measures mean IoU with every CRF of a grid, then of a finer one around the best.

    Args:
        predictor: network, parameters and data set, without a CRF.
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
        ValueError: if a number is not positive, the source holds no labelled pixel, or
            the record is that of another search.
    """
    raise NotImplementedError
