"""What one seed of whole nodes does: a cluster is founded, used and disturbed, then left in peace, and checked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Final

from tests.simulator.clients import Clients, Place, events_of, seconds
from tests.simulator.cluster import Cluster, SimulatedNode, temporary_base
from tests.simulator.disk import Loss
from tests.simulator.invariants import ACKNOWLEDGED_STAYS, CONVERGES, Violation
from tests.simulator.network import CLIENT, Weather
from tests.simulator.virtual_loop import VirtualLoop, virtual_time
from tests.support.history import check
from tests.support.linearizability import explain
from tests.support.topics_history import ABSENT, topic_step
from tidegate_core.metadata.snapshot import encode_snapshot
from tidegate_core.partition import Partition
from tidegate_core.protocol.versions import Api
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.records import BatchError, check_batch, iter_batches

TOPIC: Final = "events"
READY_WITHIN_S: Final = 30.0
CONVERGED_WITHIN_S: Final = 120.0
STEPS_MAX: Final = 2_000_000
"""Of the loop; a run takes some ten thousand."""

CHECKED_EVERY_S: Final = 1.0
CUTS: Final = (Loss.EVERYTHING, Loss.TAIL, Loss.SECTORS)
LINEARIZABLE: Final = "metadata is linearizable"


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """What came of a seed that broke nothing."""

    virtual_s: float
    steps: int
    lives: int
    acknowledged: int
    commits: int
    topic_changes: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What kind of run a seed is."""

    nodes: int
    voters: int
    rounds: int
    partitions: int = 3
    damages_disks: bool = False
    fails_disks: bool = False
    fills_disks: bool = False
    moves_partitions: bool = False

    @classmethod
    def draw(cls, chance: Random) -> Plan:
        nodes = chance.choice((1, 3, 3, 3, 3, 4, 5))
        return cls(
            nodes=nodes,
            voters=min(nodes, chance.choice((3, 3, 5))) if nodes >= 5 else min(nodes, 3),
            rounds=chance.randint(4, 12),
            partitions=chance.randint(1, 4),
            damages_disks=nodes > 1 and chance.random() < 0.3,
            fails_disks=nodes > 1 and chance.random() < 0.3,
            fills_disks=chance.random() < 0.2,
            moves_partitions=nodes > 3 and chance.random() < 0.6,
        )


def run_cluster_seed(seed: int, show: Callable[[str], None] | None = None, plan: Plan | None = None) -> ClusterRun:
    """Run one seed to its end.

    Raises:
        AssertionError: a `Violation`, or an assertion in the core.
    """
    chance = Random(f"cluster {seed}")
    drawn = Plan.draw(chance)
    plan = plan or drawn
    settings = {
        "offsets_partitions": 2,
        "topic_defaults": {"segment.bytes": str(chance.choice((4096, 16384, 65536)))},
        "shutdown_timeout_s": 2.0,
    }
    with temporary_base() as base, virtual_time(chance.getrandbits(32)) as loop:
        cluster = Cluster(
            loop,
            base,
            Random(chance.random()),
            count=plan.nodes,
            voter_count=plan.voters,
            settings=settings,
            show=show,
        )
        cluster.trace(f"{plan}")
        run = _Run(cluster, chance, plan)
        try:
            with cluster.running():
                loop.run(run.run())
        except BaseException as error:
            error.add_note("\n".join(cluster.trace.last_lines))
            raise
        history = run.clients.history
        return ClusterRun(
            round(loop.time() - 1000, 3),
            loop.steps,
            sum(node.lives for node in cluster.nodes.values()),
            history.acknowledged,
            len(history.commits),
            sum(operation.outcome == "done" for operations in run.clients.topics.values() for operation in operations),
            cluster.trace.digest,
        )


class _Run:
    def __init__(self, cluster: Cluster, chance: Random, plan: Plan) -> None:
        self.cluster = cluster
        self.loop: VirtualLoop = cluster.loop
        self.chance = chance
        self.plan = plan
        self.replicas = min(3, plan.nodes)
        places = [Place(TOPIC, index) for index in range(plan.partitions)]
        self.clients = Clients(cluster, Random(chance.random()), places=places, admin_topics=("a", "b"))
        self._checked_s = 0.0

    async def run(self) -> None:
        self.loop.after_step = self._check
        for node in self.cluster.nodes.values():
            await node.start()
        await self._wait(self._all_ready, READY_WITHIN_S, "the nodes are not ready")
        await self.clients.until(self._has_topic)
        self.clients.start(
            producers=self.chance.randint(1, 4),
            readers=1,
            admins=self.chance.randint(0, 2),
            committers=self.chance.choice((0, 1)),
        )
        await asyncio.sleep(self.chance.uniform(0, 3))
        for _ in range(self.plan.rounds):
            action = self.chance.choice(self._actions())
            self.cluster.trace(f"--- {getattr(action, '__name__', '?').strip('_').replace('_', ' ')}")
            await action()
            await asyncio.sleep(self.chance.expovariate(1) * self.chance.choice((0.1, 1, 3)))
        await self._converge()
        self.cluster.observer.check_all()
        await self._check_histories()

    async def _has_topic(self) -> bool:
        code = await self.clients.make_topic(TOPIC, self.plan.partitions, self.replicas)
        return code in (ErrorCode.none, ErrorCode.topic_already_exists)

    def _all_ready(self) -> bool:
        return all(node.is_ready for node in self.cluster.nodes.values())

    async def _wait(self, is_reached: Callable[[], bool], within_s: float, else_what: str) -> None:
        end_s = self.loop.time() + within_s
        while not is_reached():
            if self.loop.time() > end_s:
                raise Violation(CONVERGES, else_what)
            await asyncio.sleep(0.1)

    def _check(self) -> None:
        if self.loop.steps > STEPS_MAX:
            raise Violation(CONVERGES, f"{STEPS_MAX} steps, and no end")
        if self.loop.time() - self._checked_s > CHECKED_EVERY_S:
            self._checked_s = self.loop.time()
            self.cluster.observer.check_all()

    # --- faults

    def _actions(self) -> list[Callable[[], Awaitable[None]]]:
        actions: list[Callable[[], Awaitable[None]]] = [
            self._new_weather,
            self._new_weather,
            self._kill_one,
            self._kill_one,
            self._kill_leader,
            self._kill_leader,
            self._cut_power_of_one_in_the_middle,
            self._cut_power_of_one_in_the_middle,
            self._cut_power_of_all,
            self._start_all,
            self._start_all,
            self._stop_one_politely,
            self._cut_links,
            self._isolate_leader,
            self._heal_links,
            self._jump_clock,
        ]
        if self.plan.fails_disks:
            actions += [self._fail_a_sync] * 2
        if self.plan.fills_disks:
            actions += [self._fill_a_disk] * 2
        if self.plan.damages_disks:
            actions += [self._damage_a_disk] * 3
        if self.plan.moves_partitions:
            actions += [self._move_a_partition] * 4
        return actions

    def _any_node(self) -> SimulatedNode:
        return self.chance.choice(list(self.cluster.nodes.values()))

    def _leader(self) -> SimulatedNode:
        """Of some partition, as it thinks itself."""
        leaders = [
            node
            for node in self.cluster.alive
            if node.replicas is not None and any(one.replica.is_leader for one in node.replicas.hosted_replicas)
        ]
        return self.chance.choice(leaders) if leaders else self._any_node()

    async def _new_weather(self) -> None:
        chance = self.chance
        self.cluster.network.weather = Weather(
            loss=chance.choice((0, 0, 0.01, 0.1)),
            doubling=chance.choice((0, 0.1, 0.3)),
            delay_ms=chance.choice((0.2, 2, 20, 100)),
            cut=self.cluster.network.weather.cut,
        )
        self.cluster.trace(f"{self.cluster.network.weather}")

    async def _kill_one(self) -> None:
        self._any_node().kill(self.chance.choice((Loss.NOTHING, *CUTS)))

    async def _kill_leader(self) -> None:
        node = self._leader()
        node.kill(self.chance.choice((Loss.NOTHING, *CUTS)))
        if self.chance.random() < 0.5:
            await asyncio.sleep(self.chance.choice((0.0, 0.05, 1.0)))
            await node.start()

    async def _cut_power_of_one_in_the_middle(self) -> None:
        node = self._any_node()
        node.disk.cut_at = node.disk.operations + self.chance.randint(1, 30)
        if not node.is_alive:
            await node.start()
            node.disk.cut_at = node.disk.operations + self.chance.randint(1, 10)  # while it recovers

    async def _cut_power_of_all(self) -> None:
        loss = self.chance.choice(CUTS)
        for node in self.cluster.nodes.values():
            node.kill(loss)
        await asyncio.sleep(self.chance.uniform(0, 0.5))
        await self._start_all()

    async def _start_all(self) -> None:
        for node in self.cluster.nodes.values():
            await node.start()
            await asyncio.sleep(self.chance.choice((0.0, 0.0, 0.3)))

    async def _stop_one_politely(self) -> None:
        node = self._any_node()
        await node.stop()
        if self.chance.random() < 0.7:
            await node.start()

    async def _cut_links(self) -> None:
        names = [node.name for node in self.cluster.nodes.values()]
        share = self.chance.choice((0.1, 0.3, 0.6))
        self.cluster.network.weather.cut |= {
            (one, other) for one in names for other in names if one != other and self.chance.random() < share
        }

    async def _isolate_leader(self) -> None:
        leader = self._leader().name
        both_ways, clients_too = self.chance.random() < 0.6, self.chance.random() < 0.3
        for other in [*(node.name for node in self.cluster.nodes.values()), *([CLIENT] if clients_too else [])]:
            self.cluster.network.weather.cut.add((leader, other))
            if both_ways:
                self.cluster.network.weather.cut.add((other, leader))

    async def _heal_links(self) -> None:
        self.cluster.network.weather.cut = set()

    async def _jump_clock(self) -> None:
        self._any_node().clock_skew_ms += self.chance.choice((-1, 1)) * self.chance.choice((50, 5_000, 86_400_000))

    async def _fail_a_sync(self) -> None:
        node = self._any_node()
        node.disk.fails_at = node.disk.operations + self.chance.randint(1, 20)
        node.disk_failed = True

    async def _fill_a_disk(self) -> None:
        node = self._any_node()
        node.disk.is_full = True
        node.disk_failed = True
        await asyncio.sleep(self.chance.uniform(0, 5))
        node.disk.is_full = False

    async def _damage_a_disk(self) -> None:
        """A bit flips, or the disk is replaced: of one node, while all others are whole, until it is whole again."""
        if any(node.lost_disk for node in self.cluster.nodes.values()):
            return
        await self._heal()
        if not await self._is_whole_within(20):
            return
        node = self._any_node()
        node.kill(Loss.NOTHING)
        await asyncio.sleep(0.1)
        node.lost_disk = True
        if self.chance.random() < 0.3:
            self.cluster.trace(f"{node.name}: its disk is replaced by an empty one")
            node.disk.wipe()
        else:
            self.cluster.trace(f"{node.name}: a bit flips in {node.disk.flip(_may_flip)}")
            node.has_flipped_bits = True
        if self.chance.random() < 0.7:
            await node.start()
            self.loop.create_task(self._watch_repair(node))

    async def _watch_repair(self, node: SimulatedNode) -> None:
        while node.lost_disk:
            await asyncio.sleep(0.5)
            if self._state_of_cluster() is None:
                node.lost_disk = False

    async def _move_a_partition(self) -> None:
        place = self.chance.choice(self.clients.places)
        count = self.chance.choice((self.replicas, self.replicas, 2))
        replicas = self.chance.sample(sorted(self.cluster.nodes), count)
        part = {"partition_index": place.partition, "replicas": replicas}
        await self.clients.ask(
            self.clients.any_node(),
            Api.ALTER_PARTITION_REASSIGNMENTS,
            timeout=seconds(3),
            topics=[{"name": place.topic, "partitions": [part]}],
        )

    # --- the end

    async def _heal(self) -> None:
        self.cluster.network.weather = Weather()
        for node in self.cluster.nodes.values():
            node.disk.is_full = False
            node.disk.cut_at = node.disk.fails_at = None
            if node.disk_failed:
                node.kill(Loss.NOTHING)  # who runs it replaces nothing, but starts it again
            await node.start()

    async def _is_whole_within(self, within_s: float) -> bool:
        end_s = self.loop.time() + within_s
        while self._state_of_cluster() is not None:
            if self.loop.time() > end_s:
                return False
            await asyncio.sleep(0.1)
        return True

    async def _converge(self) -> None:
        """The faults are over."""
        self.cluster.trace("--- the faults are over")
        await self._heal()
        stopping = self.loop.create_task(self.clients.stop())
        end_s = self.loop.time() + CONVERGED_WITHIN_S
        while not (stopping.done() and self._state_of_cluster() is None):
            if stopping.done():
                stopping.result()
            if self.loop.time() > end_s:
                state = self._state_of_cluster() or "clients wait for answers"
                await self.clients.cancel()
                raise Violation(CONVERGES, "\n".join([state, *self._describe()]))
            for node in self.cluster.nodes.values():
                await node.start()
            await asyncio.sleep(0.1)
        for node in self.cluster.nodes.values():
            node.lost_disk = False
        stopping.result()

    def _state_of_cluster(self) -> str | None:
        """What is not well yet; None if all is."""
        images: dict[str, str] = {}
        for node in self.cluster.nodes.values():
            if node.node is None or not node.is_ready or not node.is_alive:
                return f"{node.name} is not ready"
            images[node.name] = repr(encode_snapshot(node.node.image))
        if len(set(images.values())) > 1:
            return f"the nodes' metadata differs: {images}"
        image = next(iter(self.cluster.nodes.values())).node
        assert image is not None
        for topic in image.image.topics.values():
            for index in range(topic.partition_count):
                if topic.reassigning.get(index):
                    return f"{topic.name}-{index} is still to move to {topic.reassigning[index]}"
                problem = self._state_of_partition(topic.name, index, topic.replicas[index])
                if problem is not None:
                    return f"{topic.name}-{index}: {problem}"
        return self._state_of_metadata()

    def _describe(self) -> list[str]:
        """Every replica."""
        return [
            f"  {node.life} {one.partition.topic}-{one.partition.index}: {one.replica.role.name} in epoch"
            f" {one.replica.epoch}, leader {one.replica.leader}, voters {one.partition.voters}, offsets"
            f" {one.partition.log_start_offset} {one.partition.high_watermark} {one.partition.synced_offset}"
            f" {one.partition.log_end_offset}, {'may' if one.replica.may_vote else 'may not'} vote,"
            f" {one.partition.failure or one.partition.log.damage or 'whole'}"
            for node in self.cluster.alive
            if node.replicas is not None
            for one in node.replicas.hosted_replicas
        ]

    def _state_of_metadata(self) -> str | None:
        partitions = {node.name: node.replicas.hosted_replicas for node in self.cluster.nodes.values() if node.replicas}
        for name, hosted in partitions.items():
            for one in hosted:
                if not one.replica.may_vote and one.replica.is_voter:
                    return f"{name} may not vote on {one.partition.topic}-{one.partition.index}"
        return None

    def _state_of_partition(self, topic: str, index: int, replicas: tuple[int, ...]) -> str | None:
        found: dict[int, Partition] = {}
        leaders: set[int | None] = set()
        for node in self.cluster.nodes.values():
            assert node.node is not None
            partition = node.node.replicas.partitions.get((topic, index))
            if partition is not None:
                found[node.node_id] = partition
            key = node.node.image.topics[topic].key(index)
            leadership = node.node.leaders.get(key)
            leaders.add(None if leadership is None else leadership.leader)
        if set(found) != set(replicas):
            return f"is on {sorted(found)}, not on {replicas}"
        if len(leaders) > 1 or None in leaders:
            return f"the nodes don't agree who leads: {leaders}"
        if any(set(partition.voters) != set(replicas) for partition in found.values()):
            return f"voters {[partition.voters for partition in found.values()]}, not {replicas}"
        ends = {
            node: (one.failure is None, one.log_end_offset, one.synced_offset, one.high_watermark)
            for node, one in found.items()
        }
        _, end, _, _ = ends[replicas[0]]
        if any(state != (True, end, end, end) for state in ends.values()):
            return f"replicas differ: {ends}"
        return None

    async def _check_histories(self) -> None:
        log = {number: await self._read_all(place) for number, place in enumerate(self.clients.places)}
        verdict = check(self.clients.history, log, group_is_done=False)
        self.cluster.trace(f"{verdict}")
        if not verdict.holds:
            raise Violation(ACKNOWLEDGED_STAYS, str(verdict))
        for name, operations in self.clients.topics.items():
            explanation = explain(operations, ABSENT, topic_step)
            if not explanation.holds:
                raise Violation(LINEARIZABLE, f"topic {name}: {explanation}")

    async def _read_all(self, place: Place) -> list[tuple[int, str, int]]:
        """All events of a partition, as its leader gives them; they must be the same on every replica."""
        events: list[tuple[int, str, int]] | None = None
        while events is None:
            events = await self._read_leader(place)
            if events is None:
                await self._wait(self._is_whole, CONVERGED_WITHIN_S, f"{place}: the damage is not repaired")
        for node in self.cluster.nodes.values():
            assert node.node is not None
            partition = node.node.replicas.partitions.get((place.topic, place.partition))
            if partition is None:
                continue
            found = _events_in(partition)
            if found != events and not (node.has_flipped_bits and found == events[: len(found)]):
                raise Violation(ACKNOWLEDGED_STAYS, f"{place}: {node.name} has other events than its leader")
        return events

    async def _read_leader(self, place: Place) -> list[tuple[int, str, int]] | None:
        """None: it can't give all."""
        leader = await self.clients.leader_of(place)
        assert leader is not None
        assert leader.node is not None
        end = leader.node.replicas.partitions[place].high_watermark
        events: list[tuple[int, str, int]] = []
        offset = 0
        while offset < end:
            read = await self.clients.fetch(leader, place, offset)
            if read is None:
                return None
            events += read[1]
            if read[0] == offset:
                return None
            offset = read[0]
        return events

    def _is_whole(self) -> bool:
        return self._state_of_cluster() is None


def _events_in(partition: Partition) -> list[tuple[int, str, int]]:
    """The events in a replica's files, up to the first damaged batch."""
    events: list[tuple[int, str, int]] = []
    for segment in partition.log.segments:
        try:
            for batch in iter_batches(segment.path.read_bytes()[: segment.size_bytes]):
                check_batch(batch)
                events += events_of(batch)
        except BatchError:
            break
    return events


def _may_flip(name: str, data: bytes) -> range:
    """Where a flipped bit must be found and repaired."""
    if name.endswith((".log", ".snapshot", "votes")) and len(data) > 200:
        return range(len(data) // 2) if name.endswith(".log") else range(len(data))
    return range(0)
