"""What cells see: of a list of rates, of a network, and of a trained one.

    dilax receptive-field 2 2 2        # holes? how often each pixel is seen
    dilax receptive-field 5:1 3:2      # kernel 5, then 3 at rate 2
    dilax receptive-field 1 2 4 --picture=figure1.png
    dilax receptive-field --network=dilation8_camvid
    dilax receptive-field --run=runs/quickstart --picture=heat.png

Of rates, the footprint decides whether there are holes, and HDC's distances M_i explain
them. Of a network, the size, stride and centre that its layers give; of a run, besides,
the effective receptive field: the gradients of its cells in the middle of evaluation
images.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dilax.models import HDC50, DilatedNet, resnet_duc
from dilax.ops import receptive_field
from dilax.ops.receptive_fields import Gridding, gridding, suggest_rates
from dilax.report import effective_told, measured_field, network_told
from dilax.report.fields import heat_picture, in_letters, save_picture, stack_picture
from dilax.weights import RELEASED

NETWORKS: dict[str, Callable[[], DilatedNet]] = {
    **{name: released.build for name, released in RELEASED.items()},
    "resnet101_duc": resnet_duc,
    "resnet50_duc": functools.partial(resnet_duc, blocks=HDC50),
}
_WIDEST = 79  # letters of a line


def main(argv: list[str] | None = None) -> None:
    """Runs the command; what a person can mend ends in one message and exit code 1."""
    values = _parser().parse_args(argv)
    try:
        print(_answer(values))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "dilax receptive-field", description=__doc__, formatter_class=form
    )
    parser.add_argument("layers", nargs="*", type=_layer, help="RATE or KERNEL:RATE")
    parser.add_argument("--network", choices=NETWORKS, help="a network by name")
    parser.add_argument("--run", type=Path, help="folder of a trained run")
    parser.add_argument("--stage", default="", help="of the run [the last]")
    parser.add_argument("--images", type=int, default=4, help="of its data [4]")
    parser.add_argument("--data_dir", default="", help="where the run's data lies now")
    parser.add_argument("--picture", default="", help="file for a picture, .png")
    return parser


def _layer(text: str) -> tuple[int, int]:
    kernel, _, rate = text.rpartition(":")
    return int(kernel or 3), int(rate)


def _answer(values: argparse.Namespace) -> str:
    given = [bool(values.layers), bool(values.network), bool(values.run)]
    if sum(given) != 1:
        raise ValueError("give either rates, such as 1 2 5, or --network, or --run")
    if values.layers:
        if values.picture:
            save_picture(stack_picture(values.layers), values.picture)
        return "\n".join(_told(gridding(values.layers)))
    if values.network:
        return "\n".join(network_told(NETWORKS[values.network]()))
    model, field = measured_field(
        values.run, values.stage, values.images, values.data_dir
    )
    if values.picture:
        save_picture(heat_picture(field), values.picture)
    told = [*network_told(model), effective_told(field, model.receptive_field)]
    return "\n".join(told)


def _told(found: Gridding) -> list[str]:
    """What there is to say about a list of rates."""
    layers, every = found.layers, found.size**2
    sizes = [receptive_field(layers[: n + 1]).size for n in range(len(layers))]
    seen = np.outer(found.counts, found.counts)
    seen = seen[seen > 0]
    verdict = f"{found.unseen} of {every} pixels" if found.has_holes else "no pixel"
    told = [
        f"field      {found.size} x {found.size}; layer by layer {_listed(sizes)}",
        f"never sees {verdict}",
        f"sees       the others by {seen.min():.15g} to {seen.max():.15g} paths, "
        f"{np.median(seen):.15g} at the median",
        f"HDC's rule M = {_listed(found.distances)}: {_rule(found)}",
    ]
    if found.has_holes:
        told.append(f"no holes   {_rates(suggest_rates(layers))}: the same field")
    return [*told, "", in_letters(found)] if found.size <= _WIDEST else told


def _rule(found: Gridding) -> str:
    held = "holds" if found.rule_holds else "is broken"
    misleads = found.rule_holds == found.has_holes
    return f"{held}{', but it is the footprint that decides' if misleads else ''}"


def _rates(layers: tuple[tuple[int, int], ...]) -> str:
    return " ".join(f"{r}" if k == 3 else f"{k}:{r}" for k, r in layers)


def _listed(numbers) -> str:
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    main()
