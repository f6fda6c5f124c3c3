"""A record's body: key, value and headers, which stay as they are wherever the record ends up in a batch.

    key length, key, value length, value, header count, { name length, name, value length, value }

All lengths are zigzag varints; -1 is null. What precedes the body (`RecordBatchBuilder`) depends on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tidegate_wire.records.varint import SMALL_VARINTS, encode_varint

Header = tuple[bytes, bytes | None]

_NULL: Final = encode_varint(-1)
NO_HEADERS: Final = encode_varint(0)


def encode_headers(headers: Sequence[Header]) -> bytes:
    """The header section of a record body, count included."""
    parts = [encode_varint(len(headers))]
    for name, value in headers:
        parts += (encode_varint(len(name)), name, _nullable(value))
    return b"".join(parts)


def encode_record_body(key: bytes | None, value: bytes | None, headers: bytes = NO_HEADERS) -> bytes:
    """A record's body; `headers` comes from `encode_headers`."""
    return b"".join((_nullable(key), _nullable(value), headers))


class RecordTemplate:
    """Encodes bodies that differ in their value and in a few header values only: the hot path of an edge.

    Everything else (the key, the fixed headers, the names of the varying ones, which come after the fixed ones) is
    encoded once, here; so keep one for each device and topic.
    """

    __slots__ = ("_key", "_leads", "_tail")

    def __init__(self, key: bytes | None, fixed: Sequence[Header], varying: Sequence[bytes] = ()) -> None:
        self._key = _nullable(key)
        self._leads: list[bytes] = []  # what stands before each varying value
        count, fixed_count = encode_varint(len(fixed) + len(varying)), encode_varint(len(fixed))
        self._tail = count + encode_headers(fixed)[len(fixed_count) :]  # what stands after the last of them
        for name in varying:
            self._leads.append(self._tail + encode_varint(len(name)) + name)
            self._tail = b""

    def encode(self, value: bytes, *varying: bytes) -> bytes:
        """The body for `value` and the values of the varying headers, in the order of their names."""
        try:
            # Two, sequence and receive time of an event, are what an edge has: twice as fast without the loop.
            first, second = varying
            first_lead, second_lead = self._leads
            return b"".join(
                (
                    self._key,
                    SMALL_VARINTS[len(value)],
                    value,
                    first_lead,
                    SMALL_VARINTS[len(first)],
                    first,
                    second_lead,
                    SMALL_VARINTS[len(second)],
                    second,
                )
            )
        except (ValueError, IndexError):  # another number of headers, or one longer than the table
            parts = [self._key, encode_varint(len(value)), value]
            for lead, text in zip(self._leads, varying, strict=True):
                parts += (lead, encode_varint(len(text)), text)
            parts.append(self._tail)
            return b"".join(parts)


def _nullable(value: bytes | None) -> bytes:
    return _NULL if value is None else encode_varint(len(value)) + value
