"""PyTorch's files, as PyTorch writes them, and broken ones."""

import argparse
import datetime
import io
import pickle
import pickletools
import re
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import PurePosixPath

import numpy as np
import pytest
from broken_files import check_broken
from weight_files import TORCHVISION as TORCHVISION_NAMES
from weight_files import shapes_of, torch_arrays, vgg, vgg_layers

import dilax
from dilax.weights import TORCHVISION, read_weights
from dilax.weights.resolve import resolve_weights

LAYERS = vgg_layers()
SHAPES = shapes_of(vgg())
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
    found = tensors["features.0.weight"].fitted((3, 3, 3, 4))
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
    assert list(tensors) == list(views)
    for name, view in views.items():
        stored = tensors[name]
        assert stored.shape == tuple(view.shape)
        np.testing.assert_array_equal(stored.read(), view.detach().numpy())


def _prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def _inside(state, part):
    """With a wrapper around a part of the network, such as `features.module.0`."""
    name = r"^(features|classifier)\."
    return {re.sub(name, rf"\1.{part}.", key): t for key, t in state.items()}


def _features_alone(state):
    """`self.backbone = vgg16().features` in a network of another kind."""
    convolutions = {k: t for k, t in state.items() if k.startswith("features")}
    names = {k: k.replace("features", "net.backbone") for k in convolutions}
    head = {"net.head.weight": state["classifier.6.weight"]}
    return {names[k]: t for k, t in convolutions.items()} | head


def _optimizer(torch, state):
    return {
        "state": {
            i: {"exp_avg": t * 0, "step": 3} for i, t in enumerate(state.values())
        },
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1]}],
    }


# What training scripts save, and where the network is in it.
CHECKPOINTS = {
    **{
        prefix: (prefix, lambda torch, state, p=prefix: _prefixed(state, f"{p}."))
        for prefix in (
            *(
                "module",
                "_orig_mod",
                "model",
                "backbone",
                "encoder",
                "my.net.encoder_q",
            ),
            *("module._orig_mod", "_orig_mod.module", "model.module", "a.module.b"),
        )
    },
    "bare": ("", lambda torch, state: state),
    "parts": ("", lambda torch, state: _inside(state, "module")),
    "compiled": ("", lambda torch, state: _inside(state, "_orig_mod")),
    "features": ("net.backbone", lambda torch, state: _features_alone(state)),
    "list": ("0", lambda torch, state: [state, _optimizer(torch, state)]),
    "beside tensors": (
        "state_dict.module",
        lambda torch, state: {
            "optimizer": _optimizer(torch, state),
            "best_acc1": torch.tensor(71.5),
            "arch": "vgg16",
            "state_dict": _prefixed(state, "module."),
        },
    ),
    "deep": (
        "checkpoint.nets.generator.vgg",
        lambda torch, state: {
            "checkpoint": {"nets": {"generator": _prefixed(state, "vgg.")}},
            "losses": [torch.tensor(1.0)] * 3,
        },
    ),
    "moments": (  # of an optimizer that keeps them by name
        "params",
        lambda torch, state: {"optim": {"mu": {**state}}, "params": state},
    ),
    "other things": (
        "model",
        lambda torch, state: {
            "model": OrderedDict(_prefixed(state, "")),
            "loss": np.float64(0.5),
            "counts": np.arange(3),
            "dtype": np.dtype("f4"),
            "torch dtype": torch.float16,
            "device": torch.device("cpu"),
            "path": PurePosixPath("runs/1"),
            "when": datetime.datetime(2020, 1, 2),
            "seen": {1, 2},
            "frozen": frozenset({1}),
            "by class": defaultdict(list, {1: [0.5], 2.5: [], None: []}),
            "recent": deque([1.0, 2.0], maxlen=5),
            "counter": Counter("aab"),
            "big": 2**70,
            "names": ["é", None, True, (1, -2), b"bytes"],
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "complex": torch.ones(2, dtype=torch.complex64),
            "repeated": torch.ones(2).expand(1000, 2),
        },
    ),
}


@pytest.fixture(scope="module")
def state():
    return torch_arrays(LAYERS)


@FORMS
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_network_is_found_in_what_training_scripts_save(
    torch, zipped, name, state, tmp_path
):
    prefix, wrap = CHECKPOINTS[name]
    content = wrap(torch, {n: torch.tensor(a) for n, a in state.items()})
    path = tmp_path / "a.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    weights = read_weights(path)
    found = resolve_weights(weights, SHAPES)
    layers = [n for n in LAYERS if n[0] == "c" or name != "features"]
    assert found.inputs == TORCHVISION
    assert (f"below {prefix!r}" in found.note) == bool(prefix)
    for layer in layers:
        if layer == "fc8":
            continue
        kernel = weights.tensors[found.sources[f"front_end/{layer}/kernel"]].read()
        np.testing.assert_array_equal(
            kernel, state[f"{TORCHVISION_NAMES[layer]}.weight"]
        )


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_every_protocol_are_read(torch, protocol, state, tmp_path):
    tensors = {n: torch.tensor(a) for n, a in state.items()}
    content = CHECKPOINTS["other things"][1](torch, tensors)
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    assert len(resolve_weights(read_weights(tmp_path / "a.pt"), SHAPES).sources) == 30


@pytest.mark.parametrize(
    ("key", "factor"), [("", 1), ("teacher", 2), ("state_dict_ema.module", 3)]
)
def test_of_several_networks_the_first_is_taken_unless_a_key_names_another(
    torch, key, factor, state, tmp_path
):
    tensors = {n: torch.tensor(a) for n, a in state.items()}
    kinds = {"state_dict": 1, "teacher": 2, "state_dict_ema": 3}
    content = {
        kind: {f"module.{n}": factor * t for n, t in tensors.items()}
        for kind, factor in kinds.items()
    }
    torch.save(content, tmp_path / "a.pth")
    options = dict(allow_missing=["final"], key=key)
    params, report = dilax.load_weights(tmp_path / "a.pth", vgg(), **options)
    found = params["front_end"]["conv1_2"]["bias"]
    np.testing.assert_allclose(found, factor * state["features.2.bias"], rtol=1e-6)
    assert ("init_key" in report.notes[0]) == (key == "")
    assert not report.left_over or set(report.left_over) <= {
        f"{k}.module.classifier.6.{part}" for k in kinds for part in ("weight", "bias")
    }


def test_a_key_that_the_file_lacks_is_named_with_those_that_it_has(torch, tmp_path):
    torch.save({"net": {"0.weight": torch.ones(4, 3, 3, 3)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: init_key='ema' .* has net"):
        dilax.load_weights(tmp_path / "a.pth", vgg(), key="ema")


def test_batch_normalisation_between_vgg_s_layers_is_refused(torch, tmp_path):
    modules = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    torch.save(torch.nn.Sequential(*modules).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="batch normalization"):
        dilax.load_weights(tmp_path / "a.pth", vgg())


class Arguments(argparse.Namespace):
    pass


@pytest.mark.parametrize("thing", ["Linear", "Namespace", "function", "script"])
def test_what_is_refused_is_named_with_the_way_out(torch, thing, tmp_path):
    path, linear = tmp_path / "a.pt", torch.nn.Linear(2, 2)
    if thing == "script":
        torch.jit.save(torch.jit.script(linear), path)
    else:
        things = {"Linear": linear, "Namespace": Arguments(lr=1), "function": KEPT}
        torch.save({"state_dict": linear.state_dict(), "more": things[thing]}, path)
    names = {"Namespace": "Arguments", "function": "getattr", "script": "TorchScript"}
    message = rf"{names.get(thing, thing)}.*torch\.save\(.*state_dict\(\)"
    with pytest.raises(ValueError, match=message):
        read_weights(path)


class _Kept:
    def __reduce__(self):
        return getattr, ("text", "upper")


KEPT = _Kept()


@FORMS
def test_what_was_read_stays_though_the_file_is_written_to(torch, zipped, tmp_path):
    stored = _saved(torch, tmp_path / "a.pth", {"a": torch.ones(1000)}, zipped)["a"]
    values = stored.fitted((1000,))
    with (tmp_path / "a.pth").open("r+b") as file:
        file.write(bytes((tmp_path / "a.pth").stat().st_size))
    np.testing.assert_array_equal(values, 1)


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
        (b"Kl", HUGE, "432 bytes do not fit 1152921504606846976"),
        (b"Kl", b"Km", "432 bytes do not fit 109"),
        (b"FloatStorage", b"ThingStorage", r"a storage of torch\.ThingStorage"),
        (
            b"FloatStorage",
            b"LongStorage",
            "432 bytes do not fit 108 values of int64",
        ),
        (b"X\x01\x00\x00\x000", b"X\x07\x00\x00\x00../../x", "data/../../x"),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(torch, old, new, message, tmp_path):
    path = tmp_path / "a.pth"

    def change(content):
        assert content.count(old) == 1, pickletools.dis(content)
        return content.replace(old, new)

    path.write_bytes(_described(torch, change))
    with pytest.raises((ValueError, KeyError), match=message):
        read_weights(path).tensors["features.0.weight"].read()


def test_values_repeated_beyond_the_storage_are_refused(torch, tmp_path):
    state = {"a": torch.ones(2).expand(1000, 2)}
    stored = _saved(torch, tmp_path / "a.pth", state)["a"]
    with pytest.raises(ValueError, match=r"\(1000, 2\) repeats the values"):
        stored.read()


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
    assert check_broken(tmp_path / "a.pth", file.getvalue(), FEW, 60) > 20
