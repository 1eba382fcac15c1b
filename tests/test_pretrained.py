"""The networks that come with a clone: what their cards say is so."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dilax
from dilax.data.prepared import open_prepared, prepare
from dilax.training import pretrained_folder

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.parent.name for path in ROOT.glob("pretrained/*/config.json"))


def _card(name):
    return (pretrained_folder(name) / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small_has_a_card_and_a_licence_of_its_own(name):
    folder = pretrained_folder(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    card = _card(name)
    for part in ("Data", "Recipe", "Accuracy", "Limits", "Licence"):
        assert f"\n## {part}\n" in card
    assert "non-commercial" in (folder / "LICENSE").read_text("utf-8")
    assert f'"{name}"' in dilax.pretrained.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_each_gives_probabilities_of_its_classes(name):
    model, params, spec = dilax.pretrained(name)
    assert model.num_classes == len(spec.classes)
    image = np.random.default_rng(0).integers(0, 256, (47, 90, 3)).astype(np.uint8)
    probabilities = dilax.Predictor(model, params, spec).probabilities(image)
    assert probabilities.shape == (47, 90, model.num_classes)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-4)


@pytest.mark.slow
def test_streets_of_camvid_are_predicted_as_well_as_the_card_says(real_data, tmp_path):
    prepare("camvid", real_data / "CamVid", tmp_path, partial=True)
    model, params, spec = dilax.pretrained("camvid")
    source = open_prepared("camvid", spec, str(tmp_path), "val")
    scores = dilax.evaluate(dilax.Predictor(model, params, spec), source)
    stated = re.search(r"public validation images \| ([0-9.]+) \|", _card("camvid"))
    assert abs(100 * scores.mean_iou - float(stated[1])) < 0.06


@pytest.mark.slow
def test_a_photograph_is_predicted_by_name_without_a_run(tmp_path):
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "street.png")
    script = ROOT / "experiments" / "camvid.py"
    flags = ["--mode=predict", "--weights=camvid", "--input=street.png"]
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "1 predicted: predicted" in done.stdout
    with Image.open(tmp_path / "predicted" / "street.png") as labels:
        assert labels.size == (64, 48)
