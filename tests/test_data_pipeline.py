"""Batches: the same for every way of reading, and ones that can be resumed."""

import itertools
import os

import jax
import numpy as np
import pytest

from dilax.data import (
    Reading,
    in_order,
    training_batches,
)
from dilax.data.pipeline import cache_on_host


def _numbered(sample, rng):
    return {"image": sample["image"], "label": rng.integers(0, 2**31, (3,))}


def _batches(count, seed=0, start=0, size=4, threads=2, samples=10, shard=(0, 1)):
    source = [{"image": np.full((2, 2), i)} for i in range(samples)]
    batches = training_batches(
        source, _numbered, size, seed, start, Reading(threads), shard
    )
    return list(itertools.islice(batches, count))


def _numbers(batches):
    return [int(i) for batch in batches for i in batch["image"][:, 0, 0]]


def _draws(batches):
    return np.ravel([batch["label"] for batch in batches]).tolist()


def _assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def whole():
    return _batches(9)


@pytest.mark.parametrize("start", [1, 6])
def test_a_batch_is_the_same_for_every_start_and_number_of_threads(whole, start):
    _assert_equal(
        whole[start:], _batches(9 - start, start=start, threads=start % 2 + 1)
    )


@pytest.mark.parametrize("shards, start", [(2, 0), (4, 3)])
def test_the_parts_of_several_hosts_are_the_batch_of_one(whole, shards, start):
    parts = [_batches(4, start=start, shard=(i, shards)) for i in range(shards)]
    for batch, *own in zip(whole[start : start + 4], *parts, strict=True):
        for name, array in batch.items():
            rows = [part[name] for part in own]
            assert {len(r) for r in rows} == {4 // shards}
            np.testing.assert_array_equal(np.concatenate(rows), array)


def test_hosts_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ValueError, match=r"batch_size=4: .* processes, 3"):
        _batches(1, shard=(0, 3))


def test_another_seed_gives_another_order_and_other_augmentation(whole):
    other = _batches(5, seed=1)
    assert _numbers(whole[:5]) != _numbers(other)
    assert not {*_draws(whole[:5])} & {*_draws(other)}


@pytest.mark.parametrize("size", [4, 5, 20])
def test_an_epoch_is_every_sample_once_in_its_own_order_and_augmentation(size):
    batches = _batches(40 // size, size=size)
    numbers = _numbers(batches)
    epochs = [numbers[i : i + 10] for i in range(0, 40, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({*_draws(batches)}) == 4 * 10 * 3


@pytest.mark.parametrize(
    "count, size, lengths",
    [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (3, 1, [1, 1, 1])],
)
def test_samples_in_order_come_once_each_and_the_last_list_is_shorter(
    count, size, lengths
):
    source = [{"id": i, "image": np.zeros((i + 1, 3))} for i in range(count)]
    chunks = list(in_order(source, size, threads=2))
    assert [len(chunk) for chunk in chunks] == lengths
    samples = list(itertools.chain.from_iterable(chunks))
    assert [s["id"] for s in samples] == list(range(count))
    assert [len(s["image"]) for s in samples] == list(range(1, count + 1))


# Images cached in memory.


class Counted(list):
    """A source that counts how often its samples are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def _source(size, count=5):
    rng = np.random.default_rng(0)
    return Counted(
        {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": rng.integers(0, 20, size, np.uint8),
            "id": str(i),
        }
        for i in range(count)
    )


def test_cached_images_are_the_source_and_are_read_once(unchecked):
    source = _source((16, 24))
    assert [s["id"] for s in cache_on_host(source)] == list("01234")
    assert len(source) <= source.reads <= len(source) + 1  # the first, for its size


def test_images_that_do_not_fit_are_refused_before_they_are_read(
    monkeypatch, unchecked
):
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * 5 * 16 * 24 * 4 - 1}
    monkeypatch.setattr(os, "sysconf", pages.get)
    source = _source((16, 24))
    with pytest.raises(ValueError, match=r"reading\.cache=host: .* GB"):
        cache_on_host(source)
    assert source.reads == 1
