"""The scenes: labels that are right, towers that differ only in their context."""

import itertools

import numpy as np
import pytest

from dilax.data.scenes import SPLITS, Layout, Scenes, paint
from dilax.data.scenes_painting import (
    CLASSES,
    CONTEXT_CLASSES,
    IGNORE,
    PALETTE,
    TOWER_ON,
)

GROUND_OF = {CLASSES.index(t): CLASSES.index(g) for g, t in TOWER_ON.items()}
TOWERS, GROUNDS = list(GROUND_OF), list(GROUND_OF.values())
ROW = 215  # of a 256-pixel scene: above all ground, below all balloons


@pytest.fixture(scope="module")
def examples():
    return list(Scenes("val", count=60))


def _towers(example):
    """The class, and the slice of columns at ROW, of each tower of a scene."""
    row = example["label"][ROW]
    changes = np.flatnonzero(np.diff(np.isin(row, TOWERS), prepend=False, append=False))
    for start, stop in changes.reshape(-1, 2):
        yield int(row[start]), slice(int(start), int(stop))


def test_a_scene_depends_on_seed_split_and_index_alone():
    one, again = (Scenes("val", n, 64, seed=1)[2]["image"] for n in (3, 9))
    np.testing.assert_array_equal(one, again)
    others = [Scenes("val", 9, 64, 2)[2], Scenes("train", 9, 64, 1)[2]]
    for other in [*others, Scenes("val", 9, 64, 1)[3]]:
        assert np.abs(one.astype(int) - other["image"]).mean() > 5


@pytest.mark.parametrize(
    "split, i, means",
    [
        ("train", 0, [128.16, 99.02, 112.31, 12.44]),
        ("train", 3, [136.86, 160.71, 182.65, 12.2]),
        ("val", 0, [133.69, 94.8, 106.32, 16.34]),
        ("val", 3, [155.46, 161.56, 160.67, 11.32]),
    ],
)
def test_scenes_are_those_of_the_published_results(split, i, means):
    """The quickstart's accuracy was measured on them: mean R, G, B and label."""
    example = Scenes(split)[i]
    found = [*example["image"].mean((0, 1)), example["label"].mean()]
    np.testing.assert_allclose(found, means, atol=0.02)


def test_types_and_names(examples):
    example = examples[7]
    assert example["image"].shape == (256, 256, 3)
    assert example["label"].shape == (256, 256)
    assert example["image"].dtype == example["label"].dtype == np.uint8
    assert len({e["id"] for e in examples}) == len(examples)
    assert len(set(PALETTE)) == len(CLASSES)
    assert sorted(TOWER_ON.values()) == sorted(CONTEXT_CLASSES)


def test_labels_are_classes_all_of_which_occur(examples):
    seen = np.unique([e["label"] for e in examples])
    assert seen.tolist() == [*range(len(CLASSES)), IGNORE]


def test_a_thin_band_is_ignored_between_any_two_classes(examples):
    for example in examples[:20]:
        label = example["label"]
        assert 0.01 < (label == IGNORE).mean() < 0.1
        for one, two in ((label[1:], label[:-1]), (label[:, 1:], label[:, :-1])):
            assert not ((one != two) & (one != IGNORE) & (two != IGNORE)).any()
        ignored = np.pad(label == IGNORE, 2, constant_values=True)
        windows = np.lib.stride_tricks.sliding_window_view(ignored, (5, 5))
        assert not windows.all((2, 3)).any()


def test_train_and_val_share_no_scene():
    images = [e["image"].tobytes() for s in SPLITS for e in Scenes(s, 40, size=64)]
    assert len(set(images)) == 80


def test_the_ground_below_a_tower_decides_its_class(examples):
    count = 0
    for example in examples:
        for kind, columns in _towers(example):
            below = example["label"][ROW:, columns]
            assert set(np.unique(below)) <= {kind, GROUND_OF[kind], IGNORE}
            assert (below[-1] == GROUND_OF[kind]).all()
            count += 1
    assert count > 2 * len(examples)


def test_most_of_a_tower_is_far_from_all_ground(examples):
    """Of all tower pixels, 57 percent were measured to be further than 75 pixels."""
    far = []
    for example in examples:
        label = example["label"]
        ground = np.isin(label, GROUNDS)
        first = np.where(ground.any(0), ground.argmax(0), 10_000)
        y, x = (at[::7, None] for at in np.nonzero(np.isin(label, TOWERS)))
        away = np.hypot(x - np.arange(256), np.minimum(y - first, 0))
        far.append(away.min(1) > 75)
    assert np.concatenate(far).mean() > 0.54


def _paint(kinds, seed=11, size=128):
    layout = next(
        drawn
        for i in itertools.count(seed)
        if len((drawn := Layout(np.random.default_rng(i))).borders) == 2
    )
    above, below = np.random.default_rng(1), np.random.default_rng(2)
    return layout, *paint(layout, kinds, above, below, size)


def test_nothing_above_the_ground_changes_when_the_kinds_of_ground_do():
    names = list(TOWER_ON)
    layout, image, label = _paint(names)
    rows = int((layout.horizon - 4) / 2)
    for kinds in itertools.product(names, repeat=3):
        _, other_image, other_label = _paint(list(kinds))
        np.testing.assert_array_equal(other_image[:rows], image[:rows])
        np.testing.assert_array_equal(
            np.isin(other_label, TOWERS), np.isin(label, TOWERS)
        )
        if list(kinds) != names:
            assert (other_label[:rows] != label[:rows]).any()
            assert (other_image[rows:] != image[rows:]).any()


def _looks(example, kind, columns):
    """What is visible of a tower: colour, spread, place, width and height."""
    wide = slice(max(columns.start - 8, 0), columns.stop + 8)
    label = example["label"][:ROW, wide]
    pixels = example["image"][:ROW, wide][label == kind]
    middle, width = (columns.start + columns.stop) / 2, columns.stop - columns.start
    top = np.flatnonzero((label == kind).any(1))[0]
    return [*pixels.mean(0), *pixels.std(0), middle, width, top]


def _apart(rows, kinds):
    """How far class means are apart, in deviations of a single tower."""
    rows, kinds = np.array(rows), np.array(kinds)
    means = np.stack([rows[kinds == kind].mean(0) for kind in TOWERS])
    return np.ptp(means, axis=0) / rows.std(0)


def test_towers_of_all_classes_look_alike_but_their_ground_differs(examples):
    """Between equal classes of 50 towers 0.08 to 0.55 deviations were measured."""
    looks, grounds, kinds = [], [], []
    for example in examples:
        for kind, columns in _towers(example):
            looks.append(_looks(example, kind, columns))
            grounds.append(example["image"][-6:, columns].mean((0, 1)))
            kinds.append(kind)
    assert (_apart(looks, kinds) < 0.65).all()
    assert (_apart(grounds, kinds) > 1.2).any()


def _arrays(example):
    return example["image"], example["label"]


def test_size_scales_the_scene_and_changes_nothing_else():
    large, half = (Scenes("val", 1, size, seed=7)[0] for size in (256, 128))
    image, label, small, small_label = *_arrays(large), *_arrays(half)
    halved = image.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 4
    sure = (label[::2, ::2] != IGNORE) & (small_label != IGNORE)
    assert (label[::2, ::2] == small_label)[sure].mean() > 0.999


def test_scenes_are_kept_and_cannot_be_written_to():
    source = Scenes("train", 2, size=64)
    assert source[1]["image"] is source[1]["image"]
    with pytest.raises(ValueError, match="read-only"):
        source[1]["label"][:] = 0


def test_a_source_ends():
    source = Scenes("val", 3, size=64)
    assert len(source) == len(list(source)) == 3
    np.testing.assert_array_equal(source[-1]["image"], source[2]["image"])
    for index in (3, -4):
        with pytest.raises(IndexError, match="3 scenes"):
            source[index]
    assert {s: len(Scenes(s)) for s in SPLITS} == SPLITS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split='test'.*train, val"),
        ({"split": "val", "count": 0}, "count=0.*at least 1"),
        ({"split": "val", "size": 100}, "size=100.*multiple of 8"),
        ({"split": "val", "size": 56}, "size=56.*at least 64"),
        ({"split": "val", "seed": -1}, "seed=-1.*at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**arguments)
