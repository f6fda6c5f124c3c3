"""Consumer groups over a socket, in every version, and over a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.groups.driver import subscription
from tests.core.server.harness import REPLY_TIMEOUT_S, RawClient, running_core, seconds, values_of
from tidegate_core.protocol.versions import Api
from tidegate_wire.kafka.messages import ErrorCode

JOIN: dict[str, Any] = {
    "session_timeout": seconds(10),
    "rebalance_timeout": seconds(20),
    "protocol_type": "consumer",
    "protocols": [{"name": "range", "metadata": subscription("t")}],
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RawClient]:
    async with (
        running_core(tmp_path, group_initial_delay_ms=0) as address,
        RawClient.connect(address) as connected,
    ):
        await connected.create_topic("t", 2)
        await coordinated(connected)
        yield connected


async def coordinated(client: RawClient, *group_ids: str) -> None:
    """Do what clients do first: ask who keeps the groups, until there is somebody who has read their records."""
    async with asyncio.timeout(REPLY_TIMEOUT_S):
        for group_id in group_ids or ("g",):
            while True:
                found = await client.ask(Api.FIND_COORDINATOR, 4, key_type=0, coordinator_keys=(group_id,))
                described = await client.ask(Api.DESCRIBE_GROUPS, 5, groups=(group_id,))
                if not (found.coordinators[0].error_code or described.groups[0].error_code):
                    break
                await asyncio.sleep(0.01)


async def join(client: RawClient, group_id: str = "g", version: int = 9, **fields: Any) -> Any:
    fields = {"group_id": group_id} | JOIN | fields
    response = await client.ask(Api.JOIN_GROUP, version, **fields)
    if response.error_code is ErrorCode.member_id_required:
        response = await client.ask(Api.JOIN_GROUP, version, **fields | {"member_id": response.member_id})
    return response


async def join_and_sync(client: RawClient, group_id: str = "g", version: int = 9, **fields: Any) -> Any:
    joined = await join(client, group_id, version, **fields)
    assert joined.error_code is ErrorCode.none, joined
    synced = await client.ask(
        Api.SYNC_GROUP,
        min(version, 5),
        group_id=group_id,
        generation_id=joined.generation_id,
        member_id=joined.member_id,
        group_instance_id=fields.get("group_instance_id"),
        assignments=[{"member_id": joined.member_id, "assignment": b"plan"}],
    )
    assert (synced.error_code, synced.assignment) == (ErrorCode.none, b"plan")
    return joined


async def commit(client: RawClient, offset: int, version: int = 8, topic: str = "t", **fields: Any) -> ErrorCode:
    part: dict[str, Any] = {"partition_index": 0, "committed_offset": offset, "committed_metadata": "note"}
    defaults: dict[str, Any] = {"group_id": "g", "generation_id_or_member_epoch": -1, "member_id": ""}
    fields = defaults | fields
    response = await client.ask(
        Api.OFFSET_COMMIT, version, topics=[{"name": topic, "partitions": [part | fields.pop("part", {})]}], **fields
    )
    code: ErrorCode = response.topics[0].partitions[0].error_code
    return code


async def committed(client: RawClient, group_id: str = "g") -> dict[tuple[str, int], int]:
    response = await client.ask(Api.OFFSET_FETCH, 8, groups=[{"group_id": group_id, "topics": None}])
    (group,) = response.groups
    assert group.error_code is ErrorCode.none
    return {
        (topic.name, part.partition_index): part.committed_offset for topic in group.topics for part in topic.partitions
    }


@pytest.mark.parametrize("version", range(10))
async def test_a_member_lives_through_a_group_in_every_version(client: RawClient, version: int) -> None:
    joined = await join_and_sync(client, version=version)
    assert (joined.leader, joined.protocol_name, len(joined.members)) == (joined.member_id, "range", 1)
    beat = {"group_id": "g", "generation_id": joined.generation_id, "member_id": joined.member_id}
    assert (await client.ask(Api.HEARTBEAT, min(version, 4), **beat)).error_code is ErrorCode.none
    low = min(version, 5)
    leaving = {"member_id": joined.member_id}
    left = await client.ask(Api.LEAVE_GROUP, low, group_id="g", members=[leaving], **leaving)
    assert left.error_code is ErrorCode.none
    assert (await client.ask(Api.HEARTBEAT, 4, **beat)).error_code is ErrorCode.unknown_member_id


async def test_a_member_id_is_required_from_version_4_on(client: RawClient) -> None:
    response = await client.ask(Api.JOIN_GROUP, 4, group_id="g", **JOIN)
    assert response.error_code is ErrorCode.member_id_required
    assert response.member_id.startswith("raw-")
    response = await client.ask(Api.JOIN_GROUP, 3, group_id="h", **JOIN)
    assert response.error_code is ErrorCode.none


async def test_two_members_share_a_generation(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, group_initial_delay_ms=50) as address,
        RawClient.connect(address) as one,
        RawClient.connect(address) as two,
    ):
        await coordinated(one)
        first, second = await asyncio.gather(join(one, version=3), join(two, version=3))
        assert first.generation_id == second.generation_id == 1
        assert first.leader == second.leader
        assert sorted([len(first.members), len(second.members)]) == [0, 2]


async def test_a_member_whose_connection_is_gone_is_removed_in_the_end(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, group_initial_delay_ms=0, group_session_timeout_min_ms=100) as address,
        RawClient.connect(address) as stays,
    ):
        await coordinated(stays)
        async with RawClient.connect(address) as goes:
            await join_and_sync(goes, session_timeout=seconds(0.2))
        joined = await join(stays, session_timeout=seconds(0.2))
        assert (joined.error_code, joined.leader) == (ErrorCode.none, joined.member_id)


async def test_what_is_too_large_or_nameless_is_refused(client: RawClient) -> None:
    large = [{"name": "range", "metadata": bytes(2_000_000)}]
    assert (await join(client, protocols=large)).error_code is ErrorCode.invalid_request
    assert (await join(client, group_id="")).error_code is ErrorCode.invalid_group_id
    assert (await join(client, session_timeout=seconds(1))).error_code is ErrorCode.invalid_session_timeout
    assert await commit(client, 1, part={"committed_metadata": "x" * 4097}) is ErrorCode.offset_metadata_too_large
    assert await commit(client, 1, topic="nowhere") is ErrorCode.unknown_topic_or_partition
    assert await commit(client, 1, group_id="") is ErrorCode.invalid_group_id


# Offsets.


@pytest.mark.parametrize("version", range(2, 9))
async def test_offsets_are_committed_in_every_version(client: RawClient, version: int) -> None:
    assert await commit(client, 42, version) is ErrorCode.none
    assert await committed(client) == {("t", 0): 42}


@pytest.mark.parametrize("version", range(1, 9))
async def test_offsets_are_fetched_in_every_version(client: RawClient, version: int) -> None:
    assert await commit(client, 42) is ErrorCode.none
    asked = [{"name": "t", "partition_indexes": (0, 1)}]
    groups = [{"group_id": "g", "topics": asked}]
    response = await client.ask(Api.OFFSET_FETCH, version, group_id="g", topics=asked, groups=groups)
    topics = response.groups[0].topics if version == 8 else response.topics
    told = [(part.committed_offset, part.metadata) for part in topics[0].partitions]
    assert told == [(42, "note"), (-1, "")]


async def test_offsets_of_several_groups_are_fetched_at_once(client: RawClient) -> None:
    await commit(client, 1, group_id="a")
    await commit(client, 2, group_id="b")
    groups = [{"group_id": name, "topics": None} for name in ("a", "b", "nobody", "")]
    response = await client.ask(Api.OFFSET_FETCH, 8, groups=groups)
    assert [len(group.topics) for group in response.groups] == [1, 1, 0, 0]
    assert response.groups[3].error_code is ErrorCode.invalid_group_id


async def test_only_members_of_this_generation_commit_for_a_group_that_has_members(client: RawClient) -> None:
    joined = await join_and_sync(client)
    ids = {"generation_id_or_member_epoch": joined.generation_id, "member_id": joined.member_id}
    assert await commit(client, 5, **ids) is ErrorCode.none
    assert await commit(client, 6) is ErrorCode.unknown_member_id
    assert await commit(client, 6, **ids | {"generation_id_or_member_epoch": 9}) is ErrorCode.illegal_generation
    assert await committed(client) == {("t", 0): 5}


async def test_offsets_of_a_deleted_topic_are_not_those_of_another_one_of_its_name(client: RawClient) -> None:
    await commit(client, 5)
    await client.ask(Api.DELETE_TOPICS, 6, topics=[{"name": "t"}])
    assert await committed(client) == {}
    await client.create_topic("t", 2)
    assert await committed(client) == {}
    assert await commit(client, 2) is ErrorCode.none
    assert await committed(client) == {("t", 0): 2}


async def test_groups_are_not_here_before_anybody_asked_who_keeps_them(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        response = await client.ask(Api.HEARTBEAT, 4, group_id="g", generation_id=1, member_id="m")
        assert response.error_code is ErrorCode.not_coordinator
        response = await client.ask(Api.LIST_GROUPS, 5)
        assert (response.error_code, response.groups) == (ErrorCode.none, ())
        asked = [client.send(Api.FIND_COORDINATOR, 4, key_type=0, coordinator_keys=("g", "h")) for _ in range(3)]
        for sent in asked:
            for coordinator in (await client.receive(sent)).coordinators:
                assert coordinator.error_code in (ErrorCode.none, ErrorCode.coordinator_not_available)
        await coordinated(client, "g", "h")


async def test_offsets_are_deleted_where_nobody_reads(client: RawClient) -> None:
    await client.create_topic("u")
    await commit(client, 5)
    await commit(client, 6, topic="u")
    await join_and_sync(client)
    topics = [{"name": name, "partitions": [{"partition_index": 0}]} for name in ("t", "u")]
    response = await client.ask(Api.OFFSET_DELETE, 0, group_id="g", topics=topics)
    codes = [topic.partitions[0].error_code for topic in response.topics]
    assert codes == [ErrorCode.group_subscribed_to_topic, ErrorCode.none]
    assert await committed(client) == {("t", 0): 5}
    response = await client.ask(Api.OFFSET_DELETE, 0, group_id="nobody", topics=[])
    assert response.error_code is ErrorCode.group_id_not_found


# Admin.


async def test_groups_are_listed_by_state_and_type(client: RawClient) -> None:
    await join_and_sync(client, "busy")
    await commit(client, 5, group_id="idle")

    async def listed(version: int = 5, **fields: Any) -> set[str]:
        response = await client.ask(Api.LIST_GROUPS, version, **fields)
        return {group.group_id for group in response.groups}

    for version in range(6):
        assert await listed(version) == {"busy", "idle"}
    assert await listed(states_filter=("Stable",)) == {"busy"}
    assert await listed(states_filter=("empty",)) == {"idle"}
    assert await listed(types_filter=("classic",)) == {"busy", "idle"}
    assert await listed(types_filter=("consumer",)) == set()


@pytest.mark.parametrize("version", range(6))
async def test_groups_are_described_in_every_version(client: RawClient, version: int) -> None:
    joined = await join_and_sync(client, "busy")
    await commit(client, 5, group_id="idle")
    response = await client.ask(Api.DESCRIBE_GROUPS, version, groups=("busy", "idle", "nobody"))
    busy, idle, nobody = response.groups
    assert (busy.group_state, busy.protocol_type, busy.protocol_data) == ("Stable", "consumer", "range")
    (member,) = busy.members
    assert (member.member_id, member.client_id, member.client_host) == (joined.member_id, "raw", "127.0.0.1")
    assert (member.member_metadata, member.member_assignment) == (subscription("t"), b"plan")
    assert (idle.group_state, nobody.group_state) == ("Empty", "Dead")


@pytest.mark.parametrize("version", range(3))
async def test_groups_without_members_are_deleted(client: RawClient, version: int) -> None:
    await join_and_sync(client, "busy")
    await commit(client, 5, group_id="idle")
    response = await client.ask(Api.DELETE_GROUPS, version, groups_names=("busy", "idle", "nobody"))
    codes = [result.error_code for result in response.results]
    assert codes == [ErrorCode.non_empty_group, ErrorCode.none, ErrorCode.group_id_not_found]
    assert await committed(client, "idle") == {}


async def test_a_static_member_starts_again_without_a_rebalance(client: RawClient) -> None:
    old = await join_and_sync(client, group_instance_id="i1")
    new = await join(client, group_instance_id="i1")
    assert (new.generation_id, new.skip_assignment) == (old.generation_id, True)
    assert new.member_id != old.member_id
    beat = {"group_id": "g", "generation_id": old.generation_id, "group_instance_id": "i1"}
    response = await client.ask(Api.HEARTBEAT, 4, member_id=old.member_id, **beat)
    assert response.error_code is ErrorCode.fenced_instance_id
    response = await client.ask(Api.HEARTBEAT, 4, member_id=new.member_id, **beat)
    assert response.error_code is ErrorCode.none


# Over a restart.


async def test_groups_and_offsets_go_on_after_a_restart(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
        await coordinated(client, "g", "deleted")
        joined = await join_and_sync(client)
        ids = {"generation_id_or_member_epoch": joined.generation_id, "member_id": joined.member_id}
        for offset in range(1, 6):
            assert await commit(client, offset, **ids) is ErrorCode.none
        await commit(client, 9, group_id="deleted")
        await client.ask(Api.DELETE_GROUPS, 2, groups_names=("deleted",))
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await coordinated(client, "g", "deleted")
        beat = {"group_id": "g", "generation_id": joined.generation_id, "member_id": joined.member_id}
        assert (await client.ask(Api.HEARTBEAT, 4, **beat)).error_code is ErrorCode.none
        assert await committed(client) == {("t", 0): 5}
        assert await commit(client, 6, **ids) is ErrorCode.none
        listed = await client.ask(Api.LIST_GROUPS, 5)
        assert [group.group_id for group in listed.groups] == ["g"]
        response = await client.ask(Api.DESCRIBE_GROUPS, 5, groups=("g",))
        assert response.groups[0].members[0].member_assignment == b"plan"


async def test_the_offsets_topic_can_be_read_like_any_other(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, offsets_partitions=1) as address,
        RawClient.connect(address) as client,
    ):
        await client.create_topic("t")
        await coordinated(client)
        await commit(client, 5)
        part = await client.fetch("__consumer_offsets", 0)
        (value,) = values_of(part.records)
        assert value is not None
        assert value[:10] == b"\0\4" + (5).to_bytes(8, "big")


async def test_a_damaged_partition_of_the_offsets_topic_takes_down_its_groups_only(tmp_path: Path) -> None:
    async with running_core(tmp_path, offsets_partitions=2) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
        await coordinated(client, "a", "b")
        for group_id in ("a", "b"):
            await commit(client, 5, group_id=group_id)
    segment = next((tmp_path / "data" / "__consumer_offsets-1").glob("*.log"))
    content = bytearray(segment.read_bytes())
    assert content
    content[40] ^= 0xFF
    segment.write_bytes(content)
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await coordinated(client, "b")
        response = await client.ask(Api.FIND_COORDINATOR, 4, key_type=0, coordinator_keys=("a", "b"))
        codes = {coordinator.key: coordinator.error_code for coordinator in response.coordinators}
        assert codes == {"a": ErrorCode.coordinator_not_available, "b": ErrorCode.none}


async def test_a_missing_partition_of_the_offsets_topic_does_not_move_the_groups_of_others(tmp_path: Path) -> None:
    async with running_core(tmp_path, offsets_partitions=3) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
        await coordinated(client, "a", "b", "c")
        for group_id in ("a", "b", "c"):  # in the partitions 1, 2 and 0
            await commit(client, 5, group_id=group_id)
    (tmp_path / "data" / "__consumer_offsets-1").rename(tmp_path / "gone")
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await coordinated(client, "b", "c")
        assert await committed(client, "b") == await committed(client, "c") == {("t", 0): 5}
        response = await client.ask(Api.OFFSET_FETCH, 8, groups=[{"group_id": "a", "topics": None}])
        assert response.groups[0].error_code is ErrorCode.not_coordinator
        response = await client.ask(Api.FIND_COORDINATOR, 4, key_type=0, coordinator_keys=("a",))
        assert response.coordinators[0].error_code is ErrorCode.coordinator_not_available
