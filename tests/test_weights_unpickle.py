"""Pickles that would run something, or never end, in the place of PyTorch's."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from dilax.weights import read_weights
from dilax.weights.pytorch import Name, unpickle


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
