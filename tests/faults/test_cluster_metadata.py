"""Topics are a linearizable object, whatever happens to the controller: checked from what clients were told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.netns import Network
from tests.support.processes import wait_until
from tests.support.seeds import seeded
from tests.support.topics_history import TopicsLoad
from tests.support.trial import round_timeout_s, rounds

FAULTS = 2
CHANGES_AFTER = 20
"""With a known outcome, after each fault is over."""

pytestmark = pytest.mark.slow


def assert_linearizable(load: TopicsLoad) -> None:
    for name, explanation in load.explain().items():
        assert explanation.holds, f"{name}: {explanation}"
        assert len(explanation.order) > CHANGES_AFTER / 2, "hardly anything was tried"
    print(f"linearizable: {load.known} changes of topics with a known outcome")  # noqa: T201 # what the trial showed


def wait_changes(load: TopicsLoad) -> None:
    known = load.known
    wait_until(lambda: load.known >= known + CHANGES_AFTER, 30, "topics are changed again")


@pytest.mark.timeout(round_timeout_s(FAULTS, 60))
def test_changes_of_topics_are_linearizable_while_controllers_are_killed(tmp_path: Path) -> None:
    chance = seeded()
    with Cluster(tmp_path) as cluster:
        cluster.start()
        addresses = [plan.address for plan in cluster.plans.values()]
        with TopicsLoad(addresses, replicas=3, chance=chance) as load:
            wait_changes(load)
            for _ in range(rounds(FAULTS)):
                victim = cluster.controller()
                cluster.kill(victim)
                wait_changes(load)
                cluster.start(victim)
                wait_changes(load)
        assert_linearizable(load)


@pytest.mark.peer("ip")
@pytest.mark.peer("nft")
@pytest.mark.timeout(round_timeout_s(1, 60))
def test_changes_of_topics_are_linearizable_while_a_controller_that_clients_reach_is_cut_off(tmp_path: Path) -> None:
    chance = seeded()
    with Network(3) as network, network.inside(), Cluster(tmp_path, hosts=network.hosts) as cluster:
        for node_id, plan in cluster.plans.items():
            plan.wrapper = network.wrapper(node_id)
        cluster.start()
        addresses = [plan.address for plan in cluster.plans.values()]
        with TopicsLoad(addresses, replicas=3, chance=chance) as load:
            wait_changes(load)
            for _ in range(rounds(1)):
                network.isolate(cluster.controller(), network.hosts)
                wait_changes(load)
                time.sleep(2.0)  # how long it stays cut off
                network.heal()
                wait_changes(load)
        assert_linearizable(load)
