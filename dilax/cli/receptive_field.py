"""Describe receptive fields: of a list of rates, a network, or a trained run.

    dilax receptive-field 2 2 2        # are there holes?
    dilax receptive-field 5:1 3:2      # kernel 5, then 3 at rate 2
    dilax receptive-field 1 2 4 --picture=figure1.png
    dilax receptive-field --network=dilation8_camvid
    dilax receptive-field --run=runs/quickstart --picture=heat.png

For rates, it counts the paths from each pixel, finds holes, and checks the HDC rule
(Wang et al. 2018). For a network, it prints the size, stride, and centre of the field.
For a run, it also measures the effective field from the gradients of the centre cell on
evaluation images.
"""

import argparse
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from dilax.cli.command import errors_in_one_message, tool_parser
from dilax.models import HDC50, DilatedNet, resnet_duc
from dilax.ops import receptive_field
from dilax.ops.receptive_fields import Gridding, gridding, suggest_rates
from dilax.report import (
    describe_effective_field,
    describe_network,
    measure_effective_field,
)
from dilax.report.fields import field_as_text, heat_picture, save_picture, stack_picture
from dilax.weights import RELEASED

NETWORKS: dict[str, Callable[[], DilatedNet]] = {
    **{name: released.build for name, released in RELEASED.items()},
    "resnet101_duc": resnet_duc,
    "resnet50_duc": functools.partial(resnet_duc, blocks=HDC50),
}
_WIDEST = 79  # characters per line


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors that users can fix end in one message and exit code 1."""
    values = _parser().parse_args(argv)
    with errors_in_one_message("interrupted"):
        print(_answer(values))


def _parser() -> argparse.ArgumentParser:
    parser = tool_parser("receptive-field", __doc__)
    parser.add_argument("layers", nargs="*", type=_layer, help="RATE or KERNEL:RATE")
    parser.add_argument("--network", choices=NETWORKS, help="name of a network")
    parser.add_argument("--run", type=Path, help="folder of a trained run")
    parser.add_argument("--stage", default="", help="stage of the run [the last]")
    parser.add_argument(
        "--images", type=int, default=4, help="number of evaluation images [4]"
    )
    parser.add_argument(
        "--data_dir", default="", help="location of the run's data, if it has moved"
    )
    parser.add_argument(
        "--picture", default="", help="write a picture to this file (.png)"
    )
    return parser


def _layer(text: str) -> tuple[int, int]:
    kernel, _, rate = text.rpartition(":")
    return int(kernel or 3), int(rate)


def _answer(values: argparse.Namespace) -> str:
    given = [bool(values.layers), bool(values.network), bool(values.run)]
    if sum(given) != 1:
        raise ValueError("give exactly one of: rates such as 1 2 5, --network, --run")
    if values.layers:
        if values.picture:
            save_picture(stack_picture(values.layers), values.picture)
        return "\n".join(_describe_rates(gridding(values.layers)))
    if values.network:
        return "\n".join(describe_network(NETWORKS[values.network]()))
    model, field = measure_effective_field(
        values.run, values.stage, values.images, values.data_dir
    )
    if values.picture:
        save_picture(heat_picture(field), values.picture)
    effective = describe_effective_field(field, model.receptive_field)
    return "\n".join([*describe_network(model), effective])


def _describe_rates(field: Gridding) -> list[str]:
    layers = field.layers
    sizes = [receptive_field(layers[: n + 1]).size for n in range(len(layers))]
    seen = np.outer(field.counts, field.counts)
    seen = seen[seen > 0]
    rule = "satisfied" if field.rule_holds else "violated"
    if field.rule_holds == field.has_holes:
        rule += f", although there are {'' if field.has_holes else 'no '}holes"
    lines = [
        f"field      {field.size} x {field.size}; layer by layer {_listed(sizes)}",
        f"unseen     {field.unseen} of {field.size**2} pixels",
        f"paths      {seen.min():.15g} to {seen.max():.15g} per seen pixel, "
        f"median {np.median(seen):.15g}",
        f"HDC rule   {rule}: M = {_listed(field.distances)}",
    ]
    if field.has_holes:
        rates = (f"{r}" if k == 3 else f"{k}:{r}" for k, r in suggest_rates(layers))
        lines.append(f"no holes   {' '.join(rates)}: the same field size")
    if field.size <= _WIDEST:
        lines += ["", field_as_text(field)]
    return lines


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    main()
