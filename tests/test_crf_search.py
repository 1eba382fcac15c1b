"""The search for CRF parameters, on scenes of which a predictor knows a noisy truth."""

import dataclasses
import json
import re

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dilax.crf import CRFGrid, DenseCRF, search_crf
from dilax.data import DATASETS, Scenes
from dilax.evaluation import Scores
from dilax.inference import Predictor

pytestmark = pytest.mark.slow

SPEC = dataclasses.replace(DATASETS["scenes"], mean=(0.0, 0.0, 0.0))
GRID = CRFGrid((1.0, 4.0), (10.0, 40.0), (12.0,))
SOURCE = Scenes("val", 3, 64)


class Noisy(Predictor):
    """Gives the truth's probabilities with noise, and counts how often."""

    def __init__(self, noise=3.0, params=(), fails_at=None):
        self.spec, self.params = SPEC, params
        self.mode, self.views, self.batch_size = "tiles", [], 1
        self.noise, self.fails_at, self.seen = noise, fails_at, []

    def probabilities(self, images):
        if len(self.seen) == self.fails_at:
            raise KeyboardInterrupt
        sample = next(s for s in SOURCE if (s["image"] == images).all())
        self.seen.append(sample["id"])
        truth = np.eye(8)[sample["label"] % 255]
        noise = np.random.default_rng(0).standard_normal(truth.shape)
        logits = gaussian_filter(6 * truth + 3 * self.noise * noise, (2, 2, 0))
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        total = probabilities.sum(-1, keepdims=True)
        return (probabilities / total).astype("f4")


def _search(path, predictor=None, source=SOURCE, **options):
    options = {"grid": GRID, "iterations": 3, "title": "", **options}
    return search_crf(predictor or Noisy(), source, path, **options)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search, its record, and the predictor that it asked."""
    path, predictor = tmp_path_factory.mktemp("crf") / "search.json", Noisy()
    return _search(path, predictor), path, predictor


def _mean_iou(crf=None):
    """The mean IoU over the source, counted pixel by pixel class by class."""
    counts = np.zeros((8, 8), int)
    for sample in SOURCE:
        probabilities = Noisy().probabilities(sample["image"])
        guess = np.asarray(
            crf(probabilities, sample["image"]) if crf else probabilities
        ).argmax(-1)
        known = sample["label"] != 255
        np.add.at(counts, (sample["label"][known], guess[known]), 1)
    return Scores(SPEC.classes, counts).mean_iou


# What is found.


def test_the_search_finds_a_crf_that_is_better_than_none(searched):
    found, _, _ = searched
    assert found.improves
    assert found.mean_iou > found.without + 0.05
    assert found.mean_iou == max(p["mean_iou"] for p in found.points)


def test_every_point_has_the_figure_of_its_own_crf(searched):
    found, _, _ = searched
    assert found.without == pytest.approx(_mean_iou(), abs=1e-9)
    assert found.mean_iou == pytest.approx(_mean_iou(found.best), abs=1e-4)
    for point in found.points[1::6]:  # of both rounds
        parameters = {n: v for n, v in point.items() if n not in ("mean_iou", "round")}
        crf = DenseCRF(**parameters, iterations=3)
        assert point["mean_iou"] == pytest.approx(_mean_iou(crf), abs=1e-4)


def test_a_fine_grid_surrounds_the_coarse_best(searched):
    found, _, predictor = searched
    coarse = [p for p in found.points if p["round"] == "coarse"]
    fine = [p for p in found.points if p["round"] == "fine"]
    assert len(coarse) == 4
    assert len(fine) == 3**2 - 1
    best = max(coarse, key=lambda p: p["mean_iou"])
    for name in ("bilateral_weight", "bilateral_sigma_xy"):
        low, middle, high = sorted({p[name] for p in fine})
        assert low < middle == best[name] < high
    assert {p["spatial_weight"] for p in found.points} == {3.0}
    assert predictor.seen == [s["id"] for s in SOURCE] * 2


def test_it_says_what_it_will_take_and_what_came_of_it(tmp_path, capsys):
    path = tmp_path / "search.json"
    grid = CRFGrid((500.0,), (40.0,), (80.0,))
    found = _search(path, Noisy(noise=0.0), grid=grid, title="search")
    assert not found.improves
    assert found.mean_iou < found.without
    assert len(found.points) == 1  # nothing to refine
    first, last = capsys.readouterr().out.splitlines()
    assert re.match(r"search: 1 CRFs on 3 images, about \d+\.\d minutes on 1 x ", first)
    assert last == (
        f"search: mean IoU {100 * found.mean_iou:.2f} % with the best CRF, "
        f"{100 * found.without:.2f} % without one ({path})"
    )
    assert json.loads(path.read_text())["improves"] is False


@pytest.mark.parametrize("wanted, taken", [(1, [0]), (2, [0, 1]), (9, [0, 1, 2])])
def test_images_are_spread_over_the_source(tmp_path, wanted, taken):
    predictor, grid = Noisy(), CRFGrid((1.0,), (10.0,), (6.0,))
    _search(tmp_path / "s.json", predictor, images=wanted, grid=grid)
    assert predictor.seen == [SOURCE[i]["id"] for i in taken]


# The record.


def test_the_record_holds_every_point(searched):
    found, path, _ = searched
    record = json.loads(path.read_text("utf-8"))
    assert tuple(record["points"]) == found.points
    assert (record["without"], record["improves"]) == (found.without, True)
    assert record["best"]["mean_iou"] == found.mean_iou
    assert record["search"]["images"] == 3
    assert record["search"]["grid"]["bilateral_weight"] == [1.0, 4.0]
    assert "under_way" not in record
    assert [p.name for p in path.parent.iterdir()] == ["search.json"]


@pytest.mark.parametrize("done", [1, 4])
def test_an_interrupted_search_goes_on_and_counts_nothing_twice(
    searched, tmp_path, done
):
    found, path, _ = searched
    other = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        _search(other, Noisy(fails_at=done))
    rest = Noisy()
    assert _search(other, rest) == found
    assert len(rest.seen) == 6 - done
    assert json.loads(other.read_text()) == json.loads(path.read_text())


def test_a_finished_search_is_read(searched):
    found, path, _ = searched
    before = path.read_bytes()
    predictor = Noisy()
    assert _search(path, predictor) == found
    assert (predictor.seen, path.read_bytes()) == ([], before)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"iterations": 4}, "iterations: 3 there, 4 here"),
        ({"images": 2}, "images: 3 there, 2 here"),
        ({"grid": CRFGrid()}, "grid: "),
        ({"predictor": Noisy(params=(np.ones(3),))}, "network: 00000000"),
    ],
)
def test_a_record_of_another_search_is_refused_and_stays(searched, change, named):
    _, path, _ = searched
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"another search .*{named}"):
        _search(path, **change)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "[]", '{"search": {}}', "{"])
def test_what_is_no_record_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "search.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"search.json: not the record of a search"):
        _search(path)
    assert path.read_text() == text


def test_a_damaged_record_is_refused_and_stays(searched, tmp_path):
    path = tmp_path / "search.json"
    whole = searched[1].read_text("utf-8")
    for old, new in (('"mean_iou": 0.', '"mean_iou": 1.'), ('"points"', '"pointz"')):
        assert old in whole
        path.write_text(whole.replace(old, new, 1), "utf-8")
        with pytest.raises(ValueError, match=r"search.json: .*damaged; move it"):
            _search(path)
        assert new in path.read_text("utf-8")


# The grid.


def test_a_grid_is_all_combinations_with_equal_bandwidths_together():
    points = CRFGrid((4.0, 1.0, 4.0), (50.0,), (3.0, 6.0), (2.0, 3.0)).points()
    assert [
        (p["bilateral_sigma_rgb"], p["bilateral_weight"], p["spatial_weight"])
        for p in points
    ] == [(r, w, s) for r in (3, 6) for w in (1, 4) for s in (2, 3)]
    assert all(DenseCRF(**p).spatial_sigma == 3 for p in points)


@pytest.mark.parametrize(
    "value, around",
    [(1.0, (0.5, 1.0, 2.0)), (4.0, (2.0, 4.0, 8.0)), (16.0, (8.0, 16.0, 32.0))],
)
def test_half_a_step_is_the_root_of_the_ratio(value, around):
    grid = CRFGrid((1.0, 4.0, 16.0), (50.0,), (2.0, 6.0))
    point = {**grid.points()[0], "bilateral_weight": value}
    fine = grid.around(point)
    assert fine.bilateral_weight == around
    assert fine.bilateral_sigma_xy == (50.0,)
    assert fine.bilateral_sigma_rgb == (1.15, 2.0, 3.46)


def test_the_default_grid_has_the_published_values_within():
    grid = CRFGrid()
    assert grid.bilateral_weight[0] < 3 < 5 < grid.bilateral_weight[-1]
    assert grid.bilateral_sigma_xy[0] < 50 < 95 < grid.bilateral_sigma_xy[-1]
    assert grid.bilateral_sigma_rgb[0] <= 3 < 10 < grid.bilateral_sigma_rgb[-1]
    assert (grid.spatial_weight, grid.spatial_sigma) == ((3.0,), (3.0,))


@pytest.mark.parametrize("values", [(), (0.0,), (1.0, -2.0), (float("nan"),)])
@pytest.mark.parametrize("field", ["bilateral_weight", "spatial_sigma"])
def test_values_that_are_not_positive_are_refused(field, values):
    with pytest.raises(
        ValueError, match=f"grid: {field}=.*must be one or more positive"
    ):
        CRFGrid(**{field: values})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": 0}, "images=0: must be 1 or more"),
        ({"iterations": 0}, "iterations=0: must be 1 or more"),
        ({"source": []}, "source: has no images"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        _search(tmp_path / "search.json", **change)
    assert not list(tmp_path.iterdir())


def test_images_without_a_label_are_refused(tmp_path):
    void = [{**SOURCE[0], "label": np.full((64, 64), 255, np.uint8)}]
    with pytest.raises(ValueError, match="none of the images has a labelled pixel"):
        _search(tmp_path / "s.json", source=void, grid=CRFGrid((1.0,), (9.0,), (9.0,)))


def test_images_of_16_bits_are_searched_as_their_8_bits(tmp_path, searched):
    class Deep(Noisy):
        def probabilities(self, images):
            return super().probabilities((images // 257).astype(np.uint8))

    deep = [{**s, "image": s["image"].astype(np.uint16) * 257} for s in SOURCE]
    found = _search(tmp_path / "search.json", Deep(), deep)
    assert found.points == searched[0].points
