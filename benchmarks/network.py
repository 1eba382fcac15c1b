"""Whole networks against PyTorch: forward passes, training steps, memory.

    python -m benchmarks.network [--what=forward,step] [--sizes=900] [--crop=628]
        [--batch=1] [--widths=1,0.25] [--dtypes=float32,bfloat16] [--repeats=3]
        [--network=dilation10_cityscapes] [--against=eager,compile] [--nomemory]
        [--output=FILE] [--plot=FILE]

`forward` is the network (by default CamVid's Dilation8: front end, Basic module) of an
image of `--sizes` with margins, softmax and upsampling; `step` trains its front end,
`joint` all of it, on crops of `--crop` with SGD and momentum, dropout, weight decay and
a cross-entropy at an eighth of the resolution, with the step that training uses.
PyTorch runs the same network with the same weights, channels last, on as many threads.
All take turns, A B C A B C …; ratios are medians over consecutive runs. `apart` is the
largest difference of probabilities, or of losses (dropout differs). Peak memory is that
of the allocators on a GPU; on a CPU, each side runs in a process of its own, and what
it uses before it builds the network is subtracted.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# PyTorch needs memory of the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from benchmarks.comparison import machine, plot, table
from benchmarks.torch_twin import torch_network
from dilax.data import DATASETS, DatasetSpec
from dilax.models import DilatedNet
from dilax.ops import upsample_bilinear
from dilax.runtime import jit
from dilax.training import OptimizerConfig, StageConfig
from dilax.training.step import init_state, jit_train_step, split_params
from dilax.weights import RELEASED

_CPUINFO = Path("/proc/cpuinfo")  # of Linux
_GPU_RUNS = 10  # that one clock times on a GPU


class Case(NamedTuple):
    """What to run (`"forward"`, `"step"`, `"joint"`), with which network, and how."""

    what: str
    width: float
    dtype: str
    size: int
    batch: int
    network: str = "dilation8_camvid"
    remat: bool = False

    @property
    def model(self) -> DilatedNet:
        """The network; for a step, its front end.

        `joint` includes upsampling where the network does that itself.
        """
        net = RELEASED[self.network].build(
            width_multiplier=self.width, dtype=jnp.dtype(self.dtype)
        )
        net = net.clone(front_end=net.front_end.clone(remat=self.remat))
        if self.what == "joint":
            return net
        net = net.clone(upsample=False)
        return net.clone(context=None) if self.what == "step" else net

    @property
    def spec(self) -> DatasetSpec:
        """The data set that the network is for."""
        return DATASETS[RELEASED[self.network].dataset]

    @property
    def title(self) -> str:
        """The name in tables and plots."""
        usual = self.network == Case._field_defaults["network"]
        network = "" if usual else f"{self.network} "
        return f"{network}{self.what} {self.size}²{', remat' * self.remat}"

    @property
    def images(self) -> np.ndarray:
        """Random images (b, h, w, 3), uint8."""
        shape = (self.batch, self.size, self.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    @property
    def labels(self) -> np.ndarray:
        """Random labels, uint8: (b, h / 8, w / 8), or (b, h, w) with upsampling."""
        model = self.model
        side = (self.size - 2 * model.margin) // (1 if model.upsample else 8)
        shape = (self.batch, side, side)
        return np.random.default_rng(1).integers(0, model.num_classes, shape, np.uint8)


class Runner(NamedTuple):
    """One side of a comparison: starts a run, and waits for its result."""

    start: Callable[[], Any]
    fetch: Callable[[Any], np.ndarray]

    def __call__(self) -> np.ndarray:
        """Run once, and return the probabilities of cells, or the loss."""
        return self.fetch(self.start())

    def seconds(self) -> float:
        """Time a run; on a GPU several in a row, so that none waits for the host."""
        runs = 1 if jax.default_backend() == "cpu" else _GPU_RUNS
        begin = time.perf_counter()
        for _ in range(runs):
            out = self.start()
        self.fetch(out)
        return (time.perf_counter() - begin) / runs


def random_params(model: DilatedNet) -> Any:
    """Return parameters for which the output depends on the image."""
    shape = (1, *(2 * model.margin + 8,) * 2, 3)
    params = jit(model.init)(jax.random.key(0), jnp.zeros(shape))["params"]
    params["front_end"]["final"]["kernel"] *= 10
    return params


def dilax_runner(case: Case, params: Any) -> Runner:
    """Return the run in dilax."""
    model = case.model
    if case.what == "forward":
        x = jnp.asarray(case.images, jnp.float32) - jnp.array(case.spec.mean)

        @jit
        def forward(params, x):
            cells = jax.nn.softmax(model.apply({"params": params}, x))
            return cells, upsample_bilinear(cells, 8)

        return Runner(
            lambda: forward(params, x),
            lambda out: np.asarray(jax.block_until_ready(out)[0]),
        )
    stage = StageConfig(
        "benchmark", trains="all", optimizer=OptimizerConfig(learning_rate=1e-5)
    )
    trained, frozen = split_params(params, stage)
    state = jax.tree.map(jnp.copy, init_state(trained, stage))
    step = jit_train_step(model, stage, case.spec, 0)
    batch = {"image": jnp.asarray(case.images), "label": jnp.asarray(case.labels)}

    def start() -> Any:
        nonlocal state
        state, metrics = step(state, frozen, batch, None)
        return metrics, state

    return Runner(start, lambda out: np.asarray(jax.block_until_ready(out)[0]["loss"]))


def torch_runner(case: Case, params: Any, compiled: bool) -> Runner:
    """Return the run in PyTorch."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network: Any = torch_network(torch, case.model, params)
    network = network.to(device, memory_format=torch.channels_last)
    images = torch.from_numpy(np.ascontiguousarray(case.images[..., ::-1]))
    images = images.to(device).permute(0, 3, 1, 2)
    mean = torch.tensor(case.spec.mean, device=device)[:, None, None]
    functional = torch.nn.functional
    half = case.dtype == "bfloat16"
    cast = torch.autocast(device, torch.bfloat16, enabled=half)
    run = torch.compile(network) if compiled else network
    x = (images.flip(1) if case.what == "forward" else images).float() - mean
    x = x.contiguous(memory_format=torch.channels_last)
    if case.what == "forward":
        network.eval()

        def forward() -> Any:
            with torch.inference_mode(), cast:
                cells = run(x).float().softmax(1)
                functional.interpolate(cells, scale_factor=8, mode="bilinear")
            return cells

        return Runner(forward, lambda out: out.permute(0, 2, 3, 1).cpu().numpy())
    optimizer = torch.optim.SGD(
        network.parameters(), 1e-5, momentum=0.9, weight_decay=5e-4
    )
    labels = torch.from_numpy(case.labels.astype(np.int64)).to(device)

    def step() -> Any:
        optimizer.zero_grad()
        with cast:
            logits = run(x)
        loss = functional.cross_entropy(logits.float(), labels, ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Runner(step, lambda out: out.cpu().numpy())


def runner(side: str, case: Case, params: Any) -> Runner:
    """Return the run of a side: `"dilax"`, `"eager"`, or `"compile"`."""
    if side == "dilax":
        return dilax_runner(case, params)
    return torch_runner(case, params, side == "compile")


def measure(case: Case, sides: list[str], repeats: int) -> dict[str, Any]:
    """Return the seconds of all sides, and how much their first outputs differ."""
    params = random_params(case.model)
    runners, first, outputs, memory = {}, {}, {}, {}
    for side in sides:
        start = time.perf_counter()
        runners[side] = runner(side, case, params)
        outputs[side] = runners[side]()
        first[side] = time.perf_counter() - start
        runners[side].seconds()
        if jax.default_backend() == "gpu":
            memory[side] = _allocated(side)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in runners.items():
            seconds[side].append(run.seconds())
    ours = outputs["dilax"]
    return {
        **case._asdict(),
        "title": case.title,
        "seconds": seconds,
        "first": first,
        "ratios": {s: median_ratio(seconds["dilax"], seconds[s]) for s in sides[1:]},
        "apart": {s: float(abs(ours - outputs[s]).max()) for s in sides[1:]},
        "memory": memory,
    }


def _allocated(side: str) -> float:
    """Return the peak of a side's allocations on the GPU so far, in bytes."""
    if side == "dilax":
        return float((jax.devices()[0].memory_stats() or {})["peak_bytes_in_use"])
    import torch

    most = float(torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    return most


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def in_child(case: Case, sides: list[str], repeats: int) -> dict[str, Any]:
    """Call `measure` in a new process; on a CPU, add the peak memory."""
    result = _child("measure", case, sides, repeats)
    if flags.FLAGS.memory and jax.default_backend() == "cpu" and _CPUINFO.exists():
        result["memory"] = {s: _child("peak_memory", case, s) for s in sides[:2]}
    return result


def _child(function: str, *arguments: Any) -> Any:
    """Call a function of this module in a new process."""
    command = [sys.executable, "-m", "benchmarks.network"]
    command.append(f"--child={json.dumps([function, *arguments])}")
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def peak_memory(case: Case, side: str) -> float:
    """Return the peak memory, in bytes, of a network and two runs, once initialized."""
    if side != "dilax":
        import torch

        torch.zeros(1)
    before = process_memory("VmRSS")
    params = random_params(case.model) if side == "dilax" else None
    run = runner(side, case, jax.block_until_ready(params))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what it holds
    for _ in range(2):
        run()
    return process_memory("VmHWM") - before


def process_memory(field: str) -> float:
    """Return a memory figure of this process, in bytes, from Linux's `/proc`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(dict(line.split(":", 1) for line in lines)[field].split()[0])


def cases() -> list[Case]:
    """Return the cases that the flags ask for."""
    crops = [flags.FLAGS.crop]
    forward = [int(side) for side in flags.FLAGS.sizes]
    sizes = {"forward": forward, "step": crops, "joint": crops}
    unknown = {*flags.FLAGS.what} - {*sizes}
    if unknown:
        raise app.UsageError(f"--what={','.join(unknown)}: is none of {[*sizes]}")
    return [
        Case(
            what,
            float(width),
            dtype,
            size,
            1 if what == "forward" else flags.FLAGS.batch,
            flags.FLAGS.network,
            flags.FLAGS.remat,
        )
        for what in flags.FLAGS.what
        for size in sizes[what]
        for width in flags.FLAGS.widths
        for dtype in flags.FLAGS.dtypes
    ]


def define_flags() -> None:
    """Define the flags; not on import, because other benchmarks share names."""
    flags.DEFINE_list("what", ["forward", "step"], "Any of forward, step, joint.")
    flags.DEFINE_enum(
        "network", Case._field_defaults["network"], [*RELEASED], "Which network."
    )
    flags.DEFINE_bool("remat", False, "Recompute activations for the gradients.")
    flags.DEFINE_list("sizes", ["900"], "Sides of forward's images, in pixels.")
    flags.DEFINE_integer("crop", 628, "Side of the crops that steps train on.")
    flags.DEFINE_integer("batch", 1, "Crops per step.", lower_bound=1)
    flags.DEFINE_list(
        "widths", ["1", "0.25"], "Numbers of channels, as multiples of VGG-16's."
    )
    flags.DEFINE_list("dtypes", ["float32"], "Any of float32, bfloat16.")
    flags.DEFINE_list("against", ["eager"], "PyTorch's sides: any of eager, compile.")
    flags.DEFINE_integer("repeats", 3, "Runs that count.", lower_bound=1)
    flags.DEFINE_bool("memory", True, "Measure peak memory, too.")
    flags.DEFINE_string("output", None, "JSON file for the figures.")
    flags.DEFINE_string("plot", None, "Picture of the figures (needs matplotlib).")
    flags.DEFINE_string("child", None, "What this process is to do for another.")


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if flags.FLAGS.child:
        function, case, *rest = json.loads(flags.FLAGS.child)
        print(json.dumps(globals()[function](Case(*case), *rest)))
        return
    results, sides = [], ["dilax", *flags.FLAGS.against]
    for case in tqdm(cases(), unit="case"):
        results.append(in_child(case, sides, flags.FLAGS.repeats))
        if flags.FLAGS.output:  # after each case, in case the run is stopped early
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
