"""Lists of the images of a split: text, CSV or JSON, of one split or of several.

A list of text has a line for each image, or for an image and its mask. Tables may have
a header, other columns, and a column that names the split.
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

_SEVERAL = re.compile(r"splits?|data(?:set)?|folds?")  # names of lists of all splits
_IMAGE_KEYS = ("image", "img", "filename", "file", "path", "name", "id", "stem")
_MASK_KEYS = ("mask", "label", "annotation", "segmentation", "target", "gt")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, stripped.

    Raises:
        ValueError: naming the file, if it cannot be read or has none.
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
    """The list of each split that has one: its file and its lines.

    Of several, it is the outermost, or that in a folder such as ImageSets/Segmentation.

    Raises:
        ValueError: naming the files, if several could list a split, or one cannot be
            read.
    """
    found = defaultdict(list)
    for path in files:
        if path.suffix.lower() in LIST_SUFFIXES:
            if split := split_of_list(path.stem):
                found[split].append(path)
            elif path.suffix != ".txt" and _SEVERAL.fullmatch(path.stem.lower()):
                for split in _table(path):
                    found[split].append(path)
    lists = {}
    for split, paths in found.items():
        depth = min(len(path.parts) for path in paths)
        outer = [path for path in paths if len(path.parts) == depth]
        kinds = [folder_kind(path.relative_to(root).parts[:-1]) for path in outer]
        chosen = [p for p, kind in zip(outer, kinds, strict=True) if kind] or outer
        if len(chosen) > 1:
            raise ValueError(
                f"{chosen[0]}, {chosen[1]}: either could list {split}; rename one"
            )
        path = chosen[0]
        if path.suffix.lower() == ".txt":
            lists[split] = path, read_lines(path)
        else:
            every = _table(path)
            lines = every.get(split, every.get("", []))
            if lines:  # else it is something else than a list
                lists[split] = path, lines
    return lists


def _table(path: Path) -> dict[str, list[str]]:
    """The lines of each split, as in a text file, of CSV or JSON; "" if it has one."""
    text = "\n".join(read_lines(path))
    if path.suffix.lower() != ".json":
        return _of_rows(_rows(text))
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error})") from error
    if isinstance(tree, Mapping):
        named = {split_of_list(str(key)): value for key, value in tree.items()}
        if any(isinstance(named.get(split), list | dict) for split in SPLITS):
            parts = {s: v for s, v in named.items() if s in SPLITS}
            return {s: _of_rows(_of_tree(v)).get("", []) for s, v in parts.items()}
        tree = tree.get("images", tree)
    return _of_rows(_of_tree(tree))


def _of_tree(tree: Any) -> list[dict[str, str]]:
    """The rows of JSON: names, objects of names, or masks by image."""
    if isinstance(tree, Mapping):
        pairs = {str(k): str(v) for k, v in tree.items() if isinstance(v, str)}
        return [{"image": k, "mask": v} for k, v in pairs.items() if _is_file(k)]
    entries = tree if isinstance(tree, list) else []
    return [
        {str(k): str(v) for k, v in entry.items()}
        if isinstance(entry, Mapping)
        else dict(zip(("image", "mask"), _texts(entry), strict=False))
        for entry in entries
    ]


def _texts(entry: Any) -> list[str]:
    return [str(e) for e in entry] if isinstance(entry, list) else [str(entry)]


def _rows(text: str) -> list[dict[str, str]]:
    """The rows of CSV; without a header, columns are called image, mask."""
    mark = next((mark for mark in "\t;" if mark in text.splitlines()[0]), ",")
    rows = [
        [cell.strip() for cell in r]
        for r in csv.reader(text.splitlines(), delimiter=mark)
    ]
    if any(_key(cell, _IMAGE_KEYS) for cell in rows[0]) and not any(
        map(_is_file, rows[0])
    ):
        return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
    every = []
    for row in rows:
        files = [cell for cell in row if _is_file(cell)]
        every.append(dict(zip(("image", "mask"), files or row[:1], strict=False)))
    return every


def _is_file(text: str) -> bool:
    return text.lower().endswith(IMAGE_SUFFIXES)


def _key(name: str, words: Iterable[str]) -> bool:
    """Whether the name of a column is one of the words, such as image_path."""
    parts = re.split(r"[\s_-]+", name.lower().removesuffix("s"))
    return any(word in parts for word in words)


def _of_rows(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    """The lines `image` or `image, mask` of each split; "" without a split."""
    found = defaultdict(list)
    for row in rows:
        masks = [v for k, v in row.items() if _key(k, _MASK_KEYS) and _is_file(v)]
        free = {k: v for k, v in row.items() if v and v not in masks}
        keys = [k for word in _IMAGE_KEYS for k in free if _key(k, [word])]
        named = [free[k] for k in keys if _is_file(free[k])] or [free[k] for k in keys]
        split = next(
            (
                split_of_list(v)
                for k, v in row.items()
                if _key(k, ["split", "set", "subset", "fold"])
            ),
            "",
        )
        if named:
            found[split].append(", ".join([named[0], *masks[:1]]))
    return dict(found)
