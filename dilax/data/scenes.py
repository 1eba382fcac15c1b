"""Scenes: a rendered data set in which only the surroundings tell some classes apart.

After Yu and Koltun (2016), section 3: a context module helps by looking further. Here
that is needed by construction. Every scene holds tall towers on a thin strip of ground,
and what a tower is called depends on nothing but the ground it stands on: a lighthouse
stands on water, an office on a road, a silo on grass. To the pixel, the towers are
alike: shape, place, paint, light and weather are drawn before the kinds of ground, from
random streams of their own. Sky, ground and the balloons that drift in front of it all
are told apart by a look from close by.

Here the scenes are laid out, in units of which a scene is 256 wide and high, and the
towers named; `dilax.data.scenes_painting` turns that into pixels. In 256-pixel
scenes some 57 percent of all tower pixels lie more than 75 pixels from any ground: out
of sight of a front end (26 to 30 pixels wide) and of an undilated module on top of it
(15 cells of 8 pixels wide), within sight of the Basic module (67 cells).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from dilax.data.scenes_painting import (
    EXTENT,
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

CLASSES: tuple[str, ...] = (
    *("sky", "water", "road", "grass", "lighthouse", "office", "silo", "balloon"),
)
PALETTE: tuple[tuple[int, int, int], ...] = (
    (86, 180, 233),
    (0, 92, 170),
    (84, 84, 100),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (226, 140, 190),
    (245, 245, 245),
)
CONTEXT_CLASSES: tuple[str, ...] = ("lighthouse", "office", "silo")
IGNORE = 255
SPLITS = {"train": 400, "val": 100}

STANDS_ON = {"lighthouse": "water", "office": "road", "silo": "grass"}

_TOWER_ON = {ground: tower for tower, ground in STANDS_ON.items()}
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


def _draw_light(rng: np.random.Generator) -> Light:
    """Draws a time of day, and where the sun stands."""
    hour = 3.8 * rng.random() ** 1.4  # there is more day than night
    i, f = int(hour), np.float32(hour % 1)
    zenith, horizon, sun, tint, darkness = (
        (1 - f) * table[i] + f * table[i + 1]
        for table in (_ZENITH, _HORIZON, _SUN, _LIGHT, _DARKNESS)
    )
    place = (rng.uniform(10, 246), rng.uniform(20, 150))
    return Light(
        zenith, horizon, sun, tint, float(darkness), place, rng.uniform(0.1, 0.6)
    )


def _draw_tower(rng: np.random.Generator, left: float, right: float, y: float):
    """Draws a tower that stands between left and right, on ground that starts at y."""
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
    count = int(rng.integers(1, 4))  # of colours; plain ones smile
    return Balloon(
        x=rng.uniform(5, EXTENT - 5),
        y=rng.uniform(radius, 175 - radius),
        radius=radius,
        silks=_SILKS[rng.permutation(len(_SILKS))[:count]],
        face=count == 1,
    )


def _draw_layout(rng: np.random.Generator) -> Layout:
    """Draws light, towers and balloons; towers stand clear of borders by 8 units."""
    light, horizon = _draw_light(rng), rng.uniform(229, 235)
    count = int(rng.integers(2, 5))
    inner = EXTENT / count * (np.arange(1, count) + rng.uniform(-0.06, 0.06, count - 1))
    edges = [0.0, *inner, EXTENT]
    empty = int(rng.integers(2 * count))  # the place left empty, if there is one
    towers = tuple(
        _draw_tower(rng, edges[i] + 8, edges[i + 1] - 8, horizon)
        for i in range(count)
        if i != empty
    )
    sections = int(rng.integers(1, min(count, len(STANDS_ON)) + 1))
    borders = np.sort(rng.permutation(inner)[: sections - 1])
    balloons = tuple(_draw_balloon(rng) for _ in range(rng.integers(1, 4)))
    return Layout(light, horizon, tuple(borders), towers, balloons)


def _paint(layout: Layout, kinds, above, below, size: int):
    """Paints a layout.

    Args:
      layout: where everything is.
      kinds: names of the grounds, one a section, left to right.
      above: generator for the textures of sky and towers.
      below: generator for the textures of the ground.
      size: of the picture, in pixels.

    Returns:
      Image (size, size, 3), uint8, and label (size, size), uint8.
    """
    canvas = Canvas(size, CLASSES, IGNORE)
    paint_sky(canvas, layout.light, layout.horizon, above)
    paint_ground(canvas, layout, kinds, below)
    for tower in layout.towers:
        name = _TOWER_ON[kinds[int(np.searchsorted(layout.borders, tower.x))]]
        paint_tower(canvas, tower, name, layout.light, above)
    for balloon in layout.balloons:
        paint_balloon(canvas, balloon, layout.light)
    image = np.clip(canvas.rgb + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 2, 0)), canvas.label


def _render(sequence: np.random.SeedSequence, size: int):
    """Renders a scene; the names of the grounds have a random stream of their own."""
    placing, naming, above, below = (
        np.random.Generator(np.random.PCG64(s)) for s in sequence.spawn(4)
    )
    layout = _draw_layout(placing)
    kinds = naming.permutation(list(_TOWER_ON))[: len(layout.borders) + 1]
    return _paint(layout, kinds.tolist(), above, below, size)


def _check_size(size: int) -> None:
    if size < 64 or size % 8:
        raise ValueError(f"size={size}: allowed are multiples of 8 from 64 on")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"seed={seed}: allowed are integers from 0 on")


def render(seed: int, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Renders one scene.

    Args:
      seed: what the scene is drawn from, 0 or more; the same seed, the same scene.
      size: width and height in pixels, a multiple of 8, at least 64; it scales the
        scene and changes nothing else.

    Returns:
      Image (size, size, 3), uint8, RGB; label (size, size), uint8: an index into
      `CLASSES`, or `IGNORE` within a pixel of an outline.

    Raises:
      ValueError: on a size or a seed that is not allowed.

    >>> image, label = render(3, size=64)
    >>> image.shape, label.shape
    ((64, 64, 3), (64, 64))
    """
    _check_seed(seed)
    _check_size(size)
    return _render(np.random.SeedSequence(seed), size)


class Scenes(Sequence):
    """A split of the scenes, rendered when first asked for, and kept.

    Scene i of a split depends on (seed, split, i) alone, so that a shorter count is a
    prefix of a longer one. The arrays are read-only, because they are kept. Threads
    may share an instance: two that ask for one scene at once both render it, alike.

    Args:
      split: "train" or "val".
      count: how many scenes; the number in `SPLITS` if None.
      size: width and height in pixels, a multiple of 8, at least 64.
      seed: another seed, another data set.

    Raises:
      ValueError: on an argument that is not allowed.

    >>> [example["id"] for example in Scenes("val", count=2, size=64)]
    ['val_00000', 'val_00001']
    """

    def __init__(
        self, split: str, count: int | None = None, size: int = 256, seed: int = 0
    ):
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
        if count is not None and count < 1:
            raise ValueError(f"count={count}: allowed are integers from 1 on, or None")
        _check_size(size)
        _check_seed(seed)
        self.split, self.size, self.seed = split, size, seed
        self._length = SPLITS[split] if count is None else count
        self._kept: dict[int, dict] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:  # type: ignore[override]
        """Returns image (h, w, 3) uint8 RGB, label (h, w) uint8, and id."""
        i = operator.index(index)
        i = i + self._length if i < 0 else i
        if not 0 <= i < self._length:
            raise IndexError(f"index={index}: {self.split} has {self._length} scenes")
        if i not in self._kept:
            self._kept[i] = self._example(i)
        return dict(self._kept[i])

    def _example(self, i: int) -> dict:
        key = (self.seed, _SPLIT_KEYS[self.split], i)
        image, label = _render(np.random.SeedSequence(key), self.size)
        image.flags.writeable = label.flags.writeable = False
        return {"image": image, "label": label, "id": f"{self.split}_{i:05d}"}
