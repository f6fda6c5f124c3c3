"""A core node as request handlers see it: its parts, without the sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tidegate_core.groups.service import GroupService
from tidegate_core.log_manager import LogManager
from tidegate_core.metadata.controller import Controller
from tidegate_core.metadata.controller_link import THIS_NODE, ControllerLink
from tidegate_core.metadata.image import MetadataImage
from tidegate_core.metadata.producer_ids import ProducerIds
from tidegate_core.partition import Partition
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_core.replication.caretaker import Caretaker
from tidegate_core.replication.leaders import LeaderDirectory
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode


@dataclass(slots=True, kw_only=True)
class Node:
    """What a handler may use."""

    node_id: NodeId
    cluster_id: str
    settings: CoreSettings
    logs: LogManager
    replicas: ReplicaManager
    caretaker: Caretaker
    image: MetadataImage
    """The metadata, as far as this node has it."""
    controller: Controller
    groups: GroupService
    advertised: Address
    """Where clients are told to connect to."""
    clock_ms: Callable[[], int]
    """Unix time."""
    link: ControllerLink
    """The way to the controller."""
    producer_ids: ProducerIds

    @property
    def leaders(self) -> LeaderDirectory:
        """Who leads which partition."""
        return self.replicas.leaders

    def partition(self, topic: str, index: int, leader_epoch: int = -1) -> Partition:
        """A partition that this node leads.

        `leader_epoch` is the one the client knows, -1 where it knows none (KIP-320).

        Raises:
            KafkaError: there is no such partition, another node leads it, or the client's epoch is not the current one.
        """
        partition = self.replicas.partitions.get((topic, index))
        if partition is None:
            raise self._missing(topic, index)
        if 0 <= leader_epoch != partition.leader_epoch:
            if leader_epoch < partition.leader_epoch:
                raise KafkaError(ErrorCode.fenced_leader_epoch, f"the leader epoch is {partition.leader_epoch} by now")
            raise KafkaError(ErrorCode.unknown_leader_epoch, f"the leader epoch is still {partition.leader_epoch}")
        if not partition.is_leader:
            if partition.failure is not None:
                raise partition.failure.with_traceback(None)
            raise KafkaError(ErrorCode.not_leader_or_follower, f"{topic}-{index} is led by another node, or by nobody")
        return partition

    def _missing(self, topic: str, index: int) -> KafkaError:
        known = self.image.topics.get(topic)
        if known is None or not 0 <= index < known.partition_count:
            return KafkaError(
                ErrorCode.unknown_topic_or_partition, f"there is no partition {index} of a topic {topic!r}"
            )
        if self.node_id in known.hosts(index):
            return KafkaError(
                ErrorCode.kafka_storage_error, f"{topic}-{index} is not there; see the log of node {self.node_id}"
            )
        return KafkaError(ErrorCode.not_leader_or_follower, f"{topic}-{index} is on other nodes")


@dataclass(frozen=True, slots=True)
class Client:
    """What a request's header and connection say of its sender."""

    client_id: str
    host: str
    api_version: int
    """Of the request, where its fields alone do not say what the client understands."""
    refusal: KafkaError | None = None
    """Why the controller can't be asked, if it would have to be and can't."""

    @property
    def is_node(self) -> bool:
        """Whether a node of the cluster asks for itself."""
        return self.host == THIS_NODE

    def check_controller(self) -> None:
        """Raise `refusal`, if there is one."""
        if self.refusal is not None:
            raise self.refusal
