"""Lists of the images of a split: text, CSV, or JSON, for one split or several.

A text list has one line per image, or per image and mask. Tables may have a header,
other columns, and a column that names the split.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dilax.data.pairing import IMAGE_SUFFIXES, SPLITS, folder_kind, split_of_list

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".json")

_SEVERAL = re.compile(
    r"(?i)splits?|data(?:set)?|folds?"
)  # names of lists of all splits
_IMAGE_KEYS = ("image", "img", "filename", "file", "path", "name", "id", "stem")
_SPLIT_KEYS = ("split", "set", "subset", "fold")
_MASK_KEYS = ("mask", "label", "annotation", "segmentation", "target", "gt")


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


def find_lists(root: Path, files: Sequence[Path]) -> dict[str, tuple[Path, list[str]]]:
    """Return the list of each split that has one: its file and its lines.

    Of several lists, the outermost counts, or that in a folder such as
    ImageSets/Segmentation.

    Raises:
        ValueError: naming the files, if several could list a split, or one cannot be
            read.
    """
    every: dict[str, list[tuple[Path, list[str] | None]]] = {
        split: [] for split in SPLITS
    }
    for path in files:
        own, suffix = split_of_list(path.stem), path.suffix.lower()
        if suffix == ".txt" and own:
            every[own].append((path, None))  # read if it is chosen
        elif suffix in LIST_SUFFIXES[1:] and (own or _SEVERAL.fullmatch(path.stem)):
            for split, lines in _table(path).items():
                if split or own:
                    every[split or own].append((path, lines))
    lists = {}
    for split, found in every.items():
        depth = min((len(path.parts) for path, _ in found), default=0)
        outer = [each for each in found if len(each[0].parts) == depth]
        named = [e for e in outer if folder_kind(e[0].relative_to(root).parts[:-1])]
        chosen = named or outer
        if len(chosen) > 1:
            raise ValueError(
                f"{chosen[0][0]}, {chosen[1][0]}: either could list {split}; rename one"
            )
        for path, named_lines in chosen:
            lists[split] = path, named_lines or read_lines(path)
    return lists


def _table(path: Path) -> dict[str, list[str]]:
    """The lines `image` or `image, mask` of each split of CSV or JSON; "" without."""
    text = read_lines(path)
    try:
        is_json = path.suffix.lower() == ".json"
        rows = _of_tree(json.loads("\n".join(text))) if is_json else _of_csv(text)
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


def _of_tree(tree: Any) -> list[dict[str, str]]:
    """Return the rows of JSON: names, objects, masks by image, or these by split."""
    if isinstance(tree, Mapping):
        parts = {k: v for k, v in tree.items() if split_of_list(k)}
        if any(isinstance(part, list | Mapping) for part in parts.values()):
            pairs = ((k, row) for k, part in parts.items() for row in _of_tree(part))
            return [row | {"split": k} for k, row in pairs]
        if "images" in tree:
            return _of_tree(tree["images"])
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
    mark = next((mark for mark in "\t;" if mark in lines[0]), ",")
    header, *rows = csv.reader(lines, delimiter=mark, skipinitialspace=True)
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
