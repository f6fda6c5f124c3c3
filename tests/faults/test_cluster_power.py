"""A power cut of all nodes at one instant: what was acknowledged is on their disks, and not just in their memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.power_cut import PowerCutDisks
from tests.support.seeds import seeded
from tests.support.trial import round_timeout_s, rounds, trial

CUTS = 2


@pytest.mark.slow
@pytest.mark.peer("mkfs.xfs")
@pytest.mark.timeout(round_timeout_s(CUTS, 90))
def test_power_cuts_of_all_nodes_lose_and_double_nothing(tmp_path: Path) -> None:
    chance = seeded()
    with PowerCutDisks(tmp_path, 3) as disks:
        data_dirs = {number: path / "core" for number, path in disks.paths.items()}
        with trial("power cut of all nodes", Cluster(tmp_path, data_dirs=data_dirs)) as under:
            everyone = under.cluster.node_ids
            for _ in range(rounds(CUTS)):
                time.sleep(chance.uniform(0.1, 1.0))  # the random instant, not a synchronisation
                under.cluster.freeze(*everyone)
                disks.cut()
                under.cluster.kill(*everyone)
                under.hit()
                disks.power_on()
                for node_id in everyone:
                    under.cluster.launch(node_id)
                under.recovered(time.monotonic())
                under.healed()
            under.finish()
