"""Table 3 (§5): context modules and structured prediction, each with and without.

Rows are what follows the network, columns the network; our figures stand beside the
paper's, which are of VGG-16 on Pascal VOC's validation images.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from dilax.evaluation.table import figure_table
from dilax.report.paper import TABLE_3
from dilax.report.seeds import spread

NETWORKS = {"front_end": "front end", "basic": "+ Basic", "large": "+ Large"}
CONTROLS = {"basic_control": "+ Basic undilated", "large_control": "+ Large undilated"}
AFTER = {"": "nothing", "_crf": "dense CRF", "_crfrnn": "CRF-RNN"}

# Mean IoU, %: three networks a row, in the order of the paper's table.
PAPER = {
    end: tuple(row.mean for row in TABLE_3[3 * i : 3 * i + 3])
    for i, end in enumerate(AFTER)
}

TRIMAP = 4  # pixels to either side of a boundary


def table3(runs: Sequence[Mapping], style: str = "github") -> str:
    """The 3×3 table of mean IoU in per cent, of one run or over seeds.

    Args:
        runs: what `train` returned for each seed of the recipe `structured`; what a
            run lacks of the stages' shows a dash.
        style: a format of `tabulate`.

    Returns:
        The table; over several seeds, mean ± sample standard deviation. The controls
        have columns where they were trained, and trimap IoU a table of its own where
        it was measured.

    Example:
        >>> names = [n + end for end in AFTER for n in NETWORKS]
        >>> run = {"seed": 0, "stages": {name: {"mean_iou": 0.5} for name in names}}
        >>> table3([run], "plain").splitlines()[1].split()
        ['nothing', '50.0', '50.0', '50.0', '69.8', '71.3', '72.1']
    """
    networks = _networks(runs)
    papers = [f"paper: {title}" for title in NETWORKS.values()]
    rows = [
        [title, *_row(runs, networks, end), *(f"{value:.1f}" for value in PAPER[end])]
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
    """What `table3` shows, as numbers from 0 to 1, for JSON.

    Returns:
        `{"seeds": […], "stages": {name: {"mean_iou": […], "mean", "sd", "paper"}}}`;
        `"sd"` is None of a single run, `"paper"` of a control; `"trimap_iou": […]`
        besides where it was measured.

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
                "paper": round(PAPER[end][i] / 100, 3) if network in NETWORKS else None,
            }
    return {"seeds": [run["seed"] for run in runs], "stages": stages}


def _networks(runs: Sequence[Mapping]) -> dict[str, str]:
    """Names of the stages that are networks, and their titles."""
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
