"""The figures of Yu & Koltun (2016): receptive fields (Figure 1), predictions (2 to 5).

Sheets are Pillow images, drawn after each run; figures are Matplotlib's, for print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dilax.data import DatasetSpec
from dilax.inference import as_rgb, palette_image
from dilax.ops import gridding

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_GAP, _LINE, _FONT = 6, 22, 14


def prediction_sheet(
    samples: Sequence[dict],
    predictions: Mapping[str, Sequence[Path]],
    spec: DatasetSpec,
    height: int = 160,
) -> Image.Image:
    """Draw a grid of images, ground truth and predictions, with a legend of classes.

    Args:
        samples: `{image, label}` dicts, one per row.
        predictions: stage name → palette PNGs of its predictions, one per row.
        spec: data set with palette and class names.
        height: height of a row in pixels.

    Example:
        >>> from dilax.data import DATASETS, Scenes
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
    """Draw images next to their labels, with a legend of the classes.

    Args:
        samples: `{image, label}` dicts.
        spec: data set with palette and class names.
        columns: number of pairs per row.
        height: height of a row in pixels.

    Example:
        >>> from dilax.data import DATASETS, Scenes
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
    """Arrange rows of panels of equal height, with titles above and a legend below."""
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
        y = below + i * _LINE
        for x, colour, name in entries:
            draw.rectangle((x, y + 4, x + _FONT, y + 4 + _FONT), colour, "black")
            draw.text((x + _LINE, y + 2), name, "black", font)
    return sheet


def _fit(panel: Image.Image, height: int) -> Image.Image:
    width = max(1, round(panel.width * height / panel.height))
    return panel.convert("RGB").resize((width, height), Image.Resampling.BOX)


def _legend_rows(spec: DatasetSpec, width: int) -> list[list[tuple]]:
    """Break (x, colour, name) entries into lines of at most `width` pixels."""
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


_WIDTH = 7.0  # inches, the text width of a page
_GREEN, _RED, _LINES = "#bfe3c0", "#c81e1e", "#9a9a9a"
_POINTS = 8  # font size
_LETTERS = 14  # per inch
_PANEL = 1.8  # inches, the maximum width of a picture
_LEGEND, _TITLE = 0.18, 0.24  # inches; a line of the legend


def field_figure(rates: Sequence[int] = (1, 2, 4)) -> Figure:
    """Draw the receptive field after one layer, two layers, … (Figure 1).

    One panel per 3×3 layer: red dots are the taps of its kernel, the receptive field is
    green, and pixels that no path reaches stay white.

    Args:
        rates: dilation of each layer.

    Raises:
        ValueError: if a rate is not positive, or matplotlib is missing.

    Example:
        >>> figure = field_figure([1, 2, 4])
        >>> [panel.get_title() for panel in figure.axes]
        ['(a) 3×3', '(b) 7×7', '(c) 15×15']
    """
    from matplotlib.colors import ListedColormap

    stacks = [gridding(rates[: n + 1]) for n in range(len(rates))]
    side = stacks[-1].size // 2 + 1  # one pixel more than half of the largest field
    edges = np.arange(-side, side + 2) - 0.5
    figure = _figure(_WIDTH, _WIDTH / len(rates) + 0.34)
    panels = figure.subplots(1, len(rates), squeeze=False)[0]
    for i, (panel, stack, rate) in enumerate(zip(panels, stacks, rates, strict=True)):
        seen = np.pad(stack.counts > 0, side - stack.size // 2)
        panel.pcolormesh(
            *(edges, edges, np.outer(seen, seen)),
            cmap=ListedColormap(["white", _GREEN]),
            vmin=0,
            vmax=1,
            edgecolors=_LINES,
            lw=0.25,
        )
        taps = np.meshgrid([-rate, 0, rate], [-rate, 0, rate])
        panel.scatter(*taps, s=max(4, 900 / side**2), color=_RED, zorder=2)
        panel.set_aspect("equal")
        _hide_axes(panel)
        title = f"({ascii_lowercase[i % 26]}) {stack.size}×{stack.size}"
        panel.set_title(title, fontsize=_POINTS + 1)
    return figure


def picture_figure(
    columns: Mapping[str, Sequence[np.ndarray]],
    spec: DatasetSpec,
    classes: Sequence[int] = (),
    notes: Sequence[str] = (),
) -> Figure:
    """Draw a grid of pictures with column titles (Figures 2 to 5).

    Args:
        columns: title → (h, w, 3) uint8 pictures, one per row.
        spec: data set with names and colours of the classes.
        classes: train ids for the legend.
        notes: text to the left of each row.

    Raises:
        ValueError: if matplotlib is missing.

    Example:
        >>> from dilax.data import DATASETS
        >>> grey = np.full((30, 40, 3), 128, np.uint8)
        >>> shown = {"image": [grey, grey], "truth": [grey, grey]}
        >>> len(picture_figure(shown, DATASETS["camvid"], classes=[0, 5]).axes)
        4
    """
    from matplotlib.patches import Patch

    rows = list(zip(*columns.values(), strict=True))
    width = min(_WIDTH / len(columns), _PANEL)
    heights = [width * max(p.shape[0] / p.shape[1] for p in row) for row in rows]
    names = [spec.classes[i] for i in classes]
    entry = max(map(len, names), default=0) / _LETTERS + 0.3  # inches, with its colour
    entries = max(1, int(width * len(columns) / entry))  # per line of the legend
    below = _LEGEND * -(-len(names) // entries)
    beside = _TITLE if notes else 0
    figure = _figure(width * len(columns) + beside, sum(heights) + _TITLE + below)
    panels = figure.subplots(
        len(rows), len(columns), squeeze=False, height_ratios=heights
    )
    for i, (line, row) in enumerate(zip(panels, rows, strict=True)):
        for panel, picture in zip(line, row, strict=True):
            panel.imshow(picture, interpolation="nearest")
            _hide_axes(panel)
        if notes:
            line[0].set_ylabel(notes[i], fontsize=_POINTS)
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title, fontsize=_POINTS + 1, pad=3)
    colours = ["#{:02x}{:02x}{:02x}".format(*spec.palette[i]) for i in classes]
    figure.legend(
        [Patch(facecolor=c, edgecolor="black", linewidth=0.4) for c in colours],
        names,
        loc="outside lower center",
        ncols=entries,
        frameon=False,
        fontsize=_POINTS,
        handlelength=1.0,
        handleheight=1.0,
    )
    return figure


def save_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write a figure as PNG and PDF, and return both paths.

    Args:
        figure: the figure.
        path: path without extension; its folder is created.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "figure1"
        >>> [file.name for file in save_figure(field_figure([1, 2]), path)]
        ['figure1.png', 'figure1.pdf']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = (path.with_name(path.name + end) for end in (".png", ".pdf"))
    figure.savefig(png, dpi=200)
    figure.savefig(pdf, metadata={"CreationDate": None})
    return png, pdf


def _figure(width: float, height: float) -> Figure:
    """A figure in inches, whose panels leave room for titles and a legend."""
    from matplotlib.figure import Figure as Drawing  # imported late: slow
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return Drawing(figsize=(width, height), layout=layout)


def _hide_axes(panel: Any) -> None:
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
