"""Scenes: a rendered data set in which only context distinguishes some of the classes.

According to Yu and Koltun (2016), §3, a context module helps by seeing further. Here
that is necessary by construction. Every scene has tall towers on a thin strip of
ground, and the class of a tower depends only on the ground below it: a lighthouse
stands on water, an office on a road, a silo on grass. Everything else about the towers
has the same distribution for all classes: shape, position, paint, light, and weather
are drawn before the kinds of ground, from separate random streams. Sky, ground, and the
balloons in front can be classified from nearby pixels.

This module decides where objects are, in units of which a scene is 256 wide and high;
`dilax.data.scenes_objects` paints and labels them. In 256-pixel scenes about 57 percent
of all tower pixels are more than 75 pixels away from any ground: out of reach of a
front end (26 to 30 pixels wide) and of an undilated module on top of it (15 cells of 8
pixels wide), but within reach of the Basic module (67 cells).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from dilax.data.scenes_objects import Balloon, Tower
from dilax.data.scenes_painting import (
    EXTENT,
    TEXTURES,
    TOWER_ON,
    Canvas,
    Light,
    ellipse,
    noise,
)

SPLITS = {"train": 400, "val": 100}

_SPLIT_KEYS = {"train": 1, "val": 2}


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
