"""Whole runs, as a user starts them, and on each data set as its publisher gives it."""

import io
import itertools
import json
import multiprocessing
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from layouts import encoded, ids, photo, tarred, unpacked, zipped
from PIL import Image
from tiny_run import write_images

import dilax
from dilax.data import DATASETS
from dilax.data.prepared import open_prepared, prepare
from experiments import camvid, cityscapes, coco, hdc, kitti, voc

pytestmark = pytest.mark.slow


def test_on_scenes_it_takes_dilation_to_tell_the_towers_apart(tmp_path):
    config = voc.quickstart()
    config.stages = config.stages[:3]
    for stage, steps, size in zip(config.stages, (60, 80, 80), (4, 8, 8), strict=True):
        stage.steps, stage.batch_size, stage.evaluate_every = steps, size, 0
        stage.optimizer.warmup = 20
    # In a process of its own, whose machine code is XLA's best (conftest.py).
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        results = pool.submit(dilax.train, config, tmp_path / "run").result()
    towers = {
        name: np.mean(
            [
                stage["iou_per_class"][c]
                for c in dilax.DATASETS["scenes"].context_classes
            ]
        )
        for name, stage in results["stages"].items()
    }
    assert towers["context"] > towers["control"] + 0.2
    assert towers["context"] > towers["front_end"] + 0.3
    means = {name: stage["mean_iou"] for name, stage in results["stages"].items()}
    assert means["context"] > means["control"] + 0.08
    assert means["context"] > means["front_end"] + 0.13


@pytest.mark.full
def test_table_3_over_two_seeds_is_printed_stored_and_not_trained_again(tmp_path):
    data = write_images(tmp_path / "data")
    small = {"steps": 2, "batch_size": 2, "crop": "(20,20)"}
    maps = {"steps": 2, "batch_size": 2, "crop": "(24,32)", "evaluate_every": 0}
    stages = dict.fromkeys(("basic", "large"), maps)
    stages |= {"front_end": small}
    stages |= {f"{n}_crfrnn": small for n in ("front_end", "basic", "large")}
    flags = [
        "--config.data.dataset=folder",
        "--config.model.layers="
        "(('conv1',3,6,1,0.0),('pool1',2,0,1,0.0),('fc',1,8,1,0.0))",
        *(
            f"--config.stages.{n}_crf.crf.{field}"
            for n in ("front_end", "basic", "large")
            for field in ("search_images=2", "grid.bilateral_weight=(1.0,)")
        ),
        *(
            f"--config.stages.{name}.{field}={value}"
            for name, fields in stages.items()
            for field, value in fields.items()
        ),
    ]
    script = Path(__file__).parent.parent / "experiments" / "table3.py"
    command = [sys.executable, script, "--seeds=0,1", f"--data_dir={data}", *flags]
    command.append(f"--workdir={tmp_path / 'runs'}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = [
        json.loads((tmp_path / "runs" / seed / "results.json").read_text())
        for seed in ("seed0", "seed1")
    ]
    assert [run["seed"] for run in runs] == [0, 1]
    figures = json.loads((tmp_path / "runs" / "table3.json").read_text())
    for name, stage in figures["stages"].items():
        assert stage["mean_iou"] == [r["stages"][name]["mean_iou"] for r in runs]
    for file in ("table3.md", "seeds.md"):
        assert (tmp_path / "runs" / file).read_text().strip() in done.stdout
    assert (tmp_path / "runs" / "seed1" / "pictures.png").exists()
    shutil.rmtree(tmp_path / "runs" / "seed1" / "predictions" / "front_end")
    again = subprocess.run(command, capture_output=True, text=True)
    assert {*again.stdout.splitlines()} <= {*done.stdout.splitlines()}
    assert not again.stderr  # no bar of any step, search or evaluation


@pytest.mark.full
def test_real_camvid_images_train_and_every_labelled_pixel_is_scored(
    real_data, tmp_path
):
    prepare("camvid", real_data / "CamVid", tmp_path / "prepared")
    config = camvid.small()
    config.data.data_dir = str(tmp_path / "prepared")
    config.stages = config.stages[:1]
    config.stages[0].steps = 40
    config.stages[0].evaluate_every = 0
    config.log_every = 10
    results = dilax.train(config, tmp_path / "run")
    source = dilax.training.open_evaluation(tmp_path / "run")[2]
    labelled = sum(int((sample["label"] != 255).sum()) for sample in source)
    assert len(source) == 101
    assert np.sum(results["stages"]["front_end"]["confusion"]) == labelled
    assert results["stages"]["front_end"]["pixel_accuracy"] > 0.3
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.75 * losses[0]
    assert not list(itertools.islice((tmp_path / "run").rglob("*.partial"), 1))


# Each data set as its publisher gives it, to a trained and evaluated network.


SIZE = 48, 64
EXPERIMENTS = {
    "voc": voc,
    "coco": coco,
    "camvid": camvid,
    "kitti": kitti,
    "cityscapes": cityscapes,
}


def _usually(name):
    """All data sets, of which only one is trained on without `-m full`."""
    return [
        pytest.param(n, marks=[pytest.mark.full] * (n != name)) for n in EXPERIMENTS
    ]


def _mat(label):
    file = io.BytesIO()
    scipy.io.savemat(file, {"GTcls": {"Segmentation": label}})
    return file.getvalue()


def _voc(root):
    top, lists = "VOCdevkit/VOC2012", "VOCdevkit/VOC2012/ImageSets/Segmentation"
    names = {"train": ["a", "b"], "val": ["c"], "trainval": ["a", "b", "c"]}
    files = {f"{lists}/{s}.txt": "\n".join(n).encode() for s, n in names.items()}
    for i, name in enumerate("abc"):
        files[f"{top}/JPEGImages/{name}.jpg"] = encoded(photo(i, *SIZE), "jpg")
        mask = ids(i, [0, 5, 20, 255], *SIZE)
        files[f"{top}/SegmentationClass/{name}.png"] = encoded(mask)
    tarred(root / "VOCtrainval_11-May-2012.tar", files, "w")
    top = "benchmark_RELEASE/dataset"
    files = {f"{top}/train.txt": b"b\nd\n", f"{top}/val.txt": b"c\n"}
    for i, name in enumerate("bcd"):
        files[f"{top}/cls/{name}.mat"] = _mat(ids(i + 7, [0, 9], *SIZE))
        files[f"{top}/img/{name}.jpg"] = encoded(photo(i + 7, *SIZE), "jpg")
    tarred(root / "benchmark.tgz", files, "w:gz")
    lists, top = "VOCdevkit/VOC2012/ImageSets", "VOCdevkit/VOC2012/JPEGImages"
    files = {
        f"{lists}/Segmentation/test.txt": b"t\n",
        f"{top}/t.jpg": encoded(photo(9, *SIZE), "jpg"),
    }
    tarred(root / "VOC2012test.tar", files, "w")


VOC_NAMES = (
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "dining table", "dog", "horse", "motorcycle", "person"),
    *("potted plant", "sheep", "couch", "train", "tv"),
)


def _coco(root):
    categories = [{"id": i + 1, "name": n} for i, n in enumerate(VOC_NAMES)]
    notes = {}
    for split, numbers in {"train": (1, 2), "val": (3,)}.items():
        names = {i: f"{i:012d}.jpg" for i in numbers}
        ring = [4, 4, 40, 4, 40, 30, 4, 30]
        objects = [
            {
                "id": i,
                "image_id": i,
                "category_id": i,
                "segmentation": [ring],
                "iscrowd": 0,
                "area": 900,
                "bbox": [4, 4, 36, 26],
            }
            for i in numbers
        ]
        images = [
            {"id": i, "file_name": n, "width": SIZE[1], "height": SIZE[0]}
            for i, n in names.items()
        ]
        content = {"images": images, "annotations": objects, "categories": categories}
        notes[f"annotations/instances_{split}2017.json"] = json.dumps(content).encode()
        photos = {
            f"{split}2017/{n}": encoded(photo(i, *SIZE), "jpg")
            for i, n in names.items()
        }
        zipped(root / f"{split}2017.zip", photos)
    zipped(root / "annotations_trainval2017.zip", notes)


def _camvid(root):
    files = {}
    for split, names in {"train": ["0001TP_006690", "0006R0_f00930"]}.items():
        for name in names:
            files |= _camvid_pair(split, name)
        files[f"{split}.txt"] = "\n".join(names).encode()
    files |= _camvid_pair("val", "0016E5_07959")
    unpacked(root, {**files, "val.txt": b"0016E5_07959\n"})


def _camvid_pair(split, name):
    seed = sum(map(ord, name))
    return {
        f"{split}/{name}.png": encoded(photo(seed, *SIZE)),
        f"{split}annot/{name}.png": encoded(ids(seed, range(12), *SIZE)),
    }


def _kitti(root):
    colours = np.array([*DATASETS["kitti"].palette, (0, 0, 0)], np.uint8)
    files = {}
    for folder, count in {"Training_00": 2, "Validation_07": 1}.items():
        for i in range(count):
            label = colours[ids(i, range(12), *SIZE)]
            files[f"{folder}/RGB/{i:06d}.png"] = encoded(photo(i, *SIZE))
            files[f"{folder}/GT/{i:06d}.png"] = encoded(label)
    unpacked(root, files)


def _cityscapes(root):
    images, labels = {}, {}
    for i, split in enumerate(("train", "train", "val", "test")):
        name = f"{split}/aachen/aachen_{i:06d}_000019"
        images[f"leftImg8bit/{name}_leftImg8bit.png"] = encoded(photo(i, *SIZE))
        label = encoded(ids(i, range(34) if split != "test" else [0, 3], *SIZE))
        labels[f"gtFine/{name}_gtFine_labelIds.png"] = label
    zipped(root / "leftImg8bit_trainvaltest.zip", images)
    zipped(root / "gtFine_trainvaltest.zip", labels)


WRITERS = {
    "voc": _voc,
    "coco": _coco,
    "camvid": _camvid,
    "kitti": _kitti,
    "cityscapes": _cityscapes,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """All five, prepared from their publishers' files."""
    root = tmp_path_factory.mktemp("published")
    for name, write in WRITERS.items():
        source = root / name
        source.mkdir()
        write(source)
        prepare(name, source, root / "home", partial=True, verify=False)
    return root / "home"


def _trained(config, home, workdir, crop):
    config.data.data_dir = str(home)
    config.eval_batch_size = 1
    for stage in config.stages:
        stage.steps, stage.batch_size, stage.accumulate = 2, 2, 1
        stage.evaluate_every = 0
        stage.crop = crop or stage.crop
    return dilax.train(config, workdir)


def _labelled(home, config):
    data = config.data
    spec = DATASETS[data.dataset]
    source = open_prepared(data.dataset, spec, str(home), data.val, data.variant)
    return sum(int((sample["label"] != 255).sum()) for sample in source)


@pytest.mark.parametrize("name", _usually("voc"))
def test_small_trains_on_the_prepared_set(name, home, tmp_path):
    config = EXPERIMENTS[name].small()
    config.data.scale = 1.0
    names = [stage.name for stage in config.stages]
    assert names == ["front_end", "context", "control", "joint"]
    config.stages = config.stages[:2]
    results = _trained(config, home, tmp_path / "run", (32, 48))
    assert list(results["stages"]) == [stage.name for stage in config.stages]
    for stage in results["stages"].values():
        assert np.sum(stage["confusion"]) == _labelled(home, config) > 1000
    if name == "voc":
        _check_submission(tmp_path / "run")


def _check_submission(workdir):
    """The test image, as the server takes it."""
    script = Path(__file__).parent.parent / "experiments" / "voc.py"
    command = [sys.executable, script, "--mode=submit", f"--workdir={workdir}"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(workdir / "submission.tar") as archive:
        [file] = archive.getnames()
        image = Image.open(io.BytesIO(archive.extractfile(file).read()))
    assert file == "results/VOC2012/Segmentation/comp6_test_cls/t.png"
    assert image.size == SIZE[::-1]
    assert set(np.unique(image).tolist()) <= set(range(21))


@pytest.mark.parametrize("name", _usually("cityscapes"))
def test_paper_trains_its_first_stage_on_the_prepared_set(name, home, tmp_path):
    config = EXPERIMENTS[name].paper()
    config.stages, config.model.width_multiplier = config.stages[:1], 1 / 32
    config.data.variant, config.init = "", None
    results = _trained(config, home, tmp_path / "run", None)
    [stage] = results["stages"].values()
    assert np.sum(stage["confusion"]) == _labelled(home, config) > 1000
    assert ("mean_category_iou" in stage) == (name == "cityscapes")


@pytest.mark.full
def test_hdc_trains_on_the_prepared_set(home, tmp_path):
    config = hdc.camvid()
    config.data.scale = 1.0
    config.stages = config.stages[3:]
    config.stages[0].model.width_multiplier = 1 / 32
    results = _trained(config, home, tmp_path / "run", (32, 48))
    assert np.sum(results["stages"]["hdc_duc"]["confusion"]) == _labelled(home, config)


def test_coco_joins_the_images_of_voc_where_a_stage_asks_for_it(home, tmp_path):
    config = coco.paper()
    config.data.data_dir, config.init = str(home), None
    run = dilax.training.check_run(config, tmp_path / "run")
    mixed, front_end = (run.samples(stage) for stage in config.stages[:2])
    names = [sample["id"] for sample in mixed]
    assert names == ["a", "b", "d", "000000000001", "000000000002"]
    assert [sample["id"] for sample in front_end] == ["a", "b", "d"]
