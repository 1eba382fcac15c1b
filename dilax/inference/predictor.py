"""Images of any size → label maps at full resolution, by the released protocol.

A CRF after the network, on whole images at full resolution (paper §5).

A dense CRF takes probabilities. A CRF-RNN takes their logarithms, which differ from
logits by a constant a pixel, and its softmax does not see that.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Int, UInt

from dilax.crf import CRFRNN
from dilax.crf.dense_crf import MIN_PROBABILITY
from dilax.data import DatasetSpec, scaled_size, subtract_mean
from dilax.data.pixels import as_uint8
from dilax.inference.cells import (
    BLOCK,
    CellRows,
    View,
    cell_bands,
    check_image,
    pixel_bands,
    place,
    read_labels,
    read_probabilities,
)
from dilax.inference.tiles import BlendGrid, TileGrid, plan_blend, plan_tiles
from dilax.models import DilatedNet, apply_over_rows, row_mesh
from dilax.ops import upsample_bilinear
from dilax.runtime import jit

CRF = Callable[[np.ndarray, np.ndarray], Any] | CRFRNN
Params = dict[str, Any]
Refine = Callable[[Params, np.ndarray, np.ndarray], np.ndarray]


def log_probabilities(logits: jax.Array, stride: int) -> jax.Array:
    """The network's logits (b, h, w, k) → log-probabilities of the pixels.

    Args:
        logits: of cells that stand `stride` pixels apart.
        stride: above 1, probabilities are upsampled as the predictor does, top-left
            aligned.
    """
    probabilities = jax.nn.softmax(logits)
    if stride > 1:
        probabilities = upsample_bilinear(probabilities, stride)
    return _logarithms(probabilities)


def _logarithms(probabilities: jax.typing.ArrayLike) -> jax.Array:
    return jnp.log(jnp.maximum(probabilities, MIN_PROBABILITY))


def refinement(crf: CRF) -> Refine:
    """`f(params, probabilities (h, w, k), image (h, w, c))` → marginals, float32.

    Args:
        crf: see `Predictor`.
    """
    if not isinstance(crf, CRFRNN):
        return lambda _, odds, image: np.asarray(crf(odds, as_uint8(image)), np.float32)

    def refine(params: Params, odds: np.ndarray, image: np.ndarray) -> np.ndarray:
        inputs = _logarithms(odds)[None], as_uint8(image)[None]
        logits: Any = crf.apply({"params": params["crf"]}, *inputs)
        return np.asarray(jax.nn.softmax(logits[0]))

    return refine


Mode = Literal["tiles", "whole", "blend"]


class Predictor:
    """Predicts label maps: tiles, softmax, tiles side by side, upsampling, argmax.

    The image (resized by `spec.scale`) minus the mean pixel is padded by reflection and
    walked in tiles of `spec.tile`; the softmax of each is put side by side. Networks at
    an eighth of the resolution are upsampled by interpolating probabilities, top-left
    aligned. With `spec.scale` other than 1 the probabilities are then resized to the
    image, linearly, pixel centre on pixel centre.

    Tiles and bands of pixels are computed one after the other, so that memory holds the
    image, a row of tiles and the label map. Tiles of one shape are compiled once,
    whatever the images' sizes.

    Args:
        model: the network.
        params: its parameters, `{"front_end": …, "context": …}`, and a CRF-RNN's.
        spec: the data set's mean pixel, tile and scale.
        batch_size: tiles that run together.
        mode: `"tiles"` is the release's protocol (whose tile is the whole image where
            `spec.tile` is None); `"whole"` takes the whole image at once, and compiles
            for every size, rounded up to 4 cells; `"blend"` blends overlapping tiles,
            without seams and in bounded memory.
        scales: the network sees the image at each of these, times `spec.scale`, and
            the probabilities are averaged.
        mirror: it sees the image mirrored, too.
        overlap: of `"blend"`: share of a tile's inside that the next one covers too.
        crf: what refines the probabilities of whole images, such as a `DenseCRF`: a
            function of probabilities (h, w, k) float32 and the image (h, w, c) uint8
            (16-bit images brought to 0..255; any number of channels), that gives
            marginals (h, w, k). Or a `CRFRNN`, whose parameters are `params["crf"]`.
            Labels, probabilities and bands are then the CRF's. It needs memory for
            whole images, in every mode.
        rows: devices over which the rows of each tile's maps are spread, for tiles (or
            with `"whole"`, images) that one device does not hold.

    Raises:
        ValueError: if an argument is not among what is allowed or a tile is not larger
            than twice the model's margin, or from a call, if an image is not (h, w,
            channels of the mean pixel) uint8 or uint16.

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
    ):
        _check_arguments(mode, scales)
        self.model, self.spec = model, spec
        self._mesh = row_mesh(rows) if rows != 1 else None
        self.params = self._placed(params)
        self.batch_size, self.mode, self.overlap = batch_size, mode, overlap
        sides = (False, True) if mirror else (False,)
        self.views = [View(spec.scale * s, m) for s in scales for m in sides]
        # Blending takes the cells before the network's own upsampling, of which there
        # are 64 times fewer; they are logits then.
        self._logits = mode == "blend" and model.upsample
        cells = model.clone(upsample=False) if self._logits else model
        self._stride = cells.output_stride
        self._plan((1, 1))
        self._run_tiles = jit(self._tile_cells)
        self._run_maps = jit(self._tile_maps)
        self._read_labels, self._read_probabilities = (
            jit(functools.partial(read, logits=self._logits))
            for read in (read_labels, read_probabilities)
        )
        self._refine = refinement(crf) if crf else None

    def with_params(self, params: Any) -> "Predictor":
        """The same predictor, already compiled, with other parameters."""
        other = copy.copy(self)
        other.params = self._placed(params)
        return other

    def _placed(self, params: Any) -> Any:
        if self._mesh is None:
            return params
        return jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    def __call__(
        self, images: UInt[np.ndarray, "*n h w c"] | Sequence[np.ndarray]
    ) -> Int[np.ndarray, "*n h w"]:
        """The label map (h, w) int32 of an RGB image, or (n, h, w) of n of one size."""
        return _at_once(images, self.stream)

    def probabilities(
        self, images: UInt[np.ndarray, "*n h w c"] | Sequence[np.ndarray]
    ) -> Float[np.ndarray, "*n h w k"]:
        """Class probabilities of every pixel, float32, as a dense CRF takes them."""
        return _at_once(images, self._stream_probabilities)

    def stream(self, images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """The label maps of several images, whose tiles share batches."""
        every = self._bands(images, probabilities=False)
        for image, bands in zip(images, every, strict=True):
            yield _assembled(bands, image.shape[:2], np.int32)

    def _stream_probabilities(self, images: Sequence[np.ndarray]):
        every = self._bands(images, probabilities=True)
        return self._whole_probabilities(images, every)

    def _whole_probabilities(self, images: Sequence[np.ndarray], every: Any):
        for image, bands in zip(images, every, strict=True):
            shape = (*image.shape[:2], self.model.num_classes)
            yield _assembled(bands, shape, np.float32)

    def bands(
        self, image: UInt[np.ndarray, "h w c"], probabilities: bool = False
    ) -> Iterator[np.ndarray]:
        """The label map from top to bottom in bands of rows (≤ 256, w) uint8.

        Args:
            image: as for a call.
            probabilities: give class probabilities (≤ 256, w, k) float32 instead.
        """
        return next(self._bands([image], probabilities))

    def maps(
        self, images: Sequence[np.ndarray], full_tiles: bool = False
    ) -> Iterator[np.ndarray]:
        """The front end's logits over each image: (⌈h/8⌉, ⌈w/8⌉, k) float32.

        Sizes are those of the image resized by `spec.scale`; §5 trains the context
        module on these.

        Args:
            images: as for `stream`.
            full_tiles: give the cells of the whole tiles, of which the image's are
                the upper left; the others see its reflection.
        """
        view = View(self.spec.scale)
        every = self._cell_bands(images, view, self._run_maps, self._plan_protocol)
        for image, bands in zip(images, every, strict=True):
            rows, columns = self.map_size(image.shape, full_tiles)
            yield np.concatenate(list(bands))[:rows, :columns]

    def map_size(
        self, shape: tuple[int, ...], full_tiles: bool = False
    ) -> tuple[int, int]:
        """(rows, columns) of what `maps` gives for an image of `shape`."""
        size, stride = scaled_size(shape, self.spec.scale), self.model.map_stride
        if not full_tiles:
            return -(-size[0] // stride), -(-size[1] // stride)
        grid = self._plan_protocol(size)
        inner = [(t - 2 * grid.margin) // stride for t in grid.tile]
        return grid.rows * inner[0], grid.columns * inner[1]

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
        """Bands of pixels of each image; to be used up before the next image's."""
        if self._refine is not None:
            return self._refined(images, probabilities)
        read = self._read_probabilities if probabilities else self._read_labels
        return self._network_bands(images, read)

    def _refined(self, images: Sequence[np.ndarray], probabilities: bool):
        assert self._refine is not None
        every = self._network_bands(images, self._read_probabilities)
        whole = self._whole_probabilities(images, every)
        for image, odds in zip(images, whole, strict=True):
            marginals = self._refine(self.params, odds, image)
            if not probabilities:
                marginals = marginals.argmax(-1).astype(np.uint8)
            yield (marginals[y : y + BLOCK] for y in range(0, len(image), BLOCK))

    def _network_bands(
        self, images: Sequence[np.ndarray], read: Any
    ) -> Iterator[Iterator[np.ndarray]]:
        run, plan = self._run_tiles, self._plan
        seen = [self._cell_bands(images, view, run, plan) for view in self.views]
        for image, *cells in zip(images, *seen, strict=True):
            placings = [
                place(image.shape, v.scale, self._stride, self._logits, v.mirrored)
                for v in self.views
            ]
            rows = map(CellRows, cells)
            yield pixel_bands(list(zip(rows, placings, strict=True)), read)

    def _cell_bands(self, images: Sequence[np.ndarray], view: View, network, plan):
        for image in images:
            check_image(image, len(self.spec.mean))
        run = functools.partial(network, self.params)
        return cell_bands(images, view, plan, run, self.batch_size)

    def _tile_cells(self, params, tiles):
        x = subtract_mean(tiles, self.spec.mean)
        if self._logits:
            return self._apply(self.model.clone(upsample=False), params, x)
        return jax.nn.softmax(self._apply(self.model, params, x))

    def _tile_maps(self, params, tiles):
        x = subtract_mean(tiles, self.spec.mean)
        return self._apply(self.model, params, x, "maps")

    def _apply(self, model: DilatedNet, params, x, method: str = "__call__") -> Any:
        if self._mesh is None:
            return model.apply({"params": params}, x, method=method)
        return apply_over_rows(model, params, x, self._mesh, method)


def _check_arguments(mode: str, scales: Sequence[float]) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(get_args(Mode))}")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales={tuple(scales)}: must be positive, one at least")


def _assembled(bands: Iterator[np.ndarray], shape: tuple, dtype: Any) -> np.ndarray:
    whole, y = np.empty(shape, dtype), 0
    for band in bands:
        whole[y : y + len(band)] = band
        y += len(band)
    return whole


def _at_once(images: Any, stream: Any) -> np.ndarray:
    """What `stream` gives for one image, or stacked for several of one size."""
    if isinstance(images, np.ndarray) and images.ndim == 3:
        return next(stream([images]))
    images = list(images)
    if len({image.shape for image in images}) != 1:
        raise ValueError(
            "images: several in one call are of one size; `stream` takes any"
        )
    return np.stack(list(stream(images)))
