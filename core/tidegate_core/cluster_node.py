"""A core node without its socket: all its parts, put together. A simulator starts it on a network of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from random import Random

from tidegate_core.data_dir import DataDir
from tidegate_core.dispatch import Dispatcher
from tidegate_core.groups.coordinator import CoordinatorLimits
from tidegate_core.groups.group import GroupRules
from tidegate_core.groups.service import GroupService
from tidegate_core.log.identity import METADATA_TOPIC, METADATA_TOPIC_ID
from tidegate_core.log_manager import LogManager
from tidegate_core.membership import ClusterOffsetsTopic, Membership
from tidegate_core.metadata.assignments import METADATA_CONFIG, config_before_metadata
from tidegate_core.metadata.controller import Controller, ControllerRules
from tidegate_core.metadata.controller_link import ControllerLink
from tidegate_core.metadata.image import Changes, NodeInfo
from tidegate_core.metadata.metadata_log import MetadataLog
from tidegate_core.metadata.producer_ids import ProducerIds
from tidegate_core.node import Node
from tidegate_core.partition import Partition
from tidegate_core.raft.replica import Timing
from tidegate_core.replication.caretaker import Caretaker
from tidegate_core.replication.handover import leave_politely
from tidegate_core.replication.messages import (
    METADATA_KEY,
    Done,
    ElectPreferred,
    Forward,
    Moved,
    PeerRequest,
    PeerResponse,
    Refused,
    Register,
)
from tidegate_core.replication.peers import PeerNetwork
from tidegate_core.replication.reconciler import Reconciler
from tidegate_core.replication.replicas import ReplicaManager, ReplicationRules
from tidegate_core.replication.vote_store import VoteStore
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode, decode_request_header

VOTES_NAME = "votes"

_FOR_CONTROLLER = (Register, Moved, Forward)


class ClusterNode:
    """Made by `start`; answers other nodes (`PeerHandler`)."""

    def __init__(self, node: Node, membership: Membership, info: NodeInfo, stack: AsyncExitStack) -> None:
        self.node = node
        self.membership = membership
        self._info = info
        self._stack = stack

    @classmethod
    async def start(
        cls,
        settings: CoreSettings,
        data_dir: DataDir,
        network: PeerNetwork,
        *,
        voters: Mapping[NodeId, Address],
        advertised: Address,
        random: Random,
        clock_ms: Callable[[], int],
        was_founded: bool,
    ) -> ClusterNode:
        """Open everything under `data_dir`, which belongs to a cluster, and begin to take part.

        `was_founded`: it belonged to the cluster before this start, so its votes have to be there.

        Raises:
            PartitionDamaged, BatchError: the metadata can't be read, and nobody else has it.
            OSError: the disk.
        """
        node_id = data_dir.node_id
        async with AsyncExitStack() as stack:
            logs = await LogManager.open(data_dir, config_of=config_before_metadata, clock_ms=clock_ms)
            stack.push_async_callback(logs.close)
            votes = VoteStore.open(data_dir.path / VOTES_NAME, must_exist=was_founded and len(voters) > 1)
            stack.push_async_callback(votes.close)
            lost = _make_metadata(logs, tuple(voters), data_dir, was_founded=was_founded)
            replicas = ReplicaManager(
                node_id, logs, votes, network, rules=_rules(settings), random=random, wall_clock_ms=clock_ms
            )
            stack.push_async_callback(replicas.close)
            metadata = MetadataLog(logs)
            controller = Controller(
                metadata,
                rules=ControllerRules(
                    voters=tuple(voters),
                    default_settings=settings.topic_defaults,
                    default_replication_factor=settings.default_replication_factor,
                    partitions_max=settings.partitions_max,
                ),
                is_settled=lambda: replicas.is_settled(metadata.partition),
                is_alive=lambda other: other == node_id or replicas.is_heard(other),
                random=random,
                clock_ms=clock_ms,
            )
            core: list[ClusterNode] = []

            async def answer_client(frame: memoryview, host: str) -> bytes:
                return await core[0].answer_client(frame, host)

            membership = Membership(
                node_id,
                metadata=metadata,
                controller=controller,
                replicas=replicas,
                reconciler=Reconciler(replicas, logs, votes),
                network=network,
                voters=voters,
                default_settings=settings.topic_defaults,
                answer_client=answer_client,
            )
            stack.push_async_callback(membership.close)
            link = ControllerLink(controller, replicas.leaders, membership.forward)
            groups = GroupService(
                _group_rules(settings, random, clock_ms),
                _group_limits(settings),
                ClusterOffsetsTopic(metadata.image, replicas.leaders, link, settings.offsets_partitions),
                metadata.image.is_deleted,
            )
            stack.push_async_callback(groups.close)
            caretaker = Caretaker(replicas, network, target=membership.move_target, moved=membership.moved)
            stack.push_async_callback(caretaker.close)
            _connect(replicas, metadata, groups)
            node = Node(
                node_id=node_id,
                cluster_id=str(data_dir.cluster_id),
                settings=settings,
                logs=logs,
                replicas=replicas,
                caretaker=caretaker,
                image=metadata.image,
                controller=controller,
                groups=groups,
                advertised=advertised,
                clock_ms=clock_ms,
                link=link,
                producer_ids=ProducerIds(link.allocate_producer_ids),
            )
            peer = voters.get(node_id, advertised)
            info = NodeInfo(
                host=advertised.host,
                port=advertised.port,
                peer_host=peer.host,
                peer_port=peer.port,
                directory_id=data_dir.directory_id,
            )
            metadata.load()
            replicas.start(lost=lost)
            core.append(cls(node, membership, info, stack.pop_all()))
        return core[0]

    async def joined(self) -> None:
        """Return when the cluster knows this node, and it has what it is to have."""
        await self.membership.register(self._info)
        await self.membership.in_line()

    async def leave(self) -> None:
        """Let other nodes lead what this one leads."""
        await leave_politely(self.node.replicas, self.node.settings.shutdown_timeout_s)

    async def close(self) -> None:
        """Stop, and put everything on the disk."""
        await self._stack.aclose()

    async def handle(self, sender: NodeId, message: PeerRequest) -> PeerResponse:
        """Answer another node."""
        if isinstance(message, _FOR_CONTROLLER):
            return await self.membership.answer(message)
        if isinstance(message, ElectPreferred):
            code = await self.node.caretaker.give_back(message.key)
            return Done() if code is ErrorCode.none else Refused(code, code.name)
        return await self.node.replicas.handle(sender, message)

    async def answer_client(self, frame: memoryview, host: str) -> bytes:
        """Answer a client's request that another node passed on."""
        buffers = await Dispatcher(self.node, is_forwarded=True).answer(decode_request_header(frame), frame, host)
        return b"".join(buffers)


def _make_metadata(
    logs: LogManager, voters: tuple[NodeId, ...], data_dir: DataDir, *, was_founded: bool
) -> frozenset[Partition]:
    """Make the metadata's log where there is none; returns it if there should have been one."""
    if (METADATA_TOPIC, 0) in logs.partitions:
        return frozenset()
    partition = logs.create(METADATA_TOPIC, 0, METADATA_CONFIG, METADATA_TOPIC_ID, voters)
    return frozenset({partition}) if was_founded or data_dir.is_replacement else frozenset()


def _connect(replicas: ReplicaManager, metadata: MetadataLog, groups: GroupService) -> None:
    """Who is told of what."""

    def on_settled(partition: Partition) -> None:
        groups.on_leader(partition)
        if partition.key == METADATA_KEY:
            replicas.on_metadata()

    def on_change(changes: Changes) -> None:
        if changes.deleted:
            groups.on_topics_deleted()

    replicas.on_settled.append(on_settled)
    replicas.on_unsettled.append(groups.on_follower)
    metadata.on_change.append(on_change)


def _rules(settings: CoreSettings) -> ReplicationRules:
    timeout_ms = settings.election_timeout_ms
    return ReplicationRules(
        timing=Timing(
            election_timeout_ms=timeout_ms, stagger_ms=max(timeout_ms // 6, 5), retry_ms=max(timeout_ms // 4, 10)
        ),
        fetch_wait_ms=settings.heartbeat_ms,
        request_timeout_ms=timeout_ms,
        recovery_bytes_per_s=settings.recovery_bytes_per_s,
    )


def _group_rules(settings: CoreSettings, random: Random, clock_ms: Callable[[], int]) -> GroupRules:
    return GroupRules(
        initial_delay_ms=settings.group_initial_delay_ms,
        members_max=settings.group_members_max,
        new_member_id=lambda prefix: f"{prefix}-{uuid.UUID(int=random.getrandbits(128), version=4)}",
        wall_clock_ms=clock_ms,
    )


def _group_limits(settings: CoreSettings) -> CoordinatorLimits:
    return CoordinatorLimits(
        groups_max=settings.groups_max,
        session_timeout_ms_min=settings.group_session_timeout_min_ms,
        session_timeout_ms_max=settings.group_session_timeout_max_ms,
        offsets_retention_ms=settings.offsets_retention_minutes * 60_000,
    )
