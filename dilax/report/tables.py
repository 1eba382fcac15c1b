"""Tables of text: over seeds, and next to Yu & Koltun (2016), Tables 2 to 8.

Table 3 (§5) combines context modules and structured prediction: its columns are
networks, its rows the CRF. The paper's numbers are for VGG-16 on the validation set of
Pascal VOC 2012.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from dilax.evaluation.evaluate import figure_table
from dilax.report.paper import PAPER, Collected, PaperRow

NETWORKS = {"front_end": "front end", "basic": "+ Basic", "large": "+ Large"}
CONTROLS = {"basic_control": "+ Basic undilated", "large_control": "+ Large undilated"}
AFTER = {"": "no CRF", "_crf": "dense CRF", "_crfrnn": "CRF-RNN"}

# Mean IoU in percent: three networks per row, in the order of the paper.
MEANS = {
    end: tuple(row.mean for row in PAPER[3].rows[3 * i : 3 * i + 3])
    for i, end in enumerate(AFTER)
}

TRIMAP = 4  # pixels on each side of a boundary


def table3(runs: Sequence[Mapping], style: str = "github") -> str:
    """Tabulate Table 3: mean IoU in percent, of one run or over seeds.

    Args:
        runs: results of `train` with the recipe `structured`, one per seed; missing
            stages are shown as a dash.
        style: table format of `tabulate`.

    Returns:
        The table; over several seeds, mean ± sample standard deviation. Undilated
        controls have their own columns, and trimap IoU its own table, if present.

    Example:
        >>> names = [n + end for end in AFTER for n in NETWORKS]
        >>> run = {"seed": 0, "stages": {name: {"mean_iou": 0.5} for name in names}}
        >>> table3([run], "plain").splitlines()[1].split()
        ['no', 'CRF', '50.0', '50.0', '50.0', '69.8', '71.3', '72.1']
    """
    networks = _networks(runs)
    papers = [f"paper: {title}" for title in NETWORKS.values()]
    rows = [
        [title, *_row(runs, networks, end), *(f"{value:.1f}" for value in MEANS[end])]
        for end, title in AFTER.items()
    ]
    tables = [figure_table("mean IoU, %", [*networks.values(), *papers], rows, style)]
    if any("trimap_iou" in stage for run in runs for stage in run["stages"].values()):
        head = f"mean IoU within {TRIMAP} px of a boundary, %"
        near = [
            [title, *_row(runs, networks, end, trimap=True)]
            for end, title in AFTER.items()
        ]
        tables.append(figure_table(head, [*networks.values()], near, style))
    return "\n\n".join(tables)


def table3_figures(runs: Sequence[Mapping]) -> dict[str, Any]:
    """Return the numbers of `table3`, from 0 to 1, for JSON.

    Returns:
        `{"seeds": […], "stages": {name: {"mean_iou": […], "mean", "sd", "paper"}}}`;
        `"sd"` is None for a single run, `"paper"` for a control; `"trimap_iou": […]`
        is added if it was measured.

    Example:
        >>> names = [n + end for end in AFTER for n in NETWORKS]
        >>> run = {"seed": 0, "stages": {name: {"mean_iou": 0.5} for name in names}}
        >>> table3_figures([run])["stages"]["large_crfrnn"]["paper"]
        0.739
    """
    stages = {}
    for end in AFTER:
        for i, network in enumerate(_networks(runs)):
            values = _values(runs, network + end)
            if not values:
                continue
            near = _values(runs, network + end, trimap=True)
            stages[network + end] = {
                "mean_iou": values,
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                **({"trimap_iou": near} if near else {}),
                "paper": round(MEANS[end][i] / 100, 3) if network in NETWORKS else None,
            }
    return {"seeds": [run["seed"] for run in runs], "stages": stages}


def _networks(runs: Sequence[Mapping]) -> dict[str, str]:
    """Stage name → title of the networks, with the controls that were trained."""
    trained = {name for run in runs for name in run["stages"]}
    return NETWORKS | {n: title for n, title in CONTROLS.items() if n in trained}


def _row(
    runs: Sequence[Mapping], networks: Mapping, end: str, trimap: bool = False
) -> list[str]:
    found = (_values(runs, network + end, trimap) for network in networks)
    return [spread(values) if values else "–" for values in found]


def _values(runs: Sequence[Mapping], stage: str, trimap: bool = False) -> list[float]:
    found = [run["stages"][stage] for run in runs if stage in run["stages"]]
    if trimap:
        return [s["trimap_iou"][str(TRIMAP)] for s in found if "trimap_iou" in s]
    return [s["mean_iou"] for s in found]


def seed_table(runs: Sequence[Mapping], style: str = "github") -> str:
    """Tabulate the mean IoU of each stage for each seed, in percent.

    Args:
        runs: results of `train`, one per seed.
        style: table format of `tabulate`.

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
    return figure_table("mean IoU, %", [*seeds, "mean ± sd"], rows, style)


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


def paper_table(number: int, found: Collected, style: str = "github") -> str:
    """Tabulate mean IoU per row, ours and the paper's, and then IoU per class.

    Args:
        number: number of the table, 2 to 8.
        found: result of `collect`.
        style: table format of `tabulate`.

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
        _mean_table(number, found, style),
    ]
    for title, names, rows, cell in each:
        lines = [[name, *(cell(row, name) for row in rows)] for name in names]
        heads = [row.name for row in rows]
        if rows:
            parts.append(figure_table(f"IoU, %: {title}", heads, lines, style))
    return "\n\n".join(parts)


def _mean_table(number: int, found: Collected, style: str) -> str:
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
        tablefmt=style,
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
