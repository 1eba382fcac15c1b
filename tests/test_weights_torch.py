"""PyTorch's files, as PyTorch writes them, and broken ones."""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from broken_files import check_broken
from weight_files import torch_arrays, vgg_layers

from dilax.weights import TORCHVISION, read_weights

LAYERS = vgg_layers()
FEW = {name: LAYERS[name] for name in ("conv1_1", "conv1_2", "fc7")}
FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def _saved(torch, path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return read_weights(path).tensors


@FORMS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensors_of_every_floating_type_are_read(torch, zipped, dtype, tmp_path):
    rng = np.random.default_rng(0)
    kernel = torch.tensor(rng.normal(size=(4, 3, 3, 3))).to(getattr(torch, dtype))
    tensors = _saved(torch, tmp_path / "a.pth", {"features.0.weight": kernel}, zipped)
    found = tensors["conv1_1/kernel"].fitted((3, 3, 3, 4))
    assert found.dtype == np.float32
    expected = kernel.float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found, expected)


@FORMS
def test_views_of_any_stride_and_shared_storages_are_read(torch, zipped, tmp_path):
    base = torch.arange(120.0).reshape(4, 5, 6)
    views = {
        "a.weight": base.permute(2, 0, 1),
        "b.weight": base[1:3, ::2, 1],
        "c.weight": base[3, 4, 5],
        "d.weight": base[:0],
        "e.weight": base,
        "f.weight": base[..., -1].t(),
        "g.weight": torch.nn.Parameter(base[2]),
    }
    tensors = _saved(torch, tmp_path / "a.pth", OrderedDict(views), zipped)
    assert list(tensors) == [n.replace(".weight", "/kernel") for n in views]
    for name, view in views.items():
        stored = tensors[name.replace(".weight", "/kernel")]
        assert stored.shape == tuple(view.shape)
        np.testing.assert_array_equal(stored.read(), view.detach().numpy())


@FORMS
def test_a_checkpoint_around_the_state_dictionary_is_read(torch, zipped, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(2, 5))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "loss": 0.5,
        "big": 2**70,
        "names": ["é", None, True, (1, -2)],
        "optimizer": optimizer.state_dict(),
        "state_dict": module.state_dict(prefix="module."),
    }
    tensors = _saved(torch, tmp_path / "a.pt", checkpoint, zipped)
    assert set(tensors) == {f"{i}/{p}" for i in "01" for p in ("kernel", "bias")}
    weight = module[0].weight.detach().numpy()
    np.testing.assert_array_equal(tensors["0/kernel"].read(), weight)


def test_a_network_of_vgg_is_known_by_its_names(torch, tmp_path):
    state = {n: torch.tensor(a) for n, a in torch_arrays(LAYERS).items()}
    torch.save(state, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth")
    assert weights.inputs == TORCHVISION
    assert set(weights.tensors) == {f"{n}/{p}" for n in LAYERS for p in PARTS}
    torch.save({"backbone.0.weight": torch.ones(2)}, tmp_path / "b.pth")
    assert read_weights(tmp_path / "b.pth").inputs is None


PARTS = ("kernel", "bias")


def test_batch_normalisation_is_refused(torch, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="batch normalisation"):
        _saved(torch, tmp_path / "a.pth", module.state_dict())


def test_a_whole_module_is_refused_by_the_name_of_its_class(torch, tmp_path):
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.|NEWOBJ"):
        _saved(torch, tmp_path / "a.pth", torch.nn.Linear(2, 2))


def _described(torch, change):
    """A state dictionary of one tensor, whose pickle is changed."""
    file = io.BytesIO()
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["archive/data.pkl"] = change(parts["archive/data.pkl"])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return file.getvalue()


HUGE = pickle.dumps(2**60, 2)[2:-1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x04K\x03K\x03K\x03", HUGE + b"K\x03K\x03K\x03", "reaches beyond"),
        (b"K\x04K\x03K\x03K\x03", b"K\x05K\x03K\x03K\x03", "reaches beyond"),
        (b"K\x1bK\tK\x03K\x01", b"J\xff\xff\xff\xffK\tK\x03K\x01", "negative"),
        (b"K\x1bK\tK\x03K\x01", b"G" + bytes(8) + b"K\tK\x03K\x01", "whole numbers"),
        (b"Kl", HUGE, "432 bytes are there for 1152921504606846976"),
        (b"Kl", b"Km", "432 bytes are there for 109"),
        (b"FloatStorage", b"ThingStorage", r"a storage of torch\.ThingStorage"),
        (
            b"FloatStorage",
            b"LongStorage",
            "432 bytes are there for 108 values of int64",
        ),
        (b"X\x01\x00\x00\x000", b"X\x07\x00\x00\x00../../x", "no item named"),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(torch, old, new, message, tmp_path):
    path = tmp_path / "a.pth"

    def change(content):
        assert content.count(old) == 1, pickletools.dis(content)
        return content.replace(old, new)

    path.write_bytes(_described(torch, change))
    with pytest.raises((ValueError, KeyError), match=message):
        read_weights(path).tensors["conv1_1/kernel"].read()


def test_values_repeated_beyond_the_storage_are_refused(torch, tmp_path):
    with pytest.raises(ValueError, match=r"\(1000, 2\) repeats the values"):
        _saved(torch, tmp_path / "a.pth", {"a": torch.ones(2).expand(1000, 2)})


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(ValueError, match=r"data\.pkl is compressed"):
        read_weights(path)


@pytest.mark.parametrize("big_endian", ["zip", "legacy"])
def test_big_endian_files_are_refused(big_endian, tmp_path):
    path = tmp_path / "a.pth"
    if big_endian == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickle.dumps({}, 2))
            archive.writestr("a/byteorder", "big")
    else:
        parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}, {}, [])
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(ValueError, match="big-endian"):
        read_weights(path)


@FORMS
def test_no_broken_file_does_harm(torch, zipped, unchecked, tmp_path):
    file = io.BytesIO()
    state = {}
    for name, (kernel, bias) in FEW.items():
        state[f"{name}.weight"] = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        state[f"{name}.bias"] = torch.tensor(bias)
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    assert check_broken(tmp_path / "a.pth", file.getvalue(), FEW, 160) > 50
