"""Requests that find the controller, wherever it is; and what depends on it on every node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.metadata.support import ONE, TWO, Majority, metadata_of
from tidegate_core.metadata import controller_link
from tidegate_core.metadata.controller import NewTopic
from tidegate_core.metadata.controller_link import ControllerLink, leaders_known
from tidegate_core.metadata.producer_ids import ProducerIds
from tidegate_core.protocol.error_codes import KafkaError
from tidegate_core.protocol.translate import compose
from tidegate_core.protocol.versions import VERSIONS, Api, is_served
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.leaders import LeaderDirectory
from tidegate_core.replication.messages import Leadership
from tidegate_wire.identifiers import LeaderEpoch
from tidegate_wire.kafka.messages import (
    ErrorCode,
    decode_request,
    decode_request_header,
    encode_response,
    response_type,
)


@pytest.fixture
async def majority(tmp_path: Path) -> AsyncIterator[Majority]:
    async with metadata_of(tmp_path) as playing:
        yield playing


class Away:
    """Another node that is the controller, or is not."""

    def __init__(self, *answers: KafkaError | dict[str, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, Any, str]] = []

    async def __call__(self, frame: bytes | memoryview, host: str, _timeout_s: float) -> bytes:
        header = decode_request_header(frame)
        self.asked.append((header.api_key, decode_request(header, frame), host))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, KafkaError):
            raise answer
        schema = response_type(header.api_key, header.api_version)
        return encode_response(compose(schema, answer), header.correlation_id)


NOBODY = KafkaError(ErrorCode.not_controller, "nobody")
NO_ANSWER = KafkaError(ErrorCode.request_timed_out, "no answer")
TOPIC = NewTopic(name="t", partition_count=1, settings={"retention.ms": "5"})


def lead(majority: Majority, leaders: LeaderDirectory) -> None:
    for topic in majority.metadata.image.topics.values():
        for index in range(topic.partition_count):
            leaders.heard(Leadership(topic.key(index), LeaderEpoch(0), TWO, (TWO,), (TWO,)))


async def test_the_controller_itself_answers(majority: Majority) -> None:
    majority.elect(1)
    away = Away(NOBODY)
    link = ControllerLink(majority.controller(), LeaderDirectory(), away)
    assert await link.ask(b"", "host", 1) is None
    assert await link.allocate_producer_ids() == range(1000)
    assert not away.asked


async def test_a_request_is_passed_on_with_its_clients_host(majority: Majority) -> None:
    away = Away({"producer_id_start": 7000, "producer_id_len": 1000, "error_code": ErrorCode.none})
    link = ControllerLink(majority.controller(), LeaderDirectory(), away)
    assert await link.allocate_producer_ids() == range(7000, 8000)
    assert away.asked[0][0] == Api.ALLOCATE_PRODUCER_IDS
    assert away.asked[0][2] == controller_link.THIS_NODE


async def test_a_request_waits_for_a_controller(majority: Majority) -> None:
    ids = {"producer_id_start": 0, "producer_id_len": 1, "error_code": ErrorCode.none}
    away = Away(NOBODY, NOBODY, ids)
    link = ControllerLink(majority.controller(), LeaderDirectory(), away)
    assert await link.allocate_producer_ids() == range(1)
    assert len(away.asked) == 3


async def test_a_request_that_waits_is_answered_here_once_this_node_is_the_controller(majority: Majority) -> None:
    link = ControllerLink(majority.controller(), LeaderDirectory(), Away(NOBODY))
    waiting = asyncio.create_task(link.allocate_producer_ids())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    majority.elect(1)
    assert await waiting == range(1000)


async def test_without_a_controller_the_wait_ends(majority: Majority) -> None:
    link = ControllerLink(majority.controller(), LeaderDirectory(), Away(NOBODY))
    with pytest.raises(KafkaError) as raised:
        await link.ask(b"\0\x13\0\7\0\0\0\0\xff\xff\0\1\0\0\0\0\0\0", "host", 0.1)
    assert raised.value.code is ErrorCode.not_controller


async def test_a_request_that_may_have_been_done_is_not_made_again(majority: Majority) -> None:
    away = Away(NO_ANSWER)
    link = ControllerLink(majority.controller(), LeaderDirectory(), away)
    with pytest.raises(KafkaError) as raised:
        await link.allocate_producer_ids()
    assert raised.value.code is ErrorCode.request_timed_out
    assert len(away.asked) == 1


async def test_a_topic_is_made_through_the_controller_and_can_be_used_here(majority: Majority) -> None:
    leaders = LeaderDirectory()
    created = {"topics": [{"name": "t", "error_code": ErrorCode.none, "error_message": None}]}
    away = Away(created)
    link = ControllerLink(majority.controller(), leaders, away)
    creating = asyncio.create_task(link.create_topic(TOPIC))
    await asyncio.sleep(0.05)
    assert not creating.done()
    majority.elect(1)
    await majority.controller().create_topic(TOPIC)  # the record reaches this node
    lead(majority, leaders)
    await creating
    ((_, request, _),) = away.asked
    assert (request.topics[0].num_partitions, request.topics[0].replication_factor) == (1, -1)
    assert [(config.name, config.value) for config in request.topics[0].configs] == [("retention.ms", "5")]


async def test_a_topic_that_somebody_else_made_meanwhile_is_as_good(majority: Majority) -> None:
    leaders = LeaderDirectory()
    majority.elect(1)
    controller = majority.controller()
    await controller.create_topic(TOPIC)
    lead(majority, leaders)
    await ControllerLink(controller, leaders, Away(NOBODY)).create_topic(TOPIC)
    majority.depose(2)
    exists = {"topics": [{"name": "t", "error_code": ErrorCode.topic_already_exists, "error_message": "it is there"}]}
    await ControllerLink(controller, leaders, Away(exists)).create_topic(TOPIC)


async def test_a_topic_that_can_not_be_made_is_refused_as_the_controller_does(majority: Majority) -> None:
    refused = {"topics": [{"name": "t", "error_code": ErrorCode.policy_violation, "error_message": "too many"}]}
    link = ControllerLink(majority.controller(), LeaderDirectory(), Away(refused))
    with pytest.raises(KafkaError, match="too many") as raised:
        await link.create_topic(TOPIC)
    assert raised.value.code is ErrorCode.policy_violation


async def test_a_topic_without_leaders_is_told_so(majority: Majority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_link, "LEADERS_WAIT_S", 0.05)
    majority.elect(1)
    with pytest.raises(KafkaError) as raised:
        await ControllerLink(majority.controller(), LeaderDirectory(), Away(NOBODY)).create_topic(TOPIC)
    assert raised.value.code is ErrorCode.leader_not_available


async def test_leaders_are_waited_for_all_of_them(majority: Majority) -> None:
    leaders = LeaderDirectory()
    majority.elect(1)
    topic = await majority.controller().create_topic(NewTopic(name="t", partition_count=3))
    keys = [topic.key(index) for index in range(3)]

    def heard(key: ReplicaKey) -> None:
        leaders.heard(Leadership(key, LeaderEpoch(0), ONE, (ONE,), (ONE,)))

    waiting = asyncio.create_task(leaders_known(leaders, keys, 10))
    for key in keys:
        await asyncio.sleep(0)
        assert not waiting.done()
        heard(key)
    assert await waiting
    assert not leaders.on_change
    assert await leaders_known(leaders, keys, 0)
    leaders.lost(keys[0], LeaderEpoch(0))
    assert not await leaders_known(leaders, keys, 0.01)
    assert not leaders.on_change


# Producer ids.


async def test_producer_ids_come_from_blocks_and_a_block_is_taken_once() -> None:
    blocks = [range(3), range(10, 12), range(20, 23)]
    taken: list[range] = []

    async def allocate() -> range:
        await asyncio.sleep(0)
        taken.append(blocks[len(taken)])
        return taken[-1]

    ids = ProducerIds(allocate)
    given = await asyncio.gather(*(ids.take() for _ in range(7)))
    assert sorted(given) == [0, 1, 2, 10, 11, 20, 21]
    assert len(taken) == 3


async def test_a_block_that_can_not_be_had_is_asked_for_again() -> None:
    failures = [NOBODY, NO_ANSWER]

    async def allocate() -> range:
        if failures:
            raise failures.pop()
        return range(5, 7)

    ids = ProducerIds(allocate)
    for _ in range(2):
        with pytest.raises(KafkaError):
            await ids.take()
    assert await ids.take() == 5


def test_the_api_between_nodes_is_served_and_not_told_to_clients() -> None:
    assert is_served(Api.ALLOCATE_PRODUCER_IDS, 0)
    assert Api.ALLOCATE_PRODUCER_IDS not in VERSIONS
