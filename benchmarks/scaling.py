"""On paper: the recipes of the paper on 1 to 256 devices.

    python -m benchmarks.scaling [--devices=1,8,64] [--recipes=cityscapes]

For each stage and number of devices the mesh that would be fastest, from the layers'
arithmetic (see `dilax.profiling.roofline`). Nothing is run; what the compiler
makes of such meshes is compared with these figures in tests/many_devices.
"""

import jax.numpy as jnp
from absl import app, flags, logging
from tabulate import tabulate

from dilax.profiling import NetworkCost, network_cost
from dilax.profiling.roofline import H100, scaling_rows
from dilax.training import Config, StageConfig, build_spec
from dilax.training.config import build_model
from experiments import camvid, cityscapes, kitti, voc

RECIPES = {
    "voc": voc.paper,
    "camvid": camvid.paper,
    "kitti": kitti.paper,
    "cityscapes": cityscapes.paper,
}
HEADERS = (
    *("devices", "data × rows", "step, ms", "memory, GB", "parts"),
    *("gradients, MB", "halos, MB"),
)


def example_cost(config: Config, stage: StageConfig) -> NetworkCost:
    """Of one example of a stage, in bfloat16."""
    spec = build_spec(config)
    model = build_model(config, stage, spec.num_classes)
    trained = ["front_end", "context"] if stage.trains == "all" else [stage.trains]
    shape = (1, *stage.crop, len(spec.mean))
    if stage.inputs == "maps":
        shape = (1, *(c // model.map_stride for c in stage.crop), spec.num_classes)
    return network_cost(model, shape, trained, stage.inputs)


def stages(config: Config) -> list[StageConfig]:
    """Those whose steps train the network."""
    return [stage for stage in config.stages if stage.trains != "crf"]


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    logging.set_verbosity(logging.WARNING)
    counts = [int(n) for n in flags.FLAGS.devices]
    print(
        f"{H100.name}, {H100.inside / 1e9:.0f} GB/s to devices of the same host "
        f"({H100.per_host}), {H100.between / 1e9:.0f} GB/s beyond, "
        f"{H100.memory / 1e9:.0f} GB; {jnp.dtype(jnp.bfloat16).name}"
    )
    for name in flags.FLAGS.recipes:
        config = RECIPES[name]()
        config.dtype = "bfloat16"
        for stage in stages(config):
            one = example_cost(config, stage)
            rows = scaling_rows(one, stage.batch_size, counts)
            size = f"{stage.crop[0]}×{stage.crop[1]}"
            kind = " of whole maps" if stage.inputs == "maps" else ""
            print(f"\n### {name}, {stage.name}: {stage.batch_size} × {size}{kind}\n")
            print(tabulate(rows, HEADERS, "github", disable_numparse=True))


def define_flags() -> None:
    """Defines them; not on import, as other benchmarks share names."""
    flags.DEFINE_list("devices", ["1", "4", "8", "32", "64", "256"], "How many.")
    flags.DEFINE_multi_enum("recipes", [*RECIPES], [*RECIPES], "Which.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
