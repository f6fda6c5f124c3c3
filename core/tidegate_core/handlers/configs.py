"""Settings: DescribeConfigs, AlterConfigs, IncrementalAlterConfigs. Topics' can be changed, the node's only read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from tidegate_core.log.config import LogConfig
from tidegate_core.metadata.assignments import config_of
from tidegate_core.metadata.names import check_not_internal
from tidegate_core.metadata.topic_settings import describe_settings, note_on
from tidegate_core.node import Client, Node
from tidegate_core.protocol.error_codes import ACCEPTED, KafkaError, refusal_of
from tidegate_core.protocol.translate import Fields
from tidegate_wire.kafka.messages import ErrorCode

if TYPE_CHECKING:
    from kio.schema.alter_configs.v2.request import AlterConfigsRequest
    from kio.schema.describe_configs.v4.request import DescribeConfigsRequest
    from kio.schema.incremental_alter_configs.v1.request import IncrementalAlterConfigsRequest


class ResourceType(IntEnum):
    """What a setting belongs to."""

    TOPIC = 2
    BROKER = 4


class Operation(IntEnum):
    """What IncrementalAlterConfigs does to a setting (KIP-339)."""

    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


class _Source(IntEnum):
    DYNAMIC_TOPIC = 1
    STATIC_BROKER = 4
    DEFAULT = 5


class _Type(IntEnum):
    BOOLEAN = 1
    STRING = 2
    LONG = 5
    DOUBLE = 6
    LIST = 7


_LIST_SETTINGS: Final = frozenset({"cleanup.policy"})
_OTHER_TYPES: Final = {
    "cleanup.policy": _Type.LIST,
    "message.timestamp.type": _Type.STRING,
    "min.cleanable.dirty.ratio": _Type.DOUBLE,
}
_KAFKA_DEFAULTS: Final = LogConfig().to_names()
_TEXTS: Final = frozenset({"compression.type", "message.format.version"})
_LISTS: Final = frozenset({"leader.replication.throttled.replicas", "follower.replication.throttled.replicas"})


async def describe_configs(node: Node, request: DescribeConfigsRequest, _client: Client) -> Fields:
    """The settings of topics and of this node."""
    results = []
    for resource in request.resources:
        refusal = ACCEPTED
        configs: list[dict[str, Any]] = []
        try:
            configs = _configs_of(node, resource, request)
        except Exception as error:  # becomes this resource's answer
            refusal = refusal_of(error)
        keys = resource.configuration_keys
        results.append(
            {
                "error_code": refusal.code,
                "error_message": refusal.message,
                "resource_type": resource.resource_type,
                "resource_name": resource.resource_name,
                "configs": [config for config in configs if not keys or config["name"] in keys],
            }
        )
    return {"results": results}


def _configs_of(node: Node, resource: Any, request: DescribeConfigsRequest) -> list[dict[str, Any]]:
    if resource.resource_type == ResourceType.TOPIC:
        return _topic_configs(node, resource, request)
    if resource.resource_type == ResourceType.BROKER:
        return _node_configs(node, resource.resource_name)
    raise KafkaError(ErrorCode.invalid_request, f"nothing of type {resource.resource_type} has settings")


def _topic_configs(node: Node, resource: Any, request: DescribeConfigsRequest) -> list[dict[str, Any]]:
    name = resource.resource_name
    topic = node.image.topics.get(name)
    if topic is None:
        raise KafkaError(ErrorCode.unknown_topic_or_partition, f"there is no topic {name!r}")
    node_defaults = node.settings.topic_defaults
    config = config_of(topic.settings, node_defaults)
    defaults = describe_settings(LogConfig(), {}, len(topic.replicas[0]))
    configs = []
    for setting, value in describe_settings(config, topic.settings, len(topic.replicas[0])).items():
        layers = [
            (source, text)
            for source, text in (
                (_Source.DYNAMIC_TOPIC, topic.settings.get(setting)),
                (_Source.STATIC_BROKER, node_defaults.get(setting)),
                (_Source.DEFAULT, defaults[setting]),
            )
            if text is not None
        ]
        configs.append(
            {
                "name": setting,
                "value": value,
                "read_only": False,
                "config_source": layers[0][0],
                "is_sensitive": False,
                "synonyms": [{"name": setting, "value": text, "source": source} for source, text in layers]
                if request.include_synonyms
                else [],
                "config_type": _type_of(setting, value),
                "documentation": note_on(setting) if request.include_documentation else None,
            }
        )
    return configs


def _type_of(setting: str, value: str) -> _Type:
    if setting in _LISTS:
        return _Type.LIST
    if setting in _TEXTS:
        return _Type.STRING
    if value.lower() in ("true", "false"):
        return _Type.BOOLEAN
    return _OTHER_TYPES.get(setting, _Type.LONG)


def _node_configs(node: Node, name: str) -> list[dict[str, Any]]:
    """This node's settings by the names that Kafka has for the same things."""
    settings = node.settings
    if name not in ("", str(settings.node_id)):
        raise KafkaError(ErrorCode.invalid_request, f"this is node {settings.node_id}, not {name!r}")
    values: dict[str, tuple[str, _Type]] = {
        "broker.id": (str(settings.node_id), _Type.LONG),
        "advertised.listeners": (f"PLAINTEXT://{node.advertised}", _Type.STRING),
        "log.dirs": (str(settings.data_dir), _Type.STRING),
        "num.partitions": (str(settings.default_partitions), _Type.LONG),
        "default.replication.factor": (str(settings.default_replication_factor), _Type.LONG),
        "auto.create.topics.enable": (str(settings.auto_create_topics).lower(), _Type.BOOLEAN),
        "offsets.topic.num.partitions": (str(settings.offsets_partitions), _Type.LONG),
        "offsets.retention.minutes": (str(settings.offsets_retention_minutes), _Type.LONG),
        "max.connections": (str(settings.connections_max), _Type.LONG),
        "connections.max.idle.ms": (str(int(settings.connection_idle_s * 1000)), _Type.LONG),
        "socket.request.max.bytes": (str(settings.request_bytes_max), _Type.LONG),
        "fetch.max.bytes": (str(settings.fetch_bytes_max), _Type.LONG),
        "group.initial.rebalance.delay.ms": (str(settings.group_initial_delay_ms), _Type.LONG),
        "group.max.size": (str(settings.group_members_max), _Type.LONG),
        "group.min.session.timeout.ms": (str(settings.group_session_timeout_min_ms), _Type.LONG),
        "group.max.session.timeout.ms": (str(settings.group_session_timeout_max_ms), _Type.LONG),
    }
    return [
        {
            "name": setting,
            "value": value,
            "read_only": True,
            "config_source": _Source.STATIC_BROKER,
            "is_sensitive": False,
            "synonyms": [],
            "config_type": kind,
            "documentation": None,
        }
        for setting, (value, kind) in values.items()
    ]


Settings = Mapping[str, str]


async def alter_configs(node: Node, request: AlterConfigsRequest, client: Client) -> Fields:
    """Replace all settings of a topic."""
    responses = []
    for resource in request.resources:
        given = {config.name: config.value for config in resource.configs if config.value is not None}

        def replace(_before: Settings, given: Settings = given) -> Settings:
            return given

        responses.append(await _alter(node, client, resource, replace, validates_only=request.validate_only))
    return {"responses": responses}


async def incremental_alter_configs(node: Node, request: IncrementalAlterConfigsRequest, client: Client) -> Fields:
    """Change some settings of a topic (KIP-339)."""
    responses = []
    for resource in request.resources:

        def change(before: Settings, configs: Any = resource.configs) -> Settings:
            settings = dict(before)
            for config in configs:
                _change_one(node, settings, config)
            return settings

        responses.append(await _alter(node, client, resource, change, validates_only=request.validate_only))
    return {"responses": responses}


async def _alter(
    node: Node, client: Client, resource: Any, change: Callable[[Settings], Settings], *, validates_only: bool
) -> Fields:
    refusal = ACCEPTED
    name = resource.resource_name
    try:
        _check_alterable(resource)
        client.check_controller()
        if validates_only:
            await node.controller.check_settings(name, change)
        else:
            await node.controller.configure_topic(name, change)
    except Exception as error:  # becomes this resource's answer
        refusal = refusal_of(error)
    return {
        "error_code": refusal.code,
        "error_message": refusal.message,
        "resource_type": resource.resource_type,
        "resource_name": name,
    }


def _check_alterable(resource: Any) -> None:
    if resource.resource_type != ResourceType.TOPIC:
        raise KafkaError(ErrorCode.invalid_request, "only topics' settings can be changed while the node runs")
    check_not_internal(resource.resource_name)


def _change_one(node: Node, settings: dict[str, str], config: Any) -> None:
    name, operation, value = config.name, config.config_operation, config.value
    if operation == Operation.DELETE:
        settings.pop(name, None)
        return
    if value is None:
        raise KafkaError(ErrorCode.invalid_config, f"{name}: a value is missing")
    if operation == Operation.SET:
        settings[name] = value
        return
    if operation not in (Operation.APPEND, Operation.SUBTRACT) or name not in _LIST_SETTINGS:
        raise KafkaError(ErrorCode.invalid_config, f"{name}: operation {operation} is for lists, and this is none")
    current = settings.get(name) or node.settings.topic_defaults.get(name) or _KAFKA_DEFAULTS[name]
    items = [item for item in current.split(",") if item]
    for item in value.split(","):
        if operation == Operation.APPEND and item not in items:
            items.append(item)
        elif operation == Operation.SUBTRACT and item in items:
            items.remove(item)
    settings[name] = ",".join(items)
