"""`dilax data`: list, prepare, and show data sets; clean masks.

dilax data list
dilax data prepare voc --from ~/downloads/voc
dilax data show voc --split train
dilax data clean masks --to clean_masks
"""

import argparse
import functools
from collections.abc import Callable
from logging import Formatter
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import flags, logging
from tabulate import tabulate
from tqdm import tqdm

from dilax.cli.command import errors_in_one_message, tool_parser
from dilax.data import in_order
from dilax.data.builders.builder import Variant
from dilax.data.masks import MaskReading, clean_masks, main_colours
from dilax.data.pairing import IMAGE_SUFFIXES
from dilax.data.prepared import (
    NAMES,
    builder_class,
    default_data_dir,
    find_variant,
    prepare,
    prepared_dir,
)
from dilax.data.source import Chosen, evenly_spread, open_source
from dilax.data.spec import DATASETS, RGB, DatasetSpec
from dilax.data.survey import class_statistics, survey_folder
from dilax.inference import save_image
from dilax.report import contact_sheet
from dilax.runtime.files import print_any_name, printable
from dilax.runtime.processes import stop_on_signals


def main(argv: list[str] | None = None) -> None:
    """Run a command; errors that users can fix end in one message and exit code 1."""
    values = _parser().parse_args(argv)
    print_any_name()
    flags.FLAGS.mark_as_parsed()  # absl logs only then
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(Formatter("%(message)s"))
    logging.set_verbosity(logging.WARNING)
    stop_on_signals()
    removed = "interrupted; incomplete files were removed: run the command again"
    with errors_in_one_message(removed):
        values.command(values)


def _parser() -> argparse.ArgumentParser:
    parser = tool_parser("data", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    home = argparse.ArgumentParser(add_help=False)
    text = "folder of all prepared data sets [%(default)s]"
    home.add_argument("--data_dir", type=Path, default=default_data_dir(), help=text)
    _command(commands, _list, home)
    flag = _command(commands, _prepare, home)
    flag("name", choices=NAMES)
    flag("--variant", help="see dilax data list [the first]")
    text = (
        "folder with the archives as downloaded or unpacked, or one archive; "
        "without it, files that need no account are downloaded"
    )
    flag("--from", dest="source", type=Path, default=None, help=text)
    for name, text in (
        ("partial", "prepare the images that exist, even if others are missing"),
        ("unverified", "accept archives whose checksum differs from the published one"),
        ("overwrite", "replace a data set that is already prepared"),
    ):
        flag(f"--{name}", action="store_true", default=False, help=text)
    flag = _command(commands, _clean)
    flag("masks", type=Path, help="folder of masks")
    text = "folder to write PNG files of the same names to"
    flag("--to", type=Path, required=True, help=text)
    text = "the values to keep, such as 0,255 or #000000,#ff0000 [the main values of "
    flag("--values", help=f"{text}the masks, which are printed]")
    flag = _command(commands, _show, home)
    flag("name", choices=(*NAMES, "scenes", "folder"))
    flag("--variant", help="see dilax data list [the first]")
    flag("--split", default="train", help="[%(default)s]")
    text = "number of images to draw, evenly spread [%(default)s]"
    flag("--images", type=int, default=12, help=text)
    text = "number of images to count, evenly spread [all of the split]"
    flag("--limit", type=int, default=None, help=text)
    text = "picture to write [NAME_SPLIT.png here]"
    flag("--output", type=Path, default=None, help=text)
    for name, text in (
        ("labels", "the folder of masks, or a pattern of their names [found]"),
        ("classes", "names of the classes, or a file [those of the masks]"),
        ("masks", "as --config.data.masks"),
        ("threshold", "as --config.data.threshold"),
        ("void", "as --config.data.void"),
        ("orientation", "as --config.data.orientation"),
    ):
        flag(f"--{name}", help=f"for folder: {text}")
    return parser


def _command(
    commands: Any, function: Callable, *parents: argparse.ArgumentParser
) -> Callable:
    """Add a command that is called and described like its function.

    Returns:
        The command's `add_argument`, with "" as default.
    """
    name, text = function.__name__[1:], (function.__doc__ or "").rstrip(".")
    text = text[0].lower() + text[1:]
    command = commands.add_parser(name, help=text, description=text, parents=parents)
    command.set_defaults(command=function)
    return functools.partial(command.add_argument, default="")


def _list(values: argparse.Namespace) -> None:
    """List data sets: what is prepared, and where to get the others."""
    print(f"prepared in {values.data_dir} (--data_dir)\n")
    for name in NAMES:
        builder = builder_class(name)
        print(f"{name}: {builder.SPEC.name}, {builder.HOMEPAGE}")
        for variant in builder.BUILDER_CONFIGS:
            state = _state(variant, prepared_dir(name, variant.name, values.data_dir))
            published = ", ".join(f"{s} {n or '?'}" for s, n in variant.splits)
            print(f"  --variant={variant.name}: {variant.description}")
            print(f"    published: {published}\n    here: {state}")
        print(f"  {builder.HOW}")
        for archive in builder.ARCHIVES:
            place = archive.url or "needs an account or a request"
            print(f"    {archive.name} ({archive.holds}): {place}")
        print()


def _state(variant: Variant, folder: Path) -> str:
    """Describe the prepared splits, and the published ones that are missing."""
    if not folder.is_dir():
        return "not prepared"
    try:
        splits = tfds.builder_from_directory(folder).info.splits
    except Exception as error:
        return f"damaged ({error}); prepare it again with --overwrite"
    missing = [name for name, _ in variant.splits if name not in splits]
    found = ", ".join(f"{s} {splits[s].num_examples}" for s in splits)
    return found + (f"; missing: {', '.join(missing)}" if missing else "")


def _prepare(values: argparse.Namespace) -> None:
    """Prepare a data set from its publisher's files."""
    folder = prepare(
        values.name,
        values.source,
        values.data_dir,
        variant=values.variant,
        partial=values.partial,
        verify=not values.unverified,
        overwrite=values.overwrite,
    )
    print(f"{_state(find_variant(values.name, folder.parent.name), folder)}: {folder}")


def _clean(values: argparse.Namespace) -> None:
    """Write masks without the values that come from JPEG or smooth edges."""
    files = sorted(values.masks.iterdir()) if values.masks.is_dir() else []
    paths = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise ValueError(f"{values.masks}: is not a folder of images")
    if values.masks.resolve() == values.to.resolve():
        raise ValueError(
            f"--to={values.to}: is the folder of the masks; give another folder"
        )
    shares = main_colours(paths)
    for (r, g, b), share in shares.items():
        print(f"{r if r == g == b else f'#{r:02x}{g:02x}{b:02x}'}: {share:.1%}")
    kept = list(map(_value, values.values.split(","))) if values.values else [*shares]
    clean_masks(paths, values.to, kept)
    print(f"{len(paths)} masks of {len(kept)} values: {values.to}")


def _value(text: str) -> RGB:
    """Return the colour of a grey value or #rrggbb."""
    try:
        r, g, b = bytes.fromhex(text[1:]) if text[0] == "#" else 3 * bytes([int(text)])
    except (ValueError, IndexError) as error:
        raise ValueError(f"--values: {text!r} is not 0 to 255 or #rrggbb") from error
    return r, g, b


def _show(values: argparse.Namespace) -> None:
    """Draw images with their labels; count classes and the mean pixel."""
    name, split = values.name, values.split
    spec = _spec(values)
    source = open_source(
        name,
        spec,
        str(values.data_dir),
        split,
        variant=values.variant,
        labels=values.labels,
    )
    count = len(source)
    chosen = evenly_spread(count, values.limit or count)
    read = in_order(Chosen(source, chosen), 1)
    shown = tqdm(read, "count", len(chosen), unit="image")
    rows, mean = class_statistics((sample for [sample] in shown), spec)
    print(f"\n{count} images of {spec.name}, {split}; {len(chosen)} counted\n")
    headers = "class", "% of labelled pixels", "% of images"
    print(tabulate(rows, headers, floatfmt=".3f"))
    print(f"\nmean pixel (B, G, R): {mean}; in use: {spec.mean}")
    path = values.output or Path(f"{name}_{split}.png")
    samples = [source[i] for i in evenly_spread(count, values.images)]
    save_image(contact_sheet(samples, spec), path)
    print(f"images with their labels: {path}")


def _spec(values: argparse.Namespace) -> DatasetSpec:
    if values.name != "folder":
        return DATASETS[values.name]
    reading = MaskReading(values.masks, float(values.threshold or 0), values.void)
    survey = survey_folder(
        values.data_dir,
        labels=values.labels,
        classes=values.classes,
        reading=reading,
        orientation=values.orientation,
    )
    print(printable("\n".join(survey.notes)))
    return survey.spec
