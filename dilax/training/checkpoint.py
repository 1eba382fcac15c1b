"""Checkpoints of the stages of a run, by Orbax.

A stage stores only what it trains; the rest is in the stage that it started from.
"""

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from dilax.data import DatasetSpec
from dilax.models import param_shapes
from dilax.runtime.processes import is_writer, wait_for_all
from dilax.training.config import Config, StageConfig, build_model
from dilax.training.stage_crf import Params, stage_shapes
from dilax.training.step import TrainState, split_params
from dilax.weights import place_weights, read_weights

# All parameters of a run's only stage, in place of its checkpoints (see `pack`).
PACKED = "weights.safetensors"

Choice = Literal["last", "best"]


class Checkpoints:
    """The checkpoints of one stage: the last and the best, saved in the background.

    Args:
        workdir: the run's folder.
        stage: name of the stage.
    """

    def __init__(self, workdir: Path, stage: str):
        self._folder = _folder(workdir, stage)
        if is_writer():  # an earlier run may have been killed while saving
            for partial in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial)
        wait_for_all(f"checkpoints of {stage}")
        best = BestN(
            get_metric_fn=_mean_iou, n=1, keep_checkpoints_without_metrics=False
        )
        # With best_fn the scores are stored, so that the best outlives a resume.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(1), best]),
            best_fn=_mean_iou,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def latest(self) -> int | None:
        """The last saved step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, mean_iou: float | None = None) -> None:
        """Save the state in the background, unless its step is saved already.

        Raises:
            OSError: if the disk is full.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = None
        if mean_iou is not None and math.isfinite(mean_iou):
            metrics = {"mean_iou": mean_iou}
        items = {n: ocp.args.StandardSave(tree) for n, tree in _items(state).items()}
        args = ocp.args.Composite(**items)
        with _disk_full_as_os_error(self._folder):
            self._manager.save(step, args=args, metrics=metrics)

    def restore(self, like: TrainState) -> TrainState:
        """Return the last saved state, on the devices where `like` is."""
        step = self._manager.latest_step()
        assert step is not None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {n: ocp.args.StandardRestore(t) for n, t in _items(target).items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        number = jax.device_put(jnp.asarray(step, jnp.int32), like.step.sharding)
        return TrainState(number, **{name: restored[name] for name in items})

    def close(self) -> None:
        """Wait until everything is on disk."""
        with _disk_full_as_os_error(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()


def stage_params(
    workdir: Path,
    config: Config,
    name: str,
    spec: DatasetSpec,
    checkpoint: Choice = "last",
) -> Params:
    """Return all parameters of a trained stage, those of its start included.

    Its own are the moving averages, if it keeps any.

    Raises:
        ValueError: if a checkpoint is missing or belongs to another model.
    """
    stage = config.stage(name)
    model = build_model(config, stage, spec.num_classes)
    if (packed := workdir / PACKED).is_file():
        shapes = param_shapes(model, len(spec.mean))
        return place_weights(read_weights(packed), model, shapes, mean=spec.mean)[0]
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
    # Every process reads the parameters whole, onto its first device.
    first = {d.process_index: d for d in reversed(jax.devices())}
    mesh = jax.sharding.Mesh([first[i] for i in sorted(first)], "process")
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    target = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole), shapes
    )
    options = ocp.CheckpointManagerOptions(best_fn=_mean_iou, create=False)
    with ocp.CheckpointManager(folder, options=options) as manager:
        best = checkpoint == "best"
        step = manager.best_step() if best else manager.latest_step()
        if step is None and best:
            raise ValueError(
                f"{folder}: was not evaluated during training, so there is no best "
                "checkpoint; take the last"
            )
        if step is None:
            raise ValueError(f"{folder}: holds no finished checkpoint; train first")
        item = "ema" if stage.ema else "params"
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(target)})
        try:
            restored = manager.restore(step, args=args)[item]
            return jax.tree.map(lambda x: x.addressable_data(0), restored)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{folder}/{step}: is a checkpoint of another model than config.json "
                f"describes ({str(error).splitlines()[0]})"
            ) from error


def _folder(workdir: Path, stage: str) -> Path:
    path = Path(workdir).expanduser().resolve()  # Orbax demands an absolute path
    return path / "checkpoints" / stage


def _mean_iou(metrics: dict) -> float:
    return metrics["mean_iou"]


def _items(state: TrainState) -> dict[str, Any]:
    """Return the parts of a state that are stored, by name."""
    items = {"params": state.params, "opt_state": state.opt_state}
    return {**items, "ema": state.ema} if state.ema else items


@contextlib.contextmanager
def _disk_full_as_os_error(folder: Path) -> Iterator[None]:
    """Turn Orbax's message of a full disk into Python's `OSError`."""
    try:
        yield
    except ValueError as error:
        if "os_error_code='28'" not in str(error):
            raise
        message = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC, message, str(folder)) from error
