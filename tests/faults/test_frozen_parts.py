"""A part that is frozen for ten seconds (SIGSTOP: a stalled disk, a paused virtual machine) and then goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.support.gateway import DEFAULT_STREAM, Gateway, PartName, Wiring
from tests.support.processes import wait_until

FROZEN_S = 10.0


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["bridge", "core"])
def test_a_part_that_freezes_for_ten_seconds_makes_nothing_lost_or_doubled(tmp_path: Path, victim: PartName) -> None:
    """The edge gives its connection up meanwhile, and the bridge its requests, so that all is sent twice."""
    options: dict[PartName, list[str]] = {
        "edge": ["--keepalive-s", "2", "--reconnect-delay-max-s", "0.5"],
        "bridge": ["--request-timeout-ms", "2000", "--retry-ms", "3000"],
    }
    with Gateway(tmp_path, Wiring(options=options)) as gateway:
        gateway.start("core", "bridge", "edge")
        fleet = gateway.start_fleet(devices=10, rate_hz=50.0, seconds=FROZEN_S)
        wait_until(lambda: gateway.read(DEFAULT_STREAM) != [], 20, "events reach the core")
        gateway.part(victim).send_signal(signal.SIGSTOP)
        time.sleep(FROZEN_S)
        assert gateway.backlog() > 0
        gateway.part(victim).send_signal(signal.SIGCONT)
        assert fleet.wait(40) == 0, fleet.output()
        counts = gateway.assert_holds(20)
        assert counts["acknowledged"] == counts["published"], "the edge takes events all the while"
        gateway.wait_drained(20)
