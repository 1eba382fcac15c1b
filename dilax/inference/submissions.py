"""Predictions in the formats of the test servers of Pascal VOC and Cityscapes.

VOC: `results/VOC2012/Segmentation/comp5_test_cls/ID.png` in a tar, palette images of
class indices (VOC2012 development kit, §5.3). Cityscapes: one PNG of label ids per
image in a flat zip, its name beginning with CITY_XXXXXX_YYYYYY (cityscapesScripts'
`evalPixelLevelSemanticLabeling`, `getPrediction`).
"""

import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from tqdm import tqdm

from dilax.data import DATASETS, in_order
from dilax.inference.photos import palette_image
from dilax.inference.predictor import Predictor
from dilax.runtime.files import whole_or_not_at_all

Kind = Literal["voc", "cityscapes"]
Competition = Literal["comp5", "comp6"]

_SUFFIXES = {"voc": ".tar", "cityscapes": ".zip"}


def write_submission(
    predictor: Predictor,
    source: Sequence[dict],
    kind: Kind,
    path: Path,
    competition: Competition = "comp5",
    title: str = "submission",
) -> Path:
    """Predict every image and pack the label maps for a test server.

    The archive is written atomically, image by image; equal predictions give the same
    archive, byte for byte.

    Args:
        predictor: network, parameters and data set.
        source: `{image, label, id}` samples; ids name the files, labels are not read.
        kind: whose server.
        path: the archive: `.tar` for VOC, `.zip` for Cityscapes.
        competition: VOC's `"comp5"` for networks trained on VOC alone, `"comp6"` for
            those also trained on other data. Cityscapes has no such choice.
        title: of the progress bar; "" shows none.

    Returns:
        The path.

    Raises:
        ValueError: if an argument is not among what is allowed, the classes are not the
            server's, there are no images, or an id is used twice or is no file name.
        OSError: naming the archive, if it cannot be written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from dilax.data import DATASETS
        >>> from dilax.models import DilatedNet, FrontEnd, Layer, init_params
        >>> model = DilatedNet(FrontEnd(21, (Layer("a", 3, 4), Layer("p", 2))))
        >>> predictor = Predictor(model, init_params(model, seed=0), DATASETS["voc"])
        >>> image, label = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
        >>> test = [{"image": image, "label": label, "id": "2008_000006"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "voc.tar")
        ...     path = write_submission(predictor, test, "voc", path, title="")
        ...     tarfile.open(path).getnames()
        ['results/VOC2012/Segmentation/comp5_test_cls/2008_000006.png']
    """
    path, server, spec = Path(path), DATASETS.get(kind), predictor.spec
    if server is None or kind not in _SUFFIXES:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(_SUFFIXES)}")
    if competition not in get_args(Competition):
        allowed = ", ".join(get_args(Competition))
        raise ValueError(f"competition={competition!r}: must be one of {allowed}")
    if path.suffix != _SUFFIXES[kind]:
        raise ValueError(
            f"path={str(path)!r}: a submission to {kind} ends in {_SUFFIXES[kind]}"
        )
    if spec.classes != server.classes:  # the server knows classes by their numbers
        raise ValueError(
            f"{spec.name} has {spec.num_classes} classes ({', '.join(spec.classes)}); "
            f"a submission to {kind} needs a network for these {len(server.classes)}, "
            f"in this order: {', '.join(server.classes)}"
        )
    archive_kind: Any = tarfile.TarFile if kind == "voc" else zipfile.ZipFile
    if not len(source):
        raise ValueError(f"source: {spec.name} has no images to predict")
    with whole_or_not_at_all(path) as partial, archive_kind(partial, "w") as archive:
        for name, labels in _predictions(predictor, source, title):
            png = io.BytesIO()
            if kind == "voc":
                palette_image(labels, server).save(png, "PNG")
                folder = f"results/VOC2012/Segmentation/{competition}_test_cls"
                _add(archive, f"{folder}/{name}.png", png.getvalue())
            else:
                Image.fromarray(server.disk_ids()[labels]).save(png, "PNG")
                _add(archive, f"{name}_pred_labelIds.png", png.getvalue())
    return path


def _predictions(
    predictor: Predictor, source: Sequence[dict], title: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the id and (h, w) class indices of each image, with a progress bar."""
    seen: set[str] = set()
    with tqdm(total=len(source), desc=title, unit="image", disable=not title) as bar:
        for samples in in_order(source, predictor.batch_size):
            for name in (sample["id"] for sample in samples):
                if not re.fullmatch(r"\w[\w.-]*", name):
                    raise ValueError(
                        f"id={name!r}: names a file in the archive; rename the image, "
                        "with letters, digits, '_', '-' and '.' alone"
                    )
                if name in seen:
                    raise ValueError(
                        f"id={name!r}: two images have it; list or name each once"
                    )
                seen.add(name)
            predictions = predictor.stream([s["image"] for s in samples])
            for sample, labels in zip(samples, predictions, strict=True):
                yield sample["id"], labels
                bar.update()


def _add(archive: tarfile.TarFile | zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add a file of no owner and the earliest date: archives are equal to the byte."""
    if isinstance(archive, tarfile.TarFile):
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    else:  # uncompressed, because PNGs are compressed already
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, 0o644 << 16  # on any system
        archive.writestr(info, data)
