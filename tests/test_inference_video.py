"""Videos: ids kept to the bit, times kept, a picture a frame; what goes wrong."""

import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from telling import largest_channel

from dilax.data import colour_map
from dilax.inference import predict_video
from dilax.inference.video import open_video

av = pytest.importorskip("av", reason="reads and writes videos")

COLOURS = {0: (10, 20, 200), 1: (0, 200, 0), 2: (200, 0, 30)}
TIMES = [0, 1, 2, 5, 6]  # in tenths of a second
SIZE = (21, 34)


@pytest.fixture(scope="module")
def predictor():
    return largest_channel()


def _labels(index):
    labels = np.full(SIZE, index % 3, np.uint8)
    labels[: index + 3, :10] = (index + 1) % 3
    return labels


@pytest.fixture
def video(tmp_path):
    """Five frames without loss, the fourth late."""
    path = tmp_path / "in" / "drive é.mkv"
    path.parent.mkdir()
    table = np.array(list(COLOURS.values()), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 10)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "bgr0"
        for index, time in enumerate(TIMES):
            image = table[_labels(index)]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _frames(path, form):
    with av.open(str(path)) as container:
        return [(f.time, f.to_ndarray(format=form)) for f in container.decode(video=0)]


def test_label_videos_hold_the_ids_at_the_source_s_times(tmp_path, video, predictor):
    outcome = predict_video(predictor, video, tmp_path / "out", outputs=["labels"])
    assert outcome[:3] == (5, 0, [])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["drive é_labels.mkv"]
    frames = _frames(tmp_path / "out" / "drive é_labels.mkv", "gray")
    assert [time for time, _ in frames] == [t / 10 for t in TIMES]
    for index, (_, labels) in enumerate(frames):
        np.testing.assert_array_equal(labels, _labels(index))


@pytest.mark.parametrize("output", ["overlay", "colour"])
def test_videos_to_look_at_show_the_classes_colours(tmp_path, video, predictor, output):
    predict_video(predictor, video, tmp_path, outputs=[output])
    frames = _frames(tmp_path / f"drive é_{output}.mp4", "rgb24")
    assert [time for time, _ in frames] == pytest.approx([t / 10 for t in TIMES])
    shown = np.array(colour_map(3), np.float32)
    if output == "overlay":
        shown = 0.6 * shown + 0.4 * np.array(list(COLOURS.values()))
    for index, (_, image) in enumerate(frames):
        assert image.shape == (22, 34, 3)  # H.264 halves colours: sides are even
        middle = image[12:18, 16:28].reshape(-1, 3).mean(0)
        np.testing.assert_allclose(middle, shown[_labels(index)[15, 20]], atol=8)


def test_frames_become_pictures_and_a_stopped_job_goes_on(tmp_path, video, predictor):
    outputs = ["labels", "probabilities"]
    options = {"outputs": outputs, "frames": True}
    outcome = predict_video(predictor, video, tmp_path, **options)
    assert outcome[:3] == (5, 0, [])
    folder = tmp_path / "drive é"
    assert len(list(folder.iterdir())) == 10
    for index in range(5):
        with Image.open(folder / f"{index:06d}.png") as file:
            np.testing.assert_array_equal(np.asarray(file), _labels(index))
    with np.load(folder / "000004_probabilities.npz") as archive:
        assert (archive["probabilities"].argmax(-1) == _labels(4)).all()
    (folder / "000002.png").unlink()
    (folder / "000004_probabilities.npz").write_bytes(b"half")
    assert predict_video(predictor, video, tmp_path, **options)[:3] == (2, 3, [])


def test_a_video_that_is_there_is_skipped(tmp_path, video, predictor):
    assert predict_video(predictor, video, tmp_path).written == 5
    again = predict_video(predictor, video, tmp_path)
    assert (again.written, again.skipped > 0) == (0, True)
    assert predict_video(predictor, video, tmp_path, overwrite=True).written == 5


def test_a_video_is_written_whole_or_not_at_all(
    tmp_path, video, predictor, monkeypatch
):
    calls, real = [], type(predictor).bands

    def bands(self, image, probabilities=False):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, image, probabilities)

    monkeypatch.setattr(type(predictor), "bands", bands)
    with pytest.raises(KeyboardInterrupt):
        predict_video(predictor, video, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_what_is_no_video_is_named(tmp_path, video, predictor):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"x\.mp4: cannot be read as a video"):
        predict_video(predictor, tmp_path / "x.mp4", tmp_path / "out")
    (tmp_path / "cut.mkv").write_bytes(video.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"cut\.mkv: "):
        predict_video(predictor, tmp_path / "cut.mkv", tmp_path / "out")
    with pytest.raises(ValueError, match=r"frames of 34x21 pixels are more than"):
        predict_video(predictor, video, tmp_path, max_pixels=700)
    with pytest.raises(ValueError, match=r"must be some of labels, overlay, colour$"):
        predict_video(predictor, video, tmp_path, outputs=["probabilities"])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_without_pyav_its_extra_is_named(tmp_path, video, predictor, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'dilax\[video\]'"):
        predict_video(predictor, video, tmp_path)


# What the first four numbers of a display matrix show of a picture.
SHOWN = {
    (1, 0, 0, 1): lambda x: x,
    (-1, 0, 0, -1): lambda x: np.rot90(x, 2),
    (0, -1, 1, 0): lambda x: np.rot90(x),
    (0, 1, -1, 0): lambda x: np.rot90(x, -1),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda x: x.swapaxes(0, 1),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", SHOWN)
def test_frames_are_shown_as_the_display_matrix_says(tmp_path, matrix):
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :16], image[16:, :16] = 255, 128
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", 10, width=48, height=32)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    rows = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    content[start : start + 36] = rows
    path.write_bytes(content)
    with open_video(path, 10**6) as source:
        [(found, _)] = source.frames()
    expected = SHOWN[matrix](image)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 8


def test_a_missing_file_is_named(tmp_path):
    missing = pytest.raises(ValueError, match=r"drive\.mp4: no such file")
    with missing, open_video(tmp_path / "drive.mp4", 10**6):
        pass
