"""kill -9 of nodes of a loaded cluster: leaders again and again, two of five, and all at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.seeds import seeded
from tests.support.trial import HEALED_S, PARTITIONS, TOPIC, round_timeout_s, rounds, trial

KILLS = 3
OUTAGES = 1


@pytest.mark.slow
@pytest.mark.timeout(round_timeout_s(KILLS, 60))
def test_leaders_that_are_killed_one_after_the_other_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with trial("kill -9 of a leader", Cluster(tmp_path)) as under:
        for _ in range(rounds(KILLS)):
            time.sleep(chance.uniform(0.1, 1.0))  # the random instant, not a synchronisation
            victim = under.cluster.leader(TOPIC, chance.randrange(PARTITIONS))
            led = under.led_by(victim)
            under.cluster.kill(victim)
            under.recovered(under.hit(), led)
            under.cluster.start(victim)
            under.healed()
        under.finish()


@pytest.mark.slow
@pytest.mark.timeout(round_timeout_s(OUTAGES, 90))
def test_two_of_five_nodes_that_are_killed_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with trial("kill -9 of two of five nodes", Cluster(tmp_path, size=5)) as under:
        for _ in range(rounds(OUTAGES)):
            first = under.cluster.leader(TOPIC, 0)
            second = chance.choice([node_id for node_id in under.cluster.node_ids if node_id != first])
            under.cluster.kill(first, second)
            under.recovered(under.hit())
            under.cluster.start(first, second)
            under.healed()
        under.finish()


@pytest.mark.slow
@pytest.mark.timeout(round_timeout_s(OUTAGES, 90))
def test_all_nodes_killed_at_once_and_started_one_after_the_other_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with trial("kill -9 of all nodes, staggered restart", Cluster(tmp_path)) as under:
        for _ in range(rounds(OUTAGES)):
            under.cluster.kill(*under.cluster.node_ids)
            under.hit()
            order = chance.sample(under.cluster.node_ids, 3)
            under.cluster.launch(order[0])
            time.sleep(1.0)  # alone, it can't go on
            under.cluster.launch(order[1])
            under.recovered(time.monotonic(), within_s=HEALED_S)
            under.cluster.start(order[2])
            under.healed()
        under.finish()
