"""Images held in memory: the same batches, without decoding them again."""

import itertools

import jax
import numpy as np
import pytest

from dilax.data import (
    Augmentation,
    CropGeometry,
    ImageExample,
    held_batches,
    hold,
    training_batches,
)
from dilax.data import device_cache as held

SIZES = [(40, 50), (16, 24), (17, 9), (3, 30), (1, 60), (2, 2)]


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


def _first(batches, count=6):
    return list(itertools.islice(batches, count))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride, halves", [(1, False), (4, False), (4, True)])
def test_crops_made_on_the_device_are_those_of_the_host(size, stride, halves):
    geometry = CropGeometry((26, 34), 5, stride, 255, halves)
    example = ImageExample(geometry, Augmentation())
    host = _first(training_batches(_source(size), example, 3, seed=1))
    device = _first(held_batches(_source(size), example, 3, seed=1))
    jax.tree.map(np.testing.assert_array_equal, host, device)
    assert len({b["image"].tobytes() for b in host}) > 1


@pytest.mark.parametrize("start, shard", [(0, (0, 1)), (3, (1, 2))])
def test_at_another_scale_start_and_host_they_are_too(start, shard):
    example = ImageExample(CropGeometry((16, 24), 0, 8), Augmentation(), scale=0.5)
    arguments = (example, 4, 7, start)
    host = training_batches(_source((40, 50)), *arguments, shard=shard)
    device = held_batches(_source((40, 50)), *arguments, shard)
    jax.tree.map(np.testing.assert_array_equal, _first(host), _first(device))


def test_every_image_is_read_once_and_no_more(unchecked):
    for keep in (hold, lambda s: _first(held_batches(s, _example(), 2, 0), 9)):
        source = _source((16, 24))
        keep(source)
        assert len(source) <= source.reads <= len(source) + 2  # the first, for its size


def _example(**changes):
    return ImageExample(CropGeometry((16, 24), 0, 8), Augmentation(**changes))


def test_what_is_held_on_the_host_is_the_source():
    source = _source((4, 5))
    assert [s["id"] for s in hold(source)] == [s["id"] for s in source]


@pytest.mark.parametrize("changes", [{"colour": 0.1}, {"scales": (0.5, 1.0)}])
def test_on_the_device_images_are_taken_as_they_are(changes):
    with pytest.raises(ValueError, match=r"reading\.hold=device: .*scales=\(1,1\)"):
        held_batches(_source((16, 24)), _example(**changes), 2, 0)


def test_on_the_device_images_have_one_size():
    source = Counted([*_source((16, 24)), *_source((16, 25), 1)])
    with pytest.raises(ValueError, match=r"differ in size \(0 is \(16, 25, 3\)"):
        held_batches(source, _example(), 2, 0)


def test_images_that_do_not_fit_are_refused_before_they_are_read(
    monkeypatch, unchecked
):
    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * 5 * 16 * 24 * 4 - 1}
    monkeypatch.setattr(held.os, "sysconf", pages.get)
    source = _source((16, 24))
    with pytest.raises(ValueError, match=r"reading\.hold=host: the decoded .* GB"):
        hold(source)
    assert source.reads == 1
