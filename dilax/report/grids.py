"""The tables of a run's page: accuracy of its stages, and their confusion."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dilax.datasets import DatasetSpec
from dilax.report.folder import RunFolder, stage_title
from dilax.report.paper_columns import PaperColumn


class Head(NamedTuple):
    """Of a column; the paper's columns are set apart."""

    text: str
    paper: bool = False


class Row(NamedTuple):
    """A line of a table.

    Attributes:
        name: its head.
        cells: texts, one a column.
        number: of the class that it is of, or None.
        colour: of that class, as a style sheet has it.
        best: the column of the best of our figures, where there are several.
        strong: whether it is set apart from the rows above.
    """

    name: str
    cells: list[str]
    number: int | None = None
    colour: str = ""
    best: int | None = None
    strong: bool = False


class Grid(NamedTuple):
    """A table: `heads[0]` stands above the rows' heads."""

    heads: list[Head]
    rows: list[Row]


Columns = Mapping[str, Mapping[str, Any]]


def columns(runs: Sequence[RunFolder]) -> dict[str, dict[str, Any]]:
    """Title → scores of every finished stage of every run."""
    return {
        stage_title(run, name, len(runs)): scores
        for run in runs
        for name, scores in run.stages.items()
    }


def iou_grid(
    scores: Columns, papers: Sequence[PaperColumn], spec: DatasetSpec
) -> Grid | None:
    """IoU of every class and the means, ours and then the paper's; None of nothing."""
    if not scores:
        return None
    theirs = [paper.iou_per_class for paper in papers]
    rows = []
    for i, name in enumerate(spec.classes):
        ours = [column["iou_per_class"].get(name) for column in scores.values()]
        colour = "rgb({},{},{})".format(*spec.palette[i])
        shown = f"{name} *" if name in spec.context_classes else name
        rows.append(_row(shown, ours, [t.get(name) for t in theirs], i, colour))
    rows.append(_mean("mean IoU", "mean_iou", scores, [p.mean_iou for p in papers]))
    for title in ("pixel_accuracy", "mean_accuracy"):
        rows.append(_mean(title.replace("_", " "), title, scores, [None] * len(papers)))
    rows[-3] = rows[-3]._replace(strong=True)
    heads = [*map(Head, scores), *(Head(paper.title, True) for paper in papers)]
    stages = [paper.stage.replace("_", " ") for paper in papers]
    order = _beside([*scores], stages)
    return Grid(
        [Head("IoU, %"), *(heads[i] for i in order)],
        [_ordered(row, order) for row in rows],
    )


def _beside(ours: Sequence[str], theirs: Sequence[str]) -> list[int]:
    """Places of columns: each of theirs after ours of that stage, or at the end.

    Example:
        >>> _beside(["front end", "basic"], ["front end", "large"])
        [0, 2, 1, 3]
    """
    places = [ours.index(s) if s in ours else len(ours) for s in theirs]
    ranks = [(i, 0) for i in range(len(ours))] + [(place, 1) for place in places]
    return sorted(range(len(ranks)), key=lambda i: ranks[i])


def _ordered(row: Row, order: Sequence[int]) -> Row:
    best = None if row.best is None else order.index(row.best)
    return row._replace(cells=[row.cells[i] for i in order], best=best)


def _mean(title: str, key: str, scores: Columns, theirs: Sequence) -> Row:
    return _row(title, [column[key] for column in scores.values()], theirs)


def _row(
    name: str, ours: Sequence, theirs: Sequence, number: int | None = None, colour=""
) -> Row:
    cells = [percent(value) for value in (*ours, *theirs)]
    return Row(name, cells, number, colour, _best(ours))


def _best(values: Sequence[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    if len(values) < 2 or not known:
        return None
    return list(values).index(max(known))


def percent(value: float | None) -> str:
    """In per cent, to a tenth; a dash for what was not measured.

    Example:
        >>> percent(0.1234), percent(None)
        ('12.3', '–')
    """
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def summary_grid(runs: Sequence[RunFolder]) -> Grid | None:
    """Mean IoU, a row a stage and a column a run; None of a single run."""
    if len(runs) < 2:
        return None
    names = dict.fromkeys(name for run in runs for name in run.stages)
    rows = [
        _row(
            name.replace("_", " "),
            [
                run.stages[name]["mean_iou"] if name in run.stages else None
                for run in runs
            ],
            [],
        )
        for name in names
    ]
    return Grid([Head("mean IoU, %"), *(Head(run.title) for run in runs)], rows)


def confusions(scores: Columns, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Each matrix in per cent of its rows."""
    return [
        {
            "title": title,
            "classes": classes,
            "rows": _shares(column["confusion"], classes),
        }
        for title, column in scores.items()
    ]


def _shares(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> list[tuple]:
    rows = []
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        total = sum(row)
        shares = [100 * n / total if total else 0.0 for n in row]
        cells = [
            {"text": _share(s), "share": round(s, 1) if s >= 0.5 else 0, "hit": i == j}
            for j, s in enumerate(shares)
        ]
        rows.append((name, cells))
    return rows


def _share(value: float) -> str:
    if value == 0:
        return "·"
    return "<1" if value < 0.5 else f"{value:.0f}"
