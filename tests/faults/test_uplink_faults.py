"""A bad link between edge and bridge: it flaps, goes silent, loses the answers, breaks in the middle of a batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, Wiring
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.seeds import seeded

DEVICES = 10
RATE_HZ = 50.0
QUICK = ["--keepalive-s", "1", "--reconnect-delay-max-s", "1"]
"""So that a silent cut is noticed, and healed, within a test's time."""


@contextmanager
def gateway_behind(directory: Path) -> Iterator[tuple[Gateway, Relay]]:
    """A gateway whose uplink goes through a relay."""
    gateway = Gateway(directory, Wiring(options={"edge": QUICK}))
    with gateway, Relay(gateway.ports["bridge"]) as relay:
        gateway.wiring.uplink_port = relay.port
        gateway.start("core", "bridge", "edge")
        yield gateway, relay


def edge_log(gateway: Gateway) -> str:
    return gateway.part("edge").output()


@pytest.mark.slow
def test_an_uplink_that_flaps_every_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with gateway_behind(tmp_path) as (gateway, relay):
        fleet = gateway.start_fleet(devices=DEVICES, rate_hz=RATE_HZ, seconds=9)
        end_s = time.monotonic() + 9
        while time.monotonic() < end_s:
            time.sleep(chance.uniform(0.3, 2.0))  # how long the link is up, and then down: not a synchronisation
            relay.cut()
            time.sleep(chance.uniform(0.3, 2.0))
            relay.mend()
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(20)
        assert relay.connections >= 3, "the link was hardly ever up"


@pytest.mark.slow
@pytest.mark.parametrize("ways", ["up", "down", "both"])
def test_a_link_that_goes_silent_and_heals_loses_and_doubles_nothing(tmp_path: Path, ways: str) -> None:
    """The bytes of a direction vanish while every connection stays open: nobody is told."""
    with gateway_behind(tmp_path) as (gateway, relay):
        fleet = gateway.start_fleet(devices=DEVICES, rate_hz=RATE_HZ, seconds=5)
        wait_until(lambda: gateway.read("events") != [], 20, "events reach the core")
        relay.swallow(up=ways != "down", down=ways != "up")
        wait_until(lambda: "uplink.disconnected" in edge_log(gateway), 20, "the edge notices the silence")
        wait_until(lambda: gateway.backlog() > 300, 20, "events wait at the edge")
        relay.mend()
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(20)
        gateway.wait_drained(20)
        assert relay.bytes_swallowed > 0


@pytest.mark.slow
def test_batches_whose_acks_are_lost_are_stored_once(tmp_path: Path) -> None:
    """PUBACKs and PINGRESPs pass, so the connection is healthy; only that the core has the batches is not heard."""
    with gateway_behind(tmp_path) as (gateway, relay):
        fleet = gateway.start_fleet(devices=DEVICES, rate_hz=RATE_HZ, seconds=5)
        wait_until(lambda: gateway.read("events") != [], 20, "events reach the core")
        relay.drop_publishes(b"/ack")
        wait_until(lambda: relay.packets_dropped >= 10, 20, "acks are dropped")
        relay.mend()
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(20)
        gateway.wait_drained(40)


@pytest.mark.slow
def test_connections_reset_in_the_middle_of_batches_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with gateway_behind(tmp_path) as (gateway, relay):
        relay.reset_after(lambda: chance.choice((1, 50, 300, 1_000, 10_000, 60_000)) + chance.randrange(1_000))
        fleet = gateway.start_fleet(devices=DEVICES, rate_hz=200.0, seconds=10)
        wait_until(lambda: relay.connections >= 15, 30, "the link broke many times")
        relay.mend()
        assert fleet.wait(60) == 0, fleet.output()
        gateway.assert_holds(30)
        gateway.wait_drained(20)
