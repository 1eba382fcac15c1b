"""The command line that every experiment shares: absl flags, and the modes.

    python experiments/voc.py --config=NAME --workdir=DIR [--config.a.b=VALUE …]

`train` trains, evaluates, writes tables and pictures, and resumes. `eval` and `predict`
read the configuration from the run's folder.
"""

import difflib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from dilax.evaluation import evaluate, stage_table
from dilax.inference import Predictor, predict_files, save_image
from dilax.report import prediction_sheet
from dilax.training import (
    Config,
    Interrupted,
    NonFiniteLoss,
    load_checkpoint,
    open_evaluation,
    train,
)

Configurations = Mapping[str, Callable[[], Config]]


def run(configurations: Configurations, document: str) -> None:
    """Defines the flags, parses the command line, and runs the mode that it names.

    Args:
        configurations: name → function that builds the configuration; the first is the
            default.
        document: the experiment's docstring, shown by `--help`.

    Exits with 0; with 1 and one message for wrong flags, data or files; with 130 or 143
    after Ctrl-C or SIGTERM, when the state is saved.
    """
    sys.modules["__main__"].__doc__ = document
    values = _define_flags(configurations)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    app.run(lambda argv: _guarded(argv, values), flags_parser=_parse_flags)


def _define_flags(configurations: Configurations) -> Any:
    names = ", ".join(configurations)

    def parse(name: str) -> Config:
        if name not in configurations:
            raise ValueError(f"--config={name}: is none of {names}")
        return configurations[name]()

    default = next(iter(configurations))
    values = flags.FlagValues()
    config_flags.DEFINE_config_dataclass(
        "config",
        configurations[default](),
        f"Configuration: {names} (default: {default}). Fields are set with "
        "--config.FIELD=VALUE, such as --config.seed=1 or "
        "--config.stages[0].steps=500.",
        parse_fn=parse,
    )
    modes = ["train", "eval", "predict"]
    flags.DEFINE_enum("mode", "train", modes, "What to do.")
    flags.DEFINE_string("workdir", None, "Folder of the run: written by train.")
    flags.DEFINE_string("data_dir", "", "Folder of the data set.")
    flags.DEFINE_string("input", None, "predict: an image, or a folder of images.")
    flags.DEFINE_string(
        "output", None, "predict: folder for the label maps [WORKDIR/predicted]."
    )
    flags.DEFINE_string("stage", "", "eval, predict: stage to load [the last].")
    flags.DEFINE_enum(
        "which", "last", ["last", "best"], "eval, predict: checkpoint of that stage."
    )
    del values
    return flags.FLAGS


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses, and says in one line what is wrong with a flag."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        reason = str(error)
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        reason = _field_problem(argv, error)
    _fail(f"{reason}\nTry --help.")
    raise AssertionError


def _field_problem(argv: list[str], error: Exception) -> str:
    """Names the --config.… flag whose field is not there, and the nearest that is."""
    message = str(error.args[0]) if error.args else str(error)
    match = re.search(r"Field (\w+) not found on dataclass <class '([\w.]+)'>", message)
    if not match:
        return message
    field, owner = match.groups()
    given = next((a for a in argv if re.search(rf"\b{field}\b", a)), field)
    known = _fields_of(owner)
    near = difflib.get_close_matches(field, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{given}: no field {field!r}; {hint}There are: {', '.join(known)}"


def _fields_of(owner: str) -> list[str]:
    module, name = owner.rsplit(".", 1)
    return list(getattr(sys.modules[module], name).__dataclass_fields__)


def _fail(message: str, code: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _guarded(argv: list[str], values: Any) -> None:
    """Runs the mode; what a person can mend ends in one message and no traceback."""
    if len(argv) > 1:
        _fail(f"{argv[1]}: not a flag; flags begin with --. Try --help.")
    try:
        if not values.workdir:
            raise ValueError("--workdir: the folder of the run is missing")
        {"train": _train, "eval": _evaluate, "predict": _predict}[values.mode](values)
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signum)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint", 130)
    except (ValueError, OSError, NonFiniteLoss) as error:
        logging.debug("Traceback of the error below", exc_info=True)
        _fail(str(error))


def _train(values: Any) -> None:
    config, workdir = values.config, Path(values.workdir).expanduser()
    if values.data_dir:
        config.data.data_dir = values.data_dir
    results = train(config, workdir)
    _, spec, source = open_evaluation(workdir)
    print(f"\n{stage_table(results['stages'], spec.context_classes)}\n")
    if config.pictures:
        _write_sheet(workdir, config, spec, source)
    tqdm.write(f"table, results and checkpoints: {workdir}")


def _write_sheet(workdir: Path, config: Config, spec: Any, source: Any) -> None:
    count = min(config.pictures, len(source))
    predictions = {
        stage.name: [
            workdir / "predictions" / stage.name / f"{i:04d}.png" for i in range(count)
        ]
        for stage in config.stages
    }
    samples = [source[i] for i in range(count)]
    path = workdir / "pictures.png"
    save_image(prediction_sheet(samples, predictions, spec), path)
    print(f"pictures: {path}")


def _evaluate(values: Any) -> None:
    workdir = Path(values.workdir).expanduser()
    config, spec, source = open_evaluation(workdir, values.data_dir)
    predictor = _predictor(values, config.eval_batch_size)
    name = values.stage or config.stages[-1].name
    scores = {name: evaluate(predictor, source).as_dict()}
    print(f"\n{len(source)} images of {spec.name} {config.data.val}\n")
    print(stage_table(scores, spec.context_classes))
    if values.output:
        output = Path(values.output).expanduser()
        output.write_text(json.dumps({"stages": scores}, indent=1) + "\n", "utf-8")


def _predict(values: Any) -> None:
    if not values.input:
        raise ValueError("--input: an image or a folder of images is missing")
    source = Path(values.input).expanduser()
    if not source.exists():
        raise ValueError(f"--input={values.input}: no such file or folder")
    output = Path(values.output or Path(values.workdir) / "predicted").expanduser()
    problems = predict_files(_predictor(values, 1), source, output)
    print(f"label maps and overlays: {output}")
    if problems:
        raise ValueError(f"{len(problems)} not predicted:\n" + "\n".join(problems))


def _predictor(values: Any, batch_size: int) -> Predictor:
    loaded = load_checkpoint(values.workdir, values.stage, values.which)
    return Predictor(*loaded, batch_size)
