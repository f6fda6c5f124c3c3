"""The uplink over a real broker: what reaches the bridge, and what happens when links, bridges and batches fail."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.edge.scripted_bridge import ScriptedBridge, quiet
from tests.edge.support import EDGE, event, open_log, query, small_disk, until
from tests.support.peers import require_peer
from tests.support.processes import Process, free_port, mosquitto_broker
from tidegate_edge.event_log import EventLog
from tidegate_edge.uplink import Uplink, UplinkOptions
from tidegate_edge.uplink.broker_client import BrokerUnreachable
from tidegate_wire.address import Address
from tidegate_wire.records import BatchHeader
from tidegate_wire.uplink.event import LOSS_STREAM
from tidegate_wire.uplink.messages import AckError, Batch

pytestmark = pytest.mark.peer("mosquitto")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    directory = tmp_path / "broker"
    directory.mkdir()
    with mosquitto_broker(require_peer("mosquitto"), directory) as port:
        yield port


def options(port: int, *, by_device: tuple[str, ...] = (), linger_ms: int = 20) -> UplinkOptions:
    return UplinkOptions(
        edge=EDGE,
        address=Address("127.0.0.1", port),
        by_device=dict.fromkeys(by_device, True),
        linger_ms=linger_ms,
        keepalive_s=15,
        reconnect_delay_max_s=0.2,
        presence_interval_s=0.2,
        software="test",
    )


@asynccontextmanager
async def running(log: EventLog, settings: UplinkOptions) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(Uplink(log, settings).run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def sequences(bridge: ScriptedBridge, stream: str = "events") -> list[int]:
    return [int(dict(record.headers)[b"sequence"] or b"") for record in bridge.records(stream)]


async def drained(log: EventLog) -> None:
    await until(lambda: log.stats.events == 0, "the log is empty")


async def test_events_arrive_as_kafka_records_and_leave_the_log(tmp_path: Path, broker: int) -> None:
    async with open_log(tmp_path) as log, ScriptedBridge(broker) as bridge, running(log, options(broker)):
        await log.append([event(1), event(2, device="d\u00e9", headers='[["unit", "\u00b0C"]]', payload=b"\x00\xff")])
        await bridge.until_stored(2)
        await drained(log)
        first, second = bridge.records()
        assert (first.key, first.timestamp_ms) == (b"d1", 1_700_000_000_001)
        assert first.value == b'{"device": "d1", "sequence": 1}'
        assert first.headers == (
            (b"edge", b"edge-1"),
            (b"topic", b"sensors/d1"),
            (b"sequence", b"1"),
            (b"received", b"1700000000501"),
        )
        assert (second.key, second.value) == ("d\u00e9".encode(), b"\x00\xff")
        assert second.headers[4:] == ((b"unit", "\u00b0C".encode()),)
        assert [hello.wants_producer_id for hello in bridge.hellos] == [True]


async def test_a_backlog_is_drained_in_order_and_once(tmp_path: Path, broker: int) -> None:
    async with open_log(tmp_path) as log:
        for group in range(20):
            await log.append([event(group * 1000 + n, device=f"d{n % 7}") for n in range(1, 1001)])
        async with ScriptedBridge(broker) as bridge, running(log, options(broker)):
            await drained(log)
            assert sequences(bridge) == list(range(1, 20_001))


async def test_a_stream_partitioned_by_device_keeps_each_device_in_one_partition(tmp_path: Path, broker: int) -> None:
    async with open_log(tmp_path) as log:
        await log.append([event(n, device=f"d{n % 50}") for n in range(1, 5001)])
        settings = options(broker, by_device=("events",))
        async with ScriptedBridge(broker, partitions=8, batch_bytes_max=20_000) as bridge, running(log, settings):
            await drained(log)
            assert sorted(sequences(bridge)) == list(range(1, 5001))
            assert len(bridge.stored) == 8
            partition_of: dict[bytes | None, tuple[str, int]] = {}
            for partition, records in bridge.stored.items():
                last: dict[bytes | None, int] = {}
                for record in records:
                    assert partition_of.setdefault(record.key, partition) == partition
                    sequence = int(dict(record.headers)[b"sequence"] or b"")
                    assert sequence > last.get(record.key, 0)
                    last[record.key] = sequence


async def test_what_was_in_flight_is_sent_again_byte_for_byte_after_a_restart(tmp_path: Path, broker: int) -> None:
    async with ScriptedBridge(broker) as bridge:

        def keep_silent_about(batch: Batch, header: BatchHeader) -> AckError | None:
            bridge.is_answering = False
            return None

        bridge.rule = keep_silent_about
        async with open_log(tmp_path) as log, running(log, options(broker)):
            await log.append([event(n) for n in range(1, 501)])
            await until(lambda: bool(bridge.received), "a batch came")
            await quiet()
        first = list(bridge.received)
        bridge.rule, bridge.is_answering = None, True
        bridge.hellos.clear()
        async with open_log(tmp_path) as log, running(log, options(broker)):
            assert log.batches
            await log.append([event(501)])
            await drained(log)
        assert bridge.received[len(first) : 2 * len(first)] == first
        assert [hello.wants_producer_id for hello in bridge.hellos] == [False, True]
        assert sequences(bridge) == list(range(1, 502))
        headers = [BatchHeader.parse(Batch.decode(payload).record_batch) for payload in bridge.received]
        assert headers[0].producer_id != headers[-1].producer_id
        assert headers[-1].base_sequence == 0


async def test_a_refused_batch_is_lost_by_the_book_and_the_rest_goes_on(tmp_path: Path, broker: int) -> None:
    async with ScriptedBridge(broker, batch_bytes_max=10_000) as bridge:

        def refuse_first(batch: Batch, header: BatchHeader) -> AckError | None:
            if batch.stream == "events" and len(bridge.received) == 1:
                return AckError(code="corrupt_message", reason="a test", retriable=False)
            return None

        bridge.rule = refuse_first
        async with open_log(tmp_path) as log, running(log, options(broker)):
            await log.append([event(n) for n in range(1, 2001)])
            await drained(log)
            await bridge.until_stored(1, LOSS_STREAM)
            assert log.stats.lost_events > 0
        (record,) = bridge.records(LOSS_STREAM)
        loss = json.loads(record.value or b"")
        assert (loss["edge"], loss["stream"], loss["first_sequence"]) == (EDGE, "events", 1)
        assert sequences(bridge) == list(range(loss["last_sequence"] + 1, 2001))
        assert loss["count"] == loss["last_sequence"]
        assert query(tmp_path, "SELECT count(*), sum(record_count) FROM refused_batches") == [(1, loss["count"])]


async def test_an_unknown_producer_id_loses_nothing(tmp_path: Path, broker: int) -> None:
    async with ScriptedBridge(broker, batch_bytes_max=10_000) as bridge:

        def forget(batch: Batch, header: BatchHeader) -> AckError | None:
            if header.producer_id == 1001:
                return AckError(code="unknown_producer_id", reason="a test", retriable=False)
            return None

        bridge.rule = forget
        async with open_log(tmp_path) as log, running(log, options(broker)):
            await log.append([event(n) for n in range(1, 2001)])
            await drained(log)
            assert (log.stats.lost_events, sequences(bridge)) == (0, list(range(1, 2001)))


async def test_retriable_errors_are_tried_again_in_order(tmp_path: Path, broker: int) -> None:
    refused = set[int]()
    async with ScriptedBridge(broker, batch_bytes_max=10_000) as bridge:

        def hesitate(batch: Batch, header: BatchHeader) -> AckError | None:
            if header.base_sequence in refused or len(refused) >= 3:
                return None
            refused.add(header.base_sequence)
            return AckError(code="not_leader_or_follower", reason="a test", retriable=True)

        bridge.rule = hesitate
        async with open_log(tmp_path) as log, running(log, options(broker)):
            await log.append([event(n) for n in range(1, 2001)])
            await drained(log)
            assert sequences(bridge) == list(range(1, 2001))
            assert len(refused) == 3


async def test_an_event_larger_than_any_batch_is_taken_out_and_the_next_ones_go_on(tmp_path: Path, broker: int) -> None:
    async with open_log(tmp_path) as log, ScriptedBridge(broker, batch_bytes_max=5_000) as bridge:
        await log.append([event(1), event(2, payload=random.Random(1).randbytes(20_000)), event(3)])
        async with running(log, options(broker)):
            await drained(log)
            await bridge.until_stored(1, LOSS_STREAM)
        assert sequences(bridge) == [1, 3]
        (record,) = bridge.records(LOSS_STREAM)
        assert b"too large" in (record.value or b"")


async def test_the_edge_waits_for_a_broker_that_comes_later(tmp_path: Path) -> None:
    program = require_peer("mosquitto")
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    async with open_log(tmp_path) as log, running(log, options(port)):
        await log.append([event(n) for n in range(1, 101)])
        await quiet()
        bridge = ScriptedBridge(port)
        for count in (100, 200):  # the second time, the broker died under a connected edge
            with Process([program, "-c", str(config)], tmp_path / "mosquitto.log"):
                await until_connected(bridge)
                await drained(log)
                assert sequences(bridge) == list(range(1, count + 1))
                await bridge.__aexit__()
            await log.append([event(n) for n in range(101, 201)])


async def until_connected(bridge: ScriptedBridge) -> None:
    for _ in range(200):
        try:
            await bridge.__aenter__()
        except BrokerUnreachable:
            await asyncio.sleep(0.02)
        else:
            return
    raise AssertionError("the broker does not listen")


async def test_presence_says_online_with_the_backlog_and_offline_at_the_end(tmp_path: Path, broker: int) -> None:
    async with open_log(tmp_path) as log, ScriptedBridge(broker) as bridge:
        bridge.is_answering = False
        await log.append([event(n) for n in range(1, 11)])
        async with running(log, options(broker)):
            await until(lambda: len(bridge.presences) >= 2, "presence is renewed")
            presence = bridge.presences[-1]
            assert (presence.online, presence.backlog_events) == (True, 10)
            assert presence.oldest_event_time_ms == 1_700_000_000_001
        await until(lambda: not bridge.presences[-1].online, "a goodbye")


async def test_live_alarms_do_not_wait_for_a_telemetry_backlog(tmp_path: Path, broker: int) -> None:
    async with open_log(tmp_path, "telemetry", "alarms") as log:
        for group in range(30):
            await log.append([event(group * 1000 + n, stream="telemetry") for n in range(1000)])
        async with ScriptedBridge(broker, batch_bytes_max=20_000) as bridge, running(log, options(broker)):
            await bridge.until_stored(1, "telemetry")
            await log.append([event(1, stream="alarms")])
            await bridge.until_stored(1, "alarms")
            assert len(bridge.records("telemetry")) < 30_000
            await drained(log)


async def test_events_dropped_while_the_uplink_was_away_are_told(tmp_path: Path, broker: int) -> None:
    limits = small_disk(backlog_events_max=1000, when_full="drop_oldest")
    async with open_log(tmp_path, limits=limits) as log:
        for group in range(30):
            await log.append([event(group * 100 + n) for n in range(100)])
        async with ScriptedBridge(broker) as bridge, running(log, options(broker)):
            await drained(log)
        losses = [json.loads(record.value or b"") for record in bridge.records(LOSS_STREAM)]
        lost = {n for loss in losses for n in range(loss["first_sequence"], loss["last_sequence"] + 1)}
        assert lost | set(sequences(bridge)) == set(range(1, 3001))
        assert not lost & set(sequences(bridge))
