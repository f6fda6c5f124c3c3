"""Writes a record batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crc32c import crc32c

from tidegate_wire.identifiers import BatchSequence, ProducerEpoch, ProducerId
from tidegate_wire.records.body import Header, encode_headers, encode_record_body
from tidegate_wire.records.compression import ZSTD_LEVEL_DEFAULT, compress_zstd
from tidegate_wire.records.header import (
    ATTRIBUTE_CONTROL,
    ATTRIBUTE_TRANSACTIONAL,
    CRC_START,
    HEADER,
    HEADER_BYTES,
    LENGTH_PREFIX_BYTES,
    MAGIC,
    Compression,
)
from tidegate_wire.records.varint import SMALL_VARINTS, SMALL_VARINTS_COUNT, encode_varint

_ATTRIBUTES: Final = b"\0"
"""A record's own attributes: none are defined."""


class RecordBatchBuilder:
    """Takes records one after the other, then gives the batch; it can't be used again after `build`.

    With compression ZSTD the records are stored uncompressed where zstd can't make them smaller. The first record's
    time is the batch's base timestamp; later ones may be earlier.
    """

    __slots__ = (
        "_attributes",
        "_base_sequence",
        "_base_timestamp_ms",
        "_compression",
        "_max_timestamp_ms",
        "_parts",
        "_producer_epoch",
        "_producer_id",
        "_zstd_level",
        "record_count",
        "size_bytes",
    )

    def __init__(
        self,
        producer_id: ProducerId = ProducerId(-1),  # noqa: B008  # a NewType is a number
        producer_epoch: ProducerEpoch = ProducerEpoch(-1),  # noqa: B008  # a NewType is a number
        base_sequence: BatchSequence = BatchSequence(-1),  # noqa: B008  # a NewType is a number
        compression: Compression = Compression.NONE,
        *,
        zstd_level: int = ZSTD_LEVEL_DEFAULT,
        is_transactional: bool = False,
        is_control: bool = False,
    ) -> None:
        assert compression in {Compression.NONE, Compression.ZSTD}, compression
        self._producer_id = producer_id
        self._producer_epoch = producer_epoch
        self._base_sequence = base_sequence
        self._compression = compression
        self._zstd_level = zstd_level
        self._attributes = (ATTRIBUTE_TRANSACTIONAL if is_transactional else 0) | (
            ATTRIBUTE_CONTROL if is_control else 0
        )
        self._parts: list[bytes] = []
        self._base_timestamp_ms = 0
        self._max_timestamp_ms = 0
        self.record_count = 0
        self.size_bytes = HEADER_BYTES
        """What the batch takes uncompressed; compressed it is never longer."""

    def append(self, timestamp_ms: int, key: bytes | None, value: bytes | None, headers: Sequence[Header] = ()) -> None:
        """Add a record; `timestamp_ms` is Unix time."""
        self.append_encoded(timestamp_ms, encode_record_body(key, value, encode_headers(headers)))

    def append_encoded(self, timestamp_ms: int, body: bytes) -> None:
        """Add a record whose body `encode_record_body` or a `RecordTemplate` made."""
        count = self.record_count
        if count == 0:
            self._base_timestamp_ms = self._max_timestamp_ms = timestamp_ms
        elif timestamp_ms > self._max_timestamp_ms:
            self._max_timestamp_ms = timestamp_ms
        delta_ms = timestamp_ms - self._base_timestamp_ms
        time = SMALL_VARINTS[delta_ms] if 0 <= delta_ms < SMALL_VARINTS_COUNT else encode_varint(delta_ms)
        offset = SMALL_VARINTS[count] if count < SMALL_VARINTS_COUNT else encode_varint(count)
        size = 1 + len(time) + len(offset) + len(body)
        length = SMALL_VARINTS[size] if size < SMALL_VARINTS_COUNT else encode_varint(size)
        self._parts += (length, _ATTRIBUTES, time, offset, body)
        self.record_count = count + 1
        self.size_bytes += size + len(length)

    def build(self) -> bytes:
        """The batch, base offset 0 and no leader epoch: the log that takes it stamps both."""
        assert self.record_count > 0, "a batch has at least one record"
        payload = b"".join(self._parts)
        compression = Compression.NONE
        if self._compression is Compression.ZSTD:
            compressed = compress_zstd(payload, self._zstd_level)
            if len(compressed) < len(payload):
                payload, compression = compressed, Compression.ZSTD
        header = self._header(len(payload), compression, 0)
        crc = crc32c(payload, crc32c(header[CRC_START:]))
        return self._header(len(payload), compression, crc) + payload

    def _header(self, payload_bytes: int, compression: Compression, crc: int) -> bytes:
        return HEADER.pack(
            0,
            HEADER_BYTES - LENGTH_PREFIX_BYTES + payload_bytes,
            -1,
            MAGIC,
            crc,
            self._attributes | compression,
            self.record_count - 1,
            self._base_timestamp_ms,
            self._max_timestamp_ms,
            self._producer_id,
            self._producer_epoch,
            self._base_sequence,
            self.record_count,
        )
