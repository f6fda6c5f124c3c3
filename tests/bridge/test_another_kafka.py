"""The bridge in front of a Kafka that is not this project's: librdkafka's mock cluster, three nodes in one process.

It has no CreateTopics (its topics come into being when they are written to) and no deduplication; everything else that
a bridge needs it does as any Kafka does, with the leaders spread over its nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer

from tests.bridge.batches import cut
from tests.bridge.conftest import Stage
from tests.bridge.fake_edge import FakeEdge
from tidegate_bridge.kafka import api
from tidegate_wire.address import Address
from tidegate_wire.records import Compression

CREATE_TOPICS = 19
PARTITIONS = 4


@pytest.fixture
def mock_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Address]]:
    monkeypatch.delitem(api.VERSIONS_NEEDED, CREATE_TOPICS)
    producer = Producer({"test.mock.num.brokers": 3, "bootstrap.servers": "replaced", "log_level": 0})
    for topic in ("tidegate.producers", "telemetry"):
        producer.produce(topic, b"makes the topic", partition=0)
    assert producer.flush(10) == 0
    nodes = producer.list_topics(timeout=10).brokers.values()
    yield [Address(node.host, node.port) for node in nodes]
    del producer  # the cluster goes with it


async def test_batches_go_to_the_leaders_of_a_cluster_of_three(stage: Stage, mock_cluster: list[Address]) -> None:
    port = await stage.bridge_port(mock_cluster[0], window_batches_max=25 * PARTITIONS)
    async with FakeEdge("edge-1", port) as edge:
        welcome = await edge.say_hello("telemetry")
        assert [(info.name, info.partitions) for info in welcome.streams] == [("telemetry", PARTITIONS)]
        assert welcome.producer_id is not None
        for sequence in range(25):
            for partition in range(PARTITIONS):
                values = [b"%d/%d" % (partition, sequence)]
                edge.send(cut(welcome.producer_id, sequence, values, compression=Compression.NONE), partition=partition)
        acks = await edge.wait_for_acks(25 * PARTITIONS)
        assert [ack.error for ack in acks] == [None] * (25 * PARTITIONS)
    seen = await asyncio.to_thread(_consume, mock_cluster, 25 * PARTITIONS)
    assert seen == {partition: [b"%d/%d" % (partition, i) for i in range(25)] for partition in range(PARTITIONS)}


def _consume(nodes: list[Address], count: int) -> dict[int, list[bytes]]:
    consumer = Consumer(
        {
            "bootstrap.servers": ",".join(map(str, nodes)),
            "group.id": "test",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    seen: dict[int, list[bytes]] = {}
    try:
        consumer.subscribe(["telemetry"])
        while sum(map(len, seen.values())) < count:
            message = consumer.poll(10)
            assert message is not None, seen
            assert message.error() is None, message.error()
            value, partition = message.value(), message.partition()
            assert isinstance(value, bytes)
            assert partition is not None
            if value != b"makes the topic":
                seen.setdefault(partition, []).append(value)
    finally:
        consumer.close()
    return seen
