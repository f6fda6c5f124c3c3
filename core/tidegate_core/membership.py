"""This node as a member of its cluster: carries the metadata over to its replicas and the network, says where it is,
answers the other nodes, and asks the controller, whichever node that is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from tidegate_core.groups.offsets_topic import OFFSETS_TOPIC, OFFSETS_TOPIC_SETTINGS
from tidegate_core.metadata.assignments import move_target, wanted_replicas
from tidegate_core.metadata.controller import Controller, NewTopic
from tidegate_core.metadata.controller_link import ControllerLink
from tidegate_core.metadata.image import Changes, MetadataImage, NodeInfo
from tidegate_core.metadata.metadata_log import MetadataLog
from tidegate_core.protocol.error_codes import KafkaError, refusal_of
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.leaders import LeaderDirectory
from tidegate_core.replication.messages import (
    METADATA_KEY,
    Done,
    Forward,
    Forwarded,
    Lane,
    Leadership,
    Moved,
    PeerRequest,
    PeerResponse,
    Refused,
    Register,
)
from tidegate_core.replication.peers import PeerError, PeerNetwork, PeerRefused, PeerUnreachable
from tidegate_core.replication.reconciler import Reconciler
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

CONTROLLER_TIMEOUT_S: Final = 10.0
"""For an answer of the controller: it may wait for a majority's disks, and for an election."""

MISSING_RETRY_S: Final = 5.0
"""Before trying again to make replicas that could not be made: a disk that was full may have room by then."""

RETRY_S: Final = 0.05
"""Before looking again for who the controller is."""

_log = structlog.get_logger()


class Membership:
    """Owned by the service. `answer_client` answers a client's request frame, as the controller."""

    def __init__(
        self,
        node_id: NodeId,
        *,
        metadata: MetadataLog,
        controller: Controller,
        replicas: ReplicaManager,
        reconciler: Reconciler,
        network: PeerNetwork,
        voters: Mapping[NodeId, Address],
        default_settings: Mapping[str, str],
        answer_client: Callable[[memoryview, str], Awaitable[bytes]],
    ) -> None:
        self._node_id = node_id
        self._metadata = metadata
        self._controller = controller
        self._replicas = replicas
        self._reconciler = reconciler
        self._network = network
        self._voters = voters
        self._voters_in_turn = itertools.cycle(sorted(voters))
        self._default_settings = default_settings
        self._answer_client = answer_client
        self._has_changed = asyncio.Event()
        self._has_changed.set()
        self._is_in_line = asyncio.Event()
        metadata.on_change.append(self._on_change)
        replicas.on_metadata = self._on_metadata
        self._task = asyncio.create_task(self._follow_metadata(), name="membership")

    async def close(self) -> None:
        """Stop following the metadata."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def image(self) -> MetadataImage:
        """The metadata as far as this node has it."""
        return self._metadata.image

    # --- following the metadata

    def _on_metadata(self) -> None:
        self._metadata.on_high_watermark()
        if self._is_complete():
            self._has_changed.set()

    def _is_complete(self) -> bool:
        """Whether everything is applied that was committed when this node heard of the leader."""
        hosted = self._replicas.hosted(METADATA_KEY)
        if hosted is None:
            return False
        replica = hosted.replica
        known = replica.high_watermark if replica.is_settled else replica.leader_high_watermark
        return 0 <= known <= self._metadata.applied_offset

    def _on_change(self, _changes: Changes) -> None:
        self._has_changed.set()

    async def _follow_metadata(self) -> None:
        has_all = True
        while True:
            try:
                async with asyncio.timeout(None if has_all else MISSING_RETRY_S):
                    await self._has_changed.wait()
            except TimeoutError:
                pass
            self._has_changed.clear()
            try:
                has_all = await self._bring_in_line()
            except Exception:
                has_all = False
                _log.exception("metadata_not_followed", node_id=self._node_id)

    async def _bring_in_line(self) -> bool:
        """Let this node be what the metadata says; says whether it has all replicas that it is to have."""
        image = self.image
        addresses = {node: Address(info.peer_host, info.peer_port) for node, info in image.nodes.items()}
        addresses |= self._voters
        addresses.pop(self._node_id, None)
        self._network.set_addresses(addresses)
        self._replicas.set_nodes(addresses)
        wanted = wanted_replicas(image, self._node_id, self._default_settings)
        is_complete = self._is_complete()
        has_all = await self._reconciler.reconcile(wanted, self._is_gone, is_complete=is_complete)
        if is_complete:
            self._is_in_line.set()
        return has_all

    def _is_gone(self, key: ReplicaKey) -> bool:
        """Whether the metadata knows a partition, and that it has no replica here, or is deleted."""
        topic = self.image.topic_by_id(key.topic_id)
        if topic is None:
            return self.image.is_deleted(key.topic_id)
        return key.partition < topic.partition_count and self._node_id not in topic.hosts(key.partition)

    async def in_line(self) -> None:
        """Return when this node has all replicas that the metadata gave it, as of its start."""
        await self._is_in_line.wait()

    def move_target(self, key: ReplicaKey) -> tuple[NodeId, ...] | None:
        """The replicas that a partition is to move to, if it is to move."""
        return move_target(self.image, key)

    # --- asking the controller

    async def register(self, info: NodeInfo) -> None:
        """Say where this node is; returns when the cluster knows it."""
        message = Register(self._node_id, info.directory_id, info.host, info.port, info.peer_host, info.peer_port)
        while self.image.nodes.get(self._node_id) != info:
            try:
                await self.ask_controller(message)
            except KafkaError as error:
                _log.info("not_registered_yet", node_id=self._node_id, reason=str(error))
            await asyncio.sleep(RETRY_S)

    async def moved(self, message: Moved) -> None:
        """Say that a partition's move is over; the caretaker says it again until the metadata agrees."""
        try:
            await self.ask_controller(message)
        except KafkaError as error:
            _log.info("move_not_noted_yet", reason=str(error))

    async def forward(self, frame: bytes | memoryview, host: str, timeout_s: float) -> bytes | memoryview:
        """Have the controller answer a client's request; the frame is without its length, the answer has it.

        Raises:
            KafkaError: NOT_CONTROLLER: nobody is known to be it, and nothing was done. REQUEST_TIMED_OUT: it did not
                answer, and nobody knows what it did.
        """
        leadership = self._replicas.leaders.get(METADATA_KEY)
        if leadership is None or leadership.leader == self._node_id:
            raise KafkaError(ErrorCode.not_controller, "there is no controller just now")
        try:
            answer = await self._network.request(leadership.leader, Lane.FORWARD, Forward(frame, host), timeout_s)
        except PeerRefused as error:
            raise KafkaError(error.error, str(error)) from error
        except PeerUnreachable as error:
            code = ErrorCode.request_timed_out if error.was_sent else ErrorCode.not_controller
            raise KafkaError(code, str(error)) from error
        except PeerError as error:
            raise KafkaError(ErrorCode.request_timed_out, str(error)) from error
        assert isinstance(answer, Forwarded)
        return answer.frame

    async def ask_controller(self, message: PeerRequest) -> PeerResponse:
        """The controller's answer, whichever node that is.

        Raises:
            KafkaError: there is none, or it refused.
        """
        try:
            async with asyncio.timeout(CONTROLLER_TIMEOUT_S):
                while True:
                    answer = await self._try_controller(message)
                    if answer is not None:
                        return answer
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            raise KafkaError(ErrorCode.not_controller, "there is no controller just now") from None

    async def _try_controller(self, message: PeerRequest) -> PeerResponse | None:
        if self._controller.is_active:
            answer = await self.answer(message)
            if not isinstance(answer, Refused):
                return answer
            if answer.error is not ErrorCode.not_controller:
                raise KafkaError(answer.error, answer.reason)
            return None
        leadership = self._replicas.leaders.get(METADATA_KEY)
        # Nobody tells a new node who leads before it is registered, so it asks the voters in turn.
        asked = next(self._voters_in_turn) if leadership is None else leadership.leader
        if asked == self._node_id:
            return None
        try:
            return await self._network.request(asked, Lane.FORWARD, message, CONTROLLER_TIMEOUT_S)
        except PeerRefused as error:
            if error.error is not ErrorCode.not_controller:
                raise KafkaError(error.error, str(error)) from error
        except PeerError as error:
            _log.debug("controller_not_reached", error=str(error))
        return None

    # --- answering as the controller

    async def answer(self, message: PeerRequest) -> PeerResponse:
        """What another node, or this one, asks of the controller."""
        if not self._controller.is_active:
            return Refused(ErrorCode.not_controller, f"node {self._node_id} is not the controller")
        try:
            return await self._answer(message)
        except Exception as error:  # becomes the answer
            refusal = refusal_of(error)
            return Refused(refusal.code, refusal.message or str(error))

    async def _answer(self, message: PeerRequest) -> PeerResponse:
        controller = self._controller
        match message:
            case Register():
                info = NodeInfo(
                    host=message.host,
                    port=message.port,
                    peer_host=message.peer_host,
                    peer_port=message.peer_port,
                    directory_id=message.directory_id,
                )
                await controller.register_node(message.node_id, info)
            case Moved():
                await controller.moved(message.key, message.voters)
            case Forward():
                return Forwarded(await self._answer_client(memoryview(message.frame), message.host))
            case _:
                return Refused(ErrorCode.invalid_request, f"{type(message).__name__} is not for the controller")
        return Done()


class ClusterOffsetsTopic:
    """`__consumer_offsets` as the groups see it (`groups.offsets_topic.OffsetsTopic`)."""

    def __init__(
        self, image: MetadataImage, leaders: LeaderDirectory, link: ControllerLink, new_partitions: int
    ) -> None:
        self._image = image
        self._leaders = leaders
        self._link = link
        self._new_partitions = new_partitions

    @property
    def partition_count(self) -> int:
        """0 while there is no such topic."""
        topic = self._image.topics.get(OFFSETS_TOPIC)
        return 0 if topic is None else topic.partition_count

    def leader_of(self, index: int) -> Leadership | None:
        """Who leads a partition; None while nobody is known to."""
        topic = self._image.topics.get(OFFSETS_TOPIC)
        return None if topic is None else self._leaders.get(topic.key(index))

    async def create(self) -> None:
        """Make the topic, unless it is there already; this node knows of it when this returns.

        Raises:
            KafkaError: it can't be made now.
        """
        wanted = NewTopic(name=OFFSETS_TOPIC, partition_count=self._new_partitions, settings=OFFSETS_TOPIC_SETTINGS)
        await self._link.create_topic(wanted)
