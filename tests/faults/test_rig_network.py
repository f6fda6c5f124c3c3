"""The rig for network faults does what its name says: tried with sockets alone, before a cluster is put on it."""

from __future__ import annotations

import random
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.link_emulator import Impairment, Link
from tests.support.netns import CLIENTS, Network
from tests.support.processes import Process, wait_until

PORT = 5000
ECHO = f"""
import socket
here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
here.bind(("0.0.0.0", {PORT}))
while True:
    data, peer = here.recvfrom(65536)
    here.sendto(data, peer)
"""

pytestmark = [pytest.mark.peer("ip"), pytest.mark.peer("nft")]


@contextmanager
def echoing(directory: Path, network: Network) -> Iterator[None]:
    """A program at each node that sends every datagram back."""
    nodes = [
        Process([*network.wrapper(node), sys.executable, "-c", ECHO], directory / f"echo-{node}.log")
        for node in network.hosts
    ]
    try:
        for node in network.hosts:
            wait_until(lambda node=node: answers(network, CLIENTS, node) > 0, 10, f"node {node} answers")  # type: ignore[misc]  # the default argument binds the loop's value
        yield
    finally:
        for process in nodes:
            process.kill()


def answers(network: Network, source: int, target: int, sent: int = 1, wait_s: float = 0.2) -> int:
    """How many datagrams come back, of so many sent from one place to another."""
    with network.inside(source), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.connect((network.hosts[target], PORT))
        here.settimeout(wait_s)
        received = 0
        try:
            for number in range(sent):
                here.send(b"%d" % number)
            while True:
                here.recv(100)
                received += 1
        except (TimeoutError, ConnectionRefusedError):
            return received


def test_packets_pass_between_all_places_and_a_cut_stops_just_the_ways_it_names(tmp_path: Path) -> None:
    with Network(3) as network, echoing(tmp_path, network):
        assert answers(network, 1, 2) == 1
        network.cut(1, 2)
        assert answers(network, 1, 2) == answers(network, 2, 1) == 0
        assert answers(network, 1, 3) == answers(network, CLIENTS, 1) == answers(network, CLIENTS, 2) == 1
        network.heal()
        assert answers(network, 1, 2) == 1

        network.isolate(1)
        assert answers(network, CLIENTS, 1) == answers(network, 3, 1) == 0
        assert answers(network, 2, 3) == 1
        network.heal()

        network.deafen(1, [2, 3])  # it is heard by 2, whose echo it does not hear
        assert answers(network, 1, 2) == answers(network, 2, 1) == 0
        assert answers(network, CLIENTS, 1) == 1
        network.heal()
        assert answers(network, 1, 2) == 1


def interrupted() -> None:
    with Network(2) as network, network.inside():
        assert {name for _, name in socket.if_nameindex()} >= {"lo", "switch", "port1", "port2"}
        raise KeyboardInterrupt


def test_the_machines_own_network_and_namespaces_stay_as_they_were() -> None:
    devices, namespaces = set(socket.if_nameindex()), set(Path("/run/netns").glob("*"))
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(socket.if_nameindex()) == devices
    assert set(Path("/run/netns").glob("*")) == namespaces


def test_an_emulated_switch_delays_and_drops_between_nodes_and_lets_clients_be(tmp_path: Path) -> None:
    with Network(2, Impairment(delay_ms=100)) as network, echoing(tmp_path, network):
        started_s = time.monotonic()
        assert answers(network, 1, 2, wait_s=2) == 1
        assert time.monotonic() - started_s > 0.2, "there and back"
        network.impair(Impairment(loss=0.5))
        assert 10 < answers(network, 1, 2, sent=100) < 40, "half of them there, half of those back"
        assert answers(network, CLIENTS, 2, sent=20) == 20
        network.impair(Impairment(duplicate=1.0))
        assert answers(network, 1, 2) == 4
        network.impair(Impairment())
        assert answers(network, 1, 2, sent=20) == 20


def test_a_link_loses_doubles_and_reorders_as_often_as_it_is_told() -> None:
    link = Link(random.Random(1))
    link.impairment = Impairment(delay_ms=100, jitter_ms=20, loss=0.2, duplicate=0.1, reorder=0.3)
    arrivals = [link.arrivals_s(1000.0) for _ in range(10_000)]
    assert sum(not arrival for arrival in arrivals) == pytest.approx(2000, rel=0.1)
    assert sum(len(arrival) == 2 for arrival in arrivals) == pytest.approx(800, rel=0.1)
    delays_s = [arrival[0] - 1000.0 for arrival in arrivals if arrival]
    assert sum(delay == 0.0 for delay in delays_s) == pytest.approx(2400, rel=0.1)
    late = [delay for delay in delays_s if delay > 0]
    assert min(late) >= 0.08
    assert max(late) <= 0.1201
