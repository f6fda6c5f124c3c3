"""Consumer groups: what members and admins ask, translated to the groups' own words and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from tidegate_core.groups.coordinator import OFFSET_METADATA_BYTES_MAX, OffsetChange
from tidegate_core.groups.group import Group, GroupState
from tidegate_core.groups.messages import (
    JoinRequest,
    JoinResult,
    LeavingMember,
    SyncRequest,
    SyncResult,
)
from tidegate_core.groups.records import CommittedOffset, OffsetKey
from tidegate_core.groups.shard import ShardState
from tidegate_core.metadata.image import Topic
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import ACCEPTED, KafkaError, refusal_of
from tidegate_core.protocol.translate import Fields, milliseconds
from tidegate_wire.address import Address
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.delete_groups.v2.request import DeleteGroupsRequest
    from kio.schema.describe_groups.v5.request import DescribeGroupsRequest
    from kio.schema.find_coordinator.v4.request import FindCoordinatorRequest
    from kio.schema.heartbeat.v4.request import HeartbeatRequest
    from kio.schema.join_group.v9.request import JoinGroupRequest
    from kio.schema.leave_group.v5.request import LeaveGroupRequest
    from kio.schema.list_groups.v5.request import ListGroupsRequest
    from kio.schema.offset_commit.v8.request import OffsetCommitRequest, OffsetCommitRequestPartition
    from kio.schema.offset_delete.v0.request import OffsetDeleteRequest
    from kio.schema.offset_fetch.v8.request import OffsetFetchRequest, OffsetFetchRequestGroup
    from kio.schema.sync_group.v5.request import SyncGroupRequest

MEMBER_METADATA_BYTES_MAX: Final = 1024 * 1024
"""What a member may say of itself in all its protocols; it is kept in memory and told to the leader. A subscription to
a thousand topics with long names takes a quarter of it."""

GROUP_OPERATIONS: Final = 1 << 3 | 1 << 6 | 1 << 8
"""Read, delete, describe (KIP-430): all are allowed."""

_GROUP: Final = 0
_NOT_TOLD: Final = -(2**31)
_NO_OFFSET: Final = -1
_NOBODY: Final = NodeId(-1), Address("", -1)
_GROUP_TYPE: Final = "classic"


# Who keeps a group.


async def find_coordinator(node: Node, request: FindCoordinatorRequest, _client: Client) -> Fields:
    """The nodes that keep groups."""
    return {"coordinators": [await _coordinator(node, request.key_type, key) for key in request.coordinator_keys]}


async def _coordinator(node: Node, key_type: int, group_id: str) -> Fields:
    found, refusal = _NOBODY, ACCEPTED
    try:
        _check_key_type(key_type)
        leader = await node.groups.coordinator_of(group_id)
        found = leader, _address_of(node, leader)
    except Exception as error:  # becomes this group's answer
        refusal = refusal_of(error)
    node_id, address = found
    return {
        "key": group_id,
        "node_id": node_id,
        "host": address.host,
        "port": address.port,
        "error_code": refusal.code,
        "error_message": refusal.message,
    }


def _address_of(node: Node, node_id: NodeId) -> Address:
    """Where clients reach a node."""
    if node_id == node.node_id:
        return node.advertised
    info = node.image.nodes.get(node_id)
    if info is None:
        raise KafkaError(ErrorCode.coordinator_not_available, f"node {node_id} has not told yet where it is")
    return Address(info.host, info.port)


def _check_key_type(key_type: int) -> None:
    if key_type != _GROUP:
        raise KafkaError(ErrorCode.transactional_id_authorization_failed, "transactions are not served")


# Members.


async def join_group(node: Node, request: JoinGroupRequest, client: Client) -> Fields:
    """Become, or stay, a member; answered when the next generation begins."""
    session_timeout_ms = milliseconds(request.session_timeout)
    rebalance_timeout_ms = milliseconds(request.rebalance_timeout)
    protocols = tuple((protocol.name, bytes(protocol.metadata)) for protocol in request.protocols)
    if sum(len(metadata) for _, metadata in protocols) > MEMBER_METADATA_BYTES_MAX:
        result = JoinResult(error=ErrorCode.invalid_request, member_id=request.member_id)
    else:
        try:
            shard = node.groups.shard_of(request.group_id)
            result = await shard.join(
                JoinRequest(
                    group_id=request.group_id,
                    member_id=request.member_id,
                    instance_id=request.group_instance_id,
                    client_id=client.client_id,
                    client_host=client.host,
                    session_timeout_ms=session_timeout_ms,
                    rebalance_timeout_ms=rebalance_timeout_ms if rebalance_timeout_ms >= 0 else session_timeout_ms,
                    protocol_type=request.protocol_type,
                    protocols=protocols,
                    knows_member_id=client.api_version >= 4,
                    may_skip_assignment=client.api_version >= 9,
                )
            )
        except Exception as error:  # becomes the answer
            result = JoinResult(error=refusal_of(error).code, member_id=request.member_id)
    return {
        "error_code": result.error,
        "generation_id": result.generation,
        "protocol_type": result.protocol_type,
        # Nullable from version 7 on only.
        "protocol_name": result.protocol_name if client.api_version >= 7 else result.protocol_name or "",
        "leader": result.leader_id,
        "skip_assignment": result.skip_assignment,
        "member_id": result.member_id,
        "members": [
            {"member_id": member.member_id, "group_instance_id": member.instance_id, "metadata": member.metadata}
            for member in result.members
        ],
    }


async def sync_group(node: Node, request: SyncGroupRequest, _client: Client) -> Fields:
    """Get the assignment, or bring everyone's."""
    try:
        shard = node.groups.shard_of(request.group_id)
        result = await shard.sync(
            SyncRequest(
                group_id=request.group_id,
                generation=request.generation_id,
                member_id=request.member_id,
                instance_id=request.group_instance_id,
                protocol_type=request.protocol_type,
                protocol_name=request.protocol_name,
                assignments={item.member_id: bytes(item.assignment) for item in request.assignments},
            )
        )
    except Exception as error:  # becomes the answer
        result = SyncResult(error=refusal_of(error).code)
    return {
        "error_code": result.error,
        "protocol_type": result.protocol_type,
        "protocol_name": result.protocol_name,
        "assignment": result.assignment,
    }


async def heartbeat(node: Node, request: HeartbeatRequest, _client: Client) -> Fields:
    """Stay a member."""
    try:
        shard = node.groups.shard_of(request.group_id)
        error = shard.heartbeat(request.group_id, request.member_id, request.group_instance_id, request.generation_id)
    except Exception as failure:  # becomes the answer
        error = refusal_of(failure).code
    return {"error_code": error}


async def leave_group(node: Node, request: LeaveGroupRequest, _client: Client) -> Fields:
    """Take members out."""
    leaving = [
        LeavingMember(member_id=member.member_id, instance_id=member.group_instance_id) for member in request.members
    ]
    try:
        shard = node.groups.shard_of(request.group_id)
        errors = shard.leave(request.group_id, leaving)
    except Exception as error:  # becomes the answer
        return {"error_code": refusal_of(error).code, "members": []}
    return {
        "error_code": ErrorCode.none,
        "members": [
            {"member_id": member.member_id, "group_instance_id": member.instance_id, "error_code": error}
            for member, error in zip(leaving, errors, strict=True)
        ],
    }


# Offsets.


async def offset_commit(node: Node, request: OffsetCommitRequest, _client: Client) -> Fields:
    """Write down how far the group has read; answered when that is on disk."""
    group_id = request.group_id
    answers: dict[tuple[str, int], ErrorCode] = {}
    changes: list[OffsetChange] = []
    try:
        shard = node.groups.shard_of(group_id)
        group_error = shard.check_commit(
            group_id, request.generation_id_or_member_epoch, request.member_id, request.group_instance_id
        )
        for topic in request.topics:
            known = node.image.topics.get(topic.name)
            for part in topic.partitions:
                key = topic.name, part.partition_index
                answers[key] = group_error or _check_offset(known, part)
                if known is not None and answers[key] is ErrorCode.none:
                    changes.append(_offset_change(node, group_id, known, part))
        await shard.write(changes)
    except Exception as error:  # becomes the answer
        code = refusal_of(error).code
        answers = {(topic.name, part.partition_index): code for topic in request.topics for part in topic.partitions}
    return {
        "topics": [
            {
                "name": topic.name,
                "partitions": [
                    {
                        "partition_index": part.partition_index,
                        "error_code": answers[topic.name, part.partition_index],
                    }
                    for part in topic.partitions
                ],
            }
            for topic in request.topics
        ]
    }


def _check_offset(known: Topic | None, part: OffsetCommitRequestPartition) -> ErrorCode:
    if known is None or not 0 <= part.partition_index < known.partition_count:
        return ErrorCode.unknown_topic_or_partition
    if len((part.committed_metadata or "").encode()) > OFFSET_METADATA_BYTES_MAX:
        return ErrorCode.offset_metadata_too_large
    return ErrorCode.none


def _offset_change(node: Node, group_id: str, topic: Topic, part: OffsetCommitRequestPartition) -> OffsetChange:
    return OffsetChange(
        OffsetKey(group_id, topic.name, part.partition_index),
        CommittedOffset(
            offset=part.committed_offset,
            leader_epoch=part.committed_leader_epoch,
            metadata=part.committed_metadata or "",
            commit_time_ms=node.clock_ms(),
            topic_id=topic.topic_id,
        ),
    )


async def offset_fetch(node: Node, request: OffsetFetchRequest, _client: Client) -> Fields:
    """How far groups have read."""
    return {"groups": [await _group_offsets(node, group) for group in request.groups]}


async def _group_offsets(node: Node, group: OffsetFetchRequestGroup) -> Fields:
    try:
        shard = node.groups.shard_of(group.group_id)
    except Exception as error:  # becomes this group's answer
        return {"group_id": group.group_id, "topics": [], "error_code": refusal_of(error).code}
    committed = shard.coordinator.committed(group.group_id)
    asked: Iterable[tuple[str, Iterable[int]]]
    if group.topics is None:
        by_topic: dict[str, list[int]] = {}
        for topic, partition in sorted(committed):
            if not node.groups.is_gone(topic, committed[topic, partition]):
                by_topic.setdefault(topic, []).append(partition)
        asked = by_topic.items()
    else:
        asked = ((topic.name, topic.partition_indexes) for topic in group.topics)
    topics = []
    for topic, indexes in asked:
        offsets = ((index, committed.get((topic, index))) for index in indexes)
        parts = [
            _offset_fields(index, None if offset is None or node.groups.is_gone(topic, offset) else offset)
            for index, offset in offsets
        ]
        topics.append({"name": topic, "partitions": parts})
    return {"group_id": group.group_id, "topics": topics, "error_code": ErrorCode.none}


def _offset_fields(partition: int, committed: CommittedOffset | None) -> Fields:
    return {
        "partition_index": partition,
        "committed_offset": _NO_OFFSET if committed is None else committed.offset,
        "committed_leader_epoch": -1 if committed is None else committed.leader_epoch,
        "metadata": "" if committed is None else committed.metadata,
        "error_code": ErrorCode.none,
    }


async def offset_delete(node: Node, request: OffsetDeleteRequest, _client: Client) -> Fields:
    """Forget how far a group has read topics that nobody in it reads (KIP-496)."""
    group_id = request.group_id
    partitions = [(topic.name, part.partition_index) for topic in request.topics for part in topic.partitions]
    try:
        shard = node.groups.shard_of(group_id)
        outcome = shard.coordinator.delete_offsets(group_id, partitions)
        if isinstance(outcome, ErrorCode):
            return {"error_code": outcome, "topics": []}
        changes, answers = outcome
        await shard.write(changes)
    except Exception as error:  # becomes the answer
        return {"error_code": refusal_of(error).code, "topics": []}
    return {
        "error_code": ErrorCode.none,
        "topics": [
            {
                "name": topic.name,
                "partitions": [
                    {
                        "partition_index": part.partition_index,
                        "error_code": answers[topic.name, part.partition_index],
                    }
                    for part in topic.partitions
                ],
            }
            for topic in request.topics
        ],
    }


# Admin.


async def list_groups(node: Node, request: ListGroupsRequest, _client: Client) -> Fields:
    """All groups that this node keeps, or those in some states (KIP-518) or of some types (KIP-848)."""
    shards = node.groups.shards
    is_loading = any(shard.state is ShardState.LOADING for shard in shards)
    states = {state.lower() for state in request.states_filter}
    types = {name.lower() for name in request.types_filter}
    groups = [
        {
            "group_id": group.group_id,
            "protocol_type": group.protocol_type or "",
            "group_state": str(group.state),
            "group_type": _GROUP_TYPE,
        }
        for shard in shards
        if shard.state is ShardState.ACTIVE
        for group in shard.coordinator.groups.values()
        if (not states or group.state.lower() in states) and (not types or _GROUP_TYPE in types)
    ]
    error = ErrorCode.coordinator_load_in_progress if is_loading else ErrorCode.none
    return {"error_code": error, "groups": groups}


async def describe_groups(node: Node, request: DescribeGroupsRequest, _client: Client) -> Fields:
    """The state and members of groups; one that does not exist is Dead."""
    operations = GROUP_OPERATIONS if request.include_authorized_operations else _NOT_TOLD
    groups = []
    for group_id in request.groups:
        error, group = ErrorCode.none, None
        try:
            shard = node.groups.shard_of(group_id)
            group = shard.coordinator.groups.get(group_id)
        except Exception as failure:  # becomes this group's answer
            error = refusal_of(failure).code
        groups.append(_described(group_id, group, error) | {"authorized_operations": operations})
    return {"groups": groups}


def _described(group_id: str, group: Group | None, error: ErrorCode) -> dict[str, Any]:
    if group is None:
        return {
            "error_code": error,
            "group_id": group_id,
            "group_state": "" if error else str(GroupState.DEAD),
            "members": [],
        }
    is_stable = group.state is GroupState.STABLE
    return {
        "error_code": ErrorCode.none,
        "group_id": group_id,
        "group_state": str(group.state),
        "protocol_type": group.protocol_type or "",
        "protocol_data": (group.protocol_name or "") if is_stable else "",
        "members": [
            {
                "member_id": member.member_id,
                "group_instance_id": member.instance_id,
                "client_id": member.client_id,
                "client_host": member.client_host,
                "member_metadata": member.metadata(group.protocol_name) if is_stable else b"",
                "member_assignment": member.assignment if is_stable else b"",
            }
            for member in group.members
        ],
    }


async def delete_groups(node: Node, request: DeleteGroupsRequest, _client: Client) -> Fields:
    """Delete groups that have no members, with their offsets (KIP-229)."""
    results = [
        {"group_id": group_id, "error_code": await _delete_group(node, group_id)} for group_id in request.groups_names
    ]
    return {"results": results}


async def _delete_group(node: Node, group_id: str) -> ErrorCode:
    try:
        shard = node.groups.shard_of(group_id)
        outcome = shard.coordinator.delete_group(group_id)
        if isinstance(outcome, ErrorCode):
            return outcome
        await shard.write(outcome)
    except Exception as error:  # becomes this group's answer
        return refusal_of(error).code
    return ErrorCode.none
