"""The flags of the command line, as a table: help texts, and modes that take them.

`python experiments/NAME.py --mode=MODE` defines all flags, `dilax MODE` those of MODE.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from dilax.inference import MAX_PIXELS, OUTPUTS
from dilax.weights import RELEASED

_STORED = ("eval", "predict", "export")
_PREDICTING = ("eval", "predict", "submit")
_JOBS = ("train", "eval", "predict")


class Option(NamedTuple):
    """One flag.

    Attributes:
        default: its value if it is not given; its type is that of the values.
        modes: the modes that take it.
        help: its help text, or mode → help text; defaults that depend on other values
            are in brackets.
        choices: the values of an enum.
        least: the smallest value of a whole number.
    """

    default: Any
    modes: Sequence[str]
    help: str | dict[str, str]
    choices: Sequence[str] = ()
    least: int | None = None


OPTIONS = {
    "workdir": Option(
        None,
        ("train", *_STORED, "submit", "import_weights", "report"),
        "Folder of the run.",
    ),
    "workdirs": Option([], ("compare",), "Folders of the runs to compare: a,b,c."),
    "data_dir": Option(
        "",
        ("train", "eval", "submit", "report", "compare"),
        "Folder of all prepared data sets [TFDS_DATA_DIR, or ~/tensorflow_datasets]; "
        "for your own images, the folder of images and masks.",
    ),
    "input": Option(
        None,
        ("predict", "import_weights"),
        {
            "predict": "An image, a folder (including subfolders), a pattern such as "
            "'photos/*.jpg', a .txt file of paths, a video, or - for an image on "
            "standard input.",
            "import_weights": "The file of weights, such as a .caffemodel.",
        },
    ),
    "output": Option(
        None,
        (*_STORED, "submit", "compare"),
        {
            "predict": "Folder for the predictions [WORKDIR/predicted].",
            "eval": "JSON file for the scores.",
            "submit": "The archive [WORKDIR/submission.tar or .zip].",
            "export": "A .zip that JAX runs without dilax, an .onnx file, or a folder "
            "that loads like a run [WORKDIR/network.zip].",
            "compare": "The page [compare.html].",
        },
    ),
    "weights": Option(
        "",
        _STORED,
        "Name of a network that comes with dilax, such as camvid; replaces --workdir.",
    ),
    "stage": Option("", (*_STORED, "submit"), "Stage of the run to load [the last]."),
    "checkpoint": Option(
        "last",
        (*_STORED, "submit"),
        "Checkpoint of the stage to load.",
        choices=("last", "best"),
    ),
    "split": Option(
        "",
        ("eval", "submit"),
        {
            "eval": "Split to evaluate on [the run's validation split].",
            "submit": "Split to predict [test].",
        },
    ),
    "boundaries": Option(False, ("eval",), "Also measure trimap IoU and boundary F."),
    "outputs": Option(
        ["labels", "overlay"],
        ("predict",),
        f"What to write for each image: any of {', '.join(OUTPUTS)}.",
    ),
    "frames": Option(
        False, ("predict",), "Write a video's frames as separate pictures."
    ),
    "overwrite": Option(False, ("predict",), "Replace predictions that exist already."),
    "max_pixels": Option(
        MAX_PIXELS, ("predict",), "Refuse images with more pixels.", least=1
    ),
    "tiling": Option(
        "tiles",
        _PREDICTING,
        "tiles: as in the paper's release. whole: the whole image at once. blend: "
        "overlapping tiles, blended, for images of any size in bounded memory.",
        choices=("tiles", "whole", "blend"),
    ),
    "scales": Option(
        ["1"],
        _PREDICTING,
        "Average predictions over these image scales, such as 0.75,1,1.25.",
    ),
    "mirror": Option(
        False, _PREDICTING, "Average with the prediction of the mirrored image."
    ),
    "rows": Option(
        1,
        _PREDICTING,
        "Spread the rows of an image's maps over this many devices, for images that "
        "one device cannot hold.",
        least=1,
    ),
    "resize": Option(
        True,
        ("predict",),
        "Reduce photographs that are much larger than the data set's images to their "
        "size before predicting; the label maps have the photographs' size.",
    ),
    "palette": Option(
        "own",
        ("predict",),
        "own: the data set's colours. distinct: colours as different as possible.",
        choices=("own", "distinct"),
    ),
    "competition": Option(
        "comp6",
        ("submit",),
        "Competition of Pascal VOC: comp5 for networks trained only on VOC's own data, "
        "comp6 for all others.",
        choices=("comp5", "comp6"),
    ),
    "network": Option(
        None,
        ("import_weights",),
        "The network whose weights the file contains.",
        choices=(*RELEASED,),
    ),
    "lr_factor": Option(1.0, ("train",), "Multiply the learning rates of all stages."),
    "estimate": Option(
        True, ("train",), "Measure and print memory and time per step before training."
    ),
    "profile": Option(
        False,
        ("train",),
        "Before training, trace some steps and time each layer; write to "
        "WORKDIR/profile.",
    ),
    "seeds": Option(
        [], ("train",), "Train one run per seed, in WORKDIR/seed0 and so on: 0,1,2."
    ),
    "distributed": Option(
        False,
        _JOBS,
        "Join the job of several processes that the environment describes: Slurm, a "
        "TPU pod, GKE, Open MPI, or torchrun's variables.",
    ),
    "coordinator": Option(
        None,
        _JOBS,
        "HOST:PORT of process 0, to join a job that the environment does not describe.",
    ),
    "processes": Option(
        None, _JOBS, "With --coordinator: number of processes.", least=1
    ),
    "process_id": Option(
        None, _JOBS, "With --coordinator: this process, from 0.", least=0
    ),
    "join_timeout": Option(
        300, _JOBS, "Seconds to wait for the other processes of the job.", least=1
    ),
}


def define_flags(
    mode: str = "", configurations: Sequence[str] = (), modes: Sequence[str] = ()
) -> None:
    """Define the flags of one mode, or of an experiment with all its modes.

    Args:
        mode: the only mode; "" defines `--mode` and `--config` as well.
        configurations: the experiment's, by name; the first is the default.
        modes: the experiment's, by name; the first is the default.
    """
    names = [
        name for name, option in OPTIONS.items() if not mode or mode in option.modes
    ]
    if not mode:
        flags.DEFINE_enum("mode", modes[0], modes, "What to do.")
        flags.DEFINE_enum(
            "config",
            configurations[0],
            configurations,
            "Configuration to train. Set its fields with --config.FIELD=VALUE, such as "
            "--config.seed=1, --config.stages[0].steps=500, or "
            "--config.stages.joint.optimizer.learning_rate=1e-5.",
        )
        names = ["mode", "config", *names]
    kinds: dict[type, Callable[..., Any]] = {
        bool: flags.DEFINE_bool,
        float: flags.DEFINE_float,
        list: flags.DEFINE_list,
    }
    for name in names:
        if option := OPTIONS.get(name):
            text, default = option.help, option.default
            if isinstance(text, dict):
                text = text.get(mode) or " ".join(f"{m}: {text[m]}" for m in text)
            elif not mode:
                text = f"[{', '.join(option.modes)}] {text}"
            if option.choices:
                flags.DEFINE_enum(name, default, option.choices, text)
            elif option.least is not None:
                flags.DEFINE_integer(name, default, text, lower_bound=option.least)
            else:
                kinds.get(type(default), flags.DEFINE_string)(name, default, text)
        # --help lists the flags that belong to the script that was started.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
