"""Our figures are those of others: Cityscapes' own scorer and scikit-learn."""

import copy
import zipfile

import numpy as np
import pytest
from PIL import Image
from telling import Telling, blocks, corrupted, sample

from dilax.data import DATASETS
from dilax.evaluation import evaluate
from dilax.inference import write_submission

CITYSCAPES, VOC = DATASETS["cityscapes"], DATASETS["voc"]


def _is_none_or_close(ours, theirs):
    """Compares IoUs by name; what is None here is NaN there."""
    ours = {name: np.nan if iou is None else iou for name, iou in ours.items()}
    assert ours == pytest.approx(theirs, rel=0, abs=1e-6, nan_ok=True)


# Cityscapes: the scorer reads label ids from files, and finds predictions by name.


@pytest.fixture
def scorer():
    reason = "compares with cityscapesScripts"
    pytest.importorskip("cityscapesscripts", reason=reason)
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling

    return evalPixelLevelSemanticLabeling


def _their_scores(scorer, truths, predictions):
    """What the scorer says of a folder of predictions."""
    args = copy.copy(scorer.args)
    args.evalInstLevelScore = args.JSONOutput = args.colorized = False
    args.quiet, args.predictionPath, args.predictionWalk = True, str(predictions), None
    truths = [str(path) for path in truths]
    found = [scorer.getPrediction(args, path) for path in truths]
    return scorer.evaluateImgLists(found, truths, args)


def _submitted(samples, folder):
    """Our archive of the predictions, unpacked."""
    path = folder / "submission.zip"
    predictor = Telling(CITYSCAPES)
    write_submission(predictor, samples, "cityscapes", path, title="")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "results")
    return folder / "results"


def _cityscapes_samples(truths, classes):
    for seed, path in enumerate(truths):
        with Image.open(path) as file:
            label = CITYSCAPES.label_table()[np.asarray(file)].astype(np.uint8)
        name = path.name.removesuffix("_gtFine_labelIds.png")
        yield sample(label, corrupted(label, classes, seed), name)


def _compare_with_the_scorer(scorer, truths, folder, classes):
    """Scores the same corrupted truths by both; returns our scores."""
    samples = list(_cityscapes_samples(truths, classes))
    ours = evaluate(Telling(CITYSCAPES, 3), samples, title="")
    theirs = _their_scores(scorer, truths, _submitted(samples, folder))
    by_class = {name: theirs["classScores"][name] for name in CITYSCAPES.classes}
    _is_none_or_close(ours.iou_per_class, by_class)
    by_category = dict(theirs["categoryScores"])
    assert np.isnan(by_category.pop("void"))
    _is_none_or_close(ours.iou_per_category, by_category)
    means = theirs["averageScoreClasses"], theirs["averageScoreCategories"]
    assert (ours.mean_iou, ours.mean_category_iou) == pytest.approx(means, abs=1e-6)
    return ours


def _write_truths(folder, ids):
    """Three label maps of raw ids, each with all of them."""
    for seed in range(3):
        truth = blocks(ids, (96, 120 + seed), seed, size=7)
        truth[0, : len(ids)] = ids
        path = folder / f"ulm_{seed:06d}_000019_gtFine_labelIds.png"
        Image.fromarray(truth.astype(np.uint8)).save(path)
        yield path


@pytest.mark.parametrize(
    "absent, without_iou",
    [
        ((), set()),
        (("train", "sky"), {"train", "sky"}),
        (("person", "rider"), {"person", "rider", "human"}),
    ],
)
def test_cityscapes_own_scorer_agrees(scorer, tmp_path, absent, without_iou):
    gone = {CITYSCAPES.disk_ids()[CITYSCAPES.classes.index(name)] for name in absent}
    truths = list(_write_truths(tmp_path, [i for i in range(34) if i not in gone]))
    classes = [i for i, name in enumerate(CITYSCAPES.classes) if name not in absent]
    ours = _compare_with_the_scorer(scorer, truths, tmp_path, classes)
    ious = ours.iou_per_class | ours.iou_per_category
    assert {name for name, iou in ious.items() if iou is None} == without_iou
    assert all(0 < iou < 1 for iou in ious.values() if iou is not None)


def test_cityscapes_own_scorer_agrees_on_real_labels(scorer, real_data, tmp_path):
    folder = real_data / "cityscapes/gtFine/train/aachen"
    truths = sorted(folder.glob("*_gtFine_labelIds.png"))
    assert len(truths) == 8
    ours = _compare_with_the_scorer(scorer, truths, tmp_path, range(19))
    assert ours.confusion.sum() > 15_000_000
    # Classes without a pixel here were all predicted somewhere.
    assert None not in ours.iou_per_class.values()


# VOC: labels have 255 on the outlines of objects.


def _compare_with_scikit_learn(samples):
    """Compares IoUs; returns the names of the classes that have none."""
    metrics = pytest.importorskip(
        "sklearn.metrics", reason="compares with scikit-learn"
    )
    ours = evaluate(Telling(VOC, 2), samples, title="")
    label = np.concatenate([s["label"].ravel() for s in samples])
    guess = np.concatenate([s["image"][..., 0].ravel() for s in samples])
    counted = label != 255
    pair, options = (label[counted], guess[counted]), {"average": None}
    options["labels"] = range(21)
    lowest = metrics.jaccard_score(*pair, **options, zero_division=0)
    highest = metrics.jaccard_score(*pair, **options, zero_division=1)
    theirs = np.where(lowest == highest, lowest, np.nan)  # 0 / 0 is what we ask for
    _is_none_or_close(
        ours.iou_per_class, dict(zip(VOC.classes, theirs.tolist(), strict=True))
    )
    assert ours.mean_iou == pytest.approx(np.nanmean(theirs), abs=1e-6)
    return {name for name, iou in ours.iou_per_class.items() if iou is None}


@pytest.mark.parametrize("absent", [(), ("bottle", "tvmonitor"), ("background",)])
def test_scikit_learn_agrees(absent):
    classes = [i for i, name in enumerate(VOC.classes) if name not in absent]
    samples = []
    for seed in range(3):
        label = blocks([*classes, 255], (70, 91 + seed), seed, 6).astype(np.uint8)
        samples.append(sample(label, corrupted(label, classes, seed), str(seed)))
    assert _compare_with_scikit_learn(samples) == set(absent)


@pytest.mark.parametrize("spread", [range(21), range(0, 21, 20)])
def test_scikit_learn_agrees_on_real_labels(real_data, spread):
    root = real_data / "VOCdevkit/VOC2012"
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    samples = []
    for index, name in enumerate(names[:: len(names) // 12]):
        with Image.open(root / f"SegmentationClass/{name}.png") as file:
            label = np.asarray(file)
        samples.append(sample(label, corrupted(label, spread, index), name))
    assert any((s["label"] == 255).any() for s in samples)
    found = set(np.concatenate([np.unique(s["label"]) for s in samples])) | {*spread}
    nowhere = {VOC.classes[i] for i in range(21) if i not in found}
    assert _compare_with_scikit_learn(samples) == nowhere
