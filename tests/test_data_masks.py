"""Masks as programs leave them: what they mean is certain and printed, or it stops."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter

from dilax.cli.data import main
from dilax.data import open_source, survey_folder
from dilax.data.masks import MaskReading

SIZE = 48, 64
COLOURS = np.array([(0, 0, 0), (200, 10, 10), (10, 200, 10)], np.uint8)


def _ids(seed, values):
    """Rectangles of the values; background is the first."""
    rng, ids = np.random.default_rng(seed), np.zeros(SIZE, int)
    for k in range(12):
        y, x = rng.integers(0, SIZE[0] - 12), rng.integers(0, SIZE[1] - 16)
        ids[y : y + 8, x : x + 12] = 1 + k % (len(values) - 1)
    return np.asarray(values)[ids]


def _through_jpeg(mask, quality=90):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "jpeg", quality=quality)
    return Image.open(io.BytesIO(file.getvalue()))


def _smooth(mask, radius=1.0):
    return Image.fromarray(mask).filter(ImageFilter.GaussianBlur(radius))


def _resized(mask):
    return Image.fromarray(mask).resize((32, 24), 1).resize((64, 48), 1)


def _levels(*values, dtype=np.uint8):
    return lambda seed: _ids(seed, values).astype(dtype)


def _rgba(seed, colours=((255, 255, 255), (255, 255, 255)), alpha=(0, 255)):
    ids = _ids(seed, (0, 1))
    return np.dstack([np.array(colours, np.uint8)[ids], np.array(alpha, np.uint8)[ids]])


def _coloured(seed):
    return COLOURS[_ids(seed, (0, 1, 2))]


def _with_palette(seed):
    image = Image.fromarray(_ids(seed, (0, 1, 2)).astype(np.uint8))
    image.putpalette(COLOURS.ravel().tolist())
    return image


def _write(root, make, suffix="png", **options):
    for i in range(4):
        for kind in ("images", "masks"):
            (root / kind).mkdir(exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 50 + i, np.uint8)).save(
            root / f"images/{i}.png"
        )
        mask, path = make(i), root / f"masks/{i}.{suffix}"
        if suffix == "tif" and isinstance(mask, np.ndarray):
            tifffile.imwrite(path, mask, **options)
        else:
            image = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
            image.save(path, **options)
    return root


def _labels(root, spec):
    sources = [open_source("folder", spec, str(root), s) for s in ("train", "val")]
    samples = [sample for source in sources for sample in source]
    return [s["label"] for s in sorted(samples, key=lambda sample: sample["id"])]


OBJECT = _levels(0, 255)
NOISE = r"values cluster around 0, .*255, .*0 \d.*threshold=128.*dilax data clean"
VOID = r"255 beside .*void=255 ignores it, =none .*threshold"
DOUBTFUL = {
    "JPEG": (OBJECT, "jpg", "JPEG changes .*threshold=128.*clean"),
    "JPEG of ids": (_levels(0, 1, 2), "jpg", "JPEG changes .*PNG"),
    "JPEG of colours": (_coloured, "jpg", "256 colours.*JPEG.*clean"),
    "JPEG as PNG": (lambda i: _through_jpeg(OBJECT(i)), "png", NOISE),
    "bad JPEG as PNG": (lambda i: _through_jpeg(OBJECT(i), 30), "png", NOISE),
    "JPEG as palette": (
        lambda i: _through_jpeg(OBJECT(i)).convert("P"),
        "png",
        "cluster",
    ),
    "in RGB": (lambda i: np.dstack([_through_jpeg(OBJECT(i))] * 3), "png", NOISE),
    "traces": (_levels(0, 255, 255, 255, 255, 1, 254), "png", "around 0, 255"),
    "other levels": (
        lambda i: _through_jpeg(_levels(0, 100, 200)(i), 95),
        "png",
        "around 0, 100, 200",
    ),
    "smooth": (lambda i: _smooth(OBJECT(i)), "png", NOISE),
    "very smooth": (lambda i: _smooth(OBJECT(i), 2), "png", "cluster"),
    "resized": (lambda i: _resized(OBJECT(i)), "png", NOISE),
    "three levels": (_levels(0, 128, 255), "png", VOID),
    "1 and 255": (_levels(1, 255), "png", VOID),
    "far ids": (_levels(0, 1, 254, 255), "png", "threshold=128"),
    "two conventions": (lambda i: _levels(0, [1, 255][i % 2])(i), "png", VOID),
    "a trace of 1": (lambda i: np.maximum(OBJECT(i), np.eye(*SIZE) > 0), "png", VOID),
    "one value": (_levels(0, 0), "png", "contain only 0.*--labels"),
    "hidden colours": (
        lambda i: (
            np.dstack([_coloured(i), _ids(i, (255, 255, 0)).astype(np.uint8)])
            if i
            else _rgba(i, COLOURS[[2, 2]])
        ),
        "png",
        r"\(10, 200, 10\) in transparent.*masks=alpha",
    ),
    "smooth alpha": (
        lambda i: Image.merge(
            "LA", [Image.new("L", (64, 48), 255), _smooth(OBJECT(i))]
        ),
        "png",
        NOISE,
    ),
    "ids and colours": (
        lambda i: _coloured(i) if i % 2 else _levels(0, 1, 2)(i),
        "png",
        r"0\.png: contains ids, 0, 1, 2, .*1\.png contains colours; .*--labels",
    ),
    "fractions": (_levels(0, 0.7, dtype=np.float32), "tif", "fractions .*=0.5"),
    "negative": (_levels(0, -5, dtype=np.int16), "tif", "from -5 to 0, .*PNG"),
    "a page per class": (
        lambda i: np.stack([_levels(0, 1)(i)] * 5),
        "tif",
        "has 5 pages",
    ),
    "large": (_levels(0, 70000, dtype=np.int64), "tif", "to 70000, not .*65535"),
}


@pytest.mark.parametrize("make, suffix, message", DOUBTFUL.values(), ids=DOUBTFUL)
def test_masks_in_doubt_stop_with_the_remedy(tmp_path, make, suffix, message):
    with pytest.raises(ValueError, match=f"masks/.*{message}"):
        survey_folder(_write(tmp_path, make, suffix))


HALF = MaskReading(threshold=128.0)
DECIDED = {
    "JPEG": (OBJECT, "jpg", {"reading": HALF}, "id 0", [0, 1]),
    "JPEG as PNG": (
        lambda i: _through_jpeg(OBJECT(i)),
        "png",
        {"reading": HALF, "classes": "no,yes"},
        "no,yes",
        [0, 1],
    ),
    "void": (
        _levels(0, 128, 255),
        "png",
        {"reading": MaskReading(void="255")},
        "id 128",
        [0, 1, 255],
    ),
    "no void": (
        _levels(0, 128, 255),
        "png",
        {"reading": MaskReading(void="none")},
        "id 255",
        [0, 1, 2],
    ),
    "names": (_levels(0, 128, 255), "png", {"classes": "a,b,c"}, "b", [0, 1, 2]),
    "1 and 255": (
        _levels(1, 255),
        "png",
        {"classes": "1 a,255 b"},
        "b",
        [0, 1],
    ),
    "another void": (
        _levels(0, 1, 7, 255),
        "png",
        {"reading": MaskReading(void="7")},
        "255 is ignored",
        [0, 1, 255, 255],
    ),
    "void of a list": (
        _levels(0, 1, 2),
        "png",
        {"reading": MaskReading(void="1"), "classes": "a,b,c"},
        "2 classes: a,c",
        [0, 255, 1],
    ),
    "16 bits": (_levels(0, 65535, dtype=np.uint16), "png", {}, "id 65535", [0, 1]),
    "float": (_levels(0, 1, 2, dtype=np.float32), "tif", {}, "id 2", [0, 1, 2]),
    "float64": (_levels(0, 1, 2, dtype=np.float64), "tif", {}, "id 2", [0, 1, 2]),
    "fractions": (
        _levels(0, 0.7, dtype=np.float32),
        "tif",
        {"reading": MaskReading(threshold=0.5)},
        "id 1",
        [0, 1],
    ),
    "int64": (_levels(0, 1, 2, dtype=np.int64), "tif", {}, "id 2", [0, 1, 2]),
    "int8": (_levels(0, 1, 2, dtype=np.int8), "tif", {}, "id 2", [0, 1, 2]),
    "signed void": (
        _levels(0, 1, -1, dtype=np.int16),
        "tif",
        {},
        "-1 is ignored",
        [0, 1, 255],
    ),
    "bilevel": (_levels(0, 1, dtype=bool), "tif", {}, "inverted: 4", [0, 1]),
    "one channel axis": (
        lambda i: _levels(0, 1, 2)(i)[None],
        "tif",
        {},
        "id 2",
        [0, 1, 2],
    ),
    "alpha": (_rgba, "png", {}, "transparency is the mask", [0, 1]),
    "grey and alpha": (
        lambda i: Image.fromarray(_rgba(i)).convert("LA"),
        "png",
        {},
        "masks contain alpha",
        [0, 1],
    ),
    "colours beside transparency": (
        lambda i: _rgba(i, COLOURS[:2]),
        "png",
        {},
        "masks contain colours",
        [0, 1],
    ),
    "alpha by flag": (
        lambda i: _rgba(i, COLOURS[:2], (255, 0)),
        "png",
        {"reading": MaskReading(kind="alpha")},
        "masks contain alpha",
        [1, 0],
    ),
    "RGB and palettes": (
        lambda i: _coloured(i) if i % 2 else _with_palette(i),
        "png",
        {"classes": "a 0 0 0,b 200 10 10,c 10 200 10"},
        "masks contain colours; 3 classes: a",
        [0, 1, 2],
    ),
    "palettes with far ids": (
        lambda i: Image.fromarray(_levels(0, 90, 255)(i)).convert("P", palette=0),
        "gif",
        {"reading": MaskReading(kind="colours")},
        "masks contain colours",
        [0, 1, 2],
    ),
}


@pytest.mark.parametrize(
    "make, suffix, options, told, train", DECIDED.values(), ids=DECIDED
)
def test_what_masks_mean_is_decided_and_printed(
    tmp_path, make, suffix, options, told, train
):
    spec, notes, _ = survey_folder(_write(tmp_path, make, suffix), **options)
    text = "; ".join(notes)
    assert all(word in text for word in told.split(",")), text
    for i, label in enumerate(_labels(tmp_path, spec)):
        np.testing.assert_array_equal(label, _ids(i, train))


@pytest.mark.parametrize("values", [(0, 1, 255), (1, 2, 3, 255), (0, 3, 15, 255)])
def test_255_is_void_beside_small_ids_and_that_is_printed(tmp_path, values):
    spec, notes, _ = survey_folder(_write(tmp_path, _levels(*values)))
    assert len(spec.classes) == len(values) - 1
    assert any(note.startswith("255 is ignored; --config.data.void=") for note in notes)


def test_rare_and_possibly_unlabelled_ids_are_named(tmp_path):
    notes = survey_folder(_write(tmp_path, _levels(0, 1, 11))).notes
    assert any(
        n.startswith("id 11, 1")
        and "if these are unlabelled pixels, --classes=…,void" in n
        for n in notes
    )
    mask = _levels(0, 1)(0)
    mask[0, 0] = 9
    Image.fromarray(mask).save(tmp_path / "masks/0.png")
    for i in range(1, 4):
        Image.fromarray(_levels(0, 1)(i)).save(tmp_path / f"masks/{i}.png")
    notes = survey_folder(tmp_path).notes
    assert any(
        n.startswith("rare ids: 1, such as 9 in ") and "0.png" in n for n in notes
    )


LISTS = {
    "a header too many": ((0, 1, 2), "x,a,b,c,d", "names 5 .*0, 1, 2.*'0 x'"),
    "from 1": ((1, 2, 3), "a,b,c,d,e", "names 5 .*1, 2, 3"),
    "two levels": ((0, 255), "a,b,c", r"names 3 classes.* ids 0, 255"),
    "other ids": (
        (0, 255),
        "0 a,1 b",
        "contains id 255, which .*names 0, 1.*threshold",
    ),
    "255 or not": ((1, 255), "a,b", "as many names .*void=255"),
}


@pytest.mark.parametrize("values, classes, message", LISTS.values(), ids=LISTS)
def test_names_that_masks_cannot_mean_are_refused(tmp_path, values, classes, message):
    with pytest.raises(ValueError, match=message):
        survey_folder(_write(tmp_path, _levels(*values)), classes=classes)


def test_a_wrong_void_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"void=sky"):
        survey_folder(_write(tmp_path, _levels(0, 1)), reading=MaskReading(void="sky"))


@pytest.mark.parametrize(
    "make, dirty, suffix, values",
    [
        (OBJECT, _through_jpeg, "jpg", ""),
        (OBJECT, lambda m: _smooth(m, 0.5), "png", "0,255"),
        (_levels(0, 128, 255), lambda m: _through_jpeg(m, 80), "png", ""),
        (_coloured, lambda m: _through_jpeg(m, 95), "jpg", "#000000,#c80a0a,#0ac80a"),
    ],
)
def test_masks_are_cleaned_beside(tmp_path, capsys, make, dirty, suffix, values):
    (tmp_path / "masks").mkdir()
    for i in range(3):
        image = dirty(make(i))
        image.save(tmp_path / f"masks/{i}.{suffix}", quality=95, subsampling=0)
    out = tmp_path / "clean"
    main(["clean", f"{tmp_path}/masks", f"--to={out}", f"--values={values}"])
    assert (
        f"3 masks of {len(np.unique(make(0)))} values" in capsys.readouterr().out
        or values
    )
    for i in range(3):
        with Image.open(out / f"{i}.png") as file:
            wrong = (np.asarray(file) != make(i)).mean()
        assert wrong < 0.04
    with pytest.raises(SystemExit):
        main(["clean", str(out), f"--to={out}"])
