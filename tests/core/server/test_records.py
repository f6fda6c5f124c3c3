"""Produce, Fetch and positions, asked over a socket in the versions that clients use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.core.server.harness import (
    RawClient,
    batch_of,
    fetch_fields,
    produce_fields,
    running_core,
    seconds,
    values_of,
)
from tidegate_core.protocol.versions import Api
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import RecordBatchBuilder

LATEST, EARLIEST, MAX_TIMESTAMP = -1, -2, -3


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RawClient]:
    async with running_core(tmp_path) as address, RawClient.connect(address) as connected:
        await connected.create_topic("t", 2)
        yield connected


@pytest.mark.parametrize("version", range(3, 12))
async def test_records_produced_in_any_version_are_fetched(client: RawClient, version: int) -> None:
    first = await client.produce("t", batch_of(b"a", b"b"), version=version)
    second = await client.produce("t", batch_of(b"c"), version=version)
    assert (first.error_code, first.base_offset, second.base_offset) == (ErrorCode.none, 0, 2)
    part = await client.fetch("t", 0)
    assert values_of(part.records) == [b"a", b"b", b"c"]
    assert part.high_watermark == 3


@pytest.mark.parametrize("version", range(4, 13))
async def test_records_are_fetched_in_any_version(client: RawClient, version: int) -> None:
    await client.produce("t", batch_of(b"a"))
    part = await client.fetch("t", 0, version=version)
    assert (part.error_code, part.high_watermark, values_of(part.records)) == (ErrorCode.none, 1, [b"a"])


@pytest.mark.parametrize("acks", [1, -1])
async def test_an_answered_produce_is_committed(client: RawClient, acks: int) -> None:
    answer = await client.produce("t", batch_of(b"a"), acks=acks)
    assert answer.error_code is ErrorCode.none
    assert (await client.fetch("t", 0)).high_watermark == 1


async def test_a_produce_with_acks_0_gets_no_answer_and_its_records_arrive(client: RawClient) -> None:
    client.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(b"a"), acks=0))
    sent = client.send(Api.FETCH, 12, **fetch_fields("t", 0) | {"max_wait": seconds(10), "min_bytes": 1})
    response = await client.receive(sent)
    assert values_of(response.responses[0].partitions[0].records) == [b"a"]


async def test_a_refused_produce_with_acks_0_closes_the_connection(client: RawClient) -> None:
    client.send(Api.PRODUCE, 9, **produce_fields("nowhere", batch_of(b"a"), acks=0))
    assert await client.closed_by_peer()


async def test_pipelined_produce_requests_are_answered_in_order(client: RawClient) -> None:
    sent = [
        client.send(Api.PRODUCE, 3 + number % 9, **produce_fields("t", batch_of(b"%d" % number)))
        for number in range(300)
    ]
    answers = [(await client.receive(one)).responses[0].partition_responses[0] for one in sent]
    assert [answer.base_offset for answer in answers] == list(range(300))


async def test_answers_come_in_order_when_produce_requests_follow_others(client: RawClient) -> None:
    sent = []
    for number in range(30):
        sent.append(client.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(b"%d" % number))))
        if number % 3 == 0:
            sent.append(client.send(Api.LIST_OFFSETS, 7, topics=[_at("t", LATEST)]))
        if number % 7 == 0:
            sent.append(client.send(Api.API_VERSIONS, 3))
    offsets = []
    for one in sent:
        response = await client.receive(one)
        if one[0] is Api.PRODUCE:
            offsets.append(response.responses[0].partition_responses[0].base_offset)
    assert offsets == list(range(30))


async def test_one_request_may_write_to_many_partitions_and_some_may_refuse(client: RawClient) -> None:
    parts = [{"index": index, "records": batch_of(b"x")} for index in (0, 1, 2)]
    topics = [{"name": "t", "partition_data": parts}]
    response = await client.ask(Api.PRODUCE, 9, acks=-1, timeout=seconds(30), topic_data=topics)
    codes = [part.error_code for part in response.responses[0].partition_responses]
    assert codes == [ErrorCode.none, ErrorCode.none, ErrorCode.unknown_topic_or_partition]


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_produce_requests_of_message_sets_are_refused_for_each_partition(tmp_path: Path, version: int) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        header = b"\0\0" + version.to_bytes(2, "big") + b"\0\0\0\x07" + b"\xff\xff"
        body = b"\0\1" + b"\0\0\0\x64" + b"\0\0\0\1" + b"\0\1t" + b"\0\0\0\1" + b"\0\0\0\0" + b"\0\0\0\0"
        frame = header + body
        client.writer.write(len(frame).to_bytes(4, "big") + frame)
        answer = await client.receive_frame()
        assert answer[:4] == b"\0\0\0\x07"
        assert int.from_bytes(answer[19:21], "big") == ErrorCode.unsupported_for_message_format


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda batch: batch[:-1] + bytes([batch[-1] ^ 1]), ErrorCode.corrupt_message),
        (lambda batch: batch[: len(batch) // 2], ErrorCode.corrupt_message),
        (lambda _: b"", ErrorCode.corrupt_message),
        (lambda batch: batch + batch, ErrorCode.invalid_record),
        (lambda _: batch_of(b"x" * 2_000_000), ErrorCode.message_too_large),
    ],
    ids=["one bit", "half", "nothing", "two batches", "too large"],
)
async def test_a_batch_that_is_not_right_is_refused_and_nothing_is_written(
    client: RawClient, change: object, error: ErrorCode
) -> None:
    assert callable(change)
    answer = await client.produce("t", change(batch_of(b"abc")))
    assert answer.error_code is error
    assert answer.error_message
    assert (await client.fetch("t", 0)).high_watermark == 0


async def test_transactions_and_unknown_acks_are_refused(client: RawClient) -> None:
    response = await client.ask(Api.PRODUCE, 9, transactional_id="tx", **produce_fields("t", batch_of(b"a")))
    assert response.responses[0].partition_responses[0].error_code is ErrorCode.transactional_id_authorization_failed
    answer = await client.produce("t", batch_of(b"a"), acks=2)
    assert answer.error_code is ErrorCode.invalid_required_acks


async def test_clients_do_not_write_to_internal_topics(client: RawClient) -> None:
    await client.ask(Api.FIND_COORDINATOR, 4, key_type=0, coordinator_keys=["g"])
    for topic in ("__consumer_offsets", "__cluster_metadata"):
        answer = await client.produce(topic, batch_of(b"a"))
        assert answer.error_code is ErrorCode.invalid_topic_exception


async def test_an_idempotent_batch_sent_twice_is_stored_once(client: RawClient) -> None:
    producer_id = (await client.ask(Api.INIT_PRODUCER_ID, 4)).producer_id
    builder = RecordBatchBuilder(producer_id=producer_id, producer_epoch=0, base_sequence=0)  # type: ignore[arg-type]
    builder.append(0, None, b"once")
    batch = builder.build()
    first, again = await client.produce("t", batch), await client.produce("t", batch)
    assert (first.error_code, again.error_code) == (ErrorCode.none, ErrorCode.none)
    assert first.base_offset == again.base_offset == 0
    assert (await client.fetch("t", 0)).high_watermark == 1


async def test_each_producer_id_is_given_out_once_also_over_restarts(tmp_path: Path) -> None:
    given: list[int] = []
    for _ in range(2):
        async with running_core(tmp_path) as address, RawClient.connect(address) as client:
            for _ in range(1500):
                response = await client.ask(Api.INIT_PRODUCER_ID, 4, producer_id=0, producer_epoch=3)
                assert (response.error_code, response.producer_epoch) == (ErrorCode.none, 0)
                given.append(response.producer_id)
    assert len(set(given)) == 3000


async def test_a_transactional_id_gets_no_producer_id(client: RawClient) -> None:
    response = await client.ask(Api.INIT_PRODUCER_ID, 4, transactional_id="tx")
    assert response.error_code is ErrorCode.transactional_id_authorization_failed
    response = await client.ask(Api.FIND_COORDINATOR, 4, key_type=1, coordinator_keys=["tx"])
    assert response.coordinators[0].error_code is ErrorCode.transactional_id_authorization_failed


# Long poll.


async def test_a_fetch_waits_for_records_and_is_answered_when_they_are_committed(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path) as address,
        RawClient.connect(address) as consumer,
        RawClient.connect(address) as producer,
    ):
        await producer.create_topic("t")
        sent = consumer.send(Api.FETCH, 12, **fetch_fields("t", 0) | {"max_wait": seconds(60), "min_bytes": 1})
        await consumer.writer.drain()
        await producer.produce("t", batch_of(b"a"))
        response = await consumer.receive(sent)
        assert values_of(response.responses[0].partitions[0].records) == [b"a"]


async def test_a_fetch_waits_until_there_are_enough_bytes(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path) as address,
        RawClient.connect(address) as consumer,
        RawClient.connect(address) as producer,
    ):
        await producer.create_topic("t")
        sent = consumer.send(Api.FETCH, 12, **fetch_fields("t", 0) | {"max_wait": seconds(60), "min_bytes": 3000})
        await consumer.writer.drain()
        for number in range(3):
            await producer.produce("t", batch_of(b"%d" % number * 1000))
        response = await consumer.receive(sent)
        assert len(values_of(response.responses[0].partitions[0].records)) == 3


async def test_a_fetch_that_finds_too_little_is_answered_after_its_time(client: RawClient) -> None:
    await client.produce("t", batch_of(b"a"))
    part = await client.fetch("t", 0, max_wait=seconds(0.05), min_bytes=100_000)
    assert values_of(part.records) == [b"a"]
    part = await client.fetch("t", 1, max_wait=seconds(0.05), min_bytes=1)
    assert (part.error_code, part.records) == (ErrorCode.none, b"")


async def test_a_waiting_fetch_is_answered_when_its_topic_is_deleted(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path) as address,
        RawClient.connect(address) as consumer,
        RawClient.connect(address) as admin,
    ):
        await admin.create_topic("t")
        sent = consumer.send(Api.FETCH, 12, **fetch_fields("t", 0) | {"max_wait": seconds(60), "min_bytes": 1})
        await consumer.writer.drain()
        await admin.ask(Api.DELETE_TOPICS, 6, topics=[{"name": "t"}])
        response = await consumer.receive(sent)
        assert response.responses[0].partitions[0].error_code is ErrorCode.unknown_topic_or_partition


async def test_a_fetch_is_answered_at_once_where_a_partition_is_wrong(client: RawClient) -> None:
    for offset, error in ((-1, ErrorCode.offset_out_of_range), (99, ErrorCode.offset_out_of_range)):
        part = await client.fetch("t", offset, max_wait=seconds(60), min_bytes=1)
        assert part.error_code is error
    part = await client.fetch("nowhere", 0, max_wait=seconds(60), min_bytes=1)
    assert part.error_code is ErrorCode.unknown_topic_or_partition


async def test_a_fetch_session_is_declined_and_a_made_up_one_refused(client: RawClient) -> None:
    response = await client.ask(Api.FETCH, 12, session_epoch=0, **fetch_fields("t", 0))
    assert (response.error_code, response.session_id) == (ErrorCode.none, 0)
    response = await client.ask(Api.FETCH, 12, session_id=5, session_epoch=1, topics=[])
    assert response.error_code is ErrorCode.fetch_session_id_not_found


async def test_a_fetch_gives_at_least_one_batch_and_stops_at_the_clients_limit(client: RawClient) -> None:
    for index in (0, 1):
        for _ in range(3):
            await client.produce("t", batch_of(b"x" * 10_000), partition=index)
    parts = [{"partition": index, "fetch_offset": 0, "partition_max_bytes": 15_000} for index in (0, 1)]
    topics = [{"topic": "t", "partitions": parts}]
    response = await client.ask(Api.FETCH, 12, topics=topics, max_bytes=2**20, min_bytes=1)
    assert [len(values_of(part.records)) for part in response.responses[0].partitions] == [1, 1]
    response = await client.ask(Api.FETCH, 12, topics=topics, max_bytes=100, min_bytes=1)
    assert [len(values_of(part.records)) for part in response.responses[0].partitions] == [1, 0]
    assert [part.high_watermark for part in response.responses[0].partitions] == [3, 3]


async def test_a_fetch_is_no_larger_than_the_node_allows(tmp_path: Path) -> None:
    async with running_core(tmp_path, fetch_bytes_max=25_000) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
        for _ in range(5):
            await client.produce("t", batch_of(b"x" * 10_000))
        assert len(values_of((await client.fetch("t", 0)).records)) == 2


# Positions.


def _at(topic: str, timestamp_ms: int, **part: int) -> dict[str, object]:
    return {"name": topic, "partitions": [{"partition_index": 0, "timestamp": timestamp_ms} | part]}


async def _list_offset(client: RawClient, timestamp_ms: int, version: int = 7, **part: int) -> tuple[int, int, int]:
    response = await client.ask(Api.LIST_OFFSETS, version, replica_id=-1, topics=[_at("t", timestamp_ms, **part)])
    found = response.topics[0].partitions[0]
    return found.error_code, found.offset, found.timestamp


async def test_offsets_are_listed_by_end_and_by_time(client: RawClient) -> None:
    await client.produce("t", batch_of(b"a", b"b", timestamp_ms=1000))
    await client.produce("t", batch_of(b"c", timestamp_ms=5000))
    await client.produce("t", batch_of(b"d", timestamp_ms=3000))
    for version in range(1, 8):
        assert await _list_offset(client, EARLIEST, version) == (0, 0, -1)
        assert await _list_offset(client, LATEST, version) == (0, 4, -1)
        assert await _list_offset(client, 1001, version) == (0, 1, 1001)
        assert await _list_offset(client, 1002, version) == (0, 2, 5000)
        assert await _list_offset(client, 5001, version) == (0, -1, -1)
    assert await _list_offset(client, MAX_TIMESTAMP) == (0, 2, 5000)
    assert (await _list_offset(client, -9))[0] == ErrorCode.unsupported_version


async def test_a_wrong_leader_epoch_is_refused_everywhere(client: RawClient) -> None:
    await client.produce("t", batch_of(b"a"))
    assert (await _list_offset(client, LATEST, current_leader_epoch=7))[0] == ErrorCode.unknown_leader_epoch
    response = await client.ask(Api.FETCH, 12, **fetch_fields("t", 0, current_leader_epoch=7))
    assert response.responses[0].partitions[0].error_code is ErrorCode.unknown_leader_epoch
    asked = {"partition": 0, "current_leader_epoch": 7, "leader_epoch": 0}
    topics = [{"topic": "t", "partitions": [asked]}]
    response = await client.ask(Api.OFFSET_FOR_LEADER_EPOCH, 2, topics=topics)
    assert response.topics[0].partitions[0].error_code is ErrorCode.unknown_leader_epoch


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_the_end_of_the_current_epoch_is_the_logs_end(client: RawClient, version: int) -> None:
    await client.produce("t", batch_of(b"a", b"b"))
    epoch = (await client.ask(Api.METADATA, 12, topics=[{"name": "t"}])).topics[0].partitions[0].leader_epoch
    asked = {"partition": 0, "leader_epoch": epoch}
    topics = [{"topic": "t", "partitions": [asked]}]
    response = await client.ask(Api.OFFSET_FOR_LEADER_EPOCH, version, topics=topics)
    found = response.topics[0].partitions[0]
    assert (found.error_code, found.leader_epoch, found.end_offset) == (ErrorCode.none, epoch, 2)


async def test_records_are_deleted_up_to_an_offset(client: RawClient) -> None:
    for value in (b"a", b"b", b"c"):
        await client.produce("t", batch_of(value))

    async def delete(offset: int) -> tuple[int, int]:
        parts = [{"partition_index": 0, "offset": offset}]
        response = await client.ask(Api.DELETE_RECORDS, 2, topics=[{"name": "t", "partitions": parts}])
        part = response.topics[0].partitions[0]
        return part.error_code, part.low_watermark

    assert await delete(2) == (0, 2)
    assert (await client.fetch("t", 1)).error_code is ErrorCode.offset_out_of_range
    assert await _list_offset(client, EARLIEST) == (0, 2, -1)
    assert await delete(99) == (ErrorCode.offset_out_of_range, -1)
    assert await delete(-1) == (0, 3)


async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t", 3, retention_ms="-1")
        for index in range(3):
            await client.produce("t", batch_of(b"%d" % index), partition=index)
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        for index in range(3):
            assert values_of((await client.fetch("t", 0, partition=index)).records) == [b"%d" % index]
        assert (await client.produce("t", batch_of(b"more"))).base_offset == 1


async def test_produce_and_fetch_at_once_by_many_clients(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address:
        async with RawClient.connect(address) as admin:
            await admin.create_topic("t", 4)

        async def produce(partition: int) -> None:
            async with RawClient.connect(address) as client:
                for number in range(50):
                    answer = await client.produce("t", batch_of(b"%d" % number), partition=partition)
                    assert answer.base_offset == number

        async def consume(partition: int) -> None:
            async with RawClient.connect(address) as client:
                seen: list[bytes | None] = []
                while len(seen) < 50:
                    part = await client.fetch("t", len(seen), partition=partition, max_wait=seconds(5), min_bytes=1)
                    seen += values_of(part.records)
                assert seen == [b"%d" % number for number in range(50)]

        await asyncio.gather(*(work(index) for index in range(4) for work in (produce, consume, consume)))


async def test_offsets_are_not_told_before_a_leader_knows_what_is_committed(
    client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a leader does not in the first moments of its epoch; clients ask again."""
    await client.produce("t", batch_of(b"a"))
    with monkeypatch.context() as patched:
        patched.setattr(ReplicaManager, "is_settled", lambda _replicas, _partition: False)
        response = await client.ask(Api.LIST_OFFSETS, 7, topics=[_at("t", LATEST)])
        assert response.topics[0].partitions[0].error_code is ErrorCode.offset_not_available
    response = await client.ask(Api.LIST_OFFSETS, 7, topics=[_at("t", LATEST)])
    assert response.topics[0].partitions[0].offset == 1
