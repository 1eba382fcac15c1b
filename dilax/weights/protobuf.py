"""The wire format of protocol buffers, as much of it as reading takes.

A message is a row of fields: a varint that holds number and wire type, then the value.
Nothing is copied: what a field holds is a view of the message's bytes.

Source: the public description of the encoding (protobuf.dev, "Encoding").
"""

from collections.abc import Iterator

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
