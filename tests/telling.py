"""A predictor whose predictions are known, for tests of what becomes of them."""

import numpy as np

from dilax.data import DatasetSpec, colour_map
from dilax.inference import Predictor
from dilax.models import DilatedNet, FrontEnd


class Telling(Predictor):
    """Predicts what the red channels of the images say."""

    def __init__(self, spec, batch_size=1):
        self.spec, self.batch_size = spec, batch_size

    def stream(self, images):
        return (image[..., 0].astype(np.int32) for image in images)


def largest_channel(**options):
    """Names each pixel for the largest of its B, G and R, with odds of 2^value."""
    spec = DatasetSpec("bgr", ("b", "g", "r"), colour_map(3), (0.0, 0.0, 0.0))
    kernel = np.log(2) * np.eye(3, dtype="f4")[None, None]
    params = {"front_end": {"final": {"kernel": kernel, "bias": np.zeros(3, "f4")}}}
    return Predictor(DilatedNet(FrontEnd(3, ())), params, spec, **options)


def sample(label, prediction, name):
    """A sample of which `Telling` predicts `prediction`."""
    image = np.repeat(np.asarray(prediction, np.uint8)[..., None], 3, -1)
    return {"image": image, "label": label, "id": name}


def blocks(values, shape, seed, size=4):
    """Values drawn at random for every block of size × size pixels."""
    rng = np.random.default_rng(seed)
    rows, columns = (-(-n // size) for n in shape)
    drawn = rng.choice(np.asarray(values), (rows, columns))
    return drawn.repeat(size, 0).repeat(size, 1)[: shape[0], : shape[1]]


def corrupted(label, classes, seed):
    """The label moved by three pixels, with classes drawn instead of half its blocks.

    They are drawn where it says nothing, too.
    """
    drawn = blocks(classes, label.shape, seed)
    replaced = blocks([False, True], label.shape, seed + 1)
    moved = np.roll(label, 3, 1)
    return np.where(replaced | (moved == 255), drawn, moved).astype(np.uint8)
