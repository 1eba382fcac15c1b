"""Label maps as files: palette PNGs, overlays, and whole folders of predictions."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dilax.datasets import DatasetSpec, list_images, read_image
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
        image: (h, w, 3) uint8 RGB.
        labels: (h, w) train ids.
        spec: palette.
        opacity: of the colours, 0..1.
    """
    colours = palette_image(labels, spec).convert("RGB")
    return Image.blend(Image.fromarray(image), colours, opacity)


def save_image(image: Image.Image, path: Path) -> None:
    """Writes an image file whole or not at all; the suffix names the format.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        image.save(partial, format=Image.registered_extensions()[path.suffix])
        os.replace(partial, path)
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
        ValueError: if the source is missing or holds no images.
    """
    paths = list(list_images(source))
    problems = []
    names = _names(paths)
    for path, name in tqdm(
        list(zip(paths, names, strict=True)), "predict", unit="image"
    ):
        try:
            image = read_image(path, upright=True)
        except ValueError as error:
            problems.append(str(error))
            continue
        labels = predictor(image)
        save_image(palette_image(labels, predictor.spec), output / f"{name}.png")
        blended = overlay(image, labels, predictor.spec)
        save_image(blended, output / f"{name}_overlay.png")
    return problems


def _names(paths: Iterable[Path]) -> list[str]:
    """Stems, or whole file names where stems are not unique."""
    paths = list(paths)
    stems = [p.stem for p in paths]
    return [p.stem if stems.count(p.stem) == 1 else p.name for p in paths]
