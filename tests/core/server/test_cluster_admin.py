"""What admin clients ask of a cluster, through any of its nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.core.server.harness import ClusterNodes, RawClient, batch_of, running_cluster, seconds, values_of
from tidegate_core.protocol.versions import Api
from tidegate_wire.kafka.messages import ErrorCode

METADATA = "__cluster_metadata"
TOPIC, SET = 2, 0
PREFERRED, UNCLEAN = 0, 1

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T | None]]) -> T:
    async with asyncio.timeout(20):
        while True:
            found = await look()
            if found is not None:
                return found
            await asyncio.sleep(0.02)


class Admin:
    """A connection to each node that runs."""

    def __init__(self, nodes: ClusterNodes, clients: dict[int, RawClient]) -> None:
        self.nodes = nodes
        self.clients = clients

    def __getitem__(self, node_id: int) -> RawClient:
        return self.clients[node_id]

    async def follower(self) -> RawClient:
        """A node that is not the controller."""
        controller = await self.nodes.controller()
        return self[next(node_id for node_id in self.clients if node_id != controller)]

    async def topic(self, name: str, node_id: int = 1) -> Any:
        response = await self[node_id].ask(Api.METADATA, 12, topics=[{"name": name}], allow_auto_topic_creation=False)
        return response.topics[0]

    async def create(self, topic: str, *assignment: tuple[int, ...], validate_only: bool = False, **fields: Any) -> Any:
        """Through a node that is not the controller."""
        wanted: dict[str, Any] = {
            "name": topic,
            "num_partitions": -1,
            "replication_factor": -1,
            "assignments": [],
            "configs": [],
        }
        if assignment:
            wanted["assignments"] = [
                {"partition_index": index, "broker_ids": nodes} for index, nodes in enumerate(assignment)
            ]
        client = await self.follower()
        response = await client.ask(Api.CREATE_TOPICS, 7, topics=[wanted | fields], validate_only=validate_only)
        return response.topics[0]

    async def everywhere(self, name: str) -> None:
        """Every node knows the topic's leaders."""

        async def known() -> bool | None:
            topics = [await self.topic(name, node_id) for node_id in self.clients]
            return (
                all(
                    topic.error_code is ErrorCode.none and all(part.leader_id > 0 for part in topic.partitions)
                    for topic in topics
                )
                or None
            )

        await eventually(known)

    async def leader_of(self, name: str, index: int = 0) -> int:
        """Whom all nodes take for the leader."""

        async def agreed() -> int | None:
            said: set[int] = set()
            for node_id in self.clients:
                partitions = (await self.topic(name, node_id)).partitions
                said.add(int(partitions[index].leader_id) if index < len(partitions) else -1)
            return said.pop() if len(said) == 1 and -1 not in said else None

        return await eventually(agreed)


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    async with running_cluster(tmp_path) as nodes, AsyncExitStack() as stack:
        clients = {
            node_id: await stack.enter_async_context(RawClient.connect(address))
            for node_id, address in nodes.addresses.items()
        }
        yield Admin(nodes, clients)


# The cluster.


async def test_every_node_names_all_nodes_and_the_controller(admin: Admin) -> None:
    controller = await admin.nodes.controller()
    for client in admin.clients.values():
        for response in (await client.ask(Api.METADATA, 12, topics=[]), await client.ask(Api.DESCRIBE_CLUSTER)):
            assert response.controller_id == controller
            told = {broker.port for broker in response.brokers}
            assert told == {address.port for address in admin.nodes.addresses.values()}


async def test_the_metadatas_quorum_is_described_through_any_node(admin: Admin) -> None:
    controller = await admin.nodes.controller()
    for client in admin.clients.values():
        topics = [{"topic_name": METADATA, "partitions": [{"partition_index": 0}]}]
        response = await client.ask(Api.DESCRIBE_QUORUM, 2, topics=topics)
        (part,) = response.topics[0].partitions
        assert (part.error_code, part.leader_id) == (ErrorCode.none, controller)
        assert part.high_watermark > 0
        assert {voter.replica_id for voter in part.current_voters} == {1, 2, 3}
        assert all(voter.replica_directory_id is not None for voter in part.current_voters)
        assert all(voter.last_caught_up_timestamp > 10**12 for voter in part.current_voters)
        assert part.observers == ()
        assert {node.node_id for node in response.nodes} == {1, 2, 3}


async def test_a_topics_quorum_is_described_by_its_leader_and_others_say_who_that_is(admin: Admin) -> None:
    await admin.create("t", (2, 3))
    leader = await admin.leader_of("t")
    for node_id, client in admin.clients.items():
        parts = [{"partition_index": index} for index in (0, 1)]
        response = await client.ask(Api.DESCRIBE_QUORUM, 2, topics=[{"topic_name": "t", "partitions": parts}])
        known, unknown = response.topics[0].partitions
        is_leader = node_id == leader
        assert known.error_code is (ErrorCode.none if is_leader else ErrorCode.not_leader_or_follower)
        assert known.leader_id == leader
        assert {voter.replica_id for voter in known.current_voters} == ({2, 3} if is_leader else set())
        assert unknown.error_code is ErrorCode.unknown_topic_or_partition


# Topics.


async def test_a_topic_made_through_any_node_is_replicated_and_can_be_written_at_once(admin: Admin) -> None:
    created = await admin.create("t", num_partitions=6)
    assert (created.error_code, created.num_partitions, created.replication_factor) == (ErrorCode.none, 6, 3)
    controller = await admin.nodes.controller()
    topic = await admin.topic("t", controller)
    assert topic.topic_id == created.topic_id
    assert {part.error_code for part in topic.partitions} == {ErrorCode.none}
    assert all(sorted(part.replica_nodes) == [1, 2, 3] for part in topic.partitions)
    for part in topic.partitions:
        answer = await admin[part.leader_id].produce("t", batch_of(b"a"), partition=part.partition_index)
        assert answer.error_code is ErrorCode.none
    led = [part.leader_id for part in topic.partitions]
    assert {led.count(node_id) for node_id in (1, 2, 3)} == {2}
    by_id = await admin[controller].ask(Api.METADATA, 12, topics=[{"name": None, "topic_id": created.topic_id}])
    assert by_id.topics[0].name == "t"


async def test_a_topic_is_made_on_demand_through_a_node_that_is_not_the_controller(admin: Admin) -> None:
    client = await admin.follower()
    response = await client.ask(Api.METADATA, 12, topics=[{"name": "new"}])
    (topic,) = response.topics
    assert topic.error_code is ErrorCode.none
    assert {part.error_code for part in topic.partitions} == {ErrorCode.none}
    assert all(len(part.replica_nodes) == 3 for part in topic.partitions)


REFUSED: list[tuple[dict[str, Any], ErrorCode]] = [
    ({"name": "bad/name"}, ErrorCode.invalid_topic_exception),
    ({"name": "__consumer_offsets"}, ErrorCode.invalid_topic_exception),
    ({"num_partitions": 0}, ErrorCode.invalid_partitions),
    ({"replication_factor": 4}, ErrorCode.invalid_replication_factor),
    ({"assignments": [{"partition_index": 0, "broker_ids": (1, 9)}]}, ErrorCode.invalid_replica_assignment),
    ({"assignments": [{"partition_index": 0, "broker_ids": (1, 1)}]}, ErrorCode.invalid_replica_assignment),
    ({"assignments": [{"partition_index": 1, "broker_ids": (1,)}]}, ErrorCode.invalid_replica_assignment),
    ({"configs": [{"name": "min.insync.replicas", "value": "3"}]}, ErrorCode.invalid_config),
    ({"configs": [{"name": "no.such", "value": "3"}]}, ErrorCode.invalid_config),
]


async def test_refusals_come_through_with_their_reasons(admin: Admin) -> None:
    for fields, error in REFUSED:
        for validate_only in (True, False):
            refused = await admin.create("t", validate_only=validate_only, **fields)
            assert refused.error_code is error, fields
            assert refused.error_message
    assert (await admin.create("t", validate_only=True)).error_code is ErrorCode.none
    assert (await admin.topic("t")).error_code is ErrorCode.unknown_topic_or_partition


async def test_topics_are_changed_and_deleted_through_any_node(admin: Admin) -> None:
    created = await admin.create("t", (1, 2), configs=[{"name": "min.insync.replicas", "value": "2"}])
    client = await admin.follower()
    await admin.everywhere("t")
    grown = await client.ask(Api.CREATE_PARTITIONS, 3, topics=[{"name": "t", "count": 3, "assignments": None}])
    assert grown.results[0].error_code is ErrorCode.none
    change = {"name": "retention.ms", "config_operation": SET, "value": "60000"}
    resource = {"resource_type": TOPIC, "resource_name": "t", "configs": [change]}
    altered = await client.ask(Api.INCREMENTAL_ALTER_CONFIGS, 1, resources=[resource])
    assert altered.responses[0].error_code is ErrorCode.none

    async def seen() -> bool | None:
        response = await client.ask(
            Api.DESCRIBE_CONFIGS,
            4,
            resources=[{"resource_type": TOPIC, "resource_name": "t"}],
            include_documentation=True,
        )
        configs = {config.name: config for config in response.results[0].configs}
        assert configs["min.insync.replicas"].value == "2"
        assert "majority" in configs["min.insync.replicas"].documentation
        return configs["retention.ms"].value == "60000" or None

    await eventually(seen)
    await admin.everywhere("t")
    topic = await admin.topic("t")
    assert [len(part.replica_nodes) for part in topic.partitions] == [2, 2, 2]
    deleted = await client.ask(Api.DELETE_TOPICS, 6, topics=[{"name": None, "topic_id": created.topic_id}])
    assert (deleted.responses[0].error_code, deleted.responses[0].name) == (ErrorCode.none, "t")

    async def gone() -> bool | None:
        codes = {(await admin.topic("t", node_id)).error_code for node_id in admin.clients}
        return codes == {ErrorCode.unknown_topic_or_partition} or None

    await eventually(gone)
    again = await client.ask(Api.DELETE_TOPICS, 6, topics=[{"name": "t"}])
    assert again.responses[0].error_code is ErrorCode.unknown_topic_or_partition


async def test_no_two_nodes_give_out_the_same_producer_id(admin: Admin) -> None:
    async def take(client: RawClient) -> list[int]:
        taken = []
        for _ in range(50):
            response = await client.ask(Api.INIT_PRODUCER_ID, 4, transactional_id=None)
            assert response.error_code is ErrorCode.none
            taken.append(int(response.producer_id))
        return taken

    given = await asyncio.gather(*map(take, admin.clients.values()))
    ids = [producer_id for one in given for producer_id in one]
    assert len(set(ids)) == len(ids) == 150


async def test_clients_do_not_allocate_producer_ids(admin: Admin) -> None:
    client = admin[1]
    client.send(Api.ALLOCATE_PRODUCER_IDS, 0, broker_id=1)
    assert await client.closed_by_peer()


async def test_records_are_deleted_on_every_replica_when_that_is_answered(admin: Admin) -> None:
    await admin.create("t", (1, 2, 3))
    leader = await admin.leader_of("t")
    for _ in range(5):
        await admin[leader].produce("t", batch_of(b"a", b"b"))
    parts = [{"partition_index": 0, "offset": 6}]
    response = await admin[leader].ask(
        Api.DELETE_RECORDS, 2, topics=[{"name": "t", "partitions": parts}], timeout=seconds(10)
    )
    (part,) = response.topics[0].partitions
    assert (part.error_code, part.low_watermark) == (ErrorCode.none, 6)
    for offset, error in ((99, ErrorCode.offset_out_of_range), (0, ErrorCode.none)):
        parts = [{"partition_index": 0, "offset": offset}]
        response = await admin[leader].ask(Api.DELETE_RECORDS, 2, topics=[{"name": "t", "partitions": parts}])
        assert response.topics[0].partitions[0].error_code is error
    other = next(node_id for node_id in admin.clients if node_id != leader)
    response = await admin[other].ask(Api.DELETE_RECORDS, 2, topics=[{"name": "t", "partitions": parts}])
    assert response.topics[0].partitions[0].error_code is ErrorCode.not_leader_or_follower
    assert (await admin[leader].fetch("t", 0)).error_code is ErrorCode.offset_out_of_range
    assert values_of((await admin[leader].fetch("t", 6)).records) == [b"a", b"b"] * 2


async def test_records_that_a_replica_in_step_may_still_have_are_not_told_deleted(admin: Admin) -> None:
    await admin.create("t", (1, 2, 3))
    leader = await admin.leader_of("t")
    await admin[leader].produce("t", batch_of(b"a", b"b"))

    async def in_step() -> bool | None:
        (part,) = (await admin.topic("t", leader)).partitions
        return set(part.isr_nodes) == {1, 2, 3} or None

    await eventually(in_step)
    await admin.nodes.stop(next(node_id for node_id in admin.clients if node_id != leader))
    parts = [{"partition_index": 0, "offset": -1}]
    response = await admin[leader].ask(
        Api.DELETE_RECORDS, 2, topics=[{"name": "t", "partitions": parts}], timeout=seconds(0.3)
    )
    assert response.topics[0].partitions[0].error_code is ErrorCode.request_timed_out
    assert (await admin[leader].fetch("t", 0)).error_code is ErrorCode.offset_out_of_range


async def test_offsets_are_told_by_the_leader_only(admin: Admin) -> None:
    await admin.create("t", (1, 2, 3))
    leader = await admin.leader_of("t")
    await admin[leader].produce("t", batch_of(b"a"))
    for node_id, client in admin.clients.items():
        parts = [{"partition_index": 0, "timestamp": -1, "current_leader_epoch": -1}]
        response = await client.ask(Api.LIST_OFFSETS, 7, topics=[{"name": "t", "partitions": parts}])
        (part,) = response.topics[0].partitions
        if node_id == leader:
            assert (part.error_code, part.offset) == (ErrorCode.none, 1)
        else:
            assert part.error_code is ErrorCode.not_leader_or_follower


# Moves and elections.


async def reassign(client: RawClient, target: tuple[int, ...] | None, topic: str = "t", index: int = 0) -> ErrorCode:
    parts = [{"partition_index": index, "replicas": target}]
    response = await client.ask(
        Api.ALTER_PARTITION_REASSIGNMENTS, 1, topics=[{"name": topic, "partitions": parts}], timeout=seconds(10)
    )
    code: ErrorCode = response.responses[0].partitions[0].error_code
    return code


async def moves(client: RawClient, **fields: Any) -> list[Any]:
    response = await client.ask(Api.LIST_PARTITION_REASSIGNMENTS, 0, timeout=seconds(10), **{"topics": None} | fields)
    assert response.error_code is ErrorCode.none
    return [(topic.name, part) for topic in response.topics for part in topic.partitions]


async def test_a_partition_moves_with_its_records_while_it_is_written(admin: Admin) -> None:
    await admin.create("t", (1,))
    for number in range(20):
        assert (await admin[1].produce("t", batch_of(b"%d" % number))).error_code is ErrorCode.none
    client = await admin.follower()
    assert await reassign(client, (2, 3)) is ErrorCode.none

    async def arrived() -> int | None:
        (part,) = (await admin.topic("t", 2)).partitions
        is_there = part.replica_nodes == (2, 3) and set(part.isr_nodes) == {2, 3} and part.leader_id in (2, 3)
        return int(part.leader_id) if is_there and not await moves(client) else None

    leader = await eventually(arrived)
    fetched = await admin[leader].fetch("t", 0)
    assert values_of(fetched.records) == [b"%d" % number for number in range(20)]
    assert (await admin[leader].produce("t", batch_of(b"more"))).error_code is ErrorCode.none


async def test_a_move_that_waits_for_a_dead_node_is_told_and_taken_back(admin: Admin) -> None:
    await admin.create("t", (1, 2))
    client = await admin.follower()
    controller = await admin.nodes.controller()
    assert await reassign(client, None) is ErrorCode.no_reassignment_in_progress
    assert await reassign(client, (1, 9)) is ErrorCode.invalid_replica_assignment
    assert await reassign(client, (1, 2), index=5) is ErrorCode.unknown_topic_or_partition
    assert await reassign(client, (1, 2), topic=METADATA) is ErrorCode.invalid_topic_exception
    if controller == 3:
        pytest.skip("node 3 is the controller, and is to die")
    await admin.nodes.stop(3)
    client = admin[controller]
    del admin.clients[3]
    assert await reassign(client, (1, 3)) is ErrorCode.none
    ((name, move),) = await moves(client, topics=[{"name": "t", "partition_indexes": (0,)}])
    assert (name, move.partition_index) == ("t", 0)
    assert (move.replicas, move.adding_replicas, move.removing_replicas) == ((1, 3, 2), (3,), (2,))
    assert (await admin.topic("t", controller)).partitions[0].replica_nodes == (1, 3, 2)
    assert await moves(client, topics=[{"name": "t", "partition_indexes": (1,)}]) == []
    assert await reassign(client, None) is ErrorCode.none
    assert await moves(client) == []

    async def back() -> bool | None:
        return (await admin.topic("t", controller)).partitions[0].replica_nodes == (1, 2) or None

    await eventually(back)


async def elect(client: RawClient, kind: int = PREFERRED, topics: Any = None) -> Any:
    return await client.ask(Api.ELECT_LEADERS, 2, election_type=kind, topic_partitions=topics, timeout=seconds(10))


async def test_the_preferred_leader_is_elected_wherever_the_partition_is_led(admin: Admin) -> None:
    await admin.create("t", (1, 2, 3))
    client = await admin.follower()
    wanted = [{"topic": "t", "partitions": (0, 7)}]
    assert await reassign(client, (2, 3, 1)) is ErrorCode.none

    async def reordered() -> bool | None:
        has_moved = (await admin.topic("t")).partitions[0].replica_nodes == (2, 3, 1)
        return (has_moved and not await moves(client)) or None

    await eventually(reordered)
    response = await elect(client, topics=wanted)
    known, unknown = response.replica_election_results[0].partition_result
    assert known.error_code in (ErrorCode.none, ErrorCode.election_not_needed)
    assert unknown.error_code is ErrorCode.unknown_topic_or_partition

    async def elected() -> bool | None:
        return await admin.leader_of("t") == 2 or None

    await eventually(elected)
    response = await elect(client, topics=[{"topic": "t", "partitions": (0,)}])
    assert response.replica_election_results[0].partition_result[0].error_code is ErrorCode.election_not_needed
    assert (await elect(client)).replica_election_results == ()


async def test_there_is_no_unclean_election(admin: Admin) -> None:
    await admin.create("t", (1, 2, 3))
    response = await elect(await admin.follower(), UNCLEAN, topics=[{"topic": "t", "partitions": (0,)}])
    (result,) = response.replica_election_results[0].partition_result
    assert result.error_code is ErrorCode.invalid_request
    assert result.error_message


# Without a controller.


async def test_without_a_majority_changes_are_refused_and_what_is_known_is_told(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as nodes:
        controller = await nodes.controller()
        left, *others = [node_id for node_id in nodes.running if node_id != controller]
        async with RawClient.connect(nodes.addresses[left]) as client:
            await client.ask(Api.METADATA, 12, topics=[{"name": "t"}])
            for node_id in (*others, controller):
                await nodes.stop(node_id)
            wanted = {"name": "u", "num_partitions": 1, "replication_factor": 1, "assignments": [], "configs": []}
            response = await client.ask(Api.CREATE_TOPICS, 7, topics=[wanted], timeout=seconds(0.3))
            assert response.topics[0].error_code in (ErrorCode.not_controller, ErrorCode.request_timed_out)
            response = await client.ask(Api.DELETE_TOPICS, 6, topics=[{"name": "t"}], timeout=seconds(0.3))
            assert response.responses[0].error_code in (ErrorCode.not_controller, ErrorCode.request_timed_out)
            assert await reassign_shortly(client) in (ErrorCode.not_controller, ErrorCode.request_timed_out)
            response = await client.ask(Api.METADATA, 12, topics=[{"name": "t"}], allow_auto_topic_creation=False)
            assert response.topics[0].error_code is ErrorCode.none


async def reassign_shortly(client: RawClient) -> ErrorCode:
    parts = [{"partition_index": 0, "replicas": (1,)}]
    response = await client.ask(
        Api.ALTER_PARTITION_REASSIGNMENTS, 1, topics=[{"name": "t", "partitions": parts}], timeout=seconds(0.3)
    )
    code: ErrorCode = response.responses[0].partitions[0].error_code
    return code


async def test_another_controller_goes_on_where_the_one_before_stopped(tmp_path: Path) -> None:
    async with running_cluster(tmp_path) as nodes:
        first = await nodes.controller()
        other = next(node_id for node_id in nodes.running if node_id != first)
        async with RawClient.connect(nodes.addresses[other]) as client:
            before = await client.ask(Api.INIT_PRODUCER_ID, 4, transactional_id=None)
            await client.ask(Api.METADATA, 12, topics=[{"name": "t"}])
            await nodes.stop(first)
            assert await nodes.controller() != first
            wanted = {"name": "t", "num_partitions": 1, "replication_factor": -1, "assignments": [], "configs": []}
            response = await client.ask(Api.CREATE_TOPICS, 7, topics=[wanted, wanted | {"name": "u"}])
            assert [topic.error_code for topic in response.topics] == [
                ErrorCode.topic_already_exists,
                ErrorCode.none,
            ]
            assert response.topics[1].replication_factor == 3  # the dead one has its replica when it comes back
            await nodes.start(first)
        async with RawClient.connect(nodes.addresses[first]) as client:
            after = await client.ask(Api.INIT_PRODUCER_ID, 4, transactional_id=None)
            assert after.producer_id != before.producer_id
            topic = (await client.ask(Api.METADATA, 12, topics=[{"name": "u"}])).topics[0]
            assert sorted(topic.partitions[0].replica_nodes) == [1, 2, 3]
