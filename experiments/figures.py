"""The paper's Figures 1 to 5, one command each (Yu & Koltun 2016), as PNG and PDF.

    python experiments/figures.py --figure=1
    python experiments/figures.py --figure=2 --runs=runs/table2 --workdir=figures
    python experiments/figures.py --figure=4 --runs=runs/table3,runs/table2 --rows=6

1  Receptive fields of 3×3 layers with dilations 1, 2, 4; --rates=1,2,4,8 draws others.
2  FCN-8s, DeepLab, and our front end, side by side.
3  Front end, with a Large context module, and with a CRF-RNN as well.
4  Failures: the images on which the most accurate system of the runs is worst.
5  Front end, context module, and both trained jointly.

Figures 2 to 5 show predictions of trained runs on images of their evaluation split.
--runs gives the folders of those runs. `experiments/tables.py` trains them: --table=2
for Figure 2, --table=3 for Figures 3 and 4, and --table=7 for Figure 5. Runs of other
experiments with such stages can be used, too. Columns that no run has are left out and
reported.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dilax.cli.command import fail
from dilax.data import DatasetSpec, evenly_spread
from dilax.evaluation import evaluate, image_scores
from dilax.inference import as_rgb, palette_image
from dilax.report import collect, field_figure, picture_figure, save_figure
from dilax.report.paper import System, run_folders
from dilax.training import (
    Config,
    StageConfig,
    from_json,
    load_predictor,
    open_evaluation,
)

SYSTEMS = {
    2: {
        "FCN-8s": System("fcn8s"),
        "DeepLab": System("deeplab"),
        "Our front end": System(),
    },
    3: {
        "Front end": System(),
        "+ Context": System(context="large"),
        "+ CRF-RNN": System(context="large", crf="rnn"),
    },
}
# Figure 5: what a stage trains.
STAGES = {"Front end": "front_end", "+ Context": "context", "+ Joint": "all"}
TABLE = {2: 2, 3: 3, 4: 3, 5: 7}


class Stage(NamedTuple):
    """A trained stage: the folder of its run, and its name."""

    folder: Path
    name: str


class Shown(NamedTuple):
    """The contents of a figure.

    Attributes:
        samples: `{image, label}` of each row.
        predictions: title → (h, w) label maps, one per row.
        spec: of the data set.
        notes: texts beside the rows.
    """

    samples: Sequence[dict]
    predictions: Mapping[str, Sequence[np.ndarray]]
    spec: DatasetSpec
    notes: Sequence[str] = ()


def side_by_side(number: int, values: argparse.Namespace) -> Shown:
    """Return the contents of Figures 2, 3, and 5."""
    stages = _systems(values.runs, number) if number < 5 else _training(values.runs)
    titles = STAGES if number == 5 else SYSTEMS[number]
    missing = [title for title in titles if title not in stages]
    if missing:
        print(f"no run has {', '.join(missing)}; {_remedy(number)}", file=sys.stderr)
    if not stages:
        raise ValueError(f"--runs: no run has the stages that figure {number} shows")
    _, spec, source = open_evaluation(
        next(iter(stages.values())).folder, values.data_dir
    )
    samples = [source[i] for i in _indices(values, len(source))]
    images = [sample["image"] for sample in samples]
    predictions = {}
    for title in titles:
        if title in stages:
            predictor = load_predictor(*stages[title])
            predictions[title] = [predictor(image) for image in images]
    return Shown(samples, predictions, spec)


def failures(values: argparse.Namespace) -> Shown:
    """Return the contents of Figure 4: the images with the lowest mean IoU first."""
    stage = _most_accurate(values.runs)
    config, spec, source = open_evaluation(stage.folder, values.data_dir)
    predictor = load_predictor(*stage, batch_size=config.eval_batch_size)
    found: list[tuple[float, int, np.ndarray]] = []

    def keep(index: int, sample: dict, labels: np.ndarray) -> None:
        scores = image_scores(spec.classes, sample["label"], labels, spec.ignore_label)
        found.append((scores.mean_iou, index, labels))

    evaluate(predictor, source, f"stage {stage.name} of {stage.folder}", keep)
    worst = sorted(found, key=lambda each: each[:2])[: values.rows]
    return Shown(
        [source[index] for _, index, _ in worst],
        {stage.name.replace("_", " "): [labels for *_, labels in worst]},
        spec,
        [f"image {index}: IoU {100 * iou:.1f}" for iou, index, _ in worst],
    )


def _systems(runs: Sequence[Path], number: int) -> dict[str, Stage]:
    """Title → the stage of that system, from the first seed."""
    systems = collect(runs).systems
    return {
        title: Stage(found.folder, found.stage)
        for title, system in SYSTEMS[number].items()
        if system in systems
        for found in [next(iter(systems[system].values()))]
    }


def _training(runs: Sequence[Path]) -> dict[str, Stage]:
    """Title → stage, from the first run with a context module and joint training."""
    for folder in [place for run in runs for place in run_folders(run)]:
        config = from_json(Config, folder / "config.json")
        joint = [stage for stage in config.stages if stage.trains == "all"]
        for last in [stage for stage in joint if stage.start and stage.context]:
            names = {stage.trains: stage.name for stage in _chain(config, last)}
            return {t: Stage(folder, names[s]) for t, s in STAGES.items() if s in names}
    return {}


def _chain(config: Config, stage: StageConfig) -> list[StageConfig]:
    """The stages that lead to a stage, in order of training, and the stage itself."""
    before = _chain(config, config.stage(stage.start)) if stage.start else []
    return [*before, stage]


def _most_accurate(runs: Sequence[Path]) -> Stage:
    found = [run for seeds in collect(runs).systems.values() for run in seeds.values()]
    best = max(found, key=lambda run: run.scores["mean_iou"])
    return Stage(best.folder, best.stage)


def _indices(values: argparse.Namespace, count: int) -> list[int]:
    if values.images:
        if max(values.images) >= count:
            raise ValueError(
                f"--images={max(values.images)}: there are {count} images, 0 to "
                f"{count - 1}"
            )
        return values.images
    return evenly_spread(count, values.rows)


def _remedy(number: int) -> str:
    return f"experiments/tables.py --table={TABLE[number]} trains what is missing"


def draw(values: argparse.Namespace) -> str:
    """Draw the figure that the flags describe, and return the paths of its files."""
    number = values.figure
    if number == 1:
        figure = field_figure(values.rates)
    elif not values.runs:
        raise ValueError(
            f"--runs: figure {number} shows trained runs; give their folders. "
            f"{_remedy(number)}"
        )
    else:
        shown = failures(values) if number == 4 else side_by_side(number, values)
        figure = picture_figure(
            _columns(shown), shown.spec, _classes(shown), shown.notes
        )
    return " ".join(map(str, save_figure(figure, values.workdir / f"figure{number}")))


def _columns(shown: Shown) -> dict[str, list[np.ndarray]]:
    """Title, with the paper's letters, → pictures."""
    truth = [sample["label"] for sample in shown.samples]
    labels = {**shown.predictions, "Ground truth": truth}
    pictures = {"Image": [as_rgb(sample["image"]) for sample in shown.samples]}
    for title, maps in labels.items():
        pictures[title] = [
            np.asarray(palette_image(m, shown.spec).convert("RGB")) for m in maps
        ]
    return {
        f"({letter}) {title}": column
        for letter, (title, column) in zip("abcdefgh", pictures.items(), strict=False)
    }


def _classes(shown: Shown) -> list[int]:
    """The classes that occur in the figure."""
    maps = [sample["label"] for sample in shown.samples]
    maps += [m for column in shown.predictions.values() for m in column]
    seen = {int(i) for m in maps for i in np.unique(m)}
    return sorted(seen - {shown.spec.ignore_label})


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _folders(text: str) -> list[Path]:
    return [Path(part).expanduser() for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The flags."""
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = made.add_argument
    number = "number of the paper's figure"
    add("--figure", type=int, choices=range(1, 6), required=True, help=number)
    add("--runs", type=_folders, default=[], help="folders of runs, DIR,DIR")
    folder = "folder to write to [figures]"
    add("--workdir", type=Path, default=Path("figures"), help=folder)
    add("--rows", type=int, default=4, help="number of images to show [4]")
    indices = "indices of the images, 0,25 [evenly spread]"
    add("--images", type=_numbers, default=[], help=indices)
    add("--rates", type=_numbers, default=[1, 2, 4], help="of figure 1 [1,2,4]")
    moved = "location of the runs' data, if it has moved"
    add("--data_dir", default="", help=moved)
    return made


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors that users can fix end in one message and exit code 1."""
    values = parser().parse_args(argv)
    try:
        if values.rows < 1:
            raise ValueError(f"--rows={values.rows}: must be 1 or more")
        print(draw(values))
    except (ValueError, OSError) as error:
        fail(str(error))


if __name__ == "__main__":
    main()
