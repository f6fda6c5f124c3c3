"""A server without sockets: clients are fed packets and read what they are sent; time and `append` go by hand."""

from __future__ import annotations

from itertools import count

from tidegate_wire.mqtt.decode import Decoder
from tidegate_wire.mqtt.encode import encode
from tidegate_wire.mqtt.intake import Group
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    ProtocolVersion,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Subscription,
    Will,
)
from tidegate_wire.mqtt.properties import NO_PROPERTIES, Properties
from tidegate_wire.mqtt.reason_codes import ReasonCode
from tidegate_wire.mqtt.server import Server
from tidegate_wire.mqtt.stats import EndpointStats

V311, V5 = ProtocolVersion.V311, ProtocolVersion.V5


class Bench:
    """The server, its clock, and the log of what was appended."""

    def __init__(self, limits: EndpointLimits | None = None) -> None:
        self.now_s = 1000.0
        self.stats = EndpointStats()
        self.appended: list[ReceivedMessage] = []
        self.gone: list[tuple[str, str]] = []
        numbers = count(1)
        self.server = Server(
            limits or EndpointLimits(),
            self.stats,
            make_client_id=lambda: f"made-{next(numbers)}",
            on_disconnect=lambda client_id, reason: self.gone.append((client_id, reason)),
        )
        self.clients: list[Client] = []

    def socket(self, version: ProtocolVersion = V311) -> Client:
        """A client that has not sent CONNECT."""
        client = Client(self, version)
        self.clients.append(client)
        return client

    def connect(
        self,
        client_id: str,
        *,
        version: ProtocolVersion = V311,
        clean_start: bool = True,
        keep_alive_s: int = 0,
        will: Will | None = None,
        properties: Properties = NO_PROPERTIES,
    ) -> Client:
        """A client whose CONNECT was accepted; its CONNACK is in `client.connack`."""
        client = self.socket(version)
        client.send(
            Connect(
                client_id=client_id,
                version=version,
                clean_start=clean_start,
                keep_alive_s=keep_alive_s,
                will=will,
                properties=properties,
            )
        )
        connack, *rest = client.read()
        assert isinstance(connack, Connack)
        client.connack = connack
        client.inbox = rest
        return client

    def wait(self, seconds: float) -> None:
        """Let time pass, in the steps the endpoint takes."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + 0.25)
            for client in self.clients:
                if not client.socket_gone:
                    client.connection.tick(self.now_s)
            self.server.broker.tick(self.now_s)
            self.server.flush()

    def take_group(self) -> Group:
        """The next group, as the endpoint takes it to append it."""
        group = self.server.intake.take()
        assert group is not None, "nothing waits for append"
        return group

    def finish(self, group: Group) -> None:
        """`append` returned."""
        self.appended += group.messages
        self.server.appended(group, self.now_s)
        self.server.flush()

    def fail(self, group: Group) -> None:
        """`append` raised."""
        self.server.failed(group, self.now_s)
        self.server.flush()

    def append_all(self) -> None:
        """Append whatever waits."""
        while (group := self.server.intake.take()) is not None:
            self.finish(group)


class Client:
    """The other end of a connection; the link that the server sees."""

    def __init__(self, bench: Bench, version: ProtocolVersion) -> None:
        self.bench = bench
        self.version = version
        self.connack: Connack = Connack()
        self.inbox: list[Packet] = []
        self.closed = False
        self.closed_for_writing = False
        self.socket_gone = False
        self.reading = True
        self.writes = 0
        self.stuck_at_bytes: int | None = None
        self._unread_bytes = 0
        self._decoder = Decoder(version=version)
        self.connection = bench.server.accept(self, peer="test", now_s=bench.now_s)

    # Link

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes += 1
        self.inbox += self._decoder.feed(data)
        self._unread_bytes += len(data)
        if self.stuck_at_bytes is not None and self._unread_bytes > self.stuck_at_bytes:
            self.connection.pause_writing(self.bench.now_s)

    def close(self) -> None:
        self.closed = True

    def close_for_writing(self) -> None:
        self.closed = self.closed_for_writing = True

    def abort(self) -> None:
        self.closed = self.socket_gone = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    # What a test does

    def send_bytes(self, data: bytes) -> None:
        assert self.reading, "the server does not read this socket"
        self.connection.receive(data, self.bench.now_s)
        self.bench.server.flush()

    def send(self, *packets: Packet) -> None:
        self.send_bytes(b"".join(encode(packet, self.version) for packet in packets))

    def read(self) -> list[Packet]:
        """What came since the last read."""
        packets, self.inbox = self.inbox, []
        return packets

    def drop(self) -> None:
        """The network is gone."""
        self.socket_gone = True
        self.connection.connection_lost(self.bench.now_s)
        self.bench.server.flush()

    def drain(self) -> None:
        """The client reads again."""
        self.stuck_at_bytes = None
        self._unread_bytes = 0
        self.connection.resume_writing(self.bench.now_s)
        self.bench.server.flush()

    def disconnect(self, reason: ReasonCode = ReasonCode.SUCCESS, properties: Properties = NO_PROPERTIES) -> None:
        self.send(Disconnect(reason_code=reason, properties=properties))

    def subscribe(
        self,
        topic_filter: str,
        qos: int = 0,
        *,
        identifier: int | None = None,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
    ) -> list[Packet]:
        """Subscribe; returns what came after SUBACK (retained messages)."""
        subscription = Subscription(
            topic_filter=topic_filter,
            qos=qos,
            no_local=no_local,
            retain_as_published=retain_as_published,
            retain_handling=retain_handling,
        )
        properties = Properties(subscription_identifiers=(identifier,)) if identifier else NO_PROPERTIES
        self.send(Subscribe(packet_id=9, subscriptions=(subscription,), properties=properties))
        suback, *rest = self.read()
        assert suback == Suback(packet_id=9, reason_codes=(ReasonCode(qos),))
        return rest

    def publish(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        *,
        packet_id: int | None = None,
        retain: bool = False,
        dup: bool = False,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        """Publish, without waiting for the answer; the packet id is 1 unless named."""
        if packet_id is None:
            packet_id = 1 if qos else 0
        self.send(
            Publish(
                topic=topic,
                payload=payload,
                qos=qos,
                retain=retain,
                dup=dup,
                packet_id=packet_id,
                properties=properties,
            )
        )

    def payloads(self) -> list[bytes]:
        """The payloads of the PUBLISH packets that came since the last read."""
        return [packet.payload for packet in self.read() if isinstance(packet, Publish)]

    def acknowledge(self, *packet_ids: int) -> None:
        for packet_id in packet_ids:
            self.send(Puback(packet_id=packet_id))
