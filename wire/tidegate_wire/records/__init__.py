"""Kafka record batches (magic 2): written once, at the edge, and moved unchanged by everyone after it."""

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

__all__ = [
    "HEADER_BYTES",
    "SEQUENCE_MAX",
    "BatchError",
    "BatchHeader",
    "CodecMissing",
    "Compression",
    "CorruptBatch",
    "MalformedRecords",
    "RecordsTooLarge",
    "TornBatch",
    "UnsupportedMagic",
    "check_batch",
    "iter_batches",
    "stamp",
    "stamp_log_append_time",
]
