"""Bytes to packets, incrementally; and the fast way for what an endpoint mostly receives.

`Decoder.next_packet` decodes any packet. `Decoder.take_publishes` takes the run of plain PUBLISH packets at the head of
the buffer straight into `ReceivedMessage`s, and stops before whatever is not plain: a retained or QoS 2 message, a
property, a packet that is not whole, or one that is wrong. `next_packet` is always right about that one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tidegate_wire.mqtt.errors import (
    MalformedPacketError,
    MqttError,
    PacketTooLargeError,
    ProtocolViolationError,
    UnsupportedVersionError,
)
from tidegate_wire.mqtt.messages import ReceivedMessage
from tidegate_wire.mqtt.packets import (
    Ack,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    ProtocolVersion,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from tidegate_wire.mqtt.primitives import VARINT_MAX, Reader
from tidegate_wire.mqtt.properties import NO_PROPERTIES, WILL, PacketType, Properties, decode_properties
from tidegate_wire.mqtt.reason_codes import ConnectReturnCode, ReasonCode
from tidegate_wire.mqtt.topics import TopicNames, check_topic_filter, check_topic_name

_FLAGS: Final = {PacketType.PUBREL: 0x02, PacketType.SUBSCRIBE: 0x02, PacketType.UNSUBSCRIBE: 0x02}
"""What the lower four bits of the first byte must be, where it is not 0 (and not PUBLISH)."""

_V5: Final = ProtocolVersion.V5

_PLAIN: Final = frozenset((0x30, 0x32, 0x3A))
"""First bytes of a PUBLISH that is not retained: QoS 0, QoS 1, QoS 1 with DUP."""


class Decoder:
    """Cuts one direction of one connection into packets.

    `version` is known to a client from the start; a server's decoder learns it from CONNECT, the only packet that it
    takes before. Packets with a remaining length above `packet_bytes_max` are refused at their header. After an
    MqttError the connection is beyond repair, and so is its decoder.
    """

    __slots__ = ("_buffer", "_missing", "_offset", "_packet_bytes_max", "_partial", "_topics", "version")

    def __init__(
        self,
        *,
        version: ProtocolVersion | None = None,
        packet_bytes_max: int = VARINT_MAX,
        topics: TopicNames | None = None,
    ) -> None:
        self.version = version
        self._packet_bytes_max = packet_bytes_max
        self._topics = topics if topics is not None else TopicNames()
        self._buffer = b""
        self._offset = 0
        self._partial = bytearray()
        """The head of a packet that is not whole; joined once when `_missing` more bytes are there."""
        self._missing = 0

    def feed(self, data: bytes) -> list[Packet]:
        """Take bytes in and return the packets they complete.

        Raises:
            MqttError: the peer broke the protocol; the packets before that are lost.
        """
        self.append(data)
        packets: list[Packet] = []
        while (packet := self.next_packet()) is not None:
            packets.append(packet)
        return packets

    def append(self, data: bytes) -> None:
        """Take bytes in without decoding them."""
        if self._missing:
            if len(data) < self._missing:
                self._partial += data
                self._missing -= len(data)
                return
            self._missing = 0
            self._buffer = b"".join((self._partial, data))
            self._partial.clear()
        elif self._offset < len(self._buffer):
            self._buffer = self._buffer[self._offset :] + data
        else:
            self._buffer = data
        self._offset = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes taken in that no packet was made of yet."""
        return len(self._buffer) - self._offset + len(self._partial)

    def at_publish(self) -> bool:
        """Whether the next packet, whole or not, is a PUBLISH."""
        return self._offset < len(self._buffer) and self._buffer[self._offset] >> 4 == PacketType.PUBLISH

    def next_packet(self) -> Packet | None:
        """The next packet, or None where it is not whole yet.

        Raises:
            MalformedPacketError: the bytes are not a packet.
            PacketTooLargeError: the header announces too much.
            UnsupportedVersionError: CONNECT asks for another protocol.
            ProtocolViolationError: the packet says what the specification forbids.
        """
        buffer = self._buffer
        start = self._offset
        available = len(buffer) - start
        if available < 1:
            return None
        first_byte = buffer[start]
        self._check_first_byte(first_byte)
        size = 0
        body = start + 1
        for shift in (0, 7, 14, 21):
            if body >= len(buffer):
                return None
            byte = buffer[body]
            body += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise MalformedPacketError("the remaining length is longer than it need be")
                break
        else:
            raise MalformedPacketError("the remaining length has more than four bytes")
        if size > self._packet_bytes_max:
            raise PacketTooLargeError(f"a packet of {size} bytes; at most {self._packet_bytes_max} are taken")
        end = body + size
        if end > len(buffer):
            self._partial += buffer[start:]
            self._missing = end - len(buffer)
            self._buffer = b""
            self._offset = 0
            return None
        packet = self._decode(first_byte, Reader(buffer, body, end))
        self._offset = end
        return packet

    def take_publishes(  # noqa: C901, PLR0912, PLR0915 - the hot path: a call would cost as much as the rest
        self,
        client_id: str,
        messages: list[ReceivedMessage],
        packet_ids: list[bytes],
        *,
        messages_max: int,
        bytes_max: int,
    ) -> int:
        """Append the plain QoS 0 and 1 messages at the head to `messages`, and the packet ids to acknowledge (two
        bytes each) to `packet_ids`; stops at either limit, which the last message may pass. Returns the bytes taken.
        """
        buffer = self._buffer
        start = offset = self._offset
        size = len(buffer)
        stop = min(size - 4, start + bytes_max)  # the shortest PUBLISH has five bytes
        known = self._topics.known
        v5 = self.version is _V5
        add_message = messages.append
        add_packet_id = packet_ids.append
        for _ in range(messages_max):
            if offset >= stop:
                break
            first_byte = buffer[offset]
            if first_byte != 0x32 and first_byte not in _PLAIN:
                break
            length = buffer[offset + 1]
            if length < 0x80:
                body = offset + 2
            else:
                high = buffer[offset + 2]
                if not 0 < high < 0x80:
                    break
                length += (high << 7) - 0x80
                body = offset + 3
            end = body + length
            if end > size:
                break
            topic_end = body + 2 + (buffer[body] << 8 | buffer[body + 1])
            if first_byte == 0x30:
                payload_start = topic_end
                packet_id = 0
            else:
                payload_start = topic_end + 2
                if payload_start > end:
                    break
                packet_id = buffer[topic_end] << 8 | buffer[topic_end + 1]
                if not packet_id:
                    break
            if v5:  # an empty property section is one zero byte
                payload_start += 1
                if payload_start > end or buffer[payload_start - 1]:
                    break
            if payload_start > end:
                break
            raw_topic = buffer[body + 2 : topic_end]
            topic = known.get(raw_topic)
            if topic is None:
                try:
                    topic = self._topics.decode(raw_topic)
                except MqttError:
                    break  # next_packet raises it again, in its turn
            if packet_id:
                add_message(ReceivedMessage(client_id, topic, buffer[payload_start:end], 1, False, first_byte == 0x3A,
                                            packet_id))  # fmt: skip
                add_packet_id(buffer[topic_end : topic_end + 2])
            else:
                add_message(ReceivedMessage(client_id, topic, buffer[payload_start:end]))
            offset = end
        self._offset = offset
        return offset - start

    def _check_first_byte(self, first_byte: int) -> None:
        kind = first_byte >> 4
        if self.version is None and kind != PacketType.CONNECT:
            raise ProtocolViolationError("the first packet is not CONNECT")
        if kind == PacketType.PUBLISH:
            if first_byte & 0x06 == 0x06:
                raise MalformedPacketError("a PUBLISH of QoS 3")
            if first_byte & 0x0E == 0x08:
                raise MalformedPacketError("a PUBLISH of QoS 0 with DUP")
        elif kind == 0 or (kind == PacketType.AUTH and self.version is ProtocolVersion.V311):
            raise MalformedPacketError(f"0x{first_byte:02x} begins no packet")
        elif first_byte & 0x0F != _FLAGS.get(PacketType(kind), 0):
            raise MalformedPacketError(f"the reserved bits of {PacketType(kind).name} are wrong: 0x{first_byte:02x}")

    def _decode(self, first_byte: int, reader: Reader) -> Packet:
        kind = PacketType(first_byte >> 4)
        if kind is PacketType.CONNECT:
            connect = _decode_connect(reader)
            self.version = connect.version
            return connect
        assert self.version is not None
        v5 = self.version is _V5
        if kind is PacketType.PUBLISH:
            return self._decode_publish(first_byte, reader, v5)
        packet = _DECODERS[kind](reader, v5)
        reader.expect_end()
        return packet

    def _decode_publish(self, first_byte: int, reader: Reader, v5: bool) -> Publish:
        raw_topic = reader.binary()
        qos = first_byte >> 1 & 0x03
        packet_id = _packet_id(reader) if qos else 0
        properties = decode_properties(reader, PacketType.PUBLISH) if v5 else NO_PROPERTIES
        named_by_alias = not raw_topic and properties.topic_alias is not None
        topic = "" if named_by_alias else self._topics.decode(raw_topic)
        if properties.response_topic is not None:
            check_topic_name(properties.response_topic)
        return Publish(
            topic=topic,
            payload=reader.rest(),
            qos=qos,
            retain=bool(first_byte & 0x01),
            dup=bool(first_byte & 0x08),
            packet_id=packet_id,
            properties=properties,
        )


def _packet_id(reader: Reader) -> int:
    value = reader.u16()
    if value == 0:
        raise MalformedPacketError("a packet id of 0")
    return value


def _reason(value: int) -> ReasonCode:
    try:
        return ReasonCode(value)
    except ValueError as error:
        raise MalformedPacketError(f"0x{value:02x} is not a reason code") from error


def _decode_connect(reader: Reader) -> Connect:
    name = reader.binary()
    level = reader.u8()
    if name not in (b"MQTT", b"MQIsdp"):
        raise MalformedPacketError(f"CONNECT names the protocol {name[:20]!r}, not MQTT")
    if name != b"MQTT" or level not in (4, 5):
        raise UnsupportedVersionError(f"protocol {name.decode()} level {level}; 4 (3.1.1) and 5 are spoken", level)
    version = ProtocolVersion(level)
    v5 = version is _V5
    flags = reader.u8()
    has_will = bool(flags & 0x04)
    has_username, has_password = bool(flags & 0x80), bool(flags & 0x40)
    if flags & 0x01 or flags & 0x18 == 0x18 or (not has_will and flags & 0x38):
        raise MalformedPacketError(f"the flags of CONNECT are wrong: 0x{flags:02x}")
    if has_password and not has_username and not v5:
        raise MalformedPacketError("a password without a user name")
    keep_alive_s = reader.u16()
    properties = decode_properties(reader, PacketType.CONNECT) if v5 else NO_PROPERTIES
    connect = Connect(
        version=version,
        clean_start=bool(flags & 0x02),
        keep_alive_s=keep_alive_s,
        properties=properties,
        client_id=reader.string(),
        will=_decode_will(reader, flags, v5) if has_will else None,
        username=reader.string() if has_username else None,
        password=reader.binary() if has_password else None,
    )
    reader.expect_end()
    return connect


def _decode_will(reader: Reader, flags: int, v5: bool) -> Will:
    properties = decode_properties(reader, WILL) if v5 else NO_PROPERTIES
    topic = reader.string()
    check_topic_name(topic)
    if properties.response_topic is not None:
        check_topic_name(properties.response_topic)
    return Will(
        topic=topic,
        payload=reader.binary(),
        qos=flags >> 3 & 0x03,
        retain=bool(flags & 0x20),
        properties=properties,
    )


def _decode_connack(reader: Reader, v5: bool) -> Connack:
    flags = reader.u8()
    if flags > 1:
        raise MalformedPacketError(f"the flags of CONNACK are wrong: 0x{flags:02x}")
    value = reader.u8()
    if v5:
        return Connack(
            session_present=bool(flags),
            reason_code=_reason(value),
            properties=decode_properties(reader, PacketType.CONNACK),
        )
    try:
        return Connack(session_present=bool(flags), reason_code=ConnectReturnCode(value))
    except ValueError as error:
        raise MalformedPacketError(f"0x{value:02x} is not a return code of CONNACK") from error


def _reason_and_properties(reader: Reader, kind: PacketType, v5: bool) -> tuple[ReasonCode, Properties]:
    """The end of an ack, DISCONNECT or AUTH: both may be left out, as MQTT 3.1.1 always does."""
    if not v5 or not reader.remaining:
        return ReasonCode.SUCCESS, NO_PROPERTIES
    reason = _reason(reader.u8())
    return reason, decode_properties(reader, kind) if reader.remaining else NO_PROPERTIES


def _ack_decoder(make: Callable[..., Ack], kind: PacketType) -> Callable[[Reader, bool], Packet]:
    def decode(reader: Reader, v5: bool) -> Packet:
        packet_id = _packet_id(reader)
        reason, properties = _reason_and_properties(reader, kind, v5)
        return make(packet_id=packet_id, reason_code=reason, properties=properties)

    return decode


def _decode_subscribe(reader: Reader, v5: bool) -> Subscribe:
    packet_id = _packet_id(reader)
    properties = decode_properties(reader, PacketType.SUBSCRIBE) if v5 else NO_PROPERTIES
    subscriptions: list[Subscription] = []
    while reader.remaining:
        topic_filter = reader.string()
        check_topic_filter(topic_filter)
        options = reader.u8()
        if options & 0x03 == 0x03 or options & (0xC0 if v5 else 0xFC) or options & 0x30 == 0x30:
            raise MalformedPacketError(f"the options of a subscription are wrong: 0x{options:02x}")
        subscriptions.append(
            Subscription(
                topic_filter=topic_filter,
                qos=options & 0x03,
                no_local=bool(options & 0x04),
                retain_as_published=bool(options & 0x08),
                retain_handling=options >> 4,
            )
        )
    if not subscriptions:
        raise ProtocolViolationError("a SUBSCRIBE without a topic filter")
    return Subscribe(packet_id=packet_id, subscriptions=tuple(subscriptions), properties=properties)


def _decode_suback(reader: Reader, v5: bool) -> Suback:
    packet_id = _packet_id(reader)
    properties = decode_properties(reader, PacketType.SUBACK) if v5 else NO_PROPERTIES
    reasons = tuple(map(_reason, reader.rest()))
    return Suback(packet_id=packet_id, reason_codes=reasons, properties=properties)


def _decode_unsubscribe(reader: Reader, v5: bool) -> Unsubscribe:
    packet_id = _packet_id(reader)
    properties = decode_properties(reader, PacketType.UNSUBSCRIBE) if v5 else NO_PROPERTIES
    filters: list[str] = []
    while reader.remaining:
        filters.append(reader.string())
        check_topic_filter(filters[-1])
    if not filters:
        raise ProtocolViolationError("an UNSUBSCRIBE without a topic filter")
    return Unsubscribe(packet_id=packet_id, topic_filters=tuple(filters), properties=properties)


def _decode_unsuback(reader: Reader, v5: bool) -> Unsuback:
    packet_id = _packet_id(reader)
    if not v5:
        return Unsuback(packet_id=packet_id)
    properties = decode_properties(reader, PacketType.UNSUBACK)
    return Unsuback(packet_id=packet_id, reason_codes=tuple(map(_reason, reader.rest())), properties=properties)


def _decode_disconnect(reader: Reader, v5: bool) -> Disconnect:
    reason, properties = _reason_and_properties(reader, PacketType.DISCONNECT, v5)
    return Disconnect(reason_code=reason, properties=properties)


def _decode_auth(reader: Reader, v5: bool) -> Auth:
    reason, properties = _reason_and_properties(reader, PacketType.AUTH, v5)
    return Auth(reason_code=reason, properties=properties)


_DECODERS: Final[dict[PacketType, Callable[[Reader, bool], Packet]]] = {
    PacketType.CONNACK: _decode_connack,
    PacketType.PUBACK: _ack_decoder(Puback, PacketType.PUBACK),
    PacketType.PUBREC: _ack_decoder(Pubrec, PacketType.PUBREC),
    PacketType.PUBREL: _ack_decoder(Pubrel, PacketType.PUBREL),
    PacketType.PUBCOMP: _ack_decoder(Pubcomp, PacketType.PUBCOMP),
    PacketType.SUBSCRIBE: _decode_subscribe,
    PacketType.SUBACK: _decode_suback,
    PacketType.UNSUBSCRIBE: _decode_unsubscribe,
    PacketType.UNSUBACK: _decode_unsuback,
    PacketType.PINGREQ: lambda _reader, _v5: Pingreq(),
    PacketType.PINGRESP: lambda _reader, _v5: Pingresp(),
    PacketType.DISCONNECT: _decode_disconnect,
    PacketType.AUTH: _decode_auth,
}
