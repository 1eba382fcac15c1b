"""Videos → videos of label maps, or a picture a frame.

Class ids are kept to the bit by FFV1; what is only looked at is H.264.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dilax.datasets import DatasetSpec
from dilax.inference.jobs import (
    OUTPUTS,
    check_outputs,
    check_writable,
    is_whole,
    named,
    picture_bands,
    progress,
    save_pictures,
)
from dilax.inference.pipeline import Outcome, Room, Task, run_tasks
from dilax.inference.predictor import Predictor
from dilax.inference.reading import MAX_PIXELS
from dilax.inference.video_files import (
    Encoding,
    Source,
    Track,
    new_video,
    open_video,
)

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
    """Predicts every frame of a video, turned as its orientation says.

    Args:
        predictor: network for RGB images, parameters, data set.
        source: the video.
        output: folder to write to; it is made.
        outputs: `"labels"` (a grey FFV1 video whose values are class ids), `"overlay"`
            and `"colour"` (H.264), at the source's times, without its sound.
        frames: write pictures `NAME/000000.png`, … instead, with the outputs of
            `predict_photos`; a stopped job goes on after the last whole one.
        overwrite: predict anew what is there, whole.
        max_pixels: of a frame.

    Returns:
        Frames written and skipped, and where the video cannot be read any further.

    Raises:
        ValueError: if PyAV is missing, the file is no video that it reads, its frames
            are too large, or there is no such output.
        OSError: naming what cannot be written.

    Example:
        >>> import tempfile
        >>> import av, numpy as np
        >>> from dilax.datasets import DATASETS
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, init_params
        >>> model = DilatedNet(FrontEnd(21, (Layer("a", 3, 4), Layer("p", 2))))
        >>> predictor = Predictor(model, init_params(model, seed=0), DATASETS["voc"])
        >>> black = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with av.open(f"{folder}/drive.mkv", "w") as video:
        ...         stream = video.add_stream("ffv1", 10, width=16, height=16)
        ...         video.mux(stream.encode(black.reformat(format="bgr0")))
        ...         video.mux(stream.encode())
        ...     predict_video(predictor, Path(folder, "drive.mkv"), Path(folder))
        Outcome(written=1, skipped=0, problems=[])
    """
    check_outputs(outputs, list(OUTPUTS if frames else VIDEO_OUTPUTS))
    if len(predictor.spec.mean) != 3:
        raise ValueError(f"{source}: videos are RGB, and the network's images are not")
    with open_video(source, max_pixels) as video:
        check_writable(output)
        write = _pictures if frames else _videos
        place = output / source.stem
        return write(predictor, video, place, outputs, overwrite)


def _pictures(
    predictor: Predictor,
    video: Source,
    place: Path,
    outputs: Sequence[str],
    overwrite: bool,
) -> Outcome:
    """A folder of pictures; frames that are there are decoded, but not predicted."""

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
    """A video an output, all whole or none."""
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
    room = Room()
    with progress(video.count(), unit="frame") as bar:
        return run_tasks(predictor, _tasks(video, room, make), room, bar)


def _tasks(video: Source, room: Room, make: MakeTask) -> Iterator[Task]:
    try:
        for index, (image, time) in enumerate(video.frames()):
            room.enter(_pixels(image))
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
