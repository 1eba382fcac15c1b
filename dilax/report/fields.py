"""Receptive fields as text and images (Yu & Koltun 2016, Figure 1; Luo et al. 2016).

`stack_picture([1, 2, 4])` is the paper's Figure 1: fields of 3, 7 and 15 pixels. A
trained network has, besides this theoretical field, an effective one: the pixels that
the gradients of a cell reach, and how strongly.
"""

import base64
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import UInt
from PIL import Image

from dilax.data import evenly_spread, resize, scaled_size, subtract_mean
from dilax.inference import save_image
from dilax.inference.tiles import cut_tiles, plan_tiles
from dilax.models import DilatedNet, EffectiveField, effective_field
from dilax.ops import ReceptiveField, receptive_field
from dilax.ops.receptive_fields import Gridding, as_layers, gridding
from dilax.report.runs import RunFolder
from dilax.training import load_checkpoint, open_evaluation, write_text
from dilax.training.build import build_model
from dilax.training.records import read_record

_SHADES = "░▒▓█"
_UNSEEN = (255, 255, 255)
_AXIS = (40, 70, 160)
_RARE, _OFTEN = np.array([255.0, 215, 190]), np.array([150.0, 0, 0])


def field_as_text(field: Gridding) -> str:
    """Draw a field in characters: `·` is unseen, darker shades have more paths.

    Example:
        >>> print(field_as_text(gridding([2])))
        █·█·█
        ·····
        █·█·█
        ·····
        █·█·█
    """
    shares = _shares(np.outer(field.counts, field.counts))
    levels = np.ceil(shares * len(_SHADES)).astype(int)
    letters = "·" + _SHADES
    return "\n".join("".join(letters[level] for level in row) for row in levels)


def stack_picture(
    layers: Iterable[int | tuple[int, int]], pixel: int = 0
) -> UInt[np.ndarray, "h w 3"]:
    """Draw the fields of the first layer, the first two layers, …, side by side.

    Unseen pixels are white; the more paths lead to a pixel, the darker its red.

    Args:
        layers: rates or (kernel, rate) pairs, as for `gridding`.
        pixel: side of one field pixel in the picture; 0 chooses it by the field size.

    Returns:
        An RGB picture.

    Raises:
        ValueError: if `gridding` rejects the layers.

    Example:
        >>> stack_picture([1, 2], pixel=4).shape  # two fields of 7 pixels and a gap
        (28, 64, 3)
    """
    table = as_layers(layers)
    found = [gridding(table[: n + 1]) for n in range(len(table))]
    whole = found[-1].size
    pixel = pixel or max(3, 240 // whole)
    panels = []
    for stack in found:
        counts = np.zeros(whole)
        start = (whole - stack.size) // 2  # even kernels: one more pixel on the right
        counts[start : start + stack.size] = stack.counts
        picture = _coloured(_shares(np.outer(counts, counts)))
        panel = np.kron(picture, np.ones((pixel, pixel, 1), np.uint8))
        lines = slice(None, None, pixel if pixel > 3 else len(panel) - 1)
        panel[lines] = panel[:, lines] = 225  # grid lines if pixels are large enough
        panel[-1] = panel[:, -1] = 225
        panels.append(panel)
    gap = np.full((len(panels[0]), 2 * pixel, 3), 255, np.uint8)
    return np.concatenate([p for panel in panels for p in (panel, gap)][:-1], 1)


def heat_picture(field: EffectiveField) -> UInt[np.ndarray, "h w 3"]:
    """Draw the square root of the heat, with blue lines through its centre.

    Example:
        >>> heat_picture(EffectiveField(np.eye(3) / 3, (1.0, 1.0), (0.8, 0.8))).shape
        (3, 3, 3)
    """
    shares = np.sqrt(field.heat / field.heat.max())
    picture = _coloured(shares)
    y, x = (round(c) for c in field.centre)
    picture[y, ::4] = picture[::4, x] = _AXIS
    return picture


def save_picture(picture: UInt[np.ndarray, "h w 3"], path: str) -> None:
    """Write a picture in the format given by the file extension.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_picture(stack_picture([1, 2, 4]), f"{folder}/figure1.png")
        ...     Image.open(f"{folder}/figure1.png").mode
        'RGB'
    """
    Image.fromarray(picture).save(path)


def _shares(counts: np.ndarray) -> np.ndarray:
    """Map path counts to shades: 0 if unseen, else 0.1 to 1 on a log scale."""
    logs = np.log(np.maximum(counts, 1))
    most = logs.max()
    shares = 0.1 + 0.9 * logs / most if most else np.ones_like(logs)
    return np.where(counts > 0, shares, 0)


def _coloured(shares: np.ndarray) -> np.ndarray:
    colours = _RARE + shares[..., None] * (_OFTEN - _RARE)
    return np.where(shares[..., None] > 0, colours, _UNSEEN).astype(np.uint8)


_FILE = "receptive_field"


def describe_network(model: DilatedNet) -> list[str]:
    """Describe the size, stride and centre of the fields of a network and its parts.

    Raises:
        ValueError: if the network has no receptive field, as FCN-8s and SegNet.

    Example:
        >>> from dilax.models import dilation8_camvid
        >>> describe_network(dilation8_camvid())[1]
        'context module: 67 x 67 scores of the front end'
    """
    whole, front_end = model.receptive_field, model.front_end.receptive_field
    parts = [
        f"{name}: {field.size} x {field.size} pixels, a score every {field.stride}, "
        f"the first centred on pixel {field.centre - model.margin:g}"
        for name, field in (("front end", front_end), ("network", whole))
    ]
    if model.context is not None:
        size = receptive_field(model.context.rows).size
        parts.insert(1, f"context module: {size} x {size} scores of the front end")
    return parts


def measure_effective_field(
    run: Path, stage: str = "", images: int = 4, data_dir: str = ""
) -> tuple[DilatedNet, EffectiveField]:
    """Measure the effective field of a stage on evaluation images (Luo et al. 2016).

    Args:
        run: folder of the run.
        stage: name of the stage; "" means the last one.
        images: number of evaluation images, evenly spaced.
        data_dir: current location of the data, if it has moved.

    Returns:
        The stage's network and its effective field.

    Raises:
        ValueError: if the run or its data cannot be read, or `images` is not positive.

    Example:
        >>> measure_effective_field(Path("nowhere"))
        Traceback (most recent call last):
        ValueError: nowhere/config.json: not the folder of a run ...
    """
    model, params, spec = load_checkpoint(run, stage)
    _, _, source = open_evaluation(run, data_dir)
    if images < 1:
        raise ValueError(f"--images={images}: must be 1 or more")
    chosen = [source[i]["image"] for i in evenly_spread(len(source), images)]
    size = scaled_size(chosen[0].shape, spec.scale)
    grid = plan_tiles(size, None, model.margin, model.map_stride)
    tiles = np.concatenate([cut_tiles(resize(i, size), grid) for i in chosen])

    def network(x: jax.Array) -> jax.Array:
        return model.apply({"params": params}, x)  # type: ignore[return-value]

    return model, effective_field(network, np.asarray(subtract_mean(tiles, spec.mean)))


def describe_effective_field(found: EffectiveField, theory: ReceptiveField) -> str:
    """Describe an effective field next to the theoretical one.

    Example:
        >>> found = EffectiveField(np.full((3, 3), 1 / 9), (1.0, 1.0), (0.8, 0.8))
        >>> describe_effective_field(found, receptive_field([(3, 1)])).split(", ")[-1]
        '95% within 3 x 3 of 3 x 3 pixels'
    """
    y, x = found.spread
    return (
        f"effective: spread (sigma) {y:.1f} rows, {x:.1f} columns; half of it is "
        f"within {found.side(0.5)} x {found.side(0.5)}, 95% within "
        f"{found.side()} x {found.side()} of {theory.size} x {theory.size} pixels"
    )


class FieldSummary(NamedTuple):
    """A network's receptive field, as the page shows it.

    Attributes:
        lines: sizes, strides and centres, one sentence each.
        stack: data URI of the context module's field, layer by layer; "" without one.
        heat: data URI of the effective field; "" if it was not measured.
    """

    lines: tuple[str, ...]
    stack: str = ""
    heat: str = ""


def write_field(workdir: Path, stage: str, data_dir: str = "") -> None:
    """Measure a stage's effective field; write `receptive_field.png` and `.json`.

    Raises:
        ValueError: if the run or its data cannot be read.
    """
    model, field = measure_effective_field(workdir, stage, images=2, data_dir=data_dir)
    save_image(Image.fromarray(heat_picture(field)), workdir / f"{_FILE}.png")
    summary = describe_effective_field(field, model.receptive_field)
    record = {"stage": stage, "summary": summary}
    write_text(workdir / f"{_FILE}.json", json.dumps(record) + "\n")


def has_field(workdir: Path, stage: str) -> bool:
    """Whether `write_field` has measured this stage."""
    return _record(workdir).get("stage") == stage


def summarize_field(run: RunFolder) -> FieldSummary:
    """Summarize the field of a run's last stage, and the effective one if measured."""
    stage = run.config.stages[-1]
    model = build_model(run.config, stage, run.spec.num_classes)
    stack = heat = ""
    try:
        lines = describe_network(model)
    except ValueError as error:
        lines = [str(error)]
    if model.context is not None:
        rows = [(row[0], row[1]) for row in model.context.rows]
        stack = picture_uri(Image.fromarray(stack_picture(rows, pixel=2)))
    if has_field(run.path, stage.name):
        record = _record(run.path)
        summary = record.get("summary") or record.get("told")  # in dilax 0.1
        lines.append(str(summary))
        with Image.open(run.path / f"{_FILE}.png") as picture:
            heat = picture_uri(picture.convert("RGB"))
    return FieldSummary(tuple(lines), stack, heat)


def picture_uri(picture: Image.Image) -> str:
    """Encode a picture as a PNG data URI with 256 colours.

    Example:
        >>> picture_uri(Image.new("RGB", (4, 4)))[:22]
        'data:image/png;base64,'
    """
    buffer = io.BytesIO()
    picture.quantize(256).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _record(workdir: Path) -> dict:
    path = workdir / f"{_FILE}.json"
    return read_record(path, "delete it; `dilax report` measures the field again")
