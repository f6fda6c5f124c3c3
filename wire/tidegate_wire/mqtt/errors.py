"""What a peer can do wrong on the wire. Each error carries the MQTT 5 reason code to close the connection with.

TidegateError
+-- MqttError
    +-- MalformedPacketError           0x81, the bytes are not a packet of this version
    +-- PacketTooLargeError            0x95, its length is above the limit
    +-- UnsupportedVersionError        0x84, CONNECT asks for a protocol that is not spoken here
    +-- ProtocolViolationError         0x82 or the code given: a packet that may not come here and now
"""

from __future__ import annotations

from tidegate_wire.errors import TidegateError
from tidegate_wire.mqtt.reason_codes import ReasonCode


class MqttError(TidegateError):
    """A peer broke the protocol; the connection can't go on."""

    def __init__(self, message: str, reason_code: ReasonCode) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class MalformedPacketError(MqttError):
    """The bytes are not a packet of this protocol version."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ReasonCode.MALFORMED_PACKET)


class PacketTooLargeError(MqttError):
    """A packet's header announces more bytes than are taken; nothing of its body was kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ReasonCode.PACKET_TOO_LARGE)


class UnsupportedVersionError(MqttError):
    """CONNECT asks for a protocol level other than 4 (3.1.1) and 5."""

    def __init__(self, message: str, level: int) -> None:
        super().__init__(message, ReasonCode.UNSUPPORTED_PROTOCOL_VERSION)
        self.level = level


class ProtocolViolationError(MqttError):
    """A well-formed packet that may not come here and now."""

    def __init__(self, message: str, reason_code: ReasonCode = ReasonCode.PROTOCOL_ERROR) -> None:
        super().__init__(message, reason_code)
