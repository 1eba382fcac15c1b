"""Images of any size → label maps at full resolution, by the released protocol (§5).

A CRF may follow the network, on whole images at full resolution. A dense CRF takes
probabilities. A CRF-RNN takes their logarithms, which differ from the logits by a
constant per pixel, to which its softmax is invariant.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from dilax.crf import CRFRNN
from dilax.crf.dense_crf import MIN_PROBABILITY
from dilax.data import DatasetSpec, scaled_size, subtract_mean
from dilax.data.pixels import as_uint8
from dilax.inference.cells import (
    BLOCK,
    Cells,
    View,
    cell_bands,
    check_image,
    pixel_bands,
    read_labels,
    read_probabilities,
)
from dilax.inference.photos import as_image
from dilax.inference.tiles import BlendGrid, TileGrid, plan_blend, plan_tiles
from dilax.models import DilatedNet, apply_over_rows, row_mesh
from dilax.ops import upsample_bilinear
from dilax.runtime import jit

CRF = Callable[[np.ndarray, np.ndarray], Any] | CRFRNN
Mode = Literal["tiles", "whole", "blend"]


def log_probabilities(logits: jax.Array, stride: int) -> jax.Array:
    """Return log-probabilities of the pixels from the network's logits (b, h, w, k).

    Args:
        logits: of cells that are `stride` pixels apart.
        stride: if above 1, the probabilities are upsampled as in the predictor,
            top-left aligned.
    """
    probabilities = jax.nn.softmax(logits)
    if stride > 1:
        probabilities = upsample_bilinear(probabilities, stride)
    return _logarithms(probabilities)


def _logarithms(probabilities: jax.typing.ArrayLike) -> jax.Array:
    return jnp.log(jnp.maximum(probabilities, MIN_PROBABILITY))


class Predictor:
    """Predicts label maps: tiles, softmax, tiles side by side, upsampling, argmax.

    The image (resized by `spec.scale`) minus the mean pixel is padded by reflection and
    cut into tiles of `spec.tile`; their softmax outputs are put side by side. The
    probabilities of networks at an eighth of the resolution are upsampled by
    interpolation, top-left aligned. If `spec.scale` is not 1, probabilities are then
    resized to the image, linearly, with pixel centres aligned.

    Tiles and bands of pixels are computed one at a time: only the image, a row of
    tiles, and the label map are in memory. Each tile shape is compiled once, for images
    of all sizes.

    Args:
        model: the network.
        params: its parameters, `{"front_end": …, "context": …}`, and those of a
            CRF-RNN.
        spec: the data set's mean pixel, tile, and scale.
        batch_size: number of tiles that run together.
        mode: `"tiles"` is the release's protocol (if `spec.tile` is None, the tile is
            the whole image); `"whole"` predicts the whole image at once and compiles
            for every size, rounded up to 4 cells; `"blend"` blends overlapping tiles,
            without seams and in bounded memory.
        scales: average the probabilities of the image at these scales, which multiply
            `spec.scale`.
        mirror: average with the probabilities of the mirrored image.
        overlap: of `"blend"`: fraction of a tile's interior that the next tile shares.
        crf: refines the probabilities of whole images: a `DenseCRF`, or any function of
            probabilities (h, w, k) float32 and the image (h, w, c) uint8 (16-bit images
            are scaled to 0..255; any number of channels) that returns marginals
            (h, w, k); or a `CRFRNN`, whose parameters are `params["crf"]`. Labels,
            probabilities, and bands are then the CRF's. It needs memory for whole
            images in every mode.
        rows: number of devices that share the rows of each tile's maps, for tiles (or
            with `"whole"`, images) that do not fit on one device.
        resize: first reduce images that are more than 1.3 times as large as
            `spec.image_size` to its area, because networks know objects at the size
            that they have in the images of the data set; see `reduction`.

    Raises:
        ValueError: if an argument is not allowed, or a tile is not larger than twice
            the model's margin; from a call, if an image is not (h, w, channels of the
            mean pixel) uint8 or uint16.

    Example:
        >>> import jax.numpy as jnp
        >>> from dilax.models import FrontEnd, Layer
        >>> model = DilatedNet(FrontEnd(21, (Layer("a", 3, 4), Layer("p", 2))))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
        >>> from dilax.data import DATASETS
        >>> predictor = Predictor(model, params, DATASETS["voc"])
        >>> predictor(np.zeros((3, 5, 3), np.uint8)).shape
        (3, 5)

    Source: the release's prediction script; paper §5.
    """

    def __init__(
        self,
        model: DilatedNet,
        params: Any,
        spec: DatasetSpec,
        batch_size: int = 1,
        *,
        mode: Mode = "tiles",
        scales: Sequence[float] = (1.0,),
        mirror: bool = False,
        overlap: float = 0.25,
        crf: CRF | None = None,
        rows: int = 1,
        resize: bool = True,
    ):
        if mode not in get_args(Mode):
            modes = ", ".join(get_args(Mode))
            raise ValueError(f"mode={mode!r}: must be one of {modes}")
        if not scales or min(scales) <= 0:
            raise ValueError(
                f"scales={tuple(scales)}: must be one or more positive numbers"
            )
        self.model, self.spec = model, spec
        self._mesh = row_mesh(rows) if rows != 1 else None
        self.params = self._placed(params)
        self.batch_size, self.mode, self.overlap = batch_size, mode, overlap
        self.resize = resize
        sides = (False, True) if mirror else (False,)
        self.views = [View(spec.scale * s, m) for s in scales for m in sides]
        # Blending uses the cells before the network's own upsampling, which are 64
        # times fewer; these are logits.
        self._logits = mode == "blend" and model.upsample
        self._network = model.clone(upsample=False) if self._logits else model
        self._stride = self._network.output_stride
        self._plan((1, 1))
        self._run_tiles = jit(self._tile_cells)
        self._run_maps = jit(functools.partial(self._apply, model, method="maps"))
        self._read_labels, self._read_probabilities = (
            jit(functools.partial(read, logits=self._logits))
            for read in (read_labels, read_probabilities)
        )
        self._crf = crf

    def with_params(self, params: Any) -> "Predictor":
        """Return the same predictor, already compiled, with other parameters."""
        other = copy.copy(self)
        other.params = self._placed(params)
        return other

    def _placed(self, params: Any) -> Any:
        if self._mesh is None:
            return params
        return jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    def __call__(self, images: Any) -> Int[np.ndarray, "*n h w"]:
        """Return the label map (h, w) int32 of an image, or (n, h, w) of n images.

        Args:
            images: an image of any kind, see `as_image`; an array (n, h, w, c); or a
                sequence of images of one size.
        """
        return self._at_once(images, probabilities=False)

    def probabilities(self, images: Any) -> Float[np.ndarray, "*n h w k"]:
        """Return class probabilities of every pixel, float32, e.g. for a dense CRF."""
        return self._at_once(images, probabilities=True)

    def stream(self, images: Iterable[Any]) -> Iterator[np.ndarray]:
        """Yield the label maps of several images, whose tiles share batches."""
        return self._whole(self._images(images), probabilities=False)

    def _at_once(self, images: Any, probabilities: bool) -> np.ndarray:
        """Return the maps of one image, or those of several, stacked."""
        if isinstance(images, list | tuple) and images:
            nested = isinstance(images[0], list | tuple)  # numbers of one image
            several = not nested
        else:
            several = getattr(images, "ndim", 0) == 4
        if not several:
            return next(self._whole(self._images([images]), probabilities))
        every = self._images(images)
        if len({image.shape for image in every}) != 1:
            raise ValueError(
                "images: in one call, all must have the same size; `stream` takes any"
            )
        return np.stack(list(self._whole(every, probabilities)))

    def _images(self, images: Iterable[Any]) -> list[np.ndarray]:
        return [as_image(image, len(self.spec.mean)) for image in images]

    def _whole(
        self, images: Sequence[np.ndarray], probabilities: bool
    ) -> Iterator[np.ndarray]:
        every = self._bands(images, probabilities)
        for image, bands in zip(images, every, strict=True):
            yield self._assembled(bands, image, probabilities)

    def _assembled(
        self, bands: Iterator[np.ndarray], image: np.ndarray, probabilities: bool
    ) -> np.ndarray:
        """Return the bands of an image as one array, without a second copy of it."""
        k = (self.model.num_classes,) if probabilities else ()
        dtype = np.float32 if probabilities else np.int32
        whole, y = np.empty((*image.shape[:2], *k), dtype), 0
        for band in bands:
            whole[y : y + len(band)] = band
            y += len(band)
        return whole

    def bands(self, image: Any, probabilities: bool = False) -> Iterator[np.ndarray]:
        """Yield the label map from top to bottom in bands of rows (≤ 256, w) uint8.

        Args:
            image: as for a call.
            probabilities: yield class probabilities (≤ 256, w, k) float32 instead.
        """
        return next(self._bands(self._images([image]), probabilities))

    def maps(
        self, images: Iterable[Any], full_tiles: bool = False
    ) -> Iterator[np.ndarray]:
        """Yield the front end's logits over each image: (⌈h/8⌉, ⌈w/8⌉, k) float32.

        Sizes are those of the image resized by `spec.scale`; §5 trains the context
        module on these.

        Args:
            images: as for `stream`.
            full_tiles: yield the cells of whole tiles; those of the image are at the
                upper left, the others see its reflection.
        """
        images = self._images(images)
        views = [View(self.spec.scale)] * len(images)
        every = self._cell_bands(images, views, self._run_maps, self._plan_protocol)
        for image, bands in zip(images, every, strict=True):
            rows, columns = self.map_size(image.shape, full_tiles)
            yield np.concatenate(list(bands))[:rows, :columns]

    def map_size(
        self, shape: tuple[int, ...], full_tiles: bool = False
    ) -> tuple[int, int]:
        """Return (rows, columns) of the maps that `maps` yields for an image."""
        size, stride = scaled_size(shape, self.spec.scale), self.model.map_stride
        if not full_tiles:
            return -(-size[0] // stride), -(-size[1] // stride)
        grid = self._plan_protocol(size)
        inner = [(t - 2 * grid.margin) // stride for t in grid.tile]
        return grid.rows * inner[0], grid.columns * inner[1]

    def reduction(self, shape: tuple[int, ...]) -> float:
        """Return the factor by which an image (h, w, …) is first reduced, at most 1.

        Example:
            >>> import dilax
            >>> predictor = dilax.Predictor(*dilax.pretrained("camvid"))
            >>> predictor.reduction((720, 960, 3)), predictor.reduction((360, 480, 3))
            (0.5, 1.0)
        """
        if not self.resize or self.spec.image_size is None:
            return 1.0
        usual, pixels = math.prod(self.spec.image_size), math.prod(shape[:2])
        factor = math.sqrt(usual / max(1, pixels))
        return factor if factor < 1 / 1.3 else 1.0

    def _plan_protocol(self, size: tuple[int, int]) -> TileGrid:
        tile = None if self.mode == "whole" else self.spec.tile
        return plan_tiles(size, tile, self.model.margin, self.model.map_stride)

    def _plan(self, size: tuple[int, int]) -> TileGrid | BlendGrid:
        if self.mode != "blend":
            return self._plan_protocol(size)
        margin, stride = self.model.margin, self._stride
        unit = self.model.map_stride // stride
        return plan_blend(size, self.spec.tile, margin, stride, self.overlap, unit)

    def _bands(
        self, images: Sequence[np.ndarray], probabilities: bool
    ) -> Iterator[Iterator[np.ndarray]]:
        """Yield bands of pixels of each image; exhaust them before the next image."""
        if self._crf is None:
            read = self._read_probabilities if probabilities else self._read_labels
            yield from self._network_bands(images, read)
            return
        every = self._network_bands(images, self._read_probabilities)
        for image, bands in zip(images, every, strict=True):
            marginals = self._refined(self._assembled(bands, image, True), image)
            if not probabilities:
                marginals = marginals.argmax(-1).astype(np.uint8)
            yield (marginals[y : y + BLOCK] for y in range(0, len(image), BLOCK))

    def _refined(self, probabilities: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Return the CRF's marginals (h, w, k)."""
        crf, rgb = self._crf, as_uint8(image)
        if not isinstance(crf, CRFRNN):
            assert crf is not None
            return np.asarray(crf(probabilities, rgb), np.float32)
        inputs = _logarithms(probabilities)[None], rgb[None]
        logits: Any = crf.apply({"params": self.params["crf"]}, *inputs)
        return np.asarray(jax.nn.softmax(logits[0]))

    def _network_bands(
        self, images: Sequence[np.ndarray], read: Any
    ) -> Iterator[Iterator[np.ndarray]]:
        run, plan = self._run_tiles, self._plan
        factors = [self.reduction(image.shape) for image in images]
        views = [[v._replace(scale=v.scale * f) for f in factors] for v in self.views]
        seen = [self._cell_bands(images, each, run, plan) for each in views]
        of_images = zip(*views, strict=True)
        for image, own, *every in zip(images, of_images, *seen, strict=True):
            cells = [
                Cells(bands, image.shape, view, self._stride, centred=self._logits)
                for view, bands in zip(own, every, strict=True)
            ]
            yield pixel_bands(image.shape, cells, read)

    def _cell_bands(
        self, images: Sequence[np.ndarray], views: Sequence[View], network, plan
    ):
        for image in images:
            check_image(image, len(self.spec.mean))
        run = functools.partial(network, self.params)
        return cell_bands(images, views, plan, run, self.batch_size)

    def _tile_cells(self, params, tiles):
        cells = self._apply(self._network, params, tiles)
        return cells if self._logits else jax.nn.softmax(cells)

    def _apply(self, model, params, tiles, method: str = "__call__") -> Any:
        x = subtract_mean(tiles, self.spec.mean)
        if self._mesh is None:
            return model.apply({"params": params}, x, method=method)
        return apply_over_rows(model, params, x, self._mesh, method)
