"""The 61 bytes before the records of a batch: read, checked against the bytes after them, and stamped by a log.

Source: the Kafka protocol guide, "Record Batch" (magic 2, KIP-98). The CRC covers everything from the attributes on, so
a log may set base offset and leader epoch without renewing it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from crc32c import crc32c

from tidegate_wire.identifiers import BatchSequence, LeaderEpoch, Offset, ProducerEpoch, ProducerId
from tidegate_wire.records.errors import BatchError, CorruptBatch, TornBatch, UnsupportedMagic

Buffer = bytes | bytearray | memoryview

MAGIC: Final = 2
HEADER_BYTES: Final = 61
SEQUENCE_MAX: Final = 2**31 - 1
"""A producer's sequence numbers run from 0 to this, and then from 0 again."""

RECORD_BYTES_MIN: Final = 7
"""Length, attributes, two deltas, a null key, a null value, no headers: a byte each."""

ATTRIBUTE_COMPRESSION: Final = 0x07
ATTRIBUTE_LOG_APPEND_TIME: Final = 0x08
ATTRIBUTE_TRANSACTIONAL: Final = 0x10
ATTRIBUTE_CONTROL: Final = 0x20

HEADER: Final = struct.Struct(">qiibIhiqqqhii")
LENGTH_PREFIX_BYTES: Final = 12
"""Base offset and batch length; the length counts what follows them."""
CRC_OFFSET: Final = 17
CRC_START: Final = 21
"""Where the attributes stand, the first byte that the CRC covers."""

_LENGTH_OFFSET: Final = 8
_EPOCH_OFFSET: Final = 12
_MAGIC_OFFSET: Final = 16
_MAX_TIMESTAMP_OFFSET: Final = 35
_BATCH_LENGTH_MIN: Final = HEADER_BYTES - LENGTH_PREFIX_BYTES
_INT64: Final = struct.Struct(">q")
_INT32: Final = struct.Struct(">i")
_UINT32: Final = struct.Struct(">I")
_INT16: Final = struct.Struct(">h")


class Compression(IntEnum):
    """How the records of a batch are compressed: the lowest three bits of its attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


class BatchHeader(NamedTuple):
    """A batch's header, field by field as on the wire. A tuple, because the core makes one for every batch it moves."""

    base_offset: Offset
    batch_length: int
    """Bytes after this field; see `size_bytes`."""
    leader_epoch: LeaderEpoch
    magic: int
    crc: int
    """CRC-32C from the attributes to the end."""
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: ProducerId
    producer_epoch: ProducerEpoch
    base_sequence: BatchSequence
    record_count: int

    @property
    def size_bytes(self) -> int:
        """The whole batch, length prefix included."""
        return self.batch_length + LENGTH_PREFIX_BYTES

    @property
    def last_offset(self) -> Offset:
        """The offset of the batch's last record."""
        return Offset(self.base_offset + self.last_offset_delta)

    @property
    def compression(self) -> Compression:
        """The codec of the records.

        Raises:
            BatchError: the attributes name a codec that does not exist.
        """
        try:
            return Compression(self.attributes & ATTRIBUTE_COMPRESSION)
        except ValueError as error:
            raise BatchError(f"compression codec {self.attributes & ATTRIBUTE_COMPRESSION} does not exist") from error

    @property
    def is_transactional(self) -> bool:
        """Whether the batch is part of a transaction."""
        return self.attributes & ATTRIBUTE_TRANSACTIONAL != 0

    @property
    def is_control(self) -> bool:
        """Whether the batch holds control records (a leader change, a transaction's end) instead of events."""
        return self.attributes & ATTRIBUTE_CONTROL != 0

    @property
    def uses_log_append_time(self) -> bool:
        """Whether `max_timestamp_ms` is the time of every record, set by the log."""
        return self.attributes & ATTRIBUTE_LOG_APPEND_TIME != 0

    @property
    def has_producer_id(self) -> bool:
        """Whether an idempotent producer wrote the batch."""
        return self.producer_id >= 0

    @property
    def has_gaps(self) -> bool:
        """Whether offsets of the batch have no record any more: compaction took them. Never so in a new batch."""
        return self.record_count <= self.last_offset_delta

    @property
    def last_sequence(self) -> BatchSequence:
        """The sequence number of the last record; after 2**31 - 1 comes 0. -1 without a base sequence."""
        if self.base_sequence < 0:
            return BatchSequence(-1)
        return BatchSequence((self.base_sequence + self.last_offset_delta) & SEQUENCE_MAX)

    @classmethod
    def parse(cls, buffer: Buffer, offset: int = 0) -> BatchHeader:
        """Read the header that begins at `offset` of `buffer`; what follows it need not be there.

        Raises:
            TornBatch: the buffer ends inside the header.
            UnsupportedMagic: the magic byte is not 2.
            BatchError: the length field is shorter than a header.
        """
        if len(buffer) - offset < HEADER_BYTES:
            if len(buffer) - offset > _MAGIC_OFFSET:
                _check_magic(buffer[offset + _MAGIC_OFFSET])
            raise TornBatch(
                f"{len(buffer) - offset} bytes are too few for a batch's header of {HEADER_BYTES}", position=offset
            )
        header = cls._make(HEADER.unpack_from(buffer, offset))
        if header.magic != MAGIC:
            _check_magic(header.magic)
        if header.batch_length < _BATCH_LENGTH_MIN:
            raise BatchError(f"a batch length of {header.batch_length} is shorter than a batch's header")
        return header


def check_batch(view: Buffer) -> BatchHeader:
    """Read the header of `view`, which must be exactly one batch, and check length, magic, CRC and counts.

    What lies behind the CRC (the records) is not looked into: `read_records` does that.

    Raises:
        TornBatch: the batch is longer than the buffer.
        UnsupportedMagic: the magic byte is not 2.
        CorruptBatch: the CRC does not fit.
        BatchError: bytes follow the batch, its counts contradict each other, or its codec does not exist.
    """
    header = BatchHeader.parse(view)
    size_bytes = header.batch_length + LENGTH_PREFIX_BYTES
    if size_bytes != len(view):
        if size_bytes > len(view):
            raise TornBatch(f"a batch of {size_bytes} bytes has only {len(view)} here")
        raise BatchError(f"{len(view) - size_bytes} bytes follow the batch")
    crc = crc32c(memoryview(view)[CRC_START:])
    if crc != header.crc:
        raise CorruptBatch(f"the CRC in the header is {header.crc:08x}, that of the bytes {crc:08x}")
    if not 0 <= header.record_count <= header.last_offset_delta + 1 or header.last_offset_delta < 0:
        raise BatchError(f"{header.record_count} records do not fit a last offset delta of {header.last_offset_delta}")
    if header.compression is Compression.NONE and header.record_count * RECORD_BYTES_MIN > size_bytes - HEADER_BYTES:
        raise BatchError(f"{header.record_count} records do not fit in {size_bytes - HEADER_BYTES} bytes")
    return header


def iter_batches(buffer: Buffer) -> Iterator[memoryview]:
    """Split batches that stand back to back into a view of each; only length and magic are looked at.

    Raises:
        TornBatch: the last one is cut; its `position` is where it begins. The ones before it were yielded.
        UnsupportedMagic: a magic byte is not 2.
        BatchError: a length field is shorter than a header.
    """
    view = memoryview(buffer)
    position, end = 0, len(view)
    while position < end:
        if end - position <= _MAGIC_OFFSET:
            raise TornBatch(f"{end - position} bytes at {position} are too few for a batch", position=position)
        if view[position + _MAGIC_OFFSET] != MAGIC:
            _check_magic(view[position + _MAGIC_OFFSET])
        (batch_length,) = _INT32.unpack_from(view, position + _LENGTH_OFFSET)
        if batch_length < _BATCH_LENGTH_MIN:
            raise BatchError(f"the batch at {position} has a length of {batch_length}, shorter than its header")
        after = position + LENGTH_PREFIX_BYTES + batch_length
        if after > end:
            raise TornBatch(
                f"the batch at {position} has {after - position} bytes, of which {end - position} are here",
                position=position,
            )
        yield view[position:after]
        position = after


def stamp(batch: bytearray | memoryview, base_offset: Offset, leader_epoch: LeaderEpoch) -> None:
    """Set in place what a log sets at append: base offset and leader epoch, which the CRC does not cover."""
    _INT64.pack_into(batch, 0, base_offset)
    _INT32.pack_into(batch, _EPOCH_OFFSET, leader_epoch)


def stamp_log_append_time(batch: bytearray | memoryview, time_ms: int) -> None:
    """Give every record of the batch the time `time_ms` (`message.timestamp.type=LogAppendTime`); renews the CRC."""
    (attributes,) = _INT16.unpack_from(batch, CRC_START)
    _INT16.pack_into(batch, CRC_START, attributes | ATTRIBUTE_LOG_APPEND_TIME)
    _INT64.pack_into(batch, _MAX_TIMESTAMP_OFFSET, time_ms)
    _UINT32.pack_into(batch, CRC_OFFSET, crc32c(memoryview(batch)[CRC_START:]))


def _check_magic(magic: int) -> None:
    if magic != MAGIC:
        raise UnsupportedMagic(f"magic {magic & 0xFF}: only record batches of magic {MAGIC} (Kafka 0.11 on) are taken")
