"""One partition's replicas without files, sockets and tasks: the Raft core alone, thousands of steps in a tenth of a
second, over messages that are lost, late, doubled and re-ordered, disks that lose what was not synced, and clocks that
run at their own speed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from tests.simulator.invariants import (
    ACKNOWLEDGED_STAYS,
    COMMITTED_STAYS,
    CONVERGES,
    STABLE_LEADER,
    CommittedLog,
    PartitionInvariants,
    Violation,
)
from tests.simulator.raft_node import Entry, MemoryLog, Message, Node
from tests.simulator.trace import Trace
from tidegate_core.raft.messages import VoteState
from tidegate_core.raft.replica import Role
from tidegate_wire.identifiers import LeaderEpoch, NodeId


@dataclass
class Faults:
    """How the network and the disks behave just now."""

    loss: float = 0.0
    doubling: float = 0.0
    delay_ms: float = 2.0
    sync_ms: float = 3.0
    cut: set[tuple[int, int]] = field(default_factory=set)
    """From, to: what is sent this way does not arrive."""


class Acknowledged(NamedTuple):
    offset: int
    value: str


class Group:
    """All replicas of one partition, and what happens to them."""

    def __init__(self, seed: int, count: int, show: Callable[[str], None] | None = None) -> None:
        self.random = Random(seed)
        self.now_ms = 0.0
        self.steps = 0
        self.faults = Faults()
        self.trace = Trace(lambda: self.now_ms / 1000, show)
        self.invariants = PartitionInvariants("the partition")
        self.has_lying_disks = False
        """Acknowledged records may be gone; but no replica may cut what it knows to be committed."""
        self._committed_by_life: dict[str, CommittedLog] = {}
        self.acknowledged: list[Acknowledged] = []
        self.clock_rates = {NodeId(node): self.random.uniform(0.9, 1.1) for node in range(1, count + 1)}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._lives = itertools.count(1)
        self._values = itertools.count(1)
        self.founders = tuple(self.clock_rates)
        self.nodes: dict[NodeId, Node] = {}
        for node_id in self.clock_rates:
            self._begin_life(node_id, MemoryLog(self.founders), VoteState(LeaderEpoch(0)), is_new=True)

    def _begin_life(self, node_id: NodeId, log: MemoryLog, vote: VoteState, *, is_new: bool) -> None:
        node = self.nodes[node_id] = Node(self, node_id, next(self._lives), log, vote)
        node.start(is_new=is_new)

    # --- time and messages

    def schedule(self, ms: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_ms + ms, next(self._numbers), call))

    def run(self, ms: float) -> None:
        """Let time pass."""
        end_ms = self.now_ms + ms
        while self._heap and self._heap[0][0] <= end_ms:
            self.now_ms, _, call = heapq.heappop(self._heap)
            self.steps += 1
            call()
        self.now_ms = end_ms

    def run_until(self, is_reached: Callable[[], bool], ms_max: float) -> bool:
        end_ms = self.now_ms + ms_max
        while not is_reached():
            if self.now_ms >= end_ms:
                return False
            self.run(20)
        return True

    def send(self, sender: Node, to: NodeId, message: Message) -> None:
        faults, random = self.faults, self.random
        for _ in range(2 if random.random() < faults.doubling else 1):
            if random.random() < faults.loss:
                continue
            delay_ms = random.expovariate(1) * faults.delay_ms + 0.1

            def arrive() -> None:
                receiver = self.nodes.get(to)
                if receiver is not None and receiver.is_alive and (sender.node_id, to) not in faults.cut:
                    receiver.on_message(sender.node_id, message)

            self.schedule(delay_ms, arrive)

    # --- what happens to the nodes

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.is_alive]

    def leader(self) -> Node | None:
        """The one with the newest epoch."""
        leaders = [node for node in self.alive if node.replica.is_leader]
        return max(leaders, key=lambda node: node.replica.epoch, default=None)

    def crash(self, node: Node, *, power_cut: bool) -> None:
        """What was not synced is lost, kept or torn at a power cut; kill -9 keeps it."""
        self.trace(f"{node.name}: {'power cut' if power_cut else 'killed'}, had synced {node.log.synced}")
        node.is_alive = False
        log = node.log
        if power_cut:
            del log.entries[self.random.randint(log.synced, len(log.entries)) :]
        log.synced = len(log.entries)

    def restart(self, node: Node, *, wiped: bool = False) -> None:
        log, vote = node.log, node.disk_vote
        if wiped:
            log, vote = MemoryLog(self.founders), VoteState(LeaderEpoch(0), None, may_vote=False)
        self.trace(f"node {node.node_id}: starts {'with an empty disk' if wiped else f'with {len(log.entries)}'}")
        self._begin_life(node.node_id, log, vote, is_new=False)

    def roll_back(self, node: Node, offset: int) -> None:
        """The disk of a dead node lied: what was synced is not there."""
        self.trace(f"node {node.node_id}: its disk lost everything from {offset} on")
        for other in self.nodes.values():
            log = self._committed_by_life.setdefault(other.name, CommittedLog())
            log.observe(other.name, 0, other.log.batches(log.end_offset, other.high_watermark))
        node.log.truncate(offset)
        self.has_lying_disks = True

    def propose(self) -> None:
        """A client writes to a node that leads, as far as that knows."""
        leaders = [node for node in self.alive if node.replica.is_leader]
        if not leaders:
            return
        node = self.random.choice(leaders)
        entry = Entry(node.replica.epoch, f"value {next(self._values)}")
        offset = len(node.log.entries)
        node.append(entry)
        self._await_commit(node, node.replica.epoch, offset, entry.value)

    def _await_commit(self, node: Node, epoch: int, offset: int, value: str) -> None:
        if not node.replica.is_leader or node.replica.epoch != epoch:
            return
        if node.high_watermark > offset:
            self.acknowledged.append(Acknowledged(offset, value))
        else:
            node.later(5, lambda: self._await_commit(node, epoch, offset, value))

    def change_voters(self) -> None:
        """The leader takes a voter out, or a node that is none in; one at a time."""
        node = self.leader()
        if node is None or not node.replica.can_change_voters:
            return
        voters = node.log.voters
        outside = [other for other in self.nodes if other not in voters]
        if outside and (len(voters) < 3 or self.random.random() < 0.5):
            voters = (*voters, self.random.choice(outside))
        elif len(voters) > 2:
            leaving = self.random.choice([voter for voter in voters if voter != node.node_id])
            voters = tuple(voter for voter in voters if voter != leaving)
        else:
            return
        self.trace(f"{node.name}: makes the voters {voters}")
        node.append(Entry(node.replica.epoch, f"voters {voters} {next(self._values)}", voters))
        node.replica.on_synced()
        node.settle()
        node.announce()

    def hand_over(self) -> None:
        """The leader steps down politely."""
        node = self.leader()
        if node is None:
            return
        message = node.replica.resign(node.now_ms)
        node.settle()
        if message is not None:
            for voter in message.successors:
                self.send(node, voter, message)

    # --- what must hold

    def observe(self, node: Node) -> None:
        """Look at a replica that may have changed."""
        replica, log = node.replica, node.log
        self.invariants.observe(
            node.name,
            epoch=replica.epoch,
            is_leader=replica.is_leader,
            high_watermark=replica.high_watermark,
            end_offset=len(log.entries),
        )
        if replica.high_watermark > node.high_watermark:
            if replica.is_leader:
                self._check_commit(node)
            new = log.batches(node.high_watermark, replica.high_watermark)
            self._committed(node).observe(node.name, replica.epoch, new)
            node.high_watermark = replica.high_watermark
            for answer in list(node.waiting.values()):
                self.schedule(1, answer)
        elif node.high_watermark > 0:
            batch = log.batches(node.high_watermark - 1, node.high_watermark)
            self._committed(node).observe(node.name, replica.epoch, batch)
            if not batch:
                raise Violation(COMMITTED_STAYS, f"{node.name} cut what was committed")

    def _committed(self, node: Node) -> CommittedLog:
        if self.has_lying_disks:
            return self._committed_by_life.setdefault(node.name, CommittedLog())
        return self.invariants.committed

    def _check_commit(self, node: Node) -> None:
        if self.has_lying_disks:
            return
        replica, log = node.replica, node.log
        end = replica.high_watermark
        last = log.batches(end - 1, end)[0]
        self.invariants.leader_committed(node.name, replica.epoch, last)
        safe: dict[int, int] = {
            voter: min(other.log.synced, end)
            for voter in log.voters
            if (other := self.nodes.get(voter)) is not None and other.log.batches(end - 1, end) == [last]
        }
        for other in self.nodes.values():
            if not other.replica.may_vote:  # its disk was replaced, maybe after it had said what it has
                safe[other.node_id] = end
        self.invariants.held(node.name, end, log.voters, safe)

    def elected(self, node: Node) -> None:
        if self.has_lying_disks:
            return
        self.invariants.elected(node.name, node.replica.epoch, node.log.batches(0, len(node.log.entries)))

    def check_converged(self, ms_max: float) -> None:
        """The faults are over: there is one leader, everybody has what it has, and new records are committed."""
        self.faults = Faults()
        for node in list(self.nodes.values()):
            if not node.is_alive or node.replica.role is Role.HALTED:
                node.is_alive = False
                self.restart(node)
        known = len(self.acknowledged)

        def is_alike() -> bool:
            leader = self.leader()
            if leader is None or len(self.acknowledged) == known:
                self.propose()
                return False
            followers = [self.nodes[voter] for voter in leader.log.voters]
            return all(
                node.log.entries == leader.log.entries and node.high_watermark == len(leader.log.entries)
                for node in (leader, *followers)
            )

        if not self.run_until(is_alike, ms_max):
            states = "; ".join(
                f"{node.name}: {node.replica.role.name} in {node.replica.epoch}, leader {node.replica.leader}, "
                f"{len(node.log.entries)} entries, high watermark {node.high_watermark}, "
                f"{'may' if node.replica.may_vote else 'may not'} vote"
                for node in self.nodes.values()
            )
            raise Violation(CONVERGES, states)
        leader = self.leader()
        assert leader is not None
        for offset, value in () if self.has_lying_disks else self.acknowledged:
            if leader.log.entries[offset].value != value:
                raise Violation(ACKNOWLEDGED_STAYS, f"{value}, acknowledged at {offset}")

    def check_stable(self, ms: float) -> None:
        """A minority comes and goes; whoever the majority hears goes on leading, in its epoch."""
        leader = self.leader()
        assert leader is not None
        epoch = leader.replica.epoch
        others = [node for node in leader.log.voters if node != leader.node_id]
        disturbed = self.random.sample(others, (len(leader.log.voters) - 1) // 2)
        self.trace(f"{disturbed} come and go")
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms:
            for node in disturbed:
                ways = [(node, other) for other in self.nodes] + [(other, node) for other in self.nodes]
                self.faults.cut = {way for way in ways if self.random.random() < self.random.choice((0, 0.5, 1))}
            self.run(self.random.uniform(50, 3000))
        self.faults.cut = set()
        self.run(2000)
        if not leader.replica.is_leader or leader.replica.epoch != epoch:
            raise Violation(STABLE_LEADER, f"{leader.name} led in epoch {epoch}, now {leader.replica.epoch}")
