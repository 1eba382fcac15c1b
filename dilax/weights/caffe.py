"""Caffe's `.caffemodel`, read without Caffe.

A NetParameter holds layers (field 100), or in files from before 2014 "V1" layers
(field 2); a layer holds a name and blobs: kernel (out, in, h, w), then bias. The field
numbers are those of caffe.proto. Caffe correlates, as JAX does: kernels are not turned.

The wire format of protocol buffers, as much of it as reading takes.

A message is a row of fields: a varint that holds number and wire type, then the value.
Nothing is copied: what a field holds is a view of the message's bytes.

Source: the public description of the encoding (protobuf.dev, "Encoding").
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dilax.weights.names import caffe_inputs
from dilax.weights.stored import Stored, Weights, check_size, from_buffer, mapped

Value = int | memoryview
_FIXED = {1: 8, 5: 4}


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """The (number, value) pairs of a message.

    Args:
        message: its bytes.

    Yields:
        Varints as unsigned numbers; everything else as bytes: 8 or 4 for fixed-size
        numbers, little-endian, and the contents of strings and messages.

    Raises:
        ValueError: if the bytes are no message.

    Example:
        >>> [(n, v) for n, v in fields(memoryview(bytes([0x08, 0x96, 0x01])))]
        [(1, 150)]
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise ValueError(f"byte {at}: wire type {wire} is not in use")
        if size > len(message) - at:
            raise ValueError(
                f"byte {at}: a field of {size} bytes, {len(message) - at} are left"
            )
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
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
    """A repeated field's signed numbers, packed or one by one."""
    if isinstance(value, int):
        yield _signed(value)
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield _signed(number)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


class _Form(NamedTuple):
    """Field numbers of a layer's name and blobs."""

    name: int
    blobs: int


_FORMS = {100: _Form(1, 7), 2: _Form(4, 6)}
_V0_LAYER = 1  # within a V1 layer: the form before that
_LEGACY = (1, 2, 3, 4)  # num, channels, height, width
_DATA, _SHAPE, _DOUBLES = 5, 7, 8
_PARTS = ("kernel", "bias")


def read_caffe(path: Path) -> Weights:
    """The layers of a `.caffemodel` that have weights.

    Raises:
        ValueError: if the file is no such file, or two layers share a name.
    """
    with path.open("rb") as file:
        net = memoryview(mapped(file))
    tensors: dict[str, Stored] = {}
    for name, blobs in _layers(net):
        for i, blob in enumerate(blobs):
            part = _PARTS[i] if i < len(_PARTS) else f"blob{i}"
            if f"{name}/{part}" in tensors:
                raise ValueError(f"two layers are called {name!r}")
            tensors[f"{name}/{part}"] = _stored(blob)
    if not tensors:
        raise ValueError("holds no layers with weights")
    return Weights(path, "Caffe", tensors, caffe_inputs(tensors))


def _layers(net: memoryview) -> Iterator[tuple[str, list[memoryview]]]:
    for number, value in fields(net):
        if number not in _FORMS or isinstance(value, int):
            continue
        name, blobs, form = "", [], _FORMS[number]
        for inner, content in fields(value):
            if number == 2 and inner == _V0_LAYER:
                raise ValueError(
                    "is of Caffe's first form; Caffe's upgrade_net_proto_binary "
                    "makes it readable"
                )
            if inner == form.name:
                name = bytes(_message(content)).decode()
            elif inner == form.blobs:
                blobs.append(_message(content))
        yield name, blobs


def _stored(blob: memoryview) -> Stored:
    legacy, dims = dict.fromkeys(_LEGACY, 1), None
    chunks: dict[int, list[memoryview]] = {_DATA: [], _DOUBLES: []}
    for number, value in fields(blob):
        if number in legacy:
            legacy[number] = next(varints(value), 1)
        elif number == _SHAPE:
            dims = [d for n, v in fields(_message(value)) if n == 1 for d in varints(v)]
        elif number in chunks:
            chunks[number].append(_message(value))
    kind = _DATA if chunks[_DATA] else _DOUBLES
    dtype = np.dtype("<f4" if kind == _DATA else "<f8")
    shape = tuple(legacy.values() if dims is None else dims)
    content = chunks[kind]

    def read() -> np.ndarray:
        return from_buffer(_joined(content), dtype, shape)

    check_size(shape, dtype, sum(map(len, content)))
    return Stored(shape, "oihw", read)


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value


def _joined(chunks: list[memoryview]) -> memoryview | bytes:
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
