"""Caffe's `.caffemodel`, read without Caffe.

A NetParameter holds layers (field 100), or in files from before 2014 "V1" layers
(field 2); a layer holds a name and blobs: kernel (out, in, h, w), then bias. The field
numbers are those of caffe.proto. Caffe correlates, as JAX does, so kernels are not
flipped.

Protocol buffers only need to be read: a message is a sequence of fields, each a varint
with number and wire type, then the value. A field's content is a view of the message's
bytes.

Source: the public description of the encoding (protobuf.dev, "Encoding").
"""

import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dilax.data import DATASETS
from dilax.models import (
    DilatedNet,
    dilation7_kitti,
    dilation8_camvid,
    dilation8_voc,
    dilation10_cityscapes,
)
from dilax.weights.resolve import FIXED, VGG
from dilax.weights.stored import (
    CAFFE,
    MAX_AXES,
    Inputs,
    Shape,
    Stored,
    Weights,
    check_size,
    from_buffer,
    mapped,
)

Value = int | memoryview
_FIXED_SIZES = {1: 8, 5: 4}


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield the (number, value) pairs of a message.

    Values are unsigned numbers for varints, and bytes for everything else: 8 or 4 for
    fixed-size numbers, little-endian, and the contents of strings and messages.

    Raises:
        ValueError: if the bytes are not a message.

    Example:
        >>> [(n, v) for n, v in fields(memoryview(bytes([0x08, 0x96, 0x01])))]
        [(1, 150)]
    """
    at = 0
    while at < len(message):
        short = message[at] < 0x80  # as most are in networks with many fields
        key, at = (message[at], at + 1) if short else _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in _FIXED_SIZES:
            size = _FIXED_SIZES[wire]
        else:
            raise ValueError(f"byte {at}: wire type {wire} is not in use")
        if size > len(message) - at:
            raise ValueError(
                f"byte {at}: a field of {size} bytes, but {len(message) - at} are left"
            )
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return (number, where it ends)."""
    value = 0
    for i in range(10):
        if at + i >= len(message):
            raise ValueError(f"byte {at}: cut off")
        byte = message[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & (1 << 64) - 1, at + i + 1
    raise ValueError(f"byte {at}: a number of more than ten bytes")


def varints(value: Value) -> Iterator[int]:
    """Yield a repeated field's signed numbers, packed or one by one."""
    if isinstance(value, int):
        yield value - (value >> 63 << 64)
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number - (number >> 63 << 64)


# The fields of a network that hold layers, and of a layer's name and blobs there.
_LAYERS, _V1_LAYERS = 100, 2
_NAME_AND_BLOBS = {_LAYERS: (1, 7), _V1_LAYERS: (4, 6)}
_MAX_BLOBS, _MAX_NAME = 20_000, 1000
_V0_LAYER = 1  # within a V1 layer: the form before that
_LEGACY = (1, 2, 3, 4)  # num, channels, height, width
_DATA, _SHAPE, _DOUBLES = 5, 7, 8
_PARTS = ("kernel", "bias")


def read_caffe(path: Path) -> Weights:
    """Read the layers of a `.caffemodel` that have weights.

    Raises:
        ValueError: if it is another kind of file, or two layers share a name.
    """
    with path.open("rb") as file:
        net = memoryview(mapped(file))
    tensors: dict[str, Stored] = {}
    for name, i, blob in _blobs(net):
        part = _PARTS[i] if i < len(_PARTS) else f"blob{i}"
        if f"{name}/{part}" in tensors:
            raise ValueError(f"two layers are called {name!r}")
        if len(tensors) == _MAX_BLOBS:
            raise ValueError(f"holds more than {_MAX_BLOBS} arrays")
        tensors[f"{name}/{part}"] = _stored(blob)
    if not tensors:
        raise ValueError("holds no layers with weights")
    return Weights(path, "Caffe", tensors, _inputs(tensors))


def _blobs(net: memoryview) -> Iterator[tuple[str, int, memoryview]]:
    """Yield the layer's name, index and message of each blob."""
    for number, layer in fields(net):
        if number not in _NAME_AND_BLOBS or isinstance(layer, int):
            continue
        name, (name_field, blobs_field) = "", _NAME_AND_BLOBS[number]
        for inner, content in fields(layer):
            if number == _V1_LAYERS and inner == _V0_LAYER:
                raise ValueError(
                    "has Caffe's first form; Caffe's upgrade_net_proto_binary makes it "
                    "readable"
                )
            if inner == name_field:
                name = bytes(_message(content)[:_MAX_NAME]).decode()
        blobs = (v for n, v in fields(layer) if n == blobs_field)
        for i, blob in enumerate(blobs):
            yield name, i, _message(blob)


def _stored(blob: memoryview) -> Stored:
    legacy, dims = dict.fromkeys(_LEGACY, 1), None
    sizes = {_DATA: 0, _DOUBLES: 0}
    for number, value in fields(blob):
        if number in legacy:
            legacy[number] = next(varints(value), 1)
        elif number == _SHAPE:
            sides = (
                d for n, v in fields(_message(value)) if n == 1 for d in varints(v)
            )
            dims = tuple(itertools.islice(sides, MAX_AXES + 1))
        elif number in sizes:
            sizes[number] += len(_message(value))
    kind = _DATA if sizes[_DATA] else _DOUBLES
    dtype = np.dtype("<f4" if kind == _DATA else "<f8")
    shape = tuple(legacy.values()) if dims is None else dims
    check_size(shape, dtype, sizes[kind])
    return Stored(shape, "oihw", functools.partial(_read, blob, kind, dtype, shape))


def _read(blob: memoryview, kind: int, dtype: np.dtype, shape: Shape) -> np.ndarray:
    content = bytearray()  # of one packed field, or of many with a number each
    for number, value in fields(blob):
        if number == kind:
            content += _message(value)
    return from_buffer(content, dtype, shape)


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number instead of a message")
    return value


class Released(NamedTuple):
    """A released network: how it is built, and its data set."""

    build: Callable[..., DilatedNet]
    dataset: str


RELEASED = {
    "dilation8_pascal_voc": Released(dilation8_voc, "voc"),
    "dilation8_camvid": Released(dilation8_camvid, "camvid"),
    "dilation7_kitti": Released(dilation7_kitti, "kitti"),
    "dilation10_cityscapes": Released(dilation10_cityscapes, "cityscapes"),
}


def _inputs(tensors: Mapping[str, Stored]) -> Inputs | None:
    """Return the network's inputs: with VGG's mean, or that of a release's data set.

    None for other networks, because the file does not state the mean.
    """
    layers = {name.rpartition("/")[0] for name in tensors}
    if layers <= set(VGG):
        return CAFFE
    for build, dataset in RELEASED.values():
        model = build()
        context = model.context
        assert context is not None
        names: Collection[str] = (*(row.name for row in context.layers), "final")
        own = (model.front_end.final_name, *(context.prefix + name for name in names))
        last = tensors.get(f"{own[-1]}/bias")
        same = layers - {*VGG, FIXED.rpartition("/")[0]} == set(own)
        if same and last and math.prod(last.shape) == model.num_classes:
            return Inputs(DATASETS[dataset].mean)
    return None
