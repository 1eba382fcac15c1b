"""Files of weights as Caffe, Keras and PyTorch write them, and broken ones."""

import struct
from collections.abc import Iterator

import h5py
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from networks import SLIM, init_shapes, random_params

from dilax.models import DilatedNet, FrontEnd

VGG_MEAN = (103.939, 116.779, 123.68)  # B, G, R
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # R, G, B
IMAGE = jnp.zeros((1, 397, 412, 3))
TORCHVISION = dict(  # where torchvision keeps the layers
    conv1_1="features.0",
    conv1_2="features.2",
    conv2_1="features.5",
    conv2_2="features.7",
    conv3_1="features.10",
    conv3_2="features.12",
    conv3_3="features.14",
    conv4_1="features.17",
    conv4_2="features.19",
    conv4_3="features.21",
    conv5_1="features.24",
    conv5_2="features.26",
    conv5_3="features.28",
    fc6="classifier.0",
    fc7="classifier.3",
    fc8="classifier.6",
)
KERAS = {n: f"block{n[4]}_conv{n[6]}" for n in TORCHVISION if n[0] == "c"} | {
    "fc6": "fc1",
    "fc7": "fc2",
    "fc8": "predictions",
}

Layers = dict[str, tuple[np.ndarray, np.ndarray]]


def vgg(classes: int = 5, **options) -> DilatedNet:
    """A front end alone, slim."""
    return DilatedNet(FrontEnd(classes, **{**SLIM, **options}))


def layers_of(params) -> Layers:
    """Parameters by layer: kernel (h, w, in, out) and bias."""
    flat = traverse_util.flatten_dict(params, sep="/")
    names = dict.fromkeys(name.split("/")[-2] for name in flat)
    by_layer = {"/".join(name.split("/")[-2:]): np.asarray(flat[name]) for name in flat}
    return {n: (by_layer[f"{n}/kernel"], by_layer[f"{n}/bias"]) for n in names}


def vgg_layers(seed: int = 0) -> Layers:
    """Slim VGG-16 for BGR minus VGG's mean, with a classifier of ten classes."""
    layers = layers_of(random_params(vgg(), IMAGE, seed))
    del layers["final"]
    rng = np.random.default_rng(seed)
    fc8 = rng.normal(size=(1, 1, layers["fc7"][1].size, 10)).astype(np.float32)
    return {**layers, "fc8": (fc8, np.zeros(10, np.float32))}


def oihw(kernel: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def torch_arrays(layers: Layers) -> dict[str, np.ndarray]:
    """The same network as torchvision has it: RGB, normalised, fc6–fc8 dense."""
    mean, std = (np.array(IMAGENET[k], np.float64) for k in ("mean", "std"))
    arrays = {}
    for name, (kernel, bias) in layers.items():
        if name == "conv1_1":
            # W·(bgr − m) + b = V·(rgb/255 − mean)/std + b + W·(255 mean − m)
            shift = 255 * mean[::-1] - np.array(VGG_MEAN)
            bias = bias + np.einsum("hwco,c->o", kernel, shift)
            kernel = kernel[:, :, ::-1] * (255 * std)[:, None]
        weight = oihw(kernel)
        if name.startswith("fc"):
            weight = weight.reshape(len(weight), -1)
        arrays[f"{TORCHVISION[name]}.weight"] = weight.astype(np.float32)
        arrays[f"{TORCHVISION[name]}.bias"] = bias.astype(np.float32)
    return arrays


# Keras.


def keras_file(path, layers: Layers, form: str = "old", top: bool = True) -> None:
    """HDF5: `old` names, `new` ones, those of a whole `model`, or of Keras `3`."""
    with h5py.File(path, "w") as file:
        if form == "model":
            file.attrs["model_config"] = "{}"
            file.create_group("optimizer_weights")["conv1_1/kernel:0"] = np.ones(3)
        counts = {"conv2d": 0, "dense": 0}
        for name, (kernel, bias) in layers.items():
            if name.startswith("fc"):
                if not top:
                    continue
                kernel = kernel.reshape(-1, kernel.shape[-1])
            kind = "dense" if name.startswith("fc") else "conv2d"
            for key, value in _keras_keys(form, KERAS[name], kind, counts[kind]):
                file[key] = kernel if value == "kernel" else bias
            counts[kind] += 1


def _keras_keys(form, name, kind, count) -> Iterator[tuple[str, str]]:
    for i, part in enumerate(("kernel", "bias")):
        match form:
            case "old":
                yield f"{name}/{name}_{'Wb'[i]}_1:0", part
            case "new":
                yield f"{name}/{name}/{part}:0", part
            case "model":
                yield f"model_weights/{name}/{name}/{part}:0", part
            case "3":
                number = f"_{count}" if count else ""
                yield f"layers/{kind}{number}/vars/{i}", part
            case "3 named":
                yield f"_layer_checkpoint_dependencies/{name}/vars/{i}", part


# Caffe.


def varint(value: int) -> bytes:
    value %= 1 << 64
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes(g | 0x80 for g in groups[:-1]) + bytes(groups[-1:])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, dims: str = "shape", values: str = "packed") -> bytes:
    array = np.asarray(array)
    if dims == "legacy":
        sides = (1,) * (4 - array.ndim) + array.shape
        head = b"".join(field(i + 1, n) for i, n in enumerate(sides))
    else:
        head = field(7, field(1, b"".join(map(varint, array.shape))))
    if values == "double":
        return head + field(8, array.astype("<f8").tobytes())
    if values == "one by one":
        tag = varint(5 << 3 | 5)
        flat = array.astype(np.float32).ravel()
        return head + b"".join(tag + struct.pack("<f", x) for x in flat)
    return head + field(5, array.astype("<f4").tobytes())


V1_TYPES = {"Convolution": 4, "InnerProduct": 14, "Deconvolution": 39, "ReLU": 18}


def caffe_layer(name, kind, blobs, form="layer") -> bytes:
    """A layer in the new form, or in the old one with numbered types."""
    if form == "layer":
        head, number = field(1, name.encode()) + field(2, kind.encode()), 7
    else:
        head, number = field(4, name.encode()) + field(5, V1_TYPES[kind]), 6
    body = head + b"".join(field(number, content) for content in blobs)
    return field(100 if form == "layer" else 2, body)


def caffemodel(layers: Layers, form="layer", dims="shape", values="packed") -> bytes:
    """A network's weights; layers without any are there too, as Caffe has them."""
    net = field(1, b"a network")
    for name, (kernel, bias) in layers.items():
        weight, kind = oihw(kernel), "Convolution"
        if name.startswith("fc") and form != "layer":
            weight, kind = weight.reshape(len(weight), -1), "InnerProduct"
        content = [blob(array, dims, values) for array in (weight, bias)]
        net += caffe_layer(name, kind, content, form)
        net += caffe_layer(f"relu_{name}", "ReLU", [], form)
    return net


# Broken files.


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The file cut off, with other bytes, with huge numbers, and with parts twice."""
    rng = np.random.default_rng(seed)
    huge = (varint(1 << 60), struct.pack("<Q", 1 << 60), b"\xff" * 8, b"1" + b"0" * 18)
    # Much of a file is values; what describes them often lies at its ends.
    near = min(len(content), 1500)
    for i in range(count):
        begin = (0, len(content) - near)[i // 4 % 2]
        at = begin + int(rng.integers(near))
        at = at if rng.random() < 0.6 else int(rng.integers(len(content)))
        changed = bytearray(content)
        match i % 4:
            case 0:
                del changed[at:]
            case 1:
                for place in rng.integers(begin, begin + near, 3):
                    changed[place] = rng.integers(256)
                changed[at] ^= 1 << int(rng.integers(8))
            case 2:
                new = huge[int(rng.integers(len(huge)))]
                changed[at : at + len(new)] = new
            case 3:
                changed[at:at] = content[at : at + int(rng.integers(1, 64))]
        yield bytes(changed)


def shapes_of(model) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(init_shapes(model, IMAGE), sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}
