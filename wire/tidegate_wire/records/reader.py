"""Reads the records of a batch. Every length in it was written by someone else, and is checked before it is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from tidegate_wire.identifiers import Offset
from tidegate_wire.records.body import Header
from tidegate_wire.records.compression import decompress
from tidegate_wire.records.errors import MalformedRecords, TornBatch
from tidegate_wire.records.header import HEADER_BYTES, RECORD_BYTES_MIN, BatchHeader, Buffer
from tidegate_wire.records.varint import VARLONG_BYTES_MAX, decode_varint

RECORDS_BYTES_MAX: Final = 64 * 1024 * 1024
"""What a batch may unpack to: 64 times the usual limit of a batch (1 MiB), which real telemetry does not reach, and
little enough that a reader of a few partitions survives a decompression bomb in each."""

_HEADER_BYTES_MIN: Final = 2
"""A header with an empty name and a null value."""


class Record(NamedTuple):
    """One record as a consumer sees it."""

    offset: Offset
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]


def read_records(batch: Buffer, *, records_bytes_max: int = RECORDS_BYTES_MAX) -> Iterator[Record]:
    """Yield the records of the batch that `batch` begins with; its CRC is not checked (`check_batch` does).

    Raises:
        BatchError: at once, if header or compression are wrong; a subclass says how.
        MalformedRecords: at once or while iterating, if the records are not what the header promises.
    """
    header = BatchHeader.parse(batch)
    if header.size_bytes > len(batch):
        raise TornBatch(f"a batch of {header.size_bytes} bytes has only {len(batch)} here")
    payload = memoryview(batch)[HEADER_BYTES : header.size_bytes]
    records = bytes(decompress(header.compression, payload, records_bytes_max))
    if header.record_count < 0 or header.record_count * RECORD_BYTES_MIN > len(records):
        raise MalformedRecords(f"{header.record_count} records do not fit in {len(records)} bytes")
    return _iter_records(header, records)


def _iter_records(header: BatchHeader, records: bytes) -> Iterator[Record]:
    base_offset, base_timestamp_ms = header.base_offset, header.base_timestamp_ms
    append_time_ms = header.max_timestamp_ms if header.uses_log_append_time else None
    position, size_bytes = 0, len(records)
    for _ in range(header.record_count):
        length, position = decode_varint(records, position)
        end = position + length
        if length < RECORD_BYTES_MIN - 1 or end > size_bytes:
            raise MalformedRecords(f"a record of {length} bytes where {size_bytes - position} are left")
        time_delta_ms, position = decode_varint(records, position + 1, VARLONG_BYTES_MAX)  # after the attributes
        offset_delta, position = decode_varint(records, position)
        if not 0 <= offset_delta <= header.last_offset_delta:
            raise MalformedRecords(f"an offset delta of {offset_delta} in a batch of {header.last_offset_delta + 1}")
        key, position = _read_nullable(records, position, end)
        value, position = _read_nullable(records, position, end)
        headers, position = _read_headers(records, position, end)
        if position != end:
            raise MalformedRecords(f"a record's fields end {end - position} bytes before the record does")
        yield Record(
            Offset(base_offset + offset_delta),
            base_timestamp_ms + time_delta_ms if append_time_ms is None else append_time_ms,
            key,
            value,
            headers,
        )
    if position != size_bytes:
        raise MalformedRecords(f"{size_bytes - position} bytes follow the last record")


def _read_nullable(records: bytes, position: int, end: int) -> tuple[bytes | None, int]:
    length, position = decode_varint(records, position)
    if length == -1:
        return None, position
    after = position + length
    if length < 0 or after > end:
        raise MalformedRecords(f"a field of {length} bytes where {end - position} are left in the record")
    return records[position:after], after


def _read_headers(records: bytes, position: int, end: int) -> tuple[tuple[Header, ...], int]:
    count, position = decode_varint(records, position)
    if count == 0:
        return (), position
    if count < 0 or count * _HEADER_BYTES_MIN > end - position:
        raise MalformedRecords(f"{count} headers where {end - position} bytes are left in the record")
    headers: list[Header] = []
    for _ in range(count):
        name, position = _read_nullable(records, position, end)
        if name is None:
            raise MalformedRecords("a header without a name")
        value, position = _read_nullable(records, position, end)
        headers.append((name, value))
    return tuple(headers), position
