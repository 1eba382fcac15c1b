"""Scenes: a rendered data set in which only context distinguishes some of the classes.

According to Yu and Koltun (2016), §3, a context module helps by seeing further. Here
that is necessary by construction. Every scene has tall towers on a thin strip of
ground, and the class of a tower depends only on the ground below it: a lighthouse
stands on water, an office on a road, a silo on grass. Everything else about the towers
has the same distribution for all classes: shape, position, paint, light, and weather
are drawn before the kinds of ground, from separate random streams. Sky, ground, and the
balloons in front can be classified from nearby pixels.

Everything is placed in units of which a scene is 256 wide and high. `scenes_painting`
has the canvas, the sky, and the ground. In 256-pixel scenes about 57 percent of all
tower pixels are more than 75 pixels away from any ground: out of reach of a front end
(26 to 30 pixels wide) and of an undilated module on top of it (15 cells of 8 pixels
wide), but within reach of the Basic module (67 cells).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from dilax.data.scenes_painting import (
    EXTENT,
    TEXTURES,
    TOWER_ON,
    Canvas,
    Light,
    box,
    colours,
    ellipse,
    noise,
)

SPLITS = {"train": 400, "val": 100}

_SPLIT_KEYS = {"train": 1, "val": 2}

_WALLS = colours("ccc6bc bcbec4 d6c4ac b0b8b4 c8b8b8")
_ROOFS = colours("96544e 546a78 70627c 5c7468")
_SILKS = colours("e43a34 fab41e faf2dc 2864c8 ec5496 6e3caa 18a096")
_WICKER, _LAMP = colours("966234 ffdc82")


class Scenes(Sequence):
    """A split of the scenes; each scene is rendered on first access, and cached.

    Scene i of a split depends only on (seed, split, i), so that a shorter split is a
    prefix of a longer one. Arrays are read-only because they are cached. Threads may
    share an instance: two that request the same scene at once both render it.

    Args:
        split: "train" or "val".
        count: number of scenes; the number in `SPLITS` if None.
        size: width and height in pixels, a multiple of 8, at least 64; it scales the
            scenes and changes nothing else.
        seed: each seed is a different data set.

    Raises:
        ValueError: if an argument is not allowed.

    Example:
        >>> [example["id"] for example in Scenes("val", count=2, size=64)]
        ['val_00000', 'val_00001']
    """

    def __init__(
        self, split: str, count: int | None = None, size: int = 256, seed: int = 0
    ):
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: must be one of {', '.join(SPLITS)}")
        if count is not None and count < 1:
            raise ValueError(f"count={count}: must be at least 1, or None")
        if size < 64 or size % 8:
            raise ValueError(f"size={size}: must be a multiple of 8, at least 64")
        if seed < 0:
            raise ValueError(f"seed={seed}: must be at least 0")
        self.split, self.size, self.seed = split, size, seed
        self._length = SPLITS[split] if count is None else count
        self._rendered: dict[int, dict] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        """Image (h, w, 3) uint8 RGB, label (h, w) uint8, and id.

        A label is an index into `scenes_painting.CLASSES`, or `IGNORE` within a pixel
        of an outline.
        """
        i = operator.index(index)
        i = i + self._length if i < 0 else i
        if not 0 <= i < self._length:
            raise IndexError(f"index={index}: {self.split} has {self._length} scenes")
        if i not in self._rendered:
            key = (self.seed, _SPLIT_KEYS[self.split], i)
            # The kinds of ground have their own stream: nothing else depends on them,
            # so that everything else has the same distribution for all classes.
            placing, naming, above, below = (
                np.random.Generator(np.random.PCG64(stream))
                for stream in np.random.SeedSequence(key).spawn(4)
            )
            layout = Layout(placing)
            grounds = naming.permutation(list(TOWER_ON))[: len(layout.borders) + 1]
            image, label = paint(layout, grounds.tolist(), above, below, self.size)
            image.flags.writeable = label.flags.writeable = False
            name = f"{self.split}_{i:05d}"
            self._rendered[i] = {"image": image, "label": label, "id": name}
        return dict(self._rendered[i])


class Layout:
    """The position of everything, drawn at random, without the kinds of ground.

    Attributes:
        light: time of day and weather.
        horizon: y at which the ground starts.
        borders: x between neighbouring sections of ground.
        towers: at least 8 units away from the borders.
        balloons: in front of them.
    """

    def __init__(self, rng: np.random.Generator):
        self.light, self.horizon = Light(rng), rng.uniform(229, 235)
        count = int(rng.integers(2, 5))
        moved = rng.uniform(-0.06, 0.06, count - 1)
        inner = EXTENT / count * (np.arange(1, count) + moved)
        edges = [0.0, *inner, EXTENT]
        empty = int(rng.integers(2 * count))  # the place that is left empty, if any
        self.towers = [
            Tower(rng, edges[i] + 8, edges[i + 1] - 8, self.horizon)
            for i in range(count)
            if i != empty
        ]
        sections = int(rng.integers(1, min(count, len(TOWER_ON)) + 1))
        self.borders = sorted(rng.permutation(inner)[: sections - 1])
        self.balloons = [Balloon(rng) for _ in range(rng.integers(1, 4))]

    def paint_ground(self, canvas: Canvas, kinds: Sequence[str], rng) -> None:
        """Paints the sections of ground, and the shadows of the towers on them."""
        area, x, y = canvas.window(0.0, EXTENT, self.horizon - 4, EXTENT)
        shape = y.shape[0], x.shape[1]
        depth = np.clip((y - self.horizon) / (EXTENT - self.horizon), 0, 1)
        ripple = noise(rng, (1, x.shape[1]), (1, 60)) * 4 - 2
        lefts, rights = (-EXTENT, *self.borders), (*self.borders, 2 * EXTENT)
        for left, right, kind in zip(lefts, rights, kinds, strict=True):
            above = self.horizon + (ripple if kind == "grass" else 0) - y
            colour = TEXTURES[kind](x, depth, shape, self.light, rng)
            inside = (left <= x) & (x < right)
            canvas.paint(area, np.where(inside, above, EXTENT), colour)
            canvas.mark(area, np.maximum(above, np.maximum(left - x, x - right)), kind)
        for tower in self.towers:
            middle, foot = tower.x, tower.base
            area, x, y = canvas.window(middle - 40, middle + 40, foot - 4, foot + 10)
            shadow = -ellipse(x - middle, y - foot, tower.foot + 7, 6.0)
            canvas.rgb[:, *area] *= 1 - 0.55 * np.clip(shadow / 5, 0, 1)


def paint(
    layout: Layout,
    grounds: Sequence[str],
    above: np.random.Generator,
    below: np.random.Generator,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint a layout; the ground below a tower determines its class.

    Args:
        layout: the position of everything.
        grounds: the kind of ground of each section, left to right.
        above: generator for the textures of sky and towers.
        below: generator for the textures of the ground.
        size: of the picture, in pixels.

    Returns:
        Image (size, size, 3), uint8, and label (size, size), uint8.
    """
    canvas, light = Canvas(size), layout.light
    light.paint_sky(canvas, layout.horizon, above)
    layout.paint_ground(canvas, grounds, below)
    for tower in layout.towers:
        ground = grounds[int(np.searchsorted(layout.borders, tower.x))]
        tower.paint(canvas, TOWER_ON[ground], light, above)
    for balloon in layout.balloons:
        balloon.paint(canvas, light)
    image = np.clip(canvas.rgb + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0)), canvas.label


class Tower:
    """A tower, drawn at random, without the class that its ground gives it.

    Args:
        rng: generator for its shape, position, and paint.
        left: x at which its section of ground starts.
        right: x at which it ends.
        y: the upper edge of the ground.

    Attributes:
        x: of its middle.
        base: y of the foot.
        top: y of the tip of the roof.
        foot: half the width at the foot.
        head: half the width under the roof.
        roof: 0 dome, 1 cone, 2 battlements.
        bands: whether every other pair of storeys has the roof's paint.
        storey: height of a storey.
        panes: the darkness at which each window is lit, (storeys, columns).
    """

    def __init__(self, rng: np.random.Generator, left: float, right: float, y: float):
        self.foot = foot = min(rng.uniform(15, 21), (right - left) / 2)
        self.x = rng.uniform(left + foot, right - foot)
        self.base = y + rng.uniform(4, 9)
        self.top = rng.uniform(8, 44)
        self.head = foot * rng.uniform(0.8, 1.0)
        self.roof = int(rng.integers(3))
        self.wall = _WALLS[rng.integers(len(_WALLS))] * rng.uniform(0.92, 1.08)
        self.trim = _ROOFS[rng.integers(len(_ROOFS))]
        self.bands = bool(rng.random() < 0.35)
        self.storey = rng.uniform(12, 16)
        self.panes = rng.random((20, 5), np.float32)

    def paint(self, canvas: Canvas, name: str, light: Light, rng) -> None:
        """Paints wall, roof, and the ring between them; `name` only labels them."""
        reach = self.foot + 6
        area, x, y = canvas.window(
            self.x - reach, self.x + reach, self.top - 3, self.base + 5
        )
        dx, eave = x - self.x, self.top + 1.1 * self.head
        along = np.clip((y - eave) / (self.base - eave), 0, 1)
        half = self.head + along * (self.foot - self.head)
        across = np.clip(dx / half, -0.999, 0.999)
        floor = self.base + 2 * np.sqrt(1 - across**2)
        body = np.maximum(np.abs(dx) - half, np.maximum(eave - y, y - floor))
        roof = self._roof(dx, y, eave)
        ring = box(dx, y - eave, self.head + 3, 2)
        shade = light.tint * light.shade(across, self.x)
        canvas.paint(area, body, self._wall(x, y, across, light, rng))
        canvas.paint(area, roof, self.trim * shade)
        canvas.paint(area, ring, 0.9 * self.wall * shade)
        canvas.mark(area, np.minimum(np.minimum(body, roof), ring), name)

    def _wall(self, x, y, across, light: Light, rng):
        """The colour of the wall: courses, painted bands, windows."""
        up = (self.base - y) / self.storey
        banded = (up % 4 >= 2) & (up > 0) if self.bands else np.zeros_like(y, bool)
        band = 0.35 * self.wall + 0.65 * self.trim
        colour = np.where(banded, band, self.wall)
        grain = 1 + 0.14 * (noise(rng, (y.size, x.size), (66, 18)) - 0.5)
        course = 1 - 0.07 * (up * 3 % 1 < 0.22)
        colour = colour * (grain * course)
        colour = colour * light.tint * light.shade(across, self.x)
        around = np.arcsin(across) / 0.62 + 2.5  # one window per 36 degrees
        inside = box(around % 1 - 0.5, up % 1 - 0.5, 0.24, 0.27) < 0
        inside &= (up > 1) & (np.abs(across) < 0.93)
        lit = self.panes < 0.08 + 0.5 * light.darkness
        lit = lit[np.clip(up, 0, 19).astype(int), np.clip(around, 0, 4).astype(int)]
        pane = np.where(lit, _LAMP, 62 * light.tint + 0.12 * light.zenith)
        return np.where(inside, pane, colour)

    def _roof(self, x, y, eave: float):
        """Signed distance to the roof; x is from the middle of the tower."""
        rise = eave - self.top
        if self.roof == 0:
            return np.maximum(ellipse(x, y - eave, self.head, rise), y - eave)
        if self.roof == 1:
            slope = self.head / rise
            side = (np.abs(x) - slope * (y - self.top)) / np.hypot(1, slope)
            return np.maximum(side, y - eave)
        notch = np.abs((x / self.head * 2.5) % 1 - 0.5) * self.head / 2.5 - 1.6
        wall = np.maximum(np.abs(x) - self.head - 2, np.abs(y - eave + 4) - 4)
        return np.maximum(wall, np.minimum(notch, y - eave + 4) * -1)


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


class Balloon:
    """A balloon, drawn at random, whose basket hangs well above the ground.

    Attributes:
        x: of its middle.
        y: of its middle.
        radius: of the silk.
        silks: colours of the gores, (1 to 3, 3, 1, 1).
    """

    def __init__(self, rng: np.random.Generator):
        self.radius = radius = rng.uniform(13, 24)
        count = int(rng.integers(1, 4))  # of colours; plain balloons have a face
        self.x = rng.uniform(5, EXTENT - 5)
        self.y = rng.uniform(radius, 175 - radius)
        self.silks = _SILKS[rng.permutation(len(_SILKS))[:count]]

    def paint(self, canvas: Canvas, light: Light) -> None:
        """Paints gores of silk (or a smile), ropes, and a basket."""
        r = self.radius
        area, x, y = canvas.window(
            self.x - r - 3, self.x + r + 3, self.y - r - 3, self.y + 2.4 * r + 3
        )
        dx, dy = x - self.x, y - self.y
        silk = _envelope(dx, dy, r, 0.22 * r, 1.25 * r)
        half = np.where(
            dy < 0, np.sqrt(np.clip(r * r - dy * dy, 1e-3, None)), r - 0.5 * dy
        )
        across = np.clip(dx / np.clip(half, 0.25 * r, None), -0.999, 0.999)
        gore = ((np.arcsin(across) / np.pi + 0.5) * 6).astype(int)
        shade = light.shade(across, self.x) * (1.08 - 0.1 * dy / r)
        glow = 0.5 + 0.5 * light.tint  # a flame burns within
        colour = self.silks[..., 0, 0].T[:, gore % len(self.silks)]
        canvas.paint(area, silk, colour * shade * glow)
        if len(self.silks) == 1:
            eyes = ellipse(np.abs(dx / r) - 0.3, dy / r + 0.2, 0.1, 0.16)
            mouth = np.abs(np.hypot(dx / r, dy / r - 0.02) - 0.46) - 0.07
            smile = np.maximum(mouth, 0.16 - dy / r)
            canvas.paint(area, np.minimum(eyes, smile) * r, 40.0)
        basket = box(dx, dy - 2.05 * r, 0.24 * r, 0.16 * r)
        ropes = np.maximum(
            np.abs(np.abs(dx) - 0.2 * r) - 0.5, np.abs(dy - 1.6 * r) - 0.4 * r
        )
        canvas.paint(area, ropes, 60 * light.tint)
        canvas.paint(area, basket, _WICKER * light.tint)
        canvas.mark(area, np.minimum(silk, basket), "balloon")
