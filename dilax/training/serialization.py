"""Configurations as text: JSON in the folder of a run, flags on the command line."""

import ast
import contextlib
import dataclasses
import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

from dilax.crf.search import CRFGrid
from dilax.data import DatasetSpec
from dilax.training.config import Config, CRFConfig, StageConfig

# Fields of version 0.1, and their present names.
_RENAMED = {
    "for_batch": "base_batch_size",
    "halves": "edge_crops",
    "hold": "cache",
    "kept": "saved_predictions",
    "least": "min_kept",
    "reset": "reinit",
    "surroundings": "full_tile_maps",
}
# Fields that are gone, with the only value that can still be read.
_REMOVED = {"balance": "", "context_border": "zero", "norm": False, "processes": 0}
_REPORTED: set[Path] = set()  # files whose old names were reported


def validated(config: Config) -> Config:
    """Return a copy of the configuration in which every value has its field's type.

    Raises:
        ValueError: naming the fields whose value has another type, or is not one of the
            allowed words.

    Example:
        >>> from dilax.training.recipes import quickstart
        >>> config = quickstart()
        >>> config.seed = "one"
        >>> validated(config)
        Traceback (most recent call last):
            ...
        ValueError: 'one' is not a whole number @ --config.seed
    """
    return _structure(Config, dataclasses.asdict(config), "--config")


def to_json(config: Config | CRFConfig | DatasetSpec) -> str:
    """Return the configuration as JSON that `from_json` can read."""
    return json.dumps(dataclasses.asdict(config), indent=1, ensure_ascii=False) + "\n"


def from_json(kind: type, path: Path) -> Any:
    """Read a `Config`, `CRFConfig` or `DatasetSpec` that `to_json` wrote.

    Files of version 0.1 are read with a warning that names the renamed fields.

    Raises:
        ValueError: naming the file, if it is missing, or has another version or kind.

    Example:
        >>> import tempfile
        >>> from dilax.training.recipes import quickstart
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "config.json")
        ...     length = path.write_text(to_json(quickstart()))
        ...     from_json(Config, path) == quickstart()
        True
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        message = f"{path}: not the folder of a run ({error.strerror})"
        raise ValueError(message) from error
    except ValueError as error:
        raise ValueError(f"{path}: does not fit this version: {error}") from error
    renamed: dict[str, str] = {}
    data = _upgraded(data, path, renamed)
    if renamed and path not in _REPORTED:
        _REPORTED.add(path)
        names = ", ".join(f"{old} as {new}" for old, new in renamed.items())
        logging.warning("%s: written by version 0.1; read %s", path, names)
    return _structure(kind, data, f"{path}: does not fit this version: $")


def _upgraded(data: Any, path: Path, renamed: dict[str, str]) -> Any:
    """Rename the fields of 0.1 in data; `renamed` collects what changed."""
    if isinstance(data, list):
        return [_upgraded(item, path, renamed) for item in data]
    if not isinstance(data, dict):
        return data
    data = {name: _upgraded(value, path, renamed) for name, value in data.items()}
    if "fast_layers" in data:
        factor = data.pop("fast_multiplier", 10.0)
        data["lr_multipliers"] = [[name, factor] for name in data.pop("fast_layers")]
        renamed["fast_layers"] = "lr_multipliers"
    for old in [name for name in data if name in _RENAMED]:
        data[_RENAMED[old]] = data.pop(old)
        renamed[old] = _RENAMED[old]
    for old in [name for name in data if name in _REMOVED]:
        if data.pop(old) != _REMOVED[old]:
            raise ValueError(
                f"{path}: {old}: this version has no such option; use version 0.1"
            )
    return data


def _structure(kind: type, data: Any, root: str) -> Any:
    """Return data as `kind`, or raise an error that names fields of another type."""
    import cattrs  # imported here, because only reading a configuration needs it

    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _exactly(int, "a whole number"))
    converter.register_structure_hook(bool, _exactly(bool, "true or false"))
    try:
        return converter.structure(data, kind)
    except cattrs.BaseValidationError as error:
        raise ValueError(
            "; ".join(cattrs.transform_error(error, root, _reason))
        ) from error


def _reason(error: BaseException, kind: Any) -> str:
    from cattrs.v import format_exception

    reason = str(error) if type(error) is ValueError else format_exception(error, kind)
    match = re.fullmatch(
        r"unknown error \((.*) in literal typing.Literal(.*)\)", reason
    )
    return " among ".join(match.groups()) if match else reason


def _exactly(kind: type, name: str) -> Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) is not kind:  # True is an instance of int
            raise ValueError(f"{value!r} is not {name}")
        return value

    return check


def set_field(config: Config, path: str, text: str) -> None:
    """Set one field from text, as `--config.PATH=TEXT` does; `validated` checks it.

    Args:
        config: changed in place.
        path: fields joined by dots; stages by index or name: `stages[0].steps` or
            `stages.joint.optimizer.learning_rate`.
        text: a Python literal, true, false, none, a plain word, or words separated by
            commas for a tuple.

    Raises:
        ValueError: if there is no such field; it lists the fields.

    Example:
        >>> from dilax.training.recipes import quickstart
        >>> config = quickstart()
        >>> set_field(config, "stages.joint.steps", "50")
        >>> config.stage("joint").steps
        50
    """
    *parents, last = re.findall(r"[^.\[\]]+", path)
    owners: list[Any] = [config]
    for name in parents:
        owners.append(_child(owners[-1], name, path, config))
    owner = owners[-1]
    if not dataclasses.is_dataclass(owner):
        raise ValueError(f"--config.{path}: give the whole tuple instead of one entry")
    before = _child(owner, last, path, config)
    value: Any = text
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        value = words[text.lower()]
    else:
        with contextlib.suppress(ValueError, SyntaxError):  # then it is a plain word
            value = ast.literal_eval(text)
    if isinstance(before, tuple) and isinstance(value, str):
        value = tuple(word.strip() for word in text.split(","))
    if isinstance(owner, CRFGrid):  # cannot be changed, only replaced
        setattr(owners[-2], parents[-1], dataclasses.replace(owner, **{last: value}))
    else:
        setattr(owner, last, value)


def _child(owner: Any, name: str, path: str, config: Config) -> Any:
    """Return the field, or the entry, of this name in a part of the configuration."""
    known = dict(vars(owner)) if dataclasses.is_dataclass(owner) else {}
    if isinstance(owner, tuple):
        known = {str(i): child for i, child in enumerate(owner)}
        known |= {c.name: c for c in owner if isinstance(c, StageConfig)}
    if name not in known:
        raise ValueError(
            f"--config.{path}: no {name!r}; {_hint(name, known, config)}"
            f"There are {', '.join(known)}"
        )
    return known[name]


def _hint(name: str, known: dict[str, Any], config: Config) -> str:
    """Return where a field of this name is, or the most similar one here."""
    wanted = {"lr": "learning_rate", "batch": "batch_size"}.get(name, name)
    parts = {f"{part}.": getattr(config, part) for part in ("data", "model", "reading")}
    parts["stages.NAME."] = config.stages[0]
    parts["stages.NAME.optimizer."] = config.stages[0].optimizer
    for place, part in parts.items():
        if wanted in vars(part):
            stages = ", ".join(stage.name for stage in config.stages)
            names = f" (NAME: {stages})" if "NAME" in place else ""
            every = "; --lr_factor for all" if wanted == "learning_rate" else ""
            return f"did you mean --config.{place}{wanted}{names}{every}? "
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}? " if near else ""
