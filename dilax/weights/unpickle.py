"""A reader of the pickles in PyTorch's files that can run nothing.

A pickle is a program that names functions to call. This interpreter has no way to call
any: a name becomes a `Name`, inert, and the few calls that make up a state dictionary
are recognised by their names and turned into plain data. Everything else is refused.

Source: the documentation of `pickletools`, which describes the instructions, and what
it shows of PyTorch's files.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple


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
