"""ElectLeaders (KIP-460): gives partitions back to their preferred leaders. The controller answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import ACCEPTED, KafkaError, Refusal, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_core.raft.messages import ReplicaKey
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.elect_leaders.v2.request import ElectLeadersRequest

PREFERRED: Final = 0

ELECTIONS_AT_ONCE: Final = 20
"""Each costs the clients of a partition a metadata request."""

_REASONS: Final = {
    ErrorCode.election_not_needed: "the preferred replica leads already",
    ErrorCode.preferred_leader_not_available: "the preferred replica is not there, or lacks records",
    ErrorCode.leader_not_available: "nobody leads the partition just now, and a majority elects whom it can",
}


async def elect_leaders(node: Node, request: ElectLeadersRequest, client: Client) -> Fields:
    """Let the preferred replica of each partition lead, for all partitions if none are named."""
    wanted: list[tuple[str, int]]
    if request.topic_partitions is None:
        wanted = [(name, index) for name, topic in node.image.topics.items() for index in range(topic.partition_count)]
    else:
        wanted = [(topic.topic, index) for topic in request.topic_partitions for index in topic.partitions]
    gate = asyncio.Semaphore(ELECTIONS_AT_ONCE)
    deadline_s = asyncio.get_running_loop().time() + request.timeout.total_seconds()

    async def elect(topic: str, index: int) -> Refusal:
        try:
            client.check_controller()
            _check_type(request.election_type)
            key = _key(node, topic, index)
            async with gate, asyncio.timeout_at(deadline_s):
                code = await node.caretaker.elect_preferred(key)
        except TimeoutError:
            return Refusal(ErrorCode.request_timed_out, "it was not done in time, and may be yet")
        except Exception as error:  # becomes this partition's answer
            return refusal_of(error)
        return ACCEPTED if code is ErrorCode.none else Refusal(code, _REASONS.get(code))

    refusals = await asyncio.gather(*(elect(topic, index) for topic, index in wanted))
    results: dict[str, list[dict[str, Any]]] = {}
    for (topic, index), refusal in zip(wanted, refusals, strict=True):
        if request.topic_partitions is None and refusal.code is ErrorCode.election_not_needed:
            continue  # nobody asked for this one
        results.setdefault(topic, []).append(
            {"partition_id": index, "error_code": refusal.code, "error_message": refusal.message}
        )
    return {
        "error_code": ErrorCode.none,
        "replica_election_results": [
            {"topic": topic, "partition_result": partitions} for topic, partitions in results.items()
        ],
    }


def _check_type(election_type: int) -> None:
    if election_type != PREFERRED:
        raise KafkaError(ErrorCode.invalid_request, "a leader has every acknowledged record: no election is unclean")


def _key(node: Node, topic: str, index: int) -> ReplicaKey:
    known = node.image.topics.get(topic)
    if known is None or not 0 <= index < known.partition_count:
        raise KafkaError(ErrorCode.unknown_topic_or_partition, f"there is no partition {index} of a topic {topic!r}")
    return known.key(index)
