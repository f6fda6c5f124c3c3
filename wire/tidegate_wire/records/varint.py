"""Zigzag varints, as in record batches: 7 bits a byte, lowest first, the sign in the lowest bit (protobuf's sint)."""

from __future__ import annotations

from typing import Final

from tidegate_wire.records.errors import MalformedRecords

VARINT_BYTES_MAX: Final = 5
"""An int32 takes at most this."""
VARLONG_BYTES_MAX: Final = 10
"""An int64 takes at most this."""

SMALL_VARINTS_COUNT: Final = 8192
"""Zigzag puts 0 to 8191 into one or two bytes; nearly every length and delta is among them."""


def encode_varint(value: int) -> bytes:
    """`value` (an int32 or int64) as a zigzag varint."""
    assert -(2**63) <= value < 2**63, value
    rest = (value << 1) ^ (value >> 63)
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


SMALL_VARINTS: Final = tuple(encode_varint(value) for value in range(SMALL_VARINTS_COUNT))
"""`SMALL_VARINTS[n] == encode_varint(n)`: a look-up is several times as fast."""


def decode_varint(buffer: bytes | memoryview, offset: int, bytes_max: int = VARINT_BYTES_MAX) -> tuple[int, int]:
    """Read the varint at `offset`; returns its value and the offset after it.

    Raises:
        MalformedRecords: the buffer ends inside it, or it has more than `bytes_max` bytes.
    """
    try:
        byte = buffer[offset]
        if byte < 0x80:
            return (byte >> 1) ^ -(byte & 1), offset + 1
        rest = shift = 0
        for position in range(offset, offset + bytes_max):
            byte = buffer[position]
            rest |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (rest >> 1) ^ -(rest & 1), position + 1
            shift += 7
    except IndexError:
        raise MalformedRecords("the records end inside a varint") from None
    raise MalformedRecords(f"a varint of more than {bytes_max} bytes")
