"""Your own images and masks.

    python experiments/folder.py --data_dir=DIR --workdir=runs/mine
    python experiments/folder.py --mode=predict --workdir=runs/mine --input=photo.jpg

Nothing needs to be renamed or converted. DIR holds images and masks in folders of any
names: a folder called mask, label, annotation, gt, … holds masks, and a mask belongs to
the image of the same name, up to endings such as _mask (--images=… --labels=… name the
folders where that does not do). Folders or lists called train, val and test are the
splits; without any, a fifth of the images is held back as val.

Masks are grey or palette images of class ids (255 is ignored), or colour images.
Images have any number of channels, of 8 or 16 bits (more than three, or 16 bits in
colour, as TIFF). --classes=sky,tree or --classes=FILE names the classes, a line each,
where masks have colours with the colour behind: sky 70 130 180; a class called void
counts nowhere. Without it, classes.txt in DIR is read, or else what the masks hold.

small   The slim network from scratch, in stages, in a size that suits the images and
        the machine. What was found and chosen, and what it will take, is said before
        it starts; every choice can be set (--config.data.scale=1,
        --config.stages.front_end.crop=(256,256), …).
"""

from pathlib import Path
from typing import Any

import jax
from absl import flags

from dilax.datasets import folder_splits, survey_folder
from dilax.launch import run
from dilax.training import Config, DataConfig, slim

# The shorter side of the network's input, in pixels.
_SHORT_SIDE = {"cpu": 192}
_SHORT_SIDE_ELSEWHERE = 512
_EPOCHS, _LEAST_STEPS, _MOST_STEPS = 60, 600, 6000


def small() -> Config:
    """The slim network; `fit` gives it the size of the images."""
    data = DataConfig("folder", class_weight_power=0.5)
    return slim(data, crop=(176, 240), steps=(2500, 600, 600))


def fit(config: Config, values: Any) -> None:
    """Sets scale, crops and steps by what the folder holds, and says so."""
    data = config.data
    data.images, data.labels, data.classes = (
        values.images,
        values.labels,
        values.classes,
    )
    if not data.data_dir:
        raise ValueError("--data_dir: the folder of images and masks is missing")
    root = Path(data.data_dir).expanduser()
    found = survey_folder(root, data.images, data.labels, data.classes)
    print("\n".join([f"{root}:", *(f"  {note}" for note in found.notes)]))
    size = max(found.sizes, key=lambda s: found.sizes[s])
    data.scale, crop = choose_crop(size, jax.default_backend())
    count = len(folder_splits(root, data.images, data.labels)["train"])
    front_end, *contexts, joint = config.stages
    steps = _EPOCHS * count // front_end.batch_size
    front_end.steps = min(max(steps, _LEAST_STEPS), _MOST_STEPS)
    joint.steps = front_end.steps // 4
    for stage in config.stages:
        stage.crop = crop
    print(
        f"chosen: images at {data.scale:g} of their size, "
        f"crops of {crop[1]}x{crop[0]}, "
        f"{front_end.steps} steps of the front end, {contexts[0].steps} of context, "
        f"{joint.steps} jointly"
    )


def choose_crop(size: tuple[int, int], backend: str) -> tuple[float, tuple[int, int]]:
    """(scale, crop) for images of (height, width); crops are multiples of 8 pixels."""
    short = _SHORT_SIDE.get(backend, _SHORT_SIDE_ELSEWHERE)
    scale = min(1.0, round(short / min(size), 2))
    limit = 3 * short // 2
    crop = [max(8, min(int(n * scale), limit) // 8 * 8) for n in size]
    return scale, (crop[0], crop[1])


if __name__ == "__main__":
    flags.DEFINE_string("images", "", "Folder of the images in data_dir [looked for].")
    flags.DEFINE_string("labels", "", "Folder of the masks in data_dir [looked for].")
    flags.DEFINE_string("classes", "", "Names, a,b,c, or a file [what masks hold].")
    run({"small": small}, __doc__, fit, estimates=True)
