"""Pascal VOC 2012 and SBD, from archives as they are published, and from real files."""

import functools
import io

import numpy as np
import pytest
import scipy.io
from layouts import encoded, ids, photo, tarred, unpacked
from PIL import Image

from dilax.data import DATASETS, colour_map
from dilax.data.builders.archives import Tree
from dilax.data.builders.voc import Voc
from dilax.data.prepared import open_prepared, prepare

SPEC = DATASETS["voc"]
DEVKIT, SBD = "VOCdevkit/VOC2012/", "benchmark_RELEASE/dataset/"
TRAINVAL, TEST, BENCHMARK = (
    "VOCtrainval_11-May-2012.tar",
    "VOC2012test.tar",
    "benchmark.tgz",
)
# VOC annotates a to e, SBD c to h: c of them is in VOC's train and d in its val.
LISTS = {"train": ["a", "b", "c"], "val": ["d", "e"], "trainval": list("abcde")}
SBD_LISTS = {"train": ["c", "f", "d"], "val": ["g", "h"]}
TESTS = ["t", "u"]
COUNTS = {"train": 3, "val": 2, "trainval": 5, "train_aug": 6, "test": 2}


def photo_of(image):
    return photo(ord(image))


def mask_of(image):
    """VOC's labels: background, all classes and boundaries."""
    return ids(ord(image), [*range(21), 255])


def sbd_mask_of(image):
    return ids(ord(image) + 1000, range(21))


def palette_png(labels):
    """A mask as VOC has it: ids are indices into the colour map."""
    mask = Image.fromarray(labels, "L")
    mask.putpalette(np.array(colour_map(256), np.uint8).tobytes())
    mask.save(file := io.BytesIO(), "png")
    assert Image.open(file).mode == "P"
    return file.getvalue()


def mat(labels, classes=20):
    """An annotation as SBD has it: `GTcls`, with cells of sparse boundaries."""
    boundaries = np.empty((classes, 1), object)
    for index in range(classes):
        boundaries[index, 0] = scipy.sparse.csc_array(labels == index, dtype=float)
    annotation = {
        "Segmentation": labels,
        "Boundaries": boundaries,
        "CategoriesPresent": np.unique(labels[labels > 0]),
    }
    scipy.io.savemat(file := io.BytesIO(), {"GTcls": annotation}, do_compression=True)
    return file.getvalue()


def listed(names):
    return "".join(f"{name}\n" for name in names).encode()


def devkit(lists=LISTS, also="fgh"):
    """What the archive of train and val holds; it has SBD's images too."""
    images = sorted({i for names in lists.values() for i in names})
    return {
        **{
            f"{DEVKIT}ImageSets/Segmentation/{split}.txt": listed(names)
            for split, names in lists.items()
        },
        **{
            f"{DEVKIT}JPEGImages/{i}.jpg": encoded(photo_of(i), "jpg")
            for i in [*images, *also]
        },
        **{
            f"{DEVKIT}SegmentationClass/{i}.png": palette_png(mask_of(i))
            for i in images
        },
        f"{DEVKIT}SegmentationObject/a.png": b"not read",
    }


def devkit_of_test():
    return {
        f"{DEVKIT}ImageSets/Segmentation/test.txt": listed(TESTS),
        **{f"{DEVKIT}JPEGImages/{i}.jpg": encoded(photo_of(i), "jpg") for i in TESTS},
    }


def benchmark():
    images = [i for names in SBD_LISTS.values() for i in names]
    return {
        **{f"{SBD}{split}.txt": listed(names) for split, names in SBD_LISTS.items()},
        **{f"{SBD}cls/{i}.mat": mat(sbd_mask_of(i)) for i in images},
        **{f"{SBD}inst/{i}.mat": b"not read" for i in images},
        **{f"{SBD}img/{i}.jpg": encoded(photo_of(i), "jpg") for i in images},
    }


def downloaded(folder):
    """The three archives."""
    tarred(folder / TRAINVAL, devkit())
    tarred(folder / TEST, devkit_of_test())
    tarred(folder / BENCHMARK, benchmark(), "w:gz")
    return folder


def together(folder):
    """Everything unpacked into one folder."""
    return unpacked(folder, {**devkit(), **devkit_of_test(), **benchmark()})


def apart(folder):
    """Everything unpacked, each into a folder of its own."""
    for at, files in enumerate((devkit(), devkit_of_test(), benchmark())):
        unpacked(folder / str(at), files)
    return folder


def among_other_years(folder):
    """VOC 2012 beside VOC 2007, as devkits are unpacked, SBD in its archive."""
    tarred(folder / "below" / BENCHMARK, benchmark(), "w:gz")
    older = {
        name.replace("VOC2012", "VOC2007"): content
        for name, content in devkit({"train": ["z"], "val": ["y"]}, "").items()
    }
    return unpacked(folder, {**older, **devkit(), **devkit_of_test()})


def inside(folder):
    """The folder VOC2012 itself, SBD in it."""
    files = {**devkit(), **devkit_of_test(), **benchmark()}
    return unpacked(folder, {n.removeprefix(DEVKIT): c for n, c in files.items()})


LAYOUTS = [downloaded, together, apart, among_other_years, inside]


@pytest.fixture
def few(monkeypatch):
    """As if no more had been published than the layouts here have."""
    for variant in Voc.BUILDER_CONFIGS:
        monkeypatch.setattr(variant, "splits", tuple(COUNTS.items()))


def prepared(source, home, variant="", **options):
    """Every split of the source as prepared, by its name."""
    options = {"verify": False, **options}
    prepare("voc", source, home, variant=variant, **options)
    opened = functools.partial(open_prepared, "voc", SPEC, str(home), variant=variant)
    return {split: opened(split) for split in COUNTS}


def names(split):
    return [sample["id"] for sample in split]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["", "sbd_first"])
def test_every_layout_gives_the_published_splits(layout, variant, tmp_path, few):
    splits = prepared(layout(tmp_path / "source"), tmp_path / "home", variant)
    assert {split: names(of) for split, of in splits.items()} == {
        **LISTS,
        "train_aug": list("abcfgh"),
        "test": TESTS,
    }
    by_sbd = "cfgh" if variant == "sbd_first" else "fgh"
    for split, samples in splits.items():
        for sample in samples:
            name = sample["id"]
            label = sbd_mask_of(name) if name in by_sbd else mask_of(name)
            label = label if split == "train_aug" else mask_of(name)
            label = np.full_like(label, 255) if split == "test" else label
            np.testing.assert_array_equal(sample["label"], label, f"{split} {name}")
            jpeg = Image.open(io.BytesIO(encoded(photo_of(name), "jpg")))
            np.testing.assert_array_equal(sample["image"], np.asarray(jpeg))


def test_sbds_own_copies_serve_where_voc_has_no_photograph(tmp_path, few):
    source = unpacked(
        tmp_path / "source", {**devkit(also=""), **devkit_of_test(), **benchmark()}
    )
    split = prepared(source, tmp_path / "home")["train_aug"]
    jpeg = Image.open(io.BytesIO(encoded(photo_of("h"), "jpg")))
    np.testing.assert_array_equal(split[5]["image"], np.asarray(jpeg))


@pytest.mark.parametrize("without, absent", [(TEST, "test"), (BENCHMARK, "train_aug")])
def test_what_an_archive_holds_is_left_out_without_it(
    without, absent, tmp_path, few, caplog
):
    source = downloaded(tmp_path / "source")
    (source / without).unlink()
    folder = prepare("voc", source, tmp_path / "home", verify=False)
    held = {a.name: a.holds for a in Voc.ARCHIVES}[without]
    assert f"not prepared: {absent} ({without}: {held})" in caplog.text
    assert caplog.text.count("not prepared") == 1
    with pytest.raises(ValueError, match=f"no split '{absent}'; there are train, val"):
        open_prepared("voc", SPEC, str(tmp_path / "home"), absent)
    assert folder.is_dir()


def test_archives_must_be_the_published_ones(tmp_path, few):
    with pytest.raises(ValueError, match=r"benchmark\.tgz: its checksum|2012.* bytes"):
        prepared(downloaded(tmp_path / "source"), tmp_path / "home", verify=True)
    assert not list((tmp_path / "home/dilax_voc/voc_first").glob("[!.]*"))


@pytest.mark.parametrize(
    "content", [b"", b"MATLAB 5.0 MAT-file, cut", mat(mask_of("f"))[:-40], None]
)
def test_an_annotation_of_sbd_that_is_none_is_named(content, tmp_path, few):
    if content is None:
        scipy.io.savemat(file := io.BytesIO(), {"other": np.zeros(3)})
        content = file.getvalue()
    source = together(tmp_path / "source")
    (source / SBD / "cls/f.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"cls/f\.mat: is not a file of SBD"):
        prepared(source, tmp_path / "home")


def whole_lists():
    """Ids in the published numbers; 1,104 + 1,133 of SBD's are VOC's, too."""
    train = [f"2007_{i:06}" for i in range(1464)]
    val = [f"2008_{i:06}" for i in range(1449)]
    own = [f"2009_{i:06}" for i in range(9118)]
    sbd = [*train[:1133], *val[:1104], *own]
    assert len(sbd) == 8498 + 2857
    return {"train": train, "val": val}, {"train": sbd[:8498], "val": sbd[8498:]}


LOOSE = (f"{DEVKIT}JPEGImages/2009_000007.jpg", f"{SBD}cls/2009_000008.mat")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """As many files as the published ones, of 8×8 pixels, two of them unpacked."""
    folder = tmp_path_factory.mktemp("whole")
    lists, sbd_lists = whole_lists()
    jpeg, png = encoded(photo(0, 8, 8), "jpg"), palette_png(ids(0, range(21), 8, 8))
    annotation = mat(ids(1, range(21), 8, 8), classes=1)
    own = [*lists["train"], *lists["val"]]
    annotated = [*sbd_lists["train"], *sbd_lists["val"]]
    of_voc = {
        f"{DEVKIT}ImageSets/Segmentation/{split}.txt": listed(names)
        for split, names in lists.items()
    }
    of_voc |= {f"{DEVKIT}JPEGImages/{i}.jpg": jpeg for i in {*own, *annotated}}
    of_voc |= {f"{DEVKIT}SegmentationClass/{i}.png": png for i in own}
    of_sbd = {f"{SBD}{split}.txt": listed(names) for split, names in sbd_lists.items()}
    of_sbd |= {f"{SBD}cls/{i}.mat": annotation for i in annotated}
    unpacked(folder, {LOOSE[0]: of_voc.pop(LOOSE[0]), LOOSE[1]: of_sbd.pop(LOOSE[1])})
    tarred(folder / TRAINVAL, of_voc)
    tarred(folder / BENCHMARK, of_sbd, "w:gz")
    return folder


@pytest.mark.full
@pytest.mark.slow
def test_as_many_images_as_are_published_need_no_partial(whole, tmp_path):
    prepare("voc", whole, tmp_path, verify=False)
    for split, count in (("train", 1464), ("val", 1449), ("train_aug", 10582)):
        samples = open_prepared("voc", SPEC, str(tmp_path), split)
        assert len(samples) == count == dict(SPEC.splits)[split]
    own, added = samples[1463], samples[1464]
    assert (own["id"], added["id"]) == ("2007_001463", "2009_000000")
    np.testing.assert_array_equal(own["label"], ids(0, range(21), 8, 8))
    np.testing.assert_array_equal(added["label"], ids(1, range(21), 8, 8))


def test_an_image_and_an_annotation_that_are_missing_are_named(whole, tmp_path):
    (less := tmp_path / "source").mkdir()
    for name in (TRAINVAL, BENCHMARK):
        (less / name).symlink_to(whole / name)
    with pytest.raises(ValueError, match=r"Pascal VOC 2012 is incomplete") as refused:
        prepare("voc", less, tmp_path / "home", verify=False)
    lines = str(refused.value).splitlines()
    assert set(lines[1:-1]) == {f"train_aug: {name} is missing" for name in LOOSE}
    assert "--partial" in lines[-1]


def items(lists, sbd_lists, folder, variant="voc_first"):
    """The items of every split as the lists have them."""
    unpacked(
        folder,
        {
            f"{DEVKIT}ImageSets/Segmentation/{split}.txt": listed(names)
            for split, names in lists.items()
        }
        | {f"{SBD}{split}.txt": listed(names) for split, names in sbd_lists.items()}
        | {f"{SBD}cls/readme": b""},
    )
    builder = Voc(data_dir=str(folder / "home"), config=variant)
    return builder.items(Tree(folder, scratch=folder))


def test_the_published_lists_give_the_published_train_aug(real_data, tmp_path):
    lists = {
        split: (real_data / "voc2012_lists" / f"{split}.txt").read_text().split()
        for split in ("train", "val", "trainval", "test", "train_aug")
    }
    train_aug = lists.pop("train_aug")
    added = sorted(set(train_aug) - set(lists["train"]))
    assert len(added) == 10582 - 1464
    sbd = [*lists["train"][:1133], *lists["val"][:1104], *added]
    found = items(lists, {"train": sbd[:8498], "val": sbd[8498:]}, tmp_path)
    ids = {split: [item.id for item in listed] for split, listed in found.items()}
    assert ids == {**lists, "train_aug": sorted(train_aug)}
    assert {split: len(listed) for split, listed in ids.items()} == dict(SPEC.splits)


@pytest.mark.slow
def test_real_images_and_labels_are_those_in_the_files(real_data, tmp_path):
    source = real_data / "VOCdevkit"
    prepare("voc", source, tmp_path, partial=True)
    samples = open_prepared("voc", SPEC, str(tmp_path), "val")
    list_file = source / "VOC2012/ImageSets/Segmentation/val.txt"
    there = [
        name
        for name in list_file.read_text().split()
        if (source / f"VOC2012/JPEGImages/{name}.jpg").exists()
    ]
    assert names(samples) == there
    for sample in samples:
        name = sample["id"]
        image = Image.open(source / f"VOC2012/JPEGImages/{name}.jpg")
        mask = Image.open(source / f"VOC2012/SegmentationClass/{name}.png")
        np.testing.assert_array_equal(sample["image"], np.asarray(image))
        np.testing.assert_array_equal(sample["label"], np.asarray(mask))
    assert {255} < set(np.unique(samples[0]["label"]).tolist()) <= {*range(21), 255}
