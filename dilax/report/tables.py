"""Tables of text: over seeds, and next to Yu & Koltun (2016), Tables 2 to 8."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from dilax.evaluation.evaluate import figure_table, percent
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


def spread(values: Sequence[float | None]) -> str:
    """Format the mean in percent; of several values, ± sample standard deviation.

    Values that are None, such as the IoU of a class that does not occur, do not count;
    the mean of the others then has no deviation.

    Example:
        >>> spread([0.5, 0.75]), spread([0.5, None]), spread([])
        ('62.5 ± 17.7', '50.0', '–')
    """
    present = [value for value in values if value is not None]
    if not present:
        return "–"
    mean = f"{100 * statistics.fmean(present):.1f}"
    if len(values) == 1 or len(present) < len(values):
        return mean
    return f"{mean} ± {100 * statistics.stdev(present):.1f}"


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
    table, rows = PAPER[number], paper_figures(number, found)["rows"]
    runs = {row["name"]: [*(row["ours"] or {}).values()] for row in rows}
    quoted = {row["name"]: row["quoted"]["iou"] for row in rows}
    results = [run for seeds in found.systems.values() for run in seeds.values()]
    classes = [*results[0].iou(table.categories)] if results else [*table.columns]

    def ours(system: str, name: str) -> str:
        return spread([run["iou"][name] for run in runs[system]])

    def theirs(system: str, name: str) -> str:
        return percent(quoted[system].get(name))

    def both(system: str, name: str) -> str:
        return f"{ours(system, name)} ({theirs(system, name)})"

    trained = [name for name, own in runs.items() if own]
    each: list[tuple[str, Sequence[str], Sequence[str], Callable]] = [
        ("ours", classes, trained, ours),
        ("the paper's", table.columns, [*runs], theirs),
    ]
    if {*table.columns} <= {*classes}:
        each = [("ours (the paper's)", classes, [*runs], both)]
    means = [
        (
            row["name"],
            spread([run["mean_iou"] for run in runs[row["name"]]]),
            percent(row["quoted"]["mean_iou"]),
            ", ".join(dict.fromkeys(run["steps"] for run in runs[row["name"]])),
            row["note"],
        )
        for row in rows
    ]
    parts = [
        f"Table {number}: ours on {found.data} {found.split}, {found.images} images; "
        f"the paper's on {table.images}",
        tabulate(
            means,
            headers=["mean IoU, %", "ours", "the paper's", "our steps", ""],
            tablefmt="github",
            colalign=("left", "right", "right", "right", "left"),
            disable_numparse=True,
        ),
    ]
    for title, names, systems, cell in each:
        if systems:
            lines = [[name, *(cell(s, name) for s in systems)] for name in names]
            parts.append(figure_table(f"IoU, %: {title}", systems, lines))
    return "\n\n".join(parts)


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
