"""What one seed of the Raft level does: a group is made, disturbed, and healed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.simulator.invariants import CONVERGES, Violation
from tests.simulator.raft_group import Faults, Group
from tests.simulator.raft_node import Node
from tidegate_core.raft.replica import Role

ELECTED_WITHIN_MS: Final = 20_000
CONVERGED_WITHIN_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class RaftRun:
    """What came of a seed that broke nothing."""

    steps: int
    virtual_ms: float
    acknowledged: int
    epochs: int
    digest: str


def run_raft_seed(seed: int, show: Callable[[str], None] | None = None) -> RaftRun:
    """Run one seed to its end.

    Raises:
        Violation: an invariant does not hold.
    """
    chance = Random(f"raft {seed}")
    count = chance.choice((1, 3, 3, 3, 3, 5, 5))
    group = Group(chance.getrandbits(32), count, show)
    try:
        _Run(group, chance).run()
    except AssertionError as error:
        error.add_note("\n".join(group.trace.last_lines))
        raise
    return RaftRun(
        group.steps, group.now_ms, len(group.acknowledged), len(group.invariants.leaders), group.trace.digest
    )


class _Run:
    def __init__(self, group: Group, chance: Random) -> None:
        self.group = group
        self.chance = chance
        self.changes_voters = len(group.nodes) > 1 and chance.random() < 0.25
        self.wipes = not self.changes_voters and len(group.nodes) > 1 and chance.random() < 0.3
        self.lies = not self.wipes and not self.changes_voters and len(group.nodes) > 1 and chance.random() < 0.1

    def run(self) -> None:
        group, chance = self.group, self.chance
        self._elect()
        if len(group.nodes) > 1 and chance.random() < 0.3:
            group.check_stable(chance.uniform(2000, 10_000))
        for _ in range(chance.randint(20, 60)):
            chance.choice(self._actions())()
            for _ in range(chance.randint(0, 6)):
                group.propose()
                group.run(chance.expovariate(1) * chance.choice((1, 10, 100, 500)))
        if self.lies:
            self._lie()
        group.check_converged(CONVERGED_WITHIN_MS)

    def _elect(self) -> None:
        if not self.group.run_until(lambda: self.group.leader() is not None, ELECTED_WITHIN_MS):
            raise Violation(CONVERGES, "nobody was elected in the beginning")
        for _ in range(3):
            self.group.propose()
            self.group.run(self.chance.uniform(0, 200))
        self.group.run_until(self._is_calm, ELECTED_WITHIN_MS)

    def _is_calm(self) -> bool:
        """Everybody follows the leader."""
        leader = self.group.leader()
        return leader is not None and all(
            node is leader or node.replica.leader == leader.node_id for node in self.group.alive
        )

    def _actions(self) -> list[Callable[[], None]]:
        actions = [
            self._new_weather,
            self._crash_one,
            self._crash_one,
            self._crash_leader,
            self._cut_power_of_all,
            self._restart_one,
            self._restart_one,
            self._restart_all,
            self._bounce_some,
            self._bounce_some,
            self._cut_links,
            self._isolate_leader,
            self._heal_links,
            self._heal_links,
            self.group.hand_over,
        ]
        if self.changes_voters:
            actions += [self.group.change_voters] * 5
        if self.wipes:
            actions += [self._wipe_one] * 3
        return actions

    # --- faults

    def _new_weather(self) -> None:
        chance = self.chance
        self.group.faults = Faults(
            loss=chance.choice((0, 0, 0.05, 0.3)),
            doubling=chance.choice((0, 0.1)),
            delay_ms=chance.choice((0.5, 2, 20, 150)),
            sync_ms=chance.choice((0.1, 3, 30, 300)),
            cut=self.group.faults.cut,
        )

    def _crash(self, node: Node | None) -> None:
        if node is not None and node.is_alive:
            self.group.crash(node, power_cut=self.chance.random() < 0.5)

    def _crash_one(self) -> None:
        self._crash(self.chance.choice(list(self.group.nodes.values())))

    def _crash_leader(self) -> None:
        self._crash(self.group.leader())

    def _cut_power_of_all(self) -> None:
        if self.chance.random() < 0.5:
            for node in self.group.alive:
                self.group.crash(node, power_cut=True)
            self.group.run(self.chance.uniform(0, 100))
            self._restart_all()

    def _restart_one(self) -> None:
        node = self.chance.choice(list(self.group.nodes.values()))
        if not node.is_alive:
            self.group.restart(node)

    def _bounce_some(self) -> None:
        """Down and up at once, in the middle of an election or of whatever it does."""
        self._crash_leader()
        self.group.faults.delay_ms = self.chance.choice((2, 50, 150))  # late votes make several candidates
        end_ms = self.group.now_ms + 5000
        while self.group.now_ms < end_ms and self.group.leader() is None:
            node = self.chance.choice(list(self.group.nodes.values()))
            if node.replica.role is Role.CANDIDATE or node.replica.voted_for is not None:
                self._crash(node)
                self.group.run(self.chance.uniform(0, 20))
                self._restart_all()
            self.group.run(self.chance.expovariate(1) * 50)

    def _restart_all(self) -> None:
        for node in list(self.group.nodes.values()):
            if not node.is_alive:
                self.group.restart(node)

    def _cut_links(self) -> None:
        nodes = list(self.group.nodes)
        share = self.chance.choice((0.1, 0.3, 0.6))
        self.group.faults.cut |= {
            (one, other) for one in nodes for other in nodes if one != other and self.chance.random() < share
        }

    def _isolate_leader(self) -> None:
        leader = self.group.leader()
        if leader is None:
            return
        both_ways = self.chance.random() < 0.5
        for other in self.group.nodes:
            self.group.faults.cut.add((leader.node_id, other))
            if both_ways:
                self.group.faults.cut.add((other, leader.node_id))

    def _heal_links(self) -> None:
        self.group.faults.cut = set()

    def _wipe_one(self) -> None:
        """A minority of disks is replaced; the next one only when the replicas before are whole again."""
        nodes = list(self.group.nodes.values())
        weak = [node for node in nodes if not node.disk_vote.may_vote or not node.replica.may_vote]
        if len(weak) >= (len(nodes) - 1) // 2:
            return
        node = self.chance.choice([node for node in nodes if node not in weak])
        if node.is_alive:
            self.group.crash(node, power_cut=True)
        self.group.restart(node, wiped=True)

    def _lie(self) -> None:
        """Disks of a majority lost what they had synced: those who know better must not forget it."""
        group, chance = self.group, self.chance
        group.faults = Faults()
        self._restart_all()
        group.run_until(self._is_calm, ELECTED_WITHIN_MS)
        group.run(5000)
        nodes = list(group.nodes.values())
        keeper = chance.choice(nodes)
        for node in nodes:
            if node is keeper or node.replica.role is Role.HALTED:
                continue
            if node.is_alive:
                group.crash(node, power_cut=True)
            group.roll_back(node, chance.randint(0, len(node.log.entries)))
        if keeper.replica.is_leader:
            group.run(3000)
        self._restart_all()
        for _ in range(20):
            group.propose()
            group.run(300)
