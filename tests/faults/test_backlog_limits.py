"""A backlog at its limit while the uplink is down: acknowledged = read + what loss records account for, exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.gateway import DEFAULT_STREAM, Gateway, Wiring
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.seeds import seeded

EVENTS_MAX = 2_000
OBSERVED_S = 1.5
"""How long it is watched that nothing happens."""


@contextmanager
def limited_gateway(directory: Path, *options: str) -> Iterator[tuple[Gateway, Relay]]:
    gateway = Gateway(directory, Wiring(options={"edge": ["--reconnect-delay-max-s", "0.5", *options]}))
    with Relay(gateway.ports["bridge"]) as relay, gateway:
        gateway.wiring.uplink_port = relay.port
        gateway.start("core", "bridge", "edge")
        yield gateway, relay


@pytest.mark.slow
def test_a_full_backlog_that_refuses_acknowledges_nothing_until_the_uplink_made_room(tmp_path: Path) -> None:
    with limited_gateway(tmp_path, "--when-full", "refuse", "--backlog-events-max", str(EVENTS_MAX)) as (
        gateway,
        relay,
    ):
        relay.cut()
        fleet = gateway.start_fleet(devices=10, rate_hz=100.0, seconds=5)
        edge = gateway.part("edge")
        wait_until(lambda: "backlog_full" in edge.output(), 20, "the edge says that its backlog is full")
        acknowledged, published = gateway.acknowledged(), gateway.published()
        assert acknowledged < published
        time.sleep(OBSERVED_S)
        assert gateway.acknowledged() == acknowledged
        assert EVENTS_MAX <= gateway.backlog() < EVENTS_MAX + 1_000, "the limit may be passed by one group"
        gateway.stop("edge")  # while devices wait for an answer that does not come
        assert "Traceback" not in edge.output()
        gateway.start("edge")
        relay.mend()
        assert fleet.wait(40) == 0, fleet.output()
        counts = gateway.assert_holds(20)
        assert counts["acknowledged"] == counts["published"] > EVENTS_MAX
        assert gateway.losses() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit", [("--backlog-events-max", str(EVENTS_MAX)), ("--backlog-bytes-max", "1048576")], ids=["events", "bytes"]
)
def test_a_full_backlog_that_drops_the_oldest_accounts_for_each_event_also_over_kills(
    tmp_path: Path, limit: tuple[str, str]
) -> None:
    """With batches in flight whose acks are lost: what is on its way must not be dropped, it would be counted twice."""
    chance = seeded()
    with limited_gateway(tmp_path, "--when-full", "drop_oldest", *limit) as (gateway, relay):
        fleet = gateway.start_fleet(devices=10, rate_hz=200.0, seconds=6)
        wait_until(lambda: gateway.read(DEFAULT_STREAM) != [], 20, "events reach the core")
        relay.drop_publishes(b"/ack")
        wait_until(lambda: relay.packets_dropped > 5, 20, "batches are in flight")
        relay.cut()
        lost = "SELECT value FROM meta WHERE key = 'lost_events'"
        wait_until(lambda: int(gateway.query_edge(lost)[0][0]) > 0, 20, "the oldest events are dropped")
        for _ in range(2):
            time.sleep(chance.uniform(0.0, 0.4))  # the random instant
            gateway.kill("edge")
            gateway.start("edge")
        assert fleet.wait(40) == 0, fleet.output()
        relay.mend()
        gateway.wait_drained(30)

        counts = gateway.verify()
        losses = gateway.losses()
        assert counts["acknowledged"] == counts["published"], "the edge takes events all the while"
        assert (counts["duplicated"], counts["out_of_order"]) == (0, 0), counts
        assert {loss.stream for loss in losses} == {DEFAULT_STREAM}
        assert counts["lost"] == sum(loss.count for loss in losses) > 0
        assert counts["read"] + counts["lost"] == counts["acknowledged"]

        # And by the edge's own numbers: each is read or in a loss record, never both.
        numbers = [event.sequence for event in gateway.read(DEFAULT_STREAM)]
        for loss in losses:
            assert loss.count == loss.last_sequence - loss.first_sequence + 1
            numbers += range(loss.first_sequence, loss.last_sequence + 1)
        assert sorted(number for number in numbers if number is not None) == list(range(1, counts["acknowledged"] + 1))
