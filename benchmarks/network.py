"""Whole networks against PyTorch: forward passes, training steps, memory.

    python -m benchmarks.network [--what=forward,step] [--sizes=900] [--crop=628]
        [--batch=1] [--widths=1,0.25] [--dtypes=float32,bfloat16] [--repeats=3]
        [--against=eager,compile] [--nomemory] [--output=FILE] [--plot=FILE]

`forward` is CamVid's Dilation8 (front end, Basic module) of an image of `--sizes` with
margins, softmax and upsampling; `step` trains its front end on crops of `--crop` with
SGD and momentum, dropout, weight decay and a cross-entropy at an eighth of the
resolution, by the step that training runs. PyTorch runs the same network from the same
weights, channels last, on as many threads. All take turns, A B C A B C …; the median
of the ratios of neighbours counts, as machines are noisy. `apart` is the largest
difference of probabilities, or of losses (dropout differs). Peak memory is of processes
of their own, beyond what they held before they built anything.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is here too

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tabulate import tabulate
from tqdm import tqdm

from benchmarks.torch_twin import torch_network
from dilax.datasets import DATASETS
from dilax.models import DilatedNet, dilation8_camvid
from dilax.ops import jit, upsample_bilinear
from dilax.training import OptimizerConfig, StageConfig
from dilax.training.step import init_state, jit_train_step, split_params

SPEC = DATASETS["camvid"]
_CPUINFO = Path("/proc/cpuinfo")  # of Linux


class Case(NamedTuple):
    """What is run: `"forward"` or `"step"`, at which width, type, size and batch."""

    what: str
    width: float
    dtype: str
    size: int
    batch: int

    @property
    def model(self) -> DilatedNet:
        """Dilation8, or its front end, which a step trains."""
        dtype = jnp.dtype(self.dtype)
        net = dilation8_camvid(width_multiplier=self.width, dtype=dtype)
        return net if self.what == "forward" else net.clone(context=None)

    @property
    def images(self) -> np.ndarray:
        """(b, h, w, 3) uint8."""
        shape = (self.batch, self.size, self.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    @property
    def labels(self) -> np.ndarray:
        """(b, h / 8, w / 8) uint8, of the inside."""
        side = (self.size - 2 * self.model.margin) // 8
        shape = (self.batch, side, side)
        return np.random.default_rng(1).integers(0, 11, shape, np.uint8)


def random_params(model: DilatedNet) -> Any:
    """Parameters of which the image decides the output."""
    shape = (1, *(2 * model.margin + 8,) * 2, 3)
    params = jit(model.init)(jax.random.key(0), jnp.zeros(shape))["params"]
    params["front_end"]["final"]["kernel"] *= 10
    return params


def dilax_runner(case: Case, params: Any) -> Callable[[], np.ndarray]:
    """A function that runs a case once: to the probabilities of cells, or the loss."""
    model = case.model
    if case.what == "forward":
        x = jnp.asarray(case.images, jnp.float32) - jnp.asarray(SPEC.mean)

        @jit
        def forward(params, x):
            cells = jax.nn.softmax(model.apply({"params": params}, x))
            return cells, upsample_bilinear(cells, 8)

        return lambda: np.asarray(jax.block_until_ready(forward(params, x))[0])
    stage = StageConfig(
        "benchmark", "all", optimizer=OptimizerConfig(learning_rate=1e-5)
    )
    trained, frozen = split_params(params, stage)
    state = jax.tree.map(jnp.copy, init_state(trained, stage))
    step = jit_train_step(model, stage, SPEC, seed=0)
    batch = {"image": jnp.asarray(case.images), "label": jnp.asarray(case.labels)}

    def run() -> np.ndarray:
        nonlocal state
        state, metrics = step(state, frozen, batch, None)
        return np.asarray(jax.block_until_ready((metrics, state))[0]["loss"])

    return run


def torch_runner(case: Case, params: Any, compiled: bool) -> Callable[[], np.ndarray]:
    """The same in PyTorch."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network: Any = torch_network(torch, case.model, params)
    network = network.to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(np.ascontiguousarray(case.images[..., ::-1]))
    images = images.to(device).permute(0, 3, 1, 2)
    mean = torch.tensor(SPEC.mean, device=device)[:, None, None]
    functional = torch.nn.functional
    half = case.dtype == "bfloat16"
    cast = torch.autocast(device, torch.bfloat16, enabled=half)
    run = torch.compile(network) if compiled else network
    x = (images if case.what == "step" else images.flip(1)).float() - mean
    x = x.contiguous(memory_format=torch.channels_last)
    if case.what == "forward":
        network.eval()

        def forward() -> np.ndarray:
            with torch.inference_mode(), cast:
                cells = run(x).float().softmax(1)
                functional.interpolate(cells, scale_factor=8, mode="bilinear")
            return cells.permute(0, 2, 3, 1).cpu().numpy()

        return forward
    optimizer = torch.optim.SGD(
        network.parameters(), 1e-5, momentum=0.9, weight_decay=5e-4
    )
    labels = torch.from_numpy(case.labels.astype(np.int64)).to(device)

    def step() -> np.ndarray:
        optimizer.zero_grad()
        with cast:
            logits = run(x)
        loss = functional.cross_entropy(logits.float(), labels, ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss.detach().cpu().numpy()

    return step


def runner(side: str, case: Case, params: Any) -> Callable[[], np.ndarray]:
    """Of `"dilax"`, `"eager"` or `"compile"`."""
    if side == "dilax":
        return dilax_runner(case, params)
    return torch_runner(case, params, side == "compile")


def measure(case: Case, sides: list[str], repeats: int) -> dict[str, Any]:
    """Seconds of all sides, and how far their first outputs are apart."""
    params = random_params(case.model)
    runners, first, outputs = {}, {}, {}
    for side in sides:
        start = time.perf_counter()
        runners[side] = runner(side, case, params)
        outputs[side] = runners[side]()
        first[side] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in runners.items():
            start = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - start)
    ours = outputs["dilax"]
    return {
        **case._asdict(),
        "seconds": seconds,
        "first": first,
        "ratios": {s: _ratio(seconds["dilax"], seconds[s]) for s in sides[1:]},
        "apart": {s: float(abs(ours - outputs[s]).max()) for s in sides[1:]},
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_memory(side: str, case: Case) -> float:
    """Bytes that a side takes for a case, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.network"]
    command.append(f"--alone={json.dumps([side, *case])}")
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.splitlines()[-1])


def alone(side: str, case: Case) -> float:
    """Peak memory in bytes of this process, beyond what it held before."""
    if side != "dilax":
        import torch

        torch.zeros(1)
    before = _memory("VmRSS")
    params = random_params(case.model) if side == "dilax" else None
    run = runner(side, case, params)
    for _ in range(2):
        run()
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    """Bytes, of Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(dict(line.split(":", 1) for line in lines)[field].split()[0])


def table(results: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    rows = []
    for result in results:
        sides = list(result["seconds"])
        row = [f"{result['what']} {result['size']}²", f"{result['width']:g}"]
        row += [result["batch"], result["dtype"]]
        row += [_spread(result["seconds"][side]) for side in sides]
        row += [f"{result['ratios'][side]:.2f}" for side in sides[1:]]
        memory = result.get("memory", {})
        row += [f"{memory[s] / 1e9:.2f}" if s in memory else "" for s in sides[:2]]
        row += [f"{max(result['apart'].values(), default=0):.0e}"]
        rows.append(row)
    names = ["dilax", *(f"PyTorch {s}" for s in list(results[0]["seconds"])[1:])]
    headers = ["", "width", "batch", "type", *(f"{n}, s" for n in names)]
    headers += [f"dilax / {n}" for n in names[1:]]
    headers += [*(f"{n}, GB" for n in names[:2]), "apart"]
    return tabulate(rows, headers, "github", disable_numparse=True)


def _spread(seconds: list[float]) -> str:
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{middle:.3f} ({low:.3f} – {high:.3f})"


def plot(results: list[dict[str, Any]], path: str) -> None:
    """Bars of the time that dilax takes, PyTorch's being 1."""
    from matplotlib import pyplot

    sides = list(results[0]["ratios"])
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.6 * len(results)))
    for i, side in enumerate(sides):
        places = [n + (i + 0.5) / len(sides) for n in range(len(results))]
        lengths = [result["ratios"][side] for result in results]
        bars = axes.barh(places, lengths, 0.8 / len(sides), label=f"PyTorch {side}")
        axes.bar_label(bars, fmt="%.2f", padding=3)
    names = [
        f"{r['what']} {r['size']}², width {r['width']:g}, {r['dtype']}" for r in results
    ]
    axes.set_yticks([n + 0.5 for n in range(len(results))], names)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("time of dilax, in times of PyTorch")
    axes.legend()
    figure.savefig(path, bbox_inches="tight", dpi=120)


def machine() -> str:
    """What runs this, for the table."""
    import torch

    names = [line.split(":")[1] for line in _cpu_lines() if "model name" in line]
    cpu = names[0].strip() if names else platform.processor()
    gpu = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    return (
        f"{cpu}, {os.cpu_count()} cores{''.join(', ' + name for name in gpu)}; "
        f"Python {platform.python_version()}, jax {jax.__version__}, "
        f"torch {torch.__version__}"
    )


def _cpu_lines() -> list[str]:
    return _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []


def cases() -> list[Case]:
    """What the flags ask for."""
    sizes = {"forward": [int(s) for s in flags.FLAGS.sizes], "step": [flags.FLAGS.crop]}
    unknown = {*flags.FLAGS.what} - {*sizes}
    if unknown:
        raise app.UsageError(f"--what={','.join(unknown)}: is none of forward, step")
    return [
        Case(
            what,
            float(width),
            dtype,
            size,
            1 if what == "forward" else flags.FLAGS.batch,
        )
        for what in flags.FLAGS.what
        for size in sizes[what]
        for width in flags.FLAGS.widths
        for dtype in flags.FLAGS.dtypes
    ]


def define_flags() -> None:
    """Defines them; not on import, as other benchmarks share names."""
    flags.DEFINE_list("what", ["forward", "step"], "Of forward, step.")
    flags.DEFINE_list("sizes", ["900"], "Sides of forward's images, in pixels.")
    flags.DEFINE_integer("crop", 628, "Side of the crops that steps train on.")
    flags.DEFINE_integer("batch", 1, "Crops of a step.", lower_bound=1)
    flags.DEFINE_list("widths", ["1", "0.25"], "Shares of VGG-16's channels.")
    flags.DEFINE_list("dtypes", ["float32"], "Of float32, bfloat16.")
    flags.DEFINE_list("against", ["eager"], "Of eager, compile (PyTorch's).")
    flags.DEFINE_integer("repeats", 3, "Runs that count.", lower_bound=1)
    flags.DEFINE_bool("memory", True, "Measure peak memory, too.")
    flags.DEFINE_string("output", None, "Where to write the figures as JSON.")
    flags.DEFINE_string("plot", None, "Where to draw them (needs matplotlib).")
    flags.DEFINE_string("alone", None, "Of one side and case: its peak memory.")


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if flags.FLAGS.alone:
        side, *case = json.loads(flags.FLAGS.alone)
        print(alone(side, Case(*case)))
        return
    results, sides = [], ["dilax", *flags.FLAGS.against]
    for case in tqdm(cases(), unit="case"):
        result = measure(case, sides, flags.FLAGS.repeats)
        if flags.FLAGS.memory and jax.default_backend() == "cpu" and _CPUINFO.exists():
            result["memory"] = {side: peak_memory(side, case) for side in sides[:2]}
        results.append(result)
        if flags.FLAGS.output:  # after each, for who is cut short
            record = {"machine": machine(), "results": results}
            Path(flags.FLAGS.output).write_text(
                json.dumps(record, indent=1) + "\n", "utf-8"
            )
    print(f"\n{machine()}\n\n{table(results)}")
    if flags.FLAGS.plot:
        plot(results, flags.FLAGS.plot)


if __name__ == "__main__":
    define_flags()
    app.run(main)
