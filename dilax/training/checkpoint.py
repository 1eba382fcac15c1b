"""Orbax checkpoints of the stages of a run, and loading a trained network.

A stage stores what it trains; the rest is in the stage that it started from.
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
from dilax.models import DilatedNet, param_shapes
from dilax.runtime.processes import is_writer, wait_for_all
from dilax.training.config import Config, StageConfig, build_model
from dilax.training.serialization import from_json
from dilax.training.stage_crf import Params, stage_shapes
from dilax.training.step import TrainState, split_params
from dilax.weights import place_weights, read_weights

# All parameters of a run's only stage, in place of its checkpoints (`pack`).
PACKED = "weights.safetensors"


def _mean_iou(metrics: dict) -> float:
    return metrics["mean_iou"]


class Checkpoints:
    """The checkpoints of one stage: the last and the best, saved asynchronously.

    Args:
        workdir: the run's folder.
        stage: name of the stage.
    """

    def __init__(self, workdir: Path, stage: str):
        policy = AnyPreservationPolicy(
            [
                LatestN(1),
                BestN(
                    get_metric_fn=_mean_iou,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._folder = checkpoint_folder(workdir, stage)
        if is_writer():
            for left in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left)  # cut off when an earlier run was killed
        wait_for_all(f"checkpoints of {stage}")
        # With best_fn the scores are stored, so that the best outlives a resume.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=_mean_iou
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    @property
    def latest(self) -> int | None:
        """The last saved step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, mean_iou: float | None = None) -> None:
        """Saves the state in the background; a step that is there stays as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = None
        if mean_iou is not None and math.isfinite(mean_iou):
            metrics = {"mean_iou": mean_iou}
        items = {n: ocp.args.StandardSave(tree) for n, tree in _items(state).items()}
        args = ocp.args.Composite(**items)
        with _named_when_full(self._folder):
            self._manager.save(step, args=args, metrics=metrics)

    def restore(self, like: TrainState) -> TrainState:
        """The last saved state, placed as `like` is."""
        step = self._manager.latest_step()
        assert step is not None
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {n: ocp.args.StandardRestore(t) for n, t in _items(target).items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        position = jax.device_put(jnp.asarray(step, jnp.int32), like.step.sharding)
        return TrainState(position, **{name: restored[name] for name in items})

    def close(self) -> None:
        """Waits until everything is on disk."""
        with _named_when_full(self._folder):
            self._manager.wait_until_finished()
            self._manager.close()


def _items(state: TrainState) -> dict[str, Any]:
    """What is stored of a state, by name; an average where there is one."""
    items = {"params": state.params, "opt_state": state.opt_state}
    return {**items, "ema": state.ema} if state.ema else items


@contextlib.contextmanager
def _named_when_full(folder: Path) -> Iterator[None]:
    """Turns the storage library's message of a full disk into Python's `OSError`."""
    try:
        yield
    except ValueError as error:
        if "os_error_code='28'" not in str(error):
            raise
        message = os.strerror(errno.ENOSPC)
        raise OSError(errno.ENOSPC, message, str(folder)) from error


def checkpoint_folder(workdir: Path, stage: str) -> Path:
    """Where a stage's checkpoints lie (absolute, as orbax demands)."""
    return Path(workdir).expanduser().resolve() / "checkpoints" / stage


def stage_params(
    workdir: Path,
    config: Config,
    name: str,
    spec: DatasetSpec,
    checkpoint: Literal["last", "best"] = "last",
) -> Params:
    """All parameters of a trained stage: its own (averaged where it keeps an average),
    and below them its start's.

    Raises:
        ValueError: if a checkpoint is missing or belongs to another model.
    """
    stage = config.stage(name)
    if (packed := workdir / PACKED).is_file():
        model = build_model(config, stage, spec.num_classes)
        shapes = param_shapes(model, len(spec.mean))
        return place_weights(read_weights(packed), model, shapes, mean=spec.mean)[0]
    frozen: Params = {}
    if stage.start and stage.trains != "all":
        frozen = stage_params(workdir, config, stage.start, spec)
    if stage.crf_kind == "dense":
        return frozen
    model = build_model(config, stage, spec.num_classes)
    shapes = stage_shapes(model, stage, spec)
    trained, others = split_params(shapes, stage)
    frozen = {name: frozen[name] for name in others}
    return {**frozen, **_read_params(workdir, stage, trained, checkpoint)}


def _read_params(
    workdir: Path, stage: StageConfig, shapes: Params, checkpoint
) -> Params:
    folder = checkpoint_folder(workdir, stage.name)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no checkpoint of stage {stage.name!r}")
    options = ocp.CheckpointManagerOptions(best_fn=_mean_iou, create=False)
    with ocp.CheckpointManager(folder, options=options) as manager:
        step = manager.best_step() if checkpoint == "best" else manager.latest_step()
        if step is None and checkpoint == "best":
            raise ValueError(
                f"{folder}: was not evaluated while it trained, so there is no best "
                "checkpoint; take the last"
            )
        if step is None:
            raise ValueError(f"{folder}: holds no finished checkpoint; train first")
        target = jax.tree.map(_on_every_process, shapes)
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


def _on_every_process(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Whole, on the first device of each."""
    first = {d.process_index: d for d in reversed(jax.devices())}
    mesh = jax.sharding.Mesh([first[i] for i in sorted(first)], "process")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def load_checkpoint(
    workdir: str | Path, stage: str = "", checkpoint: Literal["last", "best"] = "last"
) -> tuple[DilatedNet, Any, DatasetSpec]:
    """Loads a trained network from the folder of a run.

    What the network alone is, without the stage's CRF; `load_predictor` has both.

    Args:
        workdir: the folder that `train` wrote.
        stage: which stage's network; the recipe's last by default.
        checkpoint: `"last"` step, or the `"best"` that evaluation met while training.

    Returns:
        (model, params, spec), as `Predictor` takes them.

    Raises:
        ValueError: naming the file, if the folder is not a run's, the stage is unknown
            or untrained, or the checkpoint belongs to another model.

    Example:
        >>> import tempfile
        >>> from dilax.training.loop import train
        >>> from dilax.training.recipes import quickstart
        >>> config = quickstart()
        >>> config.stages = config.stages[:1]
        >>> config.stages[0].steps = 1
        >>> with tempfile.TemporaryDirectory() as workdir:
        ...     results = train(config, workdir)
        ...     model, params, spec = load_checkpoint(workdir)
        >>> model.num_classes, list(params), spec.name
        (8, ['front_end'], 'scenes')
    """
    root = Path(workdir).expanduser()
    config = from_json(Config, root / "config.json")
    spec = from_json(DatasetSpec, root / "spec.json")
    chosen = config.stage(stage)
    model = build_model(config, chosen, spec.num_classes)
    params = stage_params(root, config, chosen.name, spec, checkpoint)
    return model, {n: p for n, p in params.items() if n != "crf"}, spec
