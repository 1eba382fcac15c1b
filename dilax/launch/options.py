"""The flags of every experiment, for all modes: absl's, and their help."""

import sys
from collections.abc import Iterable

from absl import flags

from dilax.inference import MAX_PIXELS, OUTPUTS
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
