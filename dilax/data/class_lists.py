"""Lists of classes, as people and annotation tools write them.

A list is plain text, a table with or without a header, JSON, or YAML. CVAT, labelme,
Roboflow, Supervisely, COCO, and YOLO write such lists. A line has a name, and may have
the class's id or colour in masks.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dilax.data.lists import read_lines
from dilax.data.spec import RGB

MAX_CLASSES = 255
SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".names")

_VOID = {
    *("void", "ignore", "ignored", "ignore label", "unlabelled", "unlabeled"),
    *("unannotated", "undefined", "not labelled", "not labeled", "don't care"),
    *("dontcare", "dont care"),
}
_COLOUR = (
    r"(?:[\[(]?(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)[\])]?|"
    r"#(?P<hex>[0-9a-fA-F]{6}))"
)
_ID, _SEP, _NAME = r"(?P<id>\d+)", r"[\s,;:=]+", r"(?P<name>\S(?:.*\S)?)"
# A list has the first of these forms that all its lines match. A header need not match.
_FORMS = [
    re.compile(form)
    for form in (
        rf"{_NAME}:\s*{_COLOUR}\s*:[^:]*:[^:]*",  # CVAT
        rf"{_ID}{_SEP}{_NAME}{_SEP}{_COLOUR}",
        rf"{_ID}{_SEP}{_COLOUR}{_SEP}(?P<name>\D.*)",
        rf"{_NAME}{_SEP}{_COLOUR}",
        rf"{_COLOUR}{_SEP}{_NAME}",
        rf"{_ID}{_SEP}{_NAME}",
        rf"{_NAME}\s*[,;:=\t]\s*{_ID}",
    )
]
# Names of columns and keys, without blanks, hyphens and underscores.
_KEYS = {
    "name": "name class label category title classname labelname categoryname classes "
    "names labels",
    "id": "id value index idx pixelvalue classid labelid categoryid classindex pixel",
    "colour": "color colour rgb hex hexcolor colorrgb",
    "r": "r red",
    "g": "g green",
    "b": "b blue",
}
_MEANING = {word: key for key, words in _KEYS.items() for word in words.split()}


class ClassLine(NamedTuple):
    """A class in a list.

    Attributes:
        name: of the class.
        colour: its colour in masks, if the list states it.
        id: its id in masks, if the list states it.
    """

    name: str
    colour: RGB | None = None
    id: int | None = None

    @property
    def void(self) -> bool:
        """Whether pixels of this class are ignored."""
        return re.sub(r"[\s_-]+", " ", self.name.lower()).strip() in _VOID


class ClassList(NamedTuple):
    """The classes that the user names.

    Attributes:
        source: where they come from, for messages.
        lines: the classes, including void ones.
    """

    source: str
    lines: list[ClassLine]

    @property
    def has_ids(self) -> bool:
        """Whether the list states the id of each class."""
        return all(line.id is not None for line in self.lines)


def read_classes(root: Path, classes: str) -> ClassList | None:
    """Return the classes that the user names; None if there are none.

    Args:
        root: the folder of the data; `classes.txt` in it is read if `classes` is "".
        classes: `"sky,tree"`, or a file: one name per line, optionally with its id or
            its colour, `sky 70 130 180`; a table; JSON; or YAML.

    Raises:
        ValueError: naming the file or flag, if it cannot be read, or names a class,
            id or colour twice.
    """
    given = Path(classes or "classes.txt").expanduser()
    places = [given, root / given] if classes else [root / given]
    path = next((path for path in places if path.is_file()), None)
    if path:
        source, lines = str(path), _read_file(path)
    elif "," in classes:
        source, lines = "--classes", _parsed([t.strip() for t in classes.split(",")])
    elif classes:
        raise ValueError(
            f"--classes={classes}: no such file; to give names, separate them by "
            "commas, a,b"
        )
    else:
        return None
    # labelme numbers classes from -1, the id of __ignore__, which masks do not contain.
    if lines and lines[0].name == "__ignore__" and lines[0].id is None:
        del lines[0]
    for line in lines:
        if line.colour and max(line.colour) > 255:
            colour = " ".join(map(str, line.colour))
            wrong = f"'{line.name} {colour}': a colour is three numbers from 0 to 255"
            raise ValueError(f"{source}: {wrong}")
    names = [line.name for line in lines if not line.void]
    every: tuple[list, ...] = (
        names,
        [line.colour for line in lines if line.colour],
        [line.id for line in lines if line.id is not None],
    )
    for kind in every:
        if twice := [str(key) for key, n in Counter(kind).items() if n > 1]:
            raise ValueError(f"{source}: names {', '.join(twice)} more than once")
    if not 0 < len(names) <= MAX_CLASSES:
        raise ValueError(
            f"{source}: has {len(names)} classes; it must have 1 to {MAX_CLASSES}"
        )
    return ClassList(source, lines)


def _read_file(path: Path) -> list[ClassLine]:
    lines = read_lines(path)  # refuses other encodings
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        # A number sign begins a comment, unless it begins a colour.
        bare = (re.sub(r"(?:^|\s)#(?![0-9a-fA-F]{6}\b).*", "", t) for t in lines)
        return _parsed([text.strip() for text in bare if text.strip()])
    import yaml  # it reads JSON, too

    try:
        text = path.read_text("utf-8-sig").replace("\t", " ")
        return list(_from_tree(yaml.safe_load(text)))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is not a list of classes ({error})") from error


def _from_tree(tree: Any) -> Iterable[ClassLine]:
    """Yield the classes of JSON or YAML: names, objects, names by id, ids by name.

    They may be below a key such as `names`, `classes`, or `categories`.
    """
    if isinstance(tree, Mapping):
        below = ("names", "classes", "categories", "labels", "id2label")
        for key in below:
            if isinstance(tree.get(key), Mapping | list):
                return _from_tree(tree[key])
        pairs = list(tree.items())
        if all(str(key).isdigit() for key in tree):
            return [ClassLine(_named(value), id=int(key)) for key, value in pairs]
        if all(isinstance(value, int) for value in tree.values()):
            return [ClassLine(str(key), id=value) for key, value in pairs]
        return [_of_row({"name": key, "colour": value}) for key, value in pairs]
    if not isinstance(tree, list):
        raise TypeError(f"{tree!r:.40} is neither a list nor a table of names")
    return [_of_row(e) if isinstance(e, Mapping) else ClassLine(str(e)) for e in tree]


def _named(value: Any) -> str:
    return _of_row(value).name if isinstance(value, Mapping) else str(value)


def _of_row(row: Mapping[str, Any]) -> ClassLine:
    """Return a class from the named values of a table's row or of an object."""
    known: dict[str, Any] = {}
    for key, value in row.items():
        meaning = _MEANING.get(re.sub(r"[\s_-]", "", str(key).lower()))
        if meaning and value not in (None, ""):
            known.setdefault(meaning, value)
    if "name" not in known:
        raise ValueError(f"{dict(row)!r:.60} has no name")
    colour = known.get("colour")
    if "r" in known:
        colour = [known["r"], known["g"], known["b"]]
    if isinstance(colour, list | tuple):
        colour = " ".join(map(str, colour))
    match = re.fullmatch(_COLOUR, str(colour).strip()) if colour else None
    number = known.get("id")
    return ClassLine(
        str(known["name"]).strip(),
        _colour(match) if match else None,
        int(number) if number is not None else None,
    )


def _parsed(texts: list[str]) -> list[ClassLine]:
    """Return the classes of lines of text."""
    if not texts:
        return []
    dialect = next((mark for mark in "\t;," if mark in texts[0]), ",")
    header, *rows = csv.reader(texts, delimiter=dialect, skipinitialspace=True)
    keys = [re.sub(r"[\s_-]", "", key.lower()) for key in header]
    whole = all(len(row) == len(header) for row in rows)
    if rows and whole and any(_MEANING.get(key) == "name" for key in keys):
        try:
            return [_of_row(dict(zip(header, row, strict=True))) for row in rows]
        except ValueError:
            pass  # so it is not a header
    for form in _FORMS:
        matches = [form.fullmatch(text) for text in texts]
        if len(texts) > 1 and not matches[0] and all(matches[1:]):
            del matches[0]  # a header
        if all(matches):
            return [_of_match(match) for match in matches if match]
    # Some lines may lack colours, such as those of void.
    some = [_FORMS[3].fullmatch(text) or _FORMS[4].fullmatch(text) for text in texts]
    return [
        _of_match(m) if m else ClassLine(t) for m, t in zip(some, texts, strict=True)
    ]


def _of_match(match: re.Match) -> ClassLine:
    found = match.groupdict()
    coloured = found.get("r") or found.get("hex")
    return ClassLine(
        found["name"].strip("\"',;: "),
        _colour(match) if coloured else None,
        int(found["id"]) if found.get("id") else None,
    )


def _colour(match: re.Match) -> RGB:
    if match["hex"]:
        r, g, b = bytes.fromhex(match["hex"])
        return r, g, b
    return int(match["r"]), int(match["g"]), int(match["b"])
