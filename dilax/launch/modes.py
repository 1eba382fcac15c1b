"""The modes that take a trained run: each reads what it needs from the flags."""

import json
from pathlib import Path
from typing import Any

import jax

from dilax.evaluation import boundary_table, evaluate, stage_table
from dilax.inference import (
    Predictor,
    export_model,
    export_onnx,
    is_video,
    predict_photos,
    predict_video,
    write_submission,
)
from dilax.ops.hosts import is_writer
from dilax.training import (
    Config,
    from_json,
    import_weights,
    load_checkpoint,
    load_predictor,
    open_evaluation,
    write_text,
)


def _check_alone(mode: str) -> None:
    if jax.process_count() > 1:
        raise ValueError(f"--mode={mode}: runs in one process")


def _evaluate(values: Any) -> None:
    workdir = Path(values.workdir).expanduser()
    config, spec, source = open_evaluation(workdir, values.data_dir, values.split)
    predictor = predictor_of(values, config.eval_batch_size)
    name = values.stage or config.stages[-1].name
    found = evaluate(predictor, source, boundaries=values.boundaries)
    if not is_writer():
        return
    scores = {name: found.as_dict()}
    print(f"\n{len(source)} images of {spec.name} {config.data.val}\n")
    print(stage_table(scores, spec.context_classes))
    if values.boundaries:
        print(f"\n{boundary_table(scores)}")
    if values.output:
        text = json.dumps({"stages": scores}, indent=1) + "\n"
        write_text(Path(values.output).expanduser(), text)


def _submit(values: Any) -> None:
    _check_alone("submit")
    workdir = Path(values.workdir).expanduser()
    split = values.split or "test"
    config, spec, source = open_evaluation(workdir, values.data_dir, split)
    kind = config.data.dataset
    if kind not in ("voc", "cityscapes"):
        raise ValueError(f"--mode=submit: no server scores {spec.name}")
    suffix = ".zip" if kind == "cityscapes" else ".tar"
    path = Path(values.output or workdir / f"submission{suffix}").expanduser()
    predictor = predictor_of(values, config.eval_batch_size)
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
    predictor = predictor_of(values, 1)
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
    _check_alone("export")
    path = Path(values.output or Path(values.workdir) / "network.zip").expanduser()
    write = export_onnx if path.suffix == ".onnx" else export_model
    loaded = load_checkpoint(values.workdir, values.stage, values.which)
    print(f"the network, and how to run it: {write(*loaded, path)}")
    config = from_json(Config, Path(values.workdir).expanduser() / "config.json")
    stage = config.stage(values.stage)
    if stage.crf:
        print(f"It is the network alone: the CRF of stage {stage.name} is not in it.")


def _import_weights(values: Any) -> None:
    _check_alone("import_weights")
    if not values.input or not values.network:
        raise ValueError("--input, --network: name the file of weights and its network")
    report = import_weights(values.input, values.network, values.workdir)
    print(f"{report}\n\nfor --mode=eval, predict, submit and export: {values.workdir}")


def predictor_of(values: Any, batch_size: int) -> Predictor:
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
        rows=values.rows,
    )


MODES = {
    "eval": _evaluate,
    "predict": _predict,
    "submit": _submit,
    "export": _export,
    "import_weights": _import_weights,
}
