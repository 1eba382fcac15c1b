"""The paper's accuracy per class, to stand beside ours on a run's page."""

from collections.abc import Sequence
from typing import NamedTuple

from dilax.report.paper import PAPER, PaperRow, System

# Data set → (table, row, split) of what the paper measured of its own network.
_ROWS = {
    "camvid": ((5, "Dilation8", "test"),),
    "kitti": ((6, "Dilation7", "test"),),
    "cityscapes": (
        (7, "Dilation10, validation set", "val"),
        (7, "Dilation10, test set", "test"),
    ),
}
_CRF = {"": "", "dense": "_crf", "rnn": "_crfrnn"}


class PaperColumn(NamedTuple):
    """One line of the paper's tables.

    Attributes:
        title: what it is of.
        split: of the data set, on which it was measured.
        iou_per_class: 0..1 of each class that the paper gives; of VOC's, all but the
            background, which its mean counts.
        mean_iou: 0..1.
        stage: of the recipe `structured` that it stands beside, if of any.
    """

    title: str
    split: str
    iou_per_class: dict[str, float]
    mean_iou: float
    stage: str = ""


def paper_columns(dataset: str, stages: Sequence[str] = ()) -> list[PaperColumn]:
    """The paper's figures for a data set; none where it has none.

    Args:
        dataset: such as `"voc"`.
        stages: of VOC's nine lines, the ones that stand for these stages; where none
            does, those of the networks without a CRF.

    Example:
        >>> [column] = paper_columns("camvid")
        >>> column.mean_iou, column.iou_per_class["Pole"]
        (0.653, 0.234)
    """
    if dataset != "voc":
        return [
            _column(number, row, split)
            for number, name, split in _ROWS.get(dataset, ())
            for row in PAPER[number].rows
            if row.name == name
        ]
    rows = {_stage(row.system): row for row in PAPER[3].rows if row.system}
    names = [name for name in rows if name in stages]
    if len(names) < 2:  # another recipe, whose stages have other names
        names = ["front_end", "basic", "large"]
    return [_column(3, rows[name], "val")._replace(stage=name) for name in names]


def _stage(system: System) -> str:
    """Its name in the recipe of Table 3."""
    return (system.context or "front_end") + _CRF[system.crf]


def _column(number: int, row: PaperRow, split: str) -> PaperColumn:
    each = [round(figure / 100, 4) for figure in row.iou]
    iou = dict(zip(PAPER[number].columns, each, strict=True))
    return PaperColumn(
        f"{row.name}, Table {number}", split, iou, round(row.mean / 100, 4)
    )
