"""The page of a run: its numbers and images, and that it loads nothing else."""

import base64
import dataclasses
import json
import re
import types
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from made_run import IMAGES, SIZE, labels_of, make_run, predicted

from dilax.cli.modes import MODES
from dilax.data import DATASETS
from dilax.inference import palette_image, save_image
from dilax.report import page, watcher, write_comparison, write_page
from dilax.report.fields import summarize_field
from dilax.report.grids import iou_grid, parameters, stage_notes
from dilax.report.page import Predictions, chosen_indices, gallery, gallery_image
from dilax.report.paper import paper_columns
from dilax.report.runs import read_runs, run_charts
from dilax.training import CRFConfig, quickstart, rnn_stage, structured

NONE = {"stages": {}}


class _Elements(HTMLParser):
    """The start tags of a page, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def values(self, *names):
        return [a[n] for _, a in self.found for n in names if a.get(n)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def text(run):
    return write_page(run).read_text("utf-8")


def _data(text):
    found = re.search(r'id="gallery-data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def _ids(packed):
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)


def test_the_page_refers_to_nothing_outside_itself(text):
    elements = _Elements(text)
    for value in elements.values("src", "href", "xlink:href"):
        assert value.startswith(("#", "data:")), value
    assert {tag for tag, _ in elements.found}.isdisjoint({"iframe", "object", "embed"})
    assert "@import" not in text and "default-src 'none'" in text


def test_ids_are_unique_and_references_resolve(text):
    elements = _Elements(text)
    ids = elements.values("id")
    assert len(ids) == len(set(ids))
    named = elements.values("aria-labelledby", "aria-describedby", "for")
    assert {name for value in named for name in value.split()} <= set(ids)
    anchors = {v[1:] for v in elements.values("href") if v.startswith("#")}
    assert anchors <= set(ids)


def test_all_sections_are_present(text):
    for anchor in ("curves", "iou", "images", "confusion", "field", "run"):
        assert f'<section id="{anchor}"' in text


def test_the_table_holds_the_figures_of_results_json(run, text):
    results = json.loads((run / "results.json").read_text())["stages"]
    [folder] = read_runs([run])
    grid = iou_grid(results, [], folder.spec)
    for row, name in zip(grid.rows, folder.spec.classes, strict=False):
        wanted = [f"{100 * s['iou_per_class'][name]:.1f}" for s in results.values()]
        assert (row.name, row.cells, row.best) == (name, wanted, {2})
        assert all(f">{cell}</td>" in text for cell in wanted)
    means = {row.name: row.cells[2] for row in grid.rows}
    assert means["mean IoU"] == f"{100 * results['joint']['mean_iou']:.1f}"


def test_shares_of_the_confusion_are_of_the_rows(run, text):
    counts = json.loads((run / "results.json").read_text())["stages"]["joint"]
    row = counts["confusion"][0]
    for number in filter(None, row):
        assert f">{100 * number / sum(row):.0f}</td>" in text


def test_label_maps_are_stored_exactly(run, text):
    data = _data(text)
    assert len(data["images"]) == data["ranked"] == IMAGES
    for image in data["images"]:
        label = labels_of(run.parent / "run_data", image["index"])
        assert (image["height"], image["width"]) == label.shape == SIZE
        np.testing.assert_array_equal(_ids(image["truth"]), label.ravel())
        for source, more in ((0, 2), (1, 1), (2, 0)):
            found = _ids(image["predictions"][str(source)]["ids"])
            guess = predicted(label, 4 * image["index"] + more)
            np.testing.assert_array_equal(found, guess.ravel())


def test_worst_and_best_images_alternate(run):
    [folder] = read_runs([run])
    found = gallery([folder], shown=4)
    assert [image["index"] for image in found["images"]] == [7, 0, 6, 1]
    assert found["images"][1]["predictions"][2]["iou"] == 1.0


def test_scores_written_by_evaluation_are_used(tmp_path):
    run = make_run(tmp_path / "run", stages=1)
    path = run / "predictions" / "front_end" / "scores.json"
    path.write_text(json.dumps({"3": 0.25, "5": 0.75, "6": None, "99": 1.0}))
    found = gallery(read_runs([run]))
    assert [image["index"] for image in found["images"]] == [3, 5]


def test_chosen_images_are_the_worst_and_the_best_without_repetition():
    scores = {i: i / 10 for i in range(7)}
    assert chosen_indices(scores, 1) == [0]
    assert chosen_indices(scores, 3) == [0, 6, 1]
    assert chosen_indices(scores, 20) == [0, 6, 1, 5, 2, 4, 3]


def test_fifty_images_of_noise_stay_below_ten_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    spec = DATASETS["cityscapes"]
    blocks = rng.integers(19, size=(64, 128), dtype=np.uint8)
    label = np.kron(blocks, np.ones((8, 8), np.uint8))
    photo = rng.normal(128, 40, (*label.shape, 3)).clip(0, 255).astype(np.uint8)
    save_image(palette_image(label, spec), tmp_path / "0000.png")
    stage = Predictions("noise", tmp_path, {0: 1.0})
    one = gallery_image({"image": photo, "label": label}, 0, [stage] * 3, spec)
    assert 50 * len(json.dumps(one)) < 9e6


def test_charts_have_descriptions_and_take_the_colours_of_the_page(run):
    charts = run_charts(read_runs([run]))
    assert [c.title for c in charts] == [
        "Training loss",
        "Mean IoU at full resolution, %",
        "Learning rate",
    ]
    assert "front end goes from 1 to 0.25 over steps 1 to 4" in charts[0].svg
    assert "joint goes from 1 to 0.25 over steps 11 to 14" in charts[0].svg
    for chart in charts:
        assert "<desc id=" in chart.svg and "var(--series-0)" in chart.svg
        assert not re.search(r"#0[14780]0[0-9a-f]{3}", chart.svg)


def test_scores_on_maps_do_not_share_a_chart_with_scores_at_full_resolution(run):
    [folder] = read_runs([run])
    line = {"stage": "context", "step": 3, "val_mean_iou_stride_8": 0.75}
    folder = dataclasses.replace(folder, metrics=[*folder.metrics, line])
    described = {
        chart.title: re.search("<desc.*?>(.*?)</desc>", chart.svg)[1]
        for chart in run_charts([folder])
    }
    full, maps = (
        text for title, text in described.items() if title.startswith("Mean IoU")
    )
    assert "75" not in full and "context is 75 at step 9" in maps


def test_a_stage_with_one_logged_step_is_visible(run):
    [folder] = read_runs([run])
    line = {"stage": "joint", "step": 1, "loss": 0.5}
    [chart] = run_charts([dataclasses.replace(folder, metrics=[line], results=NONE)])
    assert "joint is 0.5 at step 11" in chart.svg
    uses = re.findall(r"<use [^>]*>", chart.svg)
    assert sum("var(--series-2)" in use for use in uses) > 1  # one is in the legend


def test_the_page_explains_its_stages(run):
    [folder] = read_runs([run])
    notes = stage_notes([dataclasses.replace(folder, config=quickstart())])
    assert [*notes] == ["front end", "context", "control", "joint"]
    assert "Each score depends on 30 × 30 pixels" in notes["front end"]
    assert "dilations 1, 1, 2, 4, 8, 16, 1" in notes["context"]
    assert "what dilation contributes" in notes["control"]
    assert "the context module of “context” together" in notes["joint"]
    config = structured(quickstart(), CRFConfig(), rnn_stage(1, 1, (64, 64)))
    notes = stage_notes([dataclasses.replace(folder, config=config)])
    assert "“basic” by a dense CRF" in notes["basic crf"]
    assert "CRF-RNN" in notes["large crfrnn"]
    assert "pixels" not in notes["large crfrnn"]  # it depends on all of them


def test_a_network_without_a_receptive_field_has_a_page(run):
    [folder] = read_runs([run])
    config = quickstart()
    config.stages, config.model.network = config.stages[:1], "segnet"
    folder = dataclasses.replace(folder, config=config)
    assert "SegNet: no receptive field is known" in summarize_field(folder).lines[0]
    assert "depends on" not in stage_notes([folder])["front end"]


def test_a_run_without_a_finished_stage_has_a_page(tmp_path):
    run = make_run(tmp_path / "young", stages=0)
    (run / "results.json").unlink()
    (run / "metrics.jsonl").write_text(
        '{"stage": "front_end", "step": 2, "loss": 1}\n{"st'
    )
    text = write_page(run).read_text("utf-8")
    assert "0 of 3 stages complete; front end is at step 2 of 6" in text
    assert "Predictions appear here once" in text
    assert 'id="gallery-data"' not in text


def test_missing_data_is_reported_and_the_rest_is_shown(tmp_path):
    run = make_run(tmp_path / "run", stages=1)
    (tmp_path / "run_data").rename(tmp_path / "moved")
    assert "The data could not be read" in write_page(run).read_text("utf-8")
    again = write_page(run, data_dir=str(tmp_path / "moved")).read_text("utf-8")
    assert len(_data(again)["images"]) == IMAGES


def test_names_from_outside_cannot_become_markup(tmp_path):
    names = ("</script><b>", '"quote', "a & b")
    run = make_run(tmp_path / "run", stages=1, classes=names)
    text = write_page(run).read_text("utf-8")
    assert "</script><b>" not in text and "&lt;/script&gt;&lt;b&gt;" in text
    assert _data(text)["classes"] == list(names)


def test_runs_are_compared_under_unique_names(run, tmp_path):
    other = make_run(tmp_path / "run", stages=2)
    path = write_comparison([run, other], tmp_path / "both.html")
    text = path.read_text("utf-8")
    titles = [f"{p.parent.name}/run" for p in (run, other)]
    for title in titles:
        assert f"{title}: front end" in text
    heads = [
        row
        for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL)
        if "mean IoU, %" in row
    ]
    assert [t in heads[0] for t in titles] == [True, True]
    # the other run's images are its own, and not those of the first
    assert _data(text)["sources"] == [
        f"{titles[0]}: {s}" for s in ("front end", "context", "joint")
    ]


def test_comparisons_of_unlike_runs_are_rejected(run, tmp_path):
    other = make_run(tmp_path / "x", stages=1, classes=("a", "b", "c"))
    with pytest.raises(ValueError, match="class 0 is 'a', not 'dark', and 2 more"):
        write_comparison([run, other], tmp_path / "both.html")
    with pytest.raises(ValueError, match="is given twice; name each run once"):
        write_comparison([run, run], tmp_path / "both.html")
    with pytest.raises(ValueError, match=r"config.json: not the folder of a run"):
        write_comparison([run, tmp_path], tmp_path / "both.html")
    assert not (tmp_path / "both.html").exists()


def test_the_modes_write_pages_and_name_a_missing_run(run, tmp_path, capsys):
    values = types.SimpleNamespace(workdir=str(run), data_dir="", output=None)
    MODES["report"](values)
    assert str(run / "report.html") in capsys.readouterr().out
    values.workdirs = [str(run)]
    with pytest.raises(ValueError, match="--workdirs: give the folders of two runs"):
        MODES["compare"](values)


def test_a_page_is_written_less_often_if_writing_takes_long(monkeypatch, tmp_path):
    now, written = [0.0], []

    def write(workdir, measure):
        written.append(now[0])
        now[0] += 2  # seconds, which the page takes

    monkeypatch.setattr(page, "write_page", write)
    monkeypatch.setattr(page.time, "perf_counter", lambda: now[0])
    refresh = watcher(tmp_path)
    for moment in (0, 10, 61, 62, 100):
        now[0] = max(now[0], moment)
        refresh()
    assert written == [0, 62]


def test_a_page_that_fails_does_not_end_the_run(tmp_path, caplog):
    watcher(tmp_path / "nothing")()
    assert "report.html: skipped" in caplog.text


@pytest.mark.parametrize("name", ["camvid", "kitti", "cityscapes"])
def test_columns_of_the_paper_have_the_classes_of_the_data_set(name):
    for column in paper_columns(name):
        assert tuple(column.iou_per_class) == DATASETS[name].classes


def test_the_paper_s_columns_are_beside_ours_of_the_same_stage(run):
    spec = DATASETS["voc"]
    ours = dict.fromkeys(spec.classes, 0.5)
    summary = {"mean_iou": 0.5, "pixel_accuracy": 0.5, "mean_accuracy": 0.5}
    names = ["front_end", "large_crf"]
    scores = {
        name.replace("_", " "): {**summary, "mean_iou": best, "iou_per_class": ours}
        for name, best in zip(names, (0.5, 0.9), strict=True)
    }
    grid = iou_grid(scores, paper_columns("voc", names), spec)
    assert [(head.text.partition(",")[0], head.paper) for head in grid.heads] == [
        *(("IoU", False), ("front end", False), ("Front end", True)),
        *(("large crf", False), ("Front + Large + CRF", True)),
    ]
    rows = {row.name: row for row in grid.rows}
    assert rows["mean IoU"].cells == ["50.0", "69.8", "90.0", "73.3"]
    assert rows["mean IoU"].best == {2}
    assert not rows["background"].best  # a tie
    assert rows["background"].cells == ["50.0", "–", "50.0", "–"]
    assert rows["tvmonitor"].cells == ["50.0", "66.3", "50.0", "66.7"]


@pytest.mark.parametrize(
    "values, best",
    [
        ((0.0, 0.0, 0.0), set()),
        ((0.0, None, None), set()),
        ((0.5, 0.5001, 0.5), set()),  # 50.0 all
        ((0.4, 0.5, 0.5), {1, 2}),
    ],
)
def test_only_results_that_beat_others_are_bold(run, values, best):
    [folder] = read_runs([run])
    classes = folder.spec.classes
    summary = dict.fromkeys(("mean_iou", "pixel_accuracy", "mean_accuracy"), 0.5)
    scores = {
        f"stage {i}": {**summary, "iou_per_class": dict.fromkeys(classes, value)}
        for i, value in enumerate(values)
    }
    assert iou_grid(scores, [], folder.spec).rows[0].best == best


def test_parameters_are_those_of_the_last_stage(run):
    [folder] = read_runs([run])
    front_end = (9 * 3 + 1) * 6 + (6 + 1) * 8 + (8 + 1) * 3
    context = 3 * (9 * 3 + 1) * 3 + (3 + 1) * 3  # and its layer of 1 × 1
    assert parameters(folder) == front_end + context
