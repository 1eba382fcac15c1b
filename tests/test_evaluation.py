"""Accuracy: exact counts, the figures read off them, and the tables."""

import dataclasses

import numpy as np
import pytest

from dilax.data import DatasetSpec, colour_map
from dilax.evaluation import (
    Scores,
    evaluate,
    image_scores,
    stage_table,
)
from dilax.inference import Predictor
from dilax.models import DilatedNet, FrontEnd, Layer

CLASSES = ("sky", "tree", "road", "car")
SPEC = DatasetSpec(
    "bgr", ("b", "g", "r"), colour_map(3), (0.0, 0.0, 0.0), tile=(64, 64)
)


def _counted(num_classes, *pairs):
    """A confusion matrix, pixel by pixel."""
    matrix = np.zeros((num_classes, num_classes), int)
    for labels, guesses in pairs:
        for label, guess in zip(labels.flat, guesses.flat, strict=True):
            if label != 255:
                matrix[label, guess] += 1
    return matrix


def _random_labels(shape, seed, num_classes=4):
    rng = np.random.default_rng(seed)
    labels = rng.choice([*range(num_classes), 255], shape).astype(np.uint8)
    return labels, rng.integers(0, num_classes, shape, np.int32)


# Counts.


@pytest.mark.parametrize("shape", [(7, 9), (5, 3), (1, 1)])
def test_counts_are_those_of_a_loop_over_the_pixels(shape):
    label, guess = _random_labels(shape, 0)
    found = image_scores(CLASSES, label, guess)
    np.testing.assert_array_equal(found.confusion, _counted(4, (label, guess)))


def test_ignored_pixels_count_nowhere():
    label, guess = np.array([[9, 9, 1]], np.uint8), np.array([[0, 1, 2]])
    found = image_scores(("a", "b", "c"), label, guess, ignore_label=9)
    assert found.confusion.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_sums_of_large_counts_are_exact():
    scores = Scores(("a", "b"), np.full((2, 2), 2**64 - 1, object))
    assert scores.confusion.sum() == 4 * (2**64 - 1)
    assert scores.iou_per_class == {"a": 1 / 3, "b": 1 / 3}
    assert scores.as_dict()["confusion"] == [[2**64 - 1] * 2] * 2


# Figures.


@pytest.fixture
def by_hand():
    """Of four classes, car is predicted but never there."""
    counts = [[6, 2, 0, 0], [1, 3, 0, 0], [0, 2, 4, 2], [0, 0, 0, 0]]
    return Scores(CLASSES, np.array(counts, object))


def test_iou_is_intersection_over_union(by_hand):
    expected = {"sky": 6 / 9, "tree": 3 / 8, "road": 4 / 8, "car": 0.0}
    assert by_hand.iou_per_class == pytest.approx(expected)
    assert by_hand.mean_iou == pytest.approx((6 / 9 + 3 / 8 + 4 / 8) / 4)


def test_accuracies_are_shares_of_the_labelled_pixels(by_hand):
    assert by_hand.pixel_accuracy == pytest.approx(13 / 20)
    assert by_hand.mean_accuracy == pytest.approx((6 / 8 + 3 / 4 + 4 / 8) / 3)


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    scores = Scores(("a", "b", "c"), np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    assert scores.iou_per_class == {"a": 3 / 4, "b": 4 / 5, "c": None}
    assert scores.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_nothing_counted_gives_no_figures():
    scores = Scores(CLASSES, np.zeros((4, 4), int))
    assert set(scores.iou_per_class.values()) == {None}
    figures = scores.mean_iou, scores.pixel_accuracy, scores.mean_accuracy
    assert np.isnan(figures).all()


def test_results_hold_every_figure(by_hand):
    results = by_hand.as_dict()
    assert results["mean_iou"] == by_hand.mean_iou
    assert results["pixel_accuracy"] == by_hand.pixel_accuracy
    assert results["mean_accuracy"] == by_hand.mean_accuracy
    assert results["iou_per_class"] == by_hand.iou_per_class
    assert results["confusion"][2] == [0, 2, 4, 2]
    assert type(results["confusion"][2][1]) is int
    assert not [key for key in results if "category" in key]


# Categories: classes that count as one.

NATURE = ("nature", ("sky", "tree"))
GROUND = ("ground", ("road", "car"))


def test_confusion_within_a_category_is_a_hit(by_hand):
    scores = Scores(CLASSES, by_hand.confusion, (NATURE, GROUND))
    # Of 20 pixels, 12 are nature and 8 ground; 2 of ground are predicted nature.
    assert scores.iou_per_category == {"nature": 12 / 14, "ground": 6 / 8}
    assert scores.mean_category_iou == pytest.approx((12 / 14 + 6 / 8) / 2)
    assert scores.iou_per_class == by_hand.iou_per_class
    assert scores.mean_iou == by_hand.mean_iou


def test_classes_without_a_category_are_misses_for_the_others(by_hand):
    scores = Scores(CLASSES, by_hand.confusion, (("green", ("tree",)), ("x", ("car",))))
    assert scores.iou_per_category == {"green": 3 / 8, "x": 0.0}
    assert scores.mean_category_iou == 3 / 16


def test_a_category_that_is_nowhere_is_left_out_of_the_mean():
    counts = np.zeros((4, 4), object)
    counts[0, :2] = 3, 1
    scores = Scores(CLASSES, counts, (NATURE, GROUND))
    assert scores.iou_per_category == {"nature": 1.0, "ground": None}
    assert scores.mean_category_iou == 1.0
    empty = Scores(CLASSES, np.zeros((4, 4), int), (NATURE, GROUND))
    assert set(empty.iou_per_category.values()) == {None}
    assert np.isnan(empty.mean_category_iou)


def test_category_sums_of_large_counts_are_exact():
    scores = Scores(CLASSES, np.full((4, 4), 2**64 - 1, object), (NATURE, GROUND))
    assert scores.iou_per_category == {"nature": 4 / 12, "ground": 4 / 12}


def test_results_hold_the_categories_where_there_are_any(by_hand):
    scores = Scores(CLASSES, by_hand.confusion, (NATURE, GROUND))
    added = {
        "mean_category_iou": scores.mean_category_iou,
        "iou_per_category": scores.iou_per_category,
    }
    assert scores.as_dict() == by_hand.as_dict() | added


# A whole source. The networks name each pixel, or each block of 8 × 8, for the largest
# of its B, G and R.


def _predictor(layers, batch_size, spec=SPEC):
    final = {"kernel": np.eye(3, dtype="f4")[None, None], "bias": np.zeros(3, "f4")}
    params = {"front_end": {"final": final}}
    return Predictor(DilatedNet(FrontEnd(3, layers)), params, spec, batch_size)


def _samples():
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (*size, 3), np.uint8),
            "label": _random_labels(size, 7, 3)[0],
            "id": str(size),
        }
        for size in [(1, 1), (70, 9), (13, 5), (64, 64), (66, 10)]
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_pixel_of_every_image_is_counted_once(batch_size):
    samples = _samples()
    scores = evaluate(_predictor((), batch_size), samples, title="")
    guesses = [s["image"][..., ::-1].argmax(-1) for s in samples]
    labels = [s["label"] for s in samples]
    expected = _counted(3, *zip(labels, guesses, strict=True))
    np.testing.assert_array_equal(scores.confusion, expected)
    assert scores.confusion.sum() == sum((label != 255).sum() for label in labels)
    assert scores.classes == ("b", "g", "r")
    assert scores.categories == ()


def test_a_data_set_s_categories_are_measured():
    categories = (("cold", ("b", "g")), ("warm", ("r",)))
    spec = dataclasses.replace(SPEC, categories=categories)
    scores = evaluate(_predictor((), 2, spec), _samples(), title="")
    counts = scores.confusion
    cold, warm = counts[:2, :2].sum(), counts[2, 2]
    missed = counts[:2, 2].sum() + counts[2, :2].sum()
    assert scores.iou_per_category == pytest.approx(
        {"cold": cold / (cold + missed), "warm": warm / (warm + missed)}
    )


@pytest.mark.parametrize("batch_size, title", [(1, ""), (3, "bar")])
def test_predictions_are_shown_in_order_and_are_those_that_count(batch_size, title):
    samples, shown = _samples(), []
    predictor = _predictor((Layer("pool", 8),), batch_size)
    scores = evaluate(predictor, samples, title, lambda *args: shown.append(args))
    assert [index for index, _, _ in shown] == [0, 1, 2, 3, 4]
    for sample, (_, given, prediction) in zip(samples, shown, strict=True):
        np.testing.assert_array_equal(given["image"], sample["image"])
        np.testing.assert_array_equal(prediction, predictor(sample["image"]))
    pairs = [(given["label"], prediction) for _, given, prediction in shown]
    np.testing.assert_array_equal(scores.confusion, _counted(3, *pairs))


# Tables.


def _stage(**iou):
    figures = {"mean_iou": 0.5, "pixel_accuracy": 0.75, "mean_accuracy": float("nan")}
    return {**figures, "iou_per_class": iou}


def _cells(table):
    rows = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [cells[0], *cells[2:]]


def test_a_table_sets_the_stages_side_by_side():
    stages = {
        "front_end": _stage(sky=0.1234, tree=1.0),
        "joint": {**_stage(sky=None, tree=0.0), "mean_iou": 0.625},
    }
    assert _cells(stage_table(stages)) == [
        ["IoU, %", "front end", "joint"],
        ["sky", "12.3", "–"],
        ["tree", "100.0", "0.0"],
        ["**mean IoU**", "50.0", "62.5"],
        ["pixel accuracy", "75.0", "75.0"],
        ["mean accuracy", "–", "–"],
    ]


def test_marked_classes_have_a_star_and_a_mean_of_their_own():
    stages = {"one": _stage(a=0.2, b=0.9, c=0.4), "two": _stage(a=None, b=0.9, c=0.3)}
    table = stage_table(stages, marked=("a", "c"))
    assert _cells(table)[1:5] == [
        ["a *", "20.0", "–"],
        ["b", "90.0", "90.0"],
        ["c *", "40.0", "30.0"],
        ["mean of *", "30.0", "30.0"],
    ]
    assert table.endswith("only the surroundings tell these apart")
    assert "surroundings" not in stage_table(stages)


def test_categories_stand_below_the_classes():
    first = _stage(a=0.2, b=0.9)
    measured = {"mean_category_iou": 0.5, "iou_per_category": {"x": 0.25, "y": None}}
    table = stage_table({"one": first, "two": {**first, **measured}}, marked=("a",))
    assert _cells(table)[1:8] == [
        ["a *", "20.0", "20.0"],
        ["b", "90.0", "90.0"],
        ["mean of *", "20.0", "20.0"],
        ["category x", "–", "25.0"],
        ["category y", "–", "–"],
        ["mean of categories", "–", "50.0"],
        ["**mean IoU**", "50.0", "50.0"],
    ]


@pytest.mark.parametrize(
    "label, prediction, iou",
    [
        ([[0, 0, 1, 1]], [[0, 0, 1, 1]], 1.0),
        ([[0, 0, 1, 1]], [[0, 0, 0, 0]], 0.25),  # 1/2 and 0
        ([[0, 0, 255, 255]], [[0, 0, 5, 5]], 1.0),  # void counts nowhere
        ([[0, 0, 0, 0]], [[0, 0, 0, 1]], 0.375),  # 3/4 and 0
    ],
)
def test_an_image_s_iou(label, prediction, iou):
    arrays = np.array(label, np.uint8), np.array(prediction)
    found = image_scores(("a", "b", "c"), *arrays)
    assert found.mean_iou == pytest.approx(iou)
