"""Topics: CreateTopics, DeleteTopics, CreatePartitions. The controller answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from tidegate_core.metadata.assignments import config_of
from tidegate_core.metadata.controller import NewTopic
from tidegate_core.metadata.controller_link import LEADERS_WAIT_S
from tidegate_core.metadata.image import Replicas, Topic
from tidegate_core.metadata.names import check_not_internal
from tidegate_core.metadata.topic_settings import describe_settings
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import ACCEPTED, KafkaError, Refusal, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.create_partitions.v3.request import CreatePartitionsRequest
    from kio.schema.create_topics.v7.request import CreatableTopic, CreateTopicsRequest
    from kio.schema.delete_topics.v6.request import DeleteTopicsRequest

_DEFAULT: Final = -1
_SOURCE_DYNAMIC_TOPIC: Final = 1
_SOURCE_DEFAULT: Final = 5


async def create_topics(node: Node, request: CreateTopicsRequest, client: Client) -> Fields:
    """Make topics; each is made or refused by itself."""
    times = Counter(wanted.name for wanted in request.topics)
    made: list[tuple[str, Refusal, Topic | None]] = []
    for wanted in request.topics:
        try:
            client.check_controller()
            new = _new_topic(node, wanted, client, is_once=times[wanted.name] == 1)
            if request.validate_only:
                topic = await node.controller.check_topic(new)
            else:
                topic = await node.controller.create_topic(new)
            made.append((wanted.name, ACCEPTED, topic))
        except Exception as error:  # becomes this topic's answer
            made.append((wanted.name, refusal_of(error), None))
    if not request.validate_only:
        await _leaders_found(node, (name for name, _, topic in made if topic is not None), request.timeout)
    return {"topics": [_created(node, *one) for one in made]}


async def _leaders_found(node: Node, names: Iterable[str], client_waits: timedelta) -> None:
    """Wait until the partitions of these topics can be used, as long as the client would; they will be anyway."""
    timeout_s = min(client_waits.total_seconds(), LEADERS_WAIT_S)
    for name in names:
        if not await node.link.is_usable(name, timeout_s):
            return


def _new_topic(node: Node, wanted: CreatableTopic, client: Client, *, is_once: bool) -> NewTopic:
    if not is_once:
        raise KafkaError(ErrorCode.invalid_request, f"topic {wanted.name!r} stands in the request twice")
    if not client.is_node:
        check_not_internal(wanted.name)
    settings = {config.name: config.value for config in wanted.configs if config.value is not None}
    partition_count = int(wanted.num_partitions)
    if wanted.assignments:
        if partition_count != _DEFAULT or wanted.replication_factor != _DEFAULT:
            raise KafkaError(ErrorCode.invalid_request, "give a number of partitions or an assignment, not both")
        assigned = {int(one.partition_index): _replicas(one.broker_ids) for one in wanted.assignments}
        if len(assigned) < len(wanted.assignments) or sorted(assigned) != list(range(len(assigned))):
            raise KafkaError(ErrorCode.invalid_replica_assignment, "assign each partition once, from 0 on")
        return NewTopic(
            name=wanted.name,
            partition_count=len(assigned),
            assignment=tuple(assigned[index] for index in range(len(assigned))),
            settings=settings,
        )
    return NewTopic(
        name=wanted.name,
        partition_count=node.settings.default_partitions if partition_count == _DEFAULT else partition_count,
        replication_factor=None if wanted.replication_factor == _DEFAULT else int(wanted.replication_factor),
        settings=settings,
    )


def _replicas(nodes: Iterable[int]) -> Replicas:
    return tuple(NodeId(node) for node in nodes)


def _created(node: Node, name: str, refusal: Refusal, topic: Topic | None) -> Fields:
    fields: dict[str, Any] = {
        "name": name,
        "error_code": refusal.code,
        "error_message": refusal.message,
        "configs": None,
    }
    if topic is None:
        return fields
    replication_factor = len(topic.replicas[0])
    config = config_of(topic.settings, node.settings.topic_defaults)
    return fields | {
        "topic_id": topic.topic_id,
        "num_partitions": topic.partition_count,
        "replication_factor": replication_factor,
        "configs": [
            {
                "name": setting,
                "value": value,
                "read_only": False,
                "config_source": _SOURCE_DYNAMIC_TOPIC if setting in topic.settings else _SOURCE_DEFAULT,
                "is_sensitive": False,
            }
            for setting, value in describe_settings(config, topic.settings, replication_factor).items()
        ],
    }


async def delete_topics(node: Node, request: DeleteTopicsRequest, client: Client) -> Fields:
    """Delete topics, by name or id, with all that is in them and all offsets that were committed for them."""
    responses = []
    for wanted in request.topics:
        refusal = ACCEPTED
        if wanted.name is not None:
            topic = node.image.topics.get(wanted.name)
        else:
            topic = None if wanted.topic_id is None else node.image.topic_by_id(wanted.topic_id)
        name = wanted.name if topic is None else topic.name
        try:
            client.check_controller()
            await _delete(node, name)
        except Exception as error:  # becomes this topic's answer
            refusal = refusal_of(error)
        responses.append(
            {
                "name": name,
                "topic_id": wanted.topic_id if topic is None else topic.topic_id,
                "error_code": refusal.code,
                "error_message": refusal.message,
            }
        )
    return {"responses": responses}


async def _delete(node: Node, name: str | None) -> None:
    if name is None:
        raise KafkaError(ErrorCode.unknown_topic_id, "there is no topic with this id")
    check_not_internal(name)
    await node.controller.delete_topic(name)


async def create_partitions(node: Node, request: CreatePartitionsRequest, client: Client) -> Fields:
    """Let topics have more partitions (KIP-195)."""
    results = []
    grown: list[str] = []
    for wanted in request.topics:
        refusal = ACCEPTED
        try:
            client.check_controller()
            check_not_internal(wanted.name)
            assignment = None
            if wanted.assignments is not None:
                assignment = tuple(_replicas(one.broker_ids) for one in wanted.assignments)
            if request.validate_only:
                await node.controller.check_partitions(wanted.name, wanted.count, assignment)
            else:
                await node.controller.add_partitions(wanted.name, wanted.count, assignment)
                grown.append(wanted.name)
        except Exception as error:  # becomes this topic's answer
            refusal = refusal_of(error)
        results.append({"name": wanted.name, "error_code": refusal.code, "error_message": refusal.message})
    await _leaders_found(node, grown, request.timeout)
    return {"results": results}
