"""Other projects' Kafka clients against three core nodes, one of which is killed with kill -9 while they work."""

from __future__ import annotations

import asyncio
import gc
import itertools
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import aiokafka
import confluent_kafka.admin
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from kafka import KafkaConsumer, KafkaProducer

from tests.support.cluster import Cluster
from tests.support.peers import require_peer
from tests.support.processes import wait_until

of_admin: Any = confluent_kafka.admin  # its stubs do not export what stands in it

# aiokafka and kafka-python leave the sockets open of nodes that refuse them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

TIMEOUT_S = 60.0
COUNT = 600
VALUES = [f"value-{number}".encode() for number in range(COUNT)]
KILL_AT = COUNT // 3
PAUSE_S = 0.004
"""Between two messages, so that the node dies in the middle of them."""

_numbers = itertools.count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that the tests of this module share; each test leaves them all running."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start()
        yield cluster
        cluster.stop(*cluster.running())
        for node in cluster.node_ids:
            for word in ("request_failed", "connection_failed", "Traceback"):
                assert word not in cluster.output(node), f"node {node}"


@pytest.fixture(autouse=True, scope="module")
def what_clients_left_open() -> Iterator[None]:
    """Collected here, so that no later test is blamed for it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def topic(cluster: Cluster) -> str:
    name = f"topic-{next(_numbers)}"
    cluster.create_topic(name, 2)
    return name


class Killer:
    """Kills the leader of a topic's first partition when it is time, and brings it back at the end."""

    def __init__(self, cluster: Cluster, topic: str) -> None:
        self._cluster = cluster
        self._topic = topic
        self._killed: int | None = None

    def at(self, number: int) -> None:
        time.sleep(PAUSE_S)
        if number == KILL_AT:
            self._killed = self._cluster.leader(self._topic, 0)
            self._cluster.kill(self._killed)

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._killed is not None, "nobody was killed"
        self._cluster.start(self._killed)
        self._cluster.wait_in_step(self._topic, 2)


def _read_all(cluster: Cluster, topic: str) -> list[bytes]:
    """Every value, by librdkafka's simplest way, from both partitions."""
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": "reader", "enable.partition.eof": False})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(2)])
    values: list[bytes] = []
    deadline = time.monotonic() + TIMEOUT_S
    while len(values) < COUNT and time.monotonic() < deadline:
        values += [message.value() or b"" for message in consumer.consume(COUNT, 0.2) if message.error() is None]
    consumer.close()
    return values


def test_confluent_produces_over_a_leaders_death(cluster: Cluster, topic: str) -> None:
    failures: list[object] = []
    producer = Producer({"bootstrap.servers": cluster.bootstrap, "enable.idempotence": True, "linger.ms": 1})
    with Killer(cluster, topic) as killer:
        for number, value in enumerate(VALUES):
            producer.produce(
                topic,
                value,
                partition=number % 2,
                on_delivery=lambda error, _message: failures.append(error) if error else None,
            )
            producer.poll(0)
            killer.at(number)
        assert producer.flush(TIMEOUT_S) == 0
        assert failures == []
        values = _read_all(cluster, topic)
    assert [values.count(value) for value in VALUES] == [1] * COUNT
    for partition in range(2):
        mine = [value for value in values if value in set(VALUES[partition::2])]
        assert mine == VALUES[partition::2]


async def test_aiokafka_produces_over_a_leaders_death(cluster: Cluster, topic: str) -> None:
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=cluster.bootstrap, enable_idempotence=True, request_timeout_ms=int(TIMEOUT_S * 1000)
    )
    await producer.start()
    with Killer(cluster, topic) as killer:
        pending = []
        for number, value in enumerate(VALUES):
            pending.append(await producer.send(topic, value, partition=number % 2))
            await asyncio.to_thread(killer.at, number)
        await asyncio.wait_for(asyncio.gather(*pending), TIMEOUT_S)
        await producer.stop()
        values = await asyncio.to_thread(_read_all, cluster, topic)
    assert [values.count(value) for value in VALUES] == [1] * COUNT


def test_kafka_python_produces_over_a_leaders_death(cluster: Cluster, topic: str) -> None:
    producer = KafkaProducer(
        bootstrap_servers=cluster.bootstrap.split(","), enable_idempotence=True, acks="all", retries=1000
    )
    with Killer(cluster, topic) as killer:
        pending = []
        for number, value in enumerate(VALUES):
            pending.append(producer.send(topic, value, partition=number % 2))
            killer.at(number)
        for sent in pending:
            sent.get(timeout=TIMEOUT_S)
        producer.close()
        values = _read_all(cluster, topic)
    assert [values.count(value) for value in VALUES] == [1] * COUNT


def test_kcat_produces_over_a_leaders_death(cluster: Cluster, topic: str) -> None:
    command = [require_peer("kcat"), "-b", cluster.bootstrap, "-P", "-t", topic, "-X", "enable.idempotence=true"]
    with Killer(cluster, topic) as killer:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stdin is not None
        for number, value in enumerate(VALUES):
            process.stdin.write(value + b"\n")
            process.stdin.flush()
            killer.at(number)
        _, complaints = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, complaints.decode()
        values = _read_all(cluster, topic)
    assert sorted(values) == sorted(VALUES)


# Groups: the coordinator may be the one that dies.


def _produce_all(cluster: Cluster, topic: str) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap, "enable.idempotence": True})
    for number, value in enumerate(VALUES):
        producer.produce(topic, value, partition=number % 2)
    assert producer.flush(TIMEOUT_S) == 0


def _kill_coordinator(cluster: Cluster, group: str) -> int:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap})
    described = admin.describe_consumer_groups([group])[group].result(15)
    coordinator = int(described.coordinator.id)
    cluster.kill(coordinator)
    return coordinator


def _group_reads_over_death(
    cluster: Cluster, topic: str, group: str, read: Callable[[int], list[bytes]], commit: Callable[[], None]
) -> None:
    """Half is read and committed, the coordinator dies, the rest is read and committed: nothing is missing."""
    values = read(COUNT // 2)
    commit()
    dead = _kill_coordinator(cluster, group)
    values += read(COUNT - len(values))
    commit()
    cluster.start(dead)
    cluster.wait_in_step(topic, 2)
    assert set(values) == set(VALUES)


def test_a_group_of_confluent_goes_on_when_its_coordinator_dies(cluster: Cluster, topic: str) -> None:
    _produce_all(cluster, topic)
    group = f"group-{next(_numbers)}"
    consumer = Consumer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 10_000,
        }
    )
    consumer.subscribe([topic])

    def read(count: int) -> list[bytes]:
        values: list[bytes] = []
        deadline = time.monotonic() + TIMEOUT_S
        while len(values) < count and time.monotonic() < deadline:
            values += [m.value() or b"" for m in consumer.consume(count - len(values), 0.2) if m.error() is None]
        return values

    def commit() -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                consumer.commit(asynchronous=False)
            except confluent_kafka.KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    _group_reads_over_death(cluster, topic, group, read, commit)
    consumer.close()


def test_a_group_of_kafka_python_goes_on_when_its_coordinator_dies(cluster: Cluster, topic: str) -> None:
    _produce_all(cluster, topic)
    group = f"group-{next(_numbers)}"
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=cluster.bootstrap.split(","),
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )

    def read(count: int) -> list[bytes]:
        values: list[bytes] = []
        deadline = time.monotonic() + TIMEOUT_S
        while len(values) < count and time.monotonic() < deadline:
            for records in consumer.poll(200, max_records=count - len(values)).values():
                values += [record.value for record in records]
        return values

    _group_reads_over_death(cluster, topic, group, read, consumer.commit)
    consumer.close()


# Admin tools.


def _result(futures: dict[Any, Future[Any]]) -> Any:
    (future,) = futures.values()
    return future.result(15)


@pytest.mark.parametrize("node", [1, 2, 3])
def test_admin_requests_are_taken_by_every_node(cluster: Cluster, node: int) -> None:
    name = f"topic-{next(_numbers)}"
    admin = AdminClient({"bootstrap.servers": cluster.addresses([node])})
    _result(admin.create_topics([of_admin.NewTopic(name, 3, 3)]))
    _result(admin.create_partitions([of_admin.NewPartitions(name, 5)]))
    wait_until(lambda: len(admin.list_topics(name, 10).topics[name].partitions) == 5, 15, "five partitions")
    _result(admin.delete_topics([name]))


async def test_aiokafkas_admin_client_sees_three_nodes(cluster: Cluster) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        described = await admin.describe_cluster()
        assert {broker["node_id"] for broker in described["brokers"]} == {1, 2, 3}
    finally:
        await admin.close()


def test_kcat_reads_on_when_a_leader_dies(cluster: Cluster, topic: str) -> None:
    command = [require_peer("kcat"), "-b", cluster.bootstrap, "-C", "-t", topic, "-o", "beginning", "-u", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seen: list[bytes] = []
    assert process.stdout is not None
    lines = process.stdout

    def follow() -> None:
        seen.extend(line.strip() for line in lines)

    reader = threading.Thread(target=follow)
    reader.start()
    producer = Producer({"bootstrap.servers": cluster.bootstrap, "enable.idempotence": True, "linger.ms": 1})
    try:
        with Killer(cluster, topic) as killer:
            for number, value in enumerate(VALUES):
                producer.produce(topic, value, partition=number % 2)
                producer.poll(0)
                killer.at(number)
            assert producer.flush(TIMEOUT_S) == 0
            wait_until(lambda: len(seen) >= COUNT, TIMEOUT_S, "everything is seen")
    finally:
        process.terminate()
        process.wait(10)
        reader.join(10)
        lines.close()
    assert sorted(seen) == sorted(VALUES)
