"""Several seeds of a run beside each other: mean IoU of every stage, and the mean."""

import statistics
from collections.abc import Mapping, Sequence

from dilax.evaluation.table import figure_table


def seed_table(runs: Sequence[Mapping], style: str = "github") -> str:
    """Mean IoU of every stage under every seed, in per cent.

    Args:
        runs: what `train` returned for each seed.
        style: a format of `tabulate`.

    Returns:
        The table; its last column is the mean ± the sample standard deviation.

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
    """The mean in per cent, and of several values ± their sample standard deviation.

    Example:
        >>> spread([0.5, 0.75]), spread([0.5])
        ('62.5 ± 17.7', '50.0')
    """
    mean = f"{100 * statistics.fmean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {100 * statistics.stdev(values):.1f}"
