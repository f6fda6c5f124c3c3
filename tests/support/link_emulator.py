"""A switch in user space that delays, drops, doubles and re-orders packets, for kernels without `tc netem`.

usage: link_emulator.py SEED CLEAN_ADDRESS NAMESPACE=ADDRESS NAMESPACE=ADDRESS ...

Opens a TUN device in each namespace and carries IPv4 packets between them by their target address. Says `up` when the
devices are there; their addresses are the starter's to give. Each line on stdin is an `Impairment` as JSON, for packets
between any two places but CLEAN_ADDRESS. Ends with its stdin. Imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Final

DEVICE: Final = "net0"
MTU_BYTES: Final = 1400

CLONE_NEWNET: Final = 0x40000000

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_PACKETS_AT_ONCE: Final = 64
"""From one device before the others, and what is due, get their turn."""
_IN_FLIGHT_MAX: Final = 20_000
"""Packets on their way; more are dropped, as a router with a full queue does."""
_IPV4: Final = 4
_STDIN: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What happens to each packet."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """The delay is drawn from `delay_ms` plus or minus this, for each packet: they overtake each other."""
    loss: float = 0.0
    """Probability."""
    duplicate: float = 0.0
    """Probability."""
    reorder: float = 0.0
    """Probability that a packet is not delayed at all, and so overtakes."""


class Link:
    """Decides when, and how often, a packet arrives. Without I/O; chance is given in."""

    def __init__(self, chance: random.Random) -> None:
        self.impairment = Impairment()
        self._chance = chance

    def arrivals_s(self, now_s: float) -> list[float]:
        """When a packet that is sent now arrives: never, once, or twice."""
        chance, how = self._chance, self.impairment
        if chance.random() < how.loss:
            return []
        copies = 2 if chance.random() < how.duplicate else 1
        return [now_s + self._delay_s() for _ in range(copies)]

    def _delay_s(self) -> float:
        how = self.impairment
        if self._chance.random() < how.reorder:
            return 0.0
        return max(0.0, how.delay_ms + self._chance.uniform(-how.jitter_ms, how.jitter_ms)) / 1000


class Switch:
    """The devices, and the packets on their way."""

    def __init__(self, devices: dict[bytes, int], clean: bytes, link: Link) -> None:
        self._devices = devices
        self._clean = clean
        self._link = link
        self._in_flight: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._selector = selectors.DefaultSelector()
        for device in devices.values():
            self._selector.register(device, selectors.EVENT_READ)
        self._selector.register(_STDIN, selectors.EVENT_READ)

    def run(self) -> None:
        """Until stdin ends."""
        while True:
            self._deliver_due(time.monotonic())
            for key, _ in self._selector.select(self._wait_s()):
                if key.fd != _STDIN:
                    self._take(key.fd)
                elif not (lines := os.read(_STDIN, 65_536)):
                    return
                else:  # a line is shorter than what a pipe takes at once, so it comes whole
                    self._link.impairment = Impairment(**json.loads(lines.splitlines()[-1]))

    def _wait_s(self) -> float | None:
        return max(0.0, self._in_flight[0][0] - time.monotonic()) if self._in_flight else None

    def _take(self, device: int) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            try:
                packet = os.read(device, 65_536)
            except BlockingIOError:
                return
            source, target = packet[12:16], packet[16:20]
            if packet[0] >> 4 != _IPV4 or target not in self._devices:
                continue
            if self._clean in {source, target}:
                _write(self._devices[target], packet)
                continue
            for arrival_s in self._link.arrivals_s(time.monotonic()):
                if len(self._in_flight) < _IN_FLIGHT_MAX:
                    self._count += 1
                    heapq.heappush(self._in_flight, (arrival_s, self._count, self._devices[target], packet))

    def _deliver_due(self, now_s: float) -> None:
        while self._in_flight and self._in_flight[0][0] <= now_s:
            _, _, device, packet = heapq.heappop(self._in_flight)
            _write(device, packet)


def _write(device: int, packet: bytes) -> None:
    with contextlib.suppress(OSError):  # the device is down or its queue is full: a lost packet
        os.write(device, packet)


def open_device(namespace: str) -> int:
    """A TUN device in a namespace; this process stays there until the next call."""
    target = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    if ctypes.CDLL(None, use_errno=True).setns(target, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"can't enter {namespace}")
    os.close(target)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def main(seed: str, clean: str, *places: str) -> None:
    """Run the switch."""
    devices: dict[bytes, int] = {}
    for place in places:
        namespace, _, address = place.partition("=")
        devices[socket.inet_aton(address)] = open_device(namespace)
    sys.stdout.write("up\n")
    sys.stdout.flush()
    Switch(devices, socket.inet_aton(clean), Link(random.Random(int(seed)))).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
