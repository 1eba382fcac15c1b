"""Compile dilax for TPUs and GPUs without having one; nothing is run.

    pip install -e '.[tpu]'
    python -m benchmarks.accelerators --topology=v5e:2x2 --what=forward,step,joint
        [--recipe=voc] [--dtype=bfloat16] [--data=2] [--rows=2] [--width=0.25]
        [--shard_params] [--batch=8] [--accumulate=2] [--remat] [--dump=FOLDER]

forward  the recipe's network on one image of --size², on one chip
predict  a prediction tile, its rows divided over all chips
step     training steps: front_end. context, joint, crfrnn: the other stages
crf      a dense CRF of a VOC image, on one chip

Topologies are written as Google does: v5e:1x1 to v5e:16x16, v5p:2x2x1, v6e:2x4,
v4:2x2x1, …; cuda:4 stands for four H100s (`pip install -e '.[cuda]'`). At full width,
TPU steps take minutes to compile. docs/accelerators.md says how to read the table.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"  # only the compilers of other devices are asked

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from tabulate import tabulate

from benchmarks.programs import Program, read_program
from dilax.crf import DenseCRF
from dilax.data import subtract_mean
from dilax.models import apply_over_rows, param_shapes, row_mesh
from dilax.profiling import network_cost
from dilax.profiling.roofline import device_memory, device_peak
from dilax.runtime import jit
from dilax.training import MeshConfig, build_spec
from dilax.training.build import build_model
from dilax.training.estimate import plan_step
from experiments import camvid, cityscapes, kitti, voc

RECIPES = {"voc": voc, "camvid": camvid, "kitti": kitti, "cityscapes": cityscapes}
STAGES = {"step": "front_end", "context": "context", "joint": "joint"}
STAGES |= {"crfrnn": "joint_crfrnn"}
WHAT = (*STAGES, "forward", "predict", "crf")
HEADERS = (
    *("program", "chips", "compiled, s", "GB", "of", "flops ÷ analytic"),
    *("ms", "of peak, %", "all-gather, MB", "all-reduce, MB", "halos, MB"),
)
# The makers' clocks in GHz, which convert the compiler's cycles to time.
CLOCKS = {"TPU v4": 1.05, "TPU v5 lite": 1.5, "TPU v5": 1.75}
# Without autotuning, which would run the candidates, and without libtpu's requests to
# the servers of its cloud.
ENVIRONMENT = {
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What XLA must know about a GPU that is not there.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_block_limit: 65536
  registers_per_core_limit: 65536 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Job(NamedTuple):
    """A program to compile.

    Attributes:
        name: its name in the table.
        function: the jitted function.
        arguments: the shapes and shardings of its arguments.
        flops: analytic number of operations per chip; 0 if unknown.
        chips: number of chips that run it.
        loops: iterations of one run, if it loops.
    """

    name: str
    function: Any
    arguments: tuple
    flops: float = 0
    chips: int = 1
    loops: int = 1


def described(topology: str) -> list[Any]:
    """Return the devices of a topology.

    Raises:
        UsageError: if their compiler is not installed, or does not know them.
    """
    kind, _, shape = topology.partition(":")
    module = "jax_cuda12_plugin" if kind == "cuda" else "libtpu"
    if not importlib.util.find_spec(module):
        extra = "cuda" if kind == "cuda" else "tpu"
        raise app.UsageError(
            f"--topology={topology}: its compiler, {module}, is not installed; "
            f"pip install -e '.[{extra}]'"
        )
    os.environ.update(ENVIRONMENT)
    options = {"platform": "tpu", "topology_name": topology}
    if kind == "cuda":  # slices × hosts × devices
        options = {"platform": "cuda", "target_config": H100}
        options["topology"] = shape if "x" in shape else f"1x1x{shape}"
    try:
        return list(topologies.get_topology_desc(**options).devices)
    except Exception as error:  # of the plug-in's own type
        raise app.UsageError(f"--topology={topology}: {error}") from error


@contextlib.contextmanager
def as_on(devices: list[Any]) -> Iterator[None]:
    """Trace as if on a machine with these devices."""
    platform = "gpu" if devices[0].platform in ("cuda", "gpu") else "tpu"
    with (
        mock.patch.object(jax, "devices", lambda *_: devices),
        mock.patch.object(jax, "local_devices", lambda *_: devices),
        mock.patch.object(jax, "default_backend", lambda: platform),
    ):
        yield


def settings(name: str, flag: Any) -> Any:
    """Return the paper's recipe, changed by the flags."""
    config = RECIPES[name].paper()
    config.model.width_multiplier = flag.width
    mesh = MeshConfig(data=flag.data, rows=flag.rows, shard_params=flag.shard_params)
    return dataclasses.replace(config, dtype=flag.dtype, mesh=mesh)


def step(name: str, what: str, flag: Any, devices: list[Any]) -> Job | None:
    """Return a training step of a stage, or None if the recipe has no such stage."""
    config = settings(name, flag)
    stages = {stage.name: stage for stage in config.stages}
    if not (stage := stages.get(STAGES[what])):
        return None
    given = {"batch_size": flag.batch, "accumulate": flag.accumulate}
    changes = {key: value for key, value in given.items() if value}
    stage = dataclasses.replace(stage, remat=flag.remat or stage.remat, **changes)
    if stage.batch_size % stage.accumulate:
        raise app.UsageError(
            f"a batch of {stage.batch_size} cannot be accumulated in "
            f"{stage.accumulate} parts, as in {name} {stage.name}: add --accumulate=1"
        )
    planned = plan_step(config, build_spec(config), stage)
    chips = planned.times // stage.accumulate * config.mesh.rows
    title = f"{name} {stage.name}, {stage.batch_size} × {stage.crop}"
    flops = planned.flops / chips / stage.accumulate
    arguments = planned.step, planned.arguments, flops, chips, stage.accumulate
    return Job(title, *arguments)


def network(name: str, what: str, flag: Any, devices: list[Any]) -> Job:
    """Return a forward pass, or the prediction of a tile on all chips."""
    config = settings(name, flag)
    spec, stage = build_spec(config), config.stage("joint")
    model = build_model(config, stage, spec.num_classes)
    mesh, chips = None, 1
    shape = (1, flag.size, flag.size, 3)
    if what == "predict":
        chips, shape = len(devices), (1, *(spec.tile or shape[1:3]), 3)
        mesh = row_mesh(chips) if chips > 1 else None

    def apply(params: Any, images: Any) -> Any:
        x = subtract_mean(images, spec.mean)
        if mesh:
            return jax.nn.softmax(apply_over_rows(model, params, x, mesh))
        return jax.nn.softmax(model.apply({"params": params}, x))

    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    place: Any = SingleDeviceSharding(devices[0])
    place = jax.NamedSharding(mesh, jax.P()) if mesh else place
    arguments = placed((param_shapes(model, 3), images), place)
    flops = network_cost(model, shape, ()).forward.flops / chips
    return Job(f"{name} {what} {shape[1:3]}", jit(apply), arguments, flops, chips)


def dense_crf(name: str, what: str, flag: Any, devices: list[Any]) -> Job:
    """Return a dense CRF on one VOC image, traced, with room for the worst case."""
    shapes = (
        jax.ShapeDtypeStruct((375, 500, 21), jnp.float32),
        jax.ShapeDtypeStruct((375, 500, 3), jnp.uint8),
    )
    place = SingleDeviceSharding(devices[0])
    return Job("dense CRF (375, 500)", jit(DenseCRF()), placed(shapes, place))


def placed(tree: Any, sharding: Any) -> Any:
    """Return shapes on these devices."""
    return jax.tree.map(lambda x: x.update(sharding=sharding), tree)


def compiled(job: Job) -> tuple[Program, float, str]:
    """Return the program, the seconds that compiling it takes, and its text."""
    start = time.perf_counter()
    program = job.function.lower(*job.arguments).compile()
    seconds = time.perf_counter() - start
    return read_program(program), seconds, program.as_text()


def row(job: Job, program: Program, seconds: float, device: Any, dtype: str) -> list:
    """Return a row of the table."""
    kind = device.device_kind
    ms = program.cycles / CLOCKS.get(kind, math.inf) / 1e6
    ideal = job.flops * job.loops / device_peak(dtype, kind).flops * 1e3
    halos = program.received("collective-permute") + program.received("all-to-all")
    received = program.received("all-gather"), program.received("all-reduce"), halos
    return [
        job.name,
        job.chips,
        f"{seconds:.0f}",
        f"{program.memory / 1e9:.2f}",
        f"{device_memory(kind) / 1e9:.0f}",
        f"{program.flops / job.flops:.2f}" if job.flops and program.flops else "–",
        f"{ms:.1f}" if ms else "–",
        f"{100 * ideal / ms:.0f}" if ms and ideal else "–",
        *(f"{count / 1e6:.2f}" for count in received),
    ]


def main(argv: list[str]) -> None:
    """Print the table, and what the programs are made of."""
    del argv
    logging.set_verbosity(logging.WARNING)
    flag = flags.FLAGS
    if unknown := {*flag.what} - {*WHAT}:
        raise app.UsageError(f"--what={','.join(unknown)}: is none of {WHAT}")
    devices = described(flag.topology)
    makers: dict[str, Callable] = {"crf": dense_crf, **dict.fromkeys(STAGES, step)}
    rows, notes = [], []
    for what in flag.what:
        for name in flag.recipe if what != "crf" else flag.recipe[:1]:
            with as_on(devices):
                job = makers.get(what, network)(name, what, flag, devices)
                if job is None:
                    continue
                try:
                    program, seconds, text = compiled(job)
                except jax.errors.JaxRuntimeError as error:  # TPUs: beyond the memory
                    notes.append(f"{job.name}: {str(error).splitlines()[0]}")
                    continue
            rows.append(row(job, program, seconds, devices[0], flag.dtype))
            notes.append(f"{job.name}\n{composition(program)}")
            print(*rows[-1], sep="  ", flush=True)
            if flag.dump:
                Path(flag.dump).mkdir(parents=True, exist_ok=True)
                (Path(flag.dump) / f"{name}_{what}.hlo").write_text(text)
    print(
        f"\n{len(devices)} × {devices[0].device_kind}, {flag.dtype}, jax "
        f"{jax.__version__}: compiled, not run; bytes and flops per chip\n"
    )
    print(tabulate(rows, HEADERS, "github", disable_numparse=True))
    print("", *notes, sep="\n")


def composition(program: Program) -> str:
    """Return cycles by operation, the collectives, and the windows of convolutions."""
    total = max(1, program.cycles)
    cycles = [f"{k} {100 * n / total:.0f} %" for k, n in program.shares.most_common(6)]
    kinds: dict[str, list[int]] = {}
    for c in program.collectives:
        kinds.setdefault(f"{c.kind} {c.dtype}", []).append(c.bytes)
    talk = [f"{len(n)} × {k}, {sum(n) / 1e6:.2f} MB" for k, n in kinds.items()]
    windows = [f"{n} × {window}" for window, n in program.convolutions.most_common()]
    lines = {"cycles": cycles, "collectives": talk, "convolutions": windows}
    return "\n".join(f"  {k}: {'; '.join(v)}" for k, v in lines.items() if v)


def define_flags() -> None:
    """Define the flags; not on import, because other benchmarks share names."""
    flags.DEFINE_string("topology", "v5e:2x2", "Devices, such as v5e:2x2 or cuda:4.")
    flags.DEFINE_list(
        "what", ["forward", "step"], f"Programs: any of {', '.join(WHAT)}."
    )
    flags.DEFINE_multi_enum(
        "recipe", ["voc"], [*RECIPES], "Recipe of the networks; can be repeated."
    )
    flags.DEFINE_enum(
        "dtype", "bfloat16", ["bfloat16", "float32"], "Type to compute in."
    )
    flags.DEFINE_integer("size", 900, "Side of forward's image.")
    flags.DEFINE_float("width", 1.0, "Number of channels, as a multiple of VGG-16's.")
    flags.DEFINE_integer("data", 0, "Chips over which examples are spread; 0: all.")
    flags.DEFINE_integer("rows", 1, "Chips over which an image's rows are spread.")
    flags.DEFINE_bool("shard_params", False, "Divide parameters over the chips, too.")
    flags.DEFINE_integer("batch", 0, "Examples per step; 0: the recipe's.")
    flags.DEFINE_integer("accumulate", 0, "Parts of a batch; 0: the recipe's.")
    flags.DEFINE_bool("remat", False, "Recompute activations for the gradients.")
    flags.DEFINE_string("dump", "", "Folder for the programs' text.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
