"""Images per second of `Predictor` and of PyTorch, with the same network and protocol.

    python -m benchmarks.predict --data_dir=FOLDER [--images=10] [--width=0.25]

Both sides run CamVid's Dilation8 with a quarter of the channels, float32 and random
weights, over tiles of 900×1100 pixels, and upsample the probabilities to the image.
They take turns, image by image, A B A B …; the ratio is a median over the images.
PyTorch uses the memory format that is faster here. Decoding is not timed. The labels of
both are compared.
"""

import dataclasses
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from tabulate import tabulate

from benchmarks.torch_twin import torch_network
from dilax.data import DATASETS, read_pixels, subtract_mean
from dilax.data.pairing import IMAGE_SUFFIXES
from dilax.inference import Predictor, plan_tiles
from dilax.models import dilation8_camvid
from dilax.runtime import jit

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of images, such as CamVid's frames."
)
_IMAGES = flags.DEFINE_integer("images", 10, "Number of images.", lower_bound=1)
_WIDTH = flags.DEFINE_float(
    "width", 0.25, "Number of channels, as a multiple of VGG-16's."
)


@dataclasses.dataclass
class Twin:
    """The same prediction, in PyTorch.

    Attributes:
        torch: the module.
        model: the network in dilax.
        params: its parameters.
        spec: the data set, with its tile size and mean pixel.
        last: whether maps and kernels are stored with channels last.
    """

    torch: object
    model: object
    params: dict
    spec: object
    last: bool = False

    def __post_init__(self):
        torch = self.torch
        form = torch.channels_last if self.last else torch.contiguous_format
        network = torch_network(torch, self.model, self.params).eval()
        self.network, self.form = network.to(memory_format=form), form

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the label map (h, w) of an image."""
        grid = plan_tiles(image.shape[:2], self.spec.tile, self.model.margin, 8)
        with self.torch.inference_mode():
            outputs = iter([self._tile(tile) for tile in grid.cut(image)])
            rows = [
                self.torch.cat([next(outputs) for _ in range(grid.columns)], 3)
                for _ in range(grid.rows)
            ]
            return self._labels(self.torch.cat(rows, 2), image.shape)

    def _tile(self, tile: np.ndarray):
        """Return the class probabilities (1, k, h / 8, w / 8) of a tile."""
        x = self.torch.from_numpy(subtract_mean(tile, self.spec.mean))
        x = x.permute(2, 0, 1)[None].contiguous(memory_format=self.form)
        return self.network(x).softmax(1)

    def _labels(self, cells, shape) -> np.ndarray:
        """Interpolate the cells that the image needs; pixel p is at cell p / 8."""
        rows, columns = (-(-n // 8) + 1 for n in shape[:2])
        cells = cells[:, :, :rows, :columns]
        size = [8 * (n - 1) + 1 for n in cells.shape[2:]]
        lack = [max(0, n - s) for n, s in zip(shape, size, strict=False)]
        interpolate = self.torch.nn.functional.interpolate
        pixels = interpolate(cells, size=size, mode="bilinear", align_corners=True)
        pad = self.torch.nn.functional.pad
        pixels = pad(pixels, (0, lack[1], 0, lack[0]), mode="replicate")
        return pixels[0, :, : shape[0], : shape[1]].argmax(0).numpy()


def _seconds(predict, image: np.ndarray) -> float:
    start = time.perf_counter()
    predict(image)
    return time.perf_counter() - start


def _faster(twins: list[Twin], image: np.ndarray) -> Twin:
    """Return the faster twin; the first run of each does not count."""
    times = [min([_seconds(twin, image) for _ in range(3)][1:]) for twin in twins]
    return twins[times.index(min(times))]


def main(argv: list[str]) -> None:
    """Print the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if not _DATA_DIR.value:
        raise app.UsageError("--data_dir: a folder of images is missing")
    try:
        import torch
    except ImportError as error:
        raise app.UsageError("PyTorch, to compare with, is not installed") from error
    paths = sorted(Path(_DATA_DIR.value).iterdir())
    paths = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    images = [read_pixels(path, 3) for path in paths[: _IMAGES.value]]
    model, spec = dilation8_camvid(width_multiplier=_WIDTH.value), DATASETS["camvid"]
    shape = (1, *(2 * model.margin + 8,) * 2, 3)
    params = jit(model.init)(jax.random.key(0), jnp.zeros(shape))["params"]
    params["front_end"]["final"]["kernel"] *= 100  # so that the image decides labels
    ours = Predictor(model, params, spec)
    agreement = np.mean(ours(images[0]) == Twin(torch, model, params, spec)(images[0]))
    theirs = _faster(
        [Twin(torch, model, params, spec, last) for last in (False, True)], images[0]
    )
    pairs = [(_seconds(ours, image), _seconds(theirs, image)) for image in images]
    columns = [f"{1 / statistics.median(c):.2f}" for c in zip(*pairs, strict=True)]
    ratio = statistics.median(b / a for a, b in pairs)
    form = "channels last" if theirs.last else "channels first"
    print(
        f"\n{len(images)} images of {images[0].shape[1]}x{images[0].shape[0]}, width "
        f"{_WIDTH.value:g}; jax {jax.__version__} on {jax.default_backend()}, torch "
        f"{torch.__version__} ({form}, {torch.get_num_threads()} threads)\n"
    )
    row = [*columns, f"{ratio:.2f}", f"{100 * agreement:.2f} %"]
    headers = ["dilax, images / s", "torch, images / s", "dilax is × faster", "alike"]
    print(tabulate([row], headers, "github", disable_numparse=True))


if __name__ == "__main__":
    app.run(main)
