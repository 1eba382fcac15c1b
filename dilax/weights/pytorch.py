"""PyTorch's `.pth`, read without PyTorch: the zip form, and the legacy one before it.

Both contain a pickle that describes tensors as views of storages, and the storages'
bytes: entries of the zip, or the bytes after the pickles of the legacy form.

A pickle is a program that names functions to call. The interpreter here cannot call
any: a name becomes a `Name`, the calls in checkpoints become plain data or None, and
everything else is refused. The file's size limits the number of steps, and so the
memory that a pickle of few bytes can take.

Source: the documentation of `pickletools`, which describes the instructions, and its
output for PyTorch's files.
"""

import functools
import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dilax.weights.stored import (
    MAX_AXES,
    Stored,
    Weights,
    axes_of,
    from_buffer,
    mapped,
    stored_entries,
)

_MAX_PICKLE = 32 << 20
# Of a pickle: a step makes 400 bytes of memory at most, with what is made of it here.
_MAX_STEPS, _BYTES_PER_STEP = 200_000, 100
_MAX_DEPTH, _MAX_NAME = 12, 300
_REMEDY = (
    "Save only the weights, in the program that has the network, with "
    "torch.save(model.state_dict(), 'weights.pth'); or, if you trust the file, with "
    "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')"
)


class Name(NamedTuple):
    """A name that a pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class Tensor(NamedTuple):
    """A view of a storage elsewhere in the file; counted in values."""

    storage: Any
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = object()  # where the arguments of a later instruction begin


def unpickle(
    file: Any, storage: Callable[[Any], Any] | None = None, steps: int = _MAX_STEPS
) -> Any:
    """Read the next pickle of a file as containers, numbers, text, and `Tensor`s.

    Args:
        file: a file with `read` and `readline`; its position is then after the pickle.
        storage: turns the pickle's description of a storage into a storage; without
            it, there must be none.
        steps: maximum number of steps.

    Raises:
        ValueError: naming what else the pickle would import or do.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for code, argument, _ in pickletools.genops(file):
        steps -= 1
        if code.name == "REDUCE":  # copies its arguments at most
            steps -= len(stack[-1])
            steps -= sum(len(a) for a in stack[-1] if isinstance(a, list | tuple))
        if steps < 0:
            raise ValueError(f"holds too much beside tensors. {_REMEDY}")
        match code.name:
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":  # the last has no argument
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPERSID" if storage:
                stack.append(storage(stack.pop()))
            case name if name in _ARGUMENTS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            case "GLOBAL":
                stack.append(Name(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                module, name = stack[-2:]
                if not isinstance(module, str) or not isinstance(name, str):
                    raise ValueError("would import something without a name")
                stack[-2:] = [Name(module, name)]
            case "TUPLE" | "FROZENSET":
                stack.append(tuple(_since_mark(stack)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(code.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                stack[-2].append(stack.pop())
            case "APPENDS" | "ADDITEMS":
                items = _since_mark(stack)
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = _since_mark(stack)
                _set_items(stack[-1], items)
            case "REDUCE":
                stack[-2:] = [_called(*stack[-2:])]
            case "BUILD":  # sets the versions of modules, which state dictionaries have
                stack.pop()
                if not (stack[-1] is None or isinstance(stack[-1], dict)):
                    raise ValueError("would set the state of a non-dictionary")
            case "NEWOBJ" if isinstance(stack[-2], Name):
                raise ValueError(f"would make an object of {stack[-2]}. {_REMEDY}")
            case name:
                raise ValueError(f"{name} is no instruction for weights. {_REMEDY}")
    raise ValueError("the pickle has no end")


# Instructions that push their argument or a constant.
_ARGUMENTS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
    *("BINSTRING", "SHORT_BINSTRING"),  # Python 2
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}


def _since_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    """Set entries of a dictionary; keys that cannot name a parameter are left out."""
    pairs = zip(items[::2], items[1::2], strict=True)
    target.update((k, v) for k, v in pairs if type(k) in (str, int))


def _called(name: Any, arguments: Any) -> Any:
    if not isinstance(name, Name):
        raise ValueError("would call something that is not a function")
    if name in _CALLS:
        return _CALLS[name](*arguments)
    if _INERT.fullmatch(f"{name.module}.{name.name}"):
        return None
    raise ValueError(f"would call {name}, which dilax does not run. {_REMEDY}")


def _rebuilt(storage, offset, size, stride, *_: Any) -> Tensor:
    if max(len(size), len(stride)) > MAX_AXES:
        raise ValueError(f"a tensor of {len(size)} axes")
    whole = all(type(n) is int for n in (offset, *size, *stride))
    if not whole or len(size) != len(stride):
        raise ValueError("a tensor is not described by whole numbers")
    return Tensor(storage, offset, tuple(size), tuple(stride))


def _ordered(pairs: Any = ()) -> dict:
    found: dict = {}
    _set_items(found, [part for pair in pairs for part in pair[:2]])
    return found


def _rebuilt_from_type(function, kind, arguments, *_: Any) -> Tensor:
    if not isinstance(function, Name) or function.module != "torch._utils":
        raise ValueError("a tensor of an unknown kind")
    return _called(function, arguments)


# The functions that checkpoints call, and their replacements. No tensor is in the
# results of the inert ones, which become None.
_CALLS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _ordered,
    Name("collections", "defaultdict"): lambda *_: {},
    Name("collections", "deque"): lambda *_: [],
    Name("torch", "Size"): lambda size: tuple(size[:MAX_AXES]),
    Name("torch._utils", "_rebuild_tensor"): _rebuilt,
    Name("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Name("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    Name("torch._tensor", "_rebuild_from_type_v2"): _rebuilt_from_type,
}
_INERT = re.compile(
    r"""torch\.device|collections\.Counter|_codecs\.encode|uuid\.UUID
    |numpy\.dtype|numpy\._?core\.(multiarray|numeric)\.(scalar|_reconstruct|_frombuffer)
    |(builtins|__builtin__)\.(set|frozenset|complex|bytes|slice|range)
    |pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path
    |datetime\.(datetime|date|time|timedelta|timezone)""",
    re.VERBOSE,
)

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
    "ComplexFloatStorage": np.dtype("<c8"),
    "ComplexDoubleStorage": np.dtype("<c16"),
}
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_COUNTER = ".num_batches_tracked"  # of batches, for PyTorch's own training


class _Storage(NamedTuple):
    """A storage as a pickle describes it: its bytes are elsewhere, under a key."""

    key: str
    dtype: np.dtype
    values: int


def read_torch(path: Path) -> Weights:
    """Read the tensors of a checkpoint, at any depth of its dictionaries and lists.

    Raises:
        ValueError: if the file is not PyTorch's, or needs code that dilax does not run.
    """
    zipped = zipfile.is_zipfile(path)
    described, contents = _read_zip(path) if zipped else _read_legacy(path)
    tensors = {
        name: Stored(
            tensor.size, axes_of(name), functools.partial(_read, name, tensor, contents)
        )
        for name, tensor in _tensors(described, "", set())
        if not name.endswith(_COUNTER)
    }
    if not tensors:
        raise ValueError(f"holds no named tensors. {_REMEDY}")
    return Weights(path, "PyTorch", tensors)


def _tensors(item: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Walk through containers, each one once, even if the file refers to it often."""
    if isinstance(item, Tensor):
        yield name, item
    elif (
        isinstance(item, dict | list | tuple)
        and id(item) not in seen
        and name.count(".") < _MAX_DEPTH
    ):
        seen.add(id(item))
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        for key, value in pairs:
            if len(name) + len(key := str(key)) <= _MAX_NAME:
                yield from _tensors(value, f"{name}.{key}" if name else key, seen)


def _read(
    name: str, tensor: Tensor, contents: Callable[[_Storage], memoryview]
) -> np.ndarray:
    """View the values of a tensor in its storage, after checking its strides."""
    storage, offset, size, stride = tensor
    if not isinstance(storage, _Storage):
        raise ValueError(f"{name} has no storage")
    if min((offset, *size, *stride)) < 0:
        raise ValueError(f"{name} has a negative axis")
    last = offset + sum(s * (n - 1) for n, s in zip(size, stride, strict=True))
    if last >= storage.values and 0 not in size:
        raise ValueError(f"{name} of {size} reaches beyond its storage")
    if math.prod(size) > storage.values:
        raise ValueError(f"{name} of {size} repeats the values of its storage")
    values = from_buffer(contents(storage), storage.dtype, (storage.values,))[offset:]
    strides = tuple(s * values.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(values, size, strides, writeable=False)


def _storage(description: Any) -> _Storage:
    match description:
        case ("storage", Name() as kind, str(key), str(), int(count), *rest):
            if any(rest):  # a view of another storage, in very old files
                raise ValueError("the description is not one of a storage")
        case _:
            raise ValueError("the description is not one of a storage")
    if kind.module != "torch" or kind.name not in _STORAGES:
        raise ValueError(f"a storage of {kind}. {_REMEDY}")
    return _Storage(key, _STORAGES[kind.name], count)


def _steps(path: Path) -> int:
    return _MAX_STEPS + path.stat().st_size // _BYTES_PER_STEP


def _read_zip(path: Path) -> tuple[Any, Callable[[_Storage], memoryview]]:
    entries = stored_entries(path)
    pickles = [n for n in entries if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("this zip was not written by torch.save")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in entries:
        raise ValueError(
            "is a program, TorchScript. Save its weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    if (order := entries.get(f"{root}byteorder")) and bytes(order()) != b"little":
        raise ValueError("was written on a big-endian machine")
    text = entries[pickles[0]]()
    if len(text) > _MAX_PICKLE:
        raise ValueError(f"describes its tensors in {len(text)} bytes. {_REMEDY}")
    described = unpickle(io.BytesIO(text), _storage, _steps(path))
    return described, lambda storage: entries[f"{root}data/{storage.key}"]()


def _read_legacy(path: Path) -> tuple[Any, Callable[[_Storage], memoryview]]:
    with path.open("rb") as opened:
        file = mapped(opened)
    head, steps = io.BytesIO(file[:_MAX_PICKLE]), _steps(path)
    if unpickle(head) != _LEGACY_MAGIC or unpickle(head) != _LEGACY_VERSION:
        raise ValueError("is neither a zip nor PyTorch's legacy form")
    sizes: dict[str, int] = {}

    def storage(description: Any) -> _Storage:
        found = _storage(description)
        sizes[found.key] = found.dtype.itemsize
        return found

    system = unpickle(head)
    described, keys = unpickle(head, storage, steps), unpickle(head, steps=steps)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("was written on a big-endian machine")
    spans, at = {}, head.tell()
    for key in keys:  # the number of values is before them
        if not isinstance(key, str) or key not in sizes:
            raise ValueError("there are storages that belong to no tensor")
        count = int.from_bytes(file[at : at + 8], "little", signed=True)
        if not 0 <= count <= len(file):
            raise ValueError(f"the storage {key} holds {count} values")
        spans[key] = slice(at + 8, at := at + 8 + count * sizes[key])
    return described, lambda storage: memoryview(file)[spans[storage.key]]
