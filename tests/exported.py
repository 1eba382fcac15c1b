"""What the tests of exports share: small networks, their parameters and images."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import export
from networks import SLIM, TINY, apply, random_params

from dilax.data import DATASETS, subtract_mean
from dilax.inference.export import export_model, sizes_taken
from dilax.models import (
    BASIC,
    PLAIN_STEM,
    Backbone,
    ContextModule,
    DilatedNet,
    FrontEnd,
    ResNet,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
    named_network,
    resnet_blocks,
)


class Own(Backbone):
    """A network of layers of another library, without a dtype."""

    num_classes: int
    output_stride = 2

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Conv(self.num_classes, (3, 3), strides=2, name="final")(x / 64)


CONTEXT = BASIC[:3]
RELEASED = {
    "voc": dilation8_voc(**SLIM),
    "camvid": dilation8_camvid(**SLIM),
    "kitti": dilation7_kitti(**SLIM),
    "cityscapes": dilation10_cityscapes(**SLIM),
}
SMALL = {
    "front end": DilatedNet(FrontEnd(5, TINY)),
    "same": DilatedNet(
        FrontEnd(5, TINY, padding="same"), ContextModule(5, CONTEXT), True
    ),
    "reflect": DilatedNet(
        FrontEnd(5, TINY, padding="reflect"), ContextModule(5, CONTEXT)
    ),
    "entry": DilatedNet(FrontEnd(5, TINY), ContextModule(5, CONTEXT, padding="entry")),
    "resnet": DilatedNet(
        ResNet(
            5, resnet_blocks((1, 1, 1, 0)), PLAIN_STEM, width_multiplier=1 / 16, duc=4
        )
    ),
    "none": DilatedNet(FrontEnd(5, TINY), ContextModule(5, CONTEXT, padding="none")),
    "own": DilatedNet(Own(5), upsample=True),
}
NETWORKS = RELEASED | SMALL
# Their coarsest maps are at a 32nd of the image, their scores at every pixel.
ENLARGING = {
    name: DilatedNet(named_network(name, 5, head_channels=16, width_multiplier=1 / 32))
    for name in ("fcn8s", "segnet")
}


def spec_of(name, channels=3):
    """The facts of the network's data set, or of one with its number of classes."""
    if name in RELEASED:
        return DATASETS[name]
    voc, count = DATASETS["voc"], (NETWORKS | ENLARGING)[name].num_classes
    return dataclasses.replace(
        voc,
        classes=voc.classes[:count],
        palette=voc.palette[:count],
        mean=(*voc.mean, 90.0)[:channels],
        tile=None,
    )


def params_of(model, channels=3):
    size = _side(model, 2)
    params = random_params(model, jnp.zeros((1, size, size, channels)))
    if isinstance(model.front_end, FrontEnd):  # scores that a softmax can tell apart
        params["front_end"][model.front_end.final_name]["kernel"] *= 1e-2
    return params


def images(model, batch, rows, columns, channels=3, dtype=np.uint8):
    """Images with so many cells more than the fewest that the network takes."""
    shape = (batch, _side(model, rows), _side(model, columns), channels)
    rng = np.random.default_rng(0)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def direct(model, params, spec, images):
    """The logits as dilax itself computes them."""
    return apply(model, params, subtract_mean(images, spec.mean))


def write(tmp_path, name, output="logits", channels=3, **options):
    model = (NETWORKS | ENLARGING)[name]
    params, spec = params_of(model, channels), spec_of(name, channels)
    path = tmp_path / "network.zip"
    assert export_model(model, params, spec, path, output, **options) == path
    return model, params, spec, path


def load(path):
    """What stands in a file: the network, its weights, and what is said of it."""
    file = np.load(path)
    network = export.deserialize(bytearray(file["network.jax_export"]))
    weights = {n: file[n] for n in file.files if n.startswith("weights/")}
    return network, weights, json.loads(file["about.json"])


def _side(model, cells):
    sizes = sizes_taken(model)
    return 2 * sizes.margin + sizes.stride * (sizes.least + cells)
