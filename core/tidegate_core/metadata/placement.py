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
        for nodes in partitions:
            self.add(nodes)

    def add(self, nodes: Replicas) -> None:
        """A partition is on `nodes`, the first of which leads."""
        self.replicas.update(nodes)
        self.leaders[nodes[0]] += 1


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
    ring = sorted(nodes)
    dead = {node for node in ring if not is_alive(node)}
    placed: list[Replicas] = []
    for _ in range(count):
        first = sum(topic.replicas.values()) % len(ring)
        turn = {node: (place - first) % len(ring) for place, node in enumerate(ring)}

        def by_replicas(node: NodeId, turn: dict[NodeId, int] = turn) -> tuple[object, ...]:
            return node in dead, topic.replicas[node], cluster.replicas[node], topic.leaders[node], turn[node]

        def by_leaders(node: NodeId, turn: dict[NodeId, int] = turn) -> tuple[object, ...]:
            return node in dead, topic.leaders[node], cluster.leaders[node], turn[node]

        chosen = sorted(ring, key=by_replicas)[:replication_factor]
        leader = min(chosen, key=by_leaders)
        partition = (leader, *(node for node in chosen if node != leader))
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
