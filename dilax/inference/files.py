"""Label maps as files: palette PNGs, overlays, and whole folders of predictions."""

import errno
import os
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dilax.datasets import DatasetSpec, list_images, read_pixels
from dilax.inference.predictor import Predictor


def palette_image(labels: np.ndarray, spec: DatasetSpec) -> Image.Image:
    """(h, w) labels as a palette image: pixel values are class ids, ignored is white.

    Args:
        labels: train ids 0..k−1, or the ignore label.
        spec: palette and ignore label.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: spec.num_classes] = spec.palette
    table[spec.ignore_label] = 255
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(table.ravel().tolist())
    return image


def overlay(
    image: np.ndarray, labels: np.ndarray, spec: DatasetSpec, opacity: float = 0.6
) -> Image.Image:
    """The image with the classes' colours over it.

    Args:
        image: (h, w, c) uint8 or uint16; RGB, or its first channels are shown as RGB.
        labels: (h, w) train ids.
        spec: palette.
        opacity: of the colours, 0..1.
    """
    colours = palette_image(labels, spec).convert("RGB")
    return Image.blend(Image.fromarray(as_rgb(image)), colours, opacity)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(h, w, c) uint8 or uint16 → (h, w, 3) uint8 to look at: the first 3 channels.

    The largest value of 16 bits becomes 255, as sensors seldom fill them.
    """
    if image.dtype != np.uint8:
        image = (image * (255 / max(1, image.max()))).astype(np.uint8)
    return image[..., [min(i, image.shape[2] - 1) for i in range(3)]]


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image file whole or not at all; the suffix names the format.

    Raises:
        ValueError: if the suffix names no format that can be written.
        OSError: naming the file or its folder, if it cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ValueError(f"{path}: {path.suffix!r} names no image format; take .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        image.save(partial, format=kind)
        os.replace(partial, path)
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def predict_files(predictor: Predictor, source: Path, output: Path) -> list[str]:
    """Predicts an image or a folder of images into `NAME.png` and `NAME_overlay.png`.

    Photographs are turned upright as their EXIF orientation says.

    Args:
        predictor: network, parameters, data set.
        source: an image file or a folder.
        output: folder to write to; it is made.

    Returns:
        What could not be read, one message a file; everything else is written.

    Raises:
        ValueError: if the source is missing or holds no images, or if they would be
            overwritten.
    """
    paths = list(list_images(source))
    problems = []
    jobs = list(zip(paths, _targets(paths, output), strict=True))
    for path, (label_map, blend) in tqdm(jobs, "predict", unit="image"):
        try:
            image = read_pixels(path, len(predictor.spec.mean), upright=True)
        except ValueError as error:
            problems.append(str(error))
            continue
        labels = predictor(image)
        save_image(palette_image(labels, predictor.spec), label_map)
        save_image(overlay(image, labels, predictor.spec), blend)
    return problems


def _targets(paths: list[Path], output: Path) -> list[tuple[Path, Path]]:
    """(label map, overlay) of each image.

    They bear the images' stems, or the whole file names where stems would have one file
    overwrite another. Letters' case counts for nothing, as on some file systems.
    """
    images = {str(path.resolve()).casefold() for path in paths}
    for names in ([p.stem for p in paths], [p.name for p in paths]):
        targets = [(output / f"{n}.png", output / f"{n}_overlay.png") for n in names]
        files = {str(t.resolve()).casefold() for pair in targets for t in pair}
        if len(files) == 2 * len(paths) and not files & images:
            return targets
    raise ValueError(f"{output}: holds the images, which would be overwritten")
