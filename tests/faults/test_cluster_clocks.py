"""Wall clocks that jump: they order nothing, and nobody's lease or election depends on them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.clock import JumpingClock
from tests.support.cluster import Cluster
from tests.support.seeds import seeded
from tests.support.trial import PARTITIONS, TOPIC, round_timeout_s, rounds, trial

JUMPS = 2
HOUR_S = 3600.0


@pytest.mark.slow
@pytest.mark.peer("faketime")
@pytest.mark.timeout(round_timeout_s(JUMPS, 60))
def test_clocks_of_leaders_that_jump_by_an_hour_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    cluster = Cluster(tmp_path)
    clocks = {node_id: JumpingClock(tmp_path / f"clock-{node_id}") for node_id in cluster.node_ids}
    for node_id, plan in cluster.plans.items():
        plan.env |= clocks[node_id].env
    with trial("wall clock of a leader jumps by +1 h, then by -2 h", cluster) as under:
        for _ in range(rounds(JUMPS)):
            victim = under.cluster.leader(TOPIC, chance.randrange(PARTITIONS))
            led = under.led_by(victim)
            for offset_s in (HOUR_S, -HOUR_S):
                clocks[victim].jump(offset_s)
                under.recovered(under.hit(), led)
                time.sleep(chance.uniform(0.5, 1.5))  # how long it is wrong
            clocks[victim].jump(0)
        under.healed()
        under.finish()
