"""A blind MQTT load generator, in a process of its own: it sends bytes made beforehand and counts PUBACK bytes.

`python -m bench.generator '{...}'` takes a JSON object with the fields of `Load` and prints one of `Outcome`. QoS 1
PUBLISH packets of one size with cycling packet ids are made before it starts; each PUBACK (four bytes) lets one more
go. So what it measures is the server: it looks into nothing that it receives, but for its length.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field

from tidegate_wire.address import Address
from tidegate_wire.mqtt.encode import encode
from tidegate_wire.mqtt.packets import Connect, ProtocolVersion, Publish

PUBACK_BYTES = 4
CONNACK_BYTES = 4
PACKET_IDS = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send."""

    server: str
    clients: int
    window: int
    """Unacknowledged packets of each client at most."""
    payload_bytes: int
    seconds: float = 0.0
    """How long to measure, after `warm_up_s`; 0 where `packets` says when it ends."""
    warm_up_s: float = 1.0
    packets: int = 0
    """How many packets to send in all; 0 where `seconds` says when it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came back."""

    acknowledged: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.acknowledged / self.seconds


@dataclass(slots=True)
class _Client:
    socket: socket.socket
    packets: bytes
    packet_bytes: int
    next_packet: int = 0
    torn_bytes: int = 0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))

    def send_more(self, count: int) -> None:
        """Put `count` packets behind what waits to be sent, and send as much as the socket takes."""
        parts = [bytes(self.unsent)]
        while count:
            run = min(count, PACKET_IDS - self.next_packet)
            start = self.next_packet * self.packet_bytes
            parts.append(self.packets[start : start + run * self.packet_bytes])
            self.next_packet = (self.next_packet + run) % PACKET_IDS
            count -= run
        self.unsent = memoryview(b"".join(parts))
        self.flush()

    def flush(self) -> None:
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass

    def take_acks(self) -> int:
        """How many acknowledgements came in."""
        received = len(self.socket.recv(1 << 18))
        if not received:
            raise ConnectionError("the server closed a connection")
        acks, self.torn_bytes = divmod(self.torn_bytes + received, PUBACK_BYTES)
        return acks


def generate(load: Load) -> Outcome:
    """Send the load, in this process."""
    clients = [_connect(load, number) for number in range(load.clients)]
    selector = selectors.DefaultSelector()
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
    started_s = time.perf_counter()
    measure_from_s = started_s + (load.warm_up_s if load.seconds else 0.0)
    end_s = measure_from_s + load.seconds if load.seconds else float("inf")
    to_send = load.packets or sys.maxsize
    for client in clients:
        share = min(load.window, to_send)
        to_send -= share
        client.send_more(share)
    acknowledged = before = 0
    while True:
        for key, _ in selector.select(1.0):
            client = key.data
            acks = client.take_acks()
            acknowledged += acks
            share = min(acks, to_send)
            to_send -= share
            if share or client.unsent:
                client.send_more(share)
        now_s = time.perf_counter()
        if not before and now_s >= measure_from_s:
            measure_from_s, before = now_s, acknowledged
        if now_s >= end_s or (load.packets and acknowledged >= load.packets):
            break
    for client in clients:
        client.socket.close()
    if load.packets:
        return Outcome(acknowledged=acknowledged, seconds=now_s - started_s)
    return Outcome(acknowledged=acknowledged - before, seconds=now_s - measure_from_s)


def generate_elsewhere(load: Load) -> Outcome:
    """Send the load from a process of its own."""
    command = [sys.executable, "-m", "bench.generator", json.dumps(asdict(load))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"the generator failed: {result.stderr[-2000:]}")
    return Outcome(**json.loads(result.stdout))


def _connect(load: Load, number: int) -> _Client:
    name = f"bench-{number:03d}"
    connection = socket.create_connection(_host_port(load.server), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(encode(Connect(client_id=name), ProtocolVersion.V311))
    connack = connection.recv(CONNACK_BYTES, socket.MSG_WAITALL)
    assert connack == b"\x20\x02\x00\x00", connack
    connection.setblocking(False)
    payload = b"x" * load.payload_bytes
    packets = [
        encode(Publish(topic=f"bench/{name}", payload=payload, qos=1, packet_id=packet_id), ProtocolVersion.V311)
        for packet_id in range(1, PACKET_IDS + 1)
    ]
    return _Client(socket=connection, packets=b"".join(packets), packet_bytes=len(packets[0]))


def _host_port(text: str) -> tuple[str, int]:
    address = Address.parse(text)
    return address.host, address.port


if __name__ == "__main__":
    print(json.dumps(asdict(generate(Load(**json.loads(sys.argv[1]))))))
