"""Writes and reads the fields of messages between nodes: big-endian, as in Kafka; strings and lists behind a length."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeVar
from uuid import UUID

from tidegate_core.raft.messages import ReplicaKey
from tidegate_wire.kafka.messages import MessageError

T = TypeVar("T")

_INT8: Final = struct.Struct(">b")
_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_INT64: Final = struct.Struct(">q")
_KEY: Final = struct.Struct(">16si")
_UUID_BYTES: Final = 16

KEYS_REMEMBERED: Final = 16_384
"""Making a UUID takes longer than reading all the rest of a replica's position. More partitions than two nodes have in
common; about 300 bytes each."""

NOBODY: Final = -1
"""A node id where there is none."""


@lru_cache(KEYS_REMEMBERED)
def key_of(key: bytes) -> ReplicaKey:
    """What `FieldWriter.key` wrote."""
    topic_id, partition = _KEY.unpack(key)
    return ReplicaKey(UUID(bytes=topic_id), partition)


class FieldWriter:
    """Collects fields; record buffers are kept as they are."""

    def __init__(self) -> None:
        self.buffers: list[bytes | memoryview] = []

    def int8(self, value: int) -> None:
        """An int8."""
        self.buffers.append(_INT8.pack(value))

    def int16(self, value: int) -> None:
        """An int16."""
        self.buffers.append(_INT16.pack(value))

    def int32(self, value: int) -> None:
        """An int32."""
        self.buffers.append(_INT32.pack(value))

    def int64(self, value: int) -> None:
        """An int64."""
        self.buffers.append(_INT64.pack(value))

    def uuid(self, value: UUID) -> None:
        """Sixteen bytes."""
        self.buffers.append(value.bytes)

    def key(self, key: ReplicaKey) -> None:
        """Topic id and partition."""
        self.buffers.append(_KEY.pack(key.topic_id.bytes, key.partition))

    def data(self, value: bytes | memoryview) -> None:
        """Bytes behind their length."""
        self.buffers.append(_INT32.pack(len(value)))
        self.buffers.append(value)

    def text(self, value: str | None) -> None:
        """A string behind its length; -1 is None."""
        if value is None:
            self.int32(-1)
        else:
            self.data(value.encode())

    def each(self, values: Sequence[T], write: Callable[[T], None]) -> None:
        """A list behind its length."""
        self.int32(len(values))
        for value in values:
            write(value)


class FieldReader:
    """Reads what a `FieldWriter` wrote.

    Raises (each method):
        MessageError: the bytes end before the field does, or can't be one.
    """

    def __init__(self, frame: memoryview) -> None:
        self._frame = frame
        self._at = 0

    def _number(self, kind: struct.Struct) -> int:
        try:
            (value,) = kind.unpack_from(self._frame, self._at)
        except struct.error as error:
            raise MessageError("the message ends in a number") from error
        self._at += kind.size
        number: int = value
        return number

    def int8(self) -> int:
        """An int8."""
        return self._number(_INT8)

    def int16(self) -> int:
        """An int16."""
        return self._number(_INT16)

    def int32(self) -> int:
        """An int32."""
        return self._number(_INT32)

    def int64(self) -> int:
        """An int64."""
        return self._number(_INT64)

    def flag(self) -> bool:
        """An int8 that is 0 or 1."""
        return self.int8() != 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes."""
        end = self._at + size
        if size < 0 or end > len(self._frame):
            raise MessageError(f"a field of {size} bytes where {len(self._frame) - self._at} are left")
        taken = self._frame[self._at : end]
        self._at = end
        return taken

    def uuid(self) -> UUID:
        """Sixteen bytes."""
        return UUID(bytes=bytes(self.take(_UUID_BYTES)))

    def key(self) -> ReplicaKey:
        """Topic id and partition."""
        return key_of(bytes(self.take(_KEY.size)))

    def data(self) -> memoryview:
        """Bytes behind their length."""
        return self.take(self.int32())

    def text(self) -> str | None:
        """A string behind its length; -1 is None."""
        size = self.int32()
        if size == -1:
            return None
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise MessageError("a string is not UTF-8") from error

    def word(self) -> str:
        """A string that is not None."""
        text = self.text()
        if text is None:
            raise MessageError("null where a string has to be")
        return text

    def each(self, read: Callable[[], T]) -> tuple[T, ...]:
        """A list behind its length."""
        count = self.int32()
        if not 0 <= count <= len(self._frame) - self._at:
            raise MessageError(f"a list of {count} where {len(self._frame) - self._at} bytes are left")
        return tuple(read() for _ in range(count))

    def end(self) -> None:
        """Nothing may follow."""
        if self._at != len(self._frame):
            raise MessageError(f"{len(self._frame) - self._at} bytes follow the message")
