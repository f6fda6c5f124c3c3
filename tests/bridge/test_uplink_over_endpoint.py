"""Edges connect to the bridge itself; behind it a real core."""

from __future__ import annotations

import asyncio
import json
import struct

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from tests.bridge.batches import cut
from tests.bridge.conftest import Stage, stop
from tests.bridge.fake_edge import FakeEdge
from tests.bridge.waiting import eventually
from tests.support.processes import free_port
from tidegate_wire.address import Address
from tidegate_wire.mqtt import ProtocolVersion, encode
from tidegate_wire.mqtt.packets import Connect, Publish
from tidegate_wire.records import Compression, check_batch, read_records
from tidegate_wire.uplink.event import EDGES_STREAM, PRODUCERS_STREAM
from tidegate_wire.uplink.topics import UplinkKind


async def test_a_welcome_names_a_fresh_producer_id_the_streams_and_what_is_refused(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core, streams=("telemetry", "alarms"), stream_partitions=3, batch_bytes_max=50_000)
    async with FakeEdge("edge-1", port) as edge:
        welcome = await edge.say_hello("telemetry", "tidegate.losses", "secret", "__consumer_offsets")
        assert {info.name: info.partitions for info in welcome.streams} == {"telemetry": 3, "tidegate.losses": 1}
        assert set(welcome.refused_streams) == {"secret", "__consumer_offsets"}
        assert (welcome.batch_bytes_max, welcome.window_batches_max) == (50_000, 32)
        assert welcome.producer_id is not None
        written = {record.key: json.loads(record.value or b"") for record in await stage.read(core, PRODUCERS_STREAM)}
        assert written[str(welcome.producer_id).encode()]["edge"] == "edge-1"
        second = await edge.say_hello("telemetry")
        assert second.producer_id not in {None, welcome.producer_id}
        without = await edge.say_hello("telemetry", wants_producer_id=False)
        assert without.producer_id is None


@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5])
async def test_pipelined_batches_are_stored_in_order_byte_for_byte(stage: Stage, protocol: MQTTProtocolVersion) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port, protocol=protocol) as edge:
        welcome = await edge.say_hello("telemetry")
        assert welcome.producer_id is not None
        sent = [cut(welcome.producer_id, i * 10, [b"event %d" % (i * 10 + j) for j in range(10)]) for i in range(30)]
        for record_batch in sent:
            edge.send(record_batch, partition=2)
        acks = await edge.wait_for_acks(30)
        assert [(ack.base_sequence, ack.offset, ack.error) for ack in acks] == [
            (i * 10, i * 10, None) for i in range(30)
        ]
        stored = await stage.read_batches(core, "telemetry", 2)
    # Base offset and leader epoch are the log's; everything from the magic byte on is the edge's.
    assert [batch[16:] for batch in stored] == [batch[16:] for batch in sent]
    values = [record.value for batch in stored for record in read_records(batch)]
    assert values == [b"event %d" % index for index in range(300)]


async def test_a_batch_sent_again_is_acknowledged_again_and_stored_once(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port) as edge:
        producer_id = (await edge.say_hello("telemetry")).producer_id
        assert producer_id is not None
        batches = [cut(producer_id, i, [b"event %d" % i]) for i in range(20)]
        for record_batch in batches * 3:
            ack = await edge.send_and_wait(record_batch)
            assert ack.error is None
            # The core knows the offsets of a producer's last five batches; of earlier ones only that it has them.
            assert ack.offset in {ack.base_sequence, None}
        assert [record.value for record in await stage.read(core, "telemetry")] == [b"event %d" % i for i in range(20)]


async def test_another_bridge_knows_whose_a_producer_id_is(stage: Stage) -> None:
    core = await stage.core()
    first, second = await stage.bridge_port(core), await stage.bridge_port(core)
    async with FakeEdge("edge-1", first) as edge, FakeEdge("edge-1", second) as moved:
        producer_id = (await edge.say_hello("telemetry")).producer_id
        assert producer_id is not None
        ack = await moved.send_and_wait(cut(producer_id, 0, [b"event"]))
        assert ack.error is None


async def test_a_bridge_that_starts_later_reads_the_producer_ids_of_before(stage: Stage) -> None:
    core = await stage.core()
    async with FakeEdge("edge-1", await stage.bridge_port(core)) as edge:
        producer_id = (await edge.say_hello("telemetry")).producer_id
    assert producer_id is not None
    async with FakeEdge("edge-1", await stage.bridge_port(core)) as edge:
        for sequence in range(5):
            edge.send(cut(producer_id, sequence, [b"event"]))
        acks = await edge.wait_for_acks(5)
        assert [ack.error for ack in acks] == [None] * 5
        assert len(await stage.read(core, "telemetry")) == 5


async def test_each_wrong_batch_is_refused_and_the_good_one_after_it_is_taken(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core, streams=("telemetry",), batch_bytes_max=5_000)
    async with FakeEdge("edge-1", port) as edge, FakeEdge("edge-2", port) as other:
        producer_id = (await edge.say_hello("telemetry")).producer_id
        foreign_id = (await other.say_hello("telemetry")).producer_id
        assert producer_id is not None
        assert foreign_id is not None
        good = cut(producer_id, 0, [b"event"])
        wrong = [
            (good[:-1] + b"\xff", "telemetry", 0, "corrupt_message"),
            (good[:30], "telemetry", 0, "malformed_batch"),
            (good + good, "telemetry", 0, "malformed_batch"),
            (cut(producer_id, 0, [b"\0\0\0\0"], is_control=True), "telemetry", 0, "malformed_batch"),
            (cut(producer_id, 0, [bytes(6_000)], compression=Compression.NONE), "telemetry", 0, "message_too_large"),
            (cut(foreign_id, 0, [b"event"]), "telemetry", 0, "unknown_producer_id"),
            (cut(producer_id + 1_000_000, 0, [b"event"]), "telemetry", 0, "unknown_producer_id"),
            (good, "secret", 0, "stream_not_allowed"),
            (good, PRODUCERS_STREAM, 0, "stream_not_allowed"),
            (good, "telemetry", 4, "unknown_topic_or_partition"),
        ]
        for record_batch, stream, partition, code in wrong:
            ack = await edge.send_and_wait(record_batch, stream=stream, partition=partition)
            assert ack.error is not None
            assert (ack.error.code, ack.error.retriable) == (code, False), code
            assert (ack.stream, ack.partition) == (stream, partition)
        assert (await edge.send_and_wait(good)).error is None
        assert [record.value for record in await stage.read(core, "telemetry")] == [b"event"]


async def test_a_gap_in_the_sequence_is_handed_back_to_be_rewound(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core, retry_ms=300)
    async with FakeEdge("edge-1", port) as edge:
        producer_id = (await edge.say_hello("telemetry")).producer_id
        assert producer_id is not None
        assert (await edge.send_and_wait(cut(producer_id, 0, [b"first"]))).error is None
        ack = await edge.send_and_wait(cut(producer_id, 2, [b"third"]))
        assert ack.error is not None
        assert (ack.error.code, ack.error.retriable) == ("out_of_order_sequence_number", True)


async def test_a_batch_that_overtook_another_waits_for_it(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port) as edge:
        producer_id = (await edge.say_hello("telemetry")).producer_id
        assert producer_id is not None
        for sequence in (0, 2, 3, 1):
            edge.send(cut(producer_id, sequence, [b"event %d" % sequence]))
        await edge.wait_for_stored(range(4))
        assert [record.value for record in await stage.read(core, "telemetry")] == [b"event %d" % i for i in range(4)]


async def test_presence_becomes_a_record_keyed_by_the_edge(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port) as edge:
        edge.be_present(online=True, backlog_events=5)
        last = edge.be_present(online=True, backlog_events=7, session="abc")

        records: list[bytes | None] = []
        while last.encode() not in records:
            records = [record.value for record in await stage.read(core, EDGES_STREAM) if record.key == b"edge-1"]
        assert records[-1] == last.encode()


async def test_a_core_that_starts_late_is_waited_for(stage: Stage) -> None:
    core = Address("127.0.0.1", free_port())
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port) as edge:
        edge.publish(UplinkKind.HELLO, b"not JSON")
        await stage.core(listen=str(core))
        assert (await edge.say_hello("telemetry")).producer_id is not None


async def test_a_core_that_restarts_takes_what_was_in_flight_once(stage: Stage) -> None:
    core = Address("127.0.0.1", free_port())
    task = await stage.restartable_core(str(core))
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port) as edge:
        producer_id = (await edge.say_hello("telemetry")).producer_id
        assert producer_id is not None
        for sequence in range(20):
            edge.send(cut(producer_id, sequence, [b"event %d" % sequence]))
        await edge.wait_for_acks(1)
        await stop(task)
        for sequence in range(20, 40):
            edge.send(cut(producer_id, sequence, [b"event %d" % sequence]))
        await stage.restartable_core(str(core))
        await edge.wait_for_stored(range(40))
        assert [record.value for record in await stage.read(core, "telemetry")] == [b"event %d" % i for i in range(40)]


async def test_without_a_core_batches_are_handed_back_and_an_edge_that_sends_too_many_is_told(stage: Stage) -> None:
    core = Address("127.0.0.1", free_port())
    port = await stage.bridge_port(core, window_batches_max=4, retry_ms=500)
    async with FakeEdge("edge-1", port) as edge:
        for sequence in range(9):
            edge.send(cut(7, sequence, [b"event"]))
        acks = await edge.wait_for_acks(9)
        codes = {ack.base_sequence: ack.error.code for ack in acks if ack.error is not None and ack.error.retriable}
        assert codes.pop(8) == "window_exceeded"
        assert codes == dict.fromkeys(range(8), "network_exception")


async def test_when_the_bridge_holds_all_it_may_it_stops_reading_and_goes_on_later(stage: Stage) -> None:
    core = Address("127.0.0.1", free_port())
    port = await stage.bridge_port(core, in_flight_batches_max=3, retry_ms=300)
    async with FakeEdge("edge-1", port) as edge:
        for sequence in range(10):
            edge.send(cut(7, sequence, [b"event"]))
        acks = await edge.wait_for_acks(10)
        assert {ack.error.code for ack in acks if ack.error is not None} == {"network_exception"}


async def test_a_device_that_mistakes_the_bridge_for_an_edge_is_disconnected(stage: Stage) -> None:
    port = await stage.bridge_port(await stage.core())
    async with FakeEdge("edge-1", port) as device, FakeEdge("edge-2", port) as edge:
        device.client.publish("sensors/temperature", b"20.5", 1)
        await eventually(lambda: not device.connected, "the device is disconnected")
        assert edge.connected
        assert (await edge.say_hello("telemetry")).producer_id is not None


@pytest.mark.parametrize("payload", [b"", b"[]", b"\xff" * 10, b'{"edge": "edge-2"}', b"{" * 100_000])
async def test_unreadable_messages_change_nothing(stage: Stage, payload: bytes) -> None:
    port = await stage.bridge_port(await stage.core())
    async with FakeEdge("edge-1", port) as edge:
        for kind in (UplinkKind.HELLO, UplinkKind.BATCH, UplinkKind.PRESENCE):
            edge.publish(kind, payload)
        assert (await edge.say_hello("telemetry")).producer_id is not None
        assert edge.acks == []


async def test_a_hello_in_the_name_of_another_edge_is_not_answered(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port) as edge, FakeEdge("edge-2", port) as victim:
        hello = {"edge": "edge-2", "session": "s", "streams": [], "wants_producer_id": True}
        edge.publish(UplinkKind.HELLO, json.dumps(hello).encode())
        await edge.say_hello("telemetry")
        assert victim.welcomes == []
        owners = [json.loads(record.value or b"")["edge"] for record in await stage.read(core, PRODUCERS_STREAM)]
        assert owners == ["edge-1"]


async def test_hundreds_of_batches_of_many_edges_arrive_each_once(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core, stream_partitions=2)
    names = [f"edge-{number}" for number in range(8)]
    edges = [FakeEdge(name, port) for name in names]
    try:
        for edge in edges:
            await edge.connect()
        producers = {edge.edge: (await edge.say_hello("telemetry")).producer_id for edge in edges}
        for sequence in range(30):
            for number, edge in enumerate(edges):
                producer_id = producers[edge.edge]
                assert producer_id is not None
                record_batch = cut(producer_id, sequence, [struct.pack(">ii", number, sequence)])
                edge.send(record_batch, partition=number % 2)
        for edge in edges:
            await edge.wait_for_stored(range(30))
    finally:
        for edge in edges:
            await edge.disconnect()
    for partition in range(2):
        seen: dict[int, list[int]] = {}
        for record in await stage.read(core, "telemetry", partition):
            number, sequence = struct.unpack(">ii", record.value or b"")
            seen.setdefault(number, []).append(sequence)
        assert seen == {number: list(range(30)) for number in range(8) if number % 2 == partition}


async def test_the_headers_in_the_core_are_those_that_the_edge_wrote(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port) as edge:
        producer_id = (await edge.say_hello("telemetry")).producer_id
        assert producer_id is not None
        sent = cut(producer_id, 0, [b"event"])
        await edge.send_and_wait(sent)
    (stored,) = await stage.read_batches(core, "telemetry")
    assert check_batch(stored).crc == check_batch(sent).crc


async def test_a_device_that_publishes_to_the_bridge_is_closed_and_edges_notice_nothing(stage: Stage) -> None:
    core = await stage.core()
    port = await stage.bridge_port(core)
    async with FakeEdge("edge-1", port) as edge:
        welcome = await edge.say_hello("telemetry")
        assert welcome.producer_id is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(encode(Connect(client_id="boiler"), ProtocolVersion.V311))
        stranger = encode(Publish(topic="sensors/boiler", payload=b"71.3", qos=1, packet_id=1), ProtocolVersion.V311)
        for base_sequence in range(0, 50, 10):
            edge.send(cut(welcome.producer_id, base_sequence, [b"event"] * 10), partition=0)
            writer.write(stranger)
        answer = await asyncio.wait_for(reader.read(), 10)  # to the end: the bridge has closed the connection
        assert answer == b"\x20\x02\x00\x00", "a CONNACK, and no PUBACK"
        writer.close()
        acks = await edge.wait_for_acks(5)
        assert [ack.error for ack in acks] == [None] * 5
        assert edge.connected
