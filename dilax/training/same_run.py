"""A run goes on only as the run that it began as: same configuration, same data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from dilax.datasets import DatasetSpec
from dilax.ops.hosts import differing_process
from dilax.training.config import Config, from_json, to_json


def check_same_config(old: Config, new: Config, path: Path) -> None:
    """Refuses to go on with another configuration than the folder's."""
    before, after = (json.loads(to_json(c)) for c in (old, new))
    for side in (before, after):
        side["data"].pop("data_dir")  # data may move
        side.pop("reading")  # and be read in another way
        side.pop("mesh")  # on other devices
    changed = [k for k in after if before.get(k) != after[k]]
    if changed:
        detail = "; ".join(f"{k}: {_difference(before[k], after[k])}" for k in changed)
        raise ValueError(
            f"{path}: this folder holds a run with another configuration ({detail}); "
            "give another --workdir, or the same flags to go on"
        )


def check_same_everywhere(config: Config, sources: list) -> None:
    """Refuses processes of one job that are not set to do the same, in all of them.

    Raises:
        ValueError: naming a process that has another configuration, or other images.
    """
    given = json.loads(to_json(config))
    given["data"].pop("data_dir")  # hosts may have it in other places
    given.pop("reading")
    kinds = {"configuration": given, "images": fingerprint(sources)}
    for what, value in kinds.items():
        other = differing_process(json.dumps(value))
        if other is not None:
            raise ValueError(
                f"process {other} has another {what} than process 0; this is "
                f"process {jax.process_index()}, with {json.dumps(value)[:200]}: give "
                "all the same flags and data"
            )


def check_same_data(workdir: Path, spec: DatasetSpec, sources: list) -> None:
    """Refuses to mix the images or classes of two data sets in one run."""
    before = json.loads((workdir / "data.json").read_text("utf-8"))
    now = json.loads(json.dumps(fingerprint(sources)))
    if from_json(DatasetSpec, workdir / "spec.json") != spec or before != now:
        raise ValueError(
            f"{workdir}: this run began on other images or classes ({before} there, "
            f"{now} here); give the --data_dir of then, or another --workdir"
        )


def fingerprint(sources: list[Sequence[dict]]) -> list[tuple[int, str, str]]:
    """(how many, first id, last id) of the images to train and to evaluate on."""
    return [(len(s), s[0]["id"], s[len(s) - 1]["id"]) for s in sources]


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in new if old.get(k) != new[k]]
        return ", ".join(f"{k}: {_difference(old.get(k), new[k])}" for k in keys)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return ", ".join(f"[{i}] {_difference(a, b)}" for i, (a, b) in pairs if a != b)
    return f"{json.dumps(old)[:60]} there, {json.dumps(new)[:60]} here"
