"""From a request's frame to its answer: versions are checked, and each API finds its handler, or the controller."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

from tidegate_core.handlers import (
    cluster,
    configs,
    elections,
    groups,
    metadata,
    offsets,
    quorum,
    reassignments,
    topics,
)
from tidegate_core.handlers.fetch import fetch
from tidegate_core.log.identity import METADATA_TOPIC
from tidegate_core.metadata.controller_link import CONTROLLER_WAIT_S
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_core.protocol.translate import Fields, lift, lower
from tidegate_core.protocol.versions import Api, is_served
from tidegate_wire.kafka.messages import ErrorCode, MessageError, RequestHeader, decode_request, encode_response

Handler = Callable[[Node, Any, Client], Awaitable[Fields]]

_HANDLERS: Final[dict[int, Handler]] = {
    Api.API_VERSIONS: cluster.api_versions,
    Api.DESCRIBE_CLUSTER: cluster.describe_cluster,
    Api.FIND_COORDINATOR: groups.find_coordinator,
    Api.INIT_PRODUCER_ID: cluster.init_producer_id,
    Api.DESCRIBE_LOG_DIRS: cluster.describe_log_dirs,
    Api.LIST_OFFSETS: offsets.list_offsets,
    Api.OFFSET_FOR_LEADER_EPOCH: offsets.offset_for_leader_epoch,
    Api.DELETE_RECORDS: offsets.delete_records,
    Api.METADATA: metadata.metadata,
    Api.DESCRIBE_TOPIC_PARTITIONS: metadata.describe_topic_partitions,
    Api.DESCRIBE_CONFIGS: configs.describe_configs,
    Api.JOIN_GROUP: groups.join_group,
    Api.SYNC_GROUP: groups.sync_group,
    Api.HEARTBEAT: groups.heartbeat,
    Api.LEAVE_GROUP: groups.leave_group,
    Api.OFFSET_COMMIT: groups.offset_commit,
    Api.OFFSET_FETCH: groups.offset_fetch,
    Api.OFFSET_DELETE: groups.offset_delete,
    Api.LIST_GROUPS: groups.list_groups,
    Api.DESCRIBE_GROUPS: groups.describe_groups,
    Api.DELETE_GROUPS: groups.delete_groups,
    Api.DESCRIBE_QUORUM: quorum.describe_quorum,
}

_CONTROLLER_HANDLERS: Final[dict[int, Handler]] = {
    Api.CREATE_TOPICS: topics.create_topics,
    Api.DELETE_TOPICS: topics.delete_topics,
    Api.CREATE_PARTITIONS: topics.create_partitions,
    Api.ALTER_CONFIGS: configs.alter_configs,
    Api.INCREMENTAL_ALTER_CONFIGS: configs.incremental_alter_configs,
    Api.ALTER_PARTITION_REASSIGNMENTS: reassignments.alter_partition_reassignments,
    Api.LIST_PARTITION_REASSIGNMENTS: reassignments.list_partition_reassignments,
    Api.ELECT_LEADERS: elections.elect_leaders,
    Api.UNREGISTER_BROKER: cluster.unregister_broker,
}
"""What the controller answers, whichever node is asked."""

_FORWARDED_HANDLERS: Final[dict[int, Handler]] = {
    **_CONTROLLER_HANDLERS,
    Api.DESCRIBE_QUORUM: quorum.describe_quorum,
    Api.ALLOCATE_PRODUCER_IDS: cluster.allocate_producer_ids,
}
"""What nodes pass on."""

METADATA_CACHE_MAX: Final = 32
"""Encoded Metadata responses that are kept: one for each set of topics that clients ask for. A response of 1,000
partitions takes 7 ms to encode, and a fleet that reconnects asks for the same one again and again."""

_CORRELATION_ID: Final = slice(4, 8)


class Dispatcher:
    """Answers every request but Produce, which has a way of its own.

    `is_forwarded`: the requests come from other nodes, which take this one for the controller.
    """

    def __init__(self, node: Node, *, is_forwarded: bool = False) -> None:
        self._node = node
        self._is_forwarded = is_forwarded
        self._metadata: OrderedDict[Any, bytes] = OrderedDict()

    async def answer(self, header: RequestHeader, frame: memoryview, host: str) -> list[bytes | memoryview]:
        """The response to a request, as the buffers of a whole frame.

        Raises:
            MessageError: the API or version is not served, or the frame is not what its header says.
            KafkaError: NOT_CONTROLLER: another node passed the request on, and this is not the controller.
        """
        api_key, version = header.api_key, header.api_version
        if not is_served(api_key, version):
            if api_key == Api.API_VERSIONS:
                fields = cluster.api_versions_fields(ErrorCode.unsupported_version)
                return [encode_response(lower(api_key, 0, fields), header.correlation_id)]
            raise MessageError(f"API {api_key} version {version} is not served")
        request: Any = decode_request(header, frame.toreadonly())
        if api_key == Api.FETCH and not self._is_forwarded:
            return list(await fetch(self._node, header, request))
        request = lift(api_key, version, request)
        client = Client(header.client_id or "", host, version)
        if self._is_forwarded:
            return await self._answer_forwarded(header, request, client)
        if api_key == Api.METADATA:
            return [await self._metadata_response(header, request, client)]
        if api_key in _CONTROLLER_HANDLERS or (api_key == Api.DESCRIBE_QUORUM and _is_about_metadata(request)):
            return [await self._controllers_answer(header, frame, request, client)]
        handler = _HANDLERS.get(api_key)
        if handler is None:
            raise MessageError(f"API {api_key} is not for clients")
        return [await self._respond(handler, header, request, client)]

    async def _respond(self, handler: Handler, header: RequestHeader, request: Any, client: Client) -> bytes:
        fields = await handler(self._node, request, client)
        return encode_response(lower(header.api_key, header.api_version, fields), header.correlation_id)

    async def _answer_forwarded(self, header: RequestHeader, request: Any, client: Client) -> list[bytes | memoryview]:
        handler = _FORWARDED_HANDLERS.get(header.api_key)
        if handler is None:
            raise MessageError(f"API {header.api_key} is not for the controller")
        if not self._node.controller.is_active:
            raise KafkaError(ErrorCode.not_controller, f"node {self._node.node_id} is not the controller")
        return [await self._respond(handler, header, request, client)]

    async def _controllers_answer(
        self, header: RequestHeader, frame: memoryview, request: Any, client: Client
    ) -> bytes | memoryview:
        """This node's, if it is the controller; else the controller's, passed on; else the reason why there is none."""
        timeout = getattr(request, "timeout", timedelta(seconds=CONTROLLER_WAIT_S))
        try:
            answer = await self._node.link.ask(frame, client.host, timeout.total_seconds())
        except KafkaError as error:
            client = Client(client.client_id, client.host, client.api_version, refusal=error)
        else:
            if answer is not None:
                return answer
        handler = _FORWARDED_HANDLERS[header.api_key]
        return await self._respond(handler, header, request, client)

    async def _metadata_response(self, header: RequestHeader, request: Any, client: Client) -> bytes:
        version = header.api_version
        names = None if request.topics is None else tuple((topic.name, topic.topic_id) for topic in request.topics)
        flags = request.include_topic_authorized_operations, request.allow_auto_topic_creation
        key = self._metadata_version, version, names, flags
        cached = self._metadata.get(key)
        if cached is None:
            fields = await metadata.metadata(self._node, request, client)
            cached = encode_response(lower(Api.METADATA, version, fields), 0)
            if not any(topic["error_code"] for topic in fields["topics"]):  # errors pass without anything changing
                self._remember((self._metadata_version, version, names, flags), cached)
        else:
            self._metadata.move_to_end(key)
        frame = bytearray(cached)
        frame[_CORRELATION_ID] = header.correlation_id.to_bytes(4, "big", signed=True)
        return bytes(frame)

    @property
    def _metadata_version(self) -> tuple[int, int]:
        return self._node.image.version, self._node.leaders.version

    def _remember(self, key: Any, response: bytes) -> None:
        self._metadata[key] = response
        while len(self._metadata) > METADATA_CACHE_MAX:
            self._metadata.popitem(last=False)


def _is_about_metadata(request: Any) -> bool:
    return any(topic.topic_name == METADATA_TOPIC for topic in request.topics)
