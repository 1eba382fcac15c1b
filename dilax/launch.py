"""The command line that every experiment shares: absl flags, and the modes.

    python experiments/voc.py --config=NAME --workdir=DIR [--config.a.b=VALUE …]

`train` trains, evaluates, writes tables and pictures, and resumes. `eval` and `predict`
read the configuration from the run's folder.
"""

import errno
import json
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags, logging
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
    picture_indices,
    set_field,
    train,
    validated,
    write_text,
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
    _define_flags(configurations)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    # What orbax logs it also raises, and that ends in one message here.
    logging.get_absl_handler().addFilter(lambda r: "orbax" not in r.pathname)
    overrides = [arg for arg in sys.argv if re.match(r"--?config\.", arg)]
    argv = [arg for arg in sys.argv if arg not in overrides]
    app.run(
        lambda rest: _guarded(rest, configurations, overrides),
        argv=argv,
        flags_parser=_parse_flags,
    )


def _define_flags(configurations: Configurations) -> None:
    names = list(configurations)
    flags.DEFINE_enum(
        "config",
        names[0],
        names,
        "Which configuration to train. Its fields are set with --config.FIELD=VALUE, "
        "such as --config.seed=1, --config.stages[0].steps=500 or "
        "--config.stages.joint.optimizer.learning_rate=1e-5.",
    )
    modes = ["train", "eval", "predict"]
    flags.DEFINE_enum("mode", "train", modes, "What to do.")
    flags.DEFINE_string("workdir", None, "Folder of the run: train writes it.")
    flags.DEFINE_string("data_dir", "", "Folder of the data set.")
    flags.DEFINE_string("input", None, "predict: an image, or a folder of images.")
    flags.DEFINE_string(
        "output",
        None,
        "predict: folder for label maps and overlays [WORKDIR/predicted]; eval: file "
        "for the figures, JSON.",
    )
    flags.DEFINE_string("stage", "", "eval, predict: stage to load [the last].")
    flags.DEFINE_enum(
        "which", "last", ["last", "best"], "eval, predict: checkpoint of that stage."
    )
    for name in ("config", *_FLAGS):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


_FLAGS = ("mode", "workdir", "data_dir", "input", "output", "stage", "which")


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses, and says in one line what is wrong with a flag."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(f"{error}\nTry --help.")
        raise AssertionError from error


def _config(configurations: Configurations, name: str, overrides: list[str]) -> Config:
    """The named configuration with the fields that the command line sets."""
    config = validated(configurations[name]())  # a copy whose stages share nothing
    for override in overrides:
        path, equals, text = override.lstrip("-").removeprefix("config.").partition("=")
        if not equals:
            raise ValueError(f"{override}: give a value, {override}=VALUE")
        set_field(config, path, text)
    return validated(config)


def _fail(message: str, code: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _guarded(
    argv: list[str], configurations: Configurations, overrides: list[str]
) -> None:
    """Runs the mode; what a person can mend ends in one message and no traceback."""
    values = flags.FLAGS
    try:
        if len(argv) > 1:
            raise ValueError(f"{argv[1]}: not a flag; flags begin with --. Try --help.")
        if not values.workdir:
            raise ValueError("--workdir: the folder of the run is missing")
        config = _config(configurations, values.config, overrides)
        if values.mode == "train":
            _train(values, config)
        elif overrides:
            raise ValueError(f"{overrides[0]}: eval and predict read the run's config")
        elif values.mode == "eval":
            _evaluate(values)
        else:
            _predict(values)
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signum)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from the last checkpoint", 130)
    except OSError as error:
        logging.debug("Traceback of the error below", exc_info=True)
        _fail(_os_problem(error))
    except (ValueError, NonFiniteLoss) as error:
        logging.debug("Traceback of the error below", exc_info=True)
        _fail(str(error))


def _os_problem(error: OSError) -> str:
    """The file, what is wrong, and what to do about it."""
    remedies = {
        errno.ENOSPC: "free some space; the same command goes on where it stopped",
        errno.EROFS: "give a folder that can be written",
        errno.EACCES: "give a folder that can be written",
    }
    remedy = remedies.get(error.errno or 0, "")
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}" + (f"; {remedy}" if remedy else "")


def _train(values: Any, config: Config) -> None:
    signal.signal(signal.SIGTERM, _stop)  # between steps training saves instead
    workdir = Path(values.workdir).expanduser()
    if values.data_dir:
        config.data.data_dir = values.data_dir
    results = train(config, workdir)
    _, spec, source = open_evaluation(workdir)
    print(f"\n{stage_table(results['stages'], spec.context_classes)}\n")
    if config.pictures:
        _write_sheet(workdir, config, spec, source)
    tqdm.write(f"table, results and checkpoints: {workdir}")


def _stop(signum: int, frame: object) -> None:
    raise Interrupted(signum, "stopped; the same command goes on from where it was")


def _write_sheet(workdir: Path, config: Config, spec: Any, source: Any) -> None:
    shown = picture_indices(config, len(source))
    predictions = {
        stage.name: [
            workdir / "predictions" / stage.name / f"{i:04d}.png" for i in shown
        ]
        for stage in config.stages
    }
    samples = [source[i] for i in shown]
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
        text = json.dumps({"stages": scores}, indent=1) + "\n"
        write_text(Path(values.output).expanduser(), text)


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
