"""`.safetensors` and `.npz`: written and read back bit for bit, and broken ones."""

import io
import json
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from broken_files import check_broken
from networks import SLIM, random_params
from weight_files import IMAGE, shapes_of, torch_arrays, vgg, vgg_layers

import dilax
from dilax.models import dilation8_voc
from dilax.weights import TORCHVISION, Inputs, read_weights, save_weights
from dilax.weights.load import assign_weights
from dilax.weights.resolve import resolve_weights

LAYERS = vgg_layers()
FEW = {name: LAYERS[name] for name in ("conv1_1", "conv1_2", "fc7")}
NESTED = {"front_end": {n: dict(kernel=k, bias=b) for n, (k, b) in FEW.items()}}
KINDS = pytest.mark.parametrize("suffix", ["safetensors", "npz"])


@KINDS
def test_what_is_saved_comes_back_bit_for_bit(suffix, tmp_path):
    model = dilation8_voc(3, **SLIM)
    params = random_params(model, IMAGE)
    odd = jnp.asarray([-0.0, 1e-45, 3.4e38], jnp.float32)
    params["context"]["ct_final"]["bias"] = odd
    path = tmp_path / f"a.{suffix}"
    dilax.save_weights(params, path)
    weights = read_weights(path)
    zeros = jax.tree.map(jnp.zeros_like, params)
    back, report = assign_weights(weights, model, zeros)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for a, b in zip(*map(jax.tree.leaves, (params, back)), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert not (report.left_over or report.missing) and weights.inputs is None


@KINDS
def test_the_mean_is_kept_in_the_file(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    save_weights(NESTED, path, mean=(102.93, 111.36, 116.52))
    weights = read_weights(path)
    assert weights.inputs == Inputs((102.93, 111.36, 116.52))
    assert set(weights.tensors) == {
        f"front_end/{n}/{p}" for n in FEW for p in ("kernel", "bias")
    }


@KINDS
def test_a_file_is_written_whole_or_not_at_all(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a.{suffix}"
    save_weights(NESTED, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_weights({"front_end": {}}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["a.pth", "a", "a.h5", "npz"])
def test_other_kinds_of_files_are_not_written(name, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.npz"):
        save_weights(NESTED, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_parameters_of_other_types_are_not_written(tmp_path):
    params = {"front_end": {"final": {"bias": np.zeros(2)}}}
    with pytest.raises(ValueError, match="front_end/final/bias is float64"):
        save_weights(params, tmp_path / "a.npz")


@KINDS
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_floating_types_are_read(suffix, dtype, tmp_path):
    path, kernel = tmp_path / f"a.{suffix}", LAYERS["conv2_1"][0]
    values = kernel.astype(jnp.dtype(dtype))
    if suffix == "npz":
        if dtype == "bfloat16":
            pytest.skip("NumPy's format has no bfloat16")
        np.savez_compressed(path, **{"conv2_1/kernel": np.asfortranarray(values)})
    else:
        safetensors.numpy.save_file({"conv2_1/kernel": values}, path)
    stored = read_weights(path).tensors["conv2_1/kernel"]
    np.testing.assert_array_equal(
        stored.fitted(kernel.shape), values.astype(np.float32)
    )


@KINDS
def test_names_of_torchvision_are_known(suffix, tmp_path):
    path, arrays = tmp_path / f"a.{suffix}", torch_arrays(LAYERS)
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
    found = resolve_weights(read_weights(path), shapes_of(vgg()))
    assert found.inputs == TORCHVISION
    assert len(found.sources) == 2 * 15


def test_timm_s_names_are_known(tmp_path):
    """Its head is convolutions: fc6 and fc7 are no matrices there."""
    new = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2"}
    arrays = torch_arrays(LAYERS)
    for name in ("fc6", "fc7"):
        old = {"fc6": "classifier.0", "fc7": "classifier.3"}[name]
        del arrays[f"{old}.weight"]
        kernel = LAYERS[name][0].transpose(3, 2, 0, 1).copy()
        arrays |= {f"{new[old]}.weight": kernel, f"{new[old]}.bias": LAYERS[name][1]}
        del arrays[f"{old}.bias"]
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(arrays, path)
    params, _ = dilax.load_weights(path, vgg(), allow_missing=["final"])
    for name in ("fc6", "fc7"):
        found = params["front_end"][name]["kernel"]
        np.testing.assert_array_equal(found, LAYERS[name][0])


def _shards(folder, arrays, suffix=".safetensors"):
    """The arrays in two files and their index, as Hugging Face's libraries write it."""
    names, files = list(arrays), {}
    for i, part in enumerate((names[:3], names[3:]), 1):
        file = f"model-{i:05}-of-00002{suffix}"
        files |= dict.fromkeys(part, file)
        whole = {n: np.ascontiguousarray(arrays[n]) for n in part}
        safetensors.numpy.save_file(whole, folder / file)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


@pytest.mark.parametrize("given", ["the index", "a shard"])
def test_shards_are_read_with_their_index(given, tmp_path):
    arrays = {f"backbone.{n}": a for n, a in torch_arrays(LAYERS).items()}
    path = _shards(tmp_path, arrays)
    if given == "a shard":
        path = tmp_path / "model-00002-of-00002.safetensors"
    params, report = dilax.load_weights(path, vgg(), allow_missing=["final"])
    assert len(report.loaded) == 2 * 15
    kernel = params["front_end"]["conv3_1"]["kernel"]
    np.testing.assert_array_equal(kernel, LAYERS["conv3_1"][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("00002-of", "00003-of"), "00003-of.*same folder"),
        (lambda text: text.replace("model-", "../model-"), r"names \.\./model"),
        (lambda text: "[" * 100_000, "cannot be read"),
        (lambda text: "{}", "weight_map"),
        (lambda text: '{"weight_map": {}}', "cannot be read"),
    ],
)
def test_a_broken_index_is_refused(change, message, tmp_path):
    index = _shards(tmp_path, torch_arrays(FEW))
    index.write_text(change(index.read_text()))
    with pytest.raises(ValueError, match=rf"index\.json: .*{message}"):
        read_weights(index)


def _npy(header: str, content: bytes = b"", version=1) -> bytes:
    text = header.encode() + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + content


def _header(shape, descr="'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_npy(_header((2,), "'|O'"), bytes(16)), "Python objects"),
        (_npy(_header((2**60,)), bytes(8)), "8 bytes do not fit"),
        (_npy(_header((3,)), bytes(8)), "8 bytes do not fit"),
        (_npy(_header((-2,)), bytes(8)), "8 bytes|do not fit"),
        (_npy(_header((2,), "'<i4'"), bytes(8)), "not floating-point"),
        (_npy("__import__('os').mkdir('x')", bytes(8)), "cannot be read as npz"),
        (_npy("(" * 5000, bytes(8)), "statement|header|parentheses"),
        (_npy(_header((2,)), bytes(8), version=3), "version"),
        (b"\x93NUMPY" + bytes([1, 0]) + b"\xff\xff", "EOF"),
        (_npy(" " * 60_000, bytes(8)), "header|large"),
        (b"", "EOF"),
    ],
)
def test_a_broken_array_is_refused_with_the_reason(content, message, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/kernel.npy", content)
    with pytest.raises(ValueError, match=message):
        read_weights(path).tensors["a/kernel"].fitted((2,))


def test_objects_in_an_archive_run_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([print, {}], object))
    with pytest.raises(ValueError, match="Python objects"):
        read_weights(tmp_path / "a.npz")


def test_an_archive_that_swells_is_not_unpacked(tmp_path):
    path = tmp_path / "a.npz"
    content = _npy(_header((2**24,))) + bytes(2**26)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conv1_1/kernel.npy", content)
    assert path.stat().st_size < 1_000_000
    stored = read_weights(path).tensors["conv1_1/kernel"]
    assert stored.shape == (2**24,) and not stored.fits((3, 3, 3, 4))


@pytest.mark.parametrize("mean", ["[]", "[NaN]", "{}", "3", '["x"]', "[1e999]", "["])
def test_a_mean_that_is_no_pixel_is_refused(mean, tmp_path):
    path = tmp_path / "a.safetensors"
    content = {"a": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(content, path, metadata={"mean": mean})
    with pytest.raises(ValueError, match=r"a\.safetensors: cannot be read"):
        read_weights(path)


@pytest.mark.parametrize("mean", [np.zeros((2, 2)), np.zeros(0), np.zeros(5000)])
def test_a_mean_of_another_shape_is_refused(mean, tmp_path):
    np.savez(tmp_path / "a.npz", mean=mean, a=np.zeros(2))
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read"):
        read_weights(tmp_path / "a.npz")


def test_a_header_that_lies_about_lengths_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}
    header = json.dumps({"conv1_1/kernel": entry}).encode()
    for length in (len(header), 2**60):
        content = struct.pack("<Q", length) + header + bytes(8)
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as safetensors"):
            read_weights(tmp_path / "a.safetensors")


def test_two_names_of_one_layer_are_refused(tmp_path):
    arrays = {"conv1_1.bias": np.zeros(2), "features.0.bias": np.zeros(2)}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(
        ValueError, match="two arrays are called front_end/conv1_1/bias"
    ):
        dilax.load_weights(tmp_path / "a.npz", vgg())


@KINDS
@pytest.mark.parametrize("names", ["ours", "torch"])
def test_no_broken_file_does_harm(suffix, names, unchecked, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if names == "ours":
        save_weights(NESTED, path, mean=(1.0, 2.0, 3.0))
    else:
        arrays = torch_arrays(FEW)
        arrays["features.0.weight"] = FEW["conv1_1"][0].transpose(3, 2, 0, 1)
        np.savez_compressed(path, **arrays)
        if suffix == "safetensors":
            whole = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
            path.write_bytes(safetensors.numpy.save(whole))
    content = io.BytesIO(path.read_bytes()).getvalue()
    assert check_broken(path, content, FEW, 60) > 20
