"""Whole folders: outputs, resuming, and what goes wrong on the way."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from layouts import encoded, photo, unpacked
from PIL import Image
from telling import largest_channel

from dilax.data import colour_map
from dilax.inference import OUTPUTS, Predictor, jobs, predict_photos
from dilax.inference.jobs import is_whole, progress
from dilax.inference.photos import save_bands
from dilax.inference.workers import Memory, Task, ahead, run_tasks

BLUE, GREEN, RED = (10, 20, 200), (0, 200, 0), (200, 0, 30)


@pytest.fixture(scope="module")
def predictor():
    return largest_channel()


def _fill(colour, size=(4, 6)):
    return np.full((*size, 3), colour, np.uint8)


def _read(path):
    with Image.open(path) as file:
        return np.asarray(file)


def _below(folder):
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return files - {"legend.png"}


@pytest.fixture
def photos(tmp_path):
    files = {
        "a.png": encoded(_fill(RED)),
        "x/a.png": encoded(_fill(GREEN, (3, 70))),
        "x/y/ü ß.jpg": encoded(_fill(BLUE, (300, 5)), "jpg"),
    }
    return unpacked(tmp_path / "in", files)


def test_a_legend_names_the_colours_of_pictures(tmp_path, predictor):
    images = unpacked(tmp_path / "in", {"legend.png": encoded(_fill(RED))})
    out = tmp_path / "out"
    assert predict_photos(predictor, images, out).pixels == {2: 24}
    assert _read(out / "legend.png").shape == (4, 6)  # the prediction
    rows = _read(out / "legend_of_classes.png")
    for i, colour in enumerate(colour_map(3)):
        assert (rows[4 + 24 * i + 12, 20] == colour).all()
    predict_photos(predictor, images, tmp_path / "ids", outputs=["labels"])
    assert [p.name for p in (tmp_path / "ids").iterdir()] == ["legend.png"]


def test_large_photographs_are_reduced_to_the_training_images_size(
    tmp_path, predictor, capfd
):
    """Stripes of one pixel vanish, as they would in the images of the data set."""
    spec = dataclasses.replace(predictor.spec, image_size=(10, 15))
    image = np.concatenate([_fill(GREEN, (40, 30)), _fill(RED, (40, 30))], 1)
    image[::8] = BLUE
    images = unpacked(tmp_path / "in", {"a.png": encoded(image)})
    found = {}
    for resize in (True, False):
        own = Predictor(predictor.model, predictor.params, spec, resize=resize)
        assert own.reduction(image.shape) == (0.25 if resize else 1)
        assert own.reduction((12, 19, 3)) == 1  # about as large: left alone
        predict_photos(own, images, tmp_path / f"{resize}")
        found[resize] = _read(tmp_path / f"{resize}" / "a.png")
        told = "60x40 pixels are reduced to 15x10" in capfd.readouterr().err
        assert told is resize
    assert found[True].shape == found[False].shape == (40, 60)
    assert (found[False][::8] == 0).all() and (found[True] > 0).all()
    assert (found[True][:, 40:] == 2).all() and (found[True][:, :20] == 1).all()


def test_sub_folders_are_kept(tmp_path, photos, predictor):
    outcome = predict_photos(predictor, photos, tmp_path / "out")
    assert outcome[:3] == (3, 0, [])
    assert _below(tmp_path / "out") == {
        f"{name}{end}"
        for name in ("a", "x/a", "x/y/ü ß")
        for end in (".png", "_overlay.png")
    }
    expected = {"a": _fill(2)[..., 0], "x/a": 1 + 0 * _fill(0, (3, 70))[..., 0]}
    for name, labels in expected.items():
        np.testing.assert_array_equal(_read(tmp_path / "out" / f"{name}.png"), labels)
    assert not _read(tmp_path / "out" / "x/y/ü ß.png").any()


def test_every_output_holds_what_its_name_says(tmp_path, predictor):
    image = np.concatenate([_fill((0, 1, 3), (300, 6)), _fill((2, 0, 0), (300, 6))], 1)
    unpacked(tmp_path, {"i.png": encoded(image)})
    predict_photos(predictor, tmp_path / "i.png", tmp_path / "o", outputs=list(OUTPUTS))
    labels = np.repeat([[0, 2]], 300, 0).repeat(6, 1)
    np.testing.assert_array_equal(_read(tmp_path / "o" / "i.png"), labels)
    colours = np.array(colour_map(3), np.uint8)[labels]
    np.testing.assert_array_equal(_read(tmp_path / "o" / "i_colour.png"), colours)
    blended = 0.4 * image + 0.6 * colours
    np.testing.assert_allclose(_read(tmp_path / "o" / "i_overlay.png"), blended, atol=1)
    with np.load(tmp_path / "o" / "i_probabilities.npz") as archive:
        [name] = archive.files
        odds = archive[name]
    assert (name, odds.dtype, odds.shape) == ("probabilities", np.float32, (300, 12, 3))
    np.testing.assert_allclose(odds[0, 0], np.array([8, 2, 1]) / 11, atol=1e-6)
    np.testing.assert_allclose(odds[299, 11], np.array([1, 1, 4]) / 6, atol=1e-6)


def test_pngs_are_written_in_bands_and_read_back(tmp_path):
    image = photo(0, 70, 31)
    for cuts in ([], [1], [30, 60]):
        save_bands(iter(np.split(image, cuts)), (70, 31), tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as file:
            assert (file.format, file.mode) == ("PNG", "RGB")
            file.verify()
        np.testing.assert_array_equal(_read(tmp_path / "x.png"), image)
        assert is_whole(tmp_path / "x.png")


def test_a_png_in_bands_that_stops_half_way_leaves_nothing(tmp_path):
    def bands():
        yield photo(0, 3, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_bands(bands(), (6, 4), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("outputs", [[], ["labels", "lables"]])
def test_an_output_that_there_is_not_is_refused(tmp_path, photos, predictor, outputs):
    with pytest.raises(
        ValueError, match="must be some of labels, overlay, colour, pro"
    ):
        predict_photos(predictor, photos, tmp_path / "out", outputs=outputs)
    assert not (tmp_path / "out").exists()


def test_what_is_there_whole_is_skipped_and_the_rest_made(tmp_path, photos, predictor):
    output = tmp_path / "out"
    predict_photos(predictor, photos, output)
    whole = output / "a.png"
    whole.write_bytes(encoded(_fill((9, 9, 9))))  # another, but whole
    half = output / "x" / "a.png"
    content = half.read_bytes()
    half.write_bytes(content[:-7])
    (output / "x/y/ü ß_overlay.png").unlink()
    assert predict_photos(predictor, photos, output)[:3] == (2, 1, [])
    assert (_read(whole) == 9).all()
    assert half.read_bytes() == content
    assert predict_photos(predictor, photos, output)[:3] == (0, 3, [])
    assert predict_photos(predictor, photos, output, overwrite=True).written == 3
    assert (_read(whole) == 2).all()


def test_a_folder_is_not_predicted_from_what_was_written_into_it(photos, predictor):
    for skipped in (0, 3):
        outcome = predict_photos(predictor, photos, photos / "out")
        assert (outcome.skipped, outcome.written) == (skipped, 3 - skipped)


def test_whole_files_are_told_from_halves(tmp_path):
    png, npz = tmp_path / "x.png", tmp_path / "x.npz"
    assert not is_whole(png)
    png.write_bytes(b"")
    assert not is_whole(png)
    png.write_bytes(encoded(_fill(RED)))
    assert is_whole(png)
    np.savez(npz, x=np.zeros(100))
    assert is_whole(npz)
    npz.write_bytes(npz.read_bytes()[:-60])
    assert not is_whole(npz)


def test_unreadable_and_too_large_images_are_named_and_the_rest_predicted(
    tmp_path, photos, predictor
):
    (photos / "x" / "broken.jpg").write_bytes(b"no")
    unpacked(photos, {"large.png": encoded(_fill(RED, (50, 50)))})
    output = tmp_path / "out"
    outcome = predict_photos(predictor, photos, output, max_pixels=2000)
    assert (outcome.written, outcome.skipped) == (3, 0)
    large, broken = outcome.problems
    assert "large.png: has 50x50 pixels, more than --max_pixels=2000" in large
    assert "broken.jpg: cannot be read as an image" in broken
    assert len(_below(output)) == 6


def test_an_output_that_cannot_be_written_is_named_before_anything_is_predicted(
    tmp_path, photos, predictor, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(type(predictor), "bands", None)
    with pytest.raises(OSError, match="cannot be written") as stopped:
        predict_photos(predictor, photos, tmp_path / "file" / "out")
    assert stopped.value.filename == str(tmp_path / "file" / "out")


def test_a_full_disk_stops_the_job_and_leaves_what_was_written(
    tmp_path, photos, predictor, monkeypatch
):
    """With memory for one image, so that the reader waits for the writer that fails."""
    real, output = jobs.save_image, tmp_path / "out"

    def save(image, path):
        if path.parent.name == "x":
            raise OSError(28, "No space left on device", str(path))
        real(image, path)

    monkeypatch.setattr(jobs, "save_image", save)  # of label maps, the first
    monkeypatch.setattr(jobs, "Memory", lambda: Memory(1))
    with pytest.raises(OSError, match="No space left"):
        predict_photos(predictor, photos, output)
    assert _below(output) == {"a.png", "a_overlay.png"}
    assert (_read(output / "a.png") == 2).all()
    monkeypatch.setattr(jobs, "save_image", real)
    assert predict_photos(predictor, photos, output)[:3] == (2, 1, [])


def test_an_interruption_leaves_whole_files_alone(
    tmp_path, photos, predictor, monkeypatch
):
    output, real = tmp_path / "out", type(predictor).bands

    def bands(self, image, probabilities=False):
        if len(image) == 300:
            yield next(real(self, image, probabilities))
            raise KeyboardInterrupt
        yield from real(self, image, probabilities)

    monkeypatch.setattr(type(predictor), "bands", bands)
    outputs = ["labels", "probabilities"]
    with pytest.raises(KeyboardInterrupt):
        predict_photos(predictor, photos, output, outputs=outputs)
    files = _below(output)
    assert files <= {
        f"{n}{e}" for n in ("a", "x/a") for e in (".png", "_probabilities.npz")
    }
    assert files and all(is_whole(output / name) for name in files)


def test_progress_shows_parts_of_images_and_the_time_left(capsys):
    with progress(2) as bar:
        bar.update(0.5)
        bar.refresh()
    shown = capsys.readouterr().err
    assert "25%" in shown and "0.5/2 [" in shown and "<" in shown


# Reading, predicting and writing at the same time.


def test_items_are_made_ahead_in_order():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    coming = ahead(items(), depth=3)
    assert next(coming) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [0, 1, 2, 3]
    assert list(coming) == list(range(1, 20))


def test_an_error_on_the_way_ahead_arrives_in_its_place():
    def items():
        yield 1
        raise OSError("gone")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(OSError, match="gone"):
        next(coming)


def test_images_are_read_while_others_are_written(predictor):
    """The first write waits until the last image has been read and predicted."""
    read, order = threading.Event(), []

    def tasks():
        for i in range(3):
            if i == 2:
                read.set()
            image = _fill([0, 9, 0] if i else [9, 0, 0])
            yield Task(image, 24, lambda labels, i=i: write(i, labels))

    def write(i, labels):
        assert read.wait(20)
        order.append((i, int(labels[0, 0])))

    outcome = run_tasks(predictor, tasks(), Memory(), progress(3))
    assert outcome[:3] == (3, 0, [])
    assert order == [(0, 2), (1, 1), (2, 1)]


def test_a_memory_holds_so_many_pixels_or_one_image():
    memory, entered = Memory(10), []

    def enter(pixels):
        memory.enter(pixels)
        entered.append(pixels)

    enter(4)
    enter(6)
    threads = [threading.Thread(target=enter, args=(n,)) for n in (50,)]
    threads[0].start()
    memory.leave(4)
    threads[0].join(0.05)
    assert entered == [4, 6]
    memory.leave(6)
    threads[0].join(10)
    assert entered == [4, 6, 50]
    with memory:
        pass
    enter(99)  # nobody waits any more
    assert entered[-1] == 99
