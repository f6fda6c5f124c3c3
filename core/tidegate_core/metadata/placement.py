"""Chooses the nodes for new partitions' replicas, without I/O; the same image gives the same choice.

Within a topic first, then over all topics: as many replicas on each node, and as many leaders. A node that joined a
moment ago so gets its share of new topics, not all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from tidegate_core.metadata.image import Replicas
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode


class _Load:
    """How many replicas and leaders each node has."""

    def __init__(self, partitions: Iterable[Replicas]) -> None:
        self.replicas: Counter[NodeId] = Counter()
        self.leaders: Counter[NodeId] = Counter()
        self.pairs: Counter[tuple[NodeId, NodeId]] = Counter()
        """How often a leader has a follower: not always the same, so that many share the work of one that dies."""
        for nodes in partitions:
            self.add(nodes)

    def add(self, nodes: Replicas) -> None:
        """A partition is on `nodes`, the first of which leads."""
        self.replicas.update(nodes)
        leader, *followers = nodes
        self.leaders[leader] += 1
        self.pairs.update((leader, follower) for follower in followers)


def place_partitions(
    nodes: Collection[NodeId],
    count: int,
    replication_factor: int,
    *,
    in_topic: Iterable[Replicas] = (),
    in_all: Iterable[Replicas] = (),
    is_alive: Callable[[NodeId], bool] = lambda _: True,
) -> tuple[Replicas, ...]:
    """The replicas of `count` more partitions, the preferred leader first.

    `in_topic` are the partitions that the topic has already, `in_all` those of all topics. Nodes that are not alive
    are taken where the others are not enough: they will be, and a majority does until then.

    Raises:
        KafkaError: INVALID_REPLICATION_FACTOR.
    """
    if not 1 <= replication_factor <= len(nodes):
        raise KafkaError(
            ErrorCode.invalid_replication_factor,
            f"{replication_factor} replicas on {len(nodes)} nodes; from 1 to {len(nodes)} are possible",
        )
    topic, cluster = _Load(in_topic), _Load(in_all)
    dead = {node for node in nodes if not is_alive(node)}
    placed: list[Replicas] = []
    for _ in range(count):

        def as_leader(node: NodeId) -> tuple[object, ...]:
            led = topic.leaders[node], cluster.leaders[node]
            return node in dead, *led, topic.replicas[node], cluster.replicas[node], node

        leader = min(nodes, key=as_leader)

        def as_follower(node: NodeId, leader: NodeId = leader) -> tuple[object, ...]:
            has = topic.replicas[node], cluster.replicas[node]
            return node in dead, *has, -topic.leaders[node], cluster.pairs[leader, node], node

        followers = sorted((node for node in nodes if node != leader), key=as_follower)
        partition = (leader, *followers[: replication_factor - 1])
        placed.append(partition)
        topic.add(partition)
        cluster.add(partition)
    return tuple(placed)


def check_assignment(nodes: Collection[NodeId], replicas: Sequence[NodeId]) -> None:
    """Raise KafkaError INVALID_REPLICA_ASSIGNMENT where a partition can't be on just these nodes."""
    if not replicas or len(set(replicas)) < len(replicas):
        raise KafkaError(
            ErrorCode.invalid_replica_assignment,
            f"{list(replicas)} are no replicas: name each node once, and one at least",
        )
    unknown = [node for node in replicas if node not in nodes]
    if unknown:
        raise KafkaError(
            ErrorCode.invalid_replica_assignment, f"there is no node {unknown[0]}; there are {sorted(nodes)}"
        )


def check_count(placed: Iterable[Replicas], added: int, replication_factor: int, nodes: int, replicas_max: int) -> None:
    """Raise KafkaError POLICY_VIOLATION where so many more partitions don't fit, wherever they are placed."""
    total = sum(map(len, placed)) + added * replication_factor
    if total > replicas_max * nodes:
        raise KafkaError(
            ErrorCode.policy_violation,
            f"a node takes {replicas_max} partitions in all (partitions_max), and these would make {total} replicas on "
            f"{nodes} nodes",
        )


def check_room(placed: Iterable[Replicas], replicas_max: int) -> None:
    """Raise KafkaError POLICY_VIOLATION where a node would have more replicas than it takes."""
    counts = Counter(node for nodes in placed for node in nodes)
    node, count = max(counts.items(), key=lambda item: item[1])
    if count > replicas_max:
        raise KafkaError(
            ErrorCode.policy_violation,
            f"a node takes {replicas_max} partitions in all (partitions_max), and node {node} would have {count}",
        )
