"""The classes of masks: the ids or colours that they hold, and the names of those."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dilax.data.image_files import read_lines
from dilax.data.pixels import MaskValues
from dilax.data.spec import RGB, DatasetSpec, colour_map

V = TypeVar("V", bound=Hashable)
Masks = Sequence[tuple[Path, MaskValues]]
_VOID = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}
_VOID_IDS = {255, 65535}
_MOST_CLASSES, _SHOWN = 255, 20
_RARE = 1e-4
_COLOUR = r"(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)"


class Named(NamedTuple):
    """A line of a list of classes."""

    name: str
    colour: RGB | None

    @property
    def void(self) -> bool:
        """Whether what is called so counts nowhere."""
        return self.name.lower() in _VOID


class ClassList(NamedTuple):
    """Classes as the user names them.

    Attributes:
        source: where they are from, for messages.
        lines: names, and colours where they are given; voids among them.
    """

    source: str
    lines: tuple[Named, ...]


def read_classes(root: Path, classes: str) -> ClassList | None:
    """The classes that the user names; None if there are none.

    Args:
        root: the folder of the data; `classes.txt` in it is taken if `classes` is "".
        classes: `"sky,tree"`, or a file with a name a line, and maybe a colour before
            or behind it: `sky 70 130 180`.

    Raises:
        ValueError: naming the file or flag, if it cannot be read, or names a class or
            colour twice.
    """
    if not classes and not (root / "classes.txt").exists():
        return None
    if "," in classes:
        source, texts = "--classes", [text.strip() for text in classes.split(",")]
    else:
        path = _class_file(root, classes)
        source, texts = str(path), read_lines(path)
    lines = [_named(text, source) for text in texts]
    if lines[1:] and not lines[0].colour and all(line.colour for line in lines[1:]):
        del lines[0]  # the head of a table
    names = [line.name for line in lines if not line.void]
    for kind in (names, [line.colour for line in lines if line.colour]):
        if twice := [str(key) for key, n in Counter(kind).items() if n > 1]:
            raise ValueError(f"{source}: names {', '.join(twice)} more than once")
    if not 0 < len(names) <= _MOST_CLASSES:
        raise ValueError(f"{source}: {len(names)} classes are not 1 to {_MOST_CLASSES}")
    return ClassList(source, tuple(lines))


def _class_file(root: Path, classes: str) -> Path:
    path = Path(classes).expanduser()
    if classes and not path.exists() and not (root / path).exists():
        raise ValueError(
            f"--classes={classes}: no such file; names are divided by commas, a,b"
        )
    return path if classes and path.exists() else root / (classes or "classes.txt")


def _named(text: str, source: str) -> Named:
    behind = re.fullmatch(rf"(?P<name>.*\S)[\s,;]+{_COLOUR}", text)
    match = behind or re.fullmatch(rf"{_COLOUR}[\s,;]+(?P<name>\S.*)", text)
    if not match:
        return Named(text, None)
    colour = (int(match["r"]), int(match["g"]), int(match["b"]))
    if max(colour) > 255:
        raise ValueError(f"{source}: {text!r}: a colour is three numbers 0 to 255")
    return Named(match["name"], colour)


def describe_classes(
    name: str, mean: tuple[float, ...], masks: Masks, given: ClassList | None
) -> tuple[DatasetSpec, list[str]]:
    """What masks hold as the facts of a data set.

    Masks hold colours if one has colours that are not grey, if palettes give an id
    several colours, or if their colours are those of the list; else ids.

    Args:
        name: of the data set.
        mean: its mean pixel.
        masks: the values of each mask.
        given: classes that the user names.

    Returns:
        The data set, and what was found and decided, a sentence each.

    Raises:
        ValueError: naming a file and its value, if masks hold what is not in the list,
            things of two kinds, or too many for classes.
    """
    notes = []
    colour = any(values.ids is None for _, values in masks)
    if not colour and (two := _differing_palettes(masks)):
        colour = True
        notes.append(f"palettes differ ({two[0]}, {two[1]}): colours count, not ids")
    if colour or _all_listed(masks, given):
        found = _total({path: values.colours for path, values in masks}, "colours")
        spec, more = _of_colours(name, mean, found, given)
    else:
        ids = _total({path: values.ids for path, values in masks}, "ids")
        spec, more = _of_ids(name, mean, ids, given)
    return spec, notes + more


class _Found(NamedTuple):
    """How many pixels have a value, and a mask that holds it."""

    pixels: int
    path: Path


def _total(masks: Mapping[Path, Mapping[V, int] | None], kind: str) -> dict[V, _Found]:
    """All values in order."""
    found: dict[V, _Found] = {}
    for path, values in masks.items():
        if values is None:
            raise ValueError(f"{path}: holds no {kind}, as other masks do")
        for value, pixels in values.items():
            before = found.get(value, _Found(0, path))
            found[value] = _Found(before.pixels + pixels, before.path)
    return dict(sorted(found.items()))


def _differing_palettes(masks: Masks) -> tuple[Path, Path] | None:
    """Two masks whose palettes give an id different colours."""
    first: dict[int, tuple[RGB, Path]] = {}
    for path, values in masks:
        for i, colour in values.palette.items():
            known, other = first.setdefault(i, (colour, path))
            if known != colour:
                return other, path
    return None


def _all_listed(masks: Masks, given: ClassList | None) -> bool:
    """Whether all colours of the masks are in the list."""
    listed = {line.colour for line in given.lines} if given else set()
    return all(values.colours and {*values.colours} <= listed for _, values in masks)


def _of_ids(
    name: str,
    mean: tuple[float, ...],
    found: dict[int, _Found],
    given: ClassList | None,
) -> tuple[DatasetSpec, list[str]]:
    """The classes of masks that hold ids."""
    real = [i for i in found if i not in _VOID_IDS]
    binary = [*found] == [0, 255]
    ids = [*found] if binary else real
    if given:
        lines, at = given.lines, _lines_of_ids([*found], real, given, found)
    else:
        _check_count(ids, found, "ids")
        lines = tuple(Named(f"id {i}", None) for i in ids)
        at = {i: line for line, i in enumerate(ids)}
    order = [line for line, named in enumerate(lines) if not named.void]
    train = {i: order.index(k) if k in order else 255 for i, k in at.items()}
    train |= {i: 255 for i in found if i not in {*train, 255}}
    plain = all(i == k for i, k in train.items())
    own = colour_map(len(lines))
    spec = DatasetSpec(
        name,
        tuple(lines[k].name for k in order),
        tuple(lines[k].colour or own[k] for k in order),
        mean,
        label_map=() if plain else tuple(sorted(train.items())),
    )
    notes = _shares("ids", spec, found, train)
    if binary and train.get(255) != 255:
        notes.append("masks hold only 0 and 255, so 255 is a class and not ignored")
    elif given and any(i != k for i, k in at.items()):
        pairs = ", ".join(f"{i} is {lines[k].name}" for i, k in at.items())
        notes.append(f"the names are those of the ids in order: {pairs}")
    return spec, notes


def _lines_of_ids(
    ids: list[int], real: list[int], given: ClassList, found: dict[int, _Found]
) -> dict[int, int]:
    """id → line: they count from 0, or are as many as the lines."""
    count = len(given.lines)
    if not (ids == [0, 255] and count == 2) and max(real, default=0) < count:
        return {i: i for i in range(count)}
    for some in (ids, real):
        if len(some) == count:
            return {i: line for line, i in enumerate(some)}
    wrong = max(real)
    raise ValueError(
        f"{found[wrong].path}: holds id {wrong}; {given.source} names {count}, 0 to "
        f"{count - 1}. Give each of the {len(real)} ids in masks, {_few(real)}, a line "
        "in their order, called void to ignore it"
    )


def _of_colours(
    name: str,
    mean: tuple[float, ...],
    found: dict[RGB, _Found],
    given: ClassList | None,
) -> tuple[DatasetSpec, list[str]]:
    """The classes of masks that hold colours."""
    if given:
        lines = _check_colours(given, found)
    else:
        _check_count([*found], found, "colours")
        lines = [("#{:02x}{:02x}{:02x}".format(*c), c, False) for c in found]
    palette = tuple(colour for _, colour, void in lines if not void)
    spec = DatasetSpec(
        name,
        tuple(name for name, _, void in lines if not void),
        palette,
        mean,
        void_colours=tuple(colour for _, colour, void in lines if void),
        colour_masks=True,
    )
    train = {c: i for i, c in enumerate(palette)}
    train |= dict.fromkeys(spec.void_colours, 255)
    notes = _shares("colours", spec, found, train)
    least = _RARE * sum(seen.pixels for seen in found.values())
    rare = [c for c, seen in found.items() if seen.pixels < least]
    if rare and not given:
        notes.append(
            f"rare colours: {len(rare)}, such as {rare[0]} in {found[rare[0]].path};"
            " if edges are smoothed, save masks without; --classes says what counts"
        )
    return spec, notes


def _check_colours(
    given: ClassList, found: dict[RGB, _Found]
) -> list[tuple[str, RGB, bool]]:
    """(name, colour, void) of the lines, which must have all colours of the masks."""
    lines = [(n.name, n.colour, n.void) for n in given.lines if n.colour]
    bare = [line.name for line in given.lines if not line.colour]
    if bare:
        example = " ".join(map(str, next(iter(found))))
        raise ValueError(
            f"{given.source}: masks are colour images, so each name wants its colour "
            f"behind it, '{bare[0]} {example}'; masks hold {_few([*found])}"
        )
    listed = {line.colour for line in given.lines}
    if missing := [colour for colour in found if colour not in listed]:
        first = missing[0]
        raise ValueError(
            f"{found[first].path}: {first} is the colour of {found[first].pixels} "
            f"pixels and of no class in {given.source}; a line "
            f"'void {' '.join(map(str, first))}' ignores it (are edges smoothed? Save "
            f"masks without). Colours of no class: {_few(missing)}"
        )
    return lines


def _check_count(values: Sequence, found: Mapping[Any, _Found], kind: str) -> None:
    if not values:
        raise ValueError(f"{next(iter(found.values())).path}: all pixels are ignored")
    if len(values) > _MOST_CLASSES:
        raise ValueError(
            f"{found[values[-1]].path}: masks hold {len(values)} {kind}, more than "
            f"{_MOST_CLASSES} classes; do they tell objects apart, or are edges "
            "smoothed? Save class ids as PNG"
        )


def _few(values: Sequence) -> str:
    shown = ", ".join(map(str, values[:_SHOWN]))
    return shown + " …" * (len(values) > _SHOWN)


def _shares(
    kind: str, spec: DatasetSpec, found: Mapping[Any, _Found], train: Mapping[Any, int]
) -> list[str]:
    """What part of the pixels each class has."""
    pixels = Counter[int]()
    for value, seen in found.items():
        pixels[train.get(value, 255)] += seen.pixels
    total = sum(pixels.values())
    parts = [f"{c} {pixels[i] / total:.1%}" for i, c in enumerate(spec.classes)]
    notes = [f"masks hold {kind}; {spec.num_classes} classes: {_few(parts)}"]
    if pixels[255]:
        notes.append(f"ignored: {pixels[255] / total:.1%} of the pixels")
    if none := [c for i, c in enumerate(spec.classes) if not pixels[i]]:
        notes.append(f"no pixel is of {_few(none)}")
    return notes
