"""Topics, their settings and the node's: what admin clients ask."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.server.harness import RawClient, batch_of, running_core, seconds, values_of
from tidegate_core.protocol.versions import VERSIONS, Api
from tidegate_wire.kafka.messages import ErrorCode, decode_response, response_type

TOPIC, BROKER = 2, 4
SET, DELETE, APPEND, SUBTRACT = range(4)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RawClient]:
    async with running_core(tmp_path) as address, RawClient.connect(address) as connected:
        yield connected


def wanted(name: str, partitions: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "num_partitions": partitions,
        "replication_factor": 1,
        "assignments": [],
        "configs": [],
    } | fields


# ApiVersions.


@pytest.mark.parametrize("version", range(5))
async def test_every_version_of_api_versions_tells_the_same_ranges(client: RawClient, version: int) -> None:
    response = await client.ask(Api.API_VERSIONS, version)
    ranges = {api.api_key: (api.min_version, api.max_version) for api in response.api_keys}
    assert ranges == {int(api): tuple(versions) for api, versions in VERSIONS.items()}
    assert ranges[Api.PRODUCE] == (0, 11)
    assert ranges[Api.FETCH] == (4, 12)


async def test_an_unknown_version_of_api_versions_is_answered_in_version_0(client: RawClient) -> None:
    client.writer.write(b"\0\0\0\x0a" + b"\0\x12" + b"\0\x63" + b"\0\0\0\x05" + b"\xff\xff")
    frame = await client.receive_frame()
    response: Any
    correlation_id, response = decode_response(response_type(Api.API_VERSIONS, 0), frame)
    assert correlation_id == 5
    assert response.error_code is ErrorCode.unsupported_version
    assert len(response.api_keys) == len(VERSIONS)


# Metadata.


@pytest.mark.parametrize("version", range(13))
async def test_every_version_of_metadata_names_node_topics_and_leaders(client: RawClient, version: int) -> None:
    await client.create_topic("t", 2)
    response = await client.ask(Api.METADATA, version, topics=[{"name": "t"}])
    (broker,) = response.brokers
    assert (broker.node_id, broker.host) == (1, "127.0.0.1")
    (topic,) = response.topics
    assert (topic.error_code, topic.name) == (ErrorCode.none, "t")
    assert [(part.partition_index, part.leader_id) for part in topic.partitions] == [(0, 1), (1, 1)]


async def test_all_topics_are_told_but_the_metadata_log(client: RawClient) -> None:
    await client.create_topic("b")
    await client.create_topic("a")
    await client.ask(Api.FIND_COORDINATOR, 4, key_type=0, coordinator_keys=["g"])
    response = await client.ask(Api.METADATA, 12, topics=None)
    assert [(topic.name, topic.is_internal) for topic in response.topics] == [
        ("__consumer_offsets", True),
        ("a", False),
        ("b", False),
    ]


async def test_a_topic_is_made_when_it_is_first_asked_for(tmp_path: Path) -> None:
    async with running_core(tmp_path, default_partitions=3) as address, RawClient.connect(address) as client:
        response = await client.ask(Api.METADATA, 12, topics=[{"name": "new"}])
        assert len(response.topics[0].partitions) == 3
        assert (await client.produce("new", batch_of(b"a"), partition=2)).error_code is ErrorCode.none


async def test_a_topic_is_not_made_where_client_or_node_do_not_want_it(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        response = await client.ask(Api.METADATA, 12, topics=[{"name": "t"}], allow_auto_topic_creation=False)
        assert response.topics[0].error_code is ErrorCode.unknown_topic_or_partition
        response = await client.ask(Api.METADATA, 12, topics=[{"name": "no/good"}])
        assert response.topics[0].error_code is ErrorCode.invalid_topic_exception
        response = await client.ask(Api.METADATA, 12, topics=[{"name": None, "topic_id": uuid.uuid4()}])
        assert response.topics[0].error_code is ErrorCode.unknown_topic_id
    async with running_core(tmp_path, auto_create_topics=False) as address, RawClient.connect(address) as client:
        response = await client.ask(Api.METADATA, 12, topics=[{"name": "t"}])
        assert response.topics[0].error_code is ErrorCode.unknown_topic_or_partition


async def test_a_cached_answer_changes_with_the_topics_and_carries_the_right_correlation_id(client: RawClient) -> None:
    await client.create_topic("t", 1)
    for _ in range(3):
        assert len((await client.ask(Api.METADATA, 9, topics=[{"name": "t"}])).topics[0].partitions) == 1
    await client.ask(Api.CREATE_PARTITIONS, 3, topics=[{"name": "t", "count": 4, "assignments": None}])
    sent = client.send(Api.METADATA, 9, topics=[{"name": "t"}])
    frame = await client.receive_frame()
    response: Any
    correlation_id, response = decode_response(response_type(*sent), frame)
    assert correlation_id == client.correlation_id
    assert len(response.topics[0].partitions) == 4


async def test_the_advertised_address_is_told(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, advertise="core.example:9999", node_id=7) as address,
        RawClient.connect(address) as client,
    ):
        for response in (await client.ask(Api.METADATA, 12, topics=None), await client.ask(Api.DESCRIBE_CLUSTER, 1)):
            (broker,) = response.brokers
            assert (broker.host, broker.port, response.controller_id) == ("core.example", 9999, 7)
        response = await client.ask(Api.FIND_COORDINATOR, 3, key="g")
        assert (response.node_id, response.host, response.port) == (7, "core.example", 9999)


async def test_partitions_are_described_so_many_at_once(client: RawClient) -> None:
    for name, count in (("a", 2), ("b", 3), ("c", 1)):
        await client.create_topic(name, count)

    async def pages(limit: int, *names: str) -> list[list[tuple[str, list[int]]]]:
        found, cursor = [], None
        while True:
            response = await client.ask(
                Api.DESCRIBE_TOPIC_PARTITIONS,
                topics=[{"name": name} for name in names],
                response_partition_limit=limit,
                cursor=cursor,
            )
            found.append(
                [(topic.name, [part.partition_index for part in topic.partitions]) for topic in response.topics]
            )
            if response.next_cursor is None:
                return found
            cursor = {
                "topic_name": response.next_cursor.topic_name,
                "partition_index": response.next_cursor.partition_index,
            }

    whole = [("a", [0, 1]), ("b", [0, 1, 2]), ("c", [0])]
    assert await pages(2000) == [whole]
    assert await pages(0) == [[(name, [index])] for name, indexes in whole for index in indexes]
    assert await pages(2) == [[("a", [0, 1])], [("b", [0, 1])], [("b", [2]), ("c", [0])]]
    assert await pages(5, "c", "b", "nowhere") == [[("b", [0, 1, 2]), ("c", [0]), ("nowhere", [])]]


# CreateTopics and DeleteTopics.


@pytest.mark.parametrize("version", range(2, 8))
async def test_a_topic_is_created_in_every_version(client: RawClient, version: int) -> None:
    response = await client.ask(Api.CREATE_TOPICS, version, topics=[wanted("t", 3)])
    assert response.topics[0].error_code is ErrorCode.none
    assert len((await client.ask(Api.METADATA, 12, topics=[{"name": "t"}])).topics[0].partitions) == 3
    again = await client.ask(Api.CREATE_TOPICS, version, topics=[wanted("t", 3)])
    assert again.topics[0].error_code is ErrorCode.topic_already_exists


@pytest.mark.parametrize(
    ("topic", "error"),
    [
        (wanted("bad name"), ErrorCode.invalid_topic_exception),
        (wanted(".."), ErrorCode.invalid_topic_exception),
        (wanted("x" * 250), ErrorCode.invalid_topic_exception),
        (wanted("__consumer_offsets"), ErrorCode.invalid_topic_exception),
        (wanted("__cluster_metadata"), ErrorCode.invalid_topic_exception),
        (wanted("t", 0), ErrorCode.invalid_partitions),
        (wanted("t", -5), ErrorCode.invalid_partitions),
        (wanted("t", 101), ErrorCode.policy_violation),
        (wanted("t", replication_factor=3), ErrorCode.invalid_replication_factor),
        (wanted("t", configs=[{"name": "no.such", "value": "1"}]), ErrorCode.invalid_config),
        (wanted("t", configs=[{"name": "retention.ms", "value": "soon"}]), ErrorCode.invalid_config),
        (
            wanted("t", -1, replication_factor=-1, assignments=[{"partition_index": 0, "broker_ids": (9,)}]),
            ErrorCode.invalid_replica_assignment,
        ),
    ],
)
async def test_a_topic_that_cannot_be_is_refused_with_a_reason(
    tmp_path: Path, topic: dict[str, Any], error: ErrorCode
) -> None:
    async with running_core(tmp_path, partitions_max=100) as address, RawClient.connect(address) as client:
        response = await client.ask(Api.CREATE_TOPICS, 7, topics=[topic, wanted("fine")])
        refused, made = response.topics
        assert (refused.error_code, made.error_code) == (error, ErrorCode.none)
        assert refused.error_message


async def test_defaults_assignments_and_validation_of_new_topics(client: RawClient) -> None:
    assigned = [{"partition_index": index, "broker_ids": (1,)} for index in range(2)]
    topics = [
        wanted("default", -1, replication_factor=-1),
        wanted("assigned", -1, replication_factor=-1, assignments=assigned),
        wanted("twice"),
        wanted("twice"),
    ]
    response = await client.ask(Api.CREATE_TOPICS, 7, topics=topics, validate_only=True)
    codes = [topic.error_code for topic in response.topics]
    assert codes == [ErrorCode.none, ErrorCode.none, ErrorCode.invalid_request, ErrorCode.invalid_request]
    assert (await client.ask(Api.METADATA, 12, topics=None)).topics == ()
    response = await client.ask(Api.CREATE_TOPICS, 7, topics=topics[:2])
    assert [topic.num_partitions for topic in response.topics] == [4, 2]


async def test_a_deleted_topic_is_gone_and_can_be_made_again_empty(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t", 2)
        await client.produce("t", batch_of(b"old"))
        response = await client.ask(Api.DELETE_TOPICS, 4, topic_names=["t", "nowhere"])
        codes = [topic.error_code for topic in response.responses]
        assert codes == [ErrorCode.none, ErrorCode.unknown_topic_or_partition]
        await client.create_topic("t", 1)
        assert (await client.fetch("t", 0)).high_watermark == 0
        response = await client.ask(Api.DELETE_TOPICS, 6, topics=[{"name": None, "topic_id": uuid.uuid4()}])
        assert response.responses[0].error_code is ErrorCode.unknown_topic_id
        response = await client.ask(Api.DELETE_TOPICS, 6, topics=[{"name": "__consumer_offsets"}])
        assert response.responses[0].error_code is ErrorCode.invalid_topic_exception
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        assert len((await client.ask(Api.METADATA, 12, topics=[{"name": "t"}])).topics[0].partitions) == 1


async def test_a_topic_gets_more_partitions_and_never_fewer(client: RawClient) -> None:
    await client.create_topic("t", 2)

    async def grow(count: int, **fields: Any) -> ErrorCode:
        topic = {"name": "t", "count": count, "assignments": None} | fields
        response = await client.ask(Api.CREATE_PARTITIONS, 3, topics=[topic], timeout=seconds(10))
        code: ErrorCode = response.results[0].error_code
        return code

    assert await grow(2) is ErrorCode.invalid_partitions
    assert await grow(3, assignments=[{"broker_ids": (5,)}]) is ErrorCode.invalid_replica_assignment
    assert await grow(3, name="nowhere") is ErrorCode.unknown_topic_or_partition
    assert await grow(5) is ErrorCode.none
    assert (await client.produce("t", batch_of(b"a"), partition=4)).error_code is ErrorCode.none


# What is on the disk.


async def test_a_directory_that_the_metadata_does_not_know_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    async with running_core(tmp_path / "elsewhere") as address, RawClient.connect(address) as client:
        await client.create_topic("stranger")
        await client.produce("stranger", batch_of(b"precious"))
    stranger = tmp_path / "data" / "stranger-0"
    shutil.copytree(tmp_path / "elsewhere" / "data" / "stranger-0", stranger)
    segments = {path.name: path.read_bytes() for path in stranger.glob("*.log")}
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        assert (await client.fetch("stranger", 0)).error_code is ErrorCode.unknown_topic_or_partition
        topic = wanted("stranger")
        response = await client.ask(Api.CREATE_TOPICS, 7, topics=[topic], timeout=seconds(0.1))
        assert response.topics[0].error_code is ErrorCode.none
        assert (await client.fetch("stranger", 0)).error_code is ErrorCode.kafka_storage_error
    assert {path.name: path.read_bytes() for path in stranger.glob("*.log")} == segments


async def test_a_partition_whose_directory_is_gone_does_not_begin_anew(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t", 2)
        await client.produce("t", batch_of(b"precious"))
    (tmp_path / "data" / "t-0").rename(tmp_path / "gone")
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        assert (await client.fetch("t", 0)).error_code is ErrorCode.kafka_storage_error
        assert (await client.produce("t", batch_of(b"a"))).error_code is ErrorCode.kafka_storage_error
        assert (await client.produce("t", batch_of(b"a"), partition=1)).error_code is ErrorCode.none
        (part, _) = (await client.ask(Api.METADATA, 12, topics=[{"name": "t"}])).topics[0].partitions
        assert (part.error_code, part.leader_id) == (ErrorCode.leader_not_available, -1)
    (tmp_path / "gone").rename(tmp_path / "data" / "t-0")
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        assert values_of((await client.fetch("t", 0)).records) == [b"precious"]


async def test_a_creation_that_a_crash_cut_short_is_finished(tmp_path: Path) -> None:
    """Its record was committed, and the crash came before the directories, and before anybody noted that they are."""
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t", 2)
    shutil.rmtree(tmp_path / "data" / "t-1")
    (tmp_path / "data" / "votes").unlink()
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        for index in range(2):
            assert (await client.produce("t", batch_of(b"a"), partition=index)).error_code is ErrorCode.none


async def sizes(client: RawClient) -> Any:
    return (await client.ask(Api.DESCRIBE_LOG_DIRS, 4, topics=None)).results[0]


async def test_a_deletion_that_a_crash_cut_short_is_finished(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
        shutil.copytree(data / "t-0", tmp_path / "kept")
        await client.ask(Api.DELETE_TOPICS, 6, topics=[{"name": "t"}])
        async with asyncio.timeout(10):
            while True:
                if all(topic.name != "t" for topic in (await sizes(client)).topics):
                    break
                await asyncio.sleep(0.01)
    (tmp_path / "kept").rename(data / "t-0")
    async with running_core(tmp_path):
        pass
    assert not (data / "t-0").exists()


# Settings.


async def describe(client: RawClient, name: str = "t", kind: int = TOPIC, **fields: Any) -> dict[str, Any]:
    resource = {"resource_type": kind, "resource_name": name, "configuration_keys": None} | fields
    response = await client.ask(Api.DESCRIBE_CONFIGS, 4, resources=[resource], include_synonyms=True)
    (result,) = response.results
    assert result.error_code is ErrorCode.none, result
    return {config.name: config for config in result.configs}


async def test_settings_are_described_with_their_sources(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, topic_defaults={"retention.ms": "5000", "segment.ms": "6000"}) as address,
        RawClient.connect(address) as client,
    ):
        await client.create_topic("t", 1, retention_ms="1234", cleanup_policy="compact")
        configs = await describe(client)
        told = {name: (configs[name].value, configs[name].config_source) for name in configs}
        assert told["retention.ms"] == ("1234", 1)
        assert told["segment.ms"] == ("6000", 4)
        assert told["cleanup.policy"] == ("compact", 1)
        assert told["segment.bytes"] == (str(2**30), 5)
        synonyms = [(synonym.value, synonym.source) for synonym in configs["retention.ms"].synonyms]
        assert synonyms == [("1234", 1), ("5000", 4), ("604800000", 5)]
        assert set(await describe(client, configuration_keys=("retention.ms",))) == {"retention.ms"}
        node = await describe(client, "1", BROKER)
        assert (node["num.partitions"].value, node["num.partitions"].read_only) == ("4", True)


@pytest.mark.parametrize("version", range(1, 5))
async def test_settings_are_described_in_every_version(client: RawClient, version: int) -> None:
    await client.create_topic("t")
    resources = [
        {"resource_type": kind, "resource_name": name} for kind, name in ((2, "t"), (2, "u"), (4, "9"), (8, ""))
    ]
    response = await client.ask(Api.DESCRIBE_CONFIGS, version, resources=resources)
    assert [result.error_code for result in response.results] == [
        ErrorCode.none,
        ErrorCode.unknown_topic_or_partition,
        ErrorCode.invalid_request,
        ErrorCode.invalid_request,
    ]


async def test_settings_are_changed_one_by_one_and_survive_a_restart(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t", 1, segment_ms="7777", retention_bytes="100000")

        async def alter(*changes: tuple[str, int, str | None], validate_only: bool = False) -> ErrorCode:
            configs = [{"name": name, "config_operation": what, "value": value} for name, what, value in changes]
            resource = {"resource_type": TOPIC, "resource_name": "t", "configs": configs}
            response = await client.ask(
                Api.INCREMENTAL_ALTER_CONFIGS, 1, resources=[resource], validate_only=validate_only
            )
            code: ErrorCode = response.responses[0].error_code
            return code

        assert await alter(("retention.ms", SET, "99"), ("segment.ms", DELETE, None)) is ErrorCode.none
        assert await alter(("cleanup.policy", APPEND, "compact")) is ErrorCode.none
        assert (await describe(client))["cleanup.policy"].value == "compact,delete"
        assert await alter(("cleanup.policy", SUBTRACT, "delete")) is ErrorCode.none
        assert await alter(("retention.ms", SET, "1"), validate_only=True) is ErrorCode.none
        assert await alter(("retention.ms", SET, "soon")) is ErrorCode.invalid_config
        assert await alter(("retention.ms", APPEND, "1")) is ErrorCode.invalid_config
        assert await alter(("retention.ms", SET, None)) is ErrorCode.invalid_config
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        configs = await describe(client)
        values = [configs[name].value for name in ("retention.ms", "cleanup.policy", "retention.bytes", "segment.ms")]
        assert values == ["99", "compact", "100000", "604800000"]


async def test_alter_configs_replaces_all_settings(client: RawClient) -> None:
    await client.create_topic("t", 1, segment_ms="7777", retention_bytes="100000")
    configs = [{"name": "retention.ms", "value": "50"}, {"name": "segment.bytes", "value": None}]
    resource = {"resource_type": TOPIC, "resource_name": "t", "configs": configs}
    for validates, expected in ((True, "604800000"), (False, "50")):
        response = await client.ask(Api.ALTER_CONFIGS, 2, resources=[resource], validate_only=validates)
        assert response.responses[0].error_code is ErrorCode.none
        assert (await describe(client))["retention.ms"].value == expected
    assert (await describe(client))["segment.ms"].value == "604800000"
    for kind, name in ((TOPIC, "nowhere"), (TOPIC, "__consumer_offsets"), (BROKER, "1")):
        resource = {"resource_type": kind, "resource_name": name, "configs": []}
        response = await client.ask(Api.ALTER_CONFIGS, 2, resources=[resource])
        assert response.responses[0].error_code is not ErrorCode.none


async def test_a_changed_setting_holds_for_the_next_batch(client: RawClient) -> None:
    await client.create_topic("t")
    assert (await client.produce("t", batch_of(b"x" * 500))).error_code is ErrorCode.none
    configs = [{"name": "max.message.bytes", "config_operation": SET, "value": "100"}]
    resource = {"resource_type": TOPIC, "resource_name": "t", "configs": configs}
    await client.ask(Api.INCREMENTAL_ALTER_CONFIGS, 1, resources=[resource])
    assert (await client.produce("t", batch_of(b"x" * 500))).error_code is ErrorCode.message_too_large


async def test_a_topic_with_log_append_time_tells_its_producers(client: RawClient) -> None:
    await client.create_topic("t", 1, message_timestamp_type="LogAppendTime")
    answer = await client.produce("t", batch_of(b"a", timestamp_ms=5))
    assert answer.log_append_time is not None
    assert values_of((await client.fetch("t", 0)).records) == [b"a"]


@pytest.mark.parametrize("version", range(1, 5))
async def test_the_size_of_partitions_on_disk_is_told(client: RawClient, version: int) -> None:
    await client.create_topic("t", 2)
    await client.produce("t", batch_of(b"x" * 1000))
    for topics in (None, [{"topic": "t", "partitions": (0, 1)}]):
        response = await client.ask(Api.DESCRIBE_LOG_DIRS, version, topics=topics)
        sizes = {topic.name: [part.partition_size for part in topic.partitions] for topic in response.results[0].topics}
        assert sizes["t"][0] > 1000
        assert sizes["t"][1] == 0


async def test_only_brokers_are_described(client: RawClient) -> None:
    response = await client.ask(Api.DESCRIBE_CLUSTER, 1, endpoint_type=2)
    assert response.error_code is ErrorCode.unsupported_endpoint_type
    response = await client.ask(Api.DESCRIBE_CLUSTER, 0, include_cluster_authorized_operations=True)
    assert response.cluster_authorized_operations > 0
