"""A client's session on the server: what is on its way to it, what waits, and what it has half sent (QoS 2).

It may outlive its connection (MQTT 5, section 4.1). Messages for a subscriber wait here while its window is full, its
socket does not take more, or it is away; the queue is bounded, and what does not fit is dropped and counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from tidegate_wire.mqtt.encode import publish_parts
from tidegate_wire.mqtt.errors import ProtocolViolationError
from tidegate_wire.mqtt.limits import EndpointLimits
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.packets import PACKET_ID_MAX, ProtocolVersion, Will
from tidegate_wire.mqtt.properties import NO_PROPERTIES, Properties
from tidegate_wire.mqtt.reason_codes import ReasonCode
from tidegate_wire.mqtt.stats import EndpointStats
from tidegate_wire.mqtt.subscriptions import Grant

QUEUED_OVERHEAD_BYTES: Final = 300
"""What a queued message takes in memory beside topic and payload (measured: 290)."""


class Outlet(Protocol):
    """The connection of a session, as the session sees it."""

    version: ProtocolVersion
    send_window: int
    """QoS 1 and 2 messages that may be unacknowledged: the client's Receive Maximum, or our own limit."""
    packet_bytes_max: int
    """The client's Maximum Packet Size."""

    @property
    def writable(self) -> bool:
        """Whether the socket takes more."""

    def send(self, data: bytes) -> None:
        """Write, with all else of this turn, when the turn ends."""


class Qos2(Enum):
    """Where an inbound QoS 2 message stands between PUBLISH and PUBREL."""

    APPENDING = auto()
    """Not safe yet; PUBREC is not sent."""
    STORED = auto()
    """PUBREC is sent; a PUBLISH with this packet id is a repetition."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way to one subscriber at QoS 1 or 2."""

    message: ReceivedMessage
    qos: int
    retain: bool
    identifiers: tuple[int, ...]
    expires_at_s: float | None

    @property
    def size_bytes(self) -> int:
        """What it counts against the limits of the queue."""
        return self.message.content_bytes + QUEUED_OVERHEAD_BYTES


@dataclass(slots=True)
class QueueBudget:
    """What all sessions of an endpoint hold in their queues."""

    bytes_max: int
    bytes_held: int = 0


def encode_delivery(
    message: ReceivedMessage,
    version: ProtocolVersion,
    *,
    first_byte: int,
    identifiers: tuple[int, ...],
    expiry_interval_s: int | None,
) -> tuple[bytes, bytes]:
    """The PUBLISH for a subscriber, in the two parts between which a packet id stands."""
    properties = NO_PROPERTIES
    if version is ProtocolVersion.V5 and (identifiers or expiry_interval_s is not None or _has_properties(message)):
        properties = Properties(
            payload_format_indicator=message.payload_format_indicator,
            message_expiry_interval_s=expiry_interval_s,
            content_type=message.content_type,
            response_topic=message.response_topic,
            correlation_data=message.correlation_data,
            subscription_identifiers=identifiers,
            user_properties=message.user_properties,
        )
    return publish_parts(message.topic, message.payload, first_byte=first_byte, properties=properties, version=version)


def _has_properties(message: ReceivedMessage) -> bool:
    return (
        bool(message.user_properties)
        or message.content_type is not None
        or message.response_topic is not None
        or message.correlation_data is not None
        or message.payload_format_indicator is not None
    )


class Session:
    """Compared by identity. `outlet` is None while the client is away."""

    def __init__(self, client_id: str, limits: EndpointLimits, stats: EndpointStats, budget: QueueBudget) -> None:
        self.client_id = client_id
        self.subscriptions: dict[str, Grant] = {}
        self._qos2: dict[int, Qos2] = {}
        self.expiry_interval_s = 0
        self.ends_at_s: float | None = None
        """When it expires; None while it is connected."""
        self.will: Will | None = None
        self.will_due_s: float | None = None
        """When its will is to be published; None where no will waits."""
        self.outlet: Outlet | None = None
        self._limits = limits
        self._stats = stats
        self._budget = budget
        self._queue: deque[Delivery] = deque()
        self._inflight: dict[int, Delivery | None] = {}
        """In the order sent, until PUBACK or PUBCOMP; None once PUBREC came."""
        self._to_resend: deque[int] = deque()
        """Packet ids in flight that this connection has not been sent yet."""
        self._last_packet_id = 0
        self._bytes = 0

    @property
    def is_connected(self) -> bool:
        """Whether a message would go out now."""
        return self.outlet is not None and self.outlet.writable

    @property
    def queued(self) -> int:
        """Messages that wait, sent ones not counted."""
        return len(self._queue)

    @property
    def qos2_count(self) -> int:
        """QoS 2 messages of the client between PUBLISH and PUBREL."""
        return len(self._qos2)

    def qos2_state(self, packet_id: int) -> Qos2 | None:
        """Where the client's QoS 2 message stands; None if there is none with this packet id."""
        return self._qos2.get(packet_id)

    def begin_qos2(self, packet_id: int) -> None:
        """The client sent a QoS 2 message under a packet id that was free."""
        assert packet_id not in self._qos2, packet_id
        self._qos2[packet_id] = Qos2.APPENDING
        self._stats.qos2_now += 1

    def store_qos2(self, packet_id: int) -> None:
        """It is safe. A session that ended meanwhile does not remember it."""
        if packet_id in self._qos2:
            self._qos2[packet_id] = Qos2.STORED

    def end_qos2(self, packet_id: int) -> None:
        """PUBREL came, or the message was not stored: the packet id is free."""
        if self._qos2.pop(packet_id, None) is not None:
            self._stats.qos2_now -= 1

    def deliver_qos0(self, data: bytes) -> None:
        """Send an encoded PUBLISH if the client takes it, or drop it."""
        outlet = self.outlet
        if outlet is None:
            return
        if not outlet.writable:
            self._stats.qos0_dropped += 1
        elif len(data) <= outlet.packet_bytes_max:
            outlet.send(data)
            self._stats.messages_delivered += 1

    def deliver(self, delivery: Delivery, now_s: float, *, queued_max: int) -> None:
        """Send at QoS 1 or 2, or queue it behind what waits, at most `queued_max` messages."""
        size = delivery.size_bytes
        budget = self._budget
        if (
            len(self._queue) >= queued_max
            or self._bytes + size > self._limits.queued_bytes_max
            or budget.bytes_held + size > budget.bytes_max
        ):
            self._stats.queue_dropped += 1
            return
        self._bytes += size
        budget.bytes_held += size
        self._queue.append(delivery)
        self.send_queued(now_s)

    def acknowledge(self, packet_id: int, now_s: float) -> None:
        """The client's PUBACK: a QoS 1 message is delivered, and the window has room."""
        delivery = self._inflight.get(packet_id)
        if delivery is not None and delivery.qos == 1:
            self._release(delivery)
            self._forget(packet_id, now_s)

    def receive(self, packet_id: int, reason: ReasonCode, now_s: float) -> ReasonCode | None:
        """The client's PUBREC: it has a QoS 2 message, or refuses it. The reason to answer in PUBREL; None for none."""
        if packet_id not in self._inflight:
            return None if reason.is_error else ReasonCode.PACKET_IDENTIFIER_NOT_FOUND
        delivery = self._inflight[packet_id]
        if delivery is not None:
            if delivery.qos != 2:
                raise ProtocolViolationError(f"PUBREC for packet id {packet_id}, which was sent with QoS 1")
            self._release(delivery)
            self._inflight[packet_id] = None
        if reason.is_error:
            self._forget(packet_id, now_s)
            return None
        return ReasonCode.SUCCESS

    def complete(self, packet_id: int, now_s: float) -> None:
        """The client's PUBCOMP: a QoS 2 message is delivered, and the window has room."""
        if packet_id in self._inflight and self._inflight[packet_id] is None:
            self._forget(packet_id, now_s)

    def send_queued(self, now_s: float) -> None:
        """Send what waits, as far as window and socket allow."""
        outlet = self.outlet
        if outlet is None:
            return
        while self._to_resend and self._unacknowledged < outlet.send_window and outlet.writable:
            packet_id = self._to_resend.popleft()
            delivery = self._inflight[packet_id]
            if delivery is None:
                outlet.send(b"\x62\x02" + packet_id.to_bytes(2, "big"))  # PUBREL
            else:
                self._send(outlet, packet_id, delivery, now_s, dup=True)
        while self._queue and self._unacknowledged < outlet.send_window and outlet.writable:
            queued = self._queue.popleft()
            if queued.expires_at_s is not None and queued.expires_at_s <= now_s:
                self._release(queued)
                self._stats.queue_expired += 1
                continue
            packet_id = self._free_packet_id()
            self._inflight[packet_id] = queued
            self._send(outlet, packet_id, queued, now_s, dup=False)

    def resume(self, now_s: float) -> None:
        """On a new connection: what was not acknowledged again, in its order and with DUP, then what waits."""
        self._to_resend = deque(self._inflight)
        self.send_queued(now_s)

    def discard(self) -> None:
        """Give back what queue and packet ids hold: the session ends."""
        self._stats.qos2_now -= len(self._qos2)
        self._qos2.clear()
        self._budget.bytes_held -= self._bytes
        self._bytes = 0
        self._queue.clear()
        self._inflight.clear()
        self._to_resend.clear()

    @property
    def _unacknowledged(self) -> int:
        return len(self._inflight) - len(self._to_resend)

    def _send(self, outlet: Outlet, packet_id: int, delivery: Delivery, now_s: float, *, dup: bool) -> None:
        expiry_s = None if delivery.expires_at_s is None else max(1, round(delivery.expires_at_s - now_s))
        head, tail = encode_delivery(
            delivery.message,
            outlet.version,
            first_byte=0x30 | dup << 3 | delivery.qos << 1 | delivery.retain,
            identifiers=delivery.identifiers,
            expiry_interval_s=expiry_s,
        )
        if len(head) + 2 + len(tail) > outlet.packet_bytes_max:
            # MQTT 5, section 3.1.2.11.4: what the client can't take counts as delivered
            del self._inflight[packet_id]
            self._release(delivery)
            return
        outlet.send(head + packet_id.to_bytes(2, "big") + tail)
        self._stats.messages_delivered += 1

    def _forget(self, packet_id: int, now_s: float) -> None:
        """The packet id is free again, and the window has room."""
        del self._inflight[packet_id]
        if packet_id in self._to_resend:
            self._to_resend.remove(packet_id)  # the client answers what the connection before this one sent
        self.send_queued(now_s)

    def _release(self, delivery: Delivery) -> None:
        size = delivery.size_bytes
        self._bytes -= size
        self._budget.bytes_held -= size

    def _free_packet_id(self) -> int:
        assert len(self._inflight) < PACKET_ID_MAX, "the window is smaller than the number of packet ids"
        packet_id = self._last_packet_id
        while True:
            packet_id = packet_id % PACKET_ID_MAX + 1
            if packet_id not in self._inflight:
                self._last_packet_id = packet_id
                return packet_id
