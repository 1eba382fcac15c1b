"""Data sets: what they are, and where their images come from."""

from collections.abc import Sequence
from pathlib import Path

from dilax.datasets.files import (
    ImageLabelFiles,
    camvid_pairs,
    folder_pairs,
    folder_spec,
    list_images,
    read_image,
    voc_pairs,
)
from dilax.datasets.scenes import Scenes
from dilax.datasets.spec import DATASETS, DatasetSpec, colour_map

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "ImageLabelFiles",
    "Scenes",
    "colour_map",
    "folder_spec",
    "list_images",
    "open_source",
    "read_image",
]

_LAYOUTS = {"voc": voc_pairs, "camvid": camvid_pairs, "folder": folder_pairs}


def open_source(
    layout: str,
    spec: DatasetSpec,
    data_dir: str,
    split: str,
    *,
    seed: int = 0,
    skip_unreadable: bool = False,
) -> Sequence[dict]:
    """Opens a split of a data set as a sequence of `{image, label, id}`.

    Args:
        layout: `"voc"`, `"camvid"`, `"folder"` (files under `data_dir`), or `"scenes"`.
        spec: the data set's facts.
        data_dir: the folder of the files.
        split: `"train"`, `"val"`, ….
        seed: of the rendered scenes.
        skip_unreadable: see `ImageLabelFiles`.

    Returns:
        A random-access source.

    Raises:
        ValueError: if the layout is unknown, or files are missing, empty or wrong.
    """
    if layout == "scenes":
        return Scenes(split, seed=seed)
    if layout not in _LAYOUTS:
        raise ValueError(
            f"--config.data.layout={layout!r}: is none of scenes, {', '.join(_LAYOUTS)}"
        )
    if not data_dir:
        raise ValueError(f"--data_dir: the folder of the {spec.name} images is missing")
    pairs = _LAYOUTS[layout](Path(data_dir).expanduser(), split)
    return ImageLabelFiles(pairs, spec, skip_unreadable)
