"""Start a mode: experiments have all modes, `dilax MODE` has one.

    python experiments/voc.py --config=NAME --workdir=DIR [--config.a.b=VALUE …]
    dilax train voc --config=NAME --workdir=DIR [--config.a.b=VALUE …]
    dilax predict --workdir=DIR --input=photos

`train` trains or resumes, evaluates, and writes tables, pictures, and a page. The other
modes read the configuration from the run's folder.
"""

import argparse
import contextlib
import errno
import inspect
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

from dilax.cli.modes import MODES, Summarize, train_runs
from dilax.cli.options import OPTIONS, define_flags
from dilax.runtime import keep_compiled
from dilax.runtime.files import print_any_name, printable
from dilax.runtime.processes import join_job, leave, stop_on_signals
from dilax.training import (
    Config,
    NonFiniteLoss,
    pretrained_folder,
    set_field,
    validated,
    with_network_of_init,
)

Configurations = Mapping[str, Callable[[], Config]]
Adapt = Callable[[Config, Any], Config]
Modes = Mapping[str, Callable[[Any], None]]


def run(
    configurations: Configurations,
    document: str,
    adapt: Adapt | None = None,
    summarize: Summarize | None = None,
    modes: Modes | None = None,
) -> None:
    """Run an experiment: define its flags, parse the command line, start the mode.

    Exit with 0 after success; with 1 and one message after wrong flags, data, or files;
    with 130 or 143 after Ctrl-C or SIGTERM, when the state has been saved.

    Args:
        configurations: name → function that builds the configuration; the first is the
            default.
        document: the experiment's docstring, shown by `--help`.
        adapt: takes the configuration and the flags, and returns a configuration that
            suits the data. The fields set on the command line are applied to it.
        summarize: takes the results of every seed and the folder, and returns a text
            that is printed after the tables.
        modes: name → function of the flags, for further modes of the experiment.

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
    every = {**MODES, **(modes or {})}
    define_flags("", [*configurations], ["train", *every])
    overrides = [arg for arg in sys.argv if re.match(r"--?config\.", arg)]

    def act(values: Any) -> None:
        if values.mode != "train":
            if overrides:
                raise ValueError(
                    f"{overrides[0]}: only train takes --config; other modes use the "
                    "run's configuration"
                )
            return every[values.mode](values)
        config = configurations[values.config]()
        config.data.data_dir = values.data_dir
        config = overridden(config, overrides)  # report wrong fields at once
        recipe, config = config, with_network_of_init(config)
        if config.model != recipe.model:
            print(f"network: the one of --config.init={config.init}")
        if adapt:
            config = overridden(adapt(config, values), overrides)
        if not values.lr_factor > 0:
            raise ValueError(f"--lr_factor={values.lr_factor}: must be positive")
        for stage in config.stages:
            stage.optimizer.learning_rate *= values.lr_factor
        return train_runs(values, config, summarize)

    argv = [arg for arg in sys.argv if arg not in overrides]
    _start(argv, document, act)


def run_mode(command: str, argv: Sequence[str]) -> None:
    """Run one mode on a trained run, with that mode's flags only. Exit as `run` does.

    Args:
        command: the mode as typed, such as `"import-weights"`.
        argv: the flags.
    """
    mode = command.replace("-", "_")
    sys.argv = [f"dilax {command}", *argv]
    define_flags(mode)
    _start(sys.argv, inspect.getdoc(MODES[mode]) or "", MODES[mode], mode)


def _start(
    argv: list[str], document: str, act: Callable[[Any], None], mode: str = ""
) -> None:
    sys.modules["__main__"].__doc__ = document
    print_any_name()
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    # Orbax raises the errors that it logs, and they end in one message here.
    logging.get_absl_handler().addFilter(lambda r: "orbax" not in r.pathname)
    app.run(
        lambda rest: _guarded(rest, act, mode or flags.FLAGS.mode),
        argv=argv,
        flags_parser=_parse_flags,
    )


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags, and report in one line what is wrong with one."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(f"{error}\nTry --help.")


def overridden(config: Config, overrides: list[str]) -> Config:
    """Return the configuration with the fields that the command line sets.

    Args:
        config: stays unchanged.
        overrides: each is `"--config.FIELD=VALUE"`.

    Raises:
        ValueError: naming the field, its value, and what is allowed.

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


def tool_parser(command: str, document: str | None) -> argparse.ArgumentParser:
    """Return the parser of `dilax COMMAND`, whose help shows a module's docstring."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        f"dilax {command}", description=document, formatter_class=form
    )


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with a message and an exit status."""
    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(code)


def _guarded(argv: list[str], act: Callable[[Any], None], mode: str) -> None:
    """Run the mode on the flags."""
    values = flags.FLAGS
    small = "a smaller crop or batch" if mode == "train" else "--tiling=blend"
    with errors_in_one_message(smaller=small):
        if len(argv) > 1:
            raise ValueError(f"{argv[1]}: not a flag; flags begin with --. Try --help.")
        if "weights" in values and values.weights:
            _take_pretrained(values, mode)
        if mode != "compare" and not values.workdir:
            raise ValueError("--workdir: give the folder of the run")
        stop_on_signals()  # during training steps, signals save the state instead
        if "distributed" in values:
            join_job(values)
        keep_compiled()
        act(values)


@contextlib.contextmanager
def errors_in_one_message(interrupted: str = "", smaller: str = "") -> Iterator[None]:
    """End the command in one message, not a traceback, after errors that users can fix.

    Args:
        interrupted: the message after Ctrl-C or SIGTERM; "" is that of a run.
        smaller: what needs less memory.
    """
    try:
        yield
    except KeyboardInterrupt as stop:  # from SIGTERM and from runs, with a message
        message = interrupted or str(stop) or "interrupted; the same command resumes"
        fail(message, 128 + getattr(stop, "signum", signal.SIGINT))
    except (OSError, ValueError, NonFiniteLoss) as error:
        logging.debug("Traceback of the error below", exc_info=True)
        fail(_os_problem(error) if isinstance(error, OSError) else str(error))
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            if jax.process_count() == 1:
                raise
            logging.debug("Traceback of the error below", exc_info=True)
            line = str(error).partition("\n")[0][:200]
            leave(
                "another process of the job ended or cannot be reached; start all of "
                f"them again to resume from the last checkpoint ({line})"
            )
        fail(f"out of memory; {smaller} needs less ({error})")


def _take_pretrained(values: Any, mode: str) -> None:
    """Set the folder of the network that `--weights` names."""
    if mode not in OPTIONS["weights"].modes or values.workdir:
        raise ValueError(
            f"--weights={values.weights}: replaces --workdir in predict, eval, and "
            f"export; to train from this network, use --config.init={values.weights}"
        )
    values.workdir = str(pretrained_folder(values.weights))


def _os_problem(error: OSError) -> str:
    """Name the file, what is wrong, and what to do about it."""
    remedies = {
        errno.ENOSPC: "free some space; the same command resumes",
        errno.EROFS: "choose a folder that can be written to",
        errno.EACCES: "choose a folder that can be written to",
    }
    remedy = remedies.get(error.errno or 0, "")
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}" + (f"; {remedy}" if remedy else "")
