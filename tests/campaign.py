"""Random kills and damage, against the promises of docs/reliability.md.

    python -m tests.campaign                       # minutes
    python -m tests.campaign --scale=10            # ten times as many trials
    python -m tests.campaign --part=kills --seed=3

Every trial is a function of the seed and its number. A part is a generator that yields
what became of each trial, or raises AssertionError; `run` counts them.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import jax
import numpy as np
from absl import logging
from PIL import Image
from tiny_run import tiny_config, write_images
from weight_files import caffemodel, mutations, torch_arrays, vgg_layers

import dilax
from dilax.data import DatasetSpec
from dilax.inference.photos import count_pixels, read_photo
from dilax.models import DilatedNet, FrontEnd, Layer, init_params
from dilax.runtime import keep_compiled
from dilax.training import Config, from_json, read_machine
from dilax.training.build import build_model, build_spec
from dilax.training.checkpoint import Checkpoints, stage_params
from dilax.training.inputs import StoredMaps
from dilax.training.records import read_metrics
from dilax.training.run import read_results
from dilax.training.step import init_state
from dilax.weights import Inputs, read_weights, save_weights
from dilax.weights.load import assign_weights

Trials = Iterator[str]
_PROCESSES = multiprocessing.get_context("forkserver")  # which imports JAX once
_MB = 1 << 20


def broken(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with a flipped bit, zeros, other bytes, a cut, no bytes, or some twice."""
    data, size = bytearray(content), len(content)
    at = int(rng.integers(max(size, 1)))
    end = at + int(rng.integers(1, 400))
    match rng.integers(6):
        case 0 if size:
            data[at] ^= 1 << int(rng.integers(8))
        case 1:
            data[at:end] = bytes(len(data[at:end]))
        case 2:
            data[at:end] = rng.bytes(len(data[at:end]))
        case 3:
            del data[at:]
        case 4:
            data.clear()
        case _:
            data[at:at] = data[at:end]
    return bytes(data)


# Kills and full disks: a training in a process of its own.


def _two_stages(data: Path) -> Config:
    config = tiny_config(data)
    return dataclasses.replace(config, stages=config.stages[:2])


def _job(data: Path, workdir: Path, log: Path) -> None:
    """What a process runs: the command line."""
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    from dilax.cli import run

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
    params = jax.tree.leaves(dilax.load_checkpoint(workdir).params)
    return (
        (workdir / "results.json").read_text(),
        steps,
        [np.asarray(leaf).tobytes() for leaf in params],
    )


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
            number = rng.choice(
                [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], p=[0.6, 0.2, 0.2]
            )
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

    The process is stopped meanwhile. Copies that are equal are resumed once. Not for
    pytest, which compiles for this process in another way than for others.
    """
    data, wanted, seconds = _reference(folder)
    rng, copies, run = np.random.default_rng(seed), {}, 0
    while count > 0:
        run += 1
        workdir = folder / f"run{run}"
        process = _start(data, workdir, folder / "log.txt")
        while count > 0:
            process.join(rng.uniform(0, seconds / 40))
            if process.exitcode is not None:
                break
            if not workdir.exists():
                continue
            os.kill(process.pid, signal.SIGSTOP)
            copy = folder / f"copy{count}"
            subprocess.run(["cp", "-a", str(workdir), str(copy)], check=True)
            os.kill(process.pid, signal.SIGCONT)
            digest = hashlib.sha256()
            for path in sorted(copy.rglob("*")):
                # What no resume reads.
                if path.is_file() and "tensorboard" not in path.parts:
                    times = rb'"(step_seconds|input_wait|\w+_nsecs)": [\d.e-]+'
                    name, content = path.relative_to(copy), path.read_bytes()
                    digest.update(bytes(name) + re.sub(times, b"", content))
            copies.setdefault(digest.hexdigest(), []).append(copy)
            count -= 1
        process.kill()
        process.join()
    for same in copies.values():
        dilax.train(_two_stages(data), same[0])
        assert _outcome(same[0]) == wanted, f"{same[0].name} differs"
        yield from ["resumed, equal"] + ["same state as another"] * (len(same) - 1)
        for copy in same:
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
                subprocess.run(
                    ["mount", "-o", "remount,size=99m", str(small)], check=True
                )
            assert _outcome(small / "run") == wanted
            yield "full, then equal" if again else "large enough"
        finally:
            subprocess.run(["umount", str(small)], check=True)


# Damaged files of a run.


def _state(step: int):
    stage = tiny_config(Path()).stages[0]
    params = init_params(build_model(tiny_config(Path()), stage, 3), step)
    state = init_state(params, stage)
    return state.replace(step=jax.numpy.int32(step))


def checkpoints(folder: Path, seed: int, count: int) -> Trials:
    """Damage a file or folder of the last checkpoint, then load and resume."""
    config, states = tiny_config(Path()), {step: _state(step) for step in (2, 4)}
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
    spec = build_spec(config)
    model = build_model(config, config.stages[0], 3)
    predictor = dilax.Predictor(model, init_params(model, 0), spec)
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
    from made_run import make_run

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
            else:
                yield "read"
        except ValueError as error:
            assert str(path) in str(error), f"trial {trial}, {name}: {error}"
            yield "refused"
        path.write_bytes(contents[name])


# Hostile files from elsewhere.


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def weights(folder: Path, seed: int, count: int) -> Trials:
    """Damage weight files of all kinds: refused, or read in bounded memory."""
    layers = {n: v for n, v in vgg_layers().items() if n in ("conv1_1", "fc7")}
    front_end = {n: {"kernel": k, "bias": b} for n, (k, b) in layers.items()}
    model = DilatedNet(FrontEnd(5, (Layer("conv1_1", 3, 4), Layer("fc7", 1, 8))))
    initial = {"front_end": jax.tree.map(np.zeros_like, front_end)}
    contents = {".caffemodel": caffemodel(layers)}
    for suffix in (".npz", ".safetensors"):
        save_weights({"front_end": front_end}, folder / f"a{suffix}")
        contents[suffix] = (folder / f"a{suffix}").read_bytes()
    with contextlib.suppress(ImportError):
        import torch

        file = io.BytesIO()
        torch.save({n: torch.tensor(a) for n, a in torch_arrays(layers).items()}, file)
        contents[".pth"] = file.getvalue()
    largest = max(map(len, contents.values()))
    for number, (suffix, content) in enumerate(contents.items()):
        path = folder / f"broken{suffix}"
        each = count // len(contents)
        for trial, mutated in enumerate(mutations(content, each, seed + number)):
            before = _peak()
            path.write_bytes(mutated)
            try:
                found = read_weights(path, Inputs((0.0, 0.0, 0.0)))
                assign_weights(found, model, initial, allow_missing=("*",))
                yield f"{suffix} read"
            except (ValueError, OSError):
                yield f"{suffix} refused"
            grown = _peak() - before
            assert grown < 4 * largest + 200 * _MB, f"{suffix} {trial}: {grown} bytes"


def images(folder: Path, seed: int, count: int) -> Trials:
    """Damage photographs: refused by name, or read in bounded memory."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8).repeat(3, 0)
    forms = ("png", "jpg", "tif", "gif", "bmp", "webp")
    contents = {}
    for form in forms:
        Image.fromarray(pixels).save(folder / f"a.{form}")
        contents[f"a.{form}"] = (folder / f"a.{form}").read_bytes()
    import tifffile

    tifffile.imwrite(folder / "deep.tif", pixels.astype(np.uint16) * 257)
    contents["deep.tif"] = (folder / "deep.tif").read_bytes()
    warnings.simplefilter("ignore")
    for trial in range(count):
        rng = np.random.default_rng([seed, trial])
        name = [*contents][rng.integers(len(contents))]
        path, before = folder / name, _peak()
        path.write_bytes(broken(contents[name], rng))
        try:
            count_pixels(path, str(path), 1 << 22)
            assert read_photo(path, str(path)).shape[2] == 3
            yield f"{path.suffix} read"
        except ValueError as error:
            assert str(path) in str(error), f"trial {trial}: {error}"
            yield f"{path.suffix} refused"
        grown = _peak() - before
        assert grown < 200 * _MB, f"trial {trial}, {name}: {grown} bytes"


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


def run(part: Callable[[Path, int, int], Trials], seed: int, count: int) -> str:
    """Run a part; return a line of what became of its trials.

    Raises:
        AssertionError: if a trial broke a promise.
    """
    start, found = time.perf_counter(), collections.Counter[str]()
    with tempfile.TemporaryDirectory(prefix="campaign") as folder:
        for outcome in part(Path(folder), seed, count):
            found[outcome] += 1
    counts = ", ".join(f"{n} {name}" for name, n in sorted(found.items()))
    seconds = time.perf_counter() - start
    return f"{part.__name__}, seed {seed}: {counts} ({seconds:.0f} s)"


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
        count = max(1, int(PARTS[names[name]] * values.scale))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                line = run(names[name], values.seed, count)
            print(line, flush=True)
        except Exception as error:
            failures += 1
            kind = type(error).__name__
            print(f"FAILED {name}, seed {values.seed}: {kind}: {error}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
