"""The classes of masks: which values masks contain, and what these mean.

Masks contain ids, colours, or transparency. This module decides which of them, and
which values mark unlabelled pixels, and reports it; where two readings are plausible,
it raises an error.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dilax.data.class_lists import MAX_CLASSES, ClassLine, ClassList
from dilax.data.levels import VOID_IDS, Found, Masks, doubt_of, few, level_help
from dilax.data.masks import CLEAN, MaskKind
from dilax.data.spec import RGB, DatasetSpec, colour_map

_IGNORED = 255
_RARE = 1e-4
_BLACK: RGB = (0, 0, 0)


class MaskReading(NamedTuple):
    """The user's choices for reading masks.

    Attributes:
        kind: what they contain; "" detects it.
        threshold: values from here on are 1, others 0; 0 keeps the values.
        void: ids that are ignored, `"255"` or `"0,11"`; `"none"` ignores none; ""
            ignores 255, or 65535, if the other ids leave no doubt.
    """

    kind: MaskKind | Literal[""] = ""
    threshold: float = 0.0
    void: str = ""

    def void_ids(self, found: Iterable[int]) -> tuple[set[int], bool]:
        """Return which ids are ignored, and whether the user has decided on 255.

        Raises:
            ValueError: naming the flag, if `void` has another form.
        """
        words = re.findall(r"[^\s,()]+", self.void.lower())
        if not all(word.isdigit() or word == "none" for word in words):
            raise ValueError(
                f"--config.data.void={self.void}: must be ids such as 0,255, or none"
            )
        void = {int(word) for word in words if word != "none"}
        decided = "none" in words or not void.isdisjoint(VOID_IDS)
        return void | (set() if decided else {*VOID_IDS} & {*found}), decided


def describe_classes(
    name: str,
    mean: tuple[float, ...],
    masks: Masks,
    given: ClassList | None,
    reading: MaskReading = MaskReading(),  # noqa: B008
) -> tuple[DatasetSpec, list[str]]:
    """Return the data set whose classes are the values of its masks.

    Args:
        name: of the data set.
        mean: its mean pixel.
        masks: the values of each mask.
        given: classes that the user names.
        reading: the user's other choices.

    Returns:
        The data set, and notes on what was found and decided, one sentence each.

    Raises:
        ValueError: naming a file and its value, if masks contain values that are not in
            the list, values of several kinds, or too many values for classes; or if it
            is in doubt what they mean.
    """
    kind, notes = _kind(masks, given, reading)
    found: dict[Any, Found] = {}
    for path, values in masks:
        every: dict[str, Any] = {"ids": values.ids, "colours": values.colours}
        own = every.get(kind, values.alpha)
        if not own:
            raise ValueError(f"{path}: contains no {kind}, unlike other masks")
        for value, pixels in own.items():
            before = found.get(value, Found(0, path))
            found[value] = Found(before.pixels + pixels, before.path)
    found = dict(sorted(found.items()))
    colours = kind == "colours"
    jpeg = next((path for path, values in masks if values.jpeg), None)
    whole = given if colours else reading.threshold or [*found] in ([0], [0, 255])
    if jpeg and not whole:
        help = "" if colours else level_help(found)
        raise ValueError(
            f"{jpeg}: JPEG changes the values of masks: save them as PNG{help}"
        )
    line_of: Mapping[Any, int]
    if colours:
        lines, line_of, remarks = _of_colours(found, given)
    else:
        lines, line_of, remarks = _of_ids(found, masks, given, reading, notes)
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
        alpha_masks=kind == "alpha",
        threshold=reading.threshold,
    )
    return spec, [*notes, *_shares(kind, spec, found, train), *remarks]


def _kind(
    masks: Masks, given: ClassList | None, reading: MaskReading
) -> tuple[str, list[str]]:
    """Return what masks contain, and notes.

    Masks contain colours if one of them has colours that are not grey, if palettes give
    an id several colours, or if all their colours are in the list; transparency if all
    pixels have one colour and differ only in their opacity; otherwise ids.
    """
    notes = []
    if inverted := [path for path, values in masks if values.inverted]:
        notes.append(
            f"TIFF masks that viewers show inverted: {len(inverted)}, such as "
            f"{inverted[0]}; ids are the stored values"
        )
    if reading.kind:
        return reading.kind, notes
    clear = {colour for _, values in masks for colour in values.clear}
    seen = {colour for _, values in masks for colour in values.opaque}
    if len({level for _, values in masks for level in values.alpha}) > 1:
        if len(clear | seen) == 1 and all(values.alpha for _, values in masks):
            notes.append("masks have one colour, so their transparency is the mask")
            return "alpha", notes
        if both := clear & seen:
            path = next(path for path, values in masks if both & values.clear)
            raise ValueError(
                f"{path}: has the colour {min(both)} in transparent and in opaque "
                "pixels; --config.data.masks=alpha uses the transparency as the mask, "
                "=colours or =ids ignores it"
            )
    if reading.threshold:
        notes.append(f"values from {reading.threshold:g} on are id 1, others id 0")
        return "ids", notes
    colourful = [path for path, values in masks if values.ids is None]
    listed = {line.colour for line in given.lines} if given else set()
    if colourful:
        known = {c for _, v in masks if v.ids is None for c in v.colours or ()}
        for path, values in masks:
            numbers = {*(values.colours or ())} - known - listed - {_BLACK}
            grey = all(r == g == b for r, g, b in numbers)
            if numbers and grey and not values.colourful:
                ids = few([*(values.ids or ())])
                raise ValueError(
                    f"{path}: contains ids, {ids}, but "
                    f"{colourful[0]} contains colours; choose masks of one kind with "
                    "--labels='PATTERN', or read all as one with "
                    "--config.data.masks=colours"
                )
        return "colours", notes
    if all(v.colours and {*v.colours} <= listed for _, v in masks):
        return "colours", notes
    if two := _differing_palettes(masks):
        notes.append(f"palettes differ ({two[0]}, {two[1]}): colours count, not ids")
        return "colours", notes
    return "ids", notes


def _differing_palettes(masks: Masks) -> tuple[Path, Path] | None:
    """Return two masks whose palettes give an id different colours, if any."""
    first: dict[int, tuple[RGB, Path]] = {}
    for path, values in masks:
        for i, colour in values.palette.items():
            known, other = first.setdefault(i, (colour, path))
            if known != colour:
                return other, path
    return None


def _of_ids(
    found: Mapping[int, Found],
    masks: Masks,
    given: ClassList | None,
    reading: MaskReading,
    notes: list[str],
) -> tuple[list[ClassLine], dict[int, int], list[str]]:
    """Return the classes of masks of ids: lines, the line of each id, and remarks."""
    void, decided = reading.void_ids(found)
    real = [i for i in found if i not in void]
    if not real:
        raise ValueError(f"{next(iter(found.values())).path}: all pixels are ignored")
    if given:
        return _of_listed_ids(found, real, given, void, decided)
    doubt = "" if reading.threshold else doubt_of(found, masks, void, decided)
    if doubt:
        raise ValueError(doubt)
    remarks = []
    binary = [*found] in ([0, 255], [0, 65535]) and not decided
    negative = any(values.negative for _, values in masks)
    if binary and not negative:
        real = [*found]
        remarks.append(
            f"masks contain only 0 and {real[1]}, so {real[1]} is a class, not ignored"
        )
    elif not decided and max(found) in VOID_IDS:
        one = "-1" if negative else max(found)
        notes.append(f"{one} is ignored; --config.data.void=none makes it a class")
    _check_values(real, found, "ids")
    total = sum(seen.pixels for seen in found.values())
    if rare := [i for i in real if found[i].pixels < _RARE * total]:
        remarks.append(
            f"rare ids: {len(rare)}, such as {rare[0]} in {found[rare[0]].path}; if "
            f"they are mistakes, --config.data.void={rare[0]} ignores them, or {CLEAN}"
        )
    if len(real) > 2 and len(real) == len(found):
        remarks.append(
            f"id {real[-1]}, {found[real[-1]].pixels / total:.1%}: if these are "
            f"unlabelled pixels, --classes=…,void or --config.data.void={real[-1]}"
        )
    lines = [ClassLine(f"id {i}") for i in real]
    return lines, {i: k for k, i in enumerate(real)}, remarks


def _of_listed_ids(
    found: Mapping[int, Found],
    real: list[int],
    given: ClassList,
    void: set[int],
    decided: bool,
) -> tuple[list[ClassLine], dict[int, int], list[str]]:
    """Do as `_of_ids`, if the user names the classes.

    Ids are those of the list; or count from 0; or, if there are as many ids as names,
    are in the order of the names.
    """
    lines, count = given.lines, len(given.lines)
    binary = [*found] in ([0, 255], [0, 65535])
    same = [ids for ids in ([*found], real) if len(ids) == count]
    largest = max(count, *(line.id or 0 for line in lines))
    if given.has_ids:
        line_of = {line.id or 0: k for k, line in enumerate(lines)}
        others = [i for i in found if i not in line_of]
        missing = [i for i in others if i in real or (len(real) < 2 and not decided)]
        if missing:
            raise ValueError(
                f"{found[missing[0]].path}: contains id {missing[0]}, which "
                f"{given.source} does not name: it names {few([*line_of])}"
                f"{level_help(found)}"
            )
    elif max(real) < count and not (binary and count == 2):
        line_of = {i: i for i in range(count)}
        if len(found) == count and max(found) in VOID_IDS and not decided:
            raise ValueError(
                f"{found[max(found)].path}: contains {max(found)}, and {given.source} "
                f"has as many names as masks have values, {few([*found])}: "
                f"--config.data.void={max(found)} ignores it, =none makes it a class"
            )
        surplus = [line.name for line in lines[real[-1] + 1 :] if not line.void]
        if surplus and real == [*range(min(real[0], 1), real[-1] + 1)]:
            names, ids = few([line.name for line in lines]), few([*found])
            raise ValueError(
                f"{given.source}: names {count} classes, {names}, but masks contain "
                f"the ids {ids}, as in {found[real[-1]].path}. Remove names that are "
                "not classes (such as a header) or, if some classes do not occur, "
                f"write the id before each name, '0 {lines[0].name}'"
            )
    elif same:
        line_of = {i: k for k, i in enumerate(same[0])}
    else:
        wrong = max(real)
        raise ValueError(
            f"{found[wrong].path}: contains id {wrong}; {given.source} names {count}, "
            f"0 to {largest - 1}. Write one line for each of the {len(real)} ids in "
            f"masks, {few(real)}, in their order; a class called void is ignored"
            f"{level_help(found)}"
        )
    if not decided:
        void = void - {*VOID_IDS}
    dropped = {line_of.pop(i) for i in void & line_of.keys()}
    lines = [ClassLine("void") if k in dropped else x for k, x in enumerate(lines)]
    if binary and found.keys() <= line_of.keys() and not given.has_ids:
        top = max(found)
        if not lines[line_of[top]].void:
            remark = f"masks contain only 0 and {top}, so {top} is a class, not ignored"
            return lines, line_of, [remark]
    unused = "no mask contains the colours of the list; " * bool(lines[0].colour)
    if not given.has_ids and (unused or any(i != k for i, k in line_of.items())):
        pairs = ", ".join(f"{i} is {lines[k].name}" for i, k in line_of.items())
        return lines, line_of, [f"{unused}names belong to the ids in order: {pairs}"]
    return lines, line_of, []


def _of_colours(
    found: Mapping[RGB, Found], given: ClassList | None
) -> tuple[list[ClassLine], dict[RGB | None, int], list[str]]:
    """Return the classes of masks of colours: lines, the line of each, and a remark."""
    remark = []
    if not given:
        _check_values([*found], found, "colours")
        lines = [ClassLine("#{:02x}{:02x}{:02x}".format(*c), c) for c in found]
        least = _RARE * sum(seen.pixels for seen in found.values())
        if rare := [c for c, seen in found.items() if seen.pixels < least]:
            remark.append(
                f"rare colours: {len(rare)}, such as {rare[0]} in "
                f"{found[rare[0]].path}; if edges are smoothed, save masks "
                f"without, or choose with --classes; {CLEAN}"
            )
    else:
        lines = given.lines
        if bare := [line.name for line in lines if not line.colour]:
            example = " ".join(map(str, next(iter(found))))
            raise ValueError(
                f"{given.source}: masks are colour images, so each name needs its "
                f"colour after it, '{bare[0]} {example}'; masks contain {few([*found])}"
            )
        known = {line.colour for line in lines}
        if missing := [colour for colour in found if colour not in known]:
            first = missing[0]
            raise ValueError(
                f"{found[first].path}: {first} is the colour of {found[first].pixels} "
                f"pixels and of no class in {given.source}; a line "
                f"'void {' '.join(map(str, first))}' ignores it (are edges smoothed? "
                f"{CLEAN}). Colours of no class: {few(missing)}"
            )
    return lines, {line.colour: k for k, line in enumerate(lines)}, remark


def _check_values(values: Sequence, found: Mapping[Any, Found], kind: str) -> None:
    if len(values) == 1:
        path = next(iter(found.values())).path
        raise ValueError(
            f"{path}: all masks contain only {values[0]}, so there is nothing to "
            "learn; are these the masks? Choose others with --labels, or name the "
            "classes with --classes"
        )
    if len(values) > MAX_CLASSES:
        raise ValueError(
            f"{found[values[-1]].path}: masks contain {len(values)} {kind}, more than "
            f"{MAX_CLASSES} classes; do they separate objects, or are edges smoothed? "
            f"Save class ids as PNG, or {CLEAN}"
        )


def _shares(
    kind: str,
    spec: DatasetSpec,
    found: Mapping[Any, Found],
    train: Mapping[Any, int],
) -> Iterator[str]:
    """Yield notes on each class's share of the pixels."""
    pixels = Counter[int]()
    for value, seen in found.items():
        pixels[train.get(value, _IGNORED)] += seen.pixels
    total = sum(pixels.values())
    parts = [f"{c} {pixels[i] / total:.1%}" for i, c in enumerate(spec.classes)]
    yield f"masks contain {kind}; {spec.num_classes} classes: {few(parts)}"
    if pixels[_IGNORED]:
        yield f"ignored: {pixels[_IGNORED] / total:.1%} of the pixels"
    if none := [c for i, c in enumerate(spec.classes) if not pixels[i]]:
        yield f"no pixels of {few(none)}"
