"""Takes records out of a batch, leaving the others as they are: same offsets, times, sequence numbers.

Records are kept as the bytes they are: base offset, base timestamp and last offset delta stay, and so do their deltas.
A batch that loses all its records can be kept as a header alone, so that its producer's last sequence is not forgotten.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cramjam
from crc32c import crc32c

from tidegate_wire.identifiers import Offset
from tidegate_wire.records import HEADER_BYTES, BatchHeader, Compression, MalformedRecords
from tidegate_wire.records.compression import compress_zstd, decompress
from tidegate_wire.records.header import (
    ATTRIBUTE_COMPRESSION,
    CRC_START,
    HEADER,
    LENGTH_PREFIX_BYTES,
)
from tidegate_wire.records.reader import RECORDS_BYTES_MAX
from tidegate_wire.records.varint import VARLONG_BYTES_MAX, decode_varint


class StoredRecord(NamedTuple):
    """A record as its batch holds it."""

    offset: Offset
    timestamp_ms: int
    key: bytes | None
    is_tombstone: bool
    encoded: bytes
    """All of it, its length included."""


def stored_records(batch: memoryview, header: BatchHeader) -> Iterator[StoredRecord]:
    """The records of a batch, with the bytes they are stored as.

    Raises:
        MalformedRecords: they are not what the header promises.
        BatchError: they can't be unpacked.
    """
    records = bytes(decompress(header.compression, batch[HEADER_BYTES:], RECORDS_BYTES_MAX))
    position = 0
    for _ in range(header.record_count):
        start = position
        length, position = decode_varint(records, position)
        end = position + length
        if length <= 0 or end > len(records):
            raise MalformedRecords(f"a record of {length} bytes where {len(records) - position} are left")
        time_delta_ms, position = decode_varint(records, position + 1, VARLONG_BYTES_MAX)
        offset_delta, position = decode_varint(records, position)
        key_bytes, position = decode_varint(records, position)
        key = None
        if key_bytes >= 0:
            key = records[position : position + key_bytes]
            position += key_bytes
        value_bytes, position = decode_varint(records, position)
        if position > end or not 0 <= offset_delta <= header.last_offset_delta:
            raise MalformedRecords(f"a record at byte {start} is longer than it says, or its offset not in the batch")
        yield StoredRecord(
            Offset(header.base_offset + offset_delta),
            header.base_timestamp_ms + time_delta_ms,
            key,
            value_bytes < 0,
            records[start:end],
        )
        position = end


def keep_records(batch: memoryview, header: BatchHeader, keep: Callable[[StoredRecord], bool]) -> bytes | memoryview:
    """The batch with those records that `keep` says: `batch` itself if all, a header alone if none.

    Raises:
        BatchError: its records can't be read.
    """
    kept = [record for record in stored_records(batch, header) if keep(record)]
    if len(kept) == header.record_count:
        return batch
    max_timestamp_ms = header.max_timestamp_ms
    if kept and not header.uses_log_append_time:
        max_timestamp_ms = max(record.timestamp_ms for record in kept)
    payload, compression = b"", Compression.NONE
    if kept:
        payload, compression = b"".join(record.encoded for record in kept), header.compression
        payload = _COMPRESS[compression](payload)
    fields = header._replace(
        batch_length=HEADER_BYTES - LENGTH_PREFIX_BYTES + len(payload),
        attributes=header.attributes & ~ATTRIBUTE_COMPRESSION | compression,
        max_timestamp_ms=max_timestamp_ms,
        record_count=len(kept),
    )
    crc = crc32c(payload, crc32c(HEADER.pack(*fields)[CRC_START:]))
    return HEADER.pack(*fields._replace(crc=crc)) + payload


def _gzip(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(payload) + compressor.flush()


_COMPRESS: dict[Compression, Callable[[bytes], bytes]] = {
    Compression.NONE: lambda payload: payload,
    Compression.GZIP: _gzip,
    Compression.SNAPPY: lambda payload: bytes(cramjam.snappy.compress_raw(payload)),
    Compression.LZ4: lambda payload: bytes(cramjam.lz4.compress(payload)),
    Compression.ZSTD: compress_zstd,
}
