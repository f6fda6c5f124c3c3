"""Kafka record batches (magic 2): written once, at the edge, and moved unchanged by everyone after it."""

from tidegate_wire.records.body import NO_HEADERS, Header, RecordTemplate, encode_headers, encode_record_body
from tidegate_wire.records.builder import RecordBatchBuilder
from tidegate_wire.records.compression import ZSTD_LEVEL_DEFAULT
from tidegate_wire.records.errors import (
    BatchError,
    CodecMissing,
    CorruptBatch,
    MalformedRecords,
    RecordsTooLarge,
    TornBatch,
    UnsupportedMagic,
)
from tidegate_wire.records.header import (
    HEADER_BYTES,
    SEQUENCE_MAX,
    BatchHeader,
    Compression,
    check_batch,
    iter_batches,
    stamp,
    stamp_log_append_time,
)
from tidegate_wire.records.reader import RECORDS_BYTES_MAX, Record, read_records

__all__ = [
    "HEADER_BYTES",
    "NO_HEADERS",
    "RECORDS_BYTES_MAX",
    "SEQUENCE_MAX",
    "ZSTD_LEVEL_DEFAULT",
    "BatchError",
    "BatchHeader",
    "CodecMissing",
    "Compression",
    "CorruptBatch",
    "Header",
    "MalformedRecords",
    "Record",
    "RecordBatchBuilder",
    "RecordTemplate",
    "RecordsTooLarge",
    "TornBatch",
    "UnsupportedMagic",
    "check_batch",
    "encode_headers",
    "encode_record_body",
    "iter_batches",
    "read_records",
    "stamp",
    "stamp_log_append_time",
]
