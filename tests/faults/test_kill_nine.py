"""kill -9 at random instants, of edge, bridge and core in turn, under load: nothing acknowledged is lost or doubled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, PartName
from tests.support.seeds import seeded

ROUNDS = 20
DEVICES = 10
RATE_HZ = 50.0
VICTIMS: tuple[PartName, ...] = ("edge", "bridge", "core")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_kills_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with Gateway(tmp_path) as gateway:
        gateway.start("core", "bridge", "edge")
        fleet = gateway.start_fleet(devices=DEVICES, rate_hz=RATE_HZ, seconds=60)
        for round_number in range(ROUNDS):
            victim = VICTIMS[round_number % len(VICTIMS)]
            time.sleep(chance.uniform(0.2, 1.2))  # the load runs: this is the random instant, not a synchronisation
            assert fleet.running(), fleet.output()
            gateway.kill(victim)
            gateway.start(victim)
        assert fleet.wait(150) == 0, fleet.output()
        counts = gateway.assert_holds(60)
    assert counts["published"] >= DEVICES * ROUNDS
