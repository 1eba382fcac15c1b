"""Checkpoints of the stages of a run, by Orbax.

A stage stores only the parameters that it trains; the others are in the stage that it
started from.
Orbax does not notice flipped bits, and a broken file makes it print traces of its
tasks, so a list of checksums is kept beside its files and compared before it reads.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import lazy_loader
from absl import logging

from dilax.data import DatasetSpec
from dilax.runtime.files import check_room, write_text
from dilax.runtime.processes import Interrupts, is_writer, wait_for_all
from dilax.training.build import Params, build_model, stage_shapes
from dilax.training.config import Config, StageConfig
from dilax.training.step import TrainState, split_params
from dilax.weights import read_weights
from dilax.weights.load import assign_weights

# It takes a quarter of a second to import.
ocp: Any = lazy_loader.load("orbax.checkpoint", suppress_warning=True)

# All parameters of a run's only stage, instead of its checkpoints (see `pack`).
PACKED = "weights.safetensors"
_CHECKSUMS = "checksums.json"
_UNFINISHED = ".orbax-checkpoint-tmp"  # ending of the folder of a new checkpoint
_DELETED = ".deleted"
_ROOM = 1 << 20  # bytes of a checkpoint besides its arrays, at most

Choice = Literal["last", "best"]


class DamagedCheckpoint(ValueError):
    """A checkpoint differs from what was written; the message names the file."""


class Checkpoints:
    """The checkpoints of one stage: the last two and the best, saved in the background.

    The last but one is kept in case the last is damaged. Opening the checkpoints moves
    damaged ones aside, with a warning.

    Args:
        workdir: the run's folder.
        stage: name of the stage.
    """

    def __init__(self, workdir: Path, stage: str):
        self._folder = _folder(workdir, stage)
        if is_writer() and self._folder.is_dir():
            # An earlier run may have been killed while saving.
            for partial in self._folder.glob(f"*{_UNFINISHED}"):
                shutil.rmtree(partial)
            for step in _steps(self._folder):
                try:
                    _check_files(self._folder / str(step))
                except DamagedCheckpoint as error:
                    self._move_aside(step, str(error))
            self._empty()
        wait_for_all(f"checkpoints of {stage}")
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=_mean_iou, n=1, keep_checkpoints_without_metrics=False
        )
        # With best_fn the scores are stored, so that the best outlives a resume.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(2), best]
            ),
            best_fn=_mean_iou,
            todelete_subdir=_DELETED,  # rename first: never leave half a checkpoint
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_checksums
            ),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        for step in set(_steps(self._folder)).difference(self._manager.all_steps()):
            self._move_aside(step, f"{self._folder}/{step}: Orbax does not accept it")

    @property
    def latest(self) -> int | None:
        """The last saved step, or None."""
        return self._manager.latest_step()

    def save(
        self,
        state: TrainState,
        mean_iou: float | None = None,
        losses: tuple[float, ...] = (),
    ) -> None:
        """Save the state in the background.

        Args:
            state: the state; its step must be later than all saved ones.
            mean_iou: of the evaluation at this step, if there was one.
            losses: of the steps since the last line of `metrics.jsonl`.

        Raises:
            OSError: if the disk is full.
        """
        metrics = None
        if mean_iou is not None and math.isfinite(mean_iou):
            metrics = {"mean_iou": mean_iou}
        items = {n: ocp.args.StandardSave(tree) for n, tree in _items(state).items()}
        args = ocp.args.Composite(**items, losses=ocp.args.JsonSave({"losses": losses}))
        with _disk_full_as_os_error(self._folder):
            self._manager.wait_until_finished()
            self._empty()
            arrays = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            # Orbax would print tracebacks.
            check_room(self._folder, _ROOM + arrays, "a checkpoint takes up to")
            self._manager.save(int(state.step), args=args, metrics=metrics, force=True)

    def restore(self, like: TrainState) -> tuple[TrainState, tuple[float, ...]]:
        """Return the last saved state, placed as `like` is, and its losses.

        Raises:
            ValueError: if the checkpoint belongs to another model.
        """
        step = self._manager.latest_step()
        assert step is not None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = {n: ocp.args.StandardRestore(t) for n, t in _items(target).items()}
        if (self._folder / str(step) / "losses").exists():  # not in version 0.1
            args["losses"] = ocp.args.JsonRestore()
        found = _restored(self._folder / str(step), args)
        losses = found.pop("losses", {"losses": ()})["losses"]
        number = jax.device_put(jnp.asarray(step, jnp.int32), like.step.sharding)
        return TrainState(number, **found), tuple(losses)

    def close(self) -> None:
        """Wait until everything is on disk; signals are handled after that."""
        with Interrupts(), _disk_full_as_os_error(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()
            self._empty()

    def _move_aside(self, step: int, reason: str) -> None:
        if is_writer():
            aside = f"damaged-{step}-{secrets.token_hex(4)}"
            (self._folder / str(step)).rename(self._folder / aside)
            logging.warning("%s; the checkpoint was moved to %s", reason, aside)

    def _write_checksums(self) -> None:
        """Add the list to a new checkpoint, just before Orbax renames its folder."""
        for new in self._folder.glob(f"*{_UNFINISHED}"):
            found = {str(path.relative_to(new)): d for path, d in _files(new)}
            write_text(new / _CHECKSUMS, json.dumps(found, indent=0) + "\n")

    def _empty(self) -> None:
        if is_writer():
            shutil.rmtree(self._folder / _DELETED, ignore_errors=True)


def _steps(folder: Path) -> list[int]:
    return [int(p.name) for p in folder.iterdir() if p.name.isdecimal()]


def _files(step: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a checkpoint with their checksums.

    Files directly in its folder have only times and names of items, which Orbax writes
    last.
    """
    for path in sorted(step.glob("*/**/*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, hashlib.blake2s)
            yield path, digest.hexdigest()


def _check_files(step: Path) -> None:
    """Compare the files of a checkpoint with its list; those of 0.1 have no list.

    Raises:
        DamagedCheckpoint: naming the file that differs.
    """
    if not (step / _CHECKSUMS).exists():
        return
    try:
        written = json.loads((step / _CHECKSUMS).read_text("utf-8"))
        wanted = {step / name: digest for name, digest in written.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DamagedCheckpoint(f"{step / _CHECKSUMS}: is damaged ({error})") from error
    there = dict(_files(step))
    for path, digest in wanted.items():
        if there.get(path) != digest:
            state = "is damaged" if path in there else "is missing"
            raise DamagedCheckpoint(f"{path}: {state}")


def forget(workdir: Path, stage: str) -> None:
    """Delete the checkpoints of a stage."""
    if (folder := _folder(workdir, stage)).exists():
        shutil.rmtree(folder)


def unfinished_step(workdir: Path, stage: StageConfig) -> int | None:
    """Return the step at which a stage was interrupted, or None.

    Stages without checkpoints, such as a dense CRF, are never unfinished.
    """
    folder = _folder(workdir, stage.name)
    if not folder.is_dir():
        return None
    steps = _steps(folder)
    if 0 in steps or max(steps, default=0) >= stage.steps:  # 0 was imported
        return None
    return max(steps, default=0)


def stage_params(
    workdir: Path,
    config: Config,
    name: str,
    spec: DatasetSpec,
    checkpoint: Choice = "last",
) -> Params:
    """Return all parameters of a trained stage, including those of its start.

    The stage's own are the moving averages, if it keeps any.

    Raises:
        ValueError: if a checkpoint is missing or belongs to another model.
    """
    stage = config.stage(name)
    model = build_model(config, stage, spec.num_classes)
    if (packed := workdir / PACKED).is_file():
        shapes = stage_shapes(model, stage, spec)
        return assign_weights(read_weights(packed), model, shapes, mean=spec.mean)[0]
    frozen: Params = {}
    if stage.start and stage.trains != "all":
        frozen = stage_params(workdir, config, stage.start, spec)
    if stage.crf_kind == "dense":
        return frozen
    trained, others = split_params(stage_shapes(model, stage, spec), stage)
    frozen = {name: frozen[name] for name in others}
    return {**frozen, **_read_params(workdir, stage, trained, checkpoint)}


def _read_params(
    workdir: Path, stage: StageConfig, shapes: Params, checkpoint: Choice
) -> Params:
    folder = _folder(workdir, stage.name)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no checkpoint of stage {stage.name!r}")
    # Every process reads all parameters onto its first device.
    first = {d.process_index: d for d in reversed(jax.devices())}
    mesh = jax.sharding.Mesh([first[i] for i in sorted(first)], "process")
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    target = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), shapes
    )
    item = "ema" if stage.ema else "params"
    step = max(_steps(folder), default=None)
    if step is None:
        raise ValueError(f"{folder}: contains no finished checkpoint; train first")
    try:
        if checkpoint == "best":
            step = _best_step(folder)
        _check_files(folder / str(step))
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(
            f"{error}; the training command computes the checkpoint again"
        ) from error
    args = {item: ocp.args.StandardRestore(target)}
    restored = _restored(folder / str(step), args)[item]
    return jax.tree.map(lambda x: x.addressable_data(0), restored)


def _best_step(folder: Path) -> int:
    for step in _steps(folder):  # all are compared
        _check_files(folder / str(step))
    options = ocp.CheckpointManagerOptions(best_fn=_mean_iou, create=False)
    with ocp.CheckpointManager(folder, options=options) as manager:
        step = manager.best_step()
    if step is None:
        raise ValueError(
            f"{folder}: was not evaluated during training, so there is no best "
            "checkpoint; use the last"
        )
    return step


def _restored(step: Path, args: dict[str, Any]) -> dict[str, Any]:
    """Return the items of a checkpoint, whose files were checked."""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            found = reader.restore(step, args=ocp.args.Composite(**args))
            return {name: found[name] for name in args}
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{step}: the checkpoint does not fit the model that config.json describes "
            f"({str(error).splitlines()[0]})"
        ) from error


def _folder(workdir: Path, stage: str) -> Path:
    path = Path(workdir).expanduser().resolve()  # Orbax requires an absolute path
    return path / "checkpoints" / stage


def _mean_iou(metrics: dict) -> float:
    return metrics["mean_iou"]


def _items(state: TrainState) -> dict[str, Any]:
    """Return the parts of a state that are stored, by name."""
    items = {"params": state.params, "opt_state": state.opt_state}
    return {**items, "ema": state.ema} if state.ema else items


@contextlib.contextmanager
def _disk_full_as_os_error(folder: Path) -> Iterator[None]:
    """Turn Orbax's error about a full disk into Python's `OSError`."""
    try:
        yield
    except ValueError as error:
        if "os_error_code='28'" not in str(error):
            raise
        message = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC, message, str(folder)) from error
