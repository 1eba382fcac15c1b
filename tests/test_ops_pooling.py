"""Max pooling: PyTorch's in ceil mode, and where its gradient goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.models import row_mesh
from dilax.ops import average_pool, max_pool, max_pool_with_places, unpool
from dilax.ops.pooling import windows
from dilax.runtime import jit
from dilax.runtime.row_shards import RowShards, row_shards


def _draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def _pull_ones(x, size=2):
    y, pull = jax.vjp(lambda x: max_pool(x, size), x)
    return pull(jnp.ones_like(y))[0]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("sides", [(8, 6), (7, 9), (1, 4), (13, 1)])
def test_value_and_gradient_equal_torch_in_ceil_mode(torch, sides, size):
    x = _draw(2, *sides, 3)

    @jit
    def ours(x):
        y, pull = jax.vjp(lambda x: max_pool(x, size), x)
        return y, *pull(y * y)

    planes = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    theirs = torch.nn.functional.max_pool2d(planes, size, size, ceil_mode=True)
    (theirs**3 / 3).sum().backward()
    value, gradient = ours(x)
    expected = theirs.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(value, expected)
    pulled = planes.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, pulled, rtol=1e-6)


@pytest.mark.parametrize("h, w", [(8, 6), (7, 9), (1, 5)])
def test_every_window_gives_its_gradient_away_once_also_where_cells_tie(h, w):
    windows = -(-h // 2) * -(-w // 2)
    for x in (_draw(1, h, w, 1), np.zeros((1, h, w, 1), np.float32)):
        assert float(_pull_ones(x).sum()) == windows


def test_of_cells_that_tie_the_first_has_the_gradient_as_in_pytorch():
    pulled = _pull_ones(np.array([1.0, 2, 2, 2], np.float32).reshape(1, 2, 2, 1))
    assert pulled.ravel().tolist() == [0, 1, 0, 0]


def test_the_largest_of_many_cells_has_the_gradient():
    gradient = _pull_ones(jnp.arange(17.0 * 17).reshape(1, 17, 17, 1), 17)
    assert np.flatnonzero(gradient).tolist() == [288]


def test_the_overhanging_window_takes_the_largest_of_what_is_there():
    x = -jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(max_pool(x)[0, ..., 0], [[-1, -3], [-7, -9]])


@pytest.mark.parametrize("size", [(9, 12), (8, 7), (3, 5)])
def test_overlapping_windows_are_those_of_pytorch(torch, size):
    x = _draw(2, *size, 3) - 3  # negative, so that cells outside would show
    given = torch.tensor(x).permute(0, 3, 1, 2)
    pooled = jit(max_pool, static_argnums=(1, 2, 3))
    for side, stride, padding in [(3, 1, 1), (3, 2, 1), (3, 2, 0), (2, 1, 0)]:
        wanted = torch.nn.functional.max_pool2d(given, side, stride, padding)
        got = pooled(jnp.asarray(x), side, stride, padding)
        np.testing.assert_array_equal(got, wanted.permute(0, 2, 3, 1))
    average = torch.nn.functional.avg_pool2d(given, 3, 1, 1).permute(0, 2, 3, 1)
    np.testing.assert_allclose(jit(average_pool)(x), average, atol=1e-6)


def test_an_average_of_an_even_side_is_refused():
    with pytest.raises(ValueError, match="size=2: must be odd"):
        average_pool(jnp.ones((1, 4, 4, 1)), 2)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: max_pool(x, 3, 2, 1),
        average_pool,
        max_pool_with_places,
        lambda x: unpool(x, jnp.zeros(x.shape, int), (8, 8)),
    ],
)
def test_pools_that_do_not_know_of_rows_refuse_them(pool):
    shards = RowShards(row_mesh(1))
    with row_shards(shards), pytest.raises(ValueError, match="be divided by rows"):
        pool(jnp.ones((1, 4, 4, 1)))


@pytest.mark.parametrize("size", [(8, 12), (9, 7)])
def test_maxima_return_to_their_places_as_in_pytorch(torch, size):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, *size, 3)).astype(np.float32)  # many are equal
    given = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    pool, unpooled = torch.nn.functional.max_pool2d, torch.nn.functional.max_unpool2d
    top, where = pool(given, 2, 2, ceil_mode=True, return_indices=True)
    wanted = unpooled(top, where, 2, 2, output_size=size)
    weights = rng.normal(size=x.shape).astype(np.float32)
    (wanted * torch.tensor(weights).permute(0, 3, 1, 2)).sum().backward()

    def there_and_back(x):
        kept, places = max_pool_with_places(x)
        return unpool(kept, places, size)

    np.testing.assert_array_equal(
        jit(there_and_back)(x), wanted.detach().permute(0, 2, 3, 1)
    )
    pull = jit(jax.grad(lambda x: (weights * there_and_back(x)).sum()))
    gradient = pull(jnp.asarray(x))
    np.testing.assert_array_equal(gradient, given.grad.permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [(9, 7), (1, 5)])
@pytest.mark.parametrize("side, stride, before", [(2, None, 0), (3, 2, 1), (3, 1, 1)])
def test_windows_are_the_cells_around_each_stride(size, side, stride, before):
    x = _draw(2, *size, 3)
    found = windows(jnp.asarray(x), side, stride, before, 7.0)
    stride = stride or side
    for place, cells in enumerate(found):
        assert cells.shape[1:3] == tuple(-(-n // stride) for n in size)
        for i in range(cells.shape[1]):
            for j in range(cells.shape[2]):
                y = i * stride - before + place // side
                z = j * stride - before + place % side
                inside = 0 <= y < size[0] and 0 <= z < size[1]
                np.testing.assert_array_equal(
                    cells[:, i, j], x[:, y, z] if inside else 7
                )
