"""What a leader does for its partitions now and then: gives them back, moves them, says who is in step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from tidegate_core.errors import PartitionError
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.handover import hand_over
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.messages import METADATA_KEY, ElectPreferred, Lane, Moved
from tidegate_core.replication.peers import PeerError, PeerNetwork, PeerRefused
from tidegate_core.replication.reassignment import Finished, HandOver, SetVoters, next_step
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

ROUND_S: Final = 0.5
"""Between two looks at all partitions that this node leads."""

PREFERRED_AFTER_MS: Final = 5_000
"""A leader keeps a partition at least this long before it gives it back to the preferred one, so that a node that
comes and goes does not take its partitions with it each time."""

HAND_OVERS_MAX: Final = 20
"""In one round: each costs its clients a metadata request."""

HAND_OVER_TIMEOUT_S: Final = 2.0
"""What may be written when a hand-over begins is committed within this time, or the hand-over is given up."""

_log = structlog.get_logger()


class Caretaker:
    """`target` gives the replicas that a partition is to move to, if any; `moved` tells the controller that it has."""

    def __init__(
        self,
        replicas: ReplicaManager,
        network: PeerNetwork,
        *,
        target: Callable[[ReplicaKey], tuple[NodeId, ...] | None],
        moved: Callable[[Moved], Awaitable[None]],
    ) -> None:
        self._replicas = replicas
        self._network = network
        self._target = target
        self._moved = moved
        self._task = asyncio.create_task(self._run(), name="caretaker")
        self._handing_over: dict[ReplicaKey, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Stop."""
        tasks = [self._task, *self._handing_over.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(ROUND_S)
            self._replicas.announce_changes()
            for hosted in [one for one in self._replicas.hosted_replicas if one.replica.is_settled]:
                if hosted.key in self._handing_over or not hosted.replica.is_settled:
                    continue
                try:
                    await self._attend(hosted)
                except PartitionError as error:
                    partition = hosted.partition
                    _log.warning(
                        "reassignment_delayed", topic=partition.topic, partition=partition.index, error=str(error)
                    )

    async def _attend(self, hosted: HostedReplica) -> None:
        target = self._target(hosted.key)
        if target is not None:
            await self._move(hosted, target)
        elif hosted.key != METADATA_KEY:
            self._give_back(hosted)

    async def _move(self, hosted: HostedReplica, target: tuple[NodeId, ...]) -> None:
        replicas = self._replicas
        if not hosted.replica.can_change_voters:
            return
        step = next_step(
            replicas.node_id,
            hosted.partition.voters,
            target,
            lambda node: node == replicas.node_id or replicas.has_everything(hosted, node),
        )
        match step:
            case SetVoters(voters):
                replicas.set_voters(hosted, voters)
            case HandOver(to):
                self._hand_over(hosted, to)
            case Finished():
                await self._moved(Moved(hosted.key, hosted.replica.epoch, hosted.partition.voters))
            case None:
                pass

    def _give_back(self, hosted: HostedReplica) -> None:
        replicas = self._replicas
        preferred = hosted.partition.voters[0]
        if preferred == replicas.node_id or len(self._handing_over) >= HAND_OVERS_MAX:
            return
        if replicas.now_ms() - hosted.led_since_ms < PREFERRED_AFTER_MS:
            return
        if replicas.is_in_step(hosted, preferred) and replicas.is_heard(preferred):
            self._hand_over(hosted, preferred)

    async def elect_preferred(self, key: ReplicaKey) -> ErrorCode:
        """Let the preferred replica of a partition lead, wherever it is led now (ElectLeaders)."""
        leadership = self._replicas.leaders.get(key)
        if leadership is None:
            return ErrorCode.leader_not_available
        if leadership.leader == self._replicas.node_id:
            return await self.give_back(key)
        try:
            await self._network.request(leadership.leader, Lane.FORWARD, ElectPreferred(key), 2 * HAND_OVER_TIMEOUT_S)
        except PeerRefused as error:
            return error.error
        except PeerError:
            return ErrorCode.leader_not_available
        return ErrorCode.none

    async def give_back(self, key: ReplicaKey) -> ErrorCode:
        """Let the preferred replica of a partition lead that this node leads."""
        hosted = self._replicas.hosted(key)
        if hosted is None or not hosted.replica.is_leader:
            return ErrorCode.not_leader_or_follower
        preferred = hosted.partition.voters[0]
        if preferred == self._replicas.node_id:
            return ErrorCode.election_not_needed
        if not self._replicas.is_heard(preferred):
            return ErrorCode.preferred_leader_not_available
        is_done = await hand_over(self._replicas, hosted, preferred, HAND_OVER_TIMEOUT_S)
        return ErrorCode.none if is_done else ErrorCode.preferred_leader_not_available

    def _hand_over(self, hosted: HostedReplica, to: NodeId) -> None:
        async def run() -> None:
            try:
                await hand_over(self._replicas, hosted, to, HAND_OVER_TIMEOUT_S)
            finally:
                del self._handing_over[hosted.key]

        self._handing_over[hosted.key] = asyncio.create_task(run(), name=f"hand over {hosted.key}")
