"""Networks that break: cut both ways, one way, flapping, slow and lossy; on namespaces of the tests' own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.link_emulator import Impairment
from tests.support.netns import Network
from tests.support.seeds import seeded
from tests.support.trial import HEALED_S, PARTITIONS, TOPIC, Trial, round_timeout_s, rounds, trial

CUTS = 1
CUT_S = 5.0
"""Long enough for elections, and for what was sent to nobody to time out."""
FLAPS_S = 10.0

pytestmark = [pytest.mark.slow, pytest.mark.peer("ip"), pytest.mark.peer("nft")]


def cluster_on(network: Network, directory: Path) -> Cluster:
    cluster = Cluster(directory, hosts=network.hosts)
    for node_id, plan in cluster.plans.items():
        plan.wrapper = network.wrapper(node_id)
    return cluster


def cut_off(network: Network, victim: int) -> None:
    network.isolate(victim)


def cut_off_from_nodes(network: Network, victim: int) -> None:
    network.isolate(victim, network.hosts)


def deafen(network: Network, victim: int) -> None:
    network.deafen(victim, network.hosts)


def mute(network: Network, victim: int) -> None:
    for other in network.hosts:
        if other != victim:
            network.cut_one_way(victim, other)


@pytest.mark.timeout(round_timeout_s(CUTS, 90))
@pytest.mark.parametrize(
    ("fault", "cut", "is_reached"),
    [
        ("leader cut off from nodes and clients", cut_off, False),
        ("leader cut off from nodes, not from clients", cut_off_from_nodes, True),
        ("leader sends to the others but hears nothing from them", deafen, True),
        ("leader hears the others but they hear nothing from it", mute, True),
    ],
    ids=["isolated", "isolated-from-nodes", "deaf", "mute"],
)
def test_a_leader_behind_a_broken_network_loses_and_doubles_nothing(
    tmp_path: Path, fault: str, cut: Callable[[Network, int], None], is_reached: bool
) -> None:
    chance = seeded()
    with Network(3) as network, trial(fault, cluster_on(network, tmp_path), clients=network.inside()) as under:
        for _ in range(rounds(CUTS)):
            victim = under.cluster.leader(TOPIC, chance.randrange(PARTITIONS))
            led = under.led_by(victim)
            cut(network, victim)
            cut_s = under.hit()
            under.recovered_elsewhere(cut_s, led, without=victim)
            if not is_reached:
                under.load.wait_progress(cut_s, HEALED_S, led, fault)
            time.sleep(max(0.0, cut_s + CUT_S - time.monotonic()))  # how long it is cut
            network.heal()
            under.healed()
        under.finish()


@pytest.mark.timeout(round_timeout_s(1, 120))
def test_links_that_flap_at_random_lose_and_double_nothing(tmp_path: Path) -> None:
    """Each time another pair of places, nodes or clients, one way or both."""
    chance = seeded()
    fault = "a random link cut for 0.3 to 2 s, one way or both, again and again"
    with Network(3) as network, trial(fault, cluster_on(network, tmp_path), clients=network.inside()) as under:
        end_s = time.monotonic() + FLAPS_S * rounds(1)
        while time.monotonic() < end_s:
            one, other = chance.sample(range(4), 2)
            if chance.random() < 0.5:
                network.cut(one, other)
            else:
                network.cut_one_way(one, other)
            under.hit()
            time.sleep(chance.uniform(0.3, 2.0))  # how long the link is down
            network.heal()
            time.sleep(chance.uniform(0.1, 0.5))  # and up
        under.recovered(time.monotonic(), within_s=HEALED_S)
        under.healed()
        under.finish()


@pytest.mark.timeout(round_timeout_s(1, 120))
@pytest.mark.parametrize(
    ("fault", "impairment"),
    [
        ("50 ms delay, 30 ms jitter between nodes", Impairment(delay_ms=50, jitter_ms=30)),
        (
            "10 % loss, 2 % doubles, 5 % re-ordered, 20 ms delay between nodes",
            Impairment(delay_ms=20, jitter_ms=10, loss=0.1, duplicate=0.02, reorder=0.05),
        ),
    ],
    ids=["delay", "loss"],
)
def test_a_network_that_delays_and_loses_packets_loses_and_doubles_no_event(
    tmp_path: Path, fault: str, impairment: Impairment
) -> None:
    network = Network(3, Impairment(), seed=seeded().randrange(1000))
    with network, trial(fault, cluster_on(network, tmp_path), clients=network.inside()) as under:
        for _ in range(rounds(1)):
            network.impair(impairment)
            slow_progress(under, under.hit())
            network.impair(Impairment())
            under.recovered(time.monotonic())
            under.healed()
        under.finish()


def slow_progress(under: Trial, since_s: float) -> None:
    """Under the impairment itself the cluster has to get somewhere, however slowly."""
    time.sleep(CUT_S)
    under.load.wait_progress(since_s, 60.0, None, "a bad network began")
