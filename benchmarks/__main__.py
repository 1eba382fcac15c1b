"""Run all benchmarks that suit this machine, and write one report.

    python -m benchmarks [--output=FOLDER] [--minutes=8] [--only=forward,layers]
        [--data_dir=FOLDER]

On a GPU, it runs what fits into eight minutes, the most informative parts first, and
needs no data. On a CPU, it runs all parts, in about an hour; some of them need a folder
of images (--data_dir). The report gives the command of each part. FOLDER/report.md
grows part by part, so nothing is lost when time is up; it names parts that failed or
had no time left. With matplotlib, there is a plot, too.
"""

import importlib.util
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Every part is a process of its own, and this one must leave them the GPU's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
from absl import app, flags, logging
from tqdm import tqdm

from benchmarks.comparison import machine, plot


class Part(NamedTuple):
    """A part of the report.

    Attributes:
        name: the name of its section and its files.
        command: a module of benchmarks and its flags; `{out}` is the report's folder,
            `{data}` the folder of images.
        minutes: the maximum time.
    """

    name: str
    command: str
    minutes: float


GPU = (
    Part(
        "forward",
        "network --what=forward --sizes=900 --widths=1 --dtypes=bfloat16 --repeats=20 "
        "--against=compile,eager --output={out}/forward.json",
        2.5,
    ),
    Part(
        "step",
        "network --what=step --batch=8 --widths=1 --dtypes=bfloat16 --repeats=5 "
        "--against=compile,eager --output={out}/step.json",
        3,
    ),
    Part(
        "layers",
        "layers --size=900 --dtype=bfloat16 --output={out}/layers.json",
        2,
    ),
    Part(
        "whole",
        "network --network=dilation10_cityscapes --what=joint --crop=1396 --widths=1 "
        "--dtypes=bfloat16 --against= --repeats=3 --output={out}/whole.json",
        1.5,
    ),
    Part(
        "lowerings",
        "lowerings --dtypes=bfloat16 --minutes=1.5 --repeats=2",
        2,
    ),
    Part(
        "large",
        "network --what=forward --sizes=1396 --widths=1 --dtypes=bfloat16,float32 "
        "--against=eager --repeats=5 --output={out}/large.json",
        2,
    ),
)
CPU = (
    Part(
        "forward",
        "network --what=forward --widths=1 --dtypes=float32,bfloat16 "
        "--output={out}/forward.json",
        10,
    ),
    Part(
        "step",
        "network --what=step --repeats=5 --output={out}/step.json",
        10,
    ),
    Part("layers", "layers --output={out}/layers.json", 10),
    Part(
        "context",
        "layers --network=dilation10_cityscapes --size=1396 --width=0.25 "
        "--output={out}/context.json",
        10,
    ),
    Part("cpu", "cpu", 10),
    Part("predict", "predict --data_dir={data}", 10),
    Part("crf", "crf --data_dir={data}", 10),
)


def arguments(part: Part, out: str, data: str) -> list[str]:
    """Return the arguments of the interpreter that run a part."""
    module, *options = shlex.split(part.command)
    filled = [option.format(out=out, data=data) for option in options]
    return ["-m", f"benchmarks.{module}", *filled]


def run(command: Sequence[str], seconds: float) -> tuple[str, str]:
    """Return what a command prints and, if it failed, why.

    Args:
        command: the arguments of the interpreter.
        seconds: the time after which it is killed.
    """
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its children can be killed with it
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0], f"took longer than {seconds:.0f} s"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    reason = "\n".join(err.splitlines()[-15:])
    return out, f"exit code {process.returncode}:\n{reason}" * bool(process.returncode)


def section(part: Part, command: Sequence[str], text: str, failure: str) -> str:
    """Return a section of the report."""
    told = f"\n**Failed**: {failure}\n" if failure else ""
    return (
        f"\n## {part.name}\n\n`python {shlex.join(command)}`\n\n{text.strip()}\n{told}"
    )


def report(
    parts: Sequence[Part], out: Path, data: str, minutes: float = math.inf
) -> list[str]:
    """Run the parts, and write report.md as they finish.

    Args:
        parts: the parts, in order.
        out: the folder of the report.
        data: a folder of images; "" leaves out the parts that need one.
        minutes: the maximum time of all parts together.

    Returns:
        The names of the parts that failed or had no time left.
    """
    out.mkdir(parents=True, exist_ok=True)
    path, failed = out / "report.md", []
    path.write_text(f"# Benchmarks\n\n{machine()}\n", "utf-8")
    end = time.monotonic() + 60 * minutes
    for part in tqdm(parts, unit="part"):
        command = arguments(part, str(out), data)
        left = end - time.monotonic()
        if "{data}" in part.command and not data:
            text, failure = "Left out: it needs images, `--data_dir=FOLDER`.", ""
        elif left < 10:
            text, failure = "", "no time was left"
        else:
            text, failure = run(command, min(left, 60 * part.minutes))
        failed += [part.name] * bool(failure)
        with path.open("a", encoding="utf-8") as file:
            file.write(section(part, command, text, failure))
    _draw(out, path)
    return failed


def _draw(out: Path, path: Path) -> None:
    """Add a plot of all comparisons, if there are any and matplotlib is installed."""
    files = [out / f"{name}.json" for name in ("forward", "step", "large")]
    records = [json.loads(f.read_text("utf-8")) for f in files if f.exists()]
    results = [row for record in records for row in record["results"]]
    if results and importlib.util.find_spec("matplotlib"):
        plot(results, str(out / "compared.png"))
        with path.open("a", encoding="utf-8") as file:
            file.write("\n![Time of dilax, relative to PyTorch](compared.png)\n")


def define_flags() -> None:
    """Define the flags; not on import, because other benchmarks share names."""
    flags.DEFINE_string("output", "benchmark-report", "Folder of the report.")
    flags.DEFINE_string("data_dir", "", "Folder of images, for the parts that need it.")
    flags.DEFINE_list("only", [], "Parts to run; all by default.")
    flags.DEFINE_float("minutes", math.inf, "Time for all parts; 8 on a GPU.")


def main(argv: list[str]) -> None:
    """Write the report, and print it."""
    del argv
    logging.set_verbosity(logging.WARNING)
    asked, gpu = flags.FLAGS, jax.default_backend() != "cpu"
    parts, minutes = GPU if gpu else CPU, asked.minutes
    if gpu and math.isinf(minutes):
        minutes = 8
    names = [part.name for part in parts]
    if unknown := {*asked.only} - {*names}:
        raise app.UsageError(f"--only={','.join(unknown)}: is none of {names}")
    chosen = [part for part in parts if not asked.only or part.name in asked.only]
    out = Path(asked.output)
    failed = report(chosen, out, asked.data_dir, minutes)
    print((out / "report.md").read_text("utf-8"))
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}; see {out / 'report.md'}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
