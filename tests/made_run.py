"""The folder of a run as training leaves it, made without training."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_run import CLASSES, tiny_config, write_images

from dilax.evaluation import Scores, image_scores
from dilax.inference import palette_image, save_image
from dilax.training import build_spec
from dilax.training.serialization import to_json

IMAGES, SIZE = 8, (48, 64)
STAGES = {"front_end": 2, "context": 1, "joint": 0}  # with so many rows wrong, and more


def labels_of(data: Path, index: int) -> np.ndarray:
    """The truth of evaluation image `index`."""
    with Image.open(data / "labels" / "val" / f"{index}.png") as picture:
        return np.asarray(picture)


def predicted(label: np.ndarray, rows: int) -> np.ndarray:
    """The truth, but for the first rows, which take the next class."""
    guess = np.where(label == 255, 0, label).astype(np.uint8)
    guess[:rows] = (guess[:rows] + 1) % len(CLASSES)
    return guess


def make_run(folder: Path, stages: int = 3, classes: tuple[str, ...] = CLASSES) -> Path:
    """A run of which so many stages are done; image i has 4 i rows wrong, and some."""
    data = folder.parent / f"{folder.name}_data"
    write_images(data, IMAGES, SIZE)
    (data / "classes.txt").write_text("\n".join(classes) + "\n")
    config = tiny_config(data)
    spec = build_spec(config)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    (folder / "spec.json").write_text(to_json(spec))
    found, lines = {}, []
    for name, more in [*STAGES.items()][:stages]:
        counts, scores = np.zeros((3, 3), int), {}
        stored = folder / "predictions" / name
        for i in range(IMAGES):
            label = labels_of(data, i)
            guess = predicted(label, 4 * i + more)
            picture = palette_image(guess, spec)
            save_image(picture, stored / f"{i:04d}.png")
            score = image_scores(classes, label, guess)
            scores[i], counts = score.mean_iou, counts + score.confusion
        (stored / "scores.json").write_text(json.dumps(scores))
        found[name] = Scores(classes, counts.astype(object)).as_dict()
        lines += [
            {"stage": name, "step": step, "loss": 1 / step, "learning_rate": 0.1}
            for step in range(1, 5)
        ]
        lines.append({"stage": name, "step": 4, "val_mean_iou": 0.25})
    results = {"images": IMAGES, "split": "val", "stages": found}
    (folder / "results.json").write_text(json.dumps(results))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder
