"""The data types that packets are made of (MQTT 5, section 1.5; 3.1.1, section 1.5)."""

from __future__ import annotations

from typing import Final

from tidegate_wire.mqtt.errors import MalformedPacketError

VARINT_MAX: Final = 268_435_455
"""The largest variable byte integer: four bytes of seven bits."""

_U16_MAX: Final = 65_535


class Reader:
    """Takes one data type after the other from `buffer[offset:end]`; MalformedPacketError where one does not fit."""

    __slots__ = ("_buffer", "end", "offset")

    def __init__(self, buffer: bytes, offset: int, end: int) -> None:
        self._buffer = buffer
        self.offset = offset
        self.end = end

    @property
    def remaining(self) -> int:
        """Bytes not yet taken."""
        return self.end - self.offset

    def _take(self, size: int) -> int:
        start = self.offset
        if start + size > self.end:
            raise MalformedPacketError(f"the packet ends {start + size - self.end} bytes too early")
        self.offset = start + size
        return start

    def u8(self) -> int:
        """One byte."""
        return self._buffer[self._take(1)]

    def u16(self) -> int:
        """Two bytes, big-endian."""
        start = self._take(2)
        return self._buffer[start] << 8 | self._buffer[start + 1]

    def u32(self) -> int:
        """Four bytes, big-endian."""
        start = self._take(4)
        return int.from_bytes(self._buffer[start : start + 4], "big")

    def varint(self) -> int:
        """A variable byte integer in its shortest form."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise MalformedPacketError("a variable byte integer is longer than it need be")
                return value
        raise MalformedPacketError("a variable byte integer has more than four bytes")

    def binary(self) -> bytes:
        """Bytes behind their two-byte length."""
        size = self.u16()
        start = self._take(size)
        return self._buffer[start : start + size]

    def string(self) -> str:
        """A UTF-8 string behind its two-byte length."""
        return decode_utf8(self.binary())

    def rest(self) -> bytes:
        """All bytes not yet taken."""
        start = self.offset
        self.offset = self.end
        return self._buffer[start : self.end]

    def expect_end(self) -> None:
        """Refuse bytes behind the packet's last field."""
        if self.offset != self.end:
            raise MalformedPacketError(f"{self.end - self.offset} bytes stand behind the packet's last field")


def decode_utf8(raw: bytes) -> str:
    """Decode a UTF-8 string (MQTT 5, section 1.5.4).

    Raises:
        MalformedPacketError: it is not UTF-8, or has a surrogate or U+0000.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedPacketError(f"a string is not UTF-8: {raw[:40]!r}") from error
    if "\0" in text:
        raise MalformedPacketError(f"a string has U+0000 in it: {raw[:40]!r}")
    return text


def encode_binary(value: bytes) -> bytes:
    """Bytes behind their two-byte length.

    Raises:
        ValueError: there are more than 65,535.
    """
    if len(value) > _U16_MAX:
        raise ValueError(f"{len(value)} bytes do not fit a field of at most {_U16_MAX}")
    return len(value).to_bytes(2, "big") + value


def encode_string(value: str) -> bytes:
    """A UTF-8 string behind its two-byte length.

    Raises:
        ValueError: it has U+0000 or a surrogate, or more than 65,535 bytes.
    """
    if "\0" in value:
        raise ValueError(f"a string may not have U+0000 in it: {value[:40]!r}")
    return encode_binary(value.encode())


def encode_varint(value: int) -> bytes:
    """A variable byte integer.

    Raises:
        ValueError: it is not within 0 to 268,435,455.
    """
    if 0 <= value < 0x80:
        return bytes((value,))
    if not 0 <= value <= VARINT_MAX:
        raise ValueError(f"{value} is not within 0 to {VARINT_MAX}")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
