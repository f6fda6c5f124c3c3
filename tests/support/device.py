"""A device under the test's control, packet by packet, over a blocking socket."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Final, Self, TypeVar

from tidegate_wire.mqtt.decode import Decoder
from tidegate_wire.mqtt.encode import encode
from tidegate_wire.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    ProtocolVersion,
    Puback,
    Publish,
)

ANSWER_TIMEOUT_S: Final = 10.0

P = TypeVar("P")


class Device:
    """A client with a persistent session; `connect` may be called again after the connection broke."""

    def __init__(self, port: int, client_id: str, *, version: ProtocolVersion = ProtocolVersion.V311) -> None:
        self.client_id = client_id
        self._port = port
        self._version = version
        self._socket: socket.socket | None = None
        self._decoder = Decoder(version=version)
        self._received: list[Packet] = []

    def connect(self) -> Connack:
        """Open a connection, with Clean Session 0; what the old one had is forgotten."""
        self.drop()
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = Decoder(version=self._version)
        self._received = []
        self.send(Connect(client_id=self.client_id, version=self._version, clean_start=False))
        return self.receive(Connack)

    def publish(
        self, payload: bytes, packet_id: int, *, qos: int = 1, dup: bool = False, topic: str | None = None
    ) -> None:
        """Send a PUBLISH, to the device's own topic by default; nothing is waited for."""
        topic = topic or f"sensors/{self.client_id}"
        self.send(Publish(topic=topic, payload=payload, qos=qos, dup=dup, packet_id=packet_id))

    def publish_acknowledged(self, payloads: list[bytes], *, topic: str | None = None) -> None:
        """Send QoS 1 messages, all at once, and return when each is acknowledged."""
        packet_ids = range(1, len(payloads) + 1)
        for payload, packet_id in zip(payloads, packet_ids, strict=True):
            self.publish(payload, packet_id, topic=topic)
        for packet_id in packet_ids:
            assert self.receive(Puback).packet_id == packet_id

    def send(self, *packets: Packet) -> None:
        self.send_bytes(b"".join(encode(packet, self._version) for packet in packets))

    def send_bytes(self, data: bytes) -> None:
        assert self._socket is not None, "not connected"
        self._socket.sendall(data)

    def receive(self, kind: type[P], timeout_s: float = ANSWER_TIMEOUT_S) -> P:
        """The next packet, which has to be of this kind.

        Raises:
            TimeoutError: none came in time.
            ConnectionError: the other side closed the connection.
        """
        assert self._socket is not None, "not connected"
        self._socket.settimeout(timeout_s)
        while not self._received:
            data = self._socket.recv(65_536)
            if not data:
                raise ConnectionError("the connection was closed")
            self._received += self._decoder.feed(data)
        packet = self._received.pop(0)
        assert isinstance(packet, kind), packet
        return packet

    def drop(self) -> None:
        """Reset the connection, as a device does that loses power."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None and error is None:
            self.send(Disconnect())
        self.drop()
