"""The modes: training, and those that read a trained run. Each has flags of its own.

Their docstrings are the help texts of `dilax MODE`.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from dilax import inference, report, training
from dilax.data import distinct_colours, evenly_spread
from dilax.evaluation import boundary_table, evaluate, stage_table
from dilax.runtime.processes import is_writer, wait_for_all
from dilax.training import Config, checkpoint, open_evaluation, records
from dilax.training.run import Run, SavedPredictions, run_results, write_results

Summarize = Callable[[Sequence[Mapping], Path], str]


def train_runs(values: Any, config: Config, summarize: Summarize | None) -> None:
    """Train one run, or one per seed, and print the table of all seeds."""
    workdir = Path(values.workdir).expanduser()
    texts = values.seeds
    if not all(text.isdecimal() for text in texts) or len(set(texts)) < len(texts):
        raise ValueError(
            f"--seeds={','.join(texts)}: must be distinct whole numbers, such as 0,1,2"
        )
    seeds = {int(text): workdir / f"seed{int(text)}" for text in texts}
    config = training.validated(config)
    runs = [
        _train_once(values, dataclasses.replace(config, seed=seed), folder)
        for seed, folder in (seeds or {config.seed: workdir}).items()
    ]
    if seeds:
        table = report.seed_table(runs)
        training.write_text(workdir / "seeds.md", table + "\n")
        if is_writer():
            print(f"\n{table}\n")
    if summarize and is_writer():
        print(f"\n{summarize(runs, workdir)}\n")


def _train_once(values: Any, config: Config, workdir: Path) -> dict[str, Any]:
    _preview(values, config, workdir)
    results = training.train(config, workdir, report.watcher(workdir))
    wait_for_all(f"trained {workdir}")
    if not is_writer():
        return results
    _, spec, source = open_evaluation(workdir)
    print(f"\n{stage_table(results['stages'], spec.context_classes)}\n")
    if config.pictures:
        path = workdir / "pictures.png"
        shown = evenly_spread(len(source), config.pictures)
        folders = {
            stage.name: training.predictions_folder(workdir, stage.name)
            for stage in config.stages
        }
        predictions = {
            name: [folder / f"{i:04d}.png" for i in shown]
            for name, folder in folders.items()
            if folder.exists()  # it may have been deleted when a run is repeated
        }
        sheet = report.prediction_sheet([source[i] for i in shown], predictions, spec)
        inference.save_image(sheet, path)
        print(f"pictures: {path}")
    alone = jax.process_count() == 1  # several must read a checkpoint together
    report.watcher(workdir, measure=alone)()
    print(f"page: {workdir.resolve() / 'report.html'}")
    tqdm.write(f"table, results and checkpoints: {workdir}")
    return results


def _preview(values: Any, config: Config, workdir: Path) -> None:
    """Print what a new run will need and, with --profile, where its time goes."""
    estimates = values.estimate and not (workdir / "config.json").exists()
    if not estimates and not values.profile:
        return
    spec = training.check_run(config, workdir).spec  # errors come before the estimate
    if estimates:
        show = print if is_writer() else lambda *_, **__: None
        show("compiling each stage, to estimate memory and time …", flush=True)
        costs = training.estimate(config, spec)
        device = jax.devices()[0].device_kind
        show(f"on {len(jax.devices())} x {device}, without evaluation:")
        for name, cost in costs.items():
            show(f"  {name}: {cost}")
        if others := [s.name for s in config.stages if s.name not in costs]:
            named = ", ".join(others)
            show(f"  not estimated, as they train on maps or search a CRF: {named}")
    if values.profile:
        folder = workdir / "profile"
        for table in training.profile(config, spec, folder).values():
            print(f"\n{table}")
        print(f"traces and tables: {folder}")


def _check_alone(mode: str) -> None:
    if jax.process_count() > 1:
        raise ValueError(f"--mode={mode}: works in a single process only")


def evaluate_run(values: Any) -> None:
    """Evaluate a trained run on a split: mean IoU, IoU per class, pixel accuracy.

    dilax eval --workdir=runs/voc --stage=front_end
    """
    workdir = Path(values.workdir).expanduser()
    config, spec, source = open_evaluation(workdir, values.data_dir, values.split)
    predictor = predictor_of(values, config.eval_batch_size)
    stage = config.stage(values.stage)
    step = checkpoint.unfinished_step(workdir, stage)
    run = Run(config, workdir, spec, (), source)
    saved = None
    if step is None and _as_trained(values) and os.access(workdir, os.W_OK):
        saved = SavedPredictions(run, stage)
    start, keep = time.perf_counter(), saved.add if saved else None
    found = evaluate(predictor, source, "evaluate", keep, values.boundaries)
    seconds = time.perf_counter() - start
    if saved:
        saved.finish()
    if not is_writer():
        return
    if saved:
        results = run_results(run)
        if stage.name not in results["stages"]:
            write_results(run, results, stage, found)
        records.record_stage(workdir, stage.name, evaluation_seconds=seconds)
        print(f"page: {report.write_page(workdir, data_dir=config.data.data_dir)}")
    unfinished = f" (step {step} of {stage.steps}, unfinished)"
    scores = {stage.name + unfinished * (step is not None): found.as_dict()}
    print(f"\n{len(source)} images of {spec.name} {config.data.val}\n")
    print(stage_table(scores, spec.context_classes))
    if values.boundaries:
        print(f"\n{boundary_table(scores)}")
    if values.output:
        text = json.dumps({"stages": scores}, indent=1) + "\n"
        training.write_text(Path(values.output).expanduser(), text)


def _as_trained(values: Any) -> bool:
    """Whether an evaluation is the same as the one at the end of a stage's training."""
    plain = values.scales == ["1"] and not values.mirror and values.tiling == "tiles"
    own = not values.weights and not values.split
    return plain and own and values.checkpoint == "last"


def submit(values: Any) -> None:
    """Write predictions for the test servers of Pascal VOC and Cityscapes.

    dilax submit --workdir=runs/voc --split=test
    """
    _check_alone("submit")
    workdir = Path(values.workdir).expanduser()
    split = values.split or "test"
    config, spec, source = open_evaluation(workdir, values.data_dir, split)
    kind = config.data.dataset
    if kind not in ("voc", "cityscapes"):
        raise ValueError(f"--mode=submit: {spec.name} has no test server")
    suffix = ".zip" if kind == "cityscapes" else ".tar"
    path = output_of(values, f"submission{suffix}")
    predictor = predictor_of(values, config.eval_batch_size)
    inference.write_submission(predictor, source, kind, path, values.competition)
    print(f"{len(source)} images of {split} for the server of {spec.name}: {path}")


def predict(values: Any) -> None:
    """Predict an image, a folder, or a video with a trained run.

    dilax predict --workdir=runs/voc --input=photos --output=labels
    dilax predict --weights=camvid --input=street.jpg --output=labels
    """
    if not values.input:
        raise ValueError("--input: give an image, a folder, or a video to predict")
    output = output_of(values, "predicted")
    options = {
        "outputs": values.outputs,
        "overwrite": values.overwrite,
        "max_pixels": values.max_pixels,
    }
    source = Path(values.input).expanduser()
    predictor = predictor_of(values, 1, resize=values.resize)
    if values.palette == "distinct":
        spec = predictor.spec
        palette = distinct_colours(spec.num_classes)
        predictor.spec = dataclasses.replace(spec, palette=palette)
    if inference.is_video(source):
        options["frames"] = values.frames
        done = inference.predict_video(predictor, source, output, **options)
    else:
        done = inference.predict_photos(predictor, values.input, output, **options)
    print(f"{done.written} predicted: {output}")
    if total := sum(done.pixels.values()):
        largest = sorted(done.pixels.items(), key=lambda item: -item[1])
        shares = (f"{predictor.spec.classes[i]} {n / total:.1%}" for i, n in largest)
        print(f"pixels: {', '.join(shares)}")
    if done.skipped:
        print(f"{done.skipped} were there already; --overwrite predicts them again")
    if done.problems:
        messages = "\n".join(done.problems)
        raise ValueError(f"{len(done.problems)} not predicted:\n{messages}")


def export(values: Any) -> None:
    """Write the network of a run: for use without dilax (StableHLO, ONNX), or packed.

    dilax export --workdir=runs/voc --output=voc.zip
    """
    _check_alone("export")
    path = output_of(values, "network.zip")
    if not path.suffix:
        training.pack(values.workdir, path, values.stage, values.checkpoint)
        print(f"the network, which can be loaded like a run: {path}")
        return
    onnx = path.suffix == ".onnx"
    write = inference.export_onnx if onnx else inference.export_model
    loaded = training.load_checkpoint(values.workdir, values.stage, values.checkpoint)
    print(f"the network, and how to run it: {write(*loaded, path)}")
    root = Path(values.workdir).expanduser()
    config = training.from_json(Config, root / "config.json")
    stage = config.stage(values.stage)
    if stage.crf:
        print(f"The CRF of stage {stage.name} is not included.")


def import_released(values: Any) -> None:
    """Turn a released network's file of weights into the folder of a run.

    dilax import-weights --network=dilation8_camvid --input=FILE --workdir=DIR
    """
    _check_alone("import_weights")
    if not values.input or not values.network:
        raise ValueError("--input, --network: give the file of weights and its network")
    found = training.import_weights(values.input, values.network, values.workdir)
    print(f"{found}\n\nfor eval, predict, submit, and export: {values.workdir}")


def write_report(values: Any) -> None:
    """Write the page of a run, WORKDIR/report.html.

    dilax report --workdir=runs/voc
    """
    _check_alone("report")
    path = report.write_page(values.workdir, data_dir=values.data_dir, measure=True)
    print(f"page of the run: {path}")


def compare(values: Any) -> None:
    """Write one page that shows several runs side by side.

    dilax compare --workdirs=runs/a,runs/b --output=compare.html
    """
    _check_alone("compare")
    if len(values.workdirs) < 2:
        raise ValueError("--workdirs: give the folders of two runs or more: a,b")
    output = values.output or "compare.html"
    path = report.write_comparison(values.workdirs, output, data_dir=values.data_dir)
    print(f"{len(values.workdirs)} runs side by side: {path}")


def output_of(values: Any, name: str) -> Path:
    """Return --output, or the name in the run's folder, or here if there is no run."""
    folder = Path("" if values.weights else values.workdir)
    return Path(values.output or folder / name).expanduser()


def predictor_of(values: Any, batch_size: int, **options: Any) -> inference.Predictor:
    try:
        scales = tuple(map(float, values.scales))
    except ValueError as error:
        raise ValueError(f"--scales={','.join(values.scales)}: {error}") from error
    return training.load_predictor(
        values.workdir,
        values.stage,
        values.checkpoint,
        batch_size,
        mode=values.tiling,
        scales=scales,
        mirror=values.mirror,
        rows=values.rows,
        **options,
    )


MODES = {
    "eval": evaluate_run,
    "predict": predict,
    "submit": submit,
    "export": export,
    "import_weights": import_released,
    "report": write_report,
    "compare": compare,
}
