"""Clients that attack an edge, all at once, while honest devices run there: these lose nothing; memory is bounded."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.support.gateway import Gateway
from tests.support.processes import wait_until
from tests.support.seeds import seeded
from tidegate_wire.mqtt.encode import encode
from tidegate_wire.mqtt.packets import Connect, ProtocolVersion, Publish, Subscribe, Subscription

RSS_GROWTH_BYTES_MAX: Final = 96 * 1024 * 1024
"""What the attacks together may cost the edge: its `held_bytes_max` (32 MiB), a packet of 1 MiB half read for each of
the few who send one, some 20 KiB for each of 800 connections, and what Python's allocator keeps of it."""

IDLE_CONNECTIONS: Final = 500
SLOW_CONNECTIONS: Final = 100

V311: Final = ProtocolVersion.V311


def connect_packet(client_id: str, version: ProtocolVersion = V311) -> bytes:
    return encode(Connect(client_id=client_id, version=version, clean_start=True), version)


class Attackers:
    """Threads that attack a port until they are stopped."""

    def __init__(self, port: int) -> None:
        self.rounds: dict[str, int] = {}
        self._port = port
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, name: str, attack: Callable[[], None]) -> None:
        """Repeat an attack; what the edge does to its sockets is all right."""

        def run() -> None:
            while not self._stop.is_set():
                with suppress(OSError):
                    attack()
                self.rounds[name] += 1
                self.pause(0.01)

        self.rounds[name] = 0
        self._threads.append(threading.Thread(target=run, name=name))
        self._threads[-1].start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than to the end."""
        self._stop.wait(seconds)

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self._port), timeout=5) as connection:
            yield connection

    def send_all(self, data: bytes) -> None:
        """Send on a connection of its own, and wait until the edge closes it or for a moment."""
        with self.connection() as connection:
            connection.sendall(data)
            connection.settimeout(0.2)
            with suppress(TimeoutError):
                while connection.recv(65_536):
                    pass


def fuzz(attackers: Attackers, chance: random.Random) -> Callable[[], None]:
    """Random bytes; whole packets with random bits turned over; a good CONNECT, then random bytes."""
    subscribe = Subscribe(packet_id=1, subscriptions=(Subscription(topic_filter="#", qos=1),))
    publish = Publish(topic="a/b", payload=b"x" * 100, qos=1, packet_id=7)
    good = connect_packet("fuzz") + encode(subscribe, V311) + encode(publish, V311)

    def attack() -> None:
        kind = chance.randrange(3)
        if kind == 0:
            data = chance.randbytes(chance.randrange(1, 5_000))
        elif kind == 1:
            mutable = bytearray(good)
            for _ in range(chance.randrange(1, 10)):
                mutable[chance.randrange(len(mutable))] ^= 1 << chance.randrange(8)
            data = bytes(mutable)
        else:
            data = connect_packet("fuzz") + chance.randbytes(chance.randrange(1, 5_000))
        attackers.send_all(data)

    return attack


def huge_publish(attackers: Attackers, version: ProtocolVersion) -> Callable[[], None]:
    """A PUBLISH that says it has 256 MB, and begins to send them."""
    header = b"\x32\xff\xff\xff\x7f" + b"\x00\x03a/b"

    def attack() -> None:
        with attackers.connection() as connection:
            connection.sendall(connect_packet("huge", version) + header)
            for _ in range(256):
                connection.sendall(b"\0" * 1_048_576)

    return attack


def largest_publish_half_sent(attackers: Attackers) -> Callable[[], None]:
    """All but the end of the largest packet that is allowed, then silence."""

    def attack() -> None:
        with attackers.connection() as connection:
            connection.sendall(connect_packet("half") + b"\x32\xff\xff\x3f" + b"\x00\x03a/b" + b"\0" * 1_000_000)
            attackers.pause(1.0)

    return attack


def slow_loris(attackers: Attackers) -> Callable[[], None]:
    """Many CONNECTs, a byte at a time."""

    def attack() -> None:
        with ExitStack() as stack:
            connections = [stack.enter_context(attackers.connection()) for _ in range(SLOW_CONNECTIONS)]
            for byte in connect_packet("slow"):
                for connection in connections:
                    connection.sendall(bytes([byte]))
                attackers.pause(0.3)

    return attack


def take_over(attackers: Attackers, client_id: str) -> Callable[[], None]:
    """Connect under a client id that is in use, again and again."""

    def attack() -> None:
        attackers.send_all(connect_packet(client_id))
        attackers.pause(0.3)

    return attack


@pytest.mark.slow
def test_honest_devices_lose_nothing_among_hostile_ones_and_memory_is_bounded(tmp_path: Path) -> None:
    chance = seeded()
    with Gateway(tmp_path) as gateway, ExitStack() as stack:
        gateway.start("core", "bridge", "edge")
        edge = psutil.Process(gateway.part("edge").pid)
        fleet = gateway.start_fleet(devices=20, rate_hz=20.0, seconds=10)
        wait_until(lambda: gateway.acknowledged() > 400, 20, "the fleet runs")
        before = edge.memory_info().rss
        attackers = Attackers(gateway.ports["edge"])
        stack.callback(attackers.stop)
        for number in range(IDLE_CONNECTIONS):
            idle = stack.enter_context(attackers.connection())
            idle.sendall(connect_packet(f"idle-{number}"))
        attackers.start("fuzz", fuzz(attackers, chance))
        attackers.start("huge 3.1.1", huge_publish(attackers, V311))
        attackers.start("huge 5", huge_publish(attackers, ProtocolVersion.V5))
        attackers.start("half", largest_publish_half_sent(attackers))
        attackers.start("slow loris", slow_loris(attackers))
        attackers.start("take over of a honest device", take_over(attackers, "d-0001"))
        attackers.start("take over of each other 1", take_over(attackers, "twin"))
        attackers.start("take over of each other 2", take_over(attackers, "twin"))
        highest = before
        acknowledged = gateway.acknowledged()
        while fleet.running():
            highest = max(highest, edge.memory_info().rss)
            attackers.pause(0.1)
        assert all(attackers.rounds.values()), attackers.rounds
        attackers.stop()
        assert fleet.wait(1) == 0, fleet.output()
        assert gateway.acknowledged() > acknowledged, "the edge took nothing during the attacks"
        assert gateway.part("edge").running()
        gateway.assert_holds(20)
        growth = highest - before
        print(f"RSS grew by {growth / 1e6:.1f} MB; rounds: {attackers.rounds}")  # noqa: T201
        assert growth < RSS_GROWTH_BYTES_MAX
