"""Image files as arrays: every channel and bit as it was written, or the reason."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from dilax.data.masks import mask_values, read_mask
from dilax.data.pixels import (
    as_float,
    as_uint8,
    read_header,
    read_pixels,
)

SIX = np.random.default_rng(0).integers(0, 65536, (12, 9, 6), np.uint16)
GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
IDS = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
COLOURS = np.array([(0, 0, 0), (128, 64, 0), (0, 128, 9)], np.uint8)


def _palette(array, colours):
    image = Image.fromarray(array)
    image.putpalette([level for colour in colours for level in colour])
    return image


def _save(path, image, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


# TIFF: channels wherever programs put them.

LAYOUTS = {
    "last": (SIX, {"photometric": "minisblack", "planarconfig": "contig"}),
    "first": (
        np.moveaxis(SIX, -1, 0),
        {"photometric": "minisblack", "planarconfig": "separate"},
    ),
    "page per channel": (np.moveaxis(SIX, -1, 0), {}),
    "page per row": (SIX, {}),
    "OME": (np.moveaxis(SIX, -1, 0), {"ome": True, "metadata": {"axes": "CYX"}}),
    "ImageJ": (np.moveaxis(SIX, -1, 0), {"imagej": True, "metadata": {"axes": "CYX"}}),
}


@pytest.mark.parametrize("pixels, options", LAYOUTS.values(), ids=LAYOUTS)
def test_many_channels_of_16_bits_are_kept(tmp_path, pixels, options):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, pixels, **options)
    np.testing.assert_array_equal(read_pixels(path), SIX)
    assert read_header(path)[:3] == ((12, 9), 6, 16)


def test_a_named_channel_axis_may_be_the_longest(tmp_path):
    path = tmp_path / "x.tif"
    wide = np.zeros((4, 3, 5), np.uint8)
    tifffile.imwrite(path, wide, photometric="minisblack", planarconfig="contig")
    assert read_pixels(path).shape == (4, 3, 5)
    assert read_header(path)[:3] == ((4, 3), 5, 8)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_compressed_tiff_needs_no_other_package(tmp_path, compression):
    path = _save(tmp_path / "x.tif", np.dstack([GREY] * 3), compression=compression)
    np.testing.assert_allclose(read_pixels(path)[..., 1], GREY, atol=3)
    assert read_header(path)[:3] == ((6, 8), 3, 8)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.zeros((6, 8), np.float32), r"YX \(6, 8\) float32 is not"),
        (np.zeros((2, 7, 6, 8), np.uint8), r"\w+ \(2, 7, 6, 8\) uint8 is not"),
    ],
)
def test_tiff_files_that_are_no_images_are_refused(tmp_path, pixels, message):
    tifffile.imwrite(tmp_path / "x.tif", pixels)
    for read in (read_pixels, read_header):
        with pytest.raises(ValueError, match=rf"x\.tif: {message}"):
            read(tmp_path / "x.tif")


# Other images.


@pytest.mark.parametrize(
    "image, expected, bits",
    [
        (GREY, GREY[..., None], 8),
        (GREY > 9, 255 * (GREY > 9)[..., None], 8),
        (Image.fromarray(GREY).convert("LA"), GREY[..., None], 8),
        (GREY.astype(np.uint16) * 999, GREY.astype(np.uint16)[..., None] * 999, 16),
        (np.dstack([GREY, GREY + 1, GREY + 2, GREY]), None, 8),
        (_palette(IDS, COLOURS), COLOURS[IDS], 8),
    ],
    ids=["grey", "bilevel", "grey and alpha", "16 bits", "alpha", "palette"],
)
def test_images_have_the_channels_that_they_show(tmp_path, image, expected, bits):
    path = _save(tmp_path / "x.png", image)
    expected = np.dstack([GREY, GREY + 1, GREY + 2]) if expected is None else expected
    np.testing.assert_array_equal(read_pixels(path), expected)
    assert read_header(path)[:3] == ((6, 8), expected.shape[2], bits)


def test_grey_and_transparent_images_become_rgb_and_nothing_else_does(tmp_path):
    grey = _save(tmp_path / "grey.png", GREY)
    np.testing.assert_array_equal(read_pixels(grey, 3), np.dstack([GREY] * 3))
    clear = _save(tmp_path / "clear.tif", np.dstack([GREY, GREY, GREY + 5, GREY]))
    np.testing.assert_array_equal(read_pixels(clear, 3), read_pixels(clear)[..., :3])
    tifffile.imwrite(tmp_path / "six.tif", SIX, photometric="minisblack")
    for path, found, wanted in [(grey, 1, 6), (tmp_path / "six.tif", 6, 3)]:
        with pytest.raises(ValueError, match=f"{path}: has {found} .* not {wanted}"):
            read_pixels(path, wanted)


@pytest.mark.parametrize("upright, shape, red", [(True, (3, 2), 1), (False, (2, 3), 0)])
def test_photographs_are_turned_upright_on_demand(tmp_path, upright, shape, red):
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 0] = 255, 0, 0
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    path = _save(tmp_path / "x.png", image, exif=exif)
    result = read_pixels(path, upright=upright)
    assert result.shape == (*shape, 3)
    assert np.argwhere(result[..., 0]).tolist() == [[0, red]]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0", b"II*\0"])
def test_a_file_that_is_no_image_is_named(tmp_path, suffix, content):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    for read in (read_header, read_pixels, read_mask, mask_values):
        with pytest.raises(ValueError, match=f"{path}: cannot be read as an image"):
            read(path)


@pytest.mark.filterwarnings("ignore")
def test_broken_files_are_read_or_named(tmp_path):
    """Whatever the decoders raise on broken bytes, it becomes an error with a name."""
    rng, refused = np.random.default_rng(0), 0
    for suffix in ("png", "tif", "gif", "bmp", "webp", "jpg"):
        path = _save(tmp_path / f"x.{suffix}", np.dstack([GREY] * 3))
        content = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(30):
            broken = content.copy()
            broken[rng.integers(0, len(broken), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(broken[: rng.integers(1, len(broken) + 1)].tobytes())
            for read in (read_header, read_pixels, read_mask, mask_values):
                try:
                    read(path)
                except ValueError as error:
                    assert str(error).startswith(f"{path}: ")
                    refused += 1
    assert refused > 300


# Masks.


@pytest.mark.parametrize(
    "image",
    [
        IDS,
        _palette(IDS, COLOURS),
        Image.fromarray(IDS).convert("LA"),
        np.dstack([IDS] * 3),
        IDS.astype(np.uint16),
        IDS.astype(np.int32),
    ],
    ids=["grey", "palette", "grey and alpha", "equal channels", "16 bits", "32 bits"],
)
def test_masks_of_ids_come_in_many_forms(tmp_path, image):
    path = _save(tmp_path / "x.tif", image)
    np.testing.assert_array_equal(read_mask(path), IDS)
    assert mask_values(path).ids == {0: 16, 1: 16, 2: 16}


def test_ids_may_have_16_bits_and_1(tmp_path):
    path = _save(tmp_path / "x.png", IDS.astype(np.uint16) * 20000)
    np.testing.assert_array_equal(read_mask(path), IDS.astype(int) * 20000)
    assert mask_values(path)[:3] == ({0: 16, 20000: 16, 40000: 16}, None, {})
    path = _save(tmp_path / "y.png", IDS > 0)
    np.testing.assert_array_equal(read_mask(path), IDS > 0)
    values = mask_values(path)
    assert values[:3] == ({0: 16, 1: 32}, {(0, 0, 0): 16, (255, 255, 255): 32}, {})


@pytest.mark.parametrize("alpha", [False, True])
def test_masks_of_colours_keep_them(tmp_path, alpha):
    image = np.dstack([COLOURS[IDS], GREY]) if alpha else COLOURS[IDS]
    path = _save(tmp_path / "x.png", image)
    np.testing.assert_array_equal(read_mask(path, "colours"), COLOURS[IDS])
    counts = {(0, 0, 0): 16, (128, 64, 0): 16, (0, 128, 9): 16}
    assert mask_values(path)[:3] == (None, counts, {})
    with pytest.raises(ValueError, match=r"x\.png: contains colours"):
        read_mask(path)


def test_palettes_give_ids_and_colours(tmp_path):
    path = _save(tmp_path / "x.png", _palette(IDS, [(9, 9, 9), (1, 2, 3), (9, 9, 9)]))
    counts = {(9, 9, 9): 32, (1, 2, 3): 16}
    palette = {0: (9, 9, 9), 1: (1, 2, 3), 2: (9, 9, 9)}
    assert mask_values(path)[:3] == ({0: 16, 1: 16, 2: 16}, counts, palette)
    assert read_mask(path, "colours")[0, :3].tolist() == [[9] * 3, [1, 2, 3], [9] * 3]


@pytest.mark.parametrize(
    "name, pixels, message",
    [
        ("x.tif", IDS.astype(np.float32) / 2, "contains fractions.*threshold=0.5"),
        ("x.tif", IDS.astype(np.int32) - 2, "contains ids from -2 to 0"),
        (
            "x.png",
            np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8),
            "contains more than 256 colours.*smoothed",
        ),
    ],
)
def test_what_is_no_mask_is_refused_with_the_remedy(tmp_path, name, pixels, message):
    path = _save(tmp_path / name, pixels)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        mask_values(path)


def test_numbers_are_no_colours(tmp_path):
    path = _save(tmp_path / "x.png", IDS.astype(np.uint16))
    with pytest.raises(ValueError, match=r"x\.png: contains numbers of uint16"):
        read_mask(path, "colours")


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_16_bits_are_rounded_to_8(kind):
    values = np.arange(65536).astype(kind)
    np.testing.assert_array_equal(as_uint8(values), np.round(values / 257))
    np.testing.assert_allclose(as_float(values.astype(np.uint16)), values / 257, 1e-6)
    assert as_uint8(GREY) is GREY
