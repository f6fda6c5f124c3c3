"""What the tests of record batches share: strategies, and batches written by hand so that they can lie."""

from __future__ import annotations

from crc32c import crc32c
from hypothesis import strategies as st

from tidegate_wire.records import Compression, Header, RecordBatchBuilder
from tidegate_wire.records.header import ATTRIBUTE_COMPRESSION, CRC_OFFSET, CRC_START, HEADER

# (timestamp_ms, key, value, headers); header names are UTF-8, because peers read them as text
Fields = tuple[int, bytes | None, bytes | None, list[Header]]

BASE_TIME_MS = 1_700_000_000_000

nullable_bytes = st.none() | st.binary(max_size=300)
headers = st.lists(st.tuples(st.text(max_size=20).map(lambda text: text.encode()), nullable_bytes), max_size=5)
timestamps_ms = st.integers(min_value=0, max_value=2**41) | st.integers(
    min_value=BASE_TIME_MS, max_value=BASE_TIME_MS + 20_000
)
record_fields = st.tuples(timestamps_ms, nullable_bytes, nullable_bytes, headers)
record_lists = st.lists(record_fields, min_size=1, max_size=40)


def build(records: list[Fields], compression: Compression = Compression.NONE) -> bytes:
    builder = RecordBatchBuilder(compression=compression)
    for record in records:
        builder.append(*record)
    return builder.build()


def wrap(payload: bytes, record_count: int, *, codec: int = 0, last_offset_delta: int | None = None) -> bytes:
    """A batch around `payload` with a valid CRC, whatever `payload` is."""
    delta = record_count - 1 if last_offset_delta is None else last_offset_delta
    fields = [0, 49 + len(payload), -1, 2, 0, codec & ATTRIBUTE_COMPRESSION, delta, 0, 0, -1, -1, -1, record_count]
    batch = bytearray(HEADER.pack(*fields) + payload)
    batch[CRC_OFFSET:CRC_START] = crc32c(batch[CRC_START:]).to_bytes(4)
    return bytes(batch)
