"""The accuracy that Yu & Koltun (2016) report: all rows of their Tables 2 to 8.

Example:
    >>> [(row.name, row.mean) for row in PAPER[5].rows if not row.system]
    [('ALE', 53.6), ('SuperParsing', 42.0), ('Liu and He', 47.2)]
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from dilax.models import Named

SERVER = "labels are on the server: --mode=submit --split=test"


class System(NamedTuple):
    """A network with its context module and CRF; rows and stages are matched by it.

    Attributes:
        network: the front end or a baseline network.
        context: name of the context module; `"other"` if it is not in the paper.
        crf: kind of CRF.
    """

    network: Literal["front_end", Named] = "front_end"
    context: Literal["", "basic", "large", "kitti", "cityscapes", "other"] = ""
    crf: Literal["", "dense", "rnn"] = ""


class PaperRow(NamedTuple):
    """A row of a table.

    Attributes:
        name: name in the paper.
        iou: IoU per column, in percent.
        mean: mean IoU in percent; on VOC, it includes the background.
        system: the system of this row in dilax; None if there is none.
        note: how ours differs from the paper's, or what the row requires.
    """

    name: str
    iou: tuple[float, ...]
    mean: float
    system: System | None = None
    note: str = ""


class PaperTable(NamedTuple):
    """A table of the paper.

    Attributes:
        images: the images on which the paper measured.
        columns: names of classes or categories, as in `dilax.data.DATASETS`.
        rows: rows from top to bottom.
        categories: whether the columns are categories of classes.
    """

    images: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    categories: bool = False


def _row(
    name: str, iou: str, mean: float, system: System | None = None, note: str = ""
) -> PaperRow:
    """Parse a row whose numbers are written as in the paper."""
    note = note or ("" if system else "quoted")
    return PaperRow(name, tuple(map(float, iou.split())), mean, system, note)


VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
STREETS = (
    *("Building", "Tree", "Sky", "Car", "Sign", "Road", "Pedestrian", "Fence", "Pole"),
    *("Sidewalk", "Bicyclist"),
)
CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
    *("traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "train", "motorcycle", "bicycle"),
)
CATEGORIES = ("flat", "nature", "object", "sky", "construction", "human", "vehicle")

_COCO = "the paper also trains on COCO"
_DILATION10 = System(context="cityscapes")

TABLE_2 = (
    _row(
        "FCN-8s",
        "76.8 34.2 68.9 49.4 60.3 75.3 74.7 77.6 21.4 62.5 "
        "46.8 71.8 63.9 76.5 73.9 45.2 72.4 37.4 70.9 55.1",
        62.2,
        System("fcn8s"),
    ),
    _row(
        "DeepLab",
        "72 31 71.2 53.7 60.5 77 71.9 73.1 25.2 62.6 "
        "49.1 68.7 63.3 73.9 73.6 50.8 72.3 42.1 67.9 52.6",
        62.1,
        System("deeplab"),
    ),
    _row(
        "DeepLab-Msc",
        "74.9 34.1 72.6 52.9 61.0 77.9 73.0 73.7 26.4 62.2 "
        "49.3 68.4 64.1 74.0 75.0 51.7 72.7 42.5 67.2 55.7",
        62.9,
        System("deeplab_msc"),
    ),
    _row(
        "Our front end",
        "82.2 37.4 72.7 57.1 62.7 82.8 77.8 78.9 28 70 "
        "51.6 73.1 72.8 81.5 79.1 56.6 77.1 49.9 75.3 60.9",
        67.6,
        System(),
    ),
)

TABLE_3 = (
    _row(
        "Front end",
        "86.3 38.2 76.8 66.8 63.2 87.3 78.7 82 33.7 76.7 "
        "53.5 73.7 76 76.6 83 51.9 77.8 44 79.9 66.3",
        69.8,
        System(),
    ),
    _row(
        "Front + Basic",
        "86.4 37.6 78.5 66.3 64.1 89.9 79.9 84.9 36.1 79.4 "
        "55.8 77.6 81.6 79 83.1 51.2 81.3 43.7 82.3 65.7",
        71.3,
        System(context="basic"),
    ),
    _row(
        "Front + Large",
        "87.3 39.2 80.3 65.6 66.4 90.2 82.6 85.8 34.8 81.9 "
        "51.7 79 84.1 80.9 83.2 51.2 83.2 44.7 83.4 65.6",
        72.1,
        System(context="large"),
    ),
    _row(
        "Front end + CRF",
        "89.2 38.8 80 69.8 63.2 88.8 80 85.2 33.8 80.6 "
        "55.5 77.1 80.8 77.3 84.3 53.1 80.4 45 80.7 67.9",
        71.6,
        System(crf="dense"),
    ),
    _row(
        "Front + Basic + CRF",
        "89.1 38.7 81.4 67.4 65 91 81 86.7 37.5 81 "
        "57 79.6 83.6 79.9 84.6 52.7 83.3 44.3 82.6 67.2",
        72.7,
        System(context="basic", crf="dense"),
    ),
    _row(
        "Front + Large + CRF",
        "89.6 39.9 82.7 66.7 67.5 91.1 83.3 87.4 36 83.3 "
        "52.5 80.7 85.7 81.8 84.4 52.6 84.4 45.3 83.7 66.7",
        73.3,
        System(context="large", crf="dense"),
    ),
    _row(
        "Front end + RNN",
        "88.8 38.1 80.8 69.1 65.6 89.9 79.6 85.7 36.3 83.6 "
        "57.3 77.9 83.2 77 84.6 54.7 82.1 46.9 80.9 66.7",
        72.5,
        System(crf="rnn"),
    ),
    _row(
        "Front + Basic + RNN",
        "89 38.4 82.3 67.9 65.2 91.5 80.4 87.2 38.4 82.1 "
        "57.7 79.9 85 79.6 84.5 53.5 84 45 82.8 66.2",
        73.1,
        System(context="basic", crf="rnn"),
    ),
    _row(
        "Front + Large + RNN",
        "89.3 39.2 83.6 67.2 69 92.1 83.1 88 38.4 84.8 "
        "55.3 81.2 86.7 81.3 84.3 53.6 84.4 45.8 83.8 67",
        73.9,
        System(context="large", crf="rnn"),
    ),
)

TABLE_4 = (
    _row(
        "DeepLab++",
        "89.1 38.3 88.1 63.3 69.7 87.1 83.1 85 29.3 76.5 "
        "56.5 79.8 77.9 85.8 82.4 57.4 84.3 54.9 80.5 64.1",
        72.7,
        System("deeplab_largefov", crf="dense"),
        _COCO,
    ),
    _row(
        "DeepLab-MSc++",
        "89.2 46.7 88.5 63.5 68.4 87.0 81.2 86.3 32.6 80.7 "
        "62.4 81.0 81.3 84.3 82.1 56.2 84.6 58.3 76.2 67.2",
        73.9,
        System("deeplab_msc_largefov", crf="dense"),
        _COCO,
    ),
    _row(
        "CRF-RNN",
        "90.4 55.3 88.7 68.4 69.8 88.3 82.4 85.1 32.6 78.5 "
        "64.4 79.6 81.9 86.4 81.8 58.6 82.4 53.5 77.4 70.1",
        74.7,
        System("fcn8s", crf="rnn"),
        _COCO,
    ),
    _row(
        "Front end",
        "86.6 37.3 84.9 62.4 67.3 86.2 81.2 82.1 32.6 77.4 "
        "58.3 75.9 81 83.6 82.3 54.2 81.5 50.1 77.5 63",
        71.3,
        System(),
        _COCO,
    ),
    _row(
        "Context",
        "89.1 39.1 86.8 62.6 68.9 88.2 82.6 87.7 33.8 81.2 "
        "59.2 81.8 87.2 83.3 83.6 53.6 84.9 53.7 80.5 62.9",
        73.5,
        System(context="large"),
        _COCO,
    ),
    _row(
        "Context + CRF",
        "91.3 39.9 88.9 64.3 69.8 88.9 82.6 89.7 34.7 82.7 "
        "59.5 83 88.4 84.2 85 55.3 86.7 54.4 81.9 63.6",
        74.7,
        System(context="large", crf="dense"),
        _COCO,
    ),
    _row(
        "Context + CRF-RNN",
        "91.7 39.6 87.8 63.1 71.8 89.7 82.9 89.8 37.2 84 "
        "63 83.3 89 83.8 85.1 56.8 87.6 56 80.2 64.7",
        75.3,
        System(context="large", crf="rnn"),
        _COCO,
    ),
)

TABLE_5 = (
    _row("ALE", "73.4 70.2 91.1 64.2 24.4 91.1 29.1 31.0 13.6 72.4 28.6", 53.6),
    _row("SuperParsing", "70.4 54.8 83.5 43.3 25.4 83.4 11.6 18.3 5.2 57.4 8.9", 42.0),
    _row("Liu and He", "66.8 66.6 90.1 62.9 21.4 85.8 28.0 17.8 8.3 63.5 8.5", 47.2),
    _row(
        "SegNet",
        "68.7 52.0 87.0 58.5 13.4 86.2 25.3 17.9 16.0 60.5 24.8",
        46.4,
        System("segnet"),
    ),
    _row(
        "DeepLab-LFOV",
        "81.5 74.6 89.0 82.2 42.3 92.2 48.4 27.2 14.3 75.4 50.1",
        61.6,
        System("deeplab_largefov"),
    ),
    _row(
        "Dilation8",
        "82.6 76.2 89.9 84.0 46.9 92.2 56.3 35.8 23.4 75.3 55.5",
        65.3,
        System(context="basic"),
    ),
)

TABLE_6 = (
    _row("Ros et al.", "71.8 69.5 84.4 51.2 4.2 72.4 1.7 32.4 2.6 45.3 3.2", 39.9),
    _row(
        "DeepLab-LFOV",
        "82.8 78.6 82.4 78.0 28.8 91.3 0.0 39.4 29.9 72.4 12.9",
        54.2,
        System("deeplab_largefov"),
    ),
    _row(
        "Dilation7",
        "84.6 81.1 83 81.4 41.8 92.9 4.6 47.1 35.2 73.1 26.4",
        59.2,
        System(context="kitti"),
    ),
)

TABLE_7 = (
    _row(
        "Dilation10, validation set",
        "97.2 79.5 90.4 44.9 52.4 55.1 56.7 69 91 58.7 "
        "92.6 75.7 50 92.2 56.2 72.6 54.3 46.2 70.1",
        68.7,
        _DILATION10,
    ),
    _row(
        "Dilation10, test set",
        "97.6 79.2 89.9 37.3 47.6 53.2 58.6 65.2 91.8 69.4 "
        "93.7 78.9 55 93.3 45.5 53.4 47.7 52.2 66",
        67.1,
        note=SERVER,
    ),
)

TABLE_8 = (
    _row(
        "Dilation10, validation set",
        "98.2 91.4 62.3 92.6 90.7 77.6 91",
        86.3,
        _DILATION10,
    ),
    _row(
        "Dilation10, test set",
        "98.3 91.4 60.5 93.7 90.2 79.8 91.8",
        86.5,
        note=SERVER,
    ),
)

PAPER = {
    2: PaperTable("the test set of Pascal VOC 2012", VOC, TABLE_2),
    3: PaperTable("the validation set of Pascal VOC 2012", VOC, TABLE_3),
    4: PaperTable("the test set of Pascal VOC 2012", VOC, TABLE_4),
    5: PaperTable("the test set of CamVid", STREETS, TABLE_5),
    6: PaperTable("the test set of KITTI", STREETS, TABLE_6),
    7: PaperTable("Cityscapes", CITYSCAPES, TABLE_7),
    8: PaperTable("Cityscapes", CATEGORIES, TABLE_8, categories=True),
}


# Data set → (table, row, split) of the results of the paper's own networks.
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
    """A row of the paper's tables, shown as a column on the page of a run.

    Attributes:
        title: row and table.
        split: split of the data set on which it was measured.
        iou_per_class: class → IoU, 0..1; for VOC without the background, although the
            mean includes it.
        mean_iou: mean IoU, 0..1.
        stage: the corresponding stage of the recipe `structured`, or "".
    """

    title: str
    split: str
    iou_per_class: dict[str, float]
    mean_iou: float
    stage: str = ""


def paper_columns(dataset: str, stages: Sequence[str] = ()) -> list[PaperColumn]:
    """The paper's results on a data set; empty if there are none.

    Args:
        dataset: name of the data set, e.g. `"voc"`.
        stages: selects the rows of VOC's Table 3 for these stages; if fewer than two
            match, the three networks without a CRF are returned.

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
    rows = {  # by stage of the recipe `structured`
        (row.system.context or "front_end") + _CRF[row.system.crf]: row
        for row in PAPER[3].rows
        if row.system
    }
    names = [name for name in rows if name in stages]
    if len(names) < 2:  # another recipe with other stage names
        names = ["front_end", "basic", "large"]
    return [_column(3, rows[name], "val")._replace(stage=name) for name in names]


def _column(number: int, row: PaperRow, split: str) -> PaperColumn:
    each = [round(figure / 100, 4) for figure in row.iou]
    iou = dict(zip(PAPER[number].columns, each, strict=True))
    return PaperColumn(
        f"{row.name}, Table {number}", split, iou, round(row.mean / 100, 4)
    )
