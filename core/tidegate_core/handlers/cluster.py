"""The cluster and this node: ApiVersions, DescribeCluster, producer ids, DescribeLogDirs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from tidegate_core.handlers.metadata import client_addresses, controller_id
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import KafkaError, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_core.protocol.versions import VERSIONS
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.allocate_producer_ids.v0.request import AllocateProducerIdsRequest
    from kio.schema.api_versions.v4.request import ApiVersionsRequest
    from kio.schema.describe_cluster.v1.request import DescribeClusterRequest
    from kio.schema.describe_log_dirs.v4.request import DescribeLogDirsRequest
    from kio.schema.init_producer_id.v4.request import InitProducerIdRequest
    from kio.schema.unregister_broker.v0.request import UnregisterBrokerRequest

_BROKERS: Final = 1
_NO_PRODUCER: Final = -1

CLUSTER_OPERATIONS: Final = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12
"""Create, alter, describe, cluster action, describe and alter configs, idempotent write (KIP-430): all are allowed."""

_NOT_TOLD: Final = -(2**31)


async def api_versions(_node: Node, _request: ApiVersionsRequest, _client: Client) -> Fields:
    """What is served."""
    return api_versions_fields(ErrorCode.none)


def api_versions_fields(error: ErrorCode) -> Fields:
    """The ApiVersions response; UNSUPPORTED_VERSION goes with the same list, in version 0 (KIP-511)."""
    return {
        "error_code": error,
        "api_keys": [
            {"api_key": int(api_key), "min_version": versions.lowest, "max_version": versions.highest}
            for api_key, versions in VERSIONS.items()
        ],
    }


async def describe_cluster(node: Node, request: DescribeClusterRequest, _client: Client) -> Fields:
    """The nodes (KIP-700)."""
    if request.endpoint_type != _BROKERS:
        return {
            "error_code": ErrorCode.unsupported_endpoint_type,
            "error_message": "only brokers are described",
            "endpoint_type": request.endpoint_type,
            "cluster_id": "",
            "brokers": [],
        }
    return {
        "error_code": ErrorCode.none,
        "cluster_id": node.cluster_id,
        "controller_id": controller_id(node),
        "brokers": [
            {"broker_id": node_id, "host": address.host, "port": address.port}
            for node_id, address in client_addresses(node).items()
        ],
        "cluster_authorized_operations": (
            CLUSTER_OPERATIONS if request.include_cluster_authorized_operations else _NOT_TOLD
        ),
    }


async def unregister_broker(node: Node, request: UnregisterBrokerRequest, client: Client) -> Fields:
    """Take a node out of the cluster that is gone for good and has no replicas; the controller answers."""
    try:
        client.check_controller()
        await node.controller.unregister_node(NodeId(request.broker_id))
    except Exception as error:  # becomes the answer
        refusal = refusal_of(error)
        return {"error_code": refusal.code, "error_message": refusal.message}
    return {"error_code": ErrorCode.none, "error_message": None}


async def init_producer_id(node: Node, request: InitProducerIdRequest, _client: Client) -> Fields:
    """A producer id that nobody had before, whatever id the request names; transactional ids are refused."""
    if request.transactional_id is not None:
        refusal, producer_id = ErrorCode.transactional_id_authorization_failed, _NO_PRODUCER
    else:
        try:
            refusal, producer_id = ErrorCode.none, int(await node.producer_ids.take())
        except Exception as error:  # becomes the answer
            refusal, producer_id = _as_coordinator(refusal_of(error).code), _NO_PRODUCER
    return {
        "error_code": refusal,
        "producer_id": producer_id,
        "producer_epoch": 0 if producer_id >= 0 else -1,
    }


def _as_coordinator(code: ErrorCode) -> ErrorCode:
    """What clients of InitProducerId take for a reason to ask again: they know of no controller."""
    is_away = code in (ErrorCode.not_controller, ErrorCode.request_timed_out)
    return ErrorCode.coordinator_not_available if is_away else code


async def allocate_producer_ids(node: Node, _request: AllocateProducerIdsRequest, client: Client) -> Fields:
    """A block of producer ids for another node to give out (KIP-730); the controller answers."""
    try:
        _check_node(client)
        block = await node.controller.allocate_producer_ids()
    except Exception as error:  # becomes the answer
        return {"error_code": refusal_of(error).code, "producer_id_start": _NO_PRODUCER, "producer_id_len": 0}
    return {"error_code": ErrorCode.none, "producer_id_start": block.start, "producer_id_len": len(block)}


def _check_node(client: Client) -> None:
    if not client.is_node:
        raise KafkaError(ErrorCode.cluster_authorization_failed, "producer ids are allocated to nodes")


async def describe_log_dirs(node: Node, request: DescribeLogDirsRequest, _client: Client) -> Fields:
    """How much each partition takes on disk (KIP-113, KIP-827)."""
    asked = None
    if request.topics is not None:
        asked = {(topic.topic, index) for topic in request.topics for index in topic.partitions}
    topics: dict[str, list[Fields]] = {}
    for (topic, index), partition in sorted(node.logs.partitions.items()):
        if asked is None or (topic, index) in asked:
            topics.setdefault(topic, []).append(
                {
                    "partition_index": index,
                    "partition_size": partition.size_bytes,
                    "offset_lag": 0,
                    "is_future_key": False,
                }
            )
    usage = shutil.disk_usage(node.settings.data_dir)
    return {
        "error_code": ErrorCode.none,
        "results": [
            {
                "error_code": ErrorCode.none,
                "log_dir": str(node.settings.data_dir.resolve()),
                "topics": [{"name": topic, "partitions": parts} for topic, parts in topics.items()],
                "total_bytes": usage.total,
                "usable_bytes": usage.free,
            }
        ],
    }
