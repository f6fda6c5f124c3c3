"""The table of producer ids, and its topic in a real core."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bridge.conftest import Stage
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_bridge.producers import Producers, ProducerTable
from tidegate_wire.identifiers import LeaderEpoch, Offset
from tidegate_wire.records import BatchError, RecordBatchBuilder, stamp


def _batch(base_offset: int, entries: list[tuple[bytes | None, bytes | None]]) -> bytes:
    builder = RecordBatchBuilder()
    for key, value in entries:
        builder.append(0, key, value)
    batch = bytearray(builder.build())
    stamp(batch, Offset(base_offset), LeaderEpoch(0))
    return bytes(batch)


def _entry(producer_id: int, edge: str) -> tuple[bytes, bytes]:
    return str(producer_id).encode(), json.dumps({"edge": edge, "issued_ms": 1}).encode()


def test_the_table_learns_from_batches_and_says_where_to_read_on() -> None:
    table = ProducerTable()
    records = _batch(10, [_entry(1, "edge-1"), _entry(2, "edge-2")]) + _batch(20, [_entry(3, "edge-1")])
    assert table.learn_batches(records) == 21
    assert [table.owner(producer_id) for producer_id in (1, 2, 3, 4)] == ["edge-1", "edge-2", "edge-1", None]
    assert table.learn_batches(records[:-1]) == 12, "a batch that is cut is read the next time"
    assert table.learn_batches(b"") is None


def test_a_producer_id_never_changes_hands() -> None:
    table = ProducerTable()
    table.learn(1, "edge-1")
    table.learn(1, "edge-2")
    assert table.owner(1) == "edge-1"


def test_the_oldest_producer_ids_go_when_the_table_is_full() -> None:
    table = ProducerTable(producers_max=3)
    for producer_id in range(5):
        table.learn(producer_id, "edge")
    assert [table.owner(producer_id) for producer_id in range(5)] == [None, None, "edge", "edge", "edge"]


@pytest.mark.parametrize(
    "entry",
    [
        (None, b"{}"),
        (b"1", None),
        (b"not a number", b'{"edge": "edge-1"}'),
        (b"1", b"not JSON"),
        (b"1", b"[]"),
        (b"1", b'{"edge": 7}'),
        (b"1", b"{}"),
        (b"\xff", b"\xff"),
    ],
)
def test_records_that_are_none_of_ours_are_passed_over(entry: tuple[bytes | None, bytes | None]) -> None:
    table = ProducerTable()
    assert table.learn_batches(_batch(0, [entry, _entry(2, "edge-2")])) == 2
    assert (table.owner(1), table.owner(2)) == (None, "edge-2")


@given(st.binary(max_size=200))
def test_hostile_bytes_only_ever_raise_a_batch_error(records: bytes) -> None:
    table = ProducerTable()
    try:
        table.learn_batches(records)
    except BatchError:
        pass
    finally:
        assert len(table) == 0


async def test_thousands_of_producer_ids_are_read_to_the_end_by_a_bridge_that_starts_later(stage: Stage) -> None:
    core = await stage.core()
    client = KafkaClient([core], request_timeout_ms=5_000, chance=Random(1).random)
    writer, reader = Producers(client), Producers(client)
    try:
        given_out = [(await writer.give_out(f"edge-{number % 7}"))[0] for number in range(30)]
        bulk = 20_000
        for start in range(1_000_000, 1_000_000 + bulk, 1_000):
            builder = RecordBatchBuilder()
            for producer_id in range(start, start + 1_000):
                key, value = _entry(producer_id, f"edge-{producer_id % 7}")
                builder.append(0, key, value)
            await client.produce("tidegate.producers", 0, builder.build())
        await reader.read_to_end()
        assert [reader.owner(producer_id) for producer_id in given_out] == [f"edge-{n % 7}" for n in range(30)]
        assert reader.owner(1_000_000 + bulk - 1) == f"edge-{(1_000_000 + bulk - 1) % 7}"
        late = (await writer.give_out("edge-late"))[0]
        assert reader.owner(late) is None
        await reader.read_to_end()
        assert reader.owner(late) == "edge-late"
    finally:
        await writer.close()
        await reader.close()
        await client.close()
