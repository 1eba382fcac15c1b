"""Videos → videos of label maps, or one picture per frame.

PyAV (the optional extra `video`) reads and writes them. FFV1 keeps class ids exactly;
videos for viewing are H.264.
"""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dilax.data import DatasetSpec
from dilax.inference.jobs import (
    OUTPUTS,
    check_outputs,
    check_writable,
    is_whole,
    named,
    picture_bands,
    progress,
    save_pictures,
    write_legend,
)
from dilax.inference.photos import MAX_PIXELS
from dilax.inference.predictor import Predictor
from dilax.inference.workers import Memory, Outcome, Task, run_tasks
from dilax.runtime.files import whole_or_not_at_all


class Encoding(NamedTuple):
    """The encoding of a video, in PyAV's terms.

    Attributes:
        suffix: ending of its file's name, after the source's stem.
        container: the file format.
        codec: codec of the frames.
        pixels: pixel format of the frames.
        options: options of the codec.
    """

    suffix: str
    container: str
    codec: str
    pixels: str
    options: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Source:
    """An open video: PyAV's container and its first stream of pictures."""

    container: Any
    stream: Any

    def count(self) -> int | None:
        """The number of frames, if the file states it, or None."""
        stream = self.stream
        if stream.frames or not (stream.duration and stream.average_rate):
            return stream.frames or None
        return round(stream.duration * stream.time_base * stream.average_rate)

    def frames(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (RGB image (h, w, 3), time in the stream's units) of each frame,
        upright.

        Raises:
            ValueError: naming the file, when it cannot be read any further.
        """
        decoded, count = self.container.decode(self.stream), 0
        while frame := self._next(decoded, count):
            image = frame.to_ndarray(format="rgb24")
            yield _upright(image, frame), count if frame.pts is None else frame.pts
            count += 1
        if not count:
            raise ValueError(f"{self.container.name}: contains no frames")

    def _next(self, decoded: Any, count: int) -> Any:
        try:
            return next(decoded, None)
        except _av().FFmpegError as error:
            message = f"{self.container.name}: cannot be read after {count} frames"
            raise ValueError(f"{message} ({error})") from error


def _upright(image: np.ndarray, frame: Any) -> np.ndarray:
    """Return a frame as players show it: turned and mirrored by its display matrix.

    The pixel (p, q) is shown at (a·p + c·q, b·p + d·q), up to a shift; a, b, c, and d
    are the numbers 0, 1, 3, and 4 of the matrix (FFmpeg, libavutil/display.h).
    """
    # By name, because iterating gives values in PyAV 18 and keys in PyAV 19.
    if data := frame.side_data.get("DISPLAYMATRIX"):
        a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
        if abs(b) > abs(a):
            image, a, d = image.swapaxes(0, 1), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ValueError(
            "videos are read by PyAV, which is missing: pip install 'dilax[video]'"
        ) from error


@contextlib.contextmanager
def open_video(path: Path, max_pixels: int) -> Iterator[Source]:
    """Open a video for reading.

    Args:
        path: the file.
        max_pixels: maximum number of pixels of a frame.

    Raises:
        ValueError: if PyAV is missing, it cannot read the file, or the frames are too
            large.
    """
    av = _av()
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a video ({error})") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{path}: contains no pictures")
        stream = container.streams.video[0]
        if stream.width * stream.height > max_pixels:
            raise ValueError(
                f"{path}: frames of {stream.width}x{stream.height} pixels are more than"
                f" --max_pixels={max_pixels}"
            )
        stream.thread_type = "AUTO"
        yield Source(container, stream)


class Track:
    """A video that is being written, with the times and the rate of another.

    Args:
        container: PyAV's container, open for writing.
        encoding: encoding of the frames.
        like: stream whose times the frames have.
    """

    def __init__(self, container: Any, encoding: Encoding, like: Any):
        self._container, self._encoding, self._like = container, encoding, like
        self._stream: Any = None

    def write(self, pixels: np.ndarray, time: int) -> None:
        """Append a frame: (h, w) grey or (h, w, 3) RGB, uint8.

        If the format halves the resolution of colours, odd sides grow by one pixel.
        """
        if self._encoding.pixels == "yuv420p":
            odd = [(0, n % 2) for n in pixels.shape[:2]]
            pixels = np.pad(pixels, (*odd, (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._add_stream(pixels.shape)
        kind = "gray" if pixels.ndim == 2 else "rgb24"
        frame = _av().VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=kind)
        frame.pts, frame.time_base = time, self._like.time_base
        self._container.mux(self._stream.encode(frame))

    def _add_stream(self, shape: tuple[int, ...]) -> Any:
        rate, options = self._like.average_rate or 25, self._encoding.options
        stream = self._container.add_stream(self._encoding.codec, rate, options=options)
        stream.height, stream.width = shape[:2]
        stream.pix_fmt = self._encoding.pixels
        stream.codec_context.time_base = self._like.time_base
        return stream

    def finish(self) -> None:
        """Write the frames that the codec still buffers."""
        self._container.mux(self._stream.encode())


@contextlib.contextmanager
def new_video(path: Path, encoding: Encoding, like: Source) -> Iterator[Track]:
    """Write a video atomically.

    Args:
        path: the file.
        encoding: encoding of the frames.
        like: video whose times the frames have.
    """
    with (
        whole_or_not_at_all(path) as partial,
        _av().open(str(partial), "w", format=encoding.container) as container,
    ):
        track = Track(container, encoding, like.stream)
        yield track
        track.finish()


_H264 = ("mp4", "libx264", "yuv420p", {"crf": "18"})
VIDEO_OUTPUTS = {
    "labels": Encoding("_labels.mkv", "matroska", "ffv1", "gray", {}),
    "overlay": Encoding("_overlay.mp4", *_H264),
    "colour": Encoding("_colour.mp4", *_H264),
}
MakeTask = Callable[[int, np.ndarray, int], Task]


def predict_video(
    predictor: Predictor,
    source: Path,
    output: Path,
    *,
    outputs: Sequence[str] = ("labels", "overlay"),
    frames: bool = False,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Outcome:
    """Predict every frame of a video, turned upright.

    Args:
        predictor: network for RGB images, parameters, data set.
        source: the video.
        output: folder to write to; it is created.
        outputs: `"labels"` (a grey FFV1 video whose values are class ids), `"overlay"`,
            and `"colour"` (H.264), at the source's times, without its sound.
        frames: write pictures `NAME/000000.png`, … instead, with the outputs of
            `predict_photos`; an interrupted job resumes after the last complete one.
        overwrite: replace complete files that exist already.
        max_pixels: maximum number of pixels of a frame.

    Returns:
        The numbers of frames written and skipped, and, if the video cannot be read to
        its end, where reading stopped.

    Raises:
        ValueError: if PyAV is missing, it cannot read the file, the frames are too
            large, or there is no such output.
        OSError: naming the file that cannot be written.

    Example:
        >>> import tempfile
        >>> import av, numpy as np
        >>> from dilax.data import DATASETS
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, init_params
        >>> model = DilatedNet(FrontEnd(21, (Layer("a", 3, 4), Layer("p", 2))))
        >>> predictor = Predictor(model, init_params(model, seed=0), DATASETS["voc"])
        >>> black = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with av.open(f"{folder}/drive.mkv", "w") as video:
        ...         stream = video.add_stream("ffv1", 10, width=16, height=16)
        ...         video.mux(stream.encode(black.reformat(format="bgr0")))
        ...         video.mux(stream.encode())
        ...     predict_video(predictor, Path(folder, "drive.mkv"), Path(folder))[:3]
        (1, 0, [])
    """
    check_outputs(outputs, list(OUTPUTS if frames else VIDEO_OUTPUTS))
    if len(predictor.spec.mean) != 3:
        raise ValueError(f"{source}: videos are RGB, but the network's images are not")
    with open_video(source, max_pixels) as video:
        check_writable(output)
        write = _pictures if frames else _videos
        place = output / source.stem
        outcome = write(predictor, video, place, outputs, overwrite)
    write_legend(predictor.spec, output, outputs)
    return outcome


def _pictures(
    predictor: Predictor,
    video: Source,
    place: Path,
    outputs: Sequence[str],
    overwrite: bool,
) -> Outcome:
    """Write a folder of pictures; frames with complete pictures are not predicted."""

    def make(index: int, image: np.ndarray, time: int) -> Task:
        files = named(place / f"{index:06d}", outputs)
        there = not overwrite and all(map(is_whole, files.values()))
        write = functools.partial(save_pictures, image, files, predictor.spec)
        archive = files.get("probabilities")
        return Task(None if there else image, _pixels(image), write, archive)

    return _run(predictor, video, make)


def _videos(
    predictor: Predictor,
    video: Source,
    place: Path,
    outputs: Sequence[str],
    overwrite: bool,
) -> Outcome:
    """Write one video per output; all are complete, or none is written."""
    files = {o: place.with_name(place.name + VIDEO_OUTPUTS[o].suffix) for o in outputs}
    if not overwrite and all(map(is_whole, files.values())):
        return Outcome(0, video.count() or 1, [])
    with contextlib.ExitStack() as stack:
        tracks = {
            output: stack.enter_context(new_video(path, VIDEO_OUTPUTS[output], video))
            for output, path in files.items()
        }

        def make(index: int, image: np.ndarray, time: int) -> Task:
            write = functools.partial(_encode, tracks, image, time, predictor.spec)
            return Task(image, _pixels(image), write)

        outcome = _run(predictor, video, make)
        if not outcome.written:
            raise ValueError(outcome.problems[0])
    return outcome


def _run(predictor: Predictor, video: Source, make: MakeTask) -> Outcome:
    memory = Memory()
    with progress(video.count(), unit="frame") as bar:
        return run_tasks(predictor, _tasks(video, memory, make), memory, bar)


def _tasks(video: Source, memory: Memory, make: MakeTask) -> Iterator[Task]:
    try:
        for index, (image, time) in enumerate(video.frames()):
            memory.enter(_pixels(image))
            yield make(index, image, time)
    except ValueError as error:
        yield Task(error)


def _pixels(image: np.ndarray) -> int:
    return image.shape[0] * image.shape[1]


def _encode(
    tracks: dict[str, Track],
    image: np.ndarray,
    time: int,
    spec: DatasetSpec,
    labels: np.ndarray,
) -> None:
    for output, track in tracks.items():
        if output == "labels":
            track.write(labels, time)
        else:
            bands = list(picture_bands(output, image, labels, spec))
            track.write(np.concatenate(bands), time)
