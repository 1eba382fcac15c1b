"""Fields of a configuration set from text, as `--config.a.b=VALUE` does."""

import ast
import dataclasses
import difflib
import re
from typing import Any

from dilax.evaluation.crf_grid import CRFGrid
from dilax.training.config import Config


def set_field(config: Config, path: str, text: str) -> None:
    """Sets one field from text, as `--config.PATH=TEXT` does; `validated` checks it.

    Args:
        config: changed in place.
        path: fields joined by dots; stages by index or name: `stages[0].steps` or
            `stages.joint.optimizer.learning_rate`.
        text: a Python literal, true, false or none, a plain word, or words divided by
            commas for a tuple of them.

    Raises:
        ValueError: naming the field that is not there, and those that are.

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
        owners.append(_child(owners[-1], name, path))
    owner = owners[-1]
    if not dataclasses.is_dataclass(owner):
        raise ValueError(f"--config.{path}: give the whole tuple instead of one entry")
    value = _literal(text)
    if isinstance(_child(owner, last, path), tuple) and isinstance(value, str):
        value = tuple(word.strip() for word in text.split(","))
    if isinstance(owner, CRFGrid):  # cannot be changed, only replaced
        setattr(owners[-2], parents[-1], dataclasses.replace(owner, **{last: value}))
    else:
        setattr(owner, last, value)


def _child(owner: Any, name: str, path: str) -> Any:
    if isinstance(owner, tuple):
        known = {str(i): child for i, child in enumerate(owner)}
        known |= {c.name: c for c in owner if dataclasses.is_dataclass(c)}  # type: ignore
    else:
        known = vars(owner) if dataclasses.is_dataclass(owner) else {}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(
        f"--config.{path}: no {name!r}; {hint}There are {', '.join(known)}"
    )


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
