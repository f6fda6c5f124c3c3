"""`run(settings)`: a core node from its start to its end."""

from __future__ import annotations

import asyncio
import uuid

import structlog

from tidegate_core.data_dir import DataDir, new_cluster_id
from tidegate_core.groups.coordinator import CoordinatorLimits
from tidegate_core.groups.group import GroupRules
from tidegate_core.groups.offsets_topic import OFFSETS_TOPIC, OFFSETS_TOPIC_SETTINGS
from tidegate_core.groups.service import GroupService
from tidegate_core.log_manager import LogManager, wall_clock_ms
from tidegate_core.metadata.assignments import config_before_metadata
from tidegate_core.metadata.controller import Controller
from tidegate_core.metadata.image import Topic
from tidegate_core.node import Node
from tidegate_core.partition import Partition
from tidegate_core.server import KafkaServer
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId
from tidegate_wire.readiness import announce_ready

_log = structlog.get_logger()


async def run(settings: CoreSettings) -> None:
    """Serve until cancelled, then shut down cleanly.

    Raises:
        DataDirError: the data directory is another node's, too new, or in use.
        PartitionDamaged, BatchError: the metadata log can't be read.
        ConfigError: the address can't be listened on.
        OSError: the disk.
    """
    data_dir = DataDir.claim(settings.data_dir, node_id=NodeId(settings.node_id))
    if data_dir.cluster_id is None:
        data_dir.found(new_cluster_id(), ((data_dir.node_id, data_dir.directory_id),), is_replacement=False)
    logs = await LogManager.open(data_dir, config_of=config_before_metadata)
    try:
        await _serve(settings, logs, str(data_dir.cluster_id))
    finally:
        await logs.close()


async def _serve(settings: CoreSettings, logs: LogManager, cluster_id: str) -> None:
    controller = Controller(
        logs,
        default_settings=settings.topic_defaults,
        partitions_max=settings.partitions_max,
        clock_ms=wall_clock_ms,
        node_id=NodeId(settings.node_id),
    )
    await controller.load()
    groups = _group_service(settings, controller)
    node = Node(
        settings=settings,
        cluster_id=cluster_id,
        logs=logs,
        controller=controller,
        groups=groups,
        advertised=Address.parse(settings.advertise or settings.listen),
        clock_ms=wall_clock_ms,
    )
    server = KafkaServer(node)
    try:
        if OFFSETS_TOPIC in controller.image.topics:
            await groups.load()
        listening = await server.bind(Address.parse(settings.listen))
        node.advertised = Address(node.advertised.host, node.advertised.port or listening.port)
        await server.start()
        announce_ready(settings.ready_file, listen=str(listening), node_id=settings.node_id)
        _log.info("core_ready", listen=str(listening), node_id=settings.node_id, topics=len(controller.image.topics))
        await asyncio.Event().wait()
    finally:
        await server.close()
        await groups.close()
        _log.info("core_stopped", node_id=settings.node_id)


def _group_service(settings: CoreSettings, controller: Controller) -> GroupService:
    async def offsets_partitions() -> list[Partition | None]:
        if OFFSETS_TOPIC not in controller.image.topics:
            await controller.create_topic(
                Topic(
                    name=OFFSETS_TOPIC,
                    topic_id=uuid.uuid4(),
                    replicas=((NodeId(settings.node_id),),) * settings.offsets_partitions,
                    settings=OFFSETS_TOPIC_SETTINGS,
                )
            )
        count = controller.image.topics[OFFSETS_TOPIC].partition_count
        return [controller.partitions.get((OFFSETS_TOPIC, index)) for index in range(count)]

    return GroupService(
        GroupRules(
            initial_delay_ms=settings.group_initial_delay_ms,
            members_max=settings.group_members_max,
            new_member_id=lambda prefix: f"{prefix}-{uuid.uuid4()}",
            wall_clock_ms=wall_clock_ms,
        ),
        CoordinatorLimits(
            groups_max=settings.groups_max,
            session_timeout_ms_min=settings.group_session_timeout_min_ms,
            session_timeout_ms_max=settings.group_session_timeout_max_ms,
            offsets_retention_ms=settings.offsets_retention_minutes * 60_000,
        ),
        offsets_partitions,
    )
