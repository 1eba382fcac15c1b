"""The command line that every experiment shares: absl flags, and the modes.

    python experiments/voc.py --config=NAME --workdir=DIR [--config.a.b=VALUE …]

`train` trains, evaluates, writes tables, pictures and a page, and resumes. `eval`,
`predict`, `submit`, `export` and `report` read the configuration from the run's folder;
`compare` sets several runs on one page; `import_weights` makes such a folder of a
released network's file.

The flags of every experiment, for all modes: absl's, and their help.
"""

import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from absl import app, flags, logging

from dilax.cli.modes import MODES, Summarize, train_runs
from dilax.inference import MAX_PIXELS, OUTPUTS
from dilax.runtime import Interrupted, keep_compiled
from dilax.runtime.processes import join_job
from dilax.training import (
    Config,
    NonFiniteLoss,
    pretrained_folder,
    set_field,
    validated,
)
from dilax.weights import RELEASED


def define_flags(configurations: Iterable[str], modes: Iterable[str]) -> None:
    """Defines them.

    Args:
        configurations: names; the first is the default.
        modes: names; the first is the default.
    """
    names = list(configurations)
    flags.DEFINE_enum(
        "config",
        names[0],
        names,
        "Which configuration to train. Its fields are set with --config.FIELD=VALUE, "
        "such as --config.seed=1, --config.stages[0].steps=500 or "
        "--config.stages.joint.optimizer.learning_rate=1e-5.",
    )
    kinds = list(modes)
    flags.DEFINE_enum("mode", kinds[0], kinds, "What to do.")
    _define_folders()
    flags.DEFINE_string(
        "output",
        None,
        "predict: folder of what is predicted [WORKDIR/predicted]; eval: file for the "
        "figures, JSON; compare: the page [compare.html]; submit: the archive "
        "[WORKDIR/submission.tar or .zip]; export: "
        "a .zip that JAX runs without dilax, .onnx, or a folder that loads as a run "
        "does [WORKDIR/network.zip].",
    )
    flags.DEFINE_string(
        "weights",
        "",
        "predict, eval, export: a network that comes with the repository, such as "
        "camvid, in place of --workdir.",
    )
    flags.DEFINE_string("stage", "", "All but train: stage to load [the last].")
    flags.DEFINE_enum(
        "which", "last", ["last", "best"], "All but train: checkpoint of that stage."
    )
    flags.DEFINE_string(
        "split", "", "eval, submit: images to predict [the run's; submit: test]."
    )
    flags.DEFINE_bool(
        "boundaries", False, "eval: measure trimap IoU and boundary F, too."
    )
    flags.DEFINE_enum(
        "competition",
        "comp6",
        ["comp5", "comp6"],
        "submit: VOC's, comp5 for networks trained on nothing but VOC's own data.",
    )
    flags.DEFINE_enum(
        "network", None, [*RELEASED], "import_weights: the network that the file holds."
    )
    flags.DEFINE_bool(
        "estimate", True, "train: measure first what it will take, and say so."
    )
    flags.DEFINE_bool(
        "profile",
        False,
        "train: trace some steps and time each layer first, into WORKDIR/profile.",
    )
    flags.DEFINE_list(
        "seeds", [], "train: a run for each of these seeds, in WORKDIR/seed0, …."
    )
    _define_prediction_flags()
    _define_job_flags()
    for name in ("config", *_FLAGS):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _define_folders() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run: train writes it.")
    flags.DEFINE_list("workdirs", [], "compare: folders of runs to set side by side.")
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of all prepared data sets [TFDS_DATA_DIR, or ~/tensorflow_datasets]; "
        "for --config.data.dataset=folder, of the images and masks.",
    )


def _define_job_flags() -> None:
    flags.DEFINE_bool(
        "distributed",
        False,
        "Join the job of several processes that the environment describes: Slurm, a "
        "TPU pod, GKE, Open MPI, or torchrun's variables.",
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, to join a job without those."
    )
    flags.DEFINE_integer("processes", None, "With --coordinator: how many there are.")
    flags.DEFINE_integer("process_id", None, "With --coordinator: which this is, 0 ….")
    flags.DEFINE_integer(
        "join_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1
    )


def _define_prediction_flags() -> None:
    flags.DEFINE_string(
        "input",
        None,
        "predict: an image, a folder with its sub-folders, a pattern ('photos/*.jpg'), "
        "a .txt file of paths, a video, or - for an image on standard input; "
        "import_weights: the file, such as a .caffemodel.",
    )
    flags.DEFINE_list(
        "outputs",
        ["labels", "overlay"],
        f"predict: what to write, of {', '.join(OUTPUTS)}.",
    )
    flags.DEFINE_bool("frames", False, "predict: pictures of a video's frames.")
    flags.DEFINE_bool("overwrite", False, "predict: anew what is there already.")
    flags.DEFINE_integer(
        "max_pixels", MAX_PIXELS, "predict: larger images are refused.", lower_bound=1
    )
    flags.DEFINE_enum(
        "tiling",
        "tiles",
        ["tiles", "whole", "blend"],
        "eval, predict, submit: the released tiles; the whole image at once; or "
        "overlapping tiles, blended, for images of any size.",
    )
    flags.DEFINE_list(
        "scales", ["1"], "eval, predict, submit: sizes whose predictions are averaged."
    )
    flags.DEFINE_integer(
        "rows",
        1,
        "eval, predict, submit: devices over which the rows of an image's maps are "
        "spread, where one does not hold them.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "mirror", False, "eval, predict, submit: average with the mirrored image's."
    )


_FLAGS = (
    *(
        "mode",
        "workdir",
        "workdirs",
        "data_dir",
        "input",
        "output",
        "weights",
        "stage",
        "which",
        "split",
    ),
    *("outputs", "frames", "overwrite", "max_pixels", "tiling", "scales", "mirror"),
    *("rows", "competition", "network", "estimate", "profile", "seeds", "boundaries"),
    *("distributed", "coordinator", "processes", "process_id", "join_timeout"),
)


Configurations = Mapping[str, Callable[[], Config]]
Adapt = Callable[[Config, Any], None]
Modes = Mapping[str, Callable[[Any], None]]


def run(
    configurations: Configurations,
    document: str,
    adapt: Adapt | None = None,
    summarize: Summarize | None = None,
    modes: Modes | None = None,
) -> None:
    """Defines the flags, parses the command line, and runs the mode that it names.

    Args:
        configurations: name → function that builds the configuration; the first is the
            default.
        document: the experiment's docstring, shown by `--help`.
        adapt: changes a configuration by the flags and what they name, before the
            fields that the command line sets.
        summarize: takes the results of every seed and the folder, and gives a text that
            is printed after the tables.
        modes: name → function of the flags: what the experiment can do besides.

    Exits with 0; with 1 and one message for wrong flags, data or files; with 130 or 143
    after Ctrl-C or SIGTERM, when the state is saved.

    Example:
        >>> import subprocess
        >>> script = (
        ...     "from dilax.cli import run; from dilax.training import quickstart; "
        ...     "run({'quickstart': quickstart}, 'Scenes, a thousand steps.')"
        ... )
        >>> command = [sys.executable, "-c", script, "--help"]
        >>> done = subprocess.run(command, capture_output=True, text=True)
        >>> "Scenes, a thousand steps." in done.stdout
        True
    """
    sys.modules["__main__"].__doc__ = document
    modes = {**MODES, **(modes or {})}
    define_flags(configurations, ["train", *modes])
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    # What orbax logs it also raises, and that ends in one message here.
    logging.get_absl_handler().addFilter(lambda r: "orbax" not in r.pathname)
    overrides = [arg for arg in sys.argv if re.match(r"--?config\.", arg)]
    argv = [arg for arg in sys.argv if arg not in overrides]
    app.run(
        lambda rest: _guarded(rest, configurations, adapt, overrides, summarize, modes),
        argv=argv,
        flags_parser=_parse_flags,
    )


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses, and says in one line what is wrong with a flag."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(f"{error}\nTry --help.")
        raise AssertionError from error


def overridden(config: Config, overrides: list[str]) -> Config:
    """The configuration with the fields that the command line sets.

    Args:
        config: is left as it is.
        overrides: `"--config.FIELD=VALUE"` each.

    Raises:
        ValueError: naming the field, its value and what is allowed.

    Example:
        >>> from dilax.training import quickstart
        >>> overridden(quickstart(), ["--config.seed=3"]).seed
        3
    """
    config = validated(config)  # a copy whose stages share nothing
    for override in overrides:
        path, equals, text = override.lstrip("-").removeprefix("config.").partition("=")
        if not equals:
            raise ValueError(f"{override}: give a value, {override}=VALUE")
        set_field(config, path, text)
    return validated(config)


def _fail(message: str, code: int = 1) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _leave(message: str) -> None:
    """Fails without waiting for the other processes of the job."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _guarded(
    argv: list[str],
    configurations: Configurations,
    adapt: Adapt | None,
    overrides: list[str],
    summarize: Summarize | None,
    modes: Modes,
) -> None:
    """Runs the mode; what a person can mend ends in one message and no traceback."""
    values = flags.FLAGS
    try:
        if len(argv) > 1:
            raise ValueError(f"{argv[1]}: not a flag; flags begin with --. Try --help.")
        if values.weights:
            _take_pretrained(values)
        if not values.workdir and values.mode != "compare":
            raise ValueError("--workdir: the folder of the run is missing")
        signal.signal(signal.SIGTERM, _stop)  # in training steps, it saves instead
        join_job(values)
        keep_compiled()
        if values.mode == "train":
            config = configurations[values.config]()
            config.data.data_dir = values.data_dir
            config = overridden(config, overrides)  # what is wrong there shows at once
            if adapt:
                adapt(config, values)
                config = overridden(config, overrides)
            train_runs(values, config, summarize)
        elif overrides:
            raise ValueError(
                f"{overrides[0]}: only train takes it; the run has its own"
            )
        else:
            modes[values.mode](values)
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signum)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on from where it was", 130)
    except OSError as error:
        logging.debug("Traceback of the error below", exc_info=True)
        _fail(_os_problem(error))
    except (ValueError, NonFiniteLoss) as error:
        logging.debug("Traceback of the error below", exc_info=True)
        _fail(str(error))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            if jax.process_count() == 1:
                raise
            logging.debug("Traceback of the error below", exc_info=True)
            _leave(
                "another process of the job ended, or cannot be reached; start all "
                f"anew: they go on from the last checkpoint ({_line(error)})"
            )
        small = (
            "a smaller crop or batch" if values.mode == "train" else "--tiling=blend"
        )
        _fail(f"out of memory; {small} needs less ({error})")


def _take_pretrained(values: Any) -> None:
    """Sets the folder of the network that `--weights` names."""
    if values.mode not in ("predict", "eval", "export") or values.workdir:
        raise ValueError(
            f"--weights={values.weights}: a network to predict, eval or export in the "
            "place of --workdir; to train from it, --config.init names its folder"
        )
    values.workdir = str(pretrained_folder(values.weights))


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


def _stop(signum: int, frame: object) -> None:
    raise Interrupted(signum, "stopped; the same command goes on from where it was")
