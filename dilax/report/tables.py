"""Tables of text: over seeds, and next to Yu & Koltun (2016), Tables 2 to 8."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from dilax.evaluation.evaluate import figure_table
from dilax.report.paper import PAPER, Collected, PaperRow


def seed_table(runs: Sequence[Mapping]) -> str:
    """Tabulate the mean IoU of each stage for each seed, in percent.

    Args:
        runs: results of `train`, one per seed.

    Returns:
        The table; its last column is the mean ± sample standard deviation.

    Example:
        >>> runs = [
        ...     {"seed": seed, "stages": {"joint": {"mean_iou": iou}}}
        ...     for seed, iou in enumerate((0.5, 0.6))
        ... ]
        >>> print(seed_table(runs))
        | mean IoU, %   |   seed 0 |   seed 1 |   mean ± sd |
        |---------------|----------|----------|-------------|
        | joint         |     50.0 |     60.0 |  55.0 ± 7.1 |
    """
    rows = []
    for name in runs[0]["stages"]:
        values = [run["stages"][name]["mean_iou"] for run in runs]
        rows.append(
            [
                name.replace("_", " "),
                *(f"{100 * v:.1f}" for v in values),
                spread(values),
            ]
        )
    seeds = [f"seed {run['seed']}" for run in runs]
    return figure_table("mean IoU, %", [*seeds, "mean ± sd"], rows)


def spread(values: Sequence[float]) -> str:
    """Format the mean in percent; of several values, ± sample standard deviation.

    Example:
        >>> spread([0.5, 0.75]), spread([0.5])
        ('62.5 ± 17.7', '50.0')
    """
    mean = f"{100 * statistics.fmean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.1f}"


_CRF = {"dense": "a dense CRF", "rnn": "a CRF-RNN"}


def paper_table(number: int, found: Collected) -> str:
    """Tabulate mean IoU per row, ours and the paper's, and then IoU per class.

    Args:
        number: number of the table, 2 to 8.
        found: result of `collect`.

    Returns:
        The tables, in percent; over several seeds, mean ± sample standard deviation.
        If the classes are the paper's, its numbers are in parentheses after ours,
        otherwise in a separate table.

    Example:
        >>> print(paper_table(6, Collected("KITTI", "test", 46, {})).splitlines()[0])
        Table 6: ours on KITTI test, 46 images; the paper's on the test set of KITTI
    """
    table = PAPER[number]
    by_category = table.categories
    results = [run for system in found.systems for run in found.results(system)]
    classes = [*results[0].iou(by_category)] if results else [*table.columns]

    def ours(row: PaperRow, name: str) -> str:
        runs = found.results(row.system)
        return _spread([run.iou(by_category)[name] for run in runs])

    def theirs(row: PaperRow, name: str) -> str:
        iou = dict(zip(table.columns, row.iou, strict=True))
        return f"{iou[name]:.1f}" if name in iou else "–"

    def both(row: PaperRow, name: str) -> str:
        return f"{ours(row, name)} ({theirs(row, name)})"

    shared = {*table.columns} <= {*classes}
    trained = [row for row in table.rows if found.scores(row.system)]
    each: tuple[tuple[str, Sequence[str], Sequence[PaperRow], Callable], ...] = (
        ("ours", classes, trained, ours),
        ("the paper's", table.columns, table.rows, theirs),
    )
    if shared:
        each = (("ours (the paper's)", classes, table.rows, both),)
    data = f"{found.data} {found.split}, {found.images} images"
    parts = [
        f"Table {number}: ours on {data}; the paper's on {table.images}",
        _mean_table(number, found),
    ]
    for title, names, rows, cell in each:
        lines = [[name, *(cell(row, name) for row in rows)] for name in names]
        heads = [row.name for row in rows]
        if rows:
            parts.append(figure_table(f"IoU, %: {title}", heads, lines))
    return "\n\n".join(parts)


def _mean_table(number: int, found: Collected) -> str:
    rows = []
    for row in PAPER[number].rows:
        runs = found.results(row.system)
        ours = _spread([run.mean_iou(PAPER[number].categories) for run in runs])
        steps = ", ".join({run.steps: None for run in runs})
        note = _note(number, row, found)
        rows.append([row.name, ours, f"{row.mean:.1f}", steps, note])
    return tabulate(
        rows,
        headers=["mean IoU, %", "ours", "the paper's", "our steps", ""],
        tablefmt="github",
        colalign=("left", "right", "right", "right", "left"),
        disable_numparse=True,
    )


def _spread(values: Sequence[float | None]) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    if len(values) > len(present):  # IoU of the class is undefined in some runs
        return spread([statistics.fmean(present)])
    return spread(present)


def _note(number: int, row: PaperRow, found: Collected) -> str:
    """The row's note; if no run has its system, how to train it."""
    system = row.system
    if system is None or found.scores(system):
        return row.note
    parts: list[str] = [system.network]
    if system.context:
        parts.append(f"the {system.context} context module")
    if system.crf:
        parts.append(_CRF[system.crf])
    return f"not in these runs: {', '.join(parts)}; --table={number} trains it"


def paper_figures(number: int, found: Collected) -> dict[str, Any]:
    """Return the numbers of `paper_table`, from 0 to 1, for JSON.

    Returns:
        `{"table", "data", "split", "images", "rows"}`; each row has a `"name"`, the
        paper's results as `"quoted"`, and ours per seed as `"ours"`, or None.

    Example:
        >>> found = paper_figures(6, Collected("KITTI", "test", 46, {}))
        >>> found["rows"][2]["name"], found["rows"][2]["quoted"]["mean_iou"]
        ('Dilation7', 0.592)
    """
    table, rows = PAPER[number], []
    for row in table.rows:
        runs = found.systems.get(row.system, {}) if row.system else {}
        ours = {
            str(seed): {
                "mean_iou": run.mean_iou(table.categories),
                "iou": run.iou(table.categories),
                "steps": run.steps,
                "stage": run.stage,
            }
            for seed, run in runs.items()
        }
        mean, *iou = (round(value / 100, 4) for value in (row.mean, *row.iou))
        quoted = {"mean_iou": mean, "iou": dict(zip(table.columns, iou, strict=True))}
        note = _note(number, row, found)
        rows.append(
            {"name": row.name, "ours": ours or None, "quoted": quoted, "note": note}
        )
    data = {"data": found.data, "split": found.split, "images": found.images}
    return {"table": number, **data, "rows": rows}
