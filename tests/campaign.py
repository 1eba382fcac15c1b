"""Random kills and damage, against the promises of docs/reliability.md.

    python -m tests.campaign                       # minutes
    python -m tests.campaign --scale=10            # ten times as many trials
    python -m tests.campaign --part=kills --seed=3

Every trial is a function of the seed and its number. A part is a generator that yields
what became of each trial, or raises AssertionError; `run` counts them.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import jax
import numpy as np
import tifffile
from absl import logging
from broken_files import broken, check_broken
from made_run import make_run
from PIL import Image
from tiny_run import tiny_config, write_images
from weight_files import caffemodel, torch_arrays, vgg_layers

import dilax
from dilax.data import DatasetSpec
from dilax.inference.photos import count_pixels, read_photo
from dilax.models import init_params
from dilax.runtime import keep_compiled
from dilax.training import Config, from_json, read_machine
from dilax.training.build import build_model, build_spec
from dilax.training.checkpoint import Checkpoints, stage_params
from dilax.training.inputs import StoredMaps
from dilax.training.records import read_metrics
from dilax.training.run import read_results
from dilax.training.step import init_state
from dilax.weights import save_weights

Trials = Iterator[str]
_PROCESSES = multiprocessing.get_context("forkserver")  # which imports JAX once


# Kills and full disks: a training in a process of its own.


def _two_stages(data: Path) -> Config:
    config = tiny_config(data)
    return dataclasses.replace(config, stages=config.stages[:2])


def _job(data: Path, workdir: Path, log: Path) -> None:
    """What a process runs: the command line."""
    from dilax.cli import run

    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    flags = [f"--data_dir={data}", f"--workdir={workdir}", "--noestimate"]
    sys.argv = ["campaign", *flags]
    run({"tiny": lambda: _two_stages(data)}, "")


def _start(data: Path, workdir: Path, log: Path):
    process = _PROCESSES.Process(target=_job, args=(data, workdir, log))
    process.start()
    return process


def _outcome(workdir: Path) -> tuple:
    """All that must be equal however often a run was interrupted."""
    steps = [
        (line["stage"], line["step"], line.get("loss"), sorted(line))
        for line in map(json.loads, (workdir / "metrics.jsonl").open())
    ]
    leaves = jax.tree.leaves(dilax.load_checkpoint(workdir).params)
    params = [np.asarray(leaf).tobytes() for leaf in leaves]
    return (workdir / "results.json").read_text(), steps, params


def _reference(folder: Path) -> tuple[Path, tuple, float]:
    """Data, the outcome of a run that nothing disturbs, and its seconds."""
    data, log = write_images(folder / "data"), folder / "reference.txt"
    for name in ("first", "second"):  # the second finds compiled programs
        start = time.perf_counter()
        process = _start(data, folder / name, log)
        process.join()
        assert process.exitcode == 0, log.read_text()[-2000:]
    return data, _outcome(folder / "second"), time.perf_counter() - start


def kills(folder: Path, seed: int, count: int) -> Trials:
    """Kill runs at random moments until they are done; compare with a quiet run."""
    data, wanted, seconds = _reference(folder)
    rng, sent, run = np.random.default_rng(seed), 0, 0
    expected = {-9: "SIGKILL", 143: "SIGTERM", 130: "SIGINT", 0: "finished"}
    while sent < count:
        run += 1
        workdir, log = folder / f"run{run}", folder / f"log{run}.txt"
        for attempt in range(9):
            before = log.stat().st_size if log.exists() else 0
            process = _start(data, workdir, log)
            number = rng.choice([9, 15, 2], p=[0.6, 0.2, 0.2])  # KILL, TERM, INT
            process.join(None if attempt == 8 else rng.uniform(0.1, 1) * seconds)
            if process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
                sent += 1
            process.join()
            silent = not log.exists() or log.stat().st_size == before
            name = expected.get(process.exitcode, f"exit {process.exitcode}")
            if silent and process.exitcode in (-15, 1):  # before dilax began
                name = "killed at its start"
            else:
                assert name in expected.values(), f"{name}: {log.read_text()[-1000:]}"
            if process.exitcode == 0:
                break
            yield name
        text = log.read_text()
        assert "Traceback" not in text, text[-3000:]
        assert _outcome(workdir) == wanted, f"run {run} differs"
        yield "equal runs"
        shutil.rmtree(workdir)


def crashes(folder: Path, seed: int, count: int) -> Trials:
    """Copy a run's folder at random moments, as a kill would leave it; resume there.

    The process is stopped meanwhile. Not for pytest, which compiles for this process
    in another way than for others.
    """
    data, wanted, seconds = _reference(folder)
    rng, copies, run = np.random.default_rng(seed), list[Path](), 0
    while len(copies) < count:
        run += 1
        workdir = folder / f"run{run}"
        process = _start(data, workdir, folder / "log.txt")
        while len(copies) < count:
            process.join(rng.uniform(0, seconds / 40))
            if process.exitcode is not None:
                break
            if workdir.exists():
                os.kill(process.pid, signal.SIGSTOP)
                copies.append(folder / f"copy{len(copies)}")
                subprocess.run(["cp", "-a", str(workdir), str(copies[-1])], check=True)
                os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.join()
    for copy in copies:
        dilax.train(_two_stages(data), copy)
        assert _outcome(copy) == wanted, f"{copy.name} differs"
        yield "resumed, equal"
        shutil.rmtree(copy)


def disks(folder: Path, seed: int, count: int) -> Trials:
    """Train on disks of random size that are too small; then give them space."""
    mount = ["mount", "-t", "tmpfs", "tmpfs"]
    (small := folder / "small").mkdir()
    if os.geteuid() or subprocess.run([*mount, str(small)], check=False).returncode:
        yield "skipped: cannot mount"
        return
    subprocess.run(["umount", str(small)], check=True)
    data, wanted, _ = _reference(folder)
    for trial in range(count):
        rng = np.random.default_rng([seed, trial])
        size, log = int(rng.integers(4, 3000)), folder / f"log{trial}.txt"
        subprocess.run([*mount, "-o", f"size={size}k", str(small)], check=True)
        try:
            for again in (False, True):
                process = _start(data, small / "run", log)
                process.join()
                text = log.read_text()
                assert "Traceback" not in text, text[-3000:]
                if process.exitcode == 0:
                    break
                assert process.exitcode == 1 and not again, text[-3000:]
                assert "No space left" in text or "are free" in text, text[-3000:]
                larger = ["mount", "-o", "remount,size=99m", str(small)]
                subprocess.run(larger, check=True)
            assert _outcome(small / "run") == wanted
            yield "full, then equal" if again else "large enough"
        finally:
            subprocess.run(["umount", str(small)], check=True)


# Damaged files of a run.


def checkpoints(folder: Path, seed: int, count: int) -> Trials:
    """Damage a file or folder of the last checkpoint, then load and resume."""
    config = tiny_config(Path())
    model, states = build_model(config, config.stages[0], 3), {}
    for step in (2, 4):
        state = init_state(init_params(model, step), config.stages[0])
        states[step] = state.replace(step=jax.numpy.int32(step))
    spec = DatasetSpec("three", ("a", "b", "c"), ((0, 0, 0),) * 3, (1.0, 2.0, 3.0))
    whole, work = folder / "whole", folder / "work"
    saved = Checkpoints(whole, "front_end")
    for step, state in states.items():
        saved.save(state, step / 9, (step / 7,))
    saved.close()

    def equal(found, step: int, part=lambda state: state) -> bool:
        leaves = map(jax.tree.leaves, (found, part(states[step])))
        return all(map(np.array_equal, *leaves))

    for trial in range(count):
        rng = np.random.default_rng([seed, trial])
        shutil.copytree(whole, work)
        paths = sorted((work / "checkpoints" / "front_end" / "4").rglob("*"))
        path = paths[rng.integers(len(paths))]
        if path.is_dir():
            shutil.rmtree(path)
        elif rng.random() < 0.1:
            path.unlink()
        else:
            path.write_bytes(broken(path.read_bytes(), rng))
        where = f"trial {trial}, {path.relative_to(work)}"
        try:
            params = stage_params(work, config, "front_end", spec)
            steps = [s for s in states if equal(params, s, lambda state: state.params)]
            assert steps, f"{where}: loads other parameters"
        except ValueError as error:
            assert str(work) in str(error), f"{where}: not named in {error}"
        opened = Checkpoints(work, "front_end")
        state, losses = opened.restore(states[2])
        opened.close()
        step = int(state.step)
        assert equal(state, step) and losses == (step / 7,), f"{where}: another state"
        yield f"restored step {step}"
        shutil.rmtree(work)


def maps(folder: Path, seed: int, count: int) -> Trials:
    """Damage stored maps: what is read is as before, and so is the file after it."""
    config = tiny_config(write_images(folder / "data", 2))
    model = build_model(config, config.stages[0], 3)
    predictor = dilax.Predictor(model, init_params(model, 0), build_spec(config))
    source = dilax.training.check_run(config, folder / "run").train
    stored = StoredMaps(predictor, source, folder / "maps")
    stored.compute_missing("maps")
    [path, _] = sorted((folder / "maps").glob("*.msgpack"))
    content, wanted = path.read_bytes(), stored[0]["image"]
    for trial in range(count):
        path.write_bytes(broken(content, np.random.default_rng([seed, trial])))
        damaged = path.read_bytes() != content
        assert np.array_equal(stored[0]["image"], wanted), f"trial {trial}: other maps"
        assert path.read_bytes() == content, f"trial {trial}: not repaired"
        yield "computed again" if damaged else "unchanged"


def records(folder: Path, seed: int, count: int) -> Trials:
    """Damage the JSON files of a run: they are read, or refused by name."""
    run = make_run(folder / "run", 3)
    figures = {"stages": {"front_end": {"memory": {"host": 1}, "seconds": 2.5}}}
    (run / "machine.json").write_text(json.dumps(figures))
    config = from_json(Config, run / "config.json")
    readers: dict[str, Callable] = {
        "config.json": lambda path: from_json(Config, path),
        "spec.json": lambda path: from_json(DatasetSpec, path),
        "results.json": lambda path: read_results(path.parent, config),
        "machine.json": lambda path: read_machine(path.parent),
        "metrics.jsonl": lambda path: read_metrics(path.parent),
    }
    wanted = {name: read(run / name) for name, read in readers.items()}
    contents = {name: (run / name).read_bytes() for name in readers}
    for trial in range(count):
        rng = np.random.default_rng([seed, trial])
        name = [*readers][rng.integers(len(readers))]
        path = run / name
        path.write_bytes(broken(contents[name], rng))
        try:
            found = readers[name](path)
            if name == "results.json":  # its figures follow from its counts
                for stage, scores in found.get("stages", {}).items():
                    before = wanted[name]["stages"][stage]
                    same = before == {key: scores[key] for key in before}
                    assert same, f"trial {trial}: {scores}"
            yield "read"
        except ValueError as error:
            assert str(path) in str(error), f"trial {trial}, {name}: {error}"
            yield "refused"
        path.write_bytes(contents[name])


# Hostile files from elsewhere.


def weights(folder: Path, seed: int, count: int) -> Trials:
    """Damage weight files of all kinds: refused, or read in bounded memory."""
    layers = {n: v for n, v in vgg_layers().items() if n in ("conv1_2", "fc7")}
    front_end = {n: {"kernel": k, "bias": b} for n, (k, b) in layers.items()}
    contents = {".caffemodel": caffemodel(layers)}
    for suffix in (".npz", ".safetensors"):
        save_weights({"front_end": front_end}, folder / f"a{suffix}")
        contents[suffix] = (folder / f"a{suffix}").read_bytes()
    with contextlib.suppress(ImportError):
        import torch

        file = io.BytesIO()
        torch.save({n: torch.tensor(a) for n, a in torch_arrays(layers).items()}, file)
        contents[".pth"] = file.getvalue()
    for number, (suffix, content) in enumerate(contents.items()):
        each, path = count // len(contents), folder / f"broken{suffix}"
        refused = check_broken(path, content, layers, each, seed + number)
        yield from [f"{suffix} refused"] * refused
        yield from [f"{suffix} read"] * (each - refused)


def images(folder: Path, seed: int, count: int) -> Trials:
    """Damage photographs: refused by name, or read in bounded memory."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8).repeat(3, 0)
    for form in ("png", "jpg", "tif", "gif", "bmp", "webp"):
        Image.fromarray(pixels).save(folder / f"a.{form}")
    tifffile.imwrite(folder / "deep.tif", pixels.astype(np.uint16) * 257)
    contents = [(path, path.read_bytes()) for path in sorted(folder.iterdir())]
    warnings.simplefilter("ignore")
    for trial in range(count):
        rng = np.random.default_rng([seed, trial])
        path, content = contents[rng.integers(len(contents))]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        path.write_bytes(broken(content, rng))
        try:
            count_pixels(path, str(path), 1 << 22)
            assert read_photo(path, str(path)).shape[2] == 3
            yield f"{path.suffix} read"
        except ValueError as error:
            assert str(path) in str(error), f"trial {trial}: {error}"
            yield f"{path.suffix} refused"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 200_000, f"trial {trial}, {path.name}: {grown} kB"


PARTS = {  # with the number of trials that takes a minute or so
    kills: 8,
    crashes: 20,
    disks: 4,
    checkpoints: 100,
    maps: 2000,
    records: 5000,
    weights: 8000,
    images: 5000,
}


def run(part: Callable[[Path, int, int], Trials], seed: int, count: int) -> Counter:
    """Run a part; return what became of how many of its trials.

    Raises:
        AssertionError: if a trial broke a promise.
    """
    with tempfile.TemporaryDirectory(prefix="campaign") as folder:
        return Counter(part(Path(folder), seed, count))


def main() -> int:
    """Run the parts and print their lines; failures do not stop the other parts."""
    names = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--part", choices=names, action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    values = parser.parse_args()
    logging.set_verbosity(logging.FATAL)
    keep_compiled()
    failures = 0
    for name in values.part or names:
        count, start = max(1, int(PARTS[names[name]] * values.scale)), time.time()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = run(names[name], values.seed, count)
            line = ", ".join(f"{n} {outcome}" for outcome, n in sorted(found.items()))
        except Exception as error:
            failures += 1
            line = f"FAILED: {type(error).__name__}: {error}"
        seconds = time.time() - start
        print(f"{name}, seed {values.seed}: {line} ({seconds:.0f} s)", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
