"""From PUBLISH to consumer through the whole path, at 1,000 events a second, onto two disks on the way."""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.parts import STREAM, bench_gateway
from bench.report import Measurement
from tidegate import Consumer
from tidegate.errors import UnknownStreamError
from tidegate_wire.address import Address
from tidegate_wire.mqtt.encode import encode
from tidegate_wire.mqtt.packets import Connect, ProtocolVersion, Publish

RATE_HZ = 1_000
SECONDS = 12
WARM_UP_S = 2
PAYLOAD_BYTES = 100


def run(directory: Path) -> list[Measurement]:
    with bench_gateway(directory) as gateway:
        for name in ("core", "bridge", "edge"):
            gateway.start(name)
        command = [sys.executable, "-m", "bench.latency", gateway.edge]
        with subprocess.Popen(command) as publisher:
            try:
                latencies_ms = asyncio.run(_consume(gateway.core))
            finally:
                publisher.kill()
    return [
        Measurement(subject="PUBLISH to consumer, p50", value=statistics.median(latencies_ms), unit="ms"),
        Measurement(subject="PUBLISH to consumer, p99", value=_percentile(latencies_ms, 0.99), unit="ms"),
        Measurement(
            subject="PUBLISH to consumer, max",
            value=max(latencies_ms),
            unit="ms",
            note=f"{len(latencies_ms):,} events at {RATE_HZ:,} events/s",
        ),
    ]


async def _consume(core: str) -> list[float]:
    """The latencies after the warm-up; the payload begins with when it was sent, and both clocks are one."""
    while True:
        try:
            async with Consumer(STREAM, core=core, start="earliest") as consumer:
                return await _measure(consumer)
        except UnknownStreamError:
            await asyncio.sleep(0.1)


async def _measure(consumer: Consumer) -> list[float]:
    latencies_ms: list[float] = []
    expected = RATE_HZ * SECONDS
    skipped = RATE_HZ * WARM_UP_S
    async with asyncio.timeout(SECONDS + 30):
        async for events in consumer.batches():
            now_ns = time.monotonic_ns()
            latencies_ms += [(now_ns - int(event.payload[:20])) / 1e6 for event in events]
            if len(latencies_ms) >= expected:
                break
    return latencies_ms[skipped:]


def publish(edge: str) -> None:
    """Send a packet every 1/RATE_HZ s, stamped with its time; acknowledgements are read and passed over."""
    address = Address.parse(edge)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(encode(Connect(client_id="bench-latency"), ProtocolVersion.V311))
        connection.recv(4, socket.MSG_WAITALL)
        start_s = time.monotonic()
        for number in range(RATE_HZ * SECONDS):
            pause_s = start_s + number / RATE_HZ - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            payload = b"%020d" % time.monotonic_ns() + b"x" * (PAYLOAD_BYTES - 20)
            packet = Publish(topic="bench/latency", payload=payload, qos=1, packet_id=number % 65_535 + 1)
            connection.sendall(encode(packet, ProtocolVersion.V311))
            _pass_over_acks(connection)
        time.sleep(5)


def _pass_over_acks(connection: socket.socket) -> None:
    try:
        connection.recv(65_536, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return


def _percentile(values: list[float], fraction: float) -> float:
    return sorted(values)[int(len(values) * fraction)]


if __name__ == "__main__":
    publish(sys.argv[1])
