"""Leading no more without anybody noticing: what was written is committed, and answered, before another leads."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from tidegate_core.errors import PartitionError
from tidegate_core.replication.hosted import HostedReplica
from tidegate_core.replication.replicas import ReplicaManager
from tidegate_wire.identifiers import NodeId

POLL_S: Final = 0.01
"""Between two looks at whether a follower has caught up; a hand-over is rare, and takes a few of them."""

_log = structlog.get_logger()


async def hand_over(replicas: ReplicaManager, hosted: HostedReplica, to: NodeId | None, timeout_s: float) -> bool:
    """Let another voter lead; says whether this node leads no more.

    `to` None takes the one that has most. Appends are refused meanwhile, so that none is written that would have to be
    told lost; clients then ask who leads, and find the new leader.
    """
    replica, partition = hosted.replica, hosted.partition
    epoch = replica.epoch
    if not replica.is_leader or len(partition.voters) < 2:
        return not replica.is_leader
    partition.is_draining = True
    try:
        async with asyncio.timeout(timeout_s):
            await partition.committed(partition.log_end_offset)
            await _caught_up(replicas, hosted, to)
    except (TimeoutError, PartitionError) as error:
        _log.info("hand_over_hurried", topic=partition.topic, partition=partition.index, reason=repr(error))
    finally:
        partition.is_draining = False
    if (hosted.standing[0], replica.epoch) != (True, epoch):
        return True
    if to is not None and not replicas.has_everything(hosted, to):
        return False
    replicas.resign(hosted, to)
    return True


async def _caught_up(replicas: ReplicaManager, hosted: HostedReplica, node: NodeId | None) -> None:
    while True:
        if node is None or not hosted.replica.is_leader or replicas.has_everything(hosted, node):
            return
        await asyncio.sleep(POLL_S)


async def leave_politely(replicas: ReplicaManager, timeout_s: float) -> None:
    """Before this node stops: let others lead what it leads, and return when they do, or after `timeout_s`."""
    led = [one for one in replicas.hosted_replicas if one.replica.is_leader and _has_successor(replicas, one)]
    if not led or timeout_s <= 0:
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    done = await asyncio.gather(*(hand_over(replicas, hosted, None, timeout_s / 2) for hosted in led))
    _log.info("leadership_handed_over", partitions=sum(done))
    while loop.time() < deadline:
        waiting = (one for one in led if not one.replica.is_leader and replicas.leaders.get(one.key) is None)
        if not any(_has_successor(replicas, hosted) for hosted in waiting):
            return
        await asyncio.sleep(POLL_S)


def _has_successor(replicas: ReplicaManager, hosted: HostedReplica) -> bool:
    """Whether enough other voters are heard to elect one of them."""
    voters = hosted.partition.voters
    heard = sum(1 for voter in voters if voter != replicas.node_id and replicas.is_heard(voter))
    return heard > len(voters) // 2 or heard == len(voters) - 1 > 0
