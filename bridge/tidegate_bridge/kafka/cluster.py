"""What the last Metadata responses said: nodes, topics, and who leads which partition."""

from __future__ import annotations

from dataclasses import dataclass, field

from tidegate_bridge.kafka.api import ClusterMetadata
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId


@dataclass(slots=True)
class ClusterView:
    """Who leads what, as far as it is known; every answer may be outdated, and the core says so when it is used."""

    controller: NodeId | None = None
    _nodes: dict[NodeId, Address] = field(default_factory=dict)
    _leaders: dict[str, list[NodeId | None]] = field(default_factory=dict)

    def update(self, metadata: ClusterMetadata) -> None:
        """Take what a response says; topics that it does not name stay as they were."""
        self._nodes = dict(metadata.nodes)
        self.controller = metadata.controller
        for name, topic in metadata.topics.items():
            if topic.leaders:
                self._leaders[name] = list(topic.leaders)
            else:
                self._leaders.pop(name, None)

    def addresses(self) -> list[Address]:
        """Where the known nodes listen."""
        return list(self._nodes.values())

    def partition_count(self, topic: str) -> int | None:
        """How many partitions `topic` has; None if it is not known."""
        leaders = self._leaders.get(topic)
        return None if leaders is None else len(leaders)

    def leader(self, topic: str, partition: int) -> Address | None:
        """Where the partition's leader listens; None if it is not known."""
        leaders = self._leaders.get(topic)
        if leaders is None or partition >= len(leaders):
            return None
        node = leaders[partition]
        return None if node is None else self._nodes.get(node)

    def controller_address(self) -> Address | None:
        """Where the controller listens; None if it is not known (KRaft brokers pass requests on to it)."""
        return None if self.controller is None else self._nodes.get(self.controller)

    def forget_leader(self, topic: str, partition: int) -> None:
        """The leader said that it is none, or does not answer: the next look-up asks again."""
        leaders = self._leaders.get(topic)
        if leaders is not None and partition < len(leaders):
            leaders[partition] = None
