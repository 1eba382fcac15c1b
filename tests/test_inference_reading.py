"""What is handed in: images of any kind as a viewer shows them, and where they are."""

import io
import struct
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from layouts import encoded, photo
from PIL import Image

from dilax.inference import read_photo
from dilax.inference.jobs import Photo, find_photos, is_video
from dilax.inference.photos import any_size, count_pixels

RED, GREY = (200, 10, 30), (70, 70, 70)


def _saved(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return read_photo(path, str(path))


def _fill(value, size=(3, 4)):
    return np.full((*size, *np.shape(value)), value, np.uint8)


def test_grey_is_shown_in_three_channels(tmp_path):
    grey = photo(0)[..., 0]
    shown = _saved(tmp_path / "x.png", grey)
    np.testing.assert_array_equal(shown, np.repeat(grey[..., None], 3, 2))
    bits = _saved(tmp_path / "bits.png", _fill(255), "1")
    np.testing.assert_array_equal(bits, _fill((255, 255, 255)))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_grey_of_16_bits_is_scaled_not_clipped(tmp_path, name):
    values = np.array([[0, 128, 129, 257 * 100], [257 * 200, 65000, 65406, 65535]])
    shown = _saved(tmp_path / name, values.astype(np.uint16))
    expected = [[0, 0, 1, 100], [200, 253, 254, 255]]
    np.testing.assert_array_equal(shown, np.repeat(np.array(expected)[..., None], 3, 2))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_of_16_bits_are_scaled_too_and_turned(tmp_path, planar):
    values = photo(1).astype(np.uint16) * 257
    stored = values if planar == "contig" else np.moveaxis(values, 2, 0)
    tags = [("Orientation", "H", 1, 6, True)]
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, stored, photometric="rgb", planarconfig=planar, extratags=tags
    )
    np.testing.assert_array_equal(read_photo(path, "x"), np.rot90(photo(1), -1))


def test_cmyk_becomes_rgb(tmp_path):
    ink = np.zeros((3, 4, 4), np.uint8)
    ink[..., 1:3] = 255  # magenta and yellow are red
    Image.fromarray(ink, "CMYK").save(tmp_path / "x.tif")
    np.testing.assert_array_equal(
        read_photo(tmp_path / "x.tif", "x"), _fill((255, 0, 0))
    )


@pytest.mark.parametrize("alpha, share", [(255, 1.0), (0, 0.0), (51, 0.2)])
def test_transparent_parts_show_white(tmp_path, alpha, share):
    shown = _saved(tmp_path / "x.png", _fill((*RED, alpha)))
    expected = share * np.array(RED) + (1 - share) * 255
    np.testing.assert_allclose(shown, _fill(expected.round()), atol=1)
    grey = _saved(tmp_path / "grey.png", _fill((70, 70, 70, alpha)), "LA")
    expected = share * np.array(GREY) + (1 - share) * 255
    np.testing.assert_allclose(grey, _fill(expected.round()), atol=1)


def test_a_palette_s_transparent_colour_shows_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([*RED, 1, 2, 3])
    image.save(tmp_path / "x.png", transparency=1)
    np.testing.assert_array_equal(
        read_photo(tmp_path / "x.png", "x"), [[RED, (255, 255, 255)]]
    )


@pytest.mark.parametrize(
    "orientation, shown",
    [
        (1, [[1, 2, 3], [4, 5, 6]]),
        (2, [[3, 2, 1], [6, 5, 4]]),
        (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]),
        (5, [[1, 4], [2, 5], [3, 6]]),
        (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]),
        (8, [[3, 6], [2, 5], [1, 4]]),
    ],
)
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_images_are_turned_upright(tmp_path, name, orientation, shown):
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    options = {"lossless": True, "exact": True} if name == "x.webp" else {}
    result = _saved(tmp_path / name, grey, "RGB", exif=exif, **options)
    np.testing.assert_array_equal(result[..., 0], shown)


def test_a_large_image_is_converted_band_by_band(tmp_path):
    image = photo(2, 600, 5)
    np.testing.assert_array_equal(_saved(tmp_path / "x.png", image), image)


def test_bytes_are_read_as_files_are():
    image = photo(3)
    np.testing.assert_array_equal(read_photo(encoded(image), "stdin"), image)
    assert count_pixels(encoded(image), "stdin") == 48
    with pytest.raises(ValueError, match="stdin: cannot be read as an image"):
        read_photo(b"no image", "stdin")


def test_images_of_other_channels_are_read_as_they_are(tmp_path):
    values = np.arange(2 * 3 * 5, dtype=np.uint16).reshape(2, 3, 5)
    tifffile.imwrite(tmp_path / "x.tif", values, planarconfig="contig")
    np.testing.assert_array_equal(read_photo(tmp_path / "x.tif", "x", 5), values)
    assert count_pixels(tmp_path / "x.tif", "x") == 6
    with pytest.raises(ValueError, match="has 5 channels, not 4"):
        read_photo(tmp_path / "x.tif", "x", 4)


def test_what_is_cut_off_or_of_another_kind_is_named(tmp_path):
    (tmp_path / "half.png").write_bytes(encoded(photo(4, 90, 90))[:2000])
    with pytest.raises(ValueError, match=r"half\.png: cannot be read as an image"):
        read_photo(tmp_path / "half.png", str(tmp_path / "half.png"))
    Image.fromarray(np.ones((2, 3), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match=r"f\.tif: .*mode F has neither 8 nor 16 bits"):
        read_photo(tmp_path / "f.tif", "f.tif")
    with pytest.raises(ValueError, match=r"gone: .*No such file"):
        count_pixels(tmp_path / "gone.png", "gone")


def _bomb(width, height) -> bytes:
    """A PNG whose header promises more than it holds."""
    small = encoded(photo(5))
    header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def test_an_image_bomb_is_refused_by_its_header(tmp_path):
    message = "x: has 60000x50000 pixels, more than --max_pixels=500000000"
    with any_size(), pytest.raises(ValueError, match=message):
        count_pixels(_bomb(60_000, 50_000), "x")
    with any_size():
        assert count_pixels(_bomb(20_000, 20_000), "x") == 400_000_000
        assert count_pixels(_bomb(60_000, 50_000), "x", 3 * 10**9) == 3 * 10**9
    with pytest.raises(ValueError, match="has 8x6 pixels, more than --max_pixels=47;"):
        count_pixels(encoded(photo(6)), "x", 47)


def test_pillow_s_own_limit_is_lifted_only_within():
    before = Image.MAX_IMAGE_PIXELS
    with any_size():
        assert Image.MAX_IMAGE_PIXELS is None
    assert before == Image.MAX_IMAGE_PIXELS is not None


# Where the images are.


def _files(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def _names(photos):
    return [p.name.as_posix() for p in photos]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    names = ("b.JPG", "a/b.png", "a/c/ü ß.tiff", "notes.txt", ".hidden.png")
    _files(root, *names, ".git/x.png", "out/done.png", "a/out/kept.png")
    return root


def test_a_folder_is_searched_with_its_sub_folders(folder):
    photos = find_photos(folder, folder / "out")
    assert _names(photos) == ["a/b.png", "a/c/ü ß.tiff", "a/out/kept.png", "b.JPG"]
    assert photos[0] == Photo(Path("a/b.png"), folder / "a/b.png")
    assert "out/done.png" in _names(find_photos(folder, folder))


def test_a_pattern_names_images_from_their_common_folder(folder):
    assert _names(find_photos(f"{folder}/a/**/*", folder / "o")) == [
        "b.png",
        "c/ü ß.tiff",
        "out/kept.png",
    ]
    assert _names(find_photos(f"{folder}/*.JP?", folder / "o")) == ["b.JPG"]


def test_a_list_names_images_relative_to_itself(folder, tmp_path):
    text = f"b.JPG\n\na/b.png\nb.JPG\n{tmp_path / 'in' / 'gone.png'}\n"
    (folder / "list.txt").write_text(text)
    photos = find_photos(folder / "list.txt", folder / "o")
    assert _names(photos) == ["b.JPG", "a/b.png", "gone.png"]


def test_one_image_is_named_by_its_path_or_comes_from_standard_input(
    folder, monkeypatch
):
    assert _names(find_photos(folder / "a/b.png", folder)) == ["b.png"]
    stdin = types.SimpleNamespace(buffer=io.BytesIO(b"bytes"))
    monkeypatch.setattr(sys, "stdin", stdin)
    [photo] = find_photos("-", folder)
    assert (str(photo), photo.file) == ("stdin", b"bytes")


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("empty", r"empty: contains no images \(suffixes: \.jpg"),
        ("empty/*.png", r"\*\.png: contains no images"),
        ("empty/list.txt", "list.txt: is empty"),
    ],
)
def test_a_source_without_images_is_refused(tmp_path, source, message):
    _files(tmp_path, "empty/list.txt")
    with pytest.raises(ValueError, match=message):
        find_photos(str(tmp_path / source), tmp_path / "out")


def test_brackets_in_a_pattern_may_be_those_of_a_folder(tmp_path, monkeypatch):
    for name in ("set [v1]/a.jpg", "set [v1]/b[2].jpg", "set v/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(photo(0), "jpg"))
    monkeypatch.chdir(tmp_path)
    for source, names in {
        "set [v1]/*.jpg": ["a.jpg", "b[2].jpg"],
        f"{tmp_path}/set [v1]/[a-b]*.jpg": ["a.jpg", "b[2].jpg"],
        "set [v1]/b[2].jpg": ["b[2].jpg"],
        "set [a-z]/*.jpg": ["c.jpg"],
    }.items():
        assert [p.name.name for p in find_photos(source, Path("out"))] == names


def test_what_is_no_image_is_named_and_counted(tmp_path, caplog):
    for name in ("a.jpg", "b.JFIF", "c.cr2", "d.txt"):
        (tmp_path / name).write_bytes(encoded(photo(0), "jpg"))
    assert len(find_photos(tmp_path, tmp_path / "out")) == 2
    assert "2 files are not images, such as" in caplog.text
    assert "c.cr2 (kinds: .cr2, .txt)" in caplog.text


def test_heic_needs_a_package_which_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (tmp_path / "x.heic").write_bytes(content)
    for file in (tmp_path / "x.heic", content):
        with pytest.raises(ValueError, match=r"x: .*pip install 'dilax\[heif\]'"):
            read_photo(file, "x")


@pytest.mark.parametrize("suffix, kind", [("jfif", "JPEG"), ("jp2", "JPEG2000")])
def test_other_kinds_of_pictures_are_read(tmp_path, suffix, kind):
    shown = _saved(tmp_path / f"x.{suffix}", _fill(RED), format=kind)
    assert np.abs(shown.astype(int) - RED).max() < 4


def test_videos_are_known_by_their_suffix():
    assert is_video("a/b.MP4") and is_video(Path("x.webm"))
    assert not is_video("mp4") and not is_video("-") and not is_video("a.png")
