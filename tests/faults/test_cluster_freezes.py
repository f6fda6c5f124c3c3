"""A leader that stands still past the election timeout, and then goes on as if nothing had been."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.seeds import seeded
from tests.support.trial import PARTITIONS, TOPIC, round_timeout_s, rounds, trial

FREEZES = 2
FROZEN_S = 4.0
"""Some election timeouts."""


@pytest.mark.slow
@pytest.mark.timeout(round_timeout_s(FREEZES, 60))
def test_leaders_that_are_frozen_and_thawed_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with trial("SIGSTOP of a leader for 4 s, then SIGCONT", Cluster(tmp_path)) as under:
        for _ in range(rounds(FREEZES)):
            victim = under.cluster.leader(TOPIC, chance.randrange(PARTITIONS))
            led = under.led_by(victim)
            under.cluster.freeze(victim)
            frozen_s = under.hit()
            under.recovered_elsewhere(frozen_s, led, without=victim)
            time.sleep(max(0.0, frozen_s + FROZEN_S - time.monotonic()))  # how long it stands still
            under.cluster.thaw(victim)
            under.healed()
        under.finish()
