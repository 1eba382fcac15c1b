"""Painting scenes: the canvas, and the sky and the ground behind all objects.

A painter's algorithm: sky, ground, towers, and balloons cover one another, from back to
front, in the image and in the label map at once. A shape is a signed distance to its
outline, so that edges are smooth, and the ignored band along them is one pixel wide on
either side, at every size. Textures are sums of smooth noise on lattices whose cells
scale with the scene; clouds, stars, waves, flowers, and plaster are random.

All geometry is in scene units: a scene is 256 units wide and high, x to the right, y
down, whatever its size in pixels. Colours are RGB in 0..255, (3, 1, 1), and images
(3, h, w) until they are done: planes of 256 x 256 are several times faster to paint
than pixels of 3.
"""

from __future__ import annotations

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


# Five times of day, morning to night; a scene mixes two neighbours.
_ZENITH = colours("68a0de 3e86d6 5c7aba 3e3676 121842")
_HORIZON = colours("ffe2c4 c4e4f6 ffc480 f48a70 48548e")
_SUN = colours("ffecbe fffae2 ffd882 ffa06a e8ecfa")
_LIGHT = colours("fff2e6 ffffff ffdeb8 cca8b2 808ab2") / 255
_DARKNESS = np.array((0.1, 0.0, 0.25, 0.75, 1.0), np.float32)

_FLOWERS = colours("fff4fa ffdc46 fa82aa")
_SEA, _ASPHALT, _MEADOW, _BLADE = colours("1e70a8 fffaf7 428028 323e16")


@functools.lru_cache(maxsize=256)
def _splines(pixels: int, cells: float | int) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's first lattice point (n,) and quadratic weights (3, n)."""
    at = (np.arange(pixels) + 0.5) / pixels * cells
    i = at.astype(int)
    f = at - i
    weights = np.stack(((1 - f) ** 2 / 2, 0.5 + f * (1 - f), f * f / 2))
    return i, weights.astype(np.float32)


def noise(rng, shape: tuple[int, ...], cells) -> np.ndarray:
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

    def paint(self, area, distance, colour) -> None:
        """Blends a colour into a shape; its edge is smooth over one pixel."""
        cover = np.clip(0.5 - distance * self.unit, 0, 1)
        below = self.rgb[:, *area]
        below += cover * (colour - below)

    def mark(self, area, distance, name: str) -> None:
        """Labels a shape, and ignores the pixels near its outline."""
        label = self.label[area]
        label[distance < 0] = CLASSES.index(name)
        label[np.abs(distance) * self.unit < _BAND] = IGNORE


def ellipse(x, y, rx: float, ry: float):
    """Approximate signed distance to an ellipse about the origin."""
    return (np.hypot(x / rx, y / ry) - 1) * min(rx, ry)


def box(x, y, rx, ry):
    """Signed distance (inside and beside it) to a box about the origin."""
    return np.maximum(np.abs(x) - rx, np.abs(y) - ry)


class Light:
    """A time of day, drawn at random, and the weather.

    Attributes:
        zenith: colour of the sky above.
        horizon: colour of the sky at the horizon.
        sun: colour of the sun or the moon.
        tint: RGB factor on all colours.
        darkness: 0 at noon, 1 at night.
        place: (x, y) of the sun or the moon.
        clouds: share of the sky, 0..1.
    """

    def __init__(self, rng: np.random.Generator):
        hour = 3.8 * rng.random() ** 1.4  # more of the day than of the night
        i, f = int(hour), np.float32(hour % 1)
        self.zenith, self.horizon, self.sun, self.tint, darkness = (
            (1 - f) * table[i] + f * table[i + 1]
            for table in (_ZENITH, _HORIZON, _SUN, _LIGHT, _DARKNESS)
        )
        self.darkness = float(darkness)
        self.place = rng.uniform(10, 246), rng.uniform(20, 150)
        self.clouds = rng.uniform(0.1, 0.6)

    def shade(self, across, x: float):
        """The light on a cylinder at `across` (-1..1 from edge to edge).

        The light comes from the side of the sun, as seen from x.
        """
        angle = 1.1 * np.clip((self.place[0] - x) / 100, -1, 1)
        facing = across * np.sin(angle) + np.sqrt(1 - across**2) * np.cos(angle)
        return 0.55 + 0.5 * np.clip(facing, 0, 1)

    def paint_sky(self, canvas: Canvas, horizon: float, rng) -> None:
        """Paints the whole canvas: a gradient, the sun and its glow, stars, clouds."""
        area, x, y = canvas.window(0.0, EXTENT, 0.0, EXTENT)
        height = np.clip(y / horizon, 0, 1)
        canvas.rgb[:] = self.zenith + height**1.3 * (self.horizon - self.zenith)
        away = np.hypot(x - self.place[0], y - self.place[1])
        canvas.rgb += 0.55 * np.exp(-away / 38) * (self.sun - canvas.rgb)
        canvas.paint(area, away - 11, self.sun)
        canvas.label[:] = CLASSES.index("sky")
        # Stars, one pixel each, appear in the dark.
        stars = (rng.random((90, 2)) * len(canvas.label) * (0.8, 1)).astype(int)
        canvas.rgb[:, stars[:, 0], stars[:, 1]] += 130 * self.darkness**2
        # Clouds: noise of four octaves above a level, brightest at their tops.
        octaves = {(4.3, 2.2): 0.42, (9, 5.3): 0.29, (19, 12): 0.18, (37, 26): 0.11}
        shape = canvas.label.shape
        field = sum(w * noise(rng, shape, cells) for cells, w in octaves.items())
        cover = np.clip((field - 0.6 + 0.2 * self.clouds) / 0.11, 0, 1)
        cover = 0.85 * cover * cover * (3 - 2 * cover)
        step = max(1, round(5 * canvas.unit))
        higher = np.pad(field, ((step, 0), (0, 0)), mode="edge")[:-step]
        relief = np.clip(0.5 + 4 * (field - higher), 0, 1)
        lit = 0.6 * 255 * self.tint + 0.4 * self.sun
        dim = 0.62 * self.horizon + 0.33 * self.zenith
        canvas.rgb += cover * (dim + relief * (lit - dim) - canvas.rgb)


def _water(x, depth, shape, light: Light, rng):
    """The colour of waves; depth is 0 at the horizon, 1 at the lower edge."""
    swell = 5 * np.sqrt(depth) + 0.9 * noise(rng, shape, (3, 14))
    swell = swell + 0.45 * noise(rng, shape, (8, 40))
    crest = np.sin(2 * np.pi * swell)
    blue = 0.82 * _SEA * light.tint + 0.12 * light.horizon
    foam = np.clip(4 * crest - 3.1, 0, 1)
    glitter = np.exp(-np.abs(x - light.place[0]) / 22)
    colour = blue * (1 + 0.22 * crest) + 0.55 * foam * (235 * light.tint - blue)
    return colour + 0.35 * glitter * np.clip(crest, 0, 1) * light.sun


def _road(x, depth, shape, light: Light, rng):
    """The colour of asphalt with a kerb and a dashed line."""
    grain = noise(rng, shape, (24, 200)) + noise(rng, shape, (4, 26))
    grey = 66 + 22 * grain
    dash = ((x + 400 * rng.random()) % 26 < 15) & (np.abs(depth - 0.6) < 0.07)
    kerb = depth < 0.13
    slab = (x % 9 > 1) * 22 + 140
    grey = np.where(dash, 236, np.where(kerb, slab, grey))
    return grey * light.tint * _ASPHALT / 255


def _grass(x, depth, shape, light: Light, rng):
    """The colour of blades of grass, with flowers."""
    blades = noise(rng, shape, (3, 128)) + 0.6 * noise(rng, shape, (2, 30))
    blades = blades * (0.6 + 0.6 * depth)
    green = _MEADOW + 1.2 * blades * _BLADE
    for colour in _FLOWERS:
        at = rng.random((14, 1, 1)) * EXTENT, rng.uniform(0.3, 1.0, (14, 1, 1))
        away = box(x - at[0], 28 * (depth - at[1]), 0, 0)
        np.copyto(green, colour, where=away.min(0) < 1.1)
    return green * light.tint


# The colours of each kind of ground.
TEXTURES = {"water": _water, "road": _road, "grass": _grass}
