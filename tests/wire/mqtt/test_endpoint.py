"""The endpoint over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from tidegate_wire.address import Address
from tidegate_wire.mqtt.decode import Decoder
from tidegate_wire.mqtt.encode import encode
from tidegate_wire.mqtt.endpoint import MqttEndpoint
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import Append, PublishRefused, ReceivedMessage
from tidegate_wire.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    ProtocolVersion,
    Puback,
    Publish,
    Subscribe,
    Subscription,
    Will,
)
from tidegate_wire.mqtt.reason_codes import ReasonCode

V311, V5 = ProtocolVersion.V311, ProtocolVersion.V5

DEADLINE_S = 10.0


class Log:
    """What was appended; `hold` keeps `append` from returning."""

    def __init__(self) -> None:
        self.groups: list[list[ReceivedMessage]] = []
        self.started = 0
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    def hold(self) -> None:
        self.open.clear()

    async def append(self, messages: Sequence[ReceivedMessage]) -> None:
        self.started += 1
        group = list(messages)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.groups.append(group)

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for group in self.groups for message in group]


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: ProtocolVersion) -> None:
        self.reader = reader
        self.writer = writer
        self.version = version
        self._decoder = Decoder(version=version)
        self._inbox: list[Packet] = []

    def send(self, *packets: Packet) -> None:
        self.writer.write(b"".join(encode(packet, self.version) for packet in packets))

    async def read(self, number: int = 1) -> list[Packet]:
        """The next packets."""
        while len(self._inbox) < number:
            data = await asyncio.wait_for(self.reader.read(65_536), DEADLINE_S)
            assert data, f"closed after {self._inbox}"
            self._inbox += self._decoder.feed(data)
        taken, self._inbox = self._inbox[:number], self._inbox[number:]
        return taken

    async def read_to_end(self) -> list[Packet]:
        """Everything until the server closes."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := await asyncio.wait_for(self.reader.read(65_536), DEADLINE_S):
                data += piece
        return self._inbox + self._decoder.feed(data)

    async def ping(self) -> None:
        """Returns when everything sent before was read by the server."""
        self.send(Pingreq())
        assert await self.read() == [Pingresp()]


class Endpoint:
    """A running endpoint and its clients."""

    def __init__(self, endpoint: MqttEndpoint, address: Address) -> None:
        self.endpoint = endpoint
        self.address = address
        self._writers: list[asyncio.StreamWriter] = []

    async def socket(self, version: ProtocolVersion = V311) -> Client:
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        self._writers.append(writer)
        return Client(reader, writer, version)

    async def connect(self, client_id: str, version: ProtocolVersion = V311, will: Will | None = None) -> Client:
        client = await self.socket(version)
        client.send(Connect(client_id=client_id, version=version, will=will))
        (connack,) = await client.read()
        assert isinstance(connack, Connack)
        assert connack.reason_code == 0
        return client

    async def close(self) -> None:
        await self.endpoint.close()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def serve(
    append: Append, limits: EndpointLimits | None = None, *, appends_in_flight_max: int = 1, commit_interval_ms: int = 0
) -> AsyncIterator[Endpoint]:
    endpoint = MqttEndpoint(
        append, limits=limits, appends_in_flight_max=appends_in_flight_max, commit_interval_ms=commit_interval_ms
    )
    served = Endpoint(endpoint, await endpoint.start(Address("127.0.0.1", 0)))
    try:
        yield served
    finally:
        await served.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)
    assert condition(), what


def publish(payload: bytes, packet_id: int = 0, topic: str = "t") -> Publish:
    return Publish(topic=topic, payload=payload, qos=1 if packet_id else 0, packet_id=packet_id)


async def test_no_puback_before_append_returned() -> None:
    log = Log()
    log.hold()
    async with serve(log.append) as served:
        client = await served.connect("c")
        client.send(publish(b"x", 7))
        await until(lambda: log.started == 1, "append is called")
        await client.ping()  # answered, so that a PUBACK would have come before
        log.open.set()
        assert await client.read() == [Puback(packet_id=7)]
        assert log.payloads == [b"x"]


async def test_groups_form_while_an_append_is_held() -> None:
    log = Log()
    log.hold()
    async with serve(log.append) as served:
        clients = [await served.connect(f"c{number}") for number in range(3)]
        clients[0].send(publish(b"first", 1))
        await until(lambda: log.started == 1, "append is called")
        for client in clients:
            for packet_id in (2, 3):
                client.send(publish(b"later", packet_id))
            await client.ping()
        assert log.started == 1
        log.open.set()
        assert await clients[0].read(3) == [Puback(packet_id=number) for number in (1, 2, 3)]
        assert [len(group) for group in log.groups] == [1, 6]
        assert [message.client_id for message in log.groups[1]] == ["c0", "c0", "c1", "c1", "c2", "c2"]


async def test_groups_in_flight_together_are_acknowledged_in_order() -> None:
    gates = [asyncio.Event() for _ in range(2)]
    started: list[bytes] = []

    async def append(messages: Sequence[ReceivedMessage]) -> None:
        gate = gates[len(started)]
        started.append(messages[0].payload)
        await gate.wait()

    async with serve(append, appends_in_flight_max=2) as served:
        client = await served.connect("c")
        for packet_id in (1, 2):
            client.send(publish(b"%d" % packet_id, packet_id))
            await until(lambda: len(started) == packet_id, "both are in flight")  # noqa: B023 - awaited here
        gates[1].set()
        await client.ping()  # nothing is acknowledged while the first is in flight
        gates[0].set()
        assert await client.read(2) == [Puback(packet_id=1), Puback(packet_id=2)]


async def test_a_commit_interval_gathers_a_group_and_a_full_group_does_not_wait() -> None:
    log = Log()
    limits = EndpointLimits(group_messages_max=10)
    async with serve(log.append, limits, commit_interval_ms=50) as served:
        client = await served.connect("c")
        for packet_id in range(1, 6):
            client.send(publish(b"x", packet_id))
            await client.ping()
        await client.read(5)
        assert len(log.groups) < 5
    log = Log()
    async with serve(log.append, limits, commit_interval_ms=3_600_000) as served:
        client = await served.connect("c")
        client.send(*(publish(b"x", packet_id) for packet_id in range(1, 12)))
        await client.read(10)
        assert [len(group) for group in log.groups] == [10]


async def test_reading_pauses_at_the_limit_of_held_bytes_and_resumes() -> None:
    log = Log()
    log.hold()
    limits = EndpointLimits(held_bytes_max=200_000)
    async with serve(log.append, limits) as served:
        client = await served.connect("c")
        total = 5_000
        client.send(*(publish(bytes(1_000), packet_id) for packet_id in range(1, total + 1)))
        stats = served.endpoint.stats
        await until(lambda: stats.read_pauses == 1, "reading pauses")
        quiet = await served.connect("quiet")
        await quiet.ping()
        assert stats.held_bytes < limits.held_bytes_max + 2 * 65_536
        assert stats.messages_received < total
        log.open.set()
        assert await client.read(total) == [Puback(packet_id=number) for number in range(1, total + 1)]
        assert len(log.payloads) == total
        assert stats.held_bytes == 0


async def test_when_append_raises_its_connections_are_closed_and_others_notice_nothing() -> None:
    log = Log()
    log.error = OSError("the disk is on fire")
    async with serve(log.append) as served:
        bystander = await served.connect("bystander")
        old, new = await served.connect("old"), await served.connect("new", V5)
        old.send(publish(b"x", 1))
        assert await old.read_to_end() == []
        new.send(publish(b"x", 1))
        (packet,) = await new.read_to_end()
        assert isinstance(packet, Disconnect)
        assert packet.reason_code is ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
        log.error = None
        bystander.send(publish(b"y", 1))
        assert await bystander.read() == [Puback(packet_id=1)]
        assert log.payloads == [b"y"]


async def test_when_append_refuses_a_client_only_that_one_is_closed_and_the_rest_of_the_group_acknowledged() -> None:
    groups: list[set[str]] = []
    first = asyncio.Event()

    async def append(messages: Sequence[ReceivedMessage]) -> None:
        groups.append({message.client_id for message in messages})
        await first.wait()
        if "stranger" in groups[-1]:
            raise PublishRefused({"stranger"}, "not for us")

    async with serve(append) as served:
        good, stranger, other = [await served.connect(name) for name in ("good", "stranger", "other")]
        good.send(publish(b"alone", 1))
        await until(lambda: len(groups) == 1, "the first group is appended")
        for client in (good, stranger, other):  # these wait together, behind the first
            client.send(publish(b"together", 2))
        await until(lambda: served.endpoint.stats.messages_received == 4, "all is received")
        first.set()
        assert await stranger.read_to_end() == []
        assert await good.read(2) == [Puback(packet_id=1), Puback(packet_id=2)]
        assert await other.read() == [Puback(packet_id=2)]
        assert groups == [{"good"}, {"good", "stranger", "other"}]
        stats = served.endpoint.stats
        assert (stats.held_bytes, stats.messages_appended, stats.messages_unappended) == (0, 3, 1)


async def test_packets_cut_anywhere_are_put_together() -> None:
    log = Log()
    async with serve(log.append) as served:
        client = await served.connect("c")
        stream = b"".join(encode(publish(bytes(n * 40), n), V311) for n in range(1, 12))
        for at in range(0, len(stream), 13):
            client.writer.write(stream[at : at + 13])
            await asyncio.sleep(0)
        assert await client.read(11) == [Puback(packet_id=n) for n in range(1, 12)]
        assert log.payloads == [bytes(n * 40) for n in range(1, 12)]


async def test_a_message_as_large_as_the_limit_passes_and_a_larger_one_is_refused_at_its_header() -> None:
    log = Log()
    limits = EndpointLimits(packet_bytes_max=1_000_000)
    async with serve(log.append, limits) as served:
        client = await served.connect("c", V5)
        largest = bytes(1_000_000 - len(b"\0\1t\0\1\0"))
        client.send(publish(largest, 1))
        assert await client.read() == [Puback(packet_id=1)]
        assert log.payloads == [largest]
        client.writer.write(b"\x32\xff\xff\xff\x7f" + bytes(100_000))  # 256 MB announced
        (packet,) = await client.read_to_end()
        assert isinstance(packet, Disconnect)
        assert packet.reason_code is ReasonCode.PACKET_TOO_LARGE


async def test_garbage_closes_its_own_connection_only() -> None:
    log = Log()
    async with serve(log.append) as served:
        good = await served.connect("good")
        for garbage in (b"\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 100, b"\x10\xff\xff\xff\xff\x01"):
            bad = await served.socket()
            bad.writer.write(garbage)
            assert await bad.read_to_end() == []
        good.send(publish(b"x", 1))
        assert await good.read() == [Puback(packet_id=1)]


async def test_a_socket_without_connect_is_closed_in_time() -> None:
    log = Log()
    async with serve(log.append, EndpointLimits(connect_timeout_ms=300)) as served:
        silent = await served.socket()
        dripping = await served.socket()
        dripping.writer.write(b"\x10")
        assert await silent.read_to_end() == []
        assert await dripping.read_to_end() == []
        assert served.endpoint.stats.connect_timeouts == 2
        await (await served.connect("c")).ping()


async def test_connections_above_the_limit_are_closed() -> None:
    log = Log()
    async with serve(log.append, EndpointLimits(connections_max=2)) as served:
        first, _ = await served.connect("a"), await served.connect("b")
        third = await served.socket()
        assert await third.read_to_end() == []
        await first.ping()
        first.writer.close()
        await until(lambda: served.endpoint.stats.connections_now == 1, "the slot is free")
        await served.connect("c")
        assert served.endpoint.stats.connections_refused == 1


async def test_a_client_that_takes_over_in_a_loop_leaves_one_connection() -> None:
    log = Log()
    async with serve(log.append) as served:
        for number in range(50):
            client = await served.connect("c", V5 if number % 2 else V311)
            client.send(publish(b"%d" % number, 1))
        assert (await client.read())[-1] == Puback(packet_id=1)
        await until(lambda: served.endpoint.stats.connections_now == 1, "the others are gone")
        assert served.endpoint.stats.takeovers == 49


async def test_a_client_that_is_gone_unnoticed_can_be_taken_over() -> None:
    log = Log()
    async with serve(log.append) as served:
        host_and_port = (served.address.host, served.address.port)
        connect = encode(Connect(client_id="c", version=V5), V5)
        with socket.create_connection(host_and_port, DEADLINE_S) as new:
            with socket.create_connection(host_and_port, DEADLINE_S) as old:
                old.send(connect)
                assert await asyncio.to_thread(old.recv, 1000)
                await until(lambda: served.endpoint.stats.connections_now == 2, "both are accepted")
                # At once, so that the server reads CONNECT first and says goodbye to a socket that resets it.
                new.send(connect)
            assert Decoder(version=V5).feed(await asyncio.to_thread(new.recv, 1000))
            assert served.endpoint.stats.takeovers == 1


async def test_packet_ids_go_round_and_round() -> None:
    log = Log()
    async with serve(log.append) as served:
        client = await served.connect("c")
        expected = 0
        for _ in range(3):
            for start in range(1, 65_536, 4_681):
                packet_ids = range(start, min(start + 4_681, 65_536))
                client.send(*(publish(b"", packet_id) for packet_id in packet_ids))
                assert await client.read(len(packet_ids)) == [Puback(packet_id=n) for n in packet_ids]
                expected += len(packet_ids)
        assert served.endpoint.stats.messages_appended == expected == 3 * 65_535


async def test_subscribers_hear_what_clients_and_the_host_publish() -> None:
    log = Log()
    async with serve(log.append) as served:
        subscriber = await served.connect("s")
        subscriber.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="#", qos=1),)))
        await subscriber.read()
        publisher = await served.connect("p")
        publisher.send(publish(b"from a client", 1, "a/b"))
        assert await subscriber.read() == [publish(b"from a client", 1, "a/b")]
        served.endpoint.publish("a/c", b"from the host", qos=1, retain=True)
        assert await subscriber.read() == [publish(b"from the host", 2, "a/c")]
        assert log.payloads == [b"from a client"]


async def test_a_lost_connection_publishes_the_will_through_append() -> None:
    log = Log()
    async with serve(log.append) as served:
        client = await served.connect("c", will=Will(topic="w", payload=b"gone"))
        client.writer.close()
        await until(lambda: log.payloads == [b"gone"], "the will is appended")


async def test_a_subscriber_that_does_not_read_is_closed_and_memory_stays_bounded() -> None:
    log = Log()
    limits = EndpointLimits(outbound_bytes_max=100_000, write_stall_timeout_ms=500)
    async with serve(log.append, limits) as served:
        slow = await served.connect("slow")
        slow.send(Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="#"),)))
        await slow.read()
        transport = slow.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        publisher = await served.connect("p")
        stats = served.endpoint.stats
        packet_id = 0
        async with asyncio.timeout(DEADLINE_S):
            while stats.write_stalls == 0:
                packet_id += 1
                publisher.send(publish(bytes(50_000), packet_id))
                assert await publisher.read() == [Puback(packet_id=packet_id)]
        assert stats.qos0_dropped > 0
        await until(lambda: stats.connections_now == 1, "the slow subscriber is gone")


async def test_close_appends_and_acknowledges_what_was_received_and_says_goodbye() -> None:
    log = Log()
    log.hold()
    async with serve(log.append) as served:
        client = await served.connect("c", V5)
        other = await served.connect("o")
        client.send(publish(b"x", 1))
        await client.ping()
        closing = asyncio.create_task(served.endpoint.close())
        await until(lambda: log.started == 1, "append is called")
        log.open.set()
        puback, goodbye = await client.read_to_end()
        assert puback == Puback(packet_id=1)
        assert isinstance(goodbye, Disconnect)
        assert goodbye.reason_code is ReasonCode.SERVER_SHUTTING_DOWN
        client.writer.close()
        assert await other.read_to_end() == []
        await closing
        with pytest.raises(OSError, match=r"."):
            await served.socket()


async def test_close_gives_up_on_an_append_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate_wire.mqtt.endpoint._CLOSE_TIMEOUT_S", 0.2)
    log = Log()
    log.hold()
    async with serve(log.append) as served:
        client = await served.connect("c")
        client.send(publish(b"x", 1))
        await until(lambda: log.started == 1, "append is called")
        await served.endpoint.close()
        assert await client.read_to_end() == []
        assert log.payloads == []
