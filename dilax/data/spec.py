"""The data sets of the paper (§4, §5, A.1-A.3): classes, palettes, mean pixels, tiles.

Numbers are those of the paper's release; classes, colours, and ids are as published.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from dilax.data.scenes_painting import CLASSES, CONTEXT_CLASSES, PALETTE

RGB = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """The properties of a data set that networks, metrics, and figures use.

    Attributes:
        name: for messages and tables.
        classes: class names in the order of the train ids 0, 1, ….
        palette: one RGB colour per class.
        mean: the mean pixel (B, G, R) on the 0..255 scale, subtracted from the input;
            if images are not RGB, one number per channel, in reversed order.
        ignore_label: label of pixels that are ignored, on disk and in memory.
        tile: (height, width) in pixels of the network's input, including margins; None
            makes the whole image one tile.
        scale: images are resized by this factor before they enter the network.
            Accuracy is still measured at the images' own resolution.
        label_map: (id on disk, train id) pairs, if they differ; other ids on disk are
            errors. If empty, ids on disk are train ids.
        context_classes: classes that look the same and differ only in their context.
        categories: (name, classes) groups whose IoU is also measured.
        splits: (name, number of images) of the published splits.
        context_layers: layers of the context module that the paper uses for the data
            set.
        void_colours: colours of unlabelled pixels in masks that are colour images; all
            other colours of a mask are in the palette.
        colour_masks: whether the masks of a folder are colour images.
        image_size: (height, width) of typical images of the data set, if it consists of
            photographs; `Predictor` reduces much larger ones to this size.
        alpha_masks: whether the masks of a folder are the transparency of images.
        threshold: mask values from this one on are class 1 on disk, others 0; 0 keeps
            the values.
        as_stored: read the images and masks of a folder without turning them by their
            EXIF orientation, if both ways fit.

    Example:
        >>> voc = DATASETS["voc"]
        >>> voc.num_classes, voc.classes[:3], voc.palette[1]
        (21, ('background', 'aeroplane', 'bicycle'), (128, 0, 0))
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    mean: tuple[float, ...]
    ignore_label: int = 255
    tile: tuple[int, int] | None = None
    scale: float = 1.0
    label_map: tuple[tuple[int, int], ...] = ()
    context_classes: tuple[str, ...] = ()
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()
    splits: tuple[tuple[str, int], ...] = ()
    context_layers: int = 0
    void_colours: tuple[RGB, ...] = ()
    colour_masks: bool = False
    image_size: tuple[int, int] | None = None
    alpha_masks: bool = False
    threshold: float = 0.0
    as_stored: bool = False

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.classes)

    def label_table(self) -> np.ndarray:
        """int16: the train id or ignore label of each id on disk, −1 if invalid.

        It has 256 entries, or more if ids on disk are larger.
        """
        largest = max((source for source, _ in self.label_map), default=0)
        table = np.full(max(256, largest + 1), -1, np.int16)
        table[self.ignore_label] = self.ignore_label
        for source, target in self.label_map or enumerate(range(self.num_classes)):
            table[source] = target
        return table

    def train_ids(self, mask: np.ndarray, name: str) -> np.ndarray:
        """(h, w) ids or (h, w, 3) colours of a mask on disk → (h, w) uint8 train ids.

        Args:
            mask: ids, or colours if the data set has `colour_masks`.
            name: of the file, for messages.

        Raises:
            ValueError: naming the file and the ids or colours of no class.
        """
        if self.colour_masks:
            ids = {colour: i for i, colour in enumerate(self.palette)}
            ids |= dict.fromkeys(self.void_colours, self.ignore_label)
            return ids_of_colours(mask, ids, name)
        table = self.label_table()
        label = table.take(mask, mode="clip")
        if (wrong := (label < 0) | (mask >= len(table))).any():
            raise ValueError(
                f"{name}: label ids {np.unique(mask[wrong]).tolist()} are not among "
                f"the {self.num_classes} classes of {self.name}"
            )
        return label.astype(np.uint8)

    def disk_ids(self) -> np.ndarray:
        """(k,) uint8: the id on disk of each class, which submissions use."""
        pairs = self.label_map or tuple(enumerate(range(self.num_classes)))
        first = {train_id: disk_id for disk_id, train_id in reversed(pairs)}
        return np.array([first[i] for i in range(self.num_classes)], np.uint8)


def colour_map(count: int) -> tuple[RGB, ...]:
    """Return the first `count` colours of Pascal VOC's colour map.

    The bits of an index are spread over R, G, and B.

    Example:
        >>> colour_map(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """

    def channel(index: int, bit: int) -> int:
        return sum(((index >> (3 * i + bit)) & 1) << (7 - i) for i in range(8))

    return tuple((channel(i, 0), channel(i, 1), channel(i, 2)) for i in range(count))


def distinct_colours(count: int) -> tuple[RGB, ...]:
    """Return `count` colours, each as different from the earlier ones as possible.

    Example:
        >>> distinct_colours(2)
        ((255, 0, 0), (0, 255, 255))
    """
    levels = np.linspace(0, 255, 6)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1)
    colours = colours.reshape(-1, 3)
    lightness = colours @ [0.3, 0.6, 0.1]  # neither black nor white, as in photographs
    colours = colours[(lightness > 50) & (lightness < 215)]
    chosen = [colours.tolist().index([255, 0, 0])]
    distance = np.full(len(colours), np.inf)
    for _ in range(count - 1):
        red = (colours[:, 0] + colours[chosen[-1], 0]) / 512  # the "redmean" distance
        weights = np.stack([2 + red, np.full_like(red, 4), 3 - red], -1)
        away = (weights * (colours - colours[chosen[-1]]) ** 2).sum(-1)
        distance = np.minimum(distance, away)
        chosen.append(int(distance.argmax()))
    return tuple((int(r), int(g), int(b)) for r, g, b in colours[chosen[:count]])


def ids_of_colours(image: np.ndarray, ids: Mapping[RGB, int], name: str) -> np.ndarray:
    """(h, w, 3) uint8 colours → (h, w) uint8 ids.

    Args:
        image: the colours.
        ids: the id of each colour.
        name: of the file, for messages.

    Raises:
        ValueError: naming the file and the colours that have no id.
    """
    packed = image.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    keys = np.array([(r << 16) | (g << 8) | b for r, g, b in ids], np.uint32)
    values = np.array(list(ids.values()), np.uint8)
    order = np.argsort(keys)
    at = order[np.minimum(np.searchsorted(keys, packed, sorter=order), len(keys) - 1)]
    if (unknown := keys[at] != packed).any():
        colours = np.unique(image[unknown], axis=0)[:5].tolist()
        raise ValueError(
            f"{name}: {int(unknown.sum())} pixels have colours of no class, such as "
            f"{', '.join(map(str, map(tuple, colours)))}"
        )
    return values[at]


VOC = DatasetSpec(
    name="Pascal VOC 2012",
    classes=(
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus"),
        *("car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike"),
        *("person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    ),
    palette=colour_map(21),
    mean=(102.93, 111.36, 116.52),
    tile=(900, 900),
    splits=(
        *(("train", 1464), ("val", 1449), ("trainval", 2913)),
        *(("train_aug", 10582), ("test", 1456)),
    ),
    context_layers=8,
    image_size=(375, 500),
)

# COCO's images with VOC's classes, so that networks can be trained on both (§5).
COCO = dataclasses.replace(VOC, name="COCO, VOC classes", splits=())

# (class, colour, id in the public CamVid files), in the order of the release.
_ROAD_SCENE = (
    ("Building", (128, 0, 0), 1),
    ("Tree", (128, 128, 0), 5),
    ("Sky", (128, 128, 128), 0),
    ("Car", (64, 0, 128), 8),
    ("Sign", (192, 128, 128), 6),
    ("Road", (128, 64, 128), 3),
    ("Pedestrian", (64, 64, 0), 9),
    ("Fence", (64, 64, 128), 7),
    ("Pole", (192, 192, 128), 2),
    ("Sidewalk", (0, 0, 192), 4),
    ("Bicyclist", (0, 128, 192), 10),
)

CAMVID = DatasetSpec(
    name="CamVid",
    classes=tuple(name for name, _, _ in _ROAD_SCENE),
    palette=tuple(colour for _, colour, _ in _ROAD_SCENE),
    mean=(110.70313206, 108.77808759, 105.41212523),
    tile=(900, 1100),
    label_map=(*((disk, i) for i, (_, _, disk) in enumerate(_ROAD_SCENE)), (11, 255)),
    splits=(("train", 367), ("val", 101), ("test", 233)),
    context_layers=8,
    image_size=(480, 640),
)

KITTI = dataclasses.replace(
    CAMVID,
    name="KITTI",
    mean=(96.19429688, 95.55136972, 91.34692262),
    tile=(852, 1640),
    label_map=(),
    splits=(("train", 100), ("test", 46)),
    context_layers=7,
    image_size=(375, 1242),
    void_colours=((0, 0, 0),),
)

# (class, colour, id on disk, category), in the order of the train ids.
_CITYSCAPES = (
    ("road", (128, 64, 128), 7, "flat"),
    ("sidewalk", (244, 35, 232), 8, "flat"),
    ("building", (70, 70, 70), 11, "construction"),
    ("wall", (102, 102, 156), 12, "construction"),
    ("fence", (190, 153, 153), 13, "construction"),
    ("pole", (153, 153, 153), 17, "object"),
    ("traffic light", (250, 170, 30), 19, "object"),
    ("traffic sign", (220, 220, 0), 20, "object"),
    ("vegetation", (107, 142, 35), 21, "nature"),
    ("terrain", (152, 251, 152), 22, "nature"),
    ("sky", (70, 130, 180), 23, "sky"),
    ("person", (220, 20, 60), 24, "human"),
    ("rider", (255, 0, 0), 25, "human"),
    ("car", (0, 0, 142), 26, "vehicle"),
    ("truck", (0, 0, 70), 27, "vehicle"),
    ("bus", (0, 60, 100), 28, "vehicle"),
    ("train", (0, 80, 100), 31, "vehicle"),
    ("motorcycle", (0, 0, 230), 32, "vehicle"),
    ("bicycle", (119, 11, 32), 33, "vehicle"),
)

CITYSCAPES = DatasetSpec(
    name="Cityscapes",
    classes=tuple(row[0] for row in _CITYSCAPES),
    palette=tuple(row[1] for row in _CITYSCAPES),
    mean=(72.39, 82.91, 73.16),
    tile=(1396, 1396),
    # Raw label ids 0..33 on disk; those outside the 19 classes are ignored.
    label_map=(
        *((row[2], i) for i, row in enumerate(_CITYSCAPES)),
        *((i, 255) for i in range(34) if i not in {row[2] for row in _CITYSCAPES}),
    ),
    categories=tuple(
        (category, tuple(row[0] for row in _CITYSCAPES if row[3] == category))
        for category in dict.fromkeys(row[3] for row in _CITYSCAPES)
    ),
    splits=(("train", 2975), ("val", 500), ("test", 1525)),
    context_layers=10,
    image_size=(1024, 2048),
)

SCENES = DatasetSpec(
    name="scenes",
    classes=CLASSES,
    palette=PALETTE,
    mean=VOC.mean,
    context_classes=CONTEXT_CLASSES,
)

DATASETS = {
    "voc": VOC,
    "coco": COCO,
    "camvid": CAMVID,
    "kitti": KITTI,
    "cityscapes": CITYSCAPES,
    "scenes": SCENES,
}
