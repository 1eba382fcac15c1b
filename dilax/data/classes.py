"""The classes of masks: which values masks contain, and what these mean.

Masks contain ids, colours, or transparency. This module decides which of them, and
which values mark unlabelled pixels, and reports it; where two readings are plausible,
it raises an error. They often are: JPEG, resizing, and smooth edges leave values
between those of a mask, and 255 may be an object or mark unlabelled pixels.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dilax.data.lists import MAX_CLASSES, ClassLine, ClassList
from dilax.data.masks import CLEAN, VOID_IDS, MaskReading, MaskValues
from dilax.data.spec import RGB, DatasetSpec, colour_map

_IGNORED = 255
_SMALL = {255: 32, 65535: 1 << 14}  # if all other ids are smaller, it is surely void
_RARE = 1e-4
_SHOWN = 20

Masks = Sequence[tuple[Path, MaskValues]]
Lines = tuple[list[ClassLine], dict[Any, int]]  # classes, and the line of each value


def describe_classes(
    name: str,
    mean: tuple[float, ...],
    masks: Masks,
    given: ClassList | None,
    reading: MaskReading,
) -> tuple[DatasetSpec, list[str]]:
    """Return the data set whose classes are the values of its masks.

    Args:
        name: of the data set.
        mean: its mean pixel.
        masks: the values of each mask.
        given: classes that the user names.
        reading: the user's other choices.

    Returns:
        The data set, and notes on what was found and decided.

    Raises:
        ValueError: naming a file and its value, if masks contain values that are not in
            the list, values of several kinds, or too many values for classes; or if it
            is in doubt what they mean.
    """
    values = _Values(masks, given, reading)
    colours = values.kind == "colours"
    jpeg = next((path for path, mask in masks if mask.jpeg), None)
    whole = reading.threshold or values.found in ([0], [0, 255])
    if jpeg and not (given if colours else whole):
        remedy = "save them as PNG" + ("" if colours else values.level_help())
        raise ValueError(f"{jpeg}: JPEG changes the values of masks: {remedy}")
    lines, line_of = values.colour_lines() if colours else values.id_lines()
    order = [k for k, line in enumerate(lines) if not line.void]
    train: dict[Any, int] = {
        v: order.index(k) if k in order else _IGNORED for v, k in line_of.items()
    }
    train |= {v: _IGNORED for v in values.found if v not in {*train, _IGNORED}}
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
        alpha_masks=values.kind == "alpha",
        threshold=reading.threshold,
    )
    return spec, [*values.notes, *values.shares(spec, train), *values.remarks]


class _Values:
    """The values of all masks, and what the user says about them.

    Attributes:
        kind: what masks contain.
        found: the values, in their order.
        pixels: the number of pixels of each value.
        path: a file that contains it.
        notes: what was found and decided.
        remarks: advice.
    """

    def __init__(self, masks: Masks, given: ClassList | None, reading: MaskReading):
        self.masks, self.given, self.reading = masks, given, reading
        self.notes, self.remarks = list[str](), list[str]()
        if inverted := [path for path, values in masks if values.inverted]:
            self.notes.append(
                f"TIFF masks that viewers show inverted: {len(inverted)}, such as "
                f"{inverted[0]}; ids are the stored values"
            )
        self.kind = reading.kind or self._detected_kind()
        pixels = Counter[Any]()
        self.path: dict[Any, Path] = {}
        for path, values in masks:
            if not (own := getattr(values, self.kind)):
                raise ValueError(f"{path}: contains no {self.kind}, unlike other masks")
            pixels.update(own)
            self.path = dict.fromkeys(own, path) | self.path
        self.pixels = Counter(dict(sorted(pixels.items())))
        self.found = [*self.pixels]
        self.total = self.pixels.total()
        # Masks of two levels; the upper one is a class although its id is that of void.
        self.binary = self.found in ([0, 255], [0, 65535])
        self.negative = any(values.negative for _, values in masks)

    def _detected_kind(self) -> str:
        """Return what masks contain.

        Masks contain colours if one of them has colours that are not grey, if palettes
        give an id several colours, or if all their colours are in the list;
        transparency if all pixels have one colour and differ only in their opacity;
        otherwise ids.
        """
        masks = self.masks
        clear = {colour for _, values in masks for colour in values.clear}
        seen = {colour for _, values in masks for colour in values.opaque}
        if len({level for _, values in masks for level in values.alpha}) > 1:
            if len(clear | seen) == 1 and all(values.alpha for _, values in masks):
                remark = "masks have one colour, so their transparency is the mask"
                self.notes.append(remark)
                return "alpha"
            if both := clear & seen:
                path = next(path for path, values in masks if both & values.clear)
                raise ValueError(
                    f"{path}: has the colour {min(both)} in transparent and in opaque "
                    "pixels; --config.data.masks=alpha uses the transparency as the "
                    "mask, =colours or =ids ignores it"
                )
        if threshold := self.reading.threshold:
            self.notes.append(f"values from {threshold:g} on are id 1, others id 0")
            return "ids"
        listed = {line.colour for line in self.given.lines} if self.given else set()
        if colourful := [path for path, values in masks if values.ids is None]:
            known = {c for _, v in masks if v.ids is None for c in v.colours or ()}
            for path, values in masks:
                numbers = {*(values.colours or ())} - known - listed - {(0, 0, 0)}
                grey = all(r == g == b for r, g, b in numbers)
                if numbers and grey and not values.colourful:
                    raise ValueError(
                        f"{path}: contains ids, {_few([*(values.ids or ())])}, but "
                        f"{colourful[0]} contains colours; choose masks of one kind "
                        "with --labels='PATTERN', or read all as one with "
                        "--config.data.masks=colours"
                    )
            return "colours"
        if all(v.colours and {*v.colours} <= listed for _, v in masks):
            return "colours"
        first: dict[int, tuple[RGB, Path]] = {}
        for path, values in masks:
            for i, colour in values.palette.items():
                one, other = first.setdefault(i, (colour, path))
                if one != colour:
                    pair = f"({other}, {path})"
                    self.notes.append(f"palettes differ {pair}: colours count, not ids")
                    return "colours"
        return "ids"

    def colour_lines(self) -> Lines:
        """Return the classes of masks of colours."""
        given, found = self.given, self.found
        if not given:
            self._check_count(found)
            if rare := self._rare(found):
                self.remarks.append(
                    f"rare colours: {len(rare)}, such as {rare[0]} in "
                    f"{self.path[rare[0]]}; if edges are smoothed, save masks "
                    f"without, or choose with --classes; {CLEAN}"
                )
            lines = [ClassLine("#{:02x}{:02x}{:02x}".format(*c), c) for c in found]
            return lines, {c: k for k, c in enumerate(found)}
        if bare := [line.name for line in given.lines if not line.colour]:
            example = " ".join(map(str, found[0]))
            raise ValueError(
                f"{given.source}: masks are colour images, so each name needs its "
                f"colour after it, '{bare[0]} {example}'; masks contain {_few(found)}"
            )
        line_of = {line.colour: k for k, line in enumerate(given.lines)}
        if missing := [colour for colour in found if colour not in line_of]:
            first = missing[0]
            raise ValueError(
                f"{self.path[first]}: {first} is the colour of {self.pixels[first]} "
                f"pixels and of no class in {given.source}; a line "
                f"'void {' '.join(map(str, first))}' ignores it (are edges smoothed? "
                f"{CLEAN}). Colours of no class: {_few(missing)}"
            )
        return given.lines, line_of

    def id_lines(self) -> Lines:
        """Return the classes of masks of ids."""
        void, decided = self.reading.void_ids(self.found)
        real = [i for i in self.found if i not in void]
        if not real:
            raise ValueError(f"{self.path[self.found[0]]}: all pixels are ignored")
        if self.given:
            return self._listed_ids(self.given, real, void, decided)
        if not self.reading.threshold:
            self._check_doubt(void, decided)
        top = self.found[-1]
        if self.binary and not decided and not self.negative:
            real = self.found
            self.remarks.append(self._binary_remark())
        elif not decided and top in VOID_IDS:
            ignored = f"{'-1' if self.negative else top} is ignored"
            self.notes.append(f"{ignored}; --config.data.void=none makes it a class")
        self._check_count(real)
        if rare := self._rare(real):
            self.remarks.append(
                f"rare ids: {len(rare)}, such as {rare[0]} in {self.path[rare[0]]}; if "
                f"they are mistakes, --config.data.void={rare[0]} ignores them, or "
                f"{CLEAN}"
            )
        if len(real) > 2 and len(real) == len(self.found):
            self.remarks.append(
                f"id {top}, {self.pixels[top] / self.total:.1%}: if these are "
                f"unlabelled pixels, --classes=…,void or --config.data.void={top}"
            )
        return [ClassLine(f"id {i}") for i in real], {i: k for k, i in enumerate(real)}

    def _listed_ids(
        self, given: ClassList, real: list[int], void: set[int], decided: bool
    ) -> Lines:
        """Do as `id_lines`, if the user names the classes.

        Ids are those of the list; or count from 0; or, if there are as many as names,
        are in their order.
        """
        lines, count, found, top = given.lines, len(given.lines), self.found, max(real)
        if given.has_ids:
            line_of = {line.id or 0: k for k, line in enumerate(lines)}
            wanted = found if len(real) < 2 and not decided else real
            if missing := [i for i in wanted if i not in line_of]:
                raise ValueError(
                    f"{self.path[missing[0]]}: contains id {missing[0]}, which "
                    f"{given.source} does not name: it names {_few([*line_of])}"
                    f"{self.level_help()}"
                )
        elif top < count and not (self.binary and count == 2):
            line_of = {i: i for i in range(count)}
            if len(found) == count and found[-1] in VOID_IDS and not decided:
                raise ValueError(
                    f"{self.path[found[-1]]}: contains {found[-1]}, and {given.source} "
                    f"has as many names as masks have values, {_few(found)}: "
                    f"--config.data.void={found[-1]} ignores it, =none makes it a class"
                )
            surplus = [line.name for line in lines[top + 1 :] if not line.void]
            if surplus and real == [*range(min(real[0], 1), top + 1)]:
                names = _few([line.name for line in lines])
                raise ValueError(
                    f"{given.source}: names {count} classes, {names}, but masks "
                    f"contain the ids {_few(found)}, as in {self.path[top]}. Remove "
                    "names that are not classes (such as a header) or, if some classes "
                    f"do not occur, write the id before each name, '0 {lines[0].name}'"
                )
        elif same := [ids for ids in (found, real) if len(ids) == count]:
            line_of = {i: k for k, i in enumerate(same[0])}
        else:
            largest = max(count, *(line.id or 0 for line in lines))
            raise ValueError(
                f"{self.path[top]}: contains id {top}; {given.source} names {count}, "
                f"0 to {largest - 1}. Write one line for each of the {len(real)} ids "
                f"in masks, {_few(real)}, in their order; a class called void is "
                f"ignored{self.level_help()}"
            )
        if not decided:
            void = void - {*VOID_IDS}
        dropped = {line_of.pop(i) for i in void & line_of.keys()}
        lines = [ClassLine("void") if k in dropped else x for k, x in enumerate(lines)]
        if given.has_ids:
            return lines, line_of
        if (
            self.binary
            and {*found} <= line_of.keys()
            and (not lines[line_of[found[-1]]].void)
        ):
            self.remarks.append(self._binary_remark())
            return lines, line_of
        unused = "no mask contains the colours of the list; " * bool(lines[0].colour)
        if unused or any(i != k for i, k in line_of.items()):
            pairs = ", ".join(f"{i} is {lines[k].name}" for i, k in line_of.items())
            self.remarks.append(f"{unused}names belong to the ids in order: {pairs}")
        return lines, line_of

    def _binary_remark(self) -> str:
        top = self.found[-1]
        return f"masks contain only 0 and {top}, so {top} is a class, not ignored"

    def _rare(self, values: Sequence) -> list:
        return [v for v in values if self.pixels[v] < _RARE * self.total]

    def _check_count(self, values: Sequence) -> None:
        """Check that so many values can be classes."""
        if len(values) == 1:
            raise ValueError(
                f"{self.path[self.found[0]]}: all masks contain only {values[0]}, so "
                "there is nothing to learn; are these the masks? Choose others with "
                "--labels, or name the classes with --classes"
            )
        if len(values) > MAX_CLASSES:
            raise ValueError(
                f"{self.path[values[-1]]}: masks contain {len(values)} {self.kind}, "
                f"more than {MAX_CLASSES} classes; do they separate objects, or are "
                f"edges smoothed? Save class ids as PNG, or {CLEAN}"
            )

    def _check_doubt(self, void: set[int], decided: bool) -> None:
        """Raise an error if the meaning of the ids is in doubt."""
        top, kinds = self.found[-1], [{*(v.ids or ())} - {0} for _, v in self.masks]
        palettes = {entry for _, v in self.masks for entry in v.palette.items()}
        if any(colour != (i, i, i) for i, colour in palettes):
            return  # the ids are indices of colours
        if levels := self._levels():
            raise ValueError(
                f"{self.path[top]}: the values cluster around {_few(levels)}, as JPEG "
                f"or smooth edges leave them{self.level_help()}"
            )
        rest = [i for i in self.found if i not in void]
        if decided or top not in VOID_IDS or self.negative or rest == [0]:
            return
        steps = rest == [*range(rest[0], rest[-1] + 1)] and rest[0] <= 1
        dense = 2 * len(rest) > rest[-1]
        in_doubt = len(rest) < 2 or not (steps or dense or rest[-1] <= _SMALL[top])
        if rest == [0, 1]:
            # Two-level masks may be of two kinds, or contain traces of noise.
            apart = {1} in kinds and {top} in kinds and {1, top} not in kinds
            in_doubt |= apart or self.pixels[1] < 0.05 * self.pixels[top]
        if in_doubt:
            raise ValueError(
                f"{self.path[top]}: contains {top} beside {_few(rest)}, and it may be "
                f"a class or mark unlabelled pixels: --config.data.void={top} ignores "
                f"it, =none makes it a class{self.level_help()}"
            )

    def _levels(self) -> list[int]:
        """Return the values at which a histogram gathers, with thin tails, if it does.

        JPEG and interpolation leave values near those of a clean mask, or between them.
        The ids of classes are rarely just below 255 or another high value, and seldom
        all rare.
        """
        if self.found[-1] > 255:
            return []
        share = [self.pixels[v] / self.total for v in range(256)]
        peaks = [
            v
            for v in self.found
            if share[v] > 0.02 and share[v] == max(share[max(0, v - 16) : v + 17])
        ]
        tail = [v for v in self.found if v not in peaks]
        beside = [v for v in tail for p in peaks if p >= 64 and abs(p - v) <= 16]
        shades = len(self.found) > 100 and sum(v >= 200 for v in self.found) > 20
        if shades and (255 in self.found or max(share) > 0.3):
            return peaks or self.found  # a picture: shades everywhere
        extremes = len(peaks) == 2 and peaks[0] < 8 and peaks[1] > 247
        if not 2 <= len(peaks) <= 8 or not beside:
            return []
        thin = sum(share[v] for v in tail) < (0.6 if extremes else 0.35)
        return peaks if thin and max(share[v] for v in tail) < 0.1 else []

    def level_help(self) -> str:
        """Return the histogram, and the flags that decide if values are brightness."""
        if self.found[-1] < 64:
            return ""
        most = self.pixels.most_common()
        shown = ", ".join(f"{v} {n / self.total:.1%}" for v, n in most[:8])
        others = sum(n for _, n in most[8:]) / self.total
        more = f", {len(most) - 8} others {others:.1%}" if most[8:] else ""
        middle = self.found[-1] // 2 + 1
        return (
            f". Values: {shown}{more}. --config.data.threshold={middle} makes two "
            f"classes, below and from {middle} on; {CLEAN}; or name each value with "
            "--classes, such as '0 background', and the ignored ones void"
        )

    def shares(self, spec: DatasetSpec, train: Mapping[Any, int]) -> Iterator[str]:
        """Yield notes on each class's share of the pixels."""
        pixels = Counter[int]()
        for value in self.found:
            pixels[train.get(value, _IGNORED)] += self.pixels[value]
        share = {i: f"{n / self.total:.1%}" for i, n in pixels.items()}
        parts = [f"{c} {share.get(i, '0.0%')}" for i, c in enumerate(spec.classes)]
        yield f"masks contain {self.kind}; {spec.num_classes} classes: {_few(parts)}"
        if pixels[_IGNORED]:
            yield f"ignored: {share[_IGNORED]} of the pixels"
        if none := [c for i, c in enumerate(spec.classes) if not pixels[i]]:
            yield f"no pixels of {_few(none)}"


def _few(values: Sequence) -> str:
    shown = ", ".join(map(str, values[:_SHOWN]))
    return shown + " …" * (len(values) > _SHOWN)
