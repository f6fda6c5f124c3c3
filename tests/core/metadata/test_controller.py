"""The controller over a real log: what it writes, what it refuses, and what becomes of writes that are cut short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.core.metadata.support import FOUR, ONE, THREE, TWO, Majority, metadata_of
from tidegate_core.errors import InvalidLogConfig
from tidegate_core.metadata import controller as controller_module
from tidegate_core.metadata.controller import PRODUCER_ID_BLOCK, Controller, NewTopic
from tidegate_core.metadata.image import NodeInfo
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_core.raft.messages import ReplicaKey
from tidegate_wire.identifiers import NodeId
from tidegate_wire.kafka.messages import ErrorCode

INFO = NodeInfo(host="h", port=1, peer_host="p", peer_port=2, directory_id=UUID(int=5))


@pytest.fixture
async def majority(tmp_path: Path) -> AsyncIterator[Majority]:
    async with metadata_of(tmp_path) as playing:
        playing.elect(1)
        yield playing


@pytest.fixture
def controller(majority: Majority) -> Controller:
    return majority.controller()


def new(name: str = "t", partitions: int = 2, **fields: Any) -> NewTopic:
    return NewTopic(name=name, partition_count=partitions, **fields)


async def code_of(change: Awaitable[object]) -> ErrorCode:
    with pytest.raises(KafkaError) as raised:
        await change
    assert str(raised.value)
    return raised.value.code


# What it does.


async def test_a_topic_is_in_the_image_when_it_is_made(controller: Controller) -> None:
    made = await controller.create_topic(new(settings={"retention.ms": "5"}))
    assert controller.image.topics["t"] == made
    assert made.partition_count == 2
    assert all(sorted(replicas) == [ONE, TWO, THREE] for replicas in made.replicas)
    assert made.topic_id.version == 4
    other = await controller.create_topic(new("u", assignment=((TWO, ONE), (ONE, THREE))))
    assert other.replicas == ((TWO, ONE), (ONE, THREE))


async def test_the_voters_have_replicas_even_before_they_register(majority: Majority) -> None:
    """Or else the topics that are made first would have one replica for good."""
    controller = majority.controller()
    assert not controller.image.nodes
    assert len((await controller.create_topic(new())).replicas[0]) == 3


async def test_a_cluster_of_one_has_one_replica_of_everything(majority: Majority) -> None:
    controller = majority.controller(voters=(ONE,))
    assert (await controller.create_topic(new())).replicas == ((ONE,), (ONE,))
    assert await code_of(controller.create_topic(new("u", replication_factor=2))) is (
        ErrorCode.invalid_replication_factor
    )


async def test_a_dead_node_leads_nothing_new(majority: Majority) -> None:
    controller = majority.controller(is_alive=lambda node: node != ONE)
    made = await controller.create_topic(new(partitions=6))
    assert {replicas[0] for replicas in made.replicas} == {TWO, THREE}
    assert (await controller.create_topic(new("u", 3, replication_factor=2))).replicas == (
        (TWO, THREE),
        (THREE, TWO),
        (TWO, THREE),
    )


async def test_partitions_are_added_and_deleted_with_their_topic(controller: Controller) -> None:
    await controller.create_topic(new())
    grown = await controller.add_partitions("t", 5)
    assert controller.image.topics["t"] == grown
    assert (await controller.add_partitions("t", 6, ((THREE, TWO, ONE),))).replicas[5] == (THREE, TWO, ONE)
    await controller.delete_topic("t")
    assert not controller.image.topics
    assert controller.image.is_deleted(grown.topic_id)


async def test_settings_are_changed(controller: Controller, majority: Majority) -> None:
    await controller.create_topic(new(settings={"retention.ms": "5"}))
    await controller.configure_topic("t", lambda before: {**before, "segment.bytes": "4096"})
    assert controller.image.topics["t"].settings == {"retention.ms": "5", "segment.bytes": "4096"}
    end = majority.partition.log_end_offset
    await controller.configure_topic("t", lambda before: before)
    assert majority.partition.log_end_offset == end


async def test_checking_writes_nothing(controller: Controller, majority: Majority) -> None:
    await controller.create_topic(new())
    end = majority.partition.log_end_offset
    assert (await controller.check_topic(new("u"))).name == "u"
    assert (await controller.check_partitions("t", 3)).partition_count == 3
    assert (await controller.check_settings("t", lambda _: {"retention.ms": "1"})).settings == {"retention.ms": "1"}
    assert majority.partition.log_end_offset == end
    assert list(controller.image.topics) == ["t"]


async def test_nodes_register_and_leave(controller: Controller, majority: Majority) -> None:
    await controller.register_node(FOUR, INFO)
    end = majority.partition.log_end_offset
    await controller.register_node(FOUR, INFO)
    assert majority.partition.log_end_offset == end
    assert controller.nodes == {ONE, TWO, THREE, FOUR}
    await controller.create_topic(new("on-four", 1, assignment=((FOUR,),)))
    assert await code_of(controller.unregister_node(FOUR)) is ErrorCode.policy_violation
    assert await code_of(controller.unregister_node(NodeId(9))) is ErrorCode.broker_id_not_registered
    await controller.register_node(ONE, INFO)
    assert await code_of(controller.unregister_node(ONE)) is ErrorCode.policy_violation
    await controller.delete_topic("on-four")
    await controller.unregister_node(FOUR)
    assert FOUR not in controller.image.nodes


async def test_no_producer_id_is_given_twice_whoever_allocates(majority: Majority, controller: Controller) -> None:
    first = await controller.allocate_producer_ids()
    second = await controller.allocate_producer_ids()
    majority.depose(2)
    majority.elect(3)
    third = await majority.controller().allocate_producer_ids()
    assert (first.start, second.start, third.start) == (0, PRODUCER_ID_BLOCK, 2 * PRODUCER_ID_BLOCK)
    assert len(third) == PRODUCER_ID_BLOCK


# Moving partitions.


async def test_a_partition_moves_and_the_move_is_over_when_its_leader_says_so(controller: Controller) -> None:
    await controller.register_node(FOUR, INFO)
    topic = await controller.create_topic(new(assignment=((ONE, TWO), (TWO, ONE))))
    await controller.reassign("t", 0, (FOUR, TWO))
    assert controller.image.topics["t"].reassigning == {0: (FOUR, TWO)}
    await controller.moved(topic.key(0), (ONE, TWO, FOUR))  # on its way
    assert controller.image.topics["t"].reassigning == {0: (FOUR, TWO)}
    await controller.moved(topic.key(0), (TWO, FOUR))
    moved = controller.image.topics["t"]
    assert (moved.replicas, moved.reassigning) == (((FOUR, TWO), (TWO, ONE)), {})
    await controller.moved(topic.key(0), (TWO, FOUR))
    await controller.moved(ReplicaKey(UUID(int=9), 0), (TWO, FOUR))


async def test_a_move_is_taken_back_to_where_the_partition_was(controller: Controller) -> None:
    await controller.register_node(FOUR, INFO)
    topic = await controller.create_topic(new(assignment=((ONE, TWO), (TWO, ONE))))
    assert await code_of(controller.reassign("t", 0, None)) is ErrorCode.no_reassignment_in_progress
    await controller.reassign("t", 0, (FOUR, TWO))
    await controller.reassign("t", 0, None)
    cancelled = controller.image.topics["t"]
    assert cancelled.reassigning == {0: (ONE, TWO)}
    assert set(cancelled.hosts(0)) == {ONE, TWO, FOUR}
    assert await code_of(controller.reassign("t", 0, None)) is ErrorCode.no_reassignment_in_progress
    await controller.moved(topic.key(0), (ONE, TWO))
    assert controller.image.topics["t"] == topic


async def test_a_move_to_where_the_partition_is_already_is_none(controller: Controller, majority: Majority) -> None:
    await controller.create_topic(new(assignment=((ONE, TWO), (TWO, ONE))))
    end = majority.partition.log_end_offset
    await controller.reassign("t", 0, (ONE, TWO))
    assert majority.partition.log_end_offset == end
    await controller.reassign("t", 0, (TWO, ONE))  # another preferred leader
    assert controller.image.topics["t"].reassigning == {0: (TWO, ONE)}


async def test_moves_that_can_not_be_are_refused(majority: Majority) -> None:
    controller = majority.controller(partitions_max=2)
    await controller.create_topic(new(assignment=((ONE, TWO), (TWO, ONE)), settings={"min.insync.replicas": "2"}))
    assert await code_of(controller.reassign("u", 0, (ONE,))) is ErrorCode.unknown_topic_or_partition
    assert await code_of(controller.reassign("t", 2, (ONE,))) is ErrorCode.unknown_topic_or_partition
    assert await code_of(controller.reassign("t", -1, (ONE,))) is ErrorCode.unknown_topic_or_partition
    for target in ((), (ONE, ONE), (ONE, FOUR)):
        assert await code_of(controller.reassign("t", 0, target)) is ErrorCode.invalid_replica_assignment
    assert await code_of(controller.reassign("t", 0, (ONE,), allows_other_factor=False)) is (
        ErrorCode.invalid_replication_factor
    )
    with pytest.raises(InvalidLogConfig, match=r"min\.insync\.replicas"):
        await controller.reassign("t", 0, (ONE,))
    await controller.create_topic(new("three", assignment=((THREE,), (THREE,))))
    assert await code_of(controller.reassign("t", 0, (ONE, THREE))) is ErrorCode.policy_violation


# What it refuses.


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        (new("bad/name"), ErrorCode.invalid_topic_exception),
        (new("there"), ErrorCode.topic_already_exists),
        (new(partitions=0), ErrorCode.invalid_partitions),
        (new(partitions=-3), ErrorCode.invalid_partitions),
        (new(partitions=2**31 - 1), ErrorCode.policy_violation),
        (new(replication_factor=4), ErrorCode.invalid_replication_factor),
        (new(replication_factor=0), ErrorCode.invalid_replication_factor),
        (new(assignment=((ONE,),)), ErrorCode.invalid_replica_assignment),
        (new(assignment=((ONE,), (ONE, TWO))), ErrorCode.invalid_replica_assignment),
        (new(assignment=((ONE,), (NodeId(9),))), ErrorCode.invalid_replica_assignment),
        (new(assignment=((ONE, ONE), (TWO, ONE))), ErrorCode.invalid_replica_assignment),
        (new(partitions=101, assignment=((ONE,),) * 101), ErrorCode.policy_violation),
    ],
)
async def test_a_topic_that_can_not_be_is_refused(controller: Controller, wanted: NewTopic, error: ErrorCode) -> None:
    await controller.create_topic(new("there"))
    assert await code_of(controller.create_topic(wanted)) is error
    assert await code_of(controller.check_topic(wanted)) is error
    assert list(controller.image.topics) == ["there"]


@pytest.mark.parametrize(
    "settings", [{"no.such": "1"}, {"retention.ms": "soon"}, {"min.insync.replicas": "3"}, {"compression.type": "lz4"}]
)
async def test_settings_that_can_not_be_are_refused(controller: Controller, settings: dict[str, str]) -> None:
    with pytest.raises(InvalidLogConfig):
        await controller.create_topic(new(settings=settings))
    await controller.create_topic(new())
    with pytest.raises(InvalidLogConfig):
        await controller.configure_topic("t", lambda _: settings)
    assert controller.image.topics["t"].settings == {}


async def test_partitions_that_can_not_be_added_are_refused(controller: Controller) -> None:
    await controller.create_topic(new())
    assert await code_of(controller.add_partitions("t", 2)) is ErrorCode.invalid_partitions
    assert await code_of(controller.add_partitions("u", 2)) is ErrorCode.unknown_topic_or_partition
    assert await code_of(controller.add_partitions("t", 101)) is ErrorCode.policy_violation
    assert await code_of(controller.add_partitions("t", 3, ((ONE,),))) is ErrorCode.invalid_replica_assignment
    assert await code_of(controller.add_partitions("t", 3, ())) is ErrorCode.invalid_replica_assignment
    assert await code_of(controller.delete_topic("u")) is ErrorCode.unknown_topic_or_partition
    assert await code_of(controller.configure_topic("u", lambda before: before)) is (
        ErrorCode.unknown_topic_or_partition
    )


# Who may.

CHANGES: list[Callable[[Controller], Awaitable[object]]] = [
    lambda controller: controller.create_topic(new("new")),
    lambda controller: controller.check_topic(new("new")),
    lambda controller: controller.delete_topic("t"),
    lambda controller: controller.add_partitions("t", 9),
    lambda controller: controller.configure_topic("t", lambda _: {"retention.ms": "7"}),
    lambda controller: controller.reassign("t", 0, (THREE, TWO, ONE)),
    lambda controller: controller.register_node(FOUR, INFO),
    lambda controller: controller.allocate_producer_ids(),
]


@pytest.mark.parametrize("change", CHANGES)
async def test_only_the_leader_of_the_metadata_changes_it(
    controller: Controller, majority: Majority, change: Callable[[Controller], Awaitable[object]]
) -> None:
    await controller.create_topic(new(assignment=((ONE, TWO, THREE),) * 2))
    majority.depose(2)
    end = majority.partition.log_end_offset
    assert not controller.is_active
    assert await code_of(change(controller)) is ErrorCode.not_controller
    assert majority.partition.log_end_offset == end


async def test_nothing_is_written_while_leadership_is_handed_over(controller: Controller, majority: Majority) -> None:
    majority.partition.is_draining = True
    assert await code_of(controller.create_topic(new())) is ErrorCode.not_controller
    assert majority.partition.log_end_offset == 0


# Writes that are cut short.


async def test_a_change_whose_leader_is_deposed_before_a_majority_has_it_may_or_may_not_be(
    controller: Controller, majority: Majority
) -> None:
    majority.answers = False
    writing = asyncio.create_task(controller.create_topic(new()))
    await _written(majority, 1)
    majority.depose(2)
    assert await code_of(writing) is ErrorCode.request_timed_out
    assert not controller.image.topics


async def test_the_next_controller_knows_what_the_one_before_did_not_see_committed(
    majority: Majority, controller: Controller
) -> None:
    majority.answers = False
    writing = asyncio.create_task(controller.create_topic(new()))
    await _written(majority, 1)
    majority.depose(2)
    assert await code_of(writing) is ErrorCode.request_timed_out
    majority.answers = True
    majority.elect(3)
    assert await code_of(majority.controller().create_topic(new())) is ErrorCode.topic_already_exists


async def test_what_a_deposed_controller_wrote_and_the_next_one_does_not_have_never_was(
    majority: Majority, controller: Controller
) -> None:
    await controller.create_topic(new("first"))
    majority.answers = False
    writing = asyncio.create_task(controller.create_topic(new()))
    await _written(majority, 2)
    majority.depose(2)
    assert await code_of(writing) is ErrorCode.request_timed_out
    majority.partition.truncate(majority.partition.high_watermark)
    majority.answers = True
    majority.elect(3)
    made = await majority.controller(seed=2).create_topic(new())
    assert list(controller.image.topics) == ["first", "t"]
    assert controller.image.topics["t"] == made


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_client_that_leaves_before_its_change_is_committed_leaves_no_contradiction(
    majority: Majority, controller: Controller, is_committed: bool
) -> None:
    majority.answers = False
    leaving = asyncio.create_task(controller.create_topic(new()))
    await _written(majority, 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    again = asyncio.create_task(controller.create_topic(new()))
    await asyncio.sleep(0)
    assert majority.partition.log_end_offset == 1  # it waits for what was written before
    if is_committed:
        majority.commit()
        assert await code_of(again) is ErrorCode.topic_already_exists
    else:
        majority.depose(2)
        assert await code_of(again) is ErrorCode.not_controller


async def test_a_change_is_not_waited_for_without_end(
    majority: Majority, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "COMMIT_TIMEOUT_S", 0.05)
    majority.answers = False
    assert await code_of(controller.create_topic(new())) is ErrorCode.request_timed_out
    assert await code_of(controller.create_topic(new("u"))) is ErrorCode.not_controller
    assert majority.partition.log_end_offset == 1
    majority.answers = True
    majority.commit()
    await controller.create_topic(new("u"))
    assert list(controller.image.topics) == ["t", "u"]


async def test_a_crash_after_the_write_leaves_a_record_that_counts_if_a_majority_has_it(tmp_path: Path) -> None:
    async with metadata_of(tmp_path) as majority:
        majority.elect(1)
        controller = majority.controller()
        await controller.create_topic(new("before"))
        majority.answers = False
        writing = asyncio.create_task(controller.create_topic(new()))
        await _written(majority, 2)
    await asyncio.gather(writing, return_exceptions=True)
    async with metadata_of(tmp_path) as majority:
        majority.elect(2)
        assert list(majority.metadata.image.topics) == ["before", "t"]
        assert await code_of(majority.controller().create_topic(new())) is ErrorCode.topic_already_exists


async def test_many_changes_at_once_are_made_one_after_the_other(controller: Controller) -> None:
    outcomes = await asyncio.gather(
        *(controller.create_topic(new(f"t{number % 5}", 1)) for number in range(20)), return_exceptions=True
    )
    refused = [outcome.code for outcome in outcomes if isinstance(outcome, KafkaError)]
    assert refused == [ErrorCode.topic_already_exists] * 15
    blocks = await asyncio.gather(*(controller.allocate_producer_ids() for _ in range(10)))
    assert sorted(block.start for block in blocks) == [number * PRODUCER_ID_BLOCK for number in range(10)]


async def _written(majority: Majority, end: int) -> None:
    """The controller has written so far, and it is on this disk."""
    deadline_s = asyncio.get_running_loop().time() + 10
    while majority.partition.log_end_offset < end:  # the partition has no event for it
        assert asyncio.get_running_loop().time() < deadline_s
        await asyncio.sleep(0)
    await majority.partition.synced(majority.partition.log_end_offset)
