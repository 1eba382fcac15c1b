"""Lists of images and of classes, as people and annotation tools write them.

A list of images is text, CSV, or JSON, for one split or several; text has one line per
image, or per image and mask. Tables may have a header, other columns, and a column that
names the split.

A list of classes is plain text, a table, JSON, or YAML, such as CVAT, labelme,
Roboflow, Supervisely, COCO, and YOLO write. A line has a name, and may have the class's
id or colour in masks.
"""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dilax.data.pairing import IMAGE_SUFFIXES, SPLITS, folder_kind, split_of_list
from dilax.data.spec import RGB

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".json")
CLASS_SUFFIXES = (*LIST_SUFFIXES, ".yaml", ".yml", ".names")
MAX_CLASSES = 255

# Names of lists of all splits.
_SEVERAL = re.compile(r"(?i)splits?|data(?:set)?|folds?")
_IMAGE_KEYS = ("image", "img", "filename", "file", "path", "name", "id", "stem")
_SPLIT_KEYS = ("split", "set", "subset", "fold")
_MASK_KEYS = ("mask", "label", "annotation", "segmentation", "target", "gt")

_VOID = {
    *("void", "ignore", "ignored", "ignore label", "unlabelled", "unlabeled"),
    *("unannotated", "undefined", "not labelled", "not labeled", "don't care"),
    *("dontcare", "dont care"),
}
_COLOUR = (
    r"(?:[\[(]?(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)[\])]?|"
    r"(?P<hex>#[0-9a-fA-F]{6}))"
)
_ID, _SEP, _NAME = r"(?P<id>\d+)", r"[\s,;:=]+", r"(?P<name>\S(?:.*\S)?)"
# A list has the first of these forms that all its lines match. A header need not match.
_COLOURED_FORMS = [rf"{_NAME}{_SEP}{_COLOUR}", rf"{_COLOUR}{_SEP}{_NAME}"]
_FORMS = [
    rf"{_NAME}:\s*{_COLOUR}\s*:[^:]*:[^:]*",  # CVAT
    rf"{_ID}{_SEP}{_NAME}{_SEP}{_COLOUR}",
    rf"{_ID}{_SEP}{_COLOUR}{_SEP}(?P<name>\D.*)",
    *_COLOURED_FORMS,
    rf"{_ID}{_SEP}{_NAME}",
    rf"{_NAME}\s*[,;:=\t]\s*{_ID}",
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


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, stripped.

    Raises:
        ValueError: naming the file, if it cannot be read or has no such line.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error})") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError(f"{path}: is empty")
    return lines


def _cells(lines: list[str]) -> Iterable[list[str]]:
    mark = next((mark for mark in "\t;" if mark in lines[0]), ",")
    return csv.reader(lines, delimiter=mark, skipinitialspace=True)


def find_lists(root: Path, files: Sequence[Path]) -> dict[str, tuple[Path, list[str]]]:
    """Return the list of each split that has one: its file and its lines.

    Of several lists, the outermost counts, or that in a folder such as
    ImageSets/Segmentation.

    Raises:
        ValueError: naming the files, if several could list a split, or one cannot be
            read.
    """
    every: dict[str, list[tuple[Path, list[str]]]] = defaultdict(list)
    for path in files:
        own, suffix = split_of_list(path.stem), path.suffix.lower()
        if suffix == ".txt" and own:
            every[own].append((path, []))  # read if it is chosen
        elif suffix in LIST_SUFFIXES[1:] and (own or _SEVERAL.fullmatch(path.stem)):
            for split, lines in _listed(path).items():
                if split or own:
                    every[split or own].append((path, lines))
    lists = {}
    for split in (split for split in SPLITS if split in every):
        found = every[split]
        depth = min(len(path.parts) for path, _ in found)
        outer = [each for each in found if len(each[0].parts) == depth]
        named = [e for e in outer if folder_kind(e[0].relative_to(root).parts[:-1])]
        (path, lines), *others = named or outer
        if others:
            raise ValueError(
                f"{path}, {others[0][0]}: either could list {split}; rename one"
            )
        lists[split] = path, lines or read_lines(path)
    return lists


def _listed(path: Path) -> dict[str, list[str]]:
    """Return the lines of each split of CSV or JSON, `image` or `image, mask`.

    The split is "" where the file does not name it.
    """
    text, is_json = read_lines(path), path.suffix.lower() == ".json"
    try:
        rows = _of_json(json.loads("\n".join(text))) if is_json else _of_csv(text)
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    found = defaultdict(list)
    for row in rows:
        masks = [v for k, v in row.items() if _is(k, _MASK_KEYS) and _is_file(v)]
        keys = [k for word in _IMAGE_KEYS for k in row if _is(k, (word,))]
        names = [row[k] for k in keys if row[k] and row[k] not in masks]
        splits = [split_of_list(v) for k, v in row.items() if _is(k, _SPLIT_KEYS)]
        if names:
            image = next(filter(_is_file, names), names[0])
            found[next(iter(splits), "")].append(", ".join([image, *masks[:1]]))
    return dict(found)


def _of_json(tree: Any) -> list[dict[str, str]]:
    """Return the rows of JSON: names, objects, masks by image, or these by split."""
    if isinstance(tree, Mapping):
        parts = {k: v for k, v in tree.items() if split_of_list(k)}
        if any(isinstance(part, list | Mapping) for part in parts.values()):
            pairs = ((k, row) for k, part in parts.items() for row in _of_json(part))
            return [row | {"split": k} for k, row in pairs]
        if "images" in tree:
            return _of_json(tree["images"])
        tree = [pair for pair in tree.items() if _is_file(pair[0])]
    rows = []
    for entry in tree if isinstance(tree, list) else []:
        if not isinstance(entry, Mapping):
            pair = entry if isinstance(entry, list | tuple) else (entry,)
            entry = dict(zip(("image", "mask"), pair, strict=False))
        rows.append({str(k): str(v) for k, v in entry.items()})
    return rows


def _of_csv(lines: list[str]) -> list[dict[str, str]]:
    """Return the rows of a table; without a header, columns are called image, mask."""
    header, *rows = _cells(lines)
    if any(_is(k, _IMAGE_KEYS) for k in header) and not any(map(_is_file, header)):
        return [dict(zip(header, row, strict=False)) for row in rows]
    files = [[c for c in r if _is_file(c)] or r[:1] for r in [header, *rows]]
    return [dict(zip(("image", "mask"), row, strict=False)) for row in files]


def _is_file(text: str) -> bool:
    return text.lower().endswith(IMAGE_SUFFIXES)


def _is(name: str, words: Iterable[str]) -> bool:
    """Whether the name of a column is one of the words, such as image_path."""
    parts = re.split(r"[\s_-]+", name.lower().removesuffix("s"))
    return any(word in parts for word in words)


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
        source, lines = str(path), _classes_in(path)
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
    names: list[Any] = [line.name for line in lines if not line.void]
    marks = [mark for line in lines for mark in (line.colour, line.id)]
    counts = Counter(names + [mark for mark in marks if mark is not None])
    if twice := [str(each) for each, n in counts.items() if n > 1]:
        raise ValueError(f"{source}: names {', '.join(twice)} more than once")
    if not 0 < len(names) <= MAX_CLASSES:
        raise ValueError(
            f"{source}: has {len(names)} classes; it must have 1 to {MAX_CLASSES}"
        )
    return ClassList(source, lines)


def _classes_in(path: Path) -> list[ClassLine]:
    lines = read_lines(path)  # refuses other encodings
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        # A number sign begins a comment, unless it begins a colour.
        bare = (re.sub(r"(?:^|\s)#(?![0-9a-fA-F]{6}\b).*", "", t) for t in lines)
        return _parsed([text.strip() for text in bare if text.strip()])
    try:  # YAML includes JSON
        text = path.read_text("utf-8-sig").replace("\t", " ")
        return _of_tree(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is not a list of classes ({error})") from error


def _of_tree(tree: Any) -> list[ClassLine]:
    """Return the classes of JSON or YAML: names, objects, names by id, ids by name.

    They may be below a key such as `names`, `classes`, or `categories`.
    """
    if isinstance(tree, Mapping):
        for key in ("names", "classes", "categories", "labels", "id2label"):
            if isinstance(tree.get(key), Mapping | list):
                return _of_tree(tree[key])
        if all(str(key).isdigit() for key in tree):
            lines = zip(tree, _of_tree([*tree.values()]), strict=True)
            return [ClassLine(line.name, id=int(key)) for key, line in lines]
        if all(isinstance(value, int) for value in tree.values()):
            return [ClassLine(str(key), id=value) for key, value in tree.items()]
        tree = [{"name": key, "colour": value} for key, value in tree.items()]
    if not isinstance(tree, list):
        raise TypeError(f"{tree!r:.40} is neither a list nor a table of names")
    return [_of_row(e) if isinstance(e, Mapping) else ClassLine(str(e)) for e in tree]


def _of_row(row: Mapping[str, Any]) -> ClassLine:
    """Return a class from named values: a row of a table, an object, or a match."""
    known: dict[str, Any] = {}
    for key, value in row.items():
        meaning = _MEANING.get(re.sub(r"[\s_-]", "", str(key).lower()))
        if meaning and value not in (None, ""):
            known.setdefault(meaning, value)
    if "name" not in known:
        raise ValueError(f"{dict(row)!r:.60} has no name")
    colour = [known.get(c) for c in "rgb"] if "r" in known else known.get("colour")
    if isinstance(colour, list | tuple):
        colour = " ".join(map(str, colour))
    rgb = None
    if colour and (match := re.fullmatch(_COLOUR, str(colour).strip())):
        numbers = (
            bytes.fromhex(match["hex"][1:]) if match["hex"] else match.groups()[:3]
        )
        r, g, b = map(int, numbers)
        rgb = r, g, b
    number = known.get("id")
    name = str(known["name"]).strip()
    return ClassLine(name, rgb, None if number is None else int(number))


def _parsed(texts: list[str]) -> list[ClassLine]:
    """Return the classes of lines of text."""
    if not texts:
        return []
    header, *rows = _cells(texts)
    whole = all(len(row) == len(header) for row in rows)
    keys = [re.sub(r"[\s_-]", "", key.lower()) for key in header]
    if rows and whole and any(_MEANING.get(key) == "name" for key in keys):
        try:
            return [_of_row(dict(zip(header, row, strict=True))) for row in rows]
        except ValueError:
            pass  # so it is not a header
    for form in _FORMS:
        matches = [re.fullmatch(form, text) for text in texts]
        if len(texts) > 1 and not matches[0] and all(matches[1:]):
            del matches[0]  # a header
        if all(matches):
            return [_of_match(match) for match in matches if match]
    # Some lines may lack colours, such as those of void.
    first, second = _COLOURED_FORMS
    return [
        _of_match(match) if match else ClassLine(text)
        for text in texts
        for match in [re.fullmatch(first, text) or re.fullmatch(second, text)]
    ]


def _of_match(match: re.Match) -> ClassLine:
    line = _of_row(match.groupdict())
    return line._replace(name=line.name.strip("\"',;: "))
