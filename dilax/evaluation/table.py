"""Tables that set the stages of a run side by side, as Table 3 of the paper does."""

from collections.abc import Mapping, Sequence

from tabulate import tabulate

_SUMMARY = (
    ("mean IoU", "mean_iou"),
    ("pixel accuracy", "pixel_accuracy"),
    ("mean accuracy", "mean_accuracy"),
)


def stage_table(
    stages: Mapping[str, Mapping], marked: Sequence[str] = (), style: str = "github"
) -> str:
    """Per-class IoU of every stage, and the means, in per cent.

    Args:
        stages: stage name → what `Scores.as_dict` gives.
        marked: classes to mark and average apart: the ones that only context tells.
        style: a format of `tabulate`.

    Returns:
        The table; classes without an IoU show a dash.
    """
    names = list(next(iter(stages.values()))["iou_per_class"])
    columns = [stage["iou_per_class"] for stage in stages.values()]
    rows: list[list] = [
        [f"{name} *" if name in marked else name, *(_percent(c[name]) for c in columns)]
        for name in names
    ]
    if marked:
        means = [_mean_of(c, marked) for c in columns]
        rows.append(["mean of *", *map(_percent, means)])
    for title, key in _SUMMARY:
        bold = f"**{title}**" if key == "mean_iou" else title
        rows.append([bold, *(_percent(s[key]) for s in stages.values())])
    table = tabulate(
        rows,
        headers=["IoU, %", *(name.replace("_", " ") for name in stages)],
        tablefmt=style,
        colalign=("left", *("right" for _ in stages)),
        disable_numparse=True,
    )
    return table + ("\n\\* only the surroundings tell these apart" if marked else "")


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def _mean_of(iou: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    present = [v for n in names if (v := iou[n]) is not None]
    return sum(present) / len(present) if present else None
