"""Painting scenes: from positions and light to pixels and labels.

A painter's algorithm: sky, ground, towers, and balloons cover one another, from back to
front, in the image and in the label map at once. A shape is a signed distance to its
outline, so that edges are smooth, and the ignored band along them is one pixel wide on
either side, at every size. Textures are sums of smooth noise on lattices whose cells
scale with the scene.

`dilax.data.scenes` decides where objects are; only textures are random here: clouds,
stars, waves, flowers, plaster.

All geometry is in scene units: a scene is 256 units wide and high, x to the right, y
down, whatever its size in pixels. Colours are RGB in 0..255, (3, 1, 1), and images
(3, h, w) until they are done: planes of 256 x 256 are several times faster to paint
than pixels of 3.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

EXTENT = 256.0  # width and height of a scene, in scene units

CLASSES: tuple[str, ...] = (
    *("sky", "water", "road", "grass", "lighthouse", "office", "silo", "balloon"),
)
PALETTE: tuple[tuple[int, int, int], ...] = (
    *((86, 180, 233), (0, 92, 170), (84, 84, 100), (0, 158, 115)),
    *((240, 228, 66), (213, 94, 0), (226, 140, 190), (245, 245, 245)),
)
CONTEXT_CLASSES: tuple[str, ...] = ("lighthouse", "office", "silo")
IGNORE = 255
TOWER_ON = {"water": "lighthouse", "road": "office", "grass": "silo"}

_BAND = 1.0  # pixels to ignore on either side of an object's outline


def colours(text: str) -> np.ndarray:
    """Colours (n, 3, 1, 1) from words of six hexadecimal digits."""
    rgb = np.array([list(bytes.fromhex(word)) for word in text.split()], np.float32)
    return rgb[..., None, None]


_FLOWERS = colours("fff4fa ffdc46 fa82aa")
_SEA, _ASPHALT, _MEADOW, _BLADE, _WICKER, _LAMP = colours(
    "1e70a8 fffaf7 428028 323e16 966234 ffdc82"
)


@dataclasses.dataclass(frozen=True)
class Light:
    """Time of day and weather; colours are RGB."""

    zenith: np.ndarray
    horizon: np.ndarray
    sun: np.ndarray
    tint: np.ndarray  # RGB factor on all colours
    darkness: float  # 0 at noon, 1 at night
    place: tuple[float, float]  # of the sun or the moon
    clouds: float  # share of the sky, 0..1


@dataclasses.dataclass(frozen=True)
class Tower:
    """A tower, without the class that its ground gives it."""

    x: float
    base: float  # y of the foot
    top: float  # y of the tip of the roof
    foot: float  # half the width at the foot
    head: float  # half the width under the roof
    roof: int  # 0 dome, 1 cone, 2 battlements
    wall: np.ndarray
    trim: np.ndarray
    bands: bool  # whether every other pair of storeys has the roof's paint
    storey: float  # height of a storey
    panes: np.ndarray  # the darkness at which each window is lit, (storeys, columns)


@dataclasses.dataclass(frozen=True)
class Balloon:
    """A balloon, with a basket below it."""

    x: float
    y: float
    radius: float
    silks: np.ndarray  # colours of the gores, (1 to 3, 3, 1, 1)
    face: bool


@dataclasses.dataclass(frozen=True)
class Layout:
    """A scene without the kinds of ground."""

    light: Light
    horizon: float  # y at which the ground starts
    borders: tuple[float, ...]  # x between neighbouring sections of ground
    towers: tuple[Tower, ...]
    balloons: tuple[Balloon, ...]


@functools.lru_cache(maxsize=256)
def _splines(pixels: int, cells: float | int) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's first lattice point (n,) and quadratic weights (3, n)."""
    at = (np.arange(pixels) + 0.5) / pixels * cells
    i = at.astype(int)
    f = at - i
    weights = np.stack(((1 - f) ** 2 / 2, 0.5 + f * (1 - f), f * f / 2))
    return i, weights.astype(np.float32)


def _noise(rng, shape: tuple[int, ...], cells) -> np.ndarray:
    """Smooth noise in 0..1, (rows, columns), with that many cells.

    The random draws depend only on the cells, so that scenes look the same at every
    size. Sums of slices, not matrix products, give the same result on every machine,
    without threads.
    """
    (i, down), (j, along) = map(_splines, shape, cells)
    values = rng.random([int(np.ceil(c)) + 2 for c in cells], np.float32)
    values = sum(w[:, None] * values[i + k] for k, w in enumerate(down))
    return sum(w * values.take(j + k, 1) for k, w in enumerate(along))


class Canvas:
    """An image and its label map, painted over from back to front.

    A shape is a signed distance to its outline, in scene units, negative inside.

    Args:
        size: width and height in pixels.
    """

    def __init__(self, size: int):
        self.unit = size / EXTENT  # pixels per scene unit
        self.rgb = np.zeros((3, size, size), np.float32)
        self.label = np.zeros((size, size), np.uint8)

    def window(self, x0: float, x1: float, y0: float, y1: float):
        """The slices of a box, and x (1, w), y (h, 1) of its pixel centres."""
        size = len(self.label)
        x0, x1, y0, y1 = (
            min(max(round(edge * self.unit), 0), size) for edge in (x0, x1, y0, y1)
        )
        x = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / self.unit)[None, :]
        y = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / self.unit)[:, None]
        return (slice(y0, y1), slice(x0, x1)), x, y

    def paint(self, box, distance, colour) -> None:
        """Blends a colour into a shape; its edge is smooth over one pixel."""
        cover = np.clip(0.5 - distance * self.unit, 0, 1)
        below = self.rgb[:, *box]
        below += cover * (colour - below)

    def mark(self, box, distance, name: str) -> None:
        """Labels a shape, and ignores the pixels near its outline."""
        label = self.label[box]
        label[distance < 0] = CLASSES.index(name)
        label[np.abs(distance) * self.unit < _BAND] = IGNORE


def _ellipse(x, y, rx: float, ry: float):
    """Approximate signed distance to an ellipse about the origin."""
    return (np.hypot(x / rx, y / ry) - 1) * min(rx, ry)


def _box(x, y, rx, ry):
    """Signed distance (inside and beside it) to a box about the origin."""
    return np.maximum(np.abs(x) - rx, np.abs(y) - ry)


def paint_sky(canvas: Canvas, light: Light, horizon: float, rng) -> None:
    """Paints the whole canvas: a gradient, the sun and its glow, stars, clouds."""
    box, x, y = canvas.window(0.0, EXTENT, 0.0, EXTENT)
    height = np.clip(y / horizon, 0, 1)
    canvas.rgb[:] = light.zenith + height**1.3 * (light.horizon - light.zenith)
    away = np.hypot(x - light.place[0], y - light.place[1])
    canvas.rgb += 0.55 * np.exp(-away / 38) * (light.sun - canvas.rgb)
    canvas.paint(box, away - 11, light.sun)
    canvas.label[:] = CLASSES.index("sky")
    # Stars, one pixel each, appear in the dark.
    stars = (rng.random((90, 2)) * len(canvas.label) * (0.8, 1)).astype(int)
    canvas.rgb[:, stars[:, 0], stars[:, 1]] += 130 * light.darkness**2
    # Clouds: noise of four octaves above a level, brightest at their tops.
    octaves = {(4.3, 2.2): 0.42, (9, 5.3): 0.29, (19, 12): 0.18, (37, 26): 0.11}
    shape = canvas.label.shape
    field = sum(w * _noise(rng, shape, cells) for cells, w in octaves.items())
    cover = np.clip((field - 0.6 + 0.2 * light.clouds) / 0.11, 0, 1)
    cover = 0.85 * cover * cover * (3 - 2 * cover)
    step = max(1, round(5 * canvas.unit))
    higher = np.pad(field, ((step, 0), (0, 0)), mode="edge")[:-step]
    relief = np.clip(0.5 + 4 * (field - higher), 0, 1)
    lit = 0.6 * 255 * light.tint + 0.4 * light.sun
    dim = 0.62 * light.horizon + 0.33 * light.zenith
    canvas.rgb += cover * (dim + relief * (lit - dim) - canvas.rgb)


def _water(x, depth, shape, light: Light, rng):
    """The colour of waves; depth is 0 at the horizon, 1 at the lower edge."""
    swell = 5 * np.sqrt(depth) + 0.9 * _noise(rng, shape, (3, 14))
    swell = swell + 0.45 * _noise(rng, shape, (8, 40))
    crest = np.sin(2 * np.pi * swell)
    blue = 0.82 * _SEA * light.tint + 0.12 * light.horizon
    foam = np.clip(4 * crest - 3.1, 0, 1)
    glitter = np.exp(-np.abs(x - light.place[0]) / 22)
    colour = blue * (1 + 0.22 * crest) + 0.55 * foam * (235 * light.tint - blue)
    return colour + 0.35 * glitter * np.clip(crest, 0, 1) * light.sun


def _road(x, depth, shape, light: Light, rng):
    """The colour of asphalt with a kerb and a dashed line."""
    grain = _noise(rng, shape, (24, 200)) + _noise(rng, shape, (4, 26))
    grey = 66 + 22 * grain
    dash = ((x + 400 * rng.random()) % 26 < 15) & (np.abs(depth - 0.6) < 0.07)
    kerb = depth < 0.13
    slab = (x % 9 > 1) * 22 + 140
    grey = np.where(dash, 236, np.where(kerb, slab, grey))
    return grey * light.tint * _ASPHALT / 255


def _grass(x, depth, shape, light: Light, rng):
    """The colour of blades of grass, with flowers."""
    blades = _noise(rng, shape, (3, 128)) + 0.6 * _noise(rng, shape, (2, 30))
    blades = blades * (0.6 + 0.6 * depth)
    green = _MEADOW + 1.2 * blades * _BLADE
    for colour in _FLOWERS:
        at = rng.random((14, 1, 1)) * EXTENT, rng.uniform(0.3, 1.0, (14, 1, 1))
        away = _box(x - at[0], 28 * (depth - at[1]), 0, 0)
        np.copyto(green, colour, where=away.min(0) < 1.1)
    return green * light.tint


_TEXTURES = {"water": _water, "road": _road, "grass": _grass}


def paint_ground(canvas: Canvas, layout: Layout, grounds, rng) -> None:
    """Paints the sections of ground, and the shadows of the towers on them."""
    box, x, y = canvas.window(0.0, EXTENT, layout.horizon - 4, EXTENT)
    shape = y.shape[0], x.shape[1]
    depth = np.clip((y - layout.horizon) / (EXTENT - layout.horizon), 0, 1)
    ripple = _noise(rng, (1, x.shape[1]), (1, 60)) * 4 - 2
    lefts, rights = (-EXTENT, *layout.borders), (*layout.borders, 2 * EXTENT)
    for left, right, kind in zip(lefts, rights, grounds, strict=True):
        above = layout.horizon + (ripple if kind == "grass" else 0) - y
        colour = _TEXTURES[kind](x, depth, shape, layout.light, rng)
        canvas.paint(box, np.where((left <= x) & (x < right), above, EXTENT), colour)
        canvas.mark(box, np.maximum(above, np.maximum(left - x, x - right)), kind)
    for tower in layout.towers:
        middle, foot = tower.x, tower.base
        box, x, y = canvas.window(middle - 40, middle + 40, foot - 4, foot + 10)
        shadow = -_ellipse(x - middle, y - foot, tower.foot + 7, 6.0)
        canvas.rgb[:, *box] *= 1 - 0.55 * np.clip(shadow / 5, 0, 1)


def _round_shade(across, light: Light, x: float):
    """The light on a cylinder at `across` (-1..1 from edge to edge).

    The light comes from the side of the sun, as seen from x.
    """
    angle = 1.1 * np.clip((light.place[0] - x) / 100, -1, 1)
    facing = across * np.sin(angle) + np.sqrt(1 - across**2) * np.cos(angle)
    return 0.55 + 0.5 * np.clip(facing, 0, 1)


def _wall(tower: Tower, x, y, across, light: Light, rng):
    """The colour of a tower's wall: courses, painted bands, windows."""
    up = (tower.base - y) / tower.storey
    banded = (up % 4 >= 2) & (up > 0) if tower.bands else np.zeros_like(y, bool)
    band = 0.35 * tower.wall + 0.65 * tower.trim
    colour = np.where(banded, band, tower.wall)
    grain = 1 + 0.14 * (_noise(rng, (y.size, x.size), (66, 18)) - 0.5)
    course = 1 - 0.07 * (up * 3 % 1 < 0.22)
    colour = colour * (grain * course)
    colour = colour * light.tint * _round_shade(across, light, tower.x)
    around = np.arcsin(across) / 0.62 + 2.5  # one window per 36 degrees
    inside = _box(around % 1 - 0.5, up % 1 - 0.5, 0.24, 0.27) < 0
    inside &= (up > 1) & (np.abs(across) < 0.93)
    lit = tower.panes < 0.08 + 0.5 * light.darkness
    lit = lit[np.clip(up, 0, 19).astype(int), np.clip(around, 0, 4).astype(int)]
    pane = np.where(lit, _LAMP, 62 * light.tint + 0.12 * light.zenith)
    return np.where(inside, pane, colour)


def _roof_distance(tower: Tower, x, y, eave: float):
    """Signed distance to a roof; x is from the middle of the tower."""
    rise = eave - tower.top
    if tower.roof == 0:
        return np.maximum(_ellipse(x, y - eave, tower.head, rise), y - eave)
    if tower.roof == 1:
        slope = tower.head / rise
        side = (np.abs(x) - slope * (y - tower.top)) / np.hypot(1, slope)
        return np.maximum(side, y - eave)
    notch = np.abs((x / tower.head * 2.5) % 1 - 0.5) * tower.head / 2.5 - 1.6
    wall = np.maximum(np.abs(x) - tower.head - 2, np.abs(y - eave + 4) - 4)
    return np.maximum(wall, np.minimum(notch, y - eave + 4) * -1)


def paint_tower(canvas: Canvas, tower: Tower, name: str, light: Light, rng) -> None:
    """Paints wall, roof, and the ring between them; `name` only affects the label."""
    reach = tower.foot + 6
    box, x, y = canvas.window(
        tower.x - reach, tower.x + reach, tower.top - 3, tower.base + 5
    )
    dx, eave = x - tower.x, tower.top + 1.1 * tower.head
    along = np.clip((y - eave) / (tower.base - eave), 0, 1)
    half = tower.head + along * (tower.foot - tower.head)
    across = np.clip(dx / half, -0.999, 0.999)
    floor = tower.base + 2 * np.sqrt(1 - across**2)
    body = np.maximum(np.abs(dx) - half, np.maximum(eave - y, y - floor))
    roof = _roof_distance(tower, dx, y, eave)
    ring = _box(dx, y - eave, tower.head + 3, 2)
    shade = light.tint * _round_shade(across, light, tower.x)
    canvas.paint(box, body, _wall(tower, x, y, across, light, rng))
    canvas.paint(box, roof, tower.trim * shade)
    canvas.paint(box, ring, 0.9 * tower.wall * shade)
    canvas.mark(box, np.minimum(np.minimum(body, roof), ring), name)


def _envelope(x, y, radius: float, mouth: float, length: float):
    """Signed distance to two circles, `length` apart, and the tangents that join them.

    The upper circle, about the origin, has `radius`; the lower one has `mouth`.
    """
    x, lean = np.abs(x), (radius - mouth) / length
    rise = np.sqrt(1 - lean**2)
    along = y * rise - x * lean
    upper, lower = np.hypot(x, y) - radius, np.hypot(x, y - length) - mouth
    side = x * rise + y * lean - radius
    return np.where(along < 0, upper, np.where(along > rise * length, lower, side))


def paint_balloon(canvas: Canvas, balloon: Balloon, light: Light) -> None:
    """Paints gores of silk (or a smile), ropes, and a basket."""
    r = balloon.radius
    box, x, y = canvas.window(
        balloon.x - r - 3, balloon.x + r + 3, balloon.y - r - 3, balloon.y + 2.4 * r + 3
    )
    dx, dy = x - balloon.x, y - balloon.y
    silk = _envelope(dx, dy, r, 0.22 * r, 1.25 * r)
    half = np.where(dy < 0, np.sqrt(np.clip(r * r - dy * dy, 1e-3, None)), r - 0.5 * dy)
    across = np.clip(dx / np.clip(half, 0.25 * r, None), -0.999, 0.999)
    gore = ((np.arcsin(across) / np.pi + 0.5) * 6).astype(int)
    shade = _round_shade(across, light, balloon.x) * (1.08 - 0.1 * dy / r)
    glow = 0.5 + 0.5 * light.tint  # a flame burns within
    colour = balloon.silks[..., 0, 0].T[:, gore % len(balloon.silks)]
    canvas.paint(box, silk, colour * shade * glow)
    if balloon.face:
        eyes = _ellipse(np.abs(dx / r) - 0.3, dy / r + 0.2, 0.1, 0.16)
        mouth = np.abs(np.hypot(dx / r, dy / r - 0.02) - 0.46) - 0.07
        smile = np.maximum(mouth, 0.16 - dy / r)
        canvas.paint(box, np.minimum(eyes, smile) * r, 40.0)
    basket = _box(dx, dy - 2.05 * r, 0.24 * r, 0.16 * r)
    ropes = np.maximum(
        np.abs(np.abs(dx) - 0.2 * r) - 0.5, np.abs(dy - 1.6 * r) - 0.4 * r
    )
    canvas.paint(box, ropes, 60 * light.tint)
    canvas.paint(box, basket, _WICKER * light.tint)
    canvas.mark(box, np.minimum(silk, basket), "balloon")
