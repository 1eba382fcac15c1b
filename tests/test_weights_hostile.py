"""Files that claim, list, or refer to more than they hold: memory stays bounded."""

import functools
import io
import json
import pickle
import struct
import sys
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
from weight_files import field, varint

from dilax.weights import read_weights


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
