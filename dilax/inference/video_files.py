"""Videos as frames, and frames as videos, through PyAV (the optional extra `video`)."""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dilax.datasets.writing import whole_or_not_at_all


class Encoding(NamedTuple):
    """How a video is written, in PyAV's words.

    Attributes:
        suffix: how its file's name goes on after the source's.
        container: the file format.
        codec: of the frames.
        pixels: their format.
        options: of the codec.
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
        """The number of frames as far as the file tells, or None."""
        stream = self.stream
        if stream.frames or not (stream.duration and stream.average_rate):
            return stream.frames or None
        return round(stream.duration * stream.time_base * stream.average_rate)

    def frames(self) -> Iterator[tuple[np.ndarray, int]]:
        """(RGB image (h, w, 3), time in the stream's units) of each frame, upright.

        Raises:
            ValueError: naming the file, where it cannot be read any further.
        """
        decoded, count = self.container.decode(self.stream), 0
        while frame := self._next(decoded, count):
            image = frame.to_ndarray(format="rgb24")
            turned = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
            yield turned, count if frame.pts is None else frame.pts
            count += 1
        if not count:
            raise ValueError(f"{self.container.name}: holds no frames")

    def _next(self, decoded: Any, count: int) -> Any:
        try:
            return next(decoded, None)
        except _av().FFmpegError as error:
            message = f"{self.container.name}: cannot be read after {count} frames"
            raise ValueError(f"{message} ({error})") from error


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise ValueError(
            "videos are read by PyAV, which is missing: pip install 'dilax[video]'"
        ) from error


@contextlib.contextmanager
def open_video(path: Path, max_pixels: int) -> Iterator[Source]:
    """Opens a video for reading.

    Args:
        path: the file.
        max_pixels: the most that a frame may have.

    Raises:
        ValueError: if PyAV is missing, the file is no video that it reads, or its
            frames are too large.
    """
    av = _av()
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a video ({error})") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{path}: holds no pictures")
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
        container: PyAV's, open for writing.
        encoding: of the frames.
        like: stream whose times they have.
    """

    def __init__(self, container: Any, encoding: Encoding, like: Any):
        self._container, self._encoding, self._like = container, encoding, like
        self._stream: Any = None

    def write(self, pixels: np.ndarray, time: int) -> None:
        """Appends a frame: (h, w) grey or (h, w, 3) RGB, uint8.

        Where the format halves the resolution of colours, odd sides grow by a pixel.
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
        """Writes what the codec still holds."""
        self._container.mux(self._stream.encode())


@contextlib.contextmanager
def new_video(path: Path, encoding: Encoding, like: Source) -> Iterator[Track]:
    """Writes a video whole or not at all.

    Args:
        path: the file.
        encoding: of the frames.
        like: whose times they have.
    """
    with (
        whole_or_not_at_all(path) as partial,
        _av().open(str(partial), "w", format=encoding.container) as container,
    ):
        track = Track(container, encoding, like.stream)
        yield track
        track.finish()
