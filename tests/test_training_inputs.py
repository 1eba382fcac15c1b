import collections
import concurrent.futures
import dataclasses
import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TABLE, tiny_config, write_images

from dilax.data import DATASETS, open_source, subtract_mean
from dilax.inference import Predictor
from dilax.models import init_params
from dilax.training.build import build_model, build_spec
from dilax.training.inputs import StoredMaps, class_weights


@pytest.fixture
def prepared(tmp_path):
    """A predictor with random parameters, eight images, and a folder for maps."""
    config = tiny_config(write_images(tmp_path / "data"))
    spec = build_spec(config)
    model = build_model(config, config.stages[0], spec.num_classes)
    predictor = Predictor(model, init_params(model, 0), spec, 3)
    source = open_source("folder", spec, config.data.data_dir, "train")
    return predictor, source, tmp_path / "maps"


def _stored(predictor, source, folder, full_tiles=False):
    stored = StoredMaps(predictor, source, folder, full_tiles)
    stored.compute_missing("maps")
    return stored


def test_stored_maps_are_the_front_ends_over_each_whole_image(prepared):
    predictor, source, folder = prepared
    stored = _stored(predictor, source, folder)
    assert len(stored) == len(source) == 8
    assert TABLE[1].kernel == 2
    for sample, kept in zip(source, stored, strict=True):
        [maps] = predictor.maps([sample["image"]])
        assert maps.shape == (12, 16, 3)
        np.testing.assert_allclose(kept["image"], maps, atol=1e-5)
        np.testing.assert_array_equal(kept["label"], sample["label"])


def test_surroundings_are_the_cells_of_the_whole_tile(prepared):
    predictor, source, folder = prepared
    spec = dataclasses.replace(predictor.spec, tile=(46, 46))
    tiled = Predictor(predictor.model, predictor.params, spec, 3)
    sample = source[0]
    small = sample["image"][:20, :30]
    [alone], [whole] = tiled.maps([small]), tiled.maps([small], full_tiles=True)
    assert (alone.shape, whole.shape) == ((10, 15, 3), (22, 22, 3))
    np.testing.assert_array_equal(whole[:10, :15], alone)
    # Beyond the image the joint network sees its reflection.
    padded = np.pad(small, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    around = np.pad(padded, ((0, 24), (0, 14), (0, 0)), mode="reflect")
    x = jnp.asarray(subtract_mean(around, spec.mean)[None])
    variables = {"params": predictor.params}
    expected = predictor.model.apply(variables, x, method="maps")[0]
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    stored = _stored(tiled, [{**sample, "image": small}], folder, True)
    np.testing.assert_allclose(stored[0]["image"], whole, atol=1e-5)


def test_a_disk_without_room_is_said_before_anything_is_computed(prepared, monkeypatch):
    predictor, source, folder = prepared
    cell, label = 3 * 4, 24 * 32
    need = 8 * (12 * 16 * cell + label)
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(need - 1))
    with pytest.raises(OSError, match="8 images take about") as error:
        _stored(predictor, source, folder)
    assert error.value.errno == errno.ENOSPC
    assert not list(folder.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(need))
    assert len(_stored(predictor, source, folder)) == 8


def test_what_is_there_is_kept_and_what_is_missing_is_computed(prepared):
    predictor, source, folder = prepared
    first = [s["image"] for s in _stored(predictor, source, folder)]
    (folder / "000002.msgpack").unlink()
    (folder / "000005.msgpack").unlink()
    (folder / ".5eed.partial").write_bytes(b"cut off when the machine went down")
    zeros = jax.tree.map(np.zeros_like, predictor.params)
    second = _stored(predictor.with_params(zeros), source, folder)
    for i, before in enumerate(first):
        now = second[i]["image"]
        assert np.array_equal(now, before) is (i not in (2, 5))
        assert i not in (2, 5) or not now.any()


@pytest.mark.parametrize(
    "fault",
    [
        lambda content: content[:200] + bytes(400) + content[600:],
        lambda content: content[:-1],
        lambda content: b"",
    ],
)
def test_damaged_maps_are_named_and_computed_again(prepared, fault, caplog):
    predictor, source, folder = prepared
    stored = _stored(predictor, source, folder)
    first = stored[3]["image"]
    path = folder / "000003.msgpack"
    path.write_bytes(fault(path.read_bytes()))
    np.testing.assert_array_equal(stored[3]["image"], first)
    assert f"{path}: is damaged" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(stored[3]["image"], first)
    assert not caplog.text


def test_many_threads_read_maps_at_once(prepared):
    predictor, source, folder = prepared
    stored = _stored(predictor, source, folder)
    wanted = [sample["image"] for sample in stored]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for i, got in enumerate(pool.map(stored.__getitem__, [*range(8)] * 200)):
            assert np.array_equal(got["image"], wanted[i % 8])


def test_class_weights_follow_the_power_of_frequency_with_mean_one():
    spec = DATASETS["camvid"]
    label = np.full((10, 10), 255, np.uint8)
    label[:8] = 0
    label[8, :5] = 3
    source = [{"label": label}] * 3
    weights = class_weights(source, spec, power=0.5)
    assert weights[3] / weights[0] == pytest.approx((80 / 5) ** 0.5)
    assert (80 * weights[0] + 5 * weights[3]) / 85 == pytest.approx(1)
    np.testing.assert_array_equal(class_weights(source, spec, 0.0), 1)
    assert np.isfinite(class_weights(source, spec, 1.0)).all()


def test_weights_without_any_label_are_finite():
    source = [{"label": np.full((4, 4), 255, np.uint8)}]
    assert np.isfinite(class_weights(source, DATASETS["camvid"])).all()
