"""The hash table with static shapes, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dilax.crf.lattice_points import find_keys, number_keys


def drawn(n, different, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2**32, (2, different), dtype=np.uint32)
    return kinds, kinds[:, rng.integers(0, different, n)]


@pytest.mark.parametrize("different", [1, 30, 5000])
def test_equal_keys_get_equal_numbers_in_the_order_of_the_list(different):
    _, keys = drawn(3000, different)
    table = number_keys(jnp.asarray(keys), jnp.ones(3000, bool))
    _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    np.testing.assert_array_equal(table.numbers, rank[inverse])
    assert int(table.distinct) == len(first)
    np.testing.assert_array_equal(np.nonzero(table.firsts)[0], np.sort(first))


def test_all_keys_different_fill_the_table_and_are_found():
    keys = jnp.stack([jnp.arange(999, dtype=jnp.uint32), jnp.zeros(999, jnp.uint32)])
    table = number_keys(keys, jnp.ones(999, bool))
    np.testing.assert_array_equal(table.numbers, np.arange(999))
    np.testing.assert_array_equal(find_keys(table, keys), np.arange(999))


def test_keys_that_share_a_word_stay_apart():
    keys = jnp.array([[1, 1, 2, 2], [1, 2, 1, 2]], jnp.uint32)
    table = number_keys(keys, jnp.ones(4, bool))
    assert table.numbers.tolist() == [0, 1, 2, 3]


@pytest.mark.slow
def test_what_is_left_out_has_no_number_and_is_not_found():
    kinds, keys = drawn(500, 100)
    table = number_keys(jnp.asarray(keys), jnp.arange(500) < 40)
    assert (table.numbers[40:] == -1).all() and (table.numbers[:40] >= 0).all()
    there = {tuple(k) for k in keys[:, :40].T}
    found = find_keys(table, jnp.asarray(kinds))
    assert [bool(f >= 0) for f in found] == [tuple(k) in there for k in kinds.T]


def test_batches_are_numbered_apart():
    keys = jnp.asarray(np.stack([drawn(300, 50, seed)[1] for seed in (1, 2)]))
    valid = jnp.ones((2, 300), bool)
    both = jax.jit(jax.vmap(number_keys))(keys, valid)
    for i in range(2):
        alone = number_keys(keys[i], valid[i])
        np.testing.assert_array_equal(both.numbers[i], alone.numbers)
