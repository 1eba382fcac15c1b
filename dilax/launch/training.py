"""The mode that trains: a run, or one a seed, and what is shown of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from dilax.datasets import DatasetSpec
from dilax.evaluation import stage_table
from dilax.inference import save_image
from dilax.ops.hosts import is_writer, wait_for_all
from dilax.report import (
    prediction_sheet,
    profile,
    seed_table,
    watcher,
    write_page,
)
from dilax.training import (
    Config,
    check_run,
    estimate,
    open_evaluation,
    picture_indices,
    train,
    validated,
    write_text,
)

Summarize = Callable[[Sequence[Mapping], Path], str]


def train_runs(values: Any, config: Config, summarize: Summarize | None) -> None:
    """One run, or one a seed; then what they found together."""
    workdir = Path(values.workdir).expanduser()
    seeds = _seeds(values.seeds)
    if not seeds:
        runs = [_train_once(values, config, workdir)]
    else:
        folders = {seed: workdir / f"seed{seed}" for seed in seeds}
        runs = [
            _train_once(
                values, dataclasses.replace(validated(config), seed=seed), place
            )
            for seed, place in folders.items()
        ]
        table = seed_table(runs)
        write_text(workdir / "seeds.md", table + "\n")
        if is_writer():
            print(f"\n{table}\n")
    if summarize and is_writer():
        print(f"\n{summarize(runs, workdir)}\n")


def _seeds(texts: list[str]) -> list[int]:
    """Raises ValueError unless they are whole numbers, each once."""
    if not all(text.isdecimal() for text in texts) or len(set(texts)) < len(texts):
        raise ValueError(
            f"--seeds={','.join(texts)}: must be whole numbers, each once, as in 0,1,2"
        )
    return [int(text) for text in texts]


def _train_once(values: Any, config: Config, workdir: Path) -> dict[str, Any]:
    _foretell(values, config, workdir)
    results = train(config, workdir, watcher(workdir))
    wait_for_all(f"trained {workdir}")
    if not is_writer():
        return results
    _, spec, source = open_evaluation(workdir)
    print(f"\n{stage_table(results['stages'], spec.context_classes)}\n")
    if config.pictures:
        _write_sheet(workdir, config, spec, source)
    alone = jax.process_count() == 1  # several read a checkpoint together or not at all
    print(f"to look at, in a browser: {write_page(workdir, measure=alone)}")
    tqdm.write(f"table, results and checkpoints: {workdir}")
    return results


def _foretell(values: Any, config: Config, workdir: Path) -> None:
    """What the run will take, if it is new, and where the time goes, if asked."""
    estimates = values.estimate and not (workdir / "config.json").exists()
    if not estimates and not values.profile:
        return
    spec = check_run(config, workdir).spec  # what is wrong shows before all else
    if estimates:
        _print_estimate(config, spec)
    if values.profile:
        folder = workdir / "profile"
        for table in profile(config, spec, folder).values():
            print(f"\n{table}")
        print(f"traces and tables: {folder}")


def _print_estimate(config: Config, spec: DatasetSpec) -> None:
    if is_writer():
        print("compiling each stage, to tell what it will take …", flush=True)
    costs = estimate(config, spec)
    if not is_writer():
        return
    print(f"on {len(jax.devices())} x {jax.devices()[0].device_kind}, training alone:")
    for name, cost in costs.items():
        print(f"  {name}: {cost}")


def _write_sheet(workdir: Path, config: Config, spec: Any, source: Any) -> None:
    shown = picture_indices(config, len(source))
    predictions = {
        stage.name: [
            workdir / "predictions" / stage.name / f"{i:04d}.png" for i in shown
        ]
        for stage in config.stages
    }
    samples = [source[i] for i in shown]
    path = workdir / "pictures.png"
    save_image(prediction_sheet(samples, predictions, spec), path)
    print(f"pictures: {path}")
