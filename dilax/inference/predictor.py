"""Images of any size → label maps at full resolution, by the released protocol."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt

from dilax.datasets import DatasetSpec
from dilax.inference.tiles import TileGrid, cut_tiles, join_tiles, plan_tiles
from dilax.input import resize, scaled_size, subtract_mean
from dilax.models import DilatedNet
from dilax.ops import jit, upsample_bilinear

_BUCKET = 64  # output sizes are rounded up to this, so that few shapes are compiled


class Predictor:
    """Predicts label maps: tiles, softmax, tiles side by side, upsampling, argmax.

    The image (resized by `spec.scale`) minus the mean pixel is padded by reflection and
    walked in tiles of `spec.tile`; the softmax of each is put side by side. Networks at
    an eighth of the resolution are upsampled by interpolating probabilities, top-left
    aligned. With `spec.scale` other than 1 the probabilities are then resized to the
    image, linearly, pixel centre on pixel centre.

    Args:
        model: the network.
        params: its parameters, `{"front_end": …, "context": …}`.
        spec: the data set's mean pixel, tile and scale.
        batch_size: tiles that run together.

    Raises:
        ValueError: if a tile is not larger than twice the model's margin, or from a
            call, if an image is not (h, w, channels of the mean pixel) uint8 or uint16.

    Example:
        >>> from dilax.models import FrontEnd, Layer
        >>> model = DilatedNet(FrontEnd(21, (Layer("a", 3, 4), Layer("p", 2))))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        >>> from dilax.datasets import DATASETS
        >>> predictor = Predictor(model, params, DATASETS["voc"])
        >>> predictor(np.zeros((3, 5, 3), np.uint8)).shape
        (3, 5)

    Source: the release's prediction script; paper §5.
    """

    def __init__(
        self, model: DilatedNet, params: Any, spec: DatasetSpec, batch_size: int = 1
    ):
        self.model, self.params, self.spec = model, params, spec
        self.batch_size = batch_size
        plan_tiles((1, 1), spec.tile, model.margin, model.map_stride)
        self._run_tiles = jit(self._tile_probabilities)
        self._run_maps = jit(self._tile_maps)
        self._finish = jit(self._to_pixels, static_argnames="shape")
        self._labels = jit(self._argmax, static_argnames="shape")

    def with_params(self, params: Any) -> "Predictor":
        """The same predictor, already compiled, with other parameters."""
        other = copy.copy(self)
        other.params = params
        return other

    def __call__(self, image: UInt[np.ndarray, "h w c"]) -> Int[np.ndarray, "h w"]:
        """The label map (h, w) int32 of an RGB image."""
        return next(self.stream([image]))

    def stream(self, images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """The label maps of several images, whose tiles share batches."""
        grids = self._run(self._run_tiles, images)
        for image, (_, cells) in zip(images, grids, strict=True):
            shape, placing = self._placing(image.shape)
            labels = np.asarray(self._labels(cells, placing, shape=shape))
            yield labels[: image.shape[0], : image.shape[1]]

    def probabilities(
        self, image: UInt[np.ndarray, "h w c"]
    ) -> Float[np.ndarray, "h w k"]:
        """Class probabilities of every pixel, float32, as a dense CRF takes them."""
        [(_, cells)] = self._run(self._run_tiles, [image])
        shape, placing = self._placing(image.shape)
        full = np.asarray(self._finish(cells, placing, shape=shape))
        return full[: image.shape[0], : image.shape[1]]

    def maps(
        self, images: Sequence[np.ndarray], surroundings: bool = False
    ) -> Iterator[np.ndarray]:
        """The front end's logits over each image: (⌈h/8⌉, ⌈w/8⌉, k) float32.

        Sizes are those of the image resized by `spec.scale`; §5 trains the context
        module on these.

        Args:
            images: as for `stream`.
            surroundings: give the cells of the whole tiles, of which the image's are
                the upper left; the others see its reflection.
        """
        for image, (_, cells) in zip(
            images, self._run(self._run_maps, images), strict=True
        ):
            rows, columns = self.map_size(image.shape, surroundings)
            yield np.asarray(cells[:rows, :columns])

    def map_size(
        self, shape: tuple[int, ...], surroundings: bool = False
    ) -> tuple[int, int]:
        """(rows, columns) of what `maps` gives for an image of `shape`."""
        size, stride = scaled_size(shape, self.spec.scale), self.model.map_stride
        if not surroundings:
            return -(-size[0] // stride), -(-size[1] // stride)
        grid = plan_tiles(size, self.spec.tile, self.model.margin, stride)
        inner = [(t - 2 * grid.margin) // stride for t in grid.tile]
        return grid.rows * inner[0], grid.columns * inner[1]

    def _run(self, network, images) -> list[tuple[tuple[int, int], Any]]:
        """(size in the network's pixels, joined cells) of each image."""
        prepared = [self._prepare(image) for image in images]
        tiles = [cut_tiles(image, grid) for image, grid in prepared]
        outputs = self._in_batches(network, tiles)
        results = []
        for image, grid in prepared:
            own = jnp.stack([next(outputs) for _ in range(len(grid))])
            results.append((image.shape[:2], join_tiles(own, grid)))
        return results

    def _prepare(self, image: np.ndarray) -> tuple[np.ndarray, TileGrid]:
        image = np.asarray(image)
        shape, channels = image.shape, len(self.spec.mean)
        known = image.dtype in (np.uint8, np.uint16)
        if len(shape) != 3 or shape[2] != channels or 0 in shape or not known:
            kind = "uint8 RGB" if channels == 3 else "uint8 or uint16"
            raise ValueError(
                f"an image is (h, w, {channels}) {kind}, not {shape} {image.dtype}"
            )
        image = resize(image, scaled_size(shape, self.spec.scale))
        stride = self.model.map_stride
        grid = plan_tiles(image.shape[:2], self.spec.tile, self.model.margin, stride)
        return image, grid

    def _in_batches(self, network, tiles: list[np.ndarray]) -> Iterator[jax.Array]:
        """Runs tiles of one shape in full batches, the last filled; others alone."""
        same = len({t.shape[1:] for t in tiles}) == 1
        for group in [np.concatenate(tiles)] if same else tiles:
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                lack = self.batch_size - len(batch) if same else 0
                full = np.pad(batch, ((0, lack), (0, 0), (0, 0), (0, 0)))
                yield from network(self.params, full)[: len(batch)]

    def _tile_probabilities(self, params, tiles):
        x = subtract_mean(tiles, self.spec.mean)
        logits: Any = self.model.apply({"params": params}, x)
        return jax.nn.softmax(logits)

    def _tile_maps(self, params, tiles):
        x = subtract_mean(tiles, self.spec.mean)
        return self.model.apply({"params": params}, x, method="maps")

    def _placing(self, shape: tuple[int, ...]):
        """Rounded-up (h, w); at another scale, each axis' ratio and last pixel too."""
        rounded = tuple(-(-n // _BUCKET) * _BUCKET for n in shape[:2])
        if self.spec.scale == 1:
            return rounded, None
        inner = scaled_size(shape, self.spec.scale)
        placing = [(n / m, m - 1) for n, m in zip(shape[:2], inner, strict=True)]
        return rounded, jnp.asarray(placing, jnp.float32)

    def _to_pixels(self, cells, placing, shape):
        if self.model.output_stride > 1:
            stride = self.model.output_stride
            cells = upsample_bilinear(cells[None], stride, "top_left")[0]
        if placing is None:
            lack = [
                (0, max(0, s - n)) for s, n in zip(shape, cells.shape, strict=False)
            ]
            return jnp.pad(cells, (*lack, (0, 0)))[: shape[0], : shape[1]]
        return _resize_linear(cells, placing, shape)

    def _argmax(self, cells, placing, shape):
        return jnp.argmax(self._to_pixels(cells, placing, shape), -1).astype(jnp.int32)


def _resize_linear(pixels, placing, shape):
    """Linear interpolation at (p + ½) / ratio − ½; the image's edges are repeated."""
    for axis, (ratio, last) in enumerate(placing):
        at = jnp.clip((jnp.arange(shape[axis]) + 0.5) / ratio - 0.5, 0, last)
        low = jnp.floor(at).astype(jnp.int32)
        high = jnp.minimum(low + 1, pixels.shape[axis] - 1)
        part = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        below = jnp.take(pixels, low, axis)
        pixels = below + part * (jnp.take(pixels, high, axis) - below)
    return pixels
