"""Submissions: what the test servers take, whole or not at all."""

import dataclasses
import io
import itertools
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from telling import Telling, blocks, sample

from dilax.data import DATASETS
from dilax.inference import Predictor, write_submission
from dilax.models import DilatedNet, FrontEnd

KINDS = {"voc": ".tar", "cityscapes": ".zip"}

each_kind = pytest.mark.parametrize("kind", KINDS)


def _samples(kind, count=3):
    """Images of different sizes, each with all classes predicted."""
    classes = DATASETS[kind].num_classes
    for i in range(count):
        prediction = blocks(range(classes), (40 + i, 50), seed=i)
        prediction[0, :classes] = range(classes)
        yield sample(np.full((40 + i, 50), 255), prediction, f"ulm_{i:06d}_000019")


def _write(kind, samples, path, predictor=None, **options):
    spec = DATASETS[kind]
    options = {"title": "", **options}
    return write_submission(
        predictor or Telling(spec), list(samples), kind, path, **options
    )


def _read(path):
    """Name → (Pillow's mode, ids, RGB colours) of an archive's files, in order."""
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            files = {m.name: archive.extractfile(m).read() for m in archive}
    else:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    result = {}
    for name, png in files.items():
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            result[name] = (
                image.mode,
                np.asarray(image),
                np.asarray(image.convert("RGB")),
            )
    return result


# What the servers take.


@pytest.mark.parametrize("competition", ["comp5", "comp6"])
def test_voc_takes_palette_images_of_class_indices(tmp_path, competition):
    samples = list(_samples("voc"))
    path = tmp_path / "new folder" / "x.tar"
    assert _write("voc", samples, path, competition=competition) == path
    files = _read(path)
    folder = f"results/VOC2012/Segmentation/{competition}_test_cls"
    assert list(files) == [f"{folder}/{s['id']}.png" for s in samples]
    for given, (mode, ids, colours) in zip(samples, files.values(), strict=True):
        prediction = given["image"][..., 0]
        assert mode == "P"
        np.testing.assert_array_equal(ids, prediction)
        palette = np.array(DATASETS["voc"].palette)
        np.testing.assert_array_equal(colours, palette[prediction])


def test_cityscapes_takes_label_ids(tmp_path):
    samples = list(_samples("cityscapes"))
    files = _read(_write("cityscapes", samples, tmp_path / "x.zip"))
    assert list(files) == [f"{s['id']}_pred_labelIds.png" for s in samples]
    label_ids = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    for given, (mode, ids, _) in zip(samples, files.values(), strict=True):
        assert mode == "L"
        expected = np.array(label_ids)[given["image"][..., 0]]
        np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize(
    "kind, expected", [("voc", {2, 7, 20}), ("cityscapes", {11, 20, 33})]
)
def test_a_network_s_predictions_are_submitted(tmp_path, kind, expected):
    """Of a network that gives red to class 2, green to 7, and blue to the last."""
    spec = dataclasses.replace(DATASETS[kind], tile=(64, 64))
    kernel = np.zeros((1, 1, 3, spec.num_classes), "f4")
    kernel[0, 0, [2, 1, 0], [2, 7, -1]] = 1
    params = {
        "front_end": {
            "final": {"kernel": kernel, "bias": np.zeros(spec.num_classes, "f4")}
        }
    }
    model = DilatedNet(FrontEnd(spec.num_classes, ()))
    predictor = Predictor(model, params, spec, batch_size=2)
    images = [np.zeros((9, 70 + i, 3), np.uint8) for i in range(3)]
    for channel, image in enumerate(images):
        image[..., channel] = 255
    samples = [{"image": im, "label": im, "id": f"n{i}"} for i, im in enumerate(images)]
    path = write_submission(
        predictor, samples, kind, tmp_path / f"x{KINDS[kind]}", title=""
    )
    maps = [ids for _, ids, _ in _read(path).values()]
    assert [m.shape for m in maps] == [(9, 70), (9, 71), (9, 72)]
    assert [np.unique(m).tolist() for m in maps] == [[i] for i in sorted(expected)]


# How it is written.


@each_kind
def test_the_same_predictions_make_the_same_bytes(tmp_path, kind, monkeypatch):
    first = _write(kind, _samples(kind), tmp_path / f"a{KINDS[kind]}")
    monkeypatch.setattr("time.time", lambda: 2e9)
    predictor = Telling(DATASETS[kind], batch_size=2)
    second = _write(kind, _samples(kind), tmp_path / f"b{KINDS[kind]}", predictor)
    assert first.read_bytes() == second.read_bytes()


@each_kind
def test_everyone_may_read_what_is_unpacked(tmp_path, kind):
    path = _write(kind, _samples(kind, 1), tmp_path / f"x{KINDS[kind]}")
    if kind == "voc":
        with tarfile.open(path) as archive:
            [mode] = [member.mode for member in archive]
    else:
        with zipfile.ZipFile(path) as archive:
            [mode] = [info.external_attr >> 16 for info in archive.infolist()]
    assert mode == 0o644


class _Watching(Telling):
    """Calls back before each prediction."""

    def __init__(self, spec, callback):
        super().__init__(spec)
        self._callback = callback

    def stream(self, images):
        for prediction in super().stream(images):
            self._callback()
            yield prediction


@each_kind
def test_the_archive_grows_image_by_image(tmp_path, kind):
    sizes = []

    def note():
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))

    samples = []
    for i in range(4):  # of noise, so that each is larger than a file's buffer
        noise = blocks(range(19), (200, 300), seed=i, size=1)
        samples.append(sample(noise, noise, str(i)))
    predictor = _Watching(DATASETS[kind], note)
    path = _write(kind, samples, tmp_path / f"x{KINDS[kind]}", predictor)
    sizes.append(path.stat().st_size)
    assert all(b - a > 10_000 for a, b in itertools.pairwise(sizes[1:]))


@each_kind
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), ValueError("no such image")])
def test_what_stops_half_way_leaves_what_was_there(tmp_path, kind, stop):
    path = _write(kind, _samples(kind, 1), tmp_path / f"x{KINDS[kind]}")
    before = path.read_bytes()
    seen = []

    def give_up():
        seen.append([p.name for p in tmp_path.iterdir()])
        if len(seen) == 3:
            raise stop

    predictor = _Watching(DATASETS[kind], give_up)
    with pytest.raises(type(stop)):
        _write(kind, _samples(kind), path, predictor)
    assert len(seen[-1]) == 2 and path.name in seen[-1]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


@each_kind
def test_a_full_disk_is_named_with_the_archive(tmp_path, kind, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    path = tmp_path / f"x{KINDS[kind]}"
    with pytest.raises(OSError, match=r"cannot be written \(No space left") as stopped:
        _write(kind, _samples(kind), path)
    assert (stopped.value.errno, stopped.value.filename) == (28, str(path))
    assert not list(tmp_path.iterdir())


def test_the_bar_shows_how_many_images_are_done(tmp_path, capsys):
    _write("voc", _samples("voc"), tmp_path / "x.tar", title="my test images")
    shown = capsys.readouterr().err
    assert "my test images: 100%" in shown and "3/3" in shown
    _write("voc", _samples("voc"), tmp_path / "x.tar")
    assert capsys.readouterr().err == ""


# What is refused.


@each_kind
@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "", ".x", "..", "-x", "x y", "x\n", "C:x"]
)
def test_an_id_that_is_no_file_name_is_refused(tmp_path, kind, name):
    good, bad = _samples(kind, 2)
    with pytest.raises(ValueError, match="rename the image") as error:
        _write(kind, [good, {**bad, "id": name}], tmp_path / f"x{KINDS[kind]}")
    assert f"id={name!r}" in str(error.value)
    assert not list(tmp_path.iterdir())


@each_kind
@pytest.mark.parametrize("batch_size", [1, 3])
def test_two_images_of_one_id_are_refused(tmp_path, kind, batch_size):
    samples = [*_samples(kind), *_samples(kind, 1)]
    predictor = Telling(DATASETS[kind], batch_size)
    with pytest.raises(ValueError, match="id='ulm_000000_000019': two images"):
        _write(kind, samples, tmp_path / f"x{KINDS[kind]}", predictor)
    assert not list(tmp_path.iterdir())


@each_kind
@pytest.mark.parametrize("name", ["2008_000006", "münchen-1.a_b"])
def test_ids_are_kept_as_they_are(tmp_path, kind, name):
    [given] = _samples(kind, 1)
    path = _write(kind, [{**given, "id": name}], tmp_path / f"x{KINDS[kind]}")
    names = {
        "voc": f"results/VOC2012/Segmentation/comp5_test_cls/{name}.png",
        "cityscapes": f"{name}_pred_labelIds.png",
    }
    assert list(_read(path)) == [names[kind]]


@pytest.mark.parametrize(
    "spec, kind, message",
    [
        ("scenes", "voc", r"scenes has \d+ classes .* these 21, .*: background, aero"),
        ("voc", "cityscapes", "VOC 2012 has 21 classes .* these 19, .*: road, side"),
        ("cityscapes", "voc", r"Cityscapes has 19 classes \(road, .* these 21"),
    ],
)
def test_other_classes_than_the_server_s_are_refused(tmp_path, spec, kind, message):
    network, path = Telling(DATASETS[spec]), tmp_path / "new" / f"x{KINDS[kind]}"
    with pytest.raises(ValueError, match=message):
        write_submission(network, list(_samples(kind)), kind, path)
    assert not list(tmp_path.iterdir())


def test_classes_in_another_order_are_refused(tmp_path):
    classes = DATASETS["voc"].classes
    spec = dataclasses.replace(DATASETS["voc"], classes=(*classes[1:], classes[0]))
    with pytest.raises(ValueError, match="in this order: background, aeroplane"):
        write_submission(Telling(spec), [], "voc", tmp_path / "x.tar")


def test_a_network_trained_on_coco_has_voc_s_classes(tmp_path):
    coco, path = DATASETS["coco"], tmp_path / "x.tar"
    samples = list(_samples("voc", 1))
    write_submission(Telling(coco), samples, "voc", path, "comp6", title="")
    assert len(_read(path)) == 1


@pytest.mark.parametrize(
    "kind, name, competition, message",
    [
        ("camvid", "x.tar", "comp5", "kind='camvid': must be one of voc, cityscapes"),
        ("voc", "x.tar", "comp7", "competition='comp7': must be one of comp5, comp6"),
        ("voc", "x.zip", "comp5", r"x\.zip': a submission to voc ends in \.tar"),
        ("cityscapes", "x", "comp5", r"x': a submission to cityscapes ends in \.zip"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path, unchecked, kind, name, competition, message
):
    spec, path = DATASETS["voc"], tmp_path / "new" / name
    with pytest.raises(ValueError, match=message):
        write_submission(Telling(spec), [], kind, path, competition)
    assert not list(tmp_path.iterdir())


def test_a_source_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="source: Pascal VOC 2012 has no images"):
        _write("voc", [], tmp_path / "x.tar")
    assert not list(tmp_path.iterdir())
