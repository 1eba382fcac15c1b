"""Maps whose rows lie on several devices: what neighbours need, they send each other.

Inside `row_shards`, an image's maps are arrays of more rows than they mean: `height`
rows and then some that fill up to a multiple of the devices, whose content is nothing.
Each device holds as many rows. A convolution fetches the rows that its taps reach
beyond (the halo) from the neighbours, from several where the dilation is larger than a
device's share, and then convolves by itself, by whatever lowering. Pools and what works
on single cells need no exchange.

A result's rows begin where the map begins, so that rows of strided maps stay aligned;
those that a convolution without padding consumes are lost at the end.
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
    """How maps are spread, and how many rows of each array mean something.

    Args:
        mesh: of the devices.
        axis: the mesh's axis over which rows are spread.
        batch: the mesh's axis of the examples.
    """

    def __init__(self, mesh: Mesh, axis: str = "rows", batch: str = "data"):
        self.mesh, self.axis, self.batch = mesh, axis, batch
        self.count = mesh.shape[axis]
        # (rows of the array, columns) tell maps of a network apart: all layers change
        # height and width by as much.
        self._heights: dict[tuple[int, ...], int] = {}

    def height(self, x: Maps) -> int:
        """The rows of an array that mean something, which come first.

        Raises:
            ValueError: for an array that is none of the network's maps.
        """
        try:
            return self._heights[x.shape[1:3]]
        except KeyError as error:
            raise ValueError(
                f"maps of {x.shape[1]}x{x.shape[2]}: are not spread by rows"
            ) from error

    def known(self, x: Maps, height: int) -> Maps:
        """The array, spread over the devices, and its height noted.

        Raises:
            ValueError: if maps of this size had another height.
        """
        if self._heights.setdefault(x.shape[1:3], height) != height:
            raise ValueError(
                f"maps of {x.shape[1]}x{x.shape[2]}: have {height} rows, and others of "
                f"that size {self._heights[x.shape[1:3]]}; take --config.mesh.rows=1"
            )
        spec = PartitionSpec(self.batch, self.axis)
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def spread(self, x: Maps, stride: int = 1) -> Maps:
        """Fills up an array's rows, all of which mean something, and spreads them.

        Args:
            x: maps or images.
            stride: of the pools that follow, whose windows stay on one device.
        """
        height = x.shape[1]
        share = -(-height // (stride * self.count)) * stride

        def local(x):  # taken where it is needed: nobody holds a filled-up copy
            rows = lax.axis_index(self.axis) * share + jnp.arange(share)
            return jnp.take(x, rows, axis=1, mode="fill", fill_value=0)

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
        """A convolution of padded maps.

        Args:
            x: maps.
            kernel: that every device has.
            widths: ((top, bottom), (left, right)) of the padding.
            mode: `"constant"` or `"reflect"`, as in `jnp.pad`.
            extent: rows that the kernel spans beyond its first.
            valid: convolves rows and kernel without padding.
        """
        rows, height, (top, bottom) = x.shape[1], self.height(x), widths[0]
        out_height = height + top + bottom - extent
        if mode == "reflect" or out_height > rows:
            x, top = self._padded_rows(x, height, widths[0], mode), 0
        elif bottom:
            x = _masked(x, height, 0)
        x = jnp.pad(x, ((0, 0), (0, 0), widths[1], (0, 0)), mode)

        def local(x, kernel):
            around = self._with_halo(x, top, max(0, extent - top))
            return valid(around[:, : x.shape[1] + extent], kernel)

        out = self._run(local, x, kernel)
        enough = -(-out_height // self.count) * self.count
        return self.known(out[:, : max(rows, enough)], out_height)

    def balanced(self, x: Maps) -> Maps:
        """The same in as few rows as do; they move so that all devices have as many."""
        height = self.height(x)
        return self.known(x[:, : -(-height // self.count) * self.count], height)

    def pad(self, x: Maps, widths: Widths, mode: str) -> Maps:
        """Padded maps; rows move to other devices."""
        height = self.height(x)
        x = self._padded_rows(x, height, widths[0], mode)
        x = jnp.pad(x, ((0, 0), (0, 0), widths[1], (0, 0)), mode)
        return self.known(x, height + sum(widths[0]))

    def pool(self, x: Maps, size: int, pooled: Callable) -> Maps:
        """Pools windows of `size` rows by `pooled`; see `spread` for the stride."""
        height = self.height(x)
        if height % size:  # the last window's cells beyond the map change nothing
            x = _masked(x, height, x[:, height - 1 : height])
        return self.known(self._run(pooled, x), -(-height // size))

    def upsample(self, x: Maps, factor: int, edge: bool, enlarge: Callable) -> Maps:
        """Enlarges maps by what lies between a cell and its neighbours.

        Args:
            x: maps.
            factor: of the height.
            edge: the last row is repeated below the map; else zeros stand there.
            enlarge: takes the rows of a device and one more above and below.
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
        """function(x's rows here, *whole) on every device, as one array again.

        `given` is how x is spread, if not by rows.
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
        """A device's rows between those of its neighbours; zeros beyond the ends."""
        rows = x.shape[1]
        parts = [x]
        for step, count in _pieces(above, rows):
            parts.insert(0, self._from(x[:, rows - count :], step))
        for step, count in _pieces(below, rows):
            parts.append(self._from(x[:, :count], -step))
        return jnp.concatenate(parts, 1)

    def _from(self, rows: Maps, step: int) -> Maps:
        """Those of the device `step` before this one; zeros if there is none."""
        pairs = [(i, i + step) for i in range(self.count) if 0 <= i + step < self.count]
        if not pairs:
            return jnp.zeros_like(rows)
        return lax.ppermute(rows, self.axis, pairs)

    def _padded_rows(
        self, x: Maps, height: int, widths: tuple[int, int], mode: str
    ) -> Maps:
        """More rows around the map, and then some that mean nothing."""
        x = jnp.pad(x[:, :height], ((0, 0), widths, (0, 0), (0, 0)), mode)
        return _filled(x, -x.shape[1] % self.count)


def _masked(x: Maps, height: int, value: Any) -> Maps:
    """With a value in the rows that mean nothing."""
    if height == x.shape[1]:
        return x
    rows = lax.broadcasted_iota(jnp.int32, (1, x.shape[1], 1, 1), 1)
    return jnp.where(rows < height, x, value)


def _pieces(rows: int, share: int) -> list[tuple[int, int]]:
    """(distance of the neighbour, its rows) for a halo, the nearest first."""
    return [
        (step + 1, min(share, rows - start))
        for step, start in enumerate(range(0, rows, share))
    ]


def _filled(x: Maps, rows: int) -> Maps:
    return jnp.pad(x, ((0, 0), (0, rows), (0, 0), (0, 0)))


@contextlib.contextmanager
def row_shards(shards: RowShards | None) -> Iterator[None]:
    """Within it, `dilated_conv`, `max_pool` and `upsample_bilinear` take such maps."""
    token = _SCOPE.set(shards)
    try:
        yield
    finally:
        _SCOPE.reset(token)


def balanced_rows(x: Maps) -> Maps:
    """Within `row_shards`, as `RowShards.balanced`; elsewhere the same."""
    shards = _SCOPE.get()
    return shards.balanced(x) if shards else x


def refuse_shards(what: str) -> None:
    """Raises ValueError within `row_shards`, where `what` does not know of rows."""
    if _SCOPE.get():
        raise ValueError(f"{what} does not spread over rows: take one device for them")


def current_shards() -> RowShards | None:
    """Those of the `row_shards` around, if there are any."""
    return _SCOPE.get()
