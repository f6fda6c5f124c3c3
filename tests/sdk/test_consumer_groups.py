"""Groups and commits, with a real core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from tests.sdk.streams import Core, assert_in_order, numbers, until
from tidegate import Consumer, ConsumerLimits, Event
from tidegate.errors import CommitRefusedError

TIMEOUT_S = 40


async def take(consumer: Consumer, count: int) -> list[Event]:
    async with asyncio.timeout(TIMEOUT_S):
        return [await anext(consumer) for _ in range(count)]


def member(core: Core, stream: str, **options: Any) -> Consumer:
    return Consumer(stream, core=core.address, group=f"group-of-{stream}", **options)


@pytest.fixture
def stream(core: Core) -> str:
    """One partition with the numbers 1 to 20."""
    name = core.new_stream(partitions=1)
    core.produce(name, 20, partitions=1)
    return name


async def test_a_group_goes_on_where_it_committed(core: Core, stream: str) -> None:
    async with member(core, stream) as consumer:
        assert numbers(await take(consumer, 7)) == [1, 2, 3, 4, 5, 6, 7]
        await consumer.commit()
    async with member(core, stream) as consumer:
        assert numbers(await take(consumer, 13)) == list(range(8, 21))


async def test_what_was_fetched_but_not_delivered_is_not_committed(core: Core, stream: str) -> None:
    async with member(core, stream) as consumer:
        await take(consumer, 1)  # all twenty are fetched by now
        await consumer.commit()
    async with member(core, stream) as consumer:
        assert numbers(await take(consumer, 1)) == [2]


async def test_what_was_not_committed_comes_again(core: Core, stream: str) -> None:
    async with member(core, stream) as consumer:
        await take(consumer, 7)
    async with member(core, stream) as consumer:
        assert numbers(await take(consumer, 1)) == [1]


async def test_a_commit_up_to_an_event(core: Core, stream: str) -> None:
    async with member(core, stream) as consumer:
        events = await take(consumer, 7)
        await consumer.commit(events[2])
        await consumer.commit(events[1])  # moves nothing back
    async with member(core, stream) as consumer:
        assert numbers(await take(consumer, 1)) == [4]


async def test_an_event_that_was_not_delivered_can_not_be_committed(core: Core, stream: str) -> None:
    async with Consumer(stream, core=core.address) as reader:
        ahead = (await take(reader, 20))[-1]
    async with member(core, stream) as consumer:
        await take(consumer, 1)
        with pytest.raises(ValueError, match="not delivered yet"):
            await consumer.commit(ahead)


async def test_a_batch_counts_as_delivered(core: Core, stream: str) -> None:
    limits = ConsumerLimits(batch_events_max=8)
    async with member(core, stream, limits=limits) as consumer:
        async with asyncio.timeout(TIMEOUT_S):
            batch = await anext(consumer.batches())
        await consumer.commit()
    async with member(core, stream) as consumer:
        assert numbers(await take(consumer, 1)) == [batch[-1].json()["sequence"] + 1]


async def test_automatic_commits_cover_what_the_loop_went_past(core: Core, stream: str) -> None:
    async with asyncio.timeout(TIMEOUT_S), member(core, stream, auto_commit=True) as consumer:
        async for event in consumer:
            if event.offset == 6:
                break  # the loop never asked for the next: this one may not be handled
    async with member(core, stream, auto_commit=True) as consumer:
        assert numbers(await take(consumer, 1)) == [7]


async def test_an_event_whose_handling_failed_comes_again(core: Core, stream: str) -> None:
    async def handle_until_it_fails() -> None:
        async with asyncio.timeout(TIMEOUT_S), member(core, stream, auto_commit=True) as consumer:
            async for event in consumer:
                if event.offset == 3:
                    raise LookupError

    with pytest.raises(LookupError):
        await handle_until_it_fails()
    async with member(core, stream) as consumer:
        assert numbers(await take(consumer, 1)) == [4]


async def test_automatic_commits_happen_while_the_loop_runs(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.consumer._AUTO_COMMIT_INTERVAL_S", 0.0)
    stream = core.new_stream(partitions=1)
    core.produce(stream, 20, partitions=1)
    limits = ConsumerLimits(batch_events_max=5)
    async with member(core, stream, auto_commit=True, limits=limits) as consumer:
        await take(consumer, 11)
        committed = await asyncio.to_thread(_committed, core, stream)
        assert 5 <= committed <= 10


def _committed(core: Core, stream: str) -> int:
    from confluent_kafka import Consumer as KafkaConsumer  # noqa: PLC0415 # an outsider's view
    from confluent_kafka import TopicPartition  # noqa: PLC0415

    outsider = KafkaConsumer({"bootstrap.servers": core.address, "group.id": f"group-of-{stream}"})
    (partition,) = outsider.committed([TopicPartition(stream, 0)], timeout=10)
    outsider.close()
    return partition.offset


async def test_groups_know_nothing_of_each_other(core: Core, stream: str) -> None:
    for group in ("one", "two"):
        async with Consumer(stream, core=core.address, group=f"{group}-{stream}", auto_commit=True) as consumer:
            assert numbers(await take(consumer, 20)) == list(range(1, 21))


@pytest.mark.parametrize("start", ["latest", datetime(2040, 1, 1, tzinfo=UTC)])
async def test_where_a_group_begins_is_written_down_before_its_first_event(core: Core, stream: str, start: Any) -> None:
    async with member(core, stream, start=start) as consumer:
        waiting = asyncio.ensure_future(anext(consumer))
        async with asyncio.timeout(TIMEOUT_S):
            while await asyncio.to_thread(_committed, core, stream) != 20:
                assert not waiting.done()
        waiting.cancel()
    core.produce(stream, 5, partitions=1, first=21)
    async with member(core, stream, start=start) as consumer:
        assert numbers(await take(consumer, 5)) == [21, 22, 23, 24, 25]


async def test_start_is_for_partitions_that_the_group_never_committed(core: Core, stream: str) -> None:
    async with member(core, stream, start={0: 10}) as consumer:
        assert numbers(await take(consumer, 2)) == [11, 12]
        await consumer.commit()
    async with member(core, stream, start="earliest") as consumer:
        assert numbers(await take(consumer, 1)) == [13]


async def test_a_core_that_is_gone_just_when_partitions_come_is_waited_for(
    core: Core, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*_: object) -> None:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    monkeypatch.setattr("tidegate.kafka_reader.KafkaReader._committed", no_answer)
    async with member(core, stream, start={0: 10}) as consumer:
        assert numbers(await take(consumer, 2)) == [11, 12]
        assert await asyncio.to_thread(_committed, core, stream) == 10
        await consumer.commit()
    async with member(core, stream) as consumer:
        assert numbers(await take(consumer, 2)) == [13, 14]


class Reader:
    """A member of a group that reads in the background, one event at a time."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.events: list[Event] = []
        self.pause_s = 0.0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.consumer:
            self.events.append(event)
            await asyncio.sleep(self.pause_s)


@asynccontextmanager
async def reading(consumer: Consumer) -> AsyncIterator[Reader]:
    async with consumer:
        reader = Reader(consumer)
        try:
            yield reader
        finally:
            reader.task.cancel()
            await asyncio.gather(reader.task, return_exceptions=True)


async def test_a_new_member_takes_over_without_loss_or_double(core: Core) -> None:
    stream = core.new_stream(partitions=4)
    core.produce(stream, 2000)
    async with asyncio.timeout(TIMEOUT_S), reading(member(core, stream, auto_commit=True)) as first:
        first.pause_s = 0.02
        async with reading(member(core, stream, auto_commit=True)) as second:
            await until(lambda: bool(first.events and second.events))
            first.pause_s = 0.0
            core.produce(stream, 2000, first=2001)
            await until(lambda: len(first.events) + len(second.events) >= 4000)
    for reader in (first, second):
        assert_in_order(reader.events)
    assert sorted(numbers(first.events + second.events)) == list(range(1, 4001))
    # Both had work, and a partition's events after the hand-over are all the new owner's.
    taken = {event.partition for event in second.events}
    assert 1 <= len(taken) < 4
    for partition in taken:
        before = [event.offset for event in first.events if event.partition == partition]
        after = [event.offset for event in second.events if event.partition == partition]
        assert max(before, default=-1) < min(after)


async def test_a_member_that_leaves_hands_over_without_loss_or_double(core: Core) -> None:
    stream = core.new_stream(partitions=4)
    core.produce(stream, 1000)
    async with asyncio.timeout(TIMEOUT_S), reading(member(core, stream, auto_commit=True)) as first:
        first.pause_s = 0.02
        async with reading(member(core, stream, auto_commit=True)) as second:
            await until(lambda: bool(first.events and second.events))
        first.pause_s = 0.0
        await until(lambda: len(first.events) + len(second.events) >= 1000)
    seen = numbers(first.events + second.events)
    assert set(seen) == set(range(1, 1001))
    assert len(seen) - 1000 <= 1  # the event that was being handled when its member was cancelled


async def test_a_commit_for_a_partition_that_was_taken_away_is_refused(core: Core) -> None:
    stream = core.new_stream(partitions=2)
    core.produce(stream, 200, partitions=2)
    async with asyncio.timeout(TIMEOUT_S), reading(member(core, stream)) as first:
        await until(lambda: len({event.partition for event in first.events}) >= 2)
        async with reading(member(core, stream)) as second:
            await until(lambda: bool(second.events))
            taken = second.events[0].partition
            lost = next(event for event in first.events if event.partition == taken)
            kept = next(event for event in first.events if event.partition != taken)
            with pytest.raises(CommitRefusedError, match="another member"):
                await first.consumer.commit(lost)
            await first.consumer.commit(kept)
            await first.consumer.commit()


async def test_a_slow_application_takes_part_in_its_group_between_two_events(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.consumer._POLL_INTERVAL_S", 0.05)
    stream = core.new_stream(partitions=2)
    core.produce(stream, 2000, partitions=2)
    async with asyncio.timeout(TIMEOUT_S), member(core, stream) as slow:
        await take(slow, 1)  # a thousand more are buffered
        async with reading(member(core, stream)) as other:
            buffered = 0
            while not other.events:
                await anext(slow)
                buffered += 1
                await asyncio.sleep(0.1)
            assert buffered < 900
            taken = other.events[0].partition
            assert taken not in {(await anext(slow)).partition for _ in range(50)}
