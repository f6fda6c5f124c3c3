"""What clients are told while the disk hangs, fails or is full. The node's own calls to the disk are made to."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Iterator
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
from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import ErrorCode


class Disk:
    """Stands between the node and `fdatasync`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._works = threading.Event()
        self._works.set()
        self._error: int | None = None
        real = os.fdatasync

        def fdatasync(descriptor: int) -> None:
            self._works.wait()
            if self._error is not None:
                raise OSError(self._error, os.strerror(self._error))
            real(descriptor)

        monkeypatch.setattr(os, "fdatasync", fdatasync)

    def hang(self) -> None:
        self._works.clear()

    def go_on(self) -> None:
        self._works.set()

    def fail(self) -> None:
        self._error = errno.EIO


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    faulty = Disk(monkeypatch)
    yield faulty
    faulty.go_on()


@pytest.fixture
async def core(disk: Disk, tmp_path: Path) -> AsyncIterator[Address]:
    async with running_core(tmp_path) as address:
        async with RawClient.connect(address) as client:
            await client.create_topic("t", 2)
            await client.ask(Api.FIND_COORDINATOR, 4, key_type=0, coordinator_keys=["g"])
        yield address
        disk.go_on()


async def test_nothing_is_acknowledged_or_readable_before_the_disk_has_it(core: Address, disk: Disk) -> None:
    async with RawClient.connect(core) as producer, RawClient.connect(core) as consumer:
        disk.hang()
        sent = [producer.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(b"%d" % number))) for number in range(3)]
        answer = asyncio.create_task(producer.receive(sent[0]))
        part = await consumer.fetch("t", 0, max_wait=seconds(0.3), min_bytes=1)
        assert (part.high_watermark, part.records) == (0, b"")
        assert not answer.done()
        disk.go_on()
        await answer
        for one in sent[1:]:
            await producer.receive(one)
        assert values_of((await consumer.fetch("t", 0)).records) == [b"0", b"1", b"2"]


async def test_a_produce_whose_time_is_over_is_told_so_and_may_be_stored(core: Address, disk: Disk) -> None:
    async with RawClient.connect(core) as client:
        disk.hang()
        fields = produce_fields("t", batch_of(b"late")) | {"timeout": seconds(0.1)}
        response = await client.ask(Api.PRODUCE, 9, **fields)
        part = response.responses[0].partition_responses[0]
        assert (part.error_code, part.base_offset) == (ErrorCode.request_timed_out, -1)
        disk.go_on()
        assert (await client.produce("t", batch_of(b"next"))).base_offset == 1


async def test_other_requests_are_answered_while_the_disk_hangs(core: Address, disk: Disk) -> None:
    async with RawClient.connect(core) as client, RawClient.connect(core) as other:
        disk.hang()
        sent = client.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(b"a")))
        assert (await other.ask(Api.METADATA, 12, topics=[{"name": "t"}])).topics[0].error_code is ErrorCode.none
        assert (await other.fetch("t", 0)).error_code is ErrorCode.none
        disk.go_on()
        await client.receive(sent)


async def test_a_disk_that_fails_is_told_as_a_storage_error_and_nothing_is_acknowledged(
    core: Address, disk: Disk
) -> None:
    async with RawClient.connect(core) as client:
        assert (await client.produce("t", batch_of(b"safe"))).error_code is ErrorCode.none
        disk.fail()
        for _ in range(2):
            assert (await client.produce("t", batch_of(b"lost"))).error_code is ErrorCode.kafka_storage_error
        assert values_of((await client.fetch("t", 0)).records) == [b"safe"]


async def test_a_consumer_at_the_end_of_a_failed_partition_waits_its_time(core: Address, disk: Disk) -> None:
    async with RawClient.connect(core) as client:
        await client.produce("t", batch_of(b"safe"))
        sent = client.send(Api.FETCH, 12, **fetch_fields("t", 1) | {"max_wait": seconds(0.5), "min_bytes": 1})
        async with RawClient.connect(core) as producer:
            disk.fail()
            await producer.produce("t", batch_of(b"lost"))
        part = (await client.receive(sent)).responses[0].partitions[0]
        assert (part.error_code, part.high_watermark, part.records) == (ErrorCode.none, 1, b"")


async def test_commits_joins_and_new_topics_are_refused_while_the_disk_fails(core: Address, disk: Disk) -> None:
    async with RawClient.connect(core) as client:
        disk.fail()
        parts = [{"partition_index": 0, "committed_offset": 1, "committed_metadata": ""}]
        committed = await client.ask(
            Api.OFFSET_COMMIT,
            8,
            group_id="g",
            generation_id_or_member_epoch=-1,
            member_id="",
            topics=[{"name": "t", "partitions": parts}],
        )
        assert committed.topics[0].partitions[0].error_code is ErrorCode.coordinator_not_available
        fetched = await client.ask(Api.OFFSET_FETCH, 8, groups=[{"group_id": "g", "topics": None}])
        assert fetched.groups[0].topics == ()
        joined = await client.ask(
            Api.JOIN_GROUP,
            3,
            group_id="h",
            session_timeout=seconds(10),
            rebalance_timeout=seconds(10),
            protocol_type="consumer",
            protocols=[{"name": "range", "metadata": b""}],
        )
        assert joined.error_code is ErrorCode.coordinator_not_available
        response = await client.ask(Api.METADATA, 12, topics=[{"name": "new"}])
        assert response.topics[0].error_code is ErrorCode.kafka_storage_error
        assert (await client.ask(Api.INIT_PRODUCER_ID, 4)).error_code is ErrorCode.kafka_storage_error
        assert (await client.ask(Api.METADATA, 12, topics=[{"name": "t"}])).topics[0].error_code is ErrorCode.none
