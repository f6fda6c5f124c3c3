"""The few primitive types that the hand-written codecs and the internal topics' records need (Kafka protocol guide)."""

from __future__ import annotations

import struct
from typing import Final

from tidegate_wire.kafka.messages import MessageError

_INT16: Final = struct.Struct(">h")
_UVARINT_SHIFT_MAX: Final = 28
STRING_BYTES_MAX: Final = 2**15 - 1
"""A string's length is an int16."""


def read_uvarint(frame: memoryview, offset: int) -> tuple[int, int]:
    """An unsigned varint of at most 32 bits, and the offset after it.

    Raises:
        IndexError: the frame ends in it.
        MessageError: it is longer than five bytes.
    """
    value = frame[offset]
    offset += 1
    if value < 0x80:
        return value, offset
    value &= 0x7F
    shift = 7
    while True:
        byte = frame[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, offset
        shift += 7
        if shift > _UVARINT_SHIFT_MAX:
            raise MessageError("a varint of more than five bytes")


def read_nullable(frame: memoryview, offset: int) -> tuple[str | None, int]:
    """A nullable string with an int16 length, and the offset after it.

    Raises:
        struct.error, UnicodeDecodeError: it is none.
        MessageError: it runs past the frame's end.
    """
    (length,) = _INT16.unpack_from(frame, offset)
    offset += 2
    if length < 0:
        return None, offset
    return _text(frame, offset, length), offset + length


def read_string(frame: memoryview, offset: int) -> tuple[str, int]:
    """A string with an int16 length, and the offset after it; raises as `read_nullable` does, and where it is null."""
    text, offset = read_nullable(frame, offset)
    if text is None:
        raise MessageError("null where a string has to be")
    return text, offset


def read_compact_nullable(frame: memoryview, offset: int) -> tuple[str | None, int]:
    """A compact nullable string (length plus one as a varint), and the offset after it.

    Raises:
        IndexError, UnicodeDecodeError: it is none.
        MessageError: it runs past the frame's end.
    """
    length, offset = read_uvarint(frame, offset)
    if length == 0:
        return None, offset
    return _text(frame, offset, length - 1), offset + length - 1


def _text(frame: memoryview, offset: int, length: int) -> str:
    end = offset + length
    if end > len(frame):
        raise MessageError(f"a string of {length} bytes where {len(frame) - offset} are left")
    return str(frame[offset:end], "utf-8")


def encode_uvarint(value: int) -> bytes:
    """An unsigned varint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_string(text: str) -> bytes:
    """A string with an int16 length; a text that is too long for one is cut."""
    encoded = text.encode()
    if len(encoded) > STRING_BYTES_MAX:
        encoded = encoded[:STRING_BYTES_MAX].decode(errors="ignore").encode()
    return _INT16.pack(len(encoded)) + encoded


def encode_compact(text: str) -> bytes:
    """A compact string."""
    encoded = text.encode()
    return encode_uvarint(len(encoded) + 1) + encoded
