"""Scenes: a rendered data set in which only context distinguishes some of the classes.

According to Yu and Koltun (2016), §3, a context module helps by seeing further. Here
that is necessary by construction. Every scene has tall towers on a thin strip of
ground, and the class of a tower depends only on the ground below it: a lighthouse
stands on water, an office on a road, a silo on grass. Everything else about the towers
has the same distribution for all classes: shape, position, paint, light, and weather
are drawn before the kinds of ground, from separate random streams. Sky, ground, and the
balloons in front can be classified from nearby pixels.

This module decides where objects are, in units of which a scene is 256 wide and high;
`dilax.data.scenes_painting` paints them and labels the towers. In 256-pixel scenes
about 57 percent of all tower pixels are more than 75 pixels away from any ground: out
of reach of a front end (26 to 30 pixels wide) and of an undilated module on top of it
(15 cells of 8 pixels wide), but within reach of the Basic module (67 cells).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from dilax.data.scenes_painting import (
    EXTENT,
    TOWER_ON,
    Balloon,
    Canvas,
    Layout,
    Light,
    Tower,
    colours,
    paint_balloon,
    paint_ground,
    paint_sky,
    paint_tower,
)

SPLITS = {"train": 400, "val": 100}

_SPLIT_KEYS = {"train": 1, "val": 2}

# Five times of day, morning to night; a scene mixes two neighbours.
_ZENITH = colours("68a0de 3e86d6 5c7aba 3e3676 121842")
_HORIZON = colours("ffe2c4 c4e4f6 ffc480 f48a70 48548e")
_SUN = colours("ffecbe fffae2 ffd882 ffa06a e8ecfa")
_LIGHT = colours("fff2e6 ffffff ffdeb8 cca8b2 808ab2") / 255
_DARKNESS = np.array((0.1, 0.0, 0.25, 0.75, 1.0), np.float32)

_WALLS = colours("ccc6bc bcbec4 d6c4ac b0b8b4 c8b8b8")
_ROOFS = colours("96544e 546a78 70627c 5c7468")
_SILKS = colours("e43a34 fab41e faf2dc 2864c8 ec5496 6e3caa 18a096")


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
            layout = draw_layout(placing)
            grounds = naming.permutation(list(TOWER_ON))[: len(layout.borders) + 1]
            image, label = paint(layout, grounds.tolist(), above, below, self.size)
            image.flags.writeable = label.flags.writeable = False
            name = f"{self.split}_{i:05d}"
            self._rendered[i] = {"image": image, "label": label, "id": name}
        return dict(self._rendered[i])


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
    paint_sky(canvas, light, layout.horizon, above)
    paint_ground(canvas, layout, grounds, below)
    for tower in layout.towers:
        ground = grounds[int(np.searchsorted(layout.borders, tower.x))]
        paint_tower(canvas, tower, TOWER_ON[ground], light, above)
    for balloon in layout.balloons:
        paint_balloon(canvas, balloon, light)
    image = np.clip(canvas.rgb + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0)), canvas.label


def draw_layout(rng: np.random.Generator) -> Layout:
    """Draws light, towers and balloons; towers keep 8 units away from borders."""
    light, horizon = _draw_light(rng), rng.uniform(229, 235)
    count = int(rng.integers(2, 5))
    inner = EXTENT / count * (np.arange(1, count) + rng.uniform(-0.06, 0.06, count - 1))
    edges = [0.0, *inner, EXTENT]
    empty = int(rng.integers(2 * count))  # the place that is left empty, if any
    towers = tuple(
        _draw_tower(rng, edges[i] + 8, edges[i + 1] - 8, horizon)
        for i in range(count)
        if i != empty
    )
    sections = int(rng.integers(1, min(count, len(TOWER_ON)) + 1))
    borders = np.sort(rng.permutation(inner)[: sections - 1])
    balloons = tuple(_draw_balloon(rng) for _ in range(rng.integers(1, 4)))
    return Layout(light, horizon, tuple(borders), towers, balloons)


def _draw_light(rng: np.random.Generator) -> Light:
    """Draws a time of day, and the position of the sun."""
    hour = 3.8 * rng.random() ** 1.4  # more of the day than of the night
    i, f = int(hour), np.float32(hour % 1)
    zenith, horizon, sun, tint, darkness = (
        (1 - f) * table[i] + f * table[i + 1]
        for table in (_ZENITH, _HORIZON, _SUN, _LIGHT, _DARKNESS)
    )
    place = (rng.uniform(10, 246), rng.uniform(20, 150))
    clouds = rng.uniform(0.1, 0.6)
    return Light(zenith, horizon, sun, tint, float(darkness), place, clouds)


def _draw_tower(rng: np.random.Generator, left: float, right: float, y: float) -> Tower:
    """Draws a tower between left and right, on ground that starts at y."""
    foot = min(rng.uniform(15, 21), (right - left) / 2)
    return Tower(
        x=rng.uniform(left + foot, right - foot),
        base=y + rng.uniform(4, 9),
        top=rng.uniform(8, 44),
        foot=foot,
        head=foot * rng.uniform(0.8, 1.0),
        roof=int(rng.integers(3)),
        wall=_WALLS[rng.integers(len(_WALLS))] * rng.uniform(0.92, 1.08),
        trim=_ROOFS[rng.integers(len(_ROOFS))],
        bands=bool(rng.random() < 0.35),
        storey=rng.uniform(12, 16),
        panes=rng.random((20, 5), np.float32),
    )


def _draw_balloon(rng: np.random.Generator) -> Balloon:
    """Draws a balloon whose basket hangs well above the ground."""
    radius = rng.uniform(13, 24)
    count = int(rng.integers(1, 4))  # of colours; plain balloons have a face
    return Balloon(
        x=rng.uniform(5, EXTENT - 5),
        y=rng.uniform(radius, 175 - radius),
        radius=radius,
        silks=_SILKS[rng.permutation(len(_SILKS))[:count]],
        face=count == 1,
    )
