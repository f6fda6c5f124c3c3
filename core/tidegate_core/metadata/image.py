"""The cluster's metadata as the log of `__cluster_metadata` describes it, without I/O.

Each record sets one key, or takes it back with a null value; keys are texts, values JSON objects, so that a person can
read the log with any Kafka tool.

    topic:NAME          {"id": "7f…", "replicas": [[1, 2, 3], [2, 3, 1]], "settings": {"retention.ms": "1000"}}
                        while partition 1 moves: "reassigning": {"1": [4, 5, 6]}, and "leaving": {"1": [7]} for nodes
                        of an earlier target, which may still vote
    node:ID             {"directory_id": "1c…", "host": …, "port": …, "peer_host": …, "peer_port": …}
    producer-ids        {"next": 3000}
    deleted-topic:ID    {"name": "t"}; in snapshots only, where the record that deleted the topic is no more

A cluster of one node once wrote topics as {"partitions": 4, "settings": {…}}: those have an id made of their name, and
all replicas on that node.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from tidegate_core.errors import PartitionDamaged
from tidegate_core.log.identity import METADATA_TOPIC, id_of_old_topic
from tidegate_core.raft.messages import ReplicaKey
from tidegate_wire.identifiers import NodeId, ProducerId

DELETED_TOPICS_MAX: Final = 10_000
"""Ids of deleted topics that are remembered, the newest: by them a node that was away for as many deletions still
knows which of its directories may go. What is forgotten is left on its disk, and reported."""

_TOPIC: Final = "topic:"
_NODE: Final = "node:"
_DELETED_TOPIC: Final = "deleted-topic:"
_PRODUCER_IDS: Final = "producer-ids"

MetadataRecord = tuple[bytes, bytes | None]
Replicas = tuple[NodeId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic; `settings` are those it was given, by Kafka's names."""

    name: str
    topic_id: UUID
    replicas: tuple[Replicas, ...]
    """Of each partition, the preferred leader first. While one moves, those it had before."""
    settings: Mapping[str, str] = field(default_factory=dict)
    reassigning: Mapping[int, Replicas] = field(default_factory=dict)
    """Where partitions move to; to their own `replicas` where a move was cancelled."""
    leaving: Mapping[int, Replicas] = field(default_factory=dict)
    """Nodes of a target that another one took the place of: some may vote until the move is over."""

    @property
    def partition_count(self) -> int:
        """How many partitions it has."""
        return len(self.replicas)

    def key(self, index: int) -> ReplicaKey:
        """What nodes call a partition among themselves."""
        return ReplicaKey(self.topic_id, index)

    def hosts(self, index: int) -> Replicas:
        """Every node that has, or is to have, a replica of a partition; those it moves to first, as in Kafka."""
        target = self.reassigning.get(index)
        if target is None:
            return self.replicas[index]
        return tuple(dict.fromkeys((*target, *self.replicas[index], *self.leaving.get(index, ()))))

    def adding(self, index: int) -> Replicas:
        """The replicas that a move adds."""
        target = self.reassigning.get(index, ())
        return tuple(node for node in target if node not in self.replicas[index])

    def removing(self, index: int) -> Replicas:
        """The replicas that a move takes away."""
        target = self.reassigning.get(index)
        return () if target is None else tuple(node for node in self.hosts(index) if node not in target)

    def moving(self, index: int, target: Replicas) -> Topic:
        """The topic while a partition moves to `target`, whatever it did before."""
        kept = {*target, *self.replicas[index]}
        before = (*self.reassigning.get(index, ()), *self.leaving.get(index, ()))
        leaving = tuple(node for node in dict.fromkeys(before) if node not in kept)
        others = {known: nodes for known, nodes in self.leaving.items() if known != index}
        return replace(
            self,
            reassigning={**self.reassigning, index: target},
            leaving={**others, index: leaving} if leaving else others,
        )

    def moved(self, index: int) -> Topic:
        """The topic after a partition's move is over."""
        replicas = list(self.replicas)
        replicas[index] = self.reassigning[index]
        return replace(
            self,
            replicas=tuple(replicas),
            reassigning={known: nodes for known, nodes in self.reassigning.items() if known != index},
            leaving={known: nodes for known, nodes in self.leaving.items() if known != index},
        )

    def to_record(self) -> MetadataRecord:
        """The record that makes or changes the topic."""
        fields: dict[str, Any] = {
            "id": str(self.topic_id),
            "replicas": [list(nodes) for nodes in self.replicas],
            "settings": dict(self.settings),
        }
        for name, moves in (("reassigning", self.reassigning), ("leaving", self.leaving)):
            if moves:
                fields[name] = {str(index): list(nodes) for index, nodes in moves.items()}
        return f"{_TOPIC}{self.name}".encode(), _encode(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """A node that registered: its disk, and where clients and other nodes reach it."""

    host: str
    port: int
    peer_host: str
    peer_port: int
    directory_id: UUID


def topic_deleted(name: str) -> MetadataRecord:
    """The record that deletes a topic."""
    return f"{_TOPIC}{name}".encode(), None


def node_registered(node_id: NodeId, info: NodeInfo) -> MetadataRecord:
    """The record that says where a node is."""
    return f"{_NODE}{node_id}".encode(), _encode(
        {
            "directory_id": str(info.directory_id),
            "host": info.host,
            "port": info.port,
            "peer_host": info.peer_host,
            "peer_port": info.peer_port,
        }
    )


def node_unregistered(node_id: NodeId) -> MetadataRecord:
    """The record that takes a node out of the cluster."""
    return f"{_NODE}{node_id}".encode(), None


def producer_ids_taken(up_to: ProducerId) -> MetadataRecord:
    """The record that says: every producer id below `up_to` may be in use."""
    return _PRODUCER_IDS.encode(), _encode({"next": up_to})


@dataclass(slots=True)
class Changes:
    """What some records changed. The keys of `topics` and `nodes` stand in the order of the changes."""

    topics: dict[str, None] = field(default_factory=dict)
    """Names of topics that were made, changed or deleted."""
    deleted: dict[UUID, str] = field(default_factory=dict)
    """Ids and names of topics that were deleted; one of the same name may have been made since."""
    nodes: dict[NodeId, None] = field(default_factory=dict)
    """Nodes that registered, moved or left."""


class MetadataImage:
    """What all records so far add up to. `old_node` has the replicas of topics in the old format."""

    def __init__(self, old_node: NodeId) -> None:
        self.topics: dict[str, Topic] = {}
        self.nodes: dict[NodeId, NodeInfo] = {}
        self.next_producer_id = ProducerId(0)
        self.version = 0
        """Rises with every change: what is derived from the image may be kept while it stays."""
        self._old_node = old_node
        self._names: dict[UUID, str] = {}
        self._deleted: dict[UUID, str] = {}
        self._changes = Changes()

    def topic_by_id(self, topic_id: UUID) -> Topic | None:
        """The topic of this id."""
        name = self._names.get(topic_id)
        return None if name is None else self.topics[name]

    def is_deleted(self, topic_id: UUID) -> bool:
        """Whether there was a topic of this id, which was deleted. False also for one that nobody ever heard of."""
        return topic_id in self._deleted

    def take_changes(self) -> Changes:
        """What changed since this was last called."""
        changes, self._changes = self._changes, Changes()
        return changes

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take one record, in the log's order. Unknown keys are passed over: they come from a newer version.

        Raises:
            PartitionDamaged: the record is none of ours.
        """
        self.version += 1
        try:
            name = (key or b"").decode()
            if name.startswith(_TOPIC):
                self._apply_topic(name.removeprefix(_TOPIC), value)
            elif name.startswith(_NODE):
                self._apply_node(NodeId(int(name.removeprefix(_NODE))), value)
            elif name.startswith(_DELETED_TOPIC) and value is not None:
                self._remember_deleted(UUID(name.removeprefix(_DELETED_TOPIC)), str(json.loads(value)["name"]))
            elif name == _PRODUCER_IDS and value is not None:
                self.next_producer_id = ProducerId(int(json.loads(value)["next"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PartitionDamaged(f"a record of {METADATA_TOPIC} can't be read: {key!r}: {error!r}") from error

    def _apply_topic(self, name: str, value: bytes | None) -> None:
        topic = None if value is None else self._read_topic(name, json.loads(value))
        before = self.topics.get(name)
        if before is not None and (topic is None or topic.topic_id != before.topic_id):
            del self.topics[name]
            del self._names[before.topic_id]
            self._remember_deleted(before.topic_id, name)
        if topic is not None:
            self.topics[name] = topic
            self._names[topic.topic_id] = name
            self._deleted.pop(topic.topic_id, None)  # ids made of a name come back with it
        self._changes.topics[name] = None

    def _read_topic(self, name: str, fields: dict[str, Any]) -> Topic:
        settings = {str(setting): str(text) for setting, text in fields["settings"].items()}
        if "id" not in fields:
            return Topic(
                name=name,
                topic_id=id_of_old_topic(name),
                replicas=((self._old_node,),) * int(fields["partitions"]),
                settings=settings,
            )
        return Topic(
            name=name,
            topic_id=UUID(fields["id"]),
            replicas=tuple(_read_nodes(nodes) for nodes in fields["replicas"]),
            settings=settings,
            reassigning=_read_moves(fields.get("reassigning", {})),
            leaving=_read_moves(fields.get("leaving", {})),
        )

    def _remember_deleted(self, topic_id: UUID, name: str) -> None:
        self._changes.deleted[topic_id] = name
        self._deleted.pop(topic_id, None)
        self._deleted[topic_id] = name
        if len(self._deleted) > DELETED_TOPICS_MAX:
            del self._deleted[next(iter(self._deleted))]

    def _apply_node(self, node_id: NodeId, value: bytes | None) -> None:
        self._changes.nodes[node_id] = None
        if value is None:
            self.nodes.pop(node_id, None)
            return
        fields = json.loads(value)
        self.nodes[node_id] = NodeInfo(
            host=str(fields["host"]),
            port=int(fields["port"]),
            peer_host=str(fields["peer_host"]),
            peer_port=int(fields["peer_port"]),
            directory_id=UUID(fields["directory_id"]),
        )

    def to_records(self) -> list[MetadataRecord]:
        """As many records as are needed to make the same image of."""
        deleted: list[MetadataRecord] = [
            (f"{_DELETED_TOPIC}{topic_id}".encode(), _encode({"name": name}))
            for topic_id, name in self._deleted.items()
        ]
        nodes = [node_registered(node_id, info) for node_id, info in self.nodes.items()]
        topics = [topic.to_record() for topic in self.topics.values()]
        return [*nodes, *deleted, *topics, producer_ids_taken(self.next_producer_id)]

    def begin_anew(self, records: Iterable[MetadataRecord]) -> None:
        """Be what `records` add up to, and nothing else: a snapshot takes the place of what was known.

        Raises:
            PartitionDamaged: a record is none of ours.
        """
        fresh = MetadataImage(self._old_node)
        for key, value in records:
            fresh.apply(key, value)
        changes = self._changes
        for topic_id, name in self._names.items():
            if topic_id not in fresh._names:
                changes.deleted[topic_id] = name
        changes.topics |= dict.fromkeys((*self.topics, *fresh.topics))
        changes.nodes |= dict.fromkeys((*self.nodes, *fresh.nodes))
        self.topics, self._names, self._deleted = fresh.topics, fresh._names, fresh._deleted
        self.nodes, self.next_producer_id = fresh.nodes, fresh.next_producer_id
        self.version += 1


def _read_nodes(nodes: Iterable[Any]) -> Replicas:
    return tuple(NodeId(int(node)) for node in nodes)


def _read_moves(moves: Mapping[str, Any]) -> dict[int, Replicas]:
    return {int(index): _read_nodes(nodes) for index, nodes in moves.items()}


def _encode(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
