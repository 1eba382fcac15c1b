"""The paper's IoU per class, to stand beside ours: Tables 3, 5, 6 and 7, in per cent.

VOC's columns leave out the background, of which the paper gives no figure; its mean
counts it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dilax.datasets import DATASETS

# Table 3, on VOC's validation images: a line a stage of the recipe `structured`.
_TABLE3 = {
    "front_end": "86.3 38.2 76.8 66.8 63.2 87.3 78.7 82 33.7 76.7 53.5 73.7 76 76.6 83 "
    "51.9 77.8 44 79.9 66.3 69.8",
    "basic": "86.4 37.6 78.5 66.3 64.1 89.9 79.9 84.9 36.1 79.4 55.8 77.6 81.6 79 83.1 "
    "51.2 81.3 43.7 82.3 65.7 71.3",
    "large": "87.3 39.2 80.3 65.6 66.4 90.2 82.6 85.8 34.8 81.9 51.7 79 84.1 80.9 83.2 "
    "51.2 83.2 44.7 83.4 65.6 72.1",
    "front_end_crf": "89.2 38.8 80 69.8 63.2 88.8 80 85.2 33.8 80.6 55.5 77.1 80.8 "
    "77.3 84.3 53.1 80.4 45 80.7 67.9 71.6",
    "basic_crf": "89.1 38.7 81.4 67.4 65 91 81 86.7 37.5 81 57 79.6 83.6 79.9 84.6 "
    "52.7 83.3 44.3 82.6 67.2 72.7",
    "large_crf": "89.6 39.9 82.7 66.7 67.5 91.1 83.3 87.4 36 83.3 52.5 80.7 85.7 81.8 "
    "84.4 52.6 84.4 45.3 83.7 66.7 73.3",
    "front_end_crfrnn": "88.8 38.1 80.8 69.1 65.6 89.9 79.6 85.7 36.3 83.6 57.3 77.9 "
    "83.2 77 84.6 54.7 82.1 46.9 80.9 66.7 72.5",
    "basic_crfrnn": "89 38.4 82.3 67.9 65.2 91.5 80.4 87.2 38.4 82.1 57.7 79.9 85 79.6 "
    "84.5 53.5 84 45 82.8 66.2 73.1",
    "large_crfrnn": "89.3 39.2 83.6 67.2 69 92.1 83.1 88 38.4 84.8 55.3 81.2 86.7 81.3 "
    "84.3 53.6 84.4 45.8 83.8 67 73.9",
}
# (data set, split) → (title, figures).
_OTHERS = {
    ("camvid", "test"): (
        "Dilation8, Table 5",
        "82.6 76.2 89.9 84.0 46.9 92.2 56.3 35.8 23.4 75.3 55.5 65.3",
    ),
    ("kitti", "test"): (
        "Dilation7, Table 6",
        "84.6 81.1 83 81.4 41.8 92.9 4.6 47.1 35.2 73.1 26.4 59.2",
    ),
    ("cityscapes", "val"): (
        "Dilation10, Table 7, val",
        "97.2 79.5 90.4 44.9 52.4 55.1 56.7 69 91 58.7 92.6 75.7 50 92.2 56.2 72.6 "
        "54.3 46.2 70.1 68.7",
    ),
    ("cityscapes", "test"): (
        "Dilation10, Table 7, test",
        "97.6 79.2 89.9 37.3 47.6 53.2 58.6 65.2 91.8 69.4 93.7 78.9 55 93.3 45.5 53.4 "
        "47.7 52.2 66 67.1",
    ),
}


class PaperRow(NamedTuple):
    """One line of the paper's tables.

    Attributes:
        title: what it is of.
        split: of the data set, on which it was measured.
        iou_per_class: 0..1 of each class that the paper gives.
        mean_iou: 0..1.
        stage: of the recipe `structured` that it stands beside, if of any.
    """

    title: str
    split: str
    iou_per_class: dict[str, float]
    mean_iou: float
    stage: str = ""


def paper_rows(dataset: str, stages: Sequence[str] = ()) -> list[PaperRow]:
    """The paper's figures for a data set; none where it has none.

    Args:
        dataset: such as `"voc"`.
        stages: of VOC's nine lines, the ones that stand for these stages; where none
            does, those of the networks without a CRF.

    Example:
        >>> [row] = paper_rows("camvid")
        >>> row.mean_iou, row.iou_per_class["Pole"]
        (0.653, 0.234)
    """
    if dataset == "voc":
        names = [name for name in _TABLE3 if name in stages]
        if len(names) < 2:  # another recipe, whose stages have other names
            names = ["front_end", "basic", "large"]
        rows = [_row("voc", _title(name), "val", _TABLE3[name]) for name in names]
        return [r._replace(stage=n) for n, r in zip(names, rows, strict=True)]
    return [
        _row(name, title, split, figures)
        for (name, split), (title, figures) in _OTHERS.items()
        if name == dataset
    ]


def _title(name: str) -> str:
    words = {"front": "Front", "end": "end", "basic": "+ Basic", "large": "+ Large"}
    words |= {"crf": "+ CRF", "crfrnn": "+ CRF-RNN"}
    return " ".join(words[word] for word in name.split("_")) + ", Table 3"


def _row(dataset: str, title: str, split: str, figures: str) -> PaperRow:
    *each, mean = (round(float(figure) / 100, 4) for figure in figures.split())
    classes = DATASETS[dataset].classes[-len(each) :]
    return PaperRow(title, split, dict(zip(classes, each, strict=True)), mean)
