"""Table 3 (§5): context modules and structured prediction, each with and without.

Rows are what follows the network, columns the network; our figures stand beside the
paper's, which are of VGG-16 on Pascal VOC's validation images.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from dilax.report.paper import TABLE_3
from dilax.report.seeds import spread

NETWORKS = {"front_end": "front end", "basic": "+ Basic", "large": "+ Large"}
AFTER = {"": "nothing", "_crf": "dense CRF", "_crfrnn": "CRF-RNN"}

# Mean IoU, %: three networks a row, in the order of the paper's table.
PAPER = {
    end: tuple(row.mean for row in TABLE_3[3 * i : 3 * i + 3])
    for i, end in enumerate(AFTER)
}


def table3(runs: Sequence[Mapping], style: str = "github") -> str:
    """The 3×3 table of mean IoU in per cent, of one run or over seeds.

    Args:
        runs: what `train` returned for each seed of the recipe `structured`.
        style: a format of `tabulate`.

    Returns:
        The table; over several seeds, mean ± sample standard deviation.

    Example:
        >>> names = [n + end for end in AFTER for n in NETWORKS]
        >>> run = {"seed": 0, "stages": {name: {"mean_iou": 0.5} for name in names}}
        >>> table3([run], "plain").splitlines()[1].split()
        ['nothing', '50.0', '50.0', '50.0', '69.8', '71.3', '72.1']
    """
    rows = []
    for end, title in AFTER.items():
        ours = [spread(_values(runs, network + end)) for network in NETWORKS]
        rows.append([title, *ours, *(f"{figure:.1f}" for figure in PAPER[end])])
    papers = [f"paper: {title}" for title in NETWORKS.values()]
    return tabulate(
        rows,
        headers=["mean IoU, %", *NETWORKS.values(), *papers],
        tablefmt=style,
        colalign=("left", *["right"] * 6),
        disable_numparse=True,
    )


def table3_figures(runs: Sequence[Mapping]) -> dict[str, Any]:
    """What `table3` shows, as numbers from 0 to 1, for JSON.

    Returns:
        `{"seeds": […], "stages": {name: {"mean_iou": […], "mean", "sd", "paper"}}}`;
        `"sd"` is None of a single run.

    Example:
        >>> names = [n + end for end in AFTER for n in NETWORKS]
        >>> run = {"seed": 0, "stages": {name: {"mean_iou": 0.5} for name in names}}
        >>> table3_figures([run])["stages"]["large_crfrnn"]["paper"]
        0.739
    """
    stages = {}
    for end in AFTER:
        for network, paper in zip(NETWORKS, PAPER[end], strict=True):
            values = _values(runs, network + end)
            stages[network + end] = {
                "mean_iou": values,
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "paper": round(paper / 100, 3),
            }
    return {"seeds": [run["seed"] for run in runs], "stages": stages}


def _values(runs: Sequence[Mapping], stage: str) -> list[float]:
    return [run["stages"][stage]["mean_iou"] for run in runs]
