"""The classes of masks: the ids or colours that they hold, and their names."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dilax.data.folder import read_lines
from dilax.data.pixels import MaskValues
from dilax.data.spec import RGB, DatasetSpec, colour_map

Masks = Sequence[tuple[Path, MaskValues]]

_VOID = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}
_VOID_IDS = {255, 65535}
_IGNORED = 255
_MAX_CLASSES, _SHOWN = 255, 20
_RARE = 1e-4
_COLOUR = r"(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)"
_NAME_FIRST = re.compile(rf"(?P<name>.*\S)[\s,;]+{_COLOUR}")
_COLOUR_FIRST = re.compile(rf"{_COLOUR}[\s,;]+(?P<name>\S.*)")


class ClassLine(NamedTuple):
    """A line of a list of classes."""

    name: str
    colour: RGB | None = None

    @property
    def void(self) -> bool:
        """Whether pixels of this name are ignored."""
        return self.name.lower() in _VOID

    @classmethod
    def parse(cls, text: str, source: str) -> "ClassLine":
        """Reads a name, with a colour before or after it, or without."""
        match = _NAME_FIRST.fullmatch(text) or _COLOUR_FIRST.fullmatch(text)
        if not match:
            return cls(text)
        colour = (int(match["r"]), int(match["g"]), int(match["b"]))
        if max(colour) > 255:
            raise ValueError(f"{source}: {text!r}: a colour is three numbers 0 to 255")
        return cls(match["name"], colour)


class ClassList(NamedTuple):
    """Classes as the user names them.

    Attributes:
        source: where they come from, for messages.
        lines: names, with colours where they are given; void ones are among them.
    """

    source: str
    lines: list[ClassLine]


def read_classes(root: Path, classes: str) -> ClassList | None:
    """The classes that the user names; None if there are none.

    Args:
        root: the folder of the data; `classes.txt` in it is read if `classes` is "".
        classes: `"sky,tree"`, or a file with one name per line, optionally with a
            colour before or after it: `sky 70 130 180`.

    Raises:
        ValueError: naming the file or flag, if it cannot be read, or names a class or
            colour twice.
    """
    if "," in classes:
        source, texts = "--classes", [text.strip() for text in classes.split(",")]
    else:
        given = Path(classes or "classes.txt").expanduser()
        places = [given, root / given] if classes else [root / given]
        path = next((path for path in places if path.is_file()), None)
        if path is None and classes:
            raise ValueError(
                f"--classes={classes}: no such file; separate names by commas, a,b"
            )
        if path is None:
            return None
        source, texts = str(path), read_lines(path)
    lines = [ClassLine.parse(text, source) for text in texts]
    if lines[1:] and not lines[0].colour and all(line.colour for line in lines[1:]):
        del lines[0]  # the header of a table
    names = [line.name for line in lines if not line.void]
    for kind in (names, [line.colour for line in lines if line.colour]):
        if twice := [str(key) for key, n in Counter(kind).items() if n > 1]:
            raise ValueError(f"{source}: names {', '.join(twice)} more than once")
    if not 0 < len(names) <= _MAX_CLASSES:
        raise ValueError(f"{source}: {len(names)} classes are not 1 to {_MAX_CLASSES}")
    return ClassList(source, lines)


class _Found(NamedTuple):
    """How many pixels have a value, and a mask that holds it."""

    pixels: int
    path: Path


def describe_classes(
    name: str, mean: tuple[float, ...], masks: Masks, given: ClassList | None
) -> tuple[DatasetSpec, list[str]]:
    """The data set whose classes are the values of its masks.

    Masks hold colours if one has colours that are not grey, if palettes give an id
    several colours, or if all their colours are in the list; else ids.

    Args:
        name: of the data set.
        mean: its mean pixel.
        masks: the values of each mask.
        given: classes that the user names.

    Returns:
        The data set, and what was found and decided, one sentence each.

    Raises:
        ValueError: naming a file and its value, if masks hold what is not in the list,
            values of both kinds, or too many for classes.
    """
    notes = []
    colours = any(values.ids is None for _, values in masks)
    if not colours and (two := _differing_palettes(masks)):
        colours = True
        notes.append(f"palettes differ ({two[0]}, {two[1]}): colours count, not ids")
    listed = {line.colour for line in given.lines} if given else set()
    colours |= all(v.colours and {*v.colours} <= listed for _, v in masks)
    kind = "colours" if colours else "ids"
    found: dict[Any, _Found] = {}
    for path, values in masks:
        own = values.colours if colours else values.ids
        if own is None:
            raise ValueError(f"{path}: holds no {kind}, unlike other masks")
        for value, pixels in own.items():
            before = found.get(value, _Found(0, path))
            found[value] = _Found(before.pixels + pixels, before.path)
    found = dict(sorted(found.items()))
    lines, line_of, remark = (_of_colours if colours else _of_ids)(found, given)
    order = [k for k, line in enumerate(lines) if not line.void]
    train: dict[Any, int] = {
        v: order.index(k) if k in order else _IGNORED for v, k in line_of.items()
    }
    train |= {v: _IGNORED for v in found if v not in {*train, _IGNORED}}
    plain = colours or all(value == i for value, i in train.items())
    palette = colour_map(len(lines))
    spec = DatasetSpec(
        name,
        tuple(lines[k].name for k in order),
        tuple(lines[k].colour or palette[k] for k in order),
        mean,
        label_map=() if plain else tuple(sorted(train.items())),
        void_colours=tuple(v for v in train if train[v] == _IGNORED) if colours else (),
        colour_masks=colours,
    )
    return spec, [*notes, *_shares(kind, spec, found, train), *remark]


def _differing_palettes(masks: Masks) -> tuple[Path, Path] | None:
    """Two masks whose palettes give an id different colours."""
    first: dict[int, tuple[RGB, Path]] = {}
    for path, values in masks:
        for i, colour in values.palette.items():
            known, other = first.setdefault(i, (colour, path))
            if known != colour:
                return other, path
    return None


def _of_ids(
    found: Mapping[int, _Found], given: ClassList | None
) -> tuple[list[ClassLine], dict[int, int], list[str]]:
    """The classes of masks of ids: lines, the line of each id, and a remark."""
    binary = [*found] == [0, 255]
    real = [i for i in found if i not in _VOID_IDS]
    if not given:
        ids = [*found] if binary else real
        _check_values(ids, found, "ids")
        lines = [ClassLine(f"id {i}") for i in ids]
        line_of = {i: k for k, i in enumerate(ids)}
    else:
        # Ids count from 0, or there are as many ids as names, in the same order.
        lines, count = given.lines, len(given.lines)
        same = [ids for ids in ([*found], real) if len(ids) == count]
        if max(real, default=0) < count and not (binary and count == 2):
            line_of = {i: i for i in range(count)}
        elif same:
            line_of = {i: k for k, i in enumerate(same[0])}
        else:
            wrong = max(real)
            raise ValueError(
                f"{found[wrong].path}: holds id {wrong}; {given.source} names {count}, "
                f"0 to {count - 1}. Write one line for each of the {len(real)} ids in "
                f"masks, {_few(real)}, in their order; a class called void is ignored"
            )
    if binary and 255 in line_of and not lines[line_of[255]].void:
        remark = "masks hold only 0 and 255, so 255 is a class and not ignored"
        return lines, line_of, [remark]
    if given and any(i != k for i, k in line_of.items()):
        pairs = ", ".join(f"{i} is {lines[k].name}" for i, k in line_of.items())
        return lines, line_of, [f"names belong to the ids in order: {pairs}"]
    return lines, line_of, []


def _of_colours(
    found: Mapping[RGB, _Found], given: ClassList | None
) -> tuple[list[ClassLine], dict[RGB | None, int], list[str]]:
    """The classes of masks of colours: lines, the line of each, and a remark."""
    remark = []
    if not given:
        _check_values([*found], found, "colours")
        lines = [ClassLine("#{:02x}{:02x}{:02x}".format(*c), c) for c in found]
        least = _RARE * sum(seen.pixels for seen in found.values())
        if rare := [c for c, seen in found.items() if seen.pixels < least]:
            remark.append(
                f"rare colours: {len(rare)}, such as {rare[0]} in "
                f"{found[rare[0]].path}; if edges are smoothed, save masks "
                "without, or choose with --classes"
            )
    else:
        lines = given.lines
        if bare := [line.name for line in lines if not line.colour]:
            example = " ".join(map(str, next(iter(found))))
            raise ValueError(
                f"{given.source}: masks are colour images, so each name needs its "
                f"colour after it, '{bare[0]} {example}'; masks hold {_few([*found])}"
            )
        known = {line.colour for line in lines}
        if missing := [colour for colour in found if colour not in known]:
            first = missing[0]
            raise ValueError(
                f"{found[first].path}: {first} is the colour of {found[first].pixels} "
                f"pixels and of no class in {given.source}; a line "
                f"'void {' '.join(map(str, first))}' ignores it (are edges smoothed? "
                f"Save masks without). Colours of no class: {_few(missing)}"
            )
    return lines, {line.colour: k for k, line in enumerate(lines)}, remark


def _check_values(values: Sequence, found: Mapping[Any, _Found], kind: str) -> None:
    if not values:
        raise ValueError(f"{next(iter(found.values())).path}: all pixels are ignored")
    if len(values) > _MAX_CLASSES:
        raise ValueError(
            f"{found[values[-1]].path}: masks hold {len(values)} {kind}, more than "
            f"{_MAX_CLASSES} classes; do they separate objects, or are edges smoothed? "
            "Save class ids as PNG"
        )


def _shares(
    kind: str,
    spec: DatasetSpec,
    found: Mapping[Any, _Found],
    train: Mapping[Any, int],
) -> Iterator[str]:
    """The share of each class in the pixels."""
    pixels = Counter[int]()
    for value, seen in found.items():
        pixels[train.get(value, _IGNORED)] += seen.pixels
    total = sum(pixels.values())
    parts = [f"{c} {pixels[i] / total:.1%}" for i, c in enumerate(spec.classes)]
    yield f"masks hold {kind}; {spec.num_classes} classes: {_few(parts)}"
    if pixels[_IGNORED]:
        yield f"ignored: {pixels[_IGNORED] / total:.1%} of the pixels"
    if none := [c for i, c in enumerate(spec.classes) if not pixels[i]]:
        yield f"no pixel is {_few(none)}"


def _few(values: Sequence) -> str:
    shown = ", ".join(map(str, values[:_SHOWN]))
    return shown + " …" * (len(values) > _SHOWN)
