"""Accuracy near boundaries: cases by hand, and slow ways to the same figures."""

import numpy as np
import pytest
from telling import Telling, blocks, corrupted, sample

from dilax.data import DatasetSpec, colour_map
from dilax.evaluation import BoundaryScores, boundary_table, evaluate
from dilax.evaluation.boundary import boundary_distance, boundary_pixels

CLASSES = ("sky", "tree", "road")


def _scores(*pairs, tolerance=None, classes=CLASSES):
    scores = BoundaryScores.empty(classes, tolerance=tolerance)
    for label, prediction in pairs:
        scores = scores.plus(np.asarray(label), np.asarray(prediction, np.int32))
    return scores


def _halves(edge, width=100, height=6, left=0, right=1):
    """A map whose class changes at column `edge`."""
    row = np.where(np.arange(width) < edge, left, right).astype(np.uint8)
    return np.tile(row, (height, 1))


# Bands.


@pytest.mark.parametrize("shift", [1, 3, 5])
def test_a_straight_edge_moved_spoils_its_band_alone(shift):
    scores = _scores((_halves(50), _halves(50 + shift)))
    for width in (1, 2, 4, 8, 40):
        wrong = min(shift, width)  # of the 2 × width columns of the band
        accuracy = 1 - wrong / (2 * width)
        assert scores.pixel_accuracy(width) == pytest.approx(accuracy)
        ious = width / (width + wrong), (width - wrong) / width
        assert scores.mean_iou(width) == pytest.approx(np.mean(ious))


def test_distance_is_that_to_the_nearest_boundary_pixel():
    labels = np.zeros((9, 9), np.uint8)
    labels[4, 4] = 1
    cross = np.argwhere(boundary_pixels(labels)).tolist()
    assert cross == [[3, 4], [4, 3], [4, 4], [4, 5], [5, 4]]
    distance = boundary_distance(labels)
    assert distance[4, 4] == 0 and distance[0, 4] == 3
    assert distance[3, 3] == 1 and distance[0, 0] == 5  # by (3, 4)
    assert np.isinf(boundary_distance(np.full((3, 4), 2))).all()


def test_void_is_a_boundary_but_in_no_band():
    label = _halves(50)
    label[:, 48:52] = 255  # an outline, as in Pascal VOC
    scores = _scores((label, _halves(47)))
    assert scores.band(1).confusion[:2, :2].tolist() == [[0, 6], [0, 6]]
    assert scores.pixel_accuracy(4) == pytest.approx(7 / 8)
    assert scores.counts.sum() == 6 * 2 * 40


def test_images_without_a_boundary_or_without_a_label_count_nowhere():
    void = np.full((8, 9), 255, np.uint8)
    plain = np.full((8, 9), 1, np.uint8)
    scores = _scores((void, _halves(4, 9, 8)), (plain, plain))
    assert scores.counts.sum() == scores.images == 0
    found = scores.as_dict()
    assert {*found["trimap_iou"].values(), *found["trimap_accuracy"].values()} == {None}
    assert found["boundary_f"] is None


def test_what_is_perfect_is_1():
    label = blocks(range(3), (60, 50), 1, 7).astype(np.uint8)
    found = _scores((label, label), tolerance=0.0).as_dict()
    assert found["boundary_f"] == 1
    assert {*found["trimap_iou"].values(), *found["trimap_accuracy"].values()} == {1.0}
    assert [*found["trimap_iou"]] == [str(r) for r in range(1, 41)]


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    pair = _halves(50, right=2), _halves(53, right=2)
    scores = _scores(pair)
    assert scores.band(8).iou_per_class["tree"] is None
    assert scores.mean_iou(8) == pytest.approx((8 / 11 + 5 / 8) / 2)


# Boundary F.


@pytest.mark.parametrize("tolerance, f", [(1.0, 0.0), (2.9, 0.0), (3.0, 1.0)])
def test_a_boundary_is_hit_within_the_tolerance(tolerance, f):
    assert _scores((_halves(50), _halves(53)), tolerance=tolerance).f_measure == f


def test_the_tolerance_is_a_share_of_the_diagonal():
    # 0.0075 times the diagonals, 500 and 400.5, are 3.75 and just above 3.
    large = _halves(200, 400, 300), _halves(203, 400, 300)
    small = _halves(200, 400, 20), _halves(204, 400, 20)
    assert _scores(large).f_measure == 1
    assert _scores(small).f_measure == 0
    assert _scores(large, small).f_measure == 0.5


def test_f_is_averaged_over_the_classes_of_an_image():
    label, prediction = _halves(50), _halves(50)
    prediction[:, 80:] = 2  # tree: 1 right of 2, all found; road: 0 of 1
    f = _scores((label, prediction), tolerance=1.0).f_measure
    assert f == pytest.approx((1 + 2 * 0.5 / 1.5 + 0) / 3)
    # The other way round, a boundary is missed and no class is made up.
    f = _scores((prediction, label), tolerance=1.0).f_measure
    assert f == pytest.approx((1 + 2 * 0.5 / 1.5 + 0) / 3)


def test_a_boundary_on_void_may_be_hit_and_is_no_error():
    label = _halves(50)
    label[:, 48:52] = 255
    prediction = _halves(50)
    assert _scores((label, prediction), tolerance=2.0).f_measure == 1
    assert _scores((label, prediction), tolerance=1.0).f_measure == 0
    label[:, 60:], prediction[:, 80:] = 255, 2  # far off in the void
    assert _scores((label[:, 30:], prediction[:, 30:]), tolerance=2.0).images == 1
    only_void = np.where(np.arange(100) < 50, label, 255)
    f = _scores((only_void, np.where(only_void == 255, 2, 0)), tolerance=2.0)
    assert f.f_measure == 1  # road is nowhere but on void, and left out


# Slow ways to the same.


def _neighbours(y, x, shape):
    for dy, dx in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        if 0 <= y + dy < shape[0] and 0 <= x + dx < shape[1]:
            yield y + dy, x + dx


def _boundary(labels):
    """(n, 2) places of boundary pixels, by loops."""
    found = [
        (y, x)
        for y, x in np.ndindex(labels.shape)
        if any(labels[n] != labels[y, x] for n in _neighbours(y, x, labels.shape))
    ]
    return np.array(found).reshape(-1, 2)


def _distances(places, others):
    """From each place to the nearest of the others."""
    if not len(others):
        return np.full(len(places), np.inf)
    return np.hypot(*np.moveaxis(places[:, None] - others, -1, 0)).min(1)


def _slow_accuracy(label, prediction, width):
    places = np.argwhere(label != 255)
    near = places[_distances(places, _boundary(label)) < width]
    return np.mean(label[*near.T] == prediction[*near.T])


def _slow_f(label, prediction, classes, tolerance):
    def of(labels, c):
        return np.array([p for p in _boundary(labels) if labels[*p] == c], int).reshape(
            -1, 2
        )

    values = []
    for c in range(classes):
        true, said = of(label, c), of(prediction, c)
        hit = _distances(true, said) <= tolerance
        right = _distances(said, true) <= tolerance
        right = right[right | (label[*said.T] != 255)]
        if len(hit) + len(right):
            p = right.mean() if len(right) else 0
            r = hit.mean() if len(hit) else 0
            values.append(2 * p * r / (p + r) if p + r else 0)
    return np.mean(values)


def _random_pair(classes, shape, seed):
    label = blocks([*range(classes), 255], shape, seed, 6).astype(np.uint8)
    return label, corrupted(label, range(classes), seed).astype(np.int32)


@pytest.mark.parametrize("seed, shape", [(0, (31, 40)), (1, (40, 23)), (2, (3, 50))])
@pytest.mark.parametrize("tolerance", [0.0, 1.5, 4.3])
def test_the_figures_are_those_of_a_slow_search(seed, shape, tolerance):
    label, prediction = _random_pair(4, shape, seed)
    scores = _scores((label, prediction), tolerance=tolerance, classes=tuple("abcd"))
    assert scores.f_measure == pytest.approx(_slow_f(label, prediction, 4, tolerance))
    for width in (1, 2, 3, 5, 40):
        accuracy = _slow_accuracy(label, prediction, width)
        assert scores.pixel_accuracy(width) == pytest.approx(accuracy)


def test_classes_beyond_one_word_of_bits_are_told_apart():
    label, prediction = _random_pair(150, (40, 40), 0)
    names = tuple(map(str, range(150)))
    scores = _scores((label, prediction), tolerance=2.0, classes=names)
    assert 0 < scores.f_measure < 1
    assert scores.f_measure == pytest.approx(_slow_f(label, prediction, 150, 2.0))


@pytest.mark.parametrize("turned", [np.fliplr, np.flipud, np.transpose])
def test_turning_the_maps_changes_nothing(turned):
    label, prediction = _random_pair(3, (61, 83), 4)
    scores = _scores((label, prediction))
    other = _scores((turned(label), turned(prediction)))
    np.testing.assert_array_equal(scores.counts, other.counts)
    assert scores.f_measure == other.f_measure


def test_pixels_of_all_images_count_alike():
    pairs = [_random_pair(3, shape, 5) for shape in ((20, 30), (90, 70))]
    both = _scores(*pairs)
    counts = sum(_scores(pair).counts for pair in pairs)
    np.testing.assert_array_equal(both.counts, counts)
    apart = [_scores(pair).f_measure for pair in pairs]
    assert both.f_measure == pytest.approx(np.mean(apart))


def test_wrong_arguments_are_named(unchecked):
    with pytest.raises(ValueError, match=r"tolerance=-1: must be a number"):
        BoundaryScores.empty(CLASSES, tolerance=-1)
    with pytest.raises(ValueError, match=r"prediction: \(2, 3\).*\(3, 2\)"):
        _scores((np.zeros((3, 2), int), np.zeros((2, 3), int)))
    with pytest.raises(ValueError, match="width=41: must be 1 to 40"):
        _scores().band(41)


# Of a whole source.


def test_evaluate_measures_boundaries_if_asked():
    spec = DatasetSpec("hills", CLASSES, colour_map(3), (0.0, 0.0, 0.0))
    pairs = [_random_pair(3, shape, 6) for shape in ((50, 40), (30, 30), (70, 20))]
    samples = [sample(*pair, str(i)) for i, pair in enumerate(pairs)]
    found = evaluate(Telling(spec, 2), samples, "", boundaries=True).as_dict()
    expected = _scores(*pairs).as_dict()
    assert {key: found[key] for key in expected} == expected
    plain = evaluate(Telling(spec, 2), samples, "").as_dict()
    assert plain == {key: found[key] for key in found.keys() - expected}


def test_a_table_sets_the_stages_side_by_side():
    found = _scores((_halves(50), _halves(52)), tolerance=2.0).as_dict()
    table = boundary_table({"front_end": found, "old": {}}, widths=(2, 40))
    rows = [[c.strip() for c in row.split("|")[1:-1]] for row in table.splitlines()]
    assert [rows[0], *rows[2:]] == [
        ["boundaries, %", "front end", "old"],
        ["mean IoU within 2 px", "25.0", "–"],
        ["mean IoU within 40 px", "95.1", "–"],
        ["boundary F", "100.0", "–"],
    ]
