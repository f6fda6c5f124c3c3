"""Who is told who leads, and what of it is said again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from uuid import UUID

from tests.core.replication.virtual_time import in_virtual_time
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.announcer import IDLE_S, RETRY_S, Announcer
from tidegate_core.replication.messages import Done, Lane, Leadership, Leaderships, PeerRequest, PeerResponse
from tidegate_core.replication.peers import PeerRefused
from tidegate_wire.address import Address
from tidegate_wire.identifiers import LeaderEpoch, NodeId
from tidegate_wire.kafka.messages import ErrorCode

LED = [ReplicaKey(UUID(int=number), 0) for number in range(3)]


class _Forgetful:
    """A node that may start again at any time, without its connections telling so."""

    def __init__(self) -> None:
        self.has_heard_all = False
        self.heard: list[ReplicaKey] = []

    async def request(self, node: NodeId, lane: Lane, message: PeerRequest, timeout_s: float) -> PeerResponse:
        await asyncio.sleep(0)
        assert isinstance(message, Leaderships)
        self.has_heard_all |= message.begins
        if not self.has_heard_all:
            raise PeerRefused(ErrorCode.fetch_session_id_not_found, "begin again")
        self.heard += [leadership.key for leadership in message.leaderships]
        return Done()

    def set_addresses(self, addresses: Mapping[NodeId, Address]) -> None:
        raise AssertionError("nobody moves")

    async def close(self) -> None:
        raise AssertionError("it is the test's")


def _leaderships(keys: Iterable[ReplicaKey] | None) -> list[Leadership]:
    return [Leadership(key, LeaderEpoch(1), NodeId(1), (NodeId(1),), (NodeId(1),)) for key in keys or LED]


def test_a_node_that_started_again_unnoticed_is_told_everything_again() -> None:
    async def work() -> None:
        node = _Forgetful()
        announcer = Announcer(node, _leaderships, 1000)
        announcer.set_nodes([NodeId(2)])
        await asyncio.sleep(RETRY_S)
        assert node.heard == LED
        announcer.changed(LED[1])
        await asyncio.sleep(RETRY_S)
        assert node.heard == [*LED, LED[1]]
        node.has_heard_all, node.heard = False, []
        await asyncio.sleep(IDLE_S + 2 * RETRY_S)
        assert node.heard == LED
        await announcer.close()

    in_virtual_time(work())
