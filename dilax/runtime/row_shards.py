"""Maps whose rows are spread over several devices, which exchange halos.

Inside `row_shards`, arrays have more rows than their maps: `height` valid rows, then
padding rows of arbitrary content up to a multiple of the number of devices, so that
each device holds the same number. A convolution fetches the rows that its taps reach
beyond a device's share (the halo) from the neighbours, from several of them if the
dilation is larger than a share. It then runs on each device separately, with any
lowering. Pools and operations on single cells need no exchange.

The first row of a result is always the first row of its map, so that the rows of
strided maps stay aligned; a convolution without padding loses its rows at the end.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

Maps = Shaped[Array, "b _ _ _"]
Widths = tuple[tuple[int, int], ...]

_SCOPE: contextvars.ContextVar["RowShards | None"] = contextvars.ContextVar(
    "row_shards", default=None
)


class RowShards:
    """How maps are spread, and how many rows of each array are valid.

    Args:
        mesh: the devices.
        axis: the mesh's axis over which rows are spread.
        batch: the mesh's axis over which examples are spread.
    """

    def __init__(self, mesh: Mesh, axis: str = "rows", batch: str = "data"):
        self.mesh, self.axis, self.batch = mesh, axis, batch
        self.count = mesh.shape[axis]
        # Keyed by (rows, columns) of the array. That identifies the maps of a network,
        # because every layer changes height and width by the same amount.
        self._heights: dict[tuple[int, ...], int] = {}
        self._stride = 1  # of the pools that follow

    def height(self, x: Maps) -> int:
        """Return the number of valid rows of an array.

        Raises:
            ValueError: if the array is not a map of the network.
        """
        try:
            return self._heights[x.shape[1:3]]
        except KeyError as error:
            raise ValueError(
                f"maps of {x.shape[1]}x{x.shape[2]}: are not divided by rows"
            ) from error

    def known(self, x: Maps, height: int) -> Maps:
        """Constrain an array to be spread over the devices, and record its height.

        Raises:
            ValueError: if maps of this size have another height.
        """
        if self._heights.setdefault(x.shape[1:3], height) != height:
            raise ValueError(
                f"maps of {x.shape[1]}x{x.shape[2]}: have {height} valid rows, but "
                f"others of this size have {self._heights[x.shape[1:3]]}; use "
                "--config.mesh.rows=1"
            )
        spec = PartitionSpec(self.batch, self.axis)
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def spread(self, x: Maps, stride: int = 1) -> Maps:
        """Pad the rows of an array, all of which are valid, and divide them.

        Args:
            x: maps or images.
            stride: total stride of the pools that follow, so that each of their windows
                stays on one device.
        """
        height, self._stride = x.shape[1], stride
        share = self._share(height)

        def local(x):
            # Each device takes its rows; none holds a padded copy. By slices, because
            # TPUs gather slowly: one that would pass the end starts earlier, and moves.
            start = lax.axis_index(self.axis) * share
            own = lax.dynamic_slice_in_dim(x, start, share, 1)
            own = jnp.pad(own, ((0, 0), (0, share), (0, 0), (0, 0)))
            moved = jnp.maximum(0, start + share - height)
            return lax.dynamic_slice_in_dim(own, moved, share, 1)

        whole = PartitionSpec(self.batch)
        return self.known(self._run(local, x, given=whole), height)

    def convolve(
        self,
        x: Maps,
        kernel: Array,
        widths: Widths,
        mode: str,
        extent: int,
        valid: Callable,
    ) -> Maps:
        """Pad maps and convolve them.

        Args:
            x: maps.
            kernel: a copy on every device.
            widths: ((top, bottom), (left, right)) of the padding.
            mode: `"constant"` or `"reflect"`, as in `jnp.pad`.
            extent: number of rows that the kernel spans beyond its first one.
            valid: function that convolves rows with the kernel, without padding.
        """
        height, (top, bottom) = self.height(x), widths[0]
        out_height = height + top + bottom - extent
        if mode == "reflect" or out_height > x.shape[1]:
            x, top = self._padded_rows(x, height, widths[0], mode), 0
        elif bottom:
            x = _masked(x, height, 0)
        x = jnp.pad(x, ((0, 0), (0, 0), widths[1], (0, 0)), mode)
        share = self._share(out_height)
        # A device computes no more rows than the output has. Where that is fewer than
        # it holds, its first output row is above its own by as many, times its number.
        lost = x.shape[1] // self.count - share
        above = top + lost * (self.count - 1)

        def local(x, kernel):
            around = self._with_halo(x, above, max(0, extent - top))
            if lost:
                start = lost * (self.count - 1 - lax.axis_index(self.axis))
                around = lax.dynamic_slice_in_dim(around, start, share + extent, 1)
            return valid(around[:, : share + extent], kernel)

        return self.known(self._run(local, x, kernel), out_height)

    def _share(self, height: int) -> int:
        """Rows of a device, so that windows of the pools to come stay whole."""
        return -(-height // (self._stride * self.count)) * self._stride

    def pad(self, x: Maps, widths: Widths, mode: str) -> Maps:
        """Pad maps; rows move to other devices."""
        height = self.height(x)
        x = self._padded_rows(x, height, widths[0], mode)
        x = jnp.pad(x, ((0, 0), (0, 0), widths[1], (0, 0)), mode)
        return self.known(x, height + sum(widths[0]))

    def pool(self, x: Maps, size: int, pooled: Callable) -> Maps:
        """Pool windows of `size` rows by `pooled`; see `spread` for the stride."""
        height = self.height(x)
        if height % size:  # rows beyond the map must not change the last window
            x = _masked(x, height, x[:, height - 1 : height])
        self._stride //= size
        return self.known(self._run(pooled, x), -(-height // size))

    def upsample(self, x: Maps, factor: int, edge: bool, enlarge: Callable) -> Maps:
        """Enlarge maps by interpolation between a cell and its neighbours.

        Args:
            x: maps.
            factor: factor by which the height grows.
            edge: repeat the last row below the map, instead of zeros.
            enlarge: takes the rows of a device and one more row above and below.
        """
        height = self.height(x)
        x = _masked(x, height, x[:, height - 1 : height] if edge else 0)

        def local(x):
            around = self._with_halo(x, 1, 1)
            if edge:
                last = lax.axis_index(self.axis) == self.count - 1
                below = jnp.where(last, x[:, -1:], around[:, -1:])
                around = jnp.concatenate([around[:, :-1], below], 1)
            return enlarge(around)

        return self.known(self._run(local, x), factor * height)

    def _run(
        self,
        function: Callable,
        x: Maps,
        *whole: Array,
        given: PartitionSpec | None = None,
    ) -> Any:
        """Apply function(own rows of x, *whole) on every device.

        `given` is the sharding of x, if it is not by rows.
        """
        spec = PartitionSpec(self.batch, self.axis)
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(given or spec, *[PartitionSpec()] * len(whole)),
            out_specs=spec,
            axis_names={self.batch, self.axis},
            check_vma=False,
        )(x, *whole)

    def _with_halo(self, x: Maps, above: int, below: int) -> Maps:
        """Concatenate a device's rows with the neighbours'; zeros beyond the ends."""
        share = x.shape[1]
        parts = [x]
        # From the nearest to the farthest neighbour: all but the farthest send all
        # rows.
        for step, done in enumerate(range(0, above, share), 1):
            parts.insert(0, self._from(x[:, share - min(share, above - done) :], step))
        for step, done in enumerate(range(0, below, share), 1):
            parts.append(self._from(x[:, : min(share, below - done)], -step))
        return jnp.concatenate(parts, 1)

    def _from(self, rows: Maps, step: int) -> Maps:
        """Receive rows of the device `step` before this one; zeros if there is none."""
        pairs = [(i, i + step) for i in range(self.count) if 0 <= i + step < self.count]
        if not pairs:
            return jnp.zeros_like(rows)
        return lax.ppermute(rows, self.axis, pairs)

    def _padded_rows(
        self, x: Maps, height: int, widths: tuple[int, int], mode: str
    ) -> Maps:
        """Pad the map above and below, then add rows so that devices share them."""
        x = jnp.pad(x[:, :height], ((0, 0), widths, (0, 0), (0, 0)), mode)
        fill = self._share(x.shape[1]) * self.count - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0)))


def _masked(x: Maps, height: int, value: Any) -> Maps:
    """Overwrite the rows that are not valid with a value."""
    if height == x.shape[1]:
        return x
    rows = lax.broadcasted_iota(jnp.int32, (1, x.shape[1], 1, 1), 1)
    return jnp.where(rows < height, x, value)


@contextlib.contextmanager
def row_shards(shards: RowShards | None) -> Iterator[None]:
    """Let `dilated_conv`, `max_pool`, and `upsample_bilinear` take sharded maps."""
    token = _SCOPE.set(shards)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def refuse_shards(what: str) -> None:
    """Raise ValueError within `row_shards`, for operations that need whole maps."""
    if _SCOPE.get():
        raise ValueError(f"{what} cannot be divided by rows; use --config.mesh.rows=1")


def current_shards() -> RowShards | None:
    """Return the shards of the surrounding `row_shards`, if any."""
    return _SCOPE.get()
