"""`run(settings)`: a core node from its start to its end."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack
from random import Random
from uuid import uuid4

import structlog

from tidegate_core.cluster_node import ClusterNode
from tidegate_core.data_dir import DataDir, new_cluster_id
from tidegate_core.handlers.peer import PeerServer
from tidegate_core.log_manager import wall_clock_ms
from tidegate_core.replication.bootstrap import Greeter, find_cluster
from tidegate_core.replication.peers import PeerName, TcpPeerNetwork
from tidegate_core.server import KafkaServer
from tidegate_core.settings import CoreSettings, parse_voters
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId
from tidegate_wire.readiness import announce_ready

_log = structlog.get_logger()


async def run(settings: CoreSettings) -> None:
    """Serve until cancelled, then hand over what this node leads, and shut down cleanly.

    Raises:
        DataDirError: the data directory is another node's or cluster's, too new, or in use.
        PartitionDamaged, BatchError: the metadata log can't be read, and nobody else has it.
        ConfigError: the address can't be listened on, or the id or the voters are not what the other nodes know.
        OSError: the disk.
    """
    node_id = NodeId(settings.node_id)
    data_dir = DataDir.claim(settings.data_dir, node_id=node_id)
    async with AsyncExitStack() as stack:
        stack.callback(data_dir.release)
        name = PeerName(node_id, data_dir.directory_id, data_dir.cluster_id or "")
        network = TcpPeerNetwork(name)
        stack.push_async_callback(network.close)
        peers = PeerServer(data_dir.cluster_id)
        server = KafkaServer(settings, peers)
        stack.push_async_callback(server.close)
        listening = await server.bind(Address.parse(settings.listen))
        advertised = Address.parse(settings.advertise or settings.listen)
        advertised = Address(advertised.host, advertised.port or listening.port)
        voters = {NodeId(voter): address for voter, address in parse_voters(settings.voters).items()}
        voters = voters or {node_id: advertised}
        network.set_addresses(voters)
        incarnation = uuid4()
        peers.greeter = Greeter(
            data_dir,
            voters=tuple(voters),
            incarnation=incarnation,
            heard=peers.heard,
            clock_s=asyncio.get_running_loop().time,
        )
        await server.start()
        was_founded = data_dir.cluster_id is not None
        await find_cluster(
            data_dir, network, voters=tuple(voters), incarnation=incarnation, new_cluster_id=new_cluster_id
        )
        assert data_dir.cluster_id is not None
        network.set_name(PeerName(node_id, data_dir.directory_id, data_dir.cluster_id))
        peers.cluster_id = data_dir.cluster_id
        core = await ClusterNode.start(
            settings,
            data_dir,
            network,
            voters=voters,
            advertised=advertised,
            random=Random(),
            clock_ms=wall_clock_ms,
            was_founded=was_founded,
        )
        stack.push_async_callback(core.close)
        peers.handler = core
        server.serve(core.node)
        await core.joined()
        gc.collect()
        gc.freeze()  # what is there by now stays: later collections, which hold up everything, need not look at it
        announce_ready(settings.ready_file, listen=str(listening), node_id=settings.node_id)
        _log.info("core_ready", listen=str(listening), node_id=settings.node_id, topics=len(core.node.image.topics))
        try:
            await asyncio.Event().wait()
        finally:
            await core.leave()
            _log.info("core_stopped", node_id=settings.node_id)
