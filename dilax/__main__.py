"""The commands of dilax.

    python -m dilax doctor                  what is installed and found; a self-test
    python -m dilax data list           data sets: prepare them, look at them
    python -m dilax receptive_field 1 2 4   what cells see, of rates, networks and runs

Training, evaluation, prediction and pages of runs are experiments, scripts of the
repository; each explains itself by --help:

    python experiments/voc.py --config=quickstart --workdir=runs/quickstart
    python experiments/voc.py --mode=predict --workdir=runs/quickstart --input=photos
    python experiments/voc.py --mode=report --workdir=runs/quickstart
    python experiments/voc.py --mode=compare --workdirs=runs/a,runs/b

From Python: dilax.train, dilax.evaluate, dilax.load_predictor; see help(dilax).
"""

import importlib
import sys

COMMANDS = {
    "doctor": "dilax.cli.doctor",
    "data": "dilax.cli.data",
    "receptive_field": "dilax.cli.receptive_field",
}


def main(argv: list[str]) -> int:
    """Runs the command that the first argument names, and returns its exit status."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("--help", "-h", "help"):
        print(__doc__.strip())
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: {name}: is no command; there are {known}", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[name]).main(rest) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
