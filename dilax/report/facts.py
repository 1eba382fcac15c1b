"""What was run, on what, how fast, and in how much memory: tables of a run's page."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dilax.models import param_shapes
from dilax.report.folder import RunFolder, stage_title
from dilax.report.grids import Grid, Head, Row
from dilax.training.config import build_model


def facts_grid(runs: Sequence[RunFolder]) -> Grid:
    """What was run, a column a run."""
    told = [_facts(run) for run in runs]
    names = dict.fromkeys(name for facts in told for name in facts)
    rows = [Row(name, [facts.get(name, "–") for facts in told]) for name in names]
    heads = [Head(run.title if len(runs) > 1 else "") for run in runs]
    return Grid([Head(""), *heads], rows)


def _facts(run: RunFolder) -> dict[str, str]:
    config, machine = run.config, run.machine
    data = config.data
    facts = {
        "configuration": f"{config.name}, seed {config.seed}, {config.dtype}",
        "data": f"{run.spec.name}, {run.spec.num_classes} classes; trained on "
        f"{data.train}, evaluated on {_evaluated(run)}",
        "stages": " → ".join(_stage_words(run)),
        "network": f"{_network(run)}, {parameters(run):,} parameters",
    }
    if machine:
        versions = machine["versions"].items()
        facts["device"] = f"{machine['devices']} × {machine['device']}" + (
            f", {machine['processes']} processes" * (machine["processes"] > 1)
        )
        facts["system"] = machine["system"]
        facts["versions"] = ", ".join(f"{name} {v}" for name, v in versions if v)
    return facts


def _evaluated(run: RunFolder) -> str:
    count = run.results.get("images")
    return run.config.data.val + (f", {count} images" if count else "")


def _stage_words(run: RunFolder) -> list[str]:
    return [
        f"{stage.name.replace('_', ' ')} ({run.steps(stage) or 'no'} steps)"
        for stage in run.config.stages
    ]


def _network(run: RunFolder) -> str:
    stage = run.config.stages[-1]
    name = (stage.model or run.config.model).network.replace("_", " ")
    context = f" with a context module of {len(stage.context)} layers"
    return name + (context if stage.context else "")


def parameters(run: RunFolder) -> int:
    """How many the network of the last stage has."""
    model = build_model(run.config, run.config.stages[-1], run.spec.num_classes)
    leaves = jax.tree.leaves(param_shapes(model, len(run.spec.mean)))
    return sum(leaf.size for leaf in leaves)


def speed_grid(runs: Sequence[RunFolder]) -> Grid | None:
    """Speed and memory, a row a stage; None of runs that told neither."""
    rows = []
    for run in runs:
        seconds, waits = run.series("step_seconds"), run.series("input_wait")
        for stage in run.config.stages:
            times = seconds.get(stage.name, ([], []))[1]
            done = run.machine.get("stages", {}).get(stage.name, {})
            if times or done:
                wait = waits.get(stage.name, ([], []))[1]
                cells = [
                    *_step_cells(times, wait, stage.batch_size),
                    *_evaluation_cells(done, run.results.get("images")),
                ]
                rows.append(Row(stage_title(run, stage.name, len(runs)), cells))
    heads = ("ms a step", "images/s", "waits for input", "ms an evaluation image")
    memory = ("peak memory, host", "peak memory, device")
    return _without_empty(Grid([Head(""), *map(Head, (*heads, *memory))], rows))


def _without_empty(grid: Grid) -> Grid | None:
    """A table without the columns that say nothing; None of nothing at all."""
    kept = [
        i
        for i, cells in enumerate(zip(*(r.cells for r in grid.rows), strict=True))
        if {*cells} != {"–"}
    ]
    rows = [row._replace(cells=[row.cells[i] for i in kept]) for row in grid.rows]
    return (
        Grid([grid.heads[0], *(grid.heads[i + 1] for i in kept)], rows)
        if kept
        else None
    )


def _step_cells(times: list[float], waits: list[float], batch: int) -> list[str]:
    if not times:
        return ["–"] * 3
    middle = statistics.median(times)  # the first steps compile
    wait = f"{100 * statistics.median(waits):.0f} %" if waits else "–"
    return [_figure(1000 * middle), _figure(batch / middle), wait]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _evaluation_cells(done: Mapping[str, Any], images: int | None) -> list[str]:
    seconds, memory = done.get("evaluation_seconds"), done.get("memory", {})
    each = _figure(1000 * seconds / images) if seconds and images else "–"
    peaks = (memory.get(place) for place in ("host", "device"))
    return [each, *(f"{peak / 1e9:.2f} GB" if peak else "–" for peak in peaks)]
