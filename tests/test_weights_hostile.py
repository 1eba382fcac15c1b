"""Files that claim, list, or refer to more than they hold, and hostile pickles."""

import functools
import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import h5py
import numpy as np
import pytest
from weight_files import field, varint

from dilax.weights import read_weights
from dilax.weights.pytorch import Name, unpickle

# Memory stays bounded.


def _torch(path, pickled, legacy=False):
    """A pickle as PyTorch's zip has it, or as its legacy form."""
    if legacy:
        parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        head = b"".join(pickle.dumps(part, 2) for part in parts)
        path.write_bytes(head + pickled + pickle.dumps([], 2))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)


def _many_copies(function):
    """A tuple that is copied by every call of two bytes."""
    pairs = b"(" + b"\x88\x88\x86" * 10_000 + b"tq\x02\x85q\x030"
    return b"\x80\x02]q\x00(c" + function + b"\nq\x010" + pairs + CALLS


CALLS = b"h\x01h\x03R" * 5000 + b"e."
PICKLES = {
    "OrderedDict": _many_copies(b"collections\nOrderedDict"),
    "Size": _many_copies(b"torch\nSize"),
    "set": _many_copies(b"builtins\nset"),
    "dictionaries": b"\x80\x02](" + b"}" * 1_000_000 + b"e.",
    "memo": b"\x80\x04N" + b"\x94" * 1_000_000 + b".",
    "text": b"\x80\x02X" + struct.pack("<I", 33 << 20) + bytes(33 << 20) + b".",
}


def _zip_listing(path):
    """A list of entries that are nowhere, 46 bytes each."""
    one = b"PK\1\2" + bytes(42)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 46 * 400_000, 0, 0)
    path.write_bytes(one * 400_000 + end)


def _npy(path, head, size):
    """An entry of zeros, which is compressed to a thousandth."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mean.npy", b"\x93NUMPY" + head + bytes(size))
        values = io.BytesIO()
        np.save(values, np.zeros(2, "f4"))
        archive.writestr("a.npy", values.getvalue())


def _npy_header(path):
    _npy(path, b"\2\0" + struct.pack("<I", 80 << 20), 80 << 20)


def _npy_text(path):
    head = b"{'descr': '|S83886080', 'fortran_order': False, 'shape': (1,), }\n"
    _npy(path, b"\1\0" + struct.pack("<H", len(head)) + head, 80 << 20)


def _safetensors_header(path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{i}": empty for i in range(100_000)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def _caffe(*parts):
    return field(100, field(1, b"conv1_1") + b"".join(parts))


def _caffe_unpacked(path):
    count = 200_000
    values = (varint(5 << 3 | 5) + bytes(4)) * count
    path.write_bytes(_caffe(field(7, field(7, field(1, varint(count))) + values)))


def _caffe_blobs(path):
    path.write_bytes(_caffe(field(7, field(7, field(1, b"\0"))) * 40_000))


def _caffe_sides(path):
    path.write_bytes(_caffe(field(7, field(7, field(1, b"\x81\2" * 2_000_000)))))


def _index(path):
    path.write_text("[" + "[]," * 2_000_000)


def _hdf5_zeros(path):
    with h5py.File(path, "w") as file:
        shape, options = (400, 400, 120), dict(chunks=True, compression="gzip")
        file.create_dataset("a", data=np.zeros(shape, "f4"), **options)


# What writes the file, and its ending.
HOSTILE = {
    **{
        f"{name}, {form}": (
            functools.partial(_torch, pickled=text, legacy=old),
            ".pth",
        )
        for name, text in PICKLES.items()
        for form, old in (("zip", False), ("legacy", True))
    },
    "list of a .pth": (_zip_listing, ".pth"),
    "list of a .npz": (_zip_listing, ".npz"),
    "list of a .keras": (_zip_listing, ".keras"),
    "header of an array": (_npy_header, ".npz"),
    "text as a mean": (_npy_text, ".npz"),
    "header": (_safetensors_header, ".safetensors"),
    "unpacked values": (_caffe_unpacked, ".caffemodel"),
    "blobs": (_caffe_blobs, ".caffemodel"),
    "sides": (_caffe_sides, ".caffemodel"),
    "index": (_index, ".index.json"),
    "compressed zeros": (_hdf5_zeros, ".h5"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_memory_is_bounded_by_the_file_s_size(name, unchecked, tmp_path):
    write, suffix = HOSTILE[name]
    path = tmp_path / f"a{suffix}"
    write(path)
    tracemalloc.start()
    try:
        weights = read_weights(path)
        for stored in weights.tensors.values():
            assert sys.getsizeof(stored.read()) < 2 * path.stat().st_size
    except ValueError as error:
        assert len(str(error)) < 3000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * path.stat().st_size + 30e6


# Pickles that would run something, or never end, in the place of PyTorch's.


def _reduced(function, *arguments):
    class Runs:
        def __reduce__(self):
            return function, arguments

    return Runs()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "thing",
    [
        _reduced(os.system, "touch {mark}"),
        _reduced(eval, "open({mark!r}, 'w')"),
        _reduced(exec, "open({mark!r}, 'w')"),
        _reduced(getattr, OrderedDict, "fromkeys"),
        {"weights": _reduced(os.mkdir, "{mark}")},
        _reduced(bytes, 10),
        _reduced(bytearray, 2**40),
        _reduced(range, 2**60),
        np.arange(3),
        {1, 2},
        object(),
        OrderedDict,
        slice(1),
    ],
)
def test_a_pickle_that_would_run_anything_is_refused(thing, protocol, tmp_path):
    mark = tmp_path / "ran"
    content = pickle.dumps(thing, protocol).replace(b"{mark}", str(mark).encode())
    for name, written in _containers(content):
        path = tmp_path / f"{name}.pth"
        path.write_bytes(written)
        with pytest.raises(ValueError, match=f"{name}.pth: cannot be read as PyTorch"):
            read_weights(path)
    assert not mark.exists()


def _containers(content):
    """A pickle where the zip form has it, and in each place of the legacy form."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    yield "zip", file.getvalue()
    sound = [
        pickle.dumps(part, 2)
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])
    ]
    for i in range(5):
        yield f"legacy{i}", b"".join([*sound[:i], content, *sound[i + 1 :]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'touch x'\ntR.", "STRING"),
        (b"cos\nsystem\nX\x01\x00\x00\x00x\x85R.", r"would call os\.system"),
        (b"\x8c\x02os\x8c\x06system\x93)R.", r"would call os\.system"),
        (b"cos\nsystem\n)\x81.", r"an object of os\.system"),
        (b"(ios\nsystem\n.", "INST"),
        (b"(cos\nsystem\no.", "OBJ"),
        (b"}(K\x01K\x02K\x03u.", "zip|argument"),
        (b"cos\nsystem\n}b.", "would set the state"),
        (b"K\x01K\x02)R.", "something that is not a function"),
        (b"X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        (b"\x8d" + b"\xff" * 7 + b"\x0fabc.", "bytes"),
        (b"\x8e" + b"\xff" * 7 + b"\x0fabc.", "bytes"),
        (b"h\x05.", "5"),
        (b"\x94.", "index"),
        (b"K\x01", "exhausted|STOP"),
        (b"", "exhausted|STOP"),
        (b"P7\n.", "PERSID"),
        (b"K\x07Q.", "BINPERSID"),
        (b"\x80\xff.", "empty"),
        (b"t.", "empty"),
        (b"\x82\x01.", "EXT1"),
    ],
)
def test_an_instruction_that_weights_do_not_need_is_refused(content, message):
    with pytest.raises((ValueError, KeyError, IndexError), match=message):
        unpickle(io.BytesIO(content))


def test_the_number_of_a_memo_reserves_no_memory():
    assert unpickle(io.BytesIO(b"K\x01r\xff\xff\xff\xff.")) == 1


def test_names_stay_names():
    found = unpickle(io.BytesIO(b"cos\nsystem\n."))
    assert found == Name("os", "system") and not callable(found)


def test_a_pickle_that_doubles_a_list_a_thousand_times_costs_nothing(tmp_path):
    """Printing it, or walking all of it, would take for ever."""
    doubled = b"]q\x00" + b"".join(
        b"]q" + bytes([i + 1]) + (b"(h" + bytes([i]) + b"h" + bytes([i]) + b"e")
        for i in range(200)
    )
    for end in (b".", b")R.", b"}b.", b"Q.", b"K\x01\x85R.", b"h\x00\x93."):
        for name, content in _containers(doubled + end):
            path = tmp_path / f"{name}.pth"
            path.write_bytes(content)
            with pytest.raises(ValueError) as refused:
                read_weights(path)
            assert len(str(refused.value)) < 1000


def test_a_key_nested_without_end_is_left_out():
    """Hashing it would overflow the stack and end the process."""
    content = b"}" + b")" + b"\x85" * 100_000 + b"K\x01s."
    assert unpickle(io.BytesIO(content)) == {}
