"""Photographs as viewers show them, wherever they are read, with masks to match."""

import io

import numpy as np
import pytest
import tifffile
from layouts import unpacked
from PIL import Image, ImageOps
from test_data_survey import _of_ids
from toys import as_toys as as_toys  # a fixture for all that follows
from toys import files, opened

from dilax.cli.data import main
from dilax.data import open_source, read_pixels, survey_folder
from dilax.data.masks import read_mask
from dilax.data.pixels import read_header
from dilax.data.prepared import prepare
from dilax.inference.photos import read_photo

ORIENTATIONS = range(1, 9)
# How a camera stores what is shown upright.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _picture(size, channels=3):
    """All of whose pixels differ."""
    values = np.arange(size[0] * size[1] * channels, dtype=np.uint8)
    return Image.fromarray(values.reshape(*size, channels).squeeze())


def _save(image, path, orientation):
    """Stored turned, with the tag that tells how to turn it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = image.transpose(STORED[orientation]) if orientation > 1 else image
    if path.suffix == ".tif":
        tag = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, np.asarray(stored), extratags=tag)
        return
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)


def _folder(root, orientation, size=(6, 8), mask_tag=1, upright=True, count=5):
    """Images with an orientation; the class of a pixel is half its red, at most 3."""
    for i in range(count):
        image = _picture(size)
        mask = Image.fromarray(np.minimum(np.asarray(image)[..., 0] // 40, 3))
        _save(image, root / f"images/{i}.png", orientation)
        if upright or orientation == 1:
            _save(mask, root / f"masks/{i}.png", mask_tag)
        else:
            mask = mask.transpose(STORED[orientation])
            _save(mask, root / f"masks/{i}.png", 1)
    return root


def _check_aligned(root, **options):
    spec, notes, sizes = survey_folder(root, **options)
    for sample in open_source("folder", spec, str(root), "train"):
        assert sample["image"].shape[:2] in sizes
        expected = np.minimum(sample["image"][..., 0] // 40, 3)
        np.testing.assert_array_equal(sample["label"], expected)
    return sample["image"], [note for note in notes if "EXIF" in note]


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_reader_shows_images_upright(tmp_path, orientation, suffix):
    path, image = tmp_path / f"x.{suffix}", _picture((6, 9))
    if suffix == "webp":
        image.save(path, lossless=True)
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = image.transpose(STORED[orientation]) if orientation > 1 else image
        stored.save(path, lossless=True, exact=True, exif=exif)
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    else:
        _save(image, path, orientation)
    for found in (read_pixels(path), read_photo(path, "x")):
        np.testing.assert_array_equal(found, image)
    header = read_header(path)
    assert (header.size, header.orientation) == ((6, 9), orientation)
    raw = read_pixels(path, upright=False)
    assert raw.shape[:2] == ((9, 6) if orientation > 4 else (6, 9))


@pytest.mark.parametrize("kind, channels", [("ids", 1), ("colours", 3)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_follow_a_tag_of_their_own(tmp_path, orientation, suffix, kind, channels):
    path, mask = tmp_path / f"x.{suffix}", _picture((6, 9), channels)
    _save(mask, path, orientation)
    np.testing.assert_array_equal(read_mask(path, kind), mask)
    stored = mask.transpose(STORED[orientation]) if orientation > 1 else mask
    np.testing.assert_array_equal(read_mask(path, kind, upright=False), stored)


@pytest.mark.parametrize("size", [(6, 8), (7, 7)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_drawn_in_a_viewer_lie_on_the_images(tmp_path, orientation, size):
    image, notes = _check_aligned(_folder(tmp_path / "a", orientation, size))
    np.testing.assert_array_equal(image, _picture(size))
    if orientation > 1:
        assert notes[0].startswith("turned upright by their EXIF orientation: 5 ")
    same = _folder(tmp_path / "b", orientation, size, mask_tag=orientation)
    np.testing.assert_array_equal(_check_aligned(same)[0], image)
    notes = survey_folder(same).notes
    own = "masks turned by an orientation of their own: 5"
    assert (own in notes) == (orientation > 1)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_masks_that_fit_only_the_stored_pixels_are_laid_on_these(tmp_path, orientation):
    root = _folder(tmp_path, orientation, upright=False)
    image, notes = _check_aligned(root)
    assert image.shape == (8, 6, 3)
    assert notes[0].startswith("not turned by their EXIF orientation: 5 ")


def test_a_flag_decides_where_masks_fit_both_ways(tmp_path):
    _folder(tmp_path, 3, upright=False)
    image, _ = _check_aligned(tmp_path, orientation="stored")
    np.testing.assert_array_equal(image, _picture((6, 8)).rotate(180))
    # Others fit only as stored, so that these may be meant so, too.
    _folder(tmp_path / "more", 6, upright=False)
    with pytest.raises(
        ValueError, match=r"\d\.png: .*--config\.data\.orientation=stored"
    ):
        survey_folder(tmp_path)
    _check_aligned(tmp_path, orientation="stored")


def test_masks_of_both_kinds_are_laid_where_they_fit(tmp_path):
    _folder(tmp_path / "a", 6, upright=False)
    _folder(tmp_path / "b", 6)
    _, notes = _check_aligned(tmp_path)
    assert [note.split(":")[1][:10] for note in notes] == [" 5 images,"] * 2


def test_broken_and_unknown_orientations_count_as_upright(tmp_path):
    for exif in (
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\1\x12\0\3\0\0\0\1\0\x63\0\0",
    ):
        path = tmp_path / "x.jpg"
        Image.new("RGB", (9, 6)).save(path, exif=exif)
        assert read_pixels(path).shape == read_photo(path, "x").shape == (6, 9, 3)


def test_exif_may_follow_the_pixels_of_a_png(tmp_path):
    path = tmp_path / "x.png"
    _save(_picture((6, 9)), path, 6)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    length = int.from_bytes(content[start : start + 4], "big") + 12
    chunk, end = content[start : start + length], content.rindex(b"IEND") - 4
    rest = content[:start] + content[start + length : end]
    path.write_bytes(rest + chunk + content[end:])
    assert read_header(path).size == (6, 9)
    np.testing.assert_array_equal(read_pixels(path), _picture((6, 9)))


def test_show_draws_images_upright_and_says_so(tmp_path, capsys):
    root = _folder(tmp_path / "data", 6)
    main(["show", "folder", f"--data_dir={root}", f"--output={tmp_path}/a.png"])
    assert "turned upright by their EXIF" in capsys.readouterr().out


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("orientation", [3, 6])
def test_prepared_sets_are_read_upright(tmp_path, caplog, orientation, upright):
    found, images = files("train"), {}
    for name in [name for name in found if name.endswith(".jpg")]:
        image = images[name[0]] = Image.open(io.BytesIO(found[name])).resize((8, 6))
        path = tmp_path / "x.png"
        _save(image, path, orientation)
        found[name] = path.read_bytes()
        if orientation > 4 and not upright:
            label = name.replace(".jpg", ".png")
            stored = Image.open(io.BytesIO(found[label])).transpose(STORED[orientation])
            stored.save(path)
            found[label] = path.read_bytes()
    prepare("toys", unpacked(tmp_path / "source", found), tmp_path / "home")
    for sample in opened(tmp_path / "home"):
        image = images[sample["id"]]
        if orientation > 4 and not upright:
            image = image.transpose(STORED[orientation])
        np.testing.assert_array_equal(sample["image"], image)
        assert sample["image"].shape[:2] == sample["label"].shape
    said = [r for r in caplog.records if "EXIF" in r.getMessage()]
    assert len(said) == (0 if orientation > 4 and not upright else 1)


def test_sizes_that_fit_in_no_way_are_named(tmp_path):
    _of_ids(tmp_path, [0, 1])
    Image.new("L", (6, 8)).save(tmp_path / "masks/2.png")
    with pytest.raises(ValueError, match=r"2\.png: is 8x6, its mask 6x8; .*EXIF"):
        survey_folder(tmp_path)
