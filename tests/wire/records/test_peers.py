"""Batches exchanged with kafka-python and aiokafka, which read and build them by the same specification."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch as AiokafkaBatch
from aiokafka.record.default_records import DefaultRecordBatchBuilder as AiokafkaBuilder
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch as KafkaPythonBatch
from kafka.record.default_records import DefaultRecordBatchBuilder as KafkaPythonBuilder

from tests.wire.records.batches import BASE_TIME_MS, Fields, build, record_lists
from tidegate_wire.records import Compression, check_batch, read_records

READERS = {"kafka-python": KafkaPythonBatch, "aiokafka": AiokafkaBatch}
BUILDERS = {"kafka-python": KafkaPythonBuilder, "aiokafka": AiokafkaBuilder}

# kafka-python's snappy needs python-snappy, which no longer installs everywhere; aiokafka covers the codec.
WRITTEN_BY_PEERS = [
    (name, codec) for name in BUILDERS for codec in Compression if (name, codec) != ("kafka-python", Compression.SNAPPY)
]


def _seen_by_peer(peer: str, batch: bytes) -> list[Fields]:
    reader: Any = READERS[peer](bytearray(batch))
    assert reader.validate_crc()
    return [
        (r.timestamp, r.key, r.value, [(name.encode(), None if v is None else bytes(v)) for name, v in r.headers])
        for r in reader
    ]


@pytest.mark.parametrize("peer", READERS)
@pytest.mark.parametrize("compression", [Compression.NONE, Compression.ZSTD])
@given(records=record_lists)
def test_a_peer_reads_what_we_build(peer: str, compression: Compression, records: list[Fields]) -> None:
    assert _seen_by_peer(peer, build(records, compression)) == records


@pytest.mark.parametrize(("peer", "codec"), WRITTEN_BY_PEERS)
@given(records=record_lists, repeat=st.integers(min_value=1, max_value=40))
def test_we_read_what_a_peer_builds(peer: str, codec: Compression, records: list[Fields], repeat: int) -> None:
    records = records * repeat
    builder: Any = BUILDERS[peer](
        magic=2,
        compression_type=codec,
        is_transactional=0,
        producer_id=5,
        producer_epoch=1,
        base_sequence=2**31 - 3,
        batch_size=10**9,
    )
    for offset, (timestamp_ms, key, value, headers) in enumerate(records):
        text_headers = [(name.decode(), text) for name, text in headers]
        assert builder.append(offset, timestamp_ms, key, value, text_headers) is not None
    batch = bytes(builder.build())
    header = check_batch(batch)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (5, 1, 2**31 - 3)
    assert [(r.timestamp_ms, r.key, r.value, list(r.headers)) for r in read_records(batch)] == records


def test_a_peer_agrees_on_the_last_sequence_after_the_wrap() -> None:
    builder: Any = KafkaPythonBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=5,
        producer_epoch=1,
        base_sequence=2**31 - 2,
        batch_size=10**6,
    )
    for offset in range(5):
        builder.append(offset, BASE_TIME_MS, None, b"v", [])
    batch = bytes(builder.build())
    peer: Any = KafkaPythonBatch(batch)
    assert check_batch(batch).last_sequence == peer.last_sequence == 2
