"""MQTT 5 properties (section 2.2.2): the 27 of them, which packet may carry which, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Any, Final, NamedTuple

from tidegate_wire.mqtt.errors import MalformedPacketError, ProtocolViolationError
from tidegate_wire.mqtt.primitives import Reader, encode_binary, encode_string, encode_varint
from tidegate_wire.mqtt.reason_codes import ReasonCode


class PacketType(IntEnum):
    """The upper four bits of a packet's first byte."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


WILL: Final = 0
"""Stands beside the packet types where it says what properties are of: a will's are its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """The properties of one packet, or of a will; None (or empty) stands for absent. Intervals are in seconds."""

    payload_format_indicator: int | None = None
    message_expiry_interval_s: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    subscription_identifiers: tuple[int, ...] = ()
    session_expiry_interval_s: int | None = None
    assigned_client_identifier: str | None = None
    server_keep_alive_s: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: int | None = None
    will_delay_interval_s: int | None = None
    request_response_information: int | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: int | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    maximum_packet_size: int | None = None
    wildcard_subscription_available: int | None = None
    subscription_identifier_available: int | None = None
    shared_subscription_available: int | None = None


NO_PROPERTIES: Final = Properties()

USER_PROPERTIES_MAX: Final = 100
"""User properties that a packet is taken with. One takes five bytes on the wire and 200 in memory; a message that
carries more than a few dozen is an attack on that ratio.
"""


class _Kind(Enum):
    FLAG = auto()
    """A byte that is 0 or 1."""
    U16 = auto()
    U32 = auto()
    VARINT = auto()
    STRING = auto()
    BINARY = auto()
    PAIR = auto()


class _Property(NamedTuple):
    identifier: int
    name: str
    kind: _Kind
    packets: frozenset[int]
    may_be_zero: bool = True
    may_repeat: bool = False


def _in(*packets: int) -> frozenset[int]:
    return frozenset(packets)


_T = PacketType
_MESSAGE = _in(_T.PUBLISH, WILL)
_EVERY_PACKET = _in(WILL, *(kind for kind in PacketType if kind not in (_T.PINGREQ, _T.PINGRESP)))
_ANSWERS = _in(_T.CONNACK, _T.PUBACK, _T.PUBREC, _T.PUBREL, _T.PUBCOMP, _T.SUBACK, _T.UNSUBACK, _T.DISCONNECT, _T.AUTH)

# MQTT 5, table 2-4.
_PROPERTIES: Final = (
    _Property(0x01, "payload_format_indicator", _Kind.FLAG, _MESSAGE),
    _Property(0x02, "message_expiry_interval_s", _Kind.U32, _MESSAGE),
    _Property(0x03, "content_type", _Kind.STRING, _MESSAGE),
    _Property(0x08, "response_topic", _Kind.STRING, _MESSAGE),
    _Property(0x09, "correlation_data", _Kind.BINARY, _MESSAGE),
    _Property(0x0B, "subscription_identifiers", _Kind.VARINT, _in(_T.PUBLISH, _T.SUBSCRIBE), False, True),
    _Property(0x11, "session_expiry_interval_s", _Kind.U32, _in(_T.CONNECT, _T.CONNACK, _T.DISCONNECT)),
    _Property(0x12, "assigned_client_identifier", _Kind.STRING, _in(_T.CONNACK)),
    _Property(0x13, "server_keep_alive_s", _Kind.U16, _in(_T.CONNACK)),
    _Property(0x15, "authentication_method", _Kind.STRING, _in(_T.CONNECT, _T.CONNACK, _T.AUTH)),
    _Property(0x16, "authentication_data", _Kind.BINARY, _in(_T.CONNECT, _T.CONNACK, _T.AUTH)),
    _Property(0x17, "request_problem_information", _Kind.FLAG, _in(_T.CONNECT)),
    _Property(0x18, "will_delay_interval_s", _Kind.U32, _in(WILL)),
    _Property(0x19, "request_response_information", _Kind.FLAG, _in(_T.CONNECT)),
    _Property(0x1A, "response_information", _Kind.STRING, _in(_T.CONNACK)),
    _Property(0x1C, "server_reference", _Kind.STRING, _in(_T.CONNACK, _T.DISCONNECT)),
    _Property(0x1F, "reason_string", _Kind.STRING, _ANSWERS),
    _Property(0x21, "receive_maximum", _Kind.U16, _in(_T.CONNECT, _T.CONNACK), False),
    _Property(0x22, "topic_alias_maximum", _Kind.U16, _in(_T.CONNECT, _T.CONNACK)),
    _Property(0x23, "topic_alias", _Kind.U16, _in(_T.PUBLISH), False),
    _Property(0x24, "maximum_qos", _Kind.FLAG, _in(_T.CONNACK)),
    _Property(0x25, "retain_available", _Kind.FLAG, _in(_T.CONNACK)),
    _Property(0x26, "user_properties", _Kind.PAIR, _EVERY_PACKET, True, True),
    _Property(0x27, "maximum_packet_size", _Kind.U32, _in(_T.CONNECT, _T.CONNACK), False),
    _Property(0x28, "wildcard_subscription_available", _Kind.FLAG, _in(_T.CONNACK)),
    _Property(0x29, "subscription_identifier_available", _Kind.FLAG, _in(_T.CONNACK)),
    _Property(0x2A, "shared_subscription_available", _Kind.FLAG, _in(_T.CONNACK)),
)
_BY_IDENTIFIER: Final = {entry.identifier: entry for entry in _PROPERTIES}


def decode_properties(reader: Reader, packet: int) -> Properties:
    """Read a property section; `packet` is its PacketType, or WILL.

    Raises:
        MalformedPacketError: an unknown property, one that `packet` may not carry, or a value that does not fit.
        ProtocolViolationError: a property twice, or a value that the specification forbids.
    """
    size = reader.varint()
    if size == 0:
        return NO_PROPERTIES
    outer_end = reader.end
    end = reader.offset + size
    if end > outer_end:
        raise MalformedPacketError("the properties are longer than the packet")
    reader.end = end
    fields: dict[str, Any] = {}
    while reader.offset < end:
        identifier = reader.varint()
        entry = _BY_IDENTIFIER.get(identifier)
        if entry is None or packet not in entry.packets:
            raise MalformedPacketError(f"property 0x{identifier:02x} does not belong here")
        value = _decode_value(reader, entry)
        if entry.may_repeat:
            fields.setdefault(entry.name, []).append(value)
        elif entry.name in fields:
            raise ProtocolViolationError(f"{entry.name} stands twice")
        else:
            fields[entry.name] = value
    reader.end = outer_end
    if len(fields.get("user_properties", ())) > USER_PROPERTIES_MAX:
        raise ProtocolViolationError(f"more than {USER_PROPERTIES_MAX} user properties", ReasonCode.QUOTA_EXCEEDED)
    for name in ("user_properties", "subscription_identifiers"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if packet == PacketType.SUBSCRIBE and len(fields.get("subscription_identifiers", ())) > 1:
        raise ProtocolViolationError("subscription_identifiers stands twice")
    if "authentication_data" in fields and "authentication_method" not in fields:
        raise ProtocolViolationError("authentication_data without authentication_method")
    return Properties(**fields)


def _decode_value(reader: Reader, entry: _Property) -> Any:
    match entry.kind:
        case _Kind.STRING:
            return reader.string()
        case _Kind.BINARY:
            return reader.binary()
        case _Kind.PAIR:
            return reader.string(), reader.string()
    value = _decode_number(reader, entry.kind)
    if entry.kind is _Kind.FLAG and value > 1:
        raise ProtocolViolationError(f"{entry.name} is {value}, not 0 or 1")
    if value == 0 and not entry.may_be_zero:
        reason = ReasonCode.TOPIC_ALIAS_INVALID if entry.name == "topic_alias" else ReasonCode.PROTOCOL_ERROR
        raise ProtocolViolationError(f"{entry.name} may not be 0", reason)
    return value


def _decode_number(reader: Reader, kind: _Kind) -> int:
    match kind:
        case _Kind.U16:
            return reader.u16()
        case _Kind.U32:
            return reader.u32()
        case _Kind.VARINT:
            return reader.varint()
        case _:
            return reader.u8()


def encode_properties(properties: Properties, packet: int) -> bytes:
    """The property section, length included; `packet` is its PacketType, or WILL.

    Raises:
        ValueError: `packet` may not carry one of them, or a value does not fit.
    """
    if properties is NO_PROPERTIES:
        return b"\0"
    out: list[bytes] = []
    for entry in _PROPERTIES:
        value = getattr(properties, entry.name)
        if value is None or value == ():
            continue
        if packet not in entry.packets:
            raise ValueError(f"{entry.name} does not belong into packet {packet}")
        identifier = bytes((entry.identifier,))
        for single in value if entry.may_repeat else (value,):
            out += (identifier, _encode_value(entry, single))
    body = b"".join(out)
    return encode_varint(len(body)) + body


def _encode_value(entry: _Property, value: Any) -> bytes:
    if value == 0 and not entry.may_be_zero:
        raise ValueError(f"{entry.name} may not be 0")
    if entry.kind is _Kind.FLAG and value not in (0, 1):
        raise ValueError(f"{entry.name} is {value}, not 0 or 1")
    try:
        match entry.kind:
            case _Kind.STRING:
                return encode_string(value)
            case _Kind.BINARY:
                return encode_binary(value)
            case _Kind.PAIR:
                return encode_string(value[0]) + encode_string(value[1])
            case _Kind.U16:
                return int(value).to_bytes(2, "big")
            case _Kind.U32:
                return int(value).to_bytes(4, "big")
            case _Kind.VARINT:
                return encode_varint(value)
            case _Kind.FLAG:
                return int(value).to_bytes(1, "big")
    except OverflowError as error:
        raise ValueError(f"{entry.name}: {value} does not fit its field") from error
