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

from dilax.inference.jobs import (
    OPACITY,
    OUTPUTS,
    check_outputs,
    check_writable,
    is_whole,
    named,
    progress,
    save_pictures,
    write_legend,
)
from dilax.inference.photos import MAX_PIXELS, overlay
from dilax.inference.predictor import Predictor
from dilax.inference.workers import Memory, Outcome, Task, run_tasks
from dilax.runtime.files import whole_or_not_at_all

Append = Callable[[np.ndarray, int], None]
MakeTask = Callable[[int, np.ndarray, int], Task]  # of a frame's index, image and time


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
        """Yield each upright frame: (RGB image (h, w, 3), time in the stream's units).

        Raises:
            ValueError: naming the file, when it cannot be read any further.
        """
        name, count = self.container.name, 0
        try:
            for frame in self.container.decode(self.stream):
                image = _upright(frame.to_ndarray(format="rgb24"), frame)
                yield image, count if frame.pts is None else frame.pts
                count += 1
        except _av().FFmpegError as error:
            message = f"{name}: cannot be read after {count} frames ({error})"
            raise ValueError(message) from error
        if not count:
            raise ValueError(f"{name}: contains no frames")


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
        ValueError: if the file or PyAV is missing, PyAV cannot read the file, or the
            frames are too large.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file")
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


@contextlib.contextmanager
def new_video(path: Path, encoding: Encoding, like: Any) -> Iterator[Append]:
    """Write a video atomically: yield a function that appends a frame.

    The function takes (h, w) grey or (h, w, 3) RGB, uint8, and the frame's time. If the
    format halves the resolution of colours, odd sides grow by one pixel.

    Args:
        path: the file.
        encoding: encoding of the frames.
        like: PyAV's stream whose rate and unit of time the video has.
    """
    av = _av()
    stream: Any = None  # added with the first frame, whose size it has
    with (
        whole_or_not_at_all(path) as partial,
        av.open(str(partial), "w", format=encoding.container) as container,
    ):

        def append(pixels: np.ndarray, time: int) -> None:
            nonlocal stream
            if encoding.pixels == "yuv420p":
                odd = [(0, n % 2) for n in pixels.shape[:2]]
                pixels = np.pad(pixels, (*odd, (0, 0)), mode="edge")
            if stream is None:
                rate, options = like.average_rate or 25, encoding.options
                stream = container.add_stream(encoding.codec, rate, options=options)
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = encoding.pixels
                stream.codec_context.time_base = like.time_base
            kind = "gray" if pixels.ndim == 2 else "rgb24"
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(pixels), format=kind
            )
            frame.pts, frame.time_base = time, like.time_base
            container.mux(stream.encode(frame))

        yield append
        container.mux(stream.encode())  # what the codec still buffers


_H264 = ("mp4", "libx264", "yuv420p", {"crf": "18"})
VIDEO_OUTPUTS = {
    "labels": Encoding("_labels.mkv", "matroska", "ffv1", "gray", {}),
    "overlay": Encoding("_overlay.mp4", *_H264),
    "colour": Encoding("_colour.mp4", *_H264),
}


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
        return Task(None if there else image, write=write, archive=archive)

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
        videos = {
            o: stack.enter_context(new_video(path, VIDEO_OUTPUTS[o], video.stream))
            for o, path in files.items()
        }

        def make(index: int, image: np.ndarray, time: int) -> Task:
            def write(labels: np.ndarray) -> None:
                for output, append in videos.items():
                    if output == "labels":
                        append(labels, time)
                    else:
                        opacity = OPACITY[output]
                        shown = overlay(image, labels, predictor.spec, opacity)
                        append(np.asarray(shown), time)

            return Task(image, write=write)

        outcome = _run(predictor, video, make)
        if not outcome.written:
            raise ValueError(outcome.problems[0])
    return outcome


def _run(predictor: Predictor, video: Source, make: MakeTask) -> Outcome:
    memory = Memory()

    def tasks() -> Iterator[Task]:
        try:
            for index, (image, time) in enumerate(video.frames()):
                pixels = image.shape[0] * image.shape[1]
                memory.enter(pixels)
                yield make(index, image, time)._replace(pixels=pixels)
        except ValueError as error:
            yield Task(error)

    with progress(video.count(), unit="frame") as bar:
        return run_tasks(predictor, tasks(), memory, bar)
