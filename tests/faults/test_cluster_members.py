"""Nodes that leave and come: told to stop, or back with an empty disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.seeds import seeded
from tests.support.trial import PARTITIONS, TOPIC, round_timeout_s, rounds, trial

STOPS = 3
WIPES = 1

pytestmark = pytest.mark.slow


@pytest.mark.timeout(round_timeout_s(STOPS, 60))
def test_leaders_that_are_told_to_stop_under_load_fail_no_produce(tmp_path: Path) -> None:
    chance = seeded()
    with trial("SIGTERM to a leader", Cluster(tmp_path)) as under:
        for _ in range(rounds(STOPS)):
            victim = under.cluster.leader(TOPIC, chance.randrange(PARTITIONS))
            led = under.led_by(victim)
            told_s = under.hit()
            under.cluster.stop(victim)
            under.recovered(told_s, led)
            under.cluster.start(victim)
            under.healed()
        verdict = under.finish()
        assert verdict.failed == 0, verdict


@pytest.mark.timeout(round_timeout_s(WIPES, 90))
def test_a_node_with_a_wiped_disk_joins_again_and_is_as_good_as_any(tmp_path: Path) -> None:
    chance = seeded()
    with trial("a node comes back with an empty disk", Cluster(tmp_path)) as under:
        for _ in range(rounds(WIPES)):
            victim = under.cluster.leader(TOPIC, chance.randrange(PARTITIONS))
            led = under.led_by(victim)
            under.cluster.kill(victim)
            under.recovered(under.hit(), led)
            under.cluster.wipe(victim)
            under.cluster.start(victim)
            under.healed()
            other = chance.choice([node_id for node_id in under.cluster.node_ids if node_id != victim])
            under.cluster.kill(other)  # what it was given again now makes the majority
            under.load.wait_progress(time.monotonic(), 15.0, None, "another node died")
            under.cluster.start(other)
            under.healed()
        under.finish()
