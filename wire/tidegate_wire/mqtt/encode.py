"""Packets to bytes.

A value that no packet can carry is a ValueError: it comes from our own program, not from a peer.
"""

from __future__ import annotations

from typing import Final

from tidegate_wire.mqtt.packets import (
    PACKET_ID_MAX,
    Ack,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from tidegate_wire.mqtt.packets import ProtocolVersion as Version
from tidegate_wire.mqtt.primitives import encode_binary, encode_string, encode_varint
from tidegate_wire.mqtt.properties import NO_PROPERTIES, WILL, PacketType, Properties, encode_properties
from tidegate_wire.mqtt.reason_codes import ConnectReturnCode, ReasonCode

PINGREQ: Final = b"\xc0\x00"
PINGRESP: Final = b"\xd0\x00"

_ACK_HEADER: Final = {
    Puback: (PacketType.PUBACK, 0x40),
    Pubrec: (PacketType.PUBREC, 0x50),
    Pubrel: (PacketType.PUBREL, 0x62),
    Pubcomp: (PacketType.PUBCOMP, 0x70),
}


def encode(packet: Packet, version: Version) -> bytes:
    """The packet as bytes of protocol `version`.

    Raises:
        ValueError: this version can't carry what the packet says.
    """
    match packet:
        case Publish():
            return _publish(packet, version)
        case Puback() | Pubrec() | Pubrel() | Pubcomp():
            return _ack(packet, version)
        case Pingreq():
            return PINGREQ
        case Pingresp():
            return PINGRESP
        case Connect():
            return _connect(packet, version)
        case Connack():
            return _connack(packet, version)
        case Subscribe():
            return _subscribe(packet, version)
        case Suback():
            return _suback(packet, version)
        case Unsubscribe():
            return _unsubscribe(packet, version)
        case Unsuback():
            return _unsuback(packet, version)
        case Disconnect() | Auth():
            return _disconnect_or_auth(packet, version)


def publish_parts(
    topic: str, payload: bytes, *, first_byte: int, properties: Properties, version: Version
) -> tuple[bytes, bytes]:
    """A PUBLISH in two parts, between which the packet id stands if the QoS is not 0.

    Raises:
        ValueError: the topic is longer than a packet can say, or a property does not belong into PUBLISH.
    """
    name = encode_string(topic)
    tail = payload if version is Version.V311 else encode_properties(properties, PacketType.PUBLISH) + payload
    size = len(name) + len(tail) + (2 if first_byte & 0x06 else 0)
    length = bytes((size,)) if size < 0x80 else encode_varint(size)
    return b"".join((bytes((first_byte,)), length, name)), tail


def _framed(first_byte: int, *body: bytes) -> bytes:
    joined = b"".join(body)
    return bytes((first_byte,)) + encode_varint(len(joined)) + joined


def _section(properties: Properties, packet: int, version: Version) -> bytes:
    """The property section: in 3.1.1 there is none."""
    if version is Version.V5:
        return encode_properties(properties, packet)
    if properties != NO_PROPERTIES:
        raise ValueError("MQTT 3.1.1 has no properties")
    return b""


def _packet_id(value: int) -> bytes:
    if not 1 <= value <= PACKET_ID_MAX:
        raise ValueError(f"{value} is not a packet id")
    return value.to_bytes(2, "big")


def _publish(packet: Publish, version: Version) -> bytes:
    if version is Version.V311 and packet.properties != NO_PROPERTIES:
        raise ValueError("MQTT 3.1.1 has no properties")
    if packet.qos not in (0, 1, 2) or (packet.qos == 0 and (packet.packet_id or packet.dup)):
        raise ValueError(f"QoS {packet.qos} with packet id {packet.packet_id} and DUP {packet.dup}")
    first_byte = 0x30 | packet.dup << 3 | packet.qos << 1 | packet.retain
    head, tail = publish_parts(
        packet.topic, packet.payload, first_byte=first_byte, properties=packet.properties, version=version
    )
    return head + _packet_id(packet.packet_id) + tail if packet.qos else head + tail


def _ack(packet: Ack, version: Version) -> bytes:
    kind, first_byte = _ACK_HEADER[type(packet)]
    packet_id = _packet_id(packet.packet_id)
    if packet.properties is not NO_PROPERTIES:
        reason = bytes((packet.reason_code,))
        return _framed(first_byte, packet_id, reason, _section(packet.properties, kind, version))
    if packet.reason_code == ReasonCode.SUCCESS:
        return bytes((first_byte, 2)) + packet_id
    if version is Version.V311:
        raise ValueError("MQTT 3.1.1 acknowledges without a reason code")
    return bytes((first_byte, 3)) + packet_id + bytes((packet.reason_code,))


def _connect(packet: Connect, version: Version) -> bytes:
    if packet.version is not version:
        raise ValueError(f"a CONNECT of {packet.version.name} on a connection of {version.name}")
    if not 0 <= packet.keep_alive_s <= 0xFFFF:
        raise ValueError(f"a keep alive of {packet.keep_alive_s} s does not fit its field")
    flags = packet.clean_start << 1
    body = [_section(packet.properties, PacketType.CONNECT, version), encode_string(packet.client_id)]
    will = packet.will
    if will is not None:
        flags |= 0x04 | will.qos << 3 | will.retain << 5
        body += (_section(will.properties, WILL, version), encode_string(will.topic), encode_binary(will.payload))
    if packet.username is not None:
        flags |= 0x80
        body.append(encode_string(packet.username))
    if packet.password is not None:
        if version is Version.V311 and packet.username is None:
            raise ValueError("MQTT 3.1.1 has no password without a user name")
        flags |= 0x40
        body.append(encode_binary(packet.password))
    head = b"\0\4MQTT" + bytes((version, flags)) + packet.keep_alive_s.to_bytes(2, "big")
    return _framed(0x10, head, *body)


def _connack(packet: Connack, version: Version) -> bytes:
    expected = ReasonCode if version is Version.V5 else ConnectReturnCode
    if not isinstance(packet.reason_code, expected):
        raise ValueError(f"a CONNACK of {version.name} carries a {expected.__name__}")  # noqa: TRY004 - the pair is wrong
    head = bytes((packet.session_present, packet.reason_code))
    return _framed(0x20, head, _section(packet.properties, PacketType.CONNACK, version))


def _subscribe(packet: Subscribe, version: Version) -> bytes:
    body = [_packet_id(packet.packet_id), _section(packet.properties, PacketType.SUBSCRIBE, version)]
    for entry in packet.subscriptions:
        options = entry.qos
        if version is Version.V5:
            options |= entry.no_local << 2 | entry.retain_as_published << 3 | entry.retain_handling << 4
        elif entry.no_local or entry.retain_as_published or entry.retain_handling:
            raise ValueError("MQTT 3.1.1 has no subscription options but QoS")
        body += (encode_string(entry.topic_filter), bytes((options,)))
    return _framed(0x82, *body)


def _suback(packet: Suback, version: Version) -> bytes:
    section = _section(packet.properties, PacketType.SUBACK, version)
    return _framed(0x90, _packet_id(packet.packet_id), section, bytes(packet.reason_codes))


def _unsubscribe(packet: Unsubscribe, version: Version) -> bytes:
    section = _section(packet.properties, PacketType.UNSUBSCRIBE, version)
    return _framed(0xA2, _packet_id(packet.packet_id), section, *map(encode_string, packet.topic_filters))


def _unsuback(packet: Unsuback, version: Version) -> bytes:
    if version is Version.V311 and packet.reason_codes:
        raise ValueError("MQTT 3.1.1 has no reason codes in UNSUBACK")
    section = _section(packet.properties, PacketType.UNSUBACK, version)
    return _framed(0xB0, _packet_id(packet.packet_id), section, bytes(packet.reason_codes))


def _disconnect_or_auth(packet: Disconnect | Auth, version: Version) -> bytes:
    kind, first_byte = (PacketType.DISCONNECT, 0xE0) if isinstance(packet, Disconnect) else (PacketType.AUTH, 0xF0)
    plain = packet.reason_code == ReasonCode.SUCCESS and packet.properties == NO_PROPERTIES
    if version is Version.V311 and (not plain or kind is PacketType.AUTH):
        raise ValueError(f"MQTT 3.1.1 has no {kind.name} that says more than its name")
    if plain:
        return bytes((first_byte, 0))
    reason = bytes((packet.reason_code,))
    if packet.properties is NO_PROPERTIES:
        return _framed(first_byte, reason)
    return _framed(first_byte, reason, _section(packet.properties, kind, version))
