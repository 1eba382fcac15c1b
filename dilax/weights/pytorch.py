"""PyTorch's `.pth`, read without PyTorch: the zip form, and the legacy one before it.

Both hold a pickle that describes tensors as views of storages, and the storages' bytes.
In a zip these are entries; in the legacy form they follow four more pickles.

A reader of the pickles in PyTorch's files that can run nothing.

A pickle is a program that names functions to call. This interpreter has no way to call
any: a name becomes a `Name`, inert, and the few calls that make up a state dictionary
are recognised by their names and turned into plain data. Everything else is refused.

Source: the documentation of `pickletools`, which describes the instructions, and what
it shows of PyTorch's files.
"""

import io
import math
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dilax.weights.names import from_torch, torch_inputs
from dilax.weights.stored import Stored, Weights, from_buffer, mapped


class Name(NamedTuple):
    """What a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class Tensor(NamedTuple):
    """A view of a storage, which lies elsewhere in the file; counted in values."""

    storage: Any
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    """Where the arguments of a later instruction begin."""


_MARK = _Mark()
_Stack = list[Any]


def _refused(description: Any) -> Any:
    raise ValueError("a storage stands where none should")


def unpickle(file: Any, storage: Callable[[Any], Any] = _refused) -> Any:
    """The next pickle of a file as dicts, lists, tuples, numbers, text and `Tensor`s.

    Args:
        file: with `read` and `readline`; it stands behind the pickle afterwards.
        storage: makes a storage of how the pickle describes it.

    Raises:
        ValueError: naming what the pickle would import or do beyond that.
    """
    stack: _Stack = []
    memo: dict[Any, Any] = {}
    for code, argument, _ in pickletools.genops(file):
        if code.name == "STOP":
            return stack.pop()
        if code.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif code.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif code.name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code.name == "BINPERSID":
            stack.append(storage(stack.pop()))
        elif code.name in _PUSHED:
            stack.append(_PUSHED[code.name](argument))
        elif code.name in _DONE:
            _DONE[code.name](stack)
        else:
            raise ValueError(f"the instruction {code.name} has no place in weights")
    raise ValueError("the pickle has no end")


def _since_mark(stack: _Stack) -> list[Any]:
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise ValueError("an instruction lacks its arguments")
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _tuple(count: int) -> Callable[[_Stack], None]:
    def pack(stack: _Stack) -> None:
        items = tuple(stack[-count:])
        del stack[-count:]
        stack.append(items)

    return pack


def _append(stack: _Stack, items: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise ValueError("appends to what is no list")
    stack[-1].extend(items)


def _set_items(stack: _Stack, items: list[Any]) -> None:
    target, keys = stack[-1], items[::2]
    if not isinstance(target, dict) or not all(type(k) in (str, int) for k in keys):
        raise ValueError("sets what is no entry of a dictionary, or has no plain key")
    target.update(zip(keys, items[1::2], strict=True))


def _reduce(stack: _Stack) -> None:
    arguments, name = stack.pop(), stack.pop()
    if not isinstance(name, Name):
        raise ValueError("would call what is no function")
    if name not in _CALLS:
        raise ValueError(f"would call {name}, which has no place in weights")
    stack.append(_CALLS[name](*arguments))


def _build(stack: _Stack) -> None:
    stack.pop()  # what a state dictionary knows of module versions
    if not isinstance(stack[-1], dict):
        raise ValueError("would set the state of what is no dictionary")


def _named(stack: _Stack) -> None:
    name, module = stack.pop(), stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise ValueError("would import what has no name")
    stack.append(Name(module, name))


def _rebuilt(storage, offset, size, stride, *_: Any) -> Tensor:
    whole = all(type(n) is int for n in (offset, *size, *stride))
    if not whole or len(size) != len(stride):
        raise ValueError("a tensor is not described by whole numbers")
    return Tensor(storage, offset, tuple(size), tuple(stride))


def _ordered(pairs: Any = ()) -> dict:
    stack: _Stack = [{}]
    _set_items(stack, [part for pair in pairs for part in pair])
    return stack[0]


# What is called in a state dictionary, and what becomes of it.
_CALLS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _ordered,
    Name("torch._utils", "_rebuild_tensor"): _rebuilt,
    Name("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Name("torch", "Size"): tuple,
}


def _itself(argument: Any) -> Any:
    return argument


# Instructions that push something made of their argument.
_PUSHED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _itself),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _itself),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _itself),  # Python 2
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "MARK": lambda _: _MARK,
    "GLOBAL": lambda text: Name(*text.split(" ", 1)),
}
# Instructions that work on what was pushed.
_DONE: dict[str, Callable[[_Stack], None]] = {
    "PROTO": lambda stack: None,
    "FRAME": lambda stack: None,
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": lambda stack: _append(stack, [stack.pop()]),
    "APPENDS": lambda stack: _append(stack, _since_mark(stack)),
    "SETITEM": lambda stack: _set_items(stack, [stack.pop(-2), stack.pop()]),
    "SETITEMS": lambda stack: _set_items(stack, _since_mark(stack)),
    "STACK_GLOBAL": _named,
    "REDUCE": _reduce,
    "BUILD": _build,
}


_STORAGES = {
    "HalfStorage": np.dtype("<f2"),
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "ByteStorage": np.dtype("u1"),
    "CharStorage": np.dtype("i1"),
    "BoolStorage": np.dtype("?"),
    "ShortStorage": np.dtype("<i2"),
    "IntStorage": np.dtype("<i4"),
    "LongStorage": np.dtype("<i8"),
}
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_COUNTER = ".num_batches_tracked"  # of batches, for PyTorch's own training
_MOST_AXES = 8

Contents = Callable[[], memoryview | bytes]


class _Storage(NamedTuple):
    """A storage as a pickle describes it: its bytes lie elsewhere under a key."""

    key: str
    dtype: np.dtype
    values: int


def read_torch(path: Path) -> Weights:
    """The tensors of a state dictionary, by itself or in a checkpoint.

    Raises:
        ValueError: if the file is no such file, names anything that a state dictionary
            does not need, or is of a network with batch normalisation that is not
            named as torchvision's ResNets are.
    """
    zipped = zipfile.is_zipfile(path)
    described, contents = _read_zip(path) if zipped else _read_legacy(path)
    found = dict(_tensors(described))
    found = {n: t for n, t in found.items() if not n.endswith(_COUNTER)}
    if any(from_torch(name).endswith("running_mean") for name in found):
        raise ValueError("has batch normalisation where no ResNet of torchvision has")
    tensors = {
        from_torch(name): _stored(tensor, contents(tensor.storage))
        for name, tensor in found.items()
    }
    if not tensors or len(tensors) < len(found):
        raise ValueError("holds no tensors, or two of one name")
    return Weights(path, "PyTorch", tensors, torch_inputs(found))


def _tensors(described: Any) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, in a dictionary or in the one within that holds them."""
    if not isinstance(described, dict):
        raise ValueError("does not hold a state dictionary")
    if not any(isinstance(value, Tensor) for value in described.values()):
        inner = [described[n] for n in _WRAPPERS if isinstance(described.get(n), dict)]
        described = inner[0] if inner else {}
    for name, value in described.items():
        if isinstance(value, Tensor):
            yield str(name), value


def _storage(description: Any) -> _Storage:
    match description:
        case ("storage", Name() as kind, str(key), str(), int(count)):
            pass
        case ("storage", Name() as kind, str(key), str(), int(count), None):
            pass
        case _:
            raise ValueError("what is described is no storage")
    if kind.module != "torch" or kind.name not in _STORAGES:
        raise ValueError(f"a storage of {kind}")
    return _Storage(key, _STORAGES[kind.name], count)


def _stored(tensor: Tensor, contents: Contents) -> Stored:
    """The view of a storage that a tensor is; its strides are checked first."""
    storage = tensor.storage
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor is of no storage")
    size, stride = tensor.size, tensor.stride
    if len(size) > _MOST_AXES or min((tensor.offset, *size, *stride)) < 0:
        raise ValueError(f"a tensor of {len(size)} axes, or with a negative one")
    last = tensor.offset + sum(s * (n - 1) for n, s in zip(size, stride, strict=True))
    if last >= storage.values and 0 not in size:
        raise ValueError(f"a tensor of {size} reaches beyond its storage")
    if math.prod(size) > storage.values:
        raise ValueError(f"a tensor of {size} repeats the values of its storage")

    def read() -> np.ndarray:
        content = contents()
        values = from_buffer(content, storage.dtype, (storage.values,))
        values = values[tensor.offset :]
        strides = tuple(s * values.itemsize for s in stride)
        return np.lib.stride_tricks.as_strided(values, size, strides, writeable=False)

    return Stored(size, "oihw", read)


def _read_zip(path: Path) -> tuple[Any, Callable[[_Storage], Contents]]:
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError("this zip is none that torch.save writes")
        root = pickles[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and _entry(archive, order) != b"little":
            raise ValueError("was written on a big-endian machine")
        described = unpickle(io.BytesIO(_entry(archive, pickles[0])), _storage)

    def contents(storage: _Storage) -> Contents:
        def read() -> bytes:
            with zipfile.ZipFile(path) as archive:
                return _entry(archive, f"{root}data/{storage.key}")

        return read

    return described, contents


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    return archive.read(_plain(archive, name))


def _plain(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """An entry that is not compressed, as torch.save has them: it cannot swell."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > info.compress_size:
        raise ValueError(f"{name} is compressed, which torch.save does not do")
    assert archive.filename is not None
    if info.compress_size > Path(archive.filename).stat().st_size:
        raise ValueError(f"{name} is said to be larger than the file")
    return info


def _read_legacy(path: Path) -> tuple[Any, Callable[[_Storage], Contents]]:
    with path.open("rb") as opened:
        file = mapped(opened)
    if unpickle(file) != _LEGACY_MAGIC or unpickle(file) != _LEGACY_VERSION:
        raise ValueError("is neither a zip nor PyTorch's legacy form")
    sizes: dict[str, int] = {}

    def storage(description: Any) -> _Storage:
        found = _storage(description)
        sizes[found.key] = found.dtype.itemsize
        return found

    system, described, keys = unpickle(file), unpickle(file, storage), unpickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("was written on a big-endian machine")
    places = _legacy_places(file, keys, sizes)

    def contents(storage: _Storage) -> Contents:
        begin, end = places[storage.key]
        return lambda: memoryview(file)[begin:end]

    return described, contents


def _legacy_places(file: mmap.mmap, keys: Any, sizes: dict) -> dict:
    """Where each storage's bytes begin and end; the number of values is before them."""
    places, at = {}, file.tell()
    for key in keys:
        if not isinstance(key, str) or key not in sizes:
            raise ValueError("there are storages that are no tensor's")
        count = int.from_bytes(file[at : at + 8], "little", signed=True)
        if not 0 <= count <= len(file):
            raise ValueError(f"the storage {key} holds {count} values")
        places[key] = at + 8, at + 8 + count * sizes[key]
        at = places[key][1]
    return places
