"""A sheet of pictures: images, ground truth and every stage's prediction in a grid.

The paper shows its results like this (Figures 2, 3 and 5).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dilax.datasets import DatasetSpec
from dilax.inference import as_rgb, palette_image

_GAP, _LINE, _FONT = 6, 22, 14


def prediction_sheet(
    samples: Sequence[dict],
    predictions: Mapping[str, Sequence[Path]],
    spec: DatasetSpec,
    height: int = 160,
) -> Image.Image:
    """Draws the grid: a row an image, a column a stage, and the classes' colours below.

    Args:
        samples: `{image, label}` of each row.
        predictions: stage name → palette PNGs of its predictions, one a row.
        spec: palette and class names.
        height: of a row in pixels.

    Example:
        >>> from dilax.datasets import DATASETS, Scenes
        >>> samples = list(Scenes("val", count=2, size=64))
        >>> prediction_sheet(samples, {}, DATASETS["scenes"], height=64).mode
        'RGB'
    """
    rows = []
    for i, sample in enumerate(samples):
        panels = [
            Image.fromarray(as_rgb(sample["image"])),
            palette_image(sample["label"], spec),
            *(Image.open(files[i]) for files in predictions.values()),
        ]
        rows.append([_fit(panel, height) for panel in panels])
    titles = ["image", "ground truth", *(n.replace("_", " ") for n in predictions)]
    return _grid(rows, titles, spec, height)


def contact_sheet(
    samples: Sequence[dict], spec: DatasetSpec, columns: int = 3, height: int = 160
) -> Image.Image:
    """Draws images with their labels beside them, and the classes' colours below.

    Args:
        samples: `{image, label}` of each pair.
        spec: palette and class names.
        columns: pairs in a row.
        height: of a row in pixels.

    Example:
        >>> from dilax.datasets import DATASETS, Scenes
        >>> scenes = Scenes("val", count=2, size=64)
        >>> contact_sheet(scenes, DATASETS["scenes"], height=64).mode
        'RGB'
    """
    panels = [
        _fit(panel, height)
        for sample in samples
        for panel in (
            Image.fromarray(as_rgb(sample["image"])),
            palette_image(sample["label"], spec),
        )
    ]
    width = 2 * min(columns, len(samples))
    panels += [Image.new("RGB", (1, height), "white")] * (-len(panels) % width)
    rows = [panels[i : i + width] for i in range(0, len(panels), width)]
    return _grid(rows, ["image", "label"] * (width // 2), spec, height)


def _grid(
    rows: list[list[Image.Image]], titles: list[str], spec: DatasetSpec, height: int
) -> Image.Image:
    """Rows of panels of one height below their titles, with a legend."""
    widths = [
        max(panel.width for panel in column) for column in zip(*rows, strict=True)
    ]
    columns = np.cumsum([_GAP, *(w + _GAP for w in widths)])
    legend = _legend_rows(spec, int(columns[-1]) - 2 * _GAP)
    below = _LINE + len(rows) * (height + _GAP)
    size = (int(columns[-1]), below + _LINE * len(legend) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT)
    for x, title in zip(columns, titles, strict=False):
        draw.text((x, 3), title, "black", font)
    for i, row in enumerate(rows):
        for x, panel in zip(columns, row, strict=False):
            sheet.paste(panel, (int(x), _LINE + i * (height + _GAP)))
    for i, entries in enumerate(legend):
        _draw_legend(draw, font, entries, below + i * _LINE)
    return sheet


def _fit(panel: Image.Image, height: int) -> Image.Image:
    width = max(1, round(panel.width * height / panel.height))
    return panel.convert("RGB").resize((width, height), Image.Resampling.BOX)


def _legend_rows(spec: DatasetSpec, width: int) -> list[list[tuple]]:
    """(x, colour, name) entries, broken into lines of at most `width` pixels."""
    font = ImageFont.load_default(_FONT)
    lines: list[list[tuple]] = [[]]
    x = 0
    for name, colour in zip(spec.classes, spec.palette, strict=True):
        needed = _LINE + int(font.getlength(name)) + 2 * _GAP
        if x + needed > width and lines[-1]:
            lines.append([])
            x = 0
        lines[-1].append((x + _GAP, colour, name))
        x += needed
    return lines


def _draw_legend(draw: ImageDraw.ImageDraw, font, entries: list[tuple], y: int) -> None:
    for x, colour, name in entries:
        draw.rectangle((x, y + 4, x + _FONT, y + 4 + _FONT), colour, "black")
        draw.text((x + _LINE, y + 2), name, "black", font)
