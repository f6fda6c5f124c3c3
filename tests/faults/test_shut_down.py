"""SIGTERM to each part under load: it ends by itself, with exit code 0, and nothing is lost or doubled."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, PartName, Wiring
from tests.support.processes import wait_until
from tests.support.seeds import seeded

VICTIMS: tuple[PartName, ...] = ("edge", "bridge", "core")
ROUNDS = 2


@pytest.mark.slow
def test_parts_that_are_stopped_and_started_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with Gateway(tmp_path, Wiring(options={"edge": ["--reconnect-delay-max-s", "0.5"]})) as gateway:
        gateway.start("core", "bridge", "edge")
        fleet = gateway.start_fleet(devices=10, rate_hz=100.0, seconds=12)
        wait_until(lambda: gateway.acknowledged() > 0, 20, "the fleet publishes")
        for victim in VICTIMS * ROUNDS:
            time.sleep(chance.uniform(0.1, 0.8))  # the random instant
            gateway.stop(victim)
            gateway.start(victim)
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(20)
        gateway.wait_drained(20)
        for victim in VICTIMS:
            gateway.stop(victim)
            output = gateway.part(victim).output()
            assert "Traceback" not in output, output[-4000:]
            assert "never retrieved" not in output, output[-4000:]


@pytest.mark.slow
def test_parts_that_are_stopped_all_at_once_under_load_lose_nothing(tmp_path: Path) -> None:
    """What an operator's `systemctl stop` does: in no order, and nobody has anyone left to talk to."""
    with Gateway(tmp_path, Wiring(options={"edge": ["--reconnect-delay-max-s", "0.5"]})) as gateway:
        gateway.start("core", "bridge", "edge")
        fleet = gateway.start_fleet(devices=10, rate_hz=100.0, seconds=5)
        wait_until(lambda: gateway.acknowledged() > 100, 20, "the fleet publishes")
        for victim in reversed(VICTIMS):
            gateway.part(victim).send_signal(signal.SIGTERM)
        for victim in VICTIMS:
            assert gateway.part(victim).wait(20) == 0, gateway.part(victim).output()[-4000:]
            assert "Traceback" not in gateway.part(victim).output(), gateway.part(victim).output()[-4000:]
        gateway.start("core", "bridge", "edge")
        assert fleet.wait(40) == 0, fleet.output()
        gateway.assert_holds(20)
