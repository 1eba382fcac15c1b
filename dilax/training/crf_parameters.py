"""A stage's dense CRF: its parameters, found by search (§5), and kept in a file."""

import dataclasses
from pathlib import Path

from dilax.crf import DenseCRF
from dilax.crf.search import search_crf
from dilax.inference import Predictor
from dilax.models import DilatedNet
from dilax.runtime.processes import is_writer, wait_for_all
from dilax.training.checkpoint import stage_params
from dilax.training.config import CRFConfig, StageConfig, build_model
from dilax.training.records import write_text
from dilax.training.run import Run
from dilax.training.serialization import from_json, to_json
from dilax.training.stage_crf import Params, build_dense


def find_dense(run: Run, stage: StageConfig) -> tuple[DilatedNet, Params]:
    """Finds a stage's dense CRF, or takes the given one, and writes it down.

    Searches on `run.val`, on which the stage is evaluated as well, as §5 does. A search
    that was interrupted goes on.

    Returns:
        The network and all its parameters, those of the stage that it starts from.
    """
    assert stage.crf is not None
    model = build_model(run.config, stage, run.spec.num_classes)
    params = stage_params(run.workdir, run.config, stage.name, run.spec)
    path = _file(run.workdir, stage)
    if not path.exists() and is_writer():
        found = _searched(run, stage, model, params) if stage.crf.search else stage.crf
        write_text(path, to_json(found))
    wait_for_all(f"dense CRF of {stage.name}")
    return model, params


def found_dense(workdir: Path, stage: StageConfig) -> DenseCRF:
    """The dense CRF that `find_dense` wrote down.

    Raises:
        ValueError: naming the file, if it is missing.
    """
    path = _file(workdir, stage)
    if not path.is_file():
        raise ValueError(f"{path}: no dense CRF of stage {stage.name!r}; train first")
    return build_dense(from_json(CRFConfig, path))


def _searched(
    run: Run, stage: StageConfig, model: DilatedNet, params: Params
) -> CRFConfig:
    assert stage.crf is not None
    predictor = Predictor(model, params, run.spec, run.config.eval_batch_size)
    found = search_crf(
        predictor,
        run.val,
        run.workdir / "crf" / f"{stage.name}_search.json",
        images=stage.crf.search_images,
        grid=stage.crf.grid,
        iterations=stage.crf.iterations,
        title=f"search {stage.name}",
    )
    given = [field.name for field in dataclasses.fields(CRFConfig)]
    best = {name: v for name, v in vars(found.best).items() if name in given}
    return dataclasses.replace(stage.crf, **best)


def _file(workdir: Path, stage: StageConfig) -> Path:
    return Path(workdir) / "crf" / f"{stage.name}.json"
