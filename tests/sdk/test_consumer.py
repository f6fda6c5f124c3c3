"""Reading streams without a group, from a real core."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.sdk.streams import Core, assert_in_order, numbers, until
from tests.support.processes import TidegatePart, free_port
from tidegate import Consumer, ConsumerLimits, Event, StreamPartition
from tidegate.errors import ConfigError, IntegrityError, StreamTruncatedError, UnknownStreamError, UnreachableError


async def read_all(core: Core, *streams: str, **options: Any) -> list[Event]:
    async with Consumer(*streams, core=core.address, until_end=True, **options) as consumer:
        return [event async for event in consumer]


async def take(consumer: Consumer, count: int) -> list[Event]:
    async with asyncio.timeout(20):
        return [await anext(consumer) for _ in range(count)]


async def test_every_event_of_every_partition_comes_once_and_in_order(core: Core) -> None:
    stream = core.new_stream()
    core.produce(stream, 1000)
    events = await read_all(core, stream)
    assert sorted(numbers(events)) == list(range(1, 1001))
    assert_in_order(events)


async def test_an_event_says_what_the_edge_wrote(core: Core) -> None:
    stream = core.new_stream()
    core.produce(stream, 1, first=7)
    (event,) = await read_all(core, stream)
    assert (event.stream, event.partition, event.offset) == (stream, 3, 0)
    assert (event.edge, event.device, event.topic, event.sequence) == ("plant-7", "d-3", "plant/7/d-3", 7)
    assert event.event_time_ms == 1_700_000_000_007
    assert event.receive_time == datetime.fromtimestamp(1_700_000_001.007, UTC)
    assert event.json() == {"device": "d-3", "sequence": 7}
    assert ("unit", b"C") in event.headers
    assert event.headers[0] == ("edge", b"plant-7")
    assert len(event.headers) == 5


async def test_records_that_no_edge_wrote_are_events_too(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    producer = core.producer()
    producer.produce(stream, value=b"bare")
    producer.produce(stream, key=b"\xff", value=None, headers=[("sequence", b"many"), ("empty", None)])
    assert producer.flush(10) == 0
    bare, odd = await read_all(core, stream)
    assert (bare.payload, bare.device, bare.edge, bare.topic, bare.sequence) == (b"bare", "", "", "", None)
    assert (bare.receive_time, list(bare.headers)) == (None, [])
    assert (odd.payload, odd.device, odd.sequence) == (b"", "\\xff", None)
    assert list(odd.headers) == [("sequence", b"many"), ("empty", None)]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_are_read(core: Core, compression: str) -> None:
    stream = core.new_stream()
    core.produce(stream, 200, compression=compression)
    assert sorted(numbers(await read_all(core, stream))) == list(range(1, 201))


async def test_without_a_group_nothing_is_remembered(core: Core) -> None:
    stream = core.new_stream()
    core.produce(stream, 10)
    assert sorted(numbers(await read_all(core, stream))) == sorted(numbers(await read_all(core, stream)))


async def test_several_streams_at_once(core: Core) -> None:
    streams = [core.new_stream(), core.new_stream(partitions=1)]
    core.produce(streams[0], 20)
    core.produce(streams[1], 20, partitions=1, first=101)
    events = await read_all(core, *streams)
    assert sorted(numbers(events)) == [*range(1, 21), *range(101, 121)]
    assert {event.stream for event in events} == set(streams)
    assert_in_order(events)


async def test_until_end_leaves_out_what_came_later(core: Core) -> None:
    stream = core.new_stream()
    core.produce(stream, 400)
    limits = ConsumerLimits(batch_events_max=10)
    async with Consumer(stream, core=core.address, until_end=True, limits=limits) as consumer:
        first = await take(consumer, 1)
        await asyncio.to_thread(core.produce, stream, 400, first=401)
        events = first + [event async for event in consumer]
    assert sorted(numbers(events)) == list(range(1, 401))


async def test_until_end_of_an_empty_stream_is_at_once(core: Core) -> None:
    assert await read_all(core, core.new_stream()) == []


async def test_until_end_ends_again_when_asked_again(core: Core) -> None:
    async with Consumer(core.new_stream(), core=core.address, until_end=True) as consumer:
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(consumer)


async def test_latest_begins_with_what_comes_after_the_start(core: Core) -> None:
    stream = core.new_stream()
    core.produce(stream, 10)
    async with Consumer(stream, core=core.address, start="latest") as consumer:
        await asyncio.to_thread(core.produce, stream, 10, first=11)
        assert sorted(numbers(await take(consumer, 10))) == list(range(11, 21))


async def test_a_time_begins_with_the_first_event_that_is_not_older(core: Core) -> None:
    stream = core.new_stream(partitions=2)
    core.produce(stream, 10, partitions=2)
    start = datetime.fromtimestamp(1_700_000_000.006, UTC)
    assert sorted(numbers(await read_all(core, stream, start=start))) == [6, 7, 8, 9, 10]
    assert await read_all(core, stream, start=datetime(2030, 1, 1, tzinfo=UTC)) == []


async def test_offsets_begin_there_and_other_partitions_at_their_first_event(core: Core) -> None:
    stream = core.new_stream(partitions=2)
    core.produce(stream, 10, partitions=2)
    events = await read_all(core, stream, start={1: 3})
    assert sorted((event.partition, event.offset) for event in events) == [
        *((0, offset) for offset in range(5)),
        (1, 3),
        (1, 4),
    ]


async def test_batches_have_at_most_as_many_events_as_allowed(core: Core) -> None:
    stream = core.new_stream()
    core.produce(stream, 500)
    limits = ConsumerLimits(batch_events_max=64)
    async with Consumer(stream, core=core.address, until_end=True, limits=limits) as consumer:
        batches = [batch async for batch in consumer.batches()]
    assert max(len(batch) for batch in batches) <= 64
    assert all(batches)
    assert sorted(numbers(event for batch in batches for event in batch)) == list(range(1, 501))


async def test_a_cancelled_wait_loses_no_event(core: Core) -> None:
    stream = core.new_stream()
    events: list[Event] = []
    async with Consumer(stream, core=core.address) as consumer:
        producing = asyncio.gather(*(asyncio.to_thread(core.produce, stream, 20, first=n) for n in range(1, 201, 20)))
        async with asyncio.timeout(30):
            while len(events) < 200:
                try:
                    events.append(await asyncio.wait_for(anext(consumer), 0.0005))
                except TimeoutError:
                    continue
        await producing
    assert sorted(numbers(events)) == list(range(1, 201))
    assert_in_order(events)


async def test_two_tasks_may_not_wait_for_the_same_events(core: Core) -> None:
    async with Consumer(core.new_stream(), core=core.address) as consumer:
        waiting = asyncio.ensure_future(anext(consumer))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(consumer)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_cancelled_consumer_closes_and_leaves_no_thread(core: Core) -> None:
    stream = core.new_stream()

    async def consume() -> None:
        async with Consumer(stream, core=core.address, group=stream) as consumer:
            opened.set()
            async for _ in consumer:
                raise AssertionError("the stream is empty")

    opened = asyncio.Event()
    task = asyncio.create_task(consume())
    async with asyncio.timeout(20):
        await opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not any(t.name.startswith("tidegate-consumer") for t in threading.enumerate()))


async def test_an_unknown_stream_is_refused_and_the_likeliest_named_first(core: Core) -> None:
    stream = core.new_stream()
    for _ in range(12):
        core.new_stream()
    with pytest.raises(UnknownStreamError, match="has no stream") as raised:
        await read_all(core, f"{stream}s")
    assert raised.value.hint.startswith(f"it has {stream}, ")
    assert re.search(r" and \d+ more$", raised.value.hint)
    assert raised.value.exit_code == 4


async def test_a_core_that_does_not_answer_is_unreachable_in_time() -> None:
    with pytest.raises(UnreachableError, match="does not answer") as raised:
        async with asyncio.timeout(15), Consumer("telemetry", core=f"127.0.0.1:{free_port()}", timeout_s=1):
            pass
    assert raised.value.hint
    assert raised.value.exit_code == 3


@pytest.mark.parametrize(
    ("streams", "options", "words"),
    [
        ((), {}, "name one or more"),
        (("a", "a"), {}, "each once"),
        (("",), {}, "name one or more"),
        (("a",), {"core": "nowhere"}, "core: 'nowhere' is not HOST:PORT"),
        (("a",), {"start": "first"}, "'first' is not 'earliest'"),
        (("a",), {"start": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001 # that is the point
        (("a", "b"), {"start": {0: 1}}, "for one stream"),
        (("a",), {"start": {0: -1}}, "0 or more"),
        (("a",), {"auto_commit": True}, "without a group"),
        (("a",), {"group": ""}, "must not be empty"),
        (("a",), {"group": "g", "until_end": True}, "only without a group"),
        (("a",), {"client_options": {"group.id": "g"}}, "group.id is set by Consumer itself"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(
    streams: tuple[str, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Consumer(*streams, **{"core": "127.0.0.1:9092"} | options)


async def test_an_option_that_librdkafka_does_not_know_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"client_options.*no\.such\.option"):
        async with Consumer("a", core="127.0.0.1:1", client_options={"no.such.option": 1}):
            pass


async def test_a_consumer_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await anext(Consumer("a", core="127.0.0.1:1"))


async def test_a_commit_without_a_group_is_refused(core: Core) -> None:
    async with Consumer(core.new_stream(), core=core.address) as consumer:
        with pytest.raises(ConfigError, match="needs a group"):
            await consumer.commit()


async def test_lag_and_positions_are_those_of_the_application(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 10, partitions=1)
    partition = StreamPartition(stream, 0)
    async with Consumer(stream, core=core.address) as consumer:
        assert await consumer.lag() == {partition: 10}
        assert consumer.positions == {}
        await take(consumer, 4)
        assert consumer.positions == {partition: 4}
        assert await consumer.lag() == {partition: 6}


async def test_events_that_expired_unread_are_counted_and_said(core: Core, caplog: pytest.LogCaptureFixture) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 30, partitions=1)
    await asyncio.to_thread(core.delete_before, stream, 0, 20)
    with caplog.at_level(logging.WARNING, "tidegate.consumer"):
        async with Consumer(stream, core=core.address, start={0: 5}) as consumer:
            assert numbers(await take(consumer, 10)) == list(range(21, 31))
            assert consumer.expired_events == 15
    assert "retention deleted 15 events" in caplog.text
    assert "offsets 5 to 19" in caplog.text


async def test_a_stream_that_ends_before_the_position_is_damaged_and_not_begun_anew(core: Core) -> None:
    stream = core.new_stream(partitions=1)
    core.produce(stream, 10, partitions=1)
    async with Consumer(stream, core=core.address, start={0: 50}) as consumer:
        with pytest.raises(StreamTruncatedError, match="ends at offset 10, but was read up to 50") as raised:
            await take(consumer, 1)
    assert raised.value.hint
    assert raised.value.exit_code == 5


@pytest.mark.parametrize("grouped", [False, True])
async def test_a_stream_that_is_deleted_is_unknown_from_then_on(
    core: Core, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    monkeypatch.setattr("tidegate.kafka_reader._PARTITIONS_CHECK_INTERVAL_S", 0.1)
    stream = core.new_stream(partitions=1)
    core.produce(stream, 1, partitions=1)
    options = {"topic.metadata.propagation.max.ms": 100}
    group = stream if grouped else None
    async with Consumer(stream, core=core.address, group=group, client_options=options) as consumer:
        await take(consumer, 1)
        await asyncio.to_thread(core.delete, stream)
        with pytest.raises(UnknownStreamError):
            await take(consumer, 1)


def flip_a_bit(directory: Path, near: bytes) -> None:
    (segment,) = [path for path in directory.rglob("*.log") if near in path.read_bytes()]
    with segment.open("r+b") as file:
        file.seek(segment.read_bytes().index(near))
        file.write(bytes([near[0] ^ 1]))


async def test_a_flipped_bit_on_the_core_is_found(tmp_path: Path) -> None:
    arguments = ["core", "--node-id", "1", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    with TidegatePart(arguments, tmp_path) as part:
        core = Core(part.wait_ready()["listen"])
        stream = core.new_stream(partitions=1)
        core.produce(stream, 10, partitions=1)
        flip_a_bit(tmp_path, b'"sequence": 7}')
        with pytest.raises(IntegrityError, match="damaged"):
            await read_all(core, stream)


async def test_partitions_that_are_added_are_read_from_their_first_event(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.kafka_reader._PARTITIONS_CHECK_INTERVAL_S", 0.1)
    stream = core.new_stream(partitions=1)
    async with Consumer(stream, core=core.address, start="latest") as consumer:
        await asyncio.to_thread(core.add_partitions, stream, 3)
        await asyncio.to_thread(core.produce, stream, 30, partitions=3)
        assert sorted(numbers(await take(consumer, 30))) == list(range(1, 31))


async def test_a_core_that_is_killed_and_comes_back_costs_no_event(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["core", "--node-id", "1", "--listen", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / "data")]
    core = Core(f"127.0.0.1:{port}")
    with TidegatePart(arguments, tmp_path, name="before") as part:
        part.wait_ready()
        stream = core.new_stream()
        core.produce(stream, 100)
        async with Consumer(stream, core=core.address) as consumer:
            events = await take(consumer, 100)
            part.kill()
            with TidegatePart(arguments, tmp_path, name="after") as restarted:
                await asyncio.to_thread(restarted.wait_ready)
                await asyncio.to_thread(core.produce, stream, 100, first=101)
                events += await take(consumer, 100)
    assert sorted(numbers(events)) == list(range(1, 201))
    assert_in_order(events)
