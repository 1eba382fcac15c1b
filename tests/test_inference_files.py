"""Label maps as files: palettes, overlays, folders; nothing lost on the way."""

import numpy as np
import pytest
from PIL import Image

from dilax.data import DatasetSpec, colour_map
from dilax.inference import (
    Predictor,
    overlay,
    palette_image,
    predict_photos,
    save_image,
)
from dilax.models import DilatedNet, FrontEnd

SPEC = DatasetSpec("bgr", ("b", "g", "r"), colour_map(3), (0.0, 0.0, 0.0))
RED, GREEN = (200, 0, 0), (0, 200, 0)


@pytest.fixture(scope="module")
def colours():
    """A network that names each pixel for the largest of its B, G and R."""
    final = {"kernel": np.eye(3, dtype="f4")[None, None], "bias": np.zeros(3, "f4")}
    params = {"front_end": {"final": final}}
    return Predictor(DilatedNet(FrontEnd(3, ())), params, SPEC)


def _fill(colour, size=(4, 6)):
    return np.full((*size, 3), colour, np.uint8)


def _save(path, array, **options):
    Image.fromarray(array).save(path, **options)


def _read(path):
    with Image.open(path) as file:
        return np.asarray(file)


def test_a_label_map_keeps_its_ids_on_disk_and_shows_the_palette(tmp_path):
    labels = np.array([[0, 1, 2], [255, 2, 1]], np.int32)
    save_image(palette_image(labels, SPEC), tmp_path / "new" / "x.png")
    np.testing.assert_array_equal(_read(tmp_path / "new" / "x.png"), labels)
    with Image.open(tmp_path / "new" / "x.png") as file:
        colours = np.asarray(file.convert("RGB"))
    white = (255, 255, 255)
    expected = [[*colour_map(3)], [white, colour_map(3)[2], colour_map(3)[1]]]
    np.testing.assert_array_equal(colours, expected)


@pytest.mark.parametrize(
    "opacity, expected", [(0.0, (100, 50, 0)), (1.0, (128, 0, 0)), (0.5, (114, 25, 0))]
)
def test_an_overlay_blends_image_and_palette(opacity, expected):
    labels = np.ones((4, 6), np.int32)
    result = overlay(_fill((100, 50, 0)), labels, SPEC, opacity)
    np.testing.assert_array_equal(np.asarray(result), _fill(expected))


@pytest.mark.parametrize("stop", [OSError(28, "disk full"), KeyboardInterrupt()])
def test_a_write_that_stops_half_way_leaves_what_was_there(tmp_path, monkeypatch, stop):
    path = tmp_path / "x.png"
    save_image(Image.fromarray(_fill(RED)), path)

    def half(self, file, format):
        file.write_bytes(b"half")
        raise stop

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(type(stop)) as stopped:
        save_image(Image.fromarray(_fill(GREEN)), path)
    if isinstance(stop, OSError):
        assert (stopped.value.errno, stopped.value.filename) == (28, str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    np.testing.assert_array_equal(_read(path), _fill(RED))


@pytest.mark.parametrize("name", ["x", "x.txt", "x.psd"])
def test_a_suffix_that_names_no_format_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: '.*' is not an image format"):
        save_image(Image.fromarray(_fill(RED)), tmp_path / "new" / name)
    assert not list(tmp_path.iterdir())


def test_an_image_that_its_format_cannot_hold_is_named(tmp_path):
    with pytest.raises(
        OSError, match=r"cannot be written \(cannot write mode P.*x\.jpg"
    ):
        save_image(palette_image(np.zeros((2, 2), int), SPEC), tmp_path / "x.jpg")
    assert not list(tmp_path.iterdir())


def test_the_suffix_may_be_in_capitals(tmp_path):
    save_image(Image.fromarray(_fill(RED)), tmp_path / "X.PNG")
    with Image.open(tmp_path / "X.PNG") as file:
        assert file.format == "PNG"


def test_a_folder_is_predicted_but_for_the_image_that_is_broken(tmp_path, colours):
    source, output = tmp_path / "é in", tmp_path / "out" / "new"
    source.mkdir()
    _save(source / "a.png", _fill(RED))
    _save(source / "c.png", _fill(GREEN, (3, 70)))
    (source / "b.jpg").write_text("not a picture")
    [message] = predict_photos(colours, source, output).problems
    assert str(source / "b.jpg") in message
    written = ["a.png", "a_overlay.png", "c.png", "c_overlay.png", "legend.png"]
    assert sorted(p.name for p in output.iterdir()) == written
    np.testing.assert_array_equal(_read(output / "a.png"), np.full((4, 6), 2))
    np.testing.assert_array_equal(_read(output / "c.png"), np.full((3, 70), 1))
    shade = 0.4 * np.array(GREEN) + 0.6 * np.array(colour_map(3)[1])
    np.testing.assert_allclose(
        _read(output / "c_overlay.png"), _fill(shade, (3, 70)), atol=1
    )


def test_a_photograph_is_turned_upright(tmp_path, colours):
    image = _fill(RED)
    image[0] = GREEN
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise: the top becomes the right
    _save(tmp_path / "a.png", image, exif=exif)
    assert not predict_photos(colours, tmp_path / "a.png", tmp_path / "out").problems
    expected = np.full((6, 4), 2)
    expected[:, -1] = 1
    np.testing.assert_array_equal(_read(tmp_path / "out" / "a.png"), expected)


@pytest.mark.parametrize(
    "names", [("a.png", "a.bmp"), ("a.png", "A.bmp"), ("a.png", "a_overlay.png")]
)
def test_no_prediction_overwrites_another(tmp_path, colours, names):
    _save(tmp_path / names[0], _fill(RED))
    _save(tmp_path / names[1], _fill(GREEN))
    assert not predict_photos(colours, tmp_path, tmp_path / "out").problems
    assert len({p.name.casefold() for p in (tmp_path / "out").iterdir()}) == 5
    for name, label in zip(names, (2, 1), strict=True):
        assert (_read(tmp_path / "out" / f"{name}.png") == label).all()


def test_predictions_never_overwrite_the_images(tmp_path, colours):
    _save(tmp_path / "a.png", _fill(RED))
    predict_photos(colours, tmp_path, tmp_path)
    np.testing.assert_array_equal(_read(tmp_path / "a.png"), _fill(RED))
    assert (_read(tmp_path / "a.png.png") == 2).all()
    with pytest.raises(ValueError, match="would be overwritten"):
        predict_photos(colours, tmp_path, tmp_path)


def test_a_source_that_is_missing_is_refused(tmp_path, colours):
    with pytest.raises(ValueError, match="nowhere: no such file or folder"):
        predict_photos(colours, tmp_path / "nowhere", tmp_path)
