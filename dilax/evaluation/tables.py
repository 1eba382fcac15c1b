"""Tables that show the stages of a run side by side, as Table 3 of the paper does."""

from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

from dilax.runtime.files import printable

_SUMMARY = (
    ("mean IoU", "mean_iou"),
    ("pixel accuracy", "pixel_accuracy"),
    ("mean accuracy", "mean_accuracy"),
)


def stage_table(
    stages: Mapping[str, Mapping], marked: Sequence[str] = (), style: str = "github"
) -> str:
    """IoU of every stage per class and per category, and the means, in per cent.

    Args:
        stages: stage name → the result of `Scores.as_dict`.
        marked: classes to mark and average separately: those that only context
            distinguishes.
        style: a format of `tabulate`.

    Returns:
        The table, with a dash where there is no IoU. Stages without categories show
        none.

    Example:
        >>> means = {"mean_iou": 0.7, "pixel_accuracy": 0.8, "mean_accuracy": 0.75}
        >>> scores = {"iou_per_class": {"sky": 0.9, "sea": 0.5}, **means}
        >>> print(stage_table({"front_end": scores}))
        | IoU, %         |   front end |
        |----------------|-------------|
        | sky            |        90.0 |
        | sea            |        50.0 |
        | **mean IoU**   |        70.0 |
        | pixel accuracy |        80.0 |
        | mean accuracy  |        75.0 |
    """
    rows = _class_rows(stages, marked) + _category_rows(stages)
    for title, key in _SUMMARY:
        bold = f"**{title}**" if key == "mean_iou" else title
        rows.append([bold, *(_percent(s[key]) for s in stages.values())])
    table = figure_table("IoU, %", _titles(stages), rows, style)
    return table + ("\n\\* only the surroundings tell these apart" if marked else "")


def boundary_table(
    stages: Mapping[str, Mapping],
    widths: Sequence[int] = (1, 2, 4, 8, 16, 40),
    style: str = "github",
) -> str:
    """Trimap IoU of every stage in some bands, and boundary F, in per cent.

    Args:
        stages: stage name → the result of `Scores.as_dict`, for scores that `evaluate`
            measured with `boundaries`; a stage without them shows dashes.
        widths: of the bands, in pixels to either side of a boundary.
        style: a format of `tabulate`.

    Example:
        >>> scores = {"trimap_iou": {"1": 0.5, "4": 0.75}, "boundary_f": 0.625}
        >>> print(boundary_table({"front_end": scores}, widths=(1, 4), style="plain"))
        boundaries, %           front end
        mean IoU within 1 px         50.0
        mean IoU within 4 px         75.0
        boundary F                   62.5
    """
    columns = stages.values()
    rows: list[list] = [
        [
            f"mean IoU within {r} px",
            *(_percent(s.get("trimap_iou", {}).get(str(r))) for s in columns),
        ]
        for r in widths
    ]
    rows.append(["boundary F", *(_percent(s.get("boundary_f")) for s in columns)])
    return figure_table("boundaries, %", _titles(stages), rows, style)


def figure_table(
    head: str, titles: Iterable[str], rows: Sequence[Sequence[str]], style: str
) -> str:
    """Return a table of texts: names under `head`, figures under `titles`."""
    titles = [*titles]
    if style == "github":  # class names may contain any characters
        plain = [[_markdown(name), *figures] for name, *figures in rows]
    else:
        plain = [[printable(name), *figures] for name, *figures in rows]
    return tabulate(
        plain,
        headers=[head, *titles],
        tablefmt=style,
        colalign=("left", *("right" for _ in titles)),
        disable_numparse=True,
    )


def _markdown(name: str) -> str:
    return printable(name).replace("<", "&lt;").replace("|", "\\|")


def _titles(stages: Mapping[str, Mapping]) -> list[str]:
    return [name.replace("_", " ") for name in stages]


def _class_rows(stages: Mapping[str, Mapping], marked: Sequence[str]) -> list[list]:
    columns = [stage["iou_per_class"] for stage in stages.values()]
    rows: list[list] = [
        [f"{name} *" if name in marked else name, *(_percent(c[name]) for c in columns)]
        for name in columns[0]
    ]
    if marked:
        means = [_mean_of(c, marked) for c in columns]
        rows.append(["mean of *", *map(_percent, means)])
    return rows


def _category_rows(stages: Mapping[str, Mapping]) -> list[list]:
    columns = [stage.get("iou_per_category", {}) for stage in stages.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    if not names:
        return []
    rows: list[list] = [
        [f"category {name}", *(_percent(c.get(name)) for c in columns)]
        for name in names
    ]
    means = [stage.get("mean_category_iou") for stage in stages.values()]
    return [*rows, ["mean of categories", *map(_percent, means)]]


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def _mean_of(iou: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    present = [v for n in names if (v := iou[n]) is not None]
    return sum(present) / len(present) if present else None
