"""The command line that every experiment shares: absl flags, and the modes.

    python experiments/voc.py --config=NAME --workdir=DIR [--config.a.b=VALUE …]

`train` trains, evaluates, writes tables and pictures, and resumes. `eval`, `predict`,
`submit` and `export` read the configuration from the run's folder; `import_weights`
makes such a folder of a released network's file.
"""

import dataclasses
import errno
import json
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from tqdm import tqdm

from dilax.datasets import DatasetSpec
from dilax.evaluation import boundary_table, evaluate, stage_table
from dilax.inference import (
    MAX_PIXELS,
    OUTPUTS,
    Predictor,
    export_model,
    export_onnx,
    is_video,
    predict_photos,
    predict_video,
    save_image,
    write_submission,
)
from dilax.ops import keep_compiled
from dilax.report import prediction_sheet, profile, seed_table
from dilax.training import (
    Config,
    Interrupted,
    NonFiniteLoss,
    check_run,
    estimate,
    from_json,
    import_weights,
    load_checkpoint,
    load_predictor,
    open_evaluation,
    picture_indices,
    set_field,
    train,
    validated,
    write_text,
)
from dilax.weights import RELEASED

Configurations = Mapping[str, Callable[[], Config]]
Adapt = Callable[[Config, Any], None]
Summarize = Callable[[Sequence[Mapping], Path], str]


def run(
    configurations: Configurations,
    document: str,
    adapt: Adapt | None = None,
    summarize: Summarize | None = None,
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

    Exits with 0; with 1 and one message for wrong flags, data or files; with 130 or 143
    after Ctrl-C or SIGTERM, when the state is saved.
    """
    sys.modules["__main__"].__doc__ = document
    _define_flags(configurations)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    # What orbax logs it also raises, and that ends in one message here.
    logging.get_absl_handler().addFilter(lambda r: "orbax" not in r.pathname)
    keep_compiled()
    overrides = [arg for arg in sys.argv if re.match(r"--?config\.", arg)]
    argv = [arg for arg in sys.argv if arg not in overrides]
    app.run(
        lambda rest: _guarded(rest, configurations, adapt, overrides, summarize),
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
    modes = ["train", "eval", "predict", "submit", "export", "import_weights"]
    flags.DEFINE_enum("mode", "train", modes, "What to do.")
    flags.DEFINE_string("workdir", None, "Folder of the run: train writes it.")
    flags.DEFINE_string(
        "data_dir",
        "",
        "Folder of all prepared data sets [TFDS_DATA_DIR, or ~/tensorflow_datasets]; "
        "for --config.data.dataset=folder, of the images and masks.",
    )
    flags.DEFINE_string(
        "output",
        None,
        "predict: folder of what is predicted [WORKDIR/predicted]; eval: file for the "
        "figures, JSON; submit: the archive [WORKDIR/submission.tar or .zip]; export: "
        "a .zip that JAX runs without dilax, or .onnx [WORKDIR/network.zip].",
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
    for name in ("config", *_FLAGS):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


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
    flags.DEFINE_bool(
        "mirror", False, "eval, predict, submit: average with the mirrored image's."
    )


_FLAGS = (
    *("mode", "workdir", "data_dir", "input", "output", "stage", "which", "split"),
    *("outputs", "frames", "overwrite", "max_pixels", "tiling", "scales", "mirror"),
    *("competition", "network", "estimate", "profile", "seeds"),
    "boundaries",
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


def _guarded(
    argv: list[str],
    configurations: Configurations,
    adapt: Adapt | None,
    overrides: list[str],
    summarize: Summarize | None,
) -> None:
    """Runs the mode; what a person can mend ends in one message and no traceback."""
    values = flags.FLAGS
    try:
        if len(argv) > 1:
            raise ValueError(f"{argv[1]}: not a flag; flags begin with --. Try --help.")
        if not values.workdir:
            raise ValueError("--workdir: the folder of the run is missing")
        signal.signal(signal.SIGTERM, _stop)  # in training steps, it saves instead
        config = configurations[values.config]()
        config.data.data_dir = values.data_dir
        config = overridden(config, overrides)  # what is wrong there shows at once
        if values.mode == "train":
            if adapt:
                adapt(config, values)
                config = overridden(config, overrides)
            _train(values, config, summarize)
        elif overrides:
            raise ValueError(
                f"{overrides[0]}: only train takes it; the run has its own"
            )
        else:
            _MODES[values.mode](values)
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
            raise
        small = (
            "a smaller crop or batch" if values.mode == "train" else "--tiling=blend"
        )
        _fail(f"out of memory; {small} needs less ({error})")


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


def _train(values: Any, config: Config, summarize: Summarize | None) -> None:
    """One run, or one a seed; then what they found together."""
    workdir = Path(values.workdir).expanduser()
    seeds = _seeds(values.seeds)
    if not seeds:
        runs = [_train_once(values, config, workdir)]
    else:
        folders = {seed: workdir / f"seed{seed}" for seed in seeds}
        runs = [
            _train_once(
                values, dataclasses.replace(validated(config), seed=seed), place
            )
            for seed, place in folders.items()
        ]
        table = seed_table(runs)
        write_text(workdir / "seeds.md", table + "\n")
        print(f"\n{table}\n")
    if summarize:
        print(f"\n{summarize(runs, workdir)}\n")


def _seeds(texts: list[str]) -> list[int]:
    """Raises ValueError unless they are whole numbers, each once."""
    if not all(text.isdecimal() for text in texts) or len(set(texts)) < len(texts):
        raise ValueError(
            f"--seeds={','.join(texts)}: must be whole numbers, each once, as in 0,1,2"
        )
    return [int(text) for text in texts]


def _train_once(values: Any, config: Config, workdir: Path) -> dict[str, Any]:
    _foretell(values, config, workdir)
    results = train(config, workdir)
    _, spec, source = open_evaluation(workdir)
    print(f"\n{stage_table(results['stages'], spec.context_classes)}\n")
    if config.pictures:
        _write_sheet(workdir, config, spec, source)
    tqdm.write(f"table, results and checkpoints: {workdir}")
    return results


def _foretell(values: Any, config: Config, workdir: Path) -> None:
    """What the run will take, if it is new, and where the time goes, if asked."""
    estimates = values.estimate and not (workdir / "config.json").exists()
    if not estimates and not values.profile:
        return
    spec = check_run(config, workdir).spec  # what is wrong shows before all else
    if estimates:
        _print_estimate(config, spec)
    if values.profile:
        folder = workdir / "profile"
        for table in profile(config, spec, folder).values():
            print(f"\n{table}")
        print(f"traces and tables: {folder}")


def _print_estimate(config: Config, spec: DatasetSpec) -> None:
    print(f"on {len(jax.devices())} x {jax.devices()[0].device_kind}, training alone:")
    for name, cost in estimate(config, spec).items():
        print(f"  {name}: {cost}")


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
    config, spec, source = open_evaluation(workdir, values.data_dir, values.split)
    predictor = _predictor(values, config.eval_batch_size)
    name = values.stage or config.stages[-1].name
    found = evaluate(predictor, source, boundaries=values.boundaries)
    scores = {name: found.as_dict()}
    print(f"\n{len(source)} images of {spec.name} {config.data.val}\n")
    print(stage_table(scores, spec.context_classes))
    if values.boundaries:
        print(f"\n{boundary_table(scores)}")
    if values.output:
        text = json.dumps({"stages": scores}, indent=1) + "\n"
        write_text(Path(values.output).expanduser(), text)


def _submit(values: Any) -> None:
    workdir = Path(values.workdir).expanduser()
    split = values.split or "test"
    config, spec, source = open_evaluation(workdir, values.data_dir, split)
    kind = config.data.dataset
    if kind not in ("voc", "cityscapes"):
        raise ValueError(f"--mode=submit: no server scores {spec.name}")
    suffix = ".zip" if kind == "cityscapes" else ".tar"
    path = Path(values.output or workdir / f"submission{suffix}").expanduser()
    predictor = _predictor(values, config.eval_batch_size)
    write_submission(predictor, source, kind, path, values.competition)
    print(f"{len(source)} images of {split} for the server of {spec.name}: {path}")


def _predict(values: Any) -> None:
    if not values.input:
        raise ValueError("--input: what to predict is missing, such as an image")
    output = Path(values.output or Path(values.workdir) / "predicted").expanduser()
    options = {
        "outputs": values.outputs,
        "overwrite": values.overwrite,
        "max_pixels": values.max_pixels,
    }
    source = Path(values.input).expanduser()
    predictor = _predictor(values, 1)
    if is_video(source):
        options["frames"] = values.frames
        done = predict_video(predictor, source, output, **options)
    else:
        done = predict_photos(predictor, values.input, output, **options)
    print(f"{done.written} predicted: {output}")
    if done.skipped:
        print(f"{done.skipped} were there already; --overwrite predicts them anew")
    if done.problems:
        messages = "\n".join(done.problems)
        raise ValueError(f"{len(done.problems)} not predicted:\n{messages}")


def _export(values: Any) -> None:
    path = Path(values.output or Path(values.workdir) / "network.zip").expanduser()
    write = export_onnx if path.suffix == ".onnx" else export_model
    loaded = load_checkpoint(values.workdir, values.stage, values.which)
    print(f"the network, and how to run it: {write(*loaded, path)}")
    config = from_json(Config, Path(values.workdir).expanduser() / "config.json")
    stage = config.stage(values.stage)
    if stage.crf:
        print(f"It is the network alone: the CRF of stage {stage.name} is not in it.")


def _import_weights(values: Any) -> None:
    if not values.input or not values.network:
        raise ValueError("--input, --network: name the file of weights and its network")
    report = import_weights(values.input, values.network, values.workdir)
    print(f"{report}\n\nfor --mode=eval, predict, submit and export: {values.workdir}")


_MODES = {
    "eval": _evaluate,
    "predict": _predict,
    "submit": _submit,
    "export": _export,
    "import_weights": _import_weights,
}


def _predictor(values: Any, batch_size: int) -> Predictor:
    try:
        scales = tuple(map(float, values.scales))
    except ValueError as error:
        raise ValueError(f"--scales={','.join(values.scales)}: {error}") from error
    return load_predictor(
        values.workdir,
        values.stage,
        values.which,
        batch_size,
        mode=values.tiling,
        scales=scales,
        mirror=values.mirror,
    )
