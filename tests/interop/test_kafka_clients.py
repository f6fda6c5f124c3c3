"""Other projects' Kafka clients against a core node in a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import aiokafka
import confluent_kafka.admin
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin import NewTopic as AioNewTopic
from confluent_kafka import (
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic as KafkaPythonTopic

from tests.support.peers import require_peer
from tests.support.processes import TidegatePart, wait_until

of_admin: Any = confluent_kafka.admin  # its stubs do not export what stands in it

TIMEOUT_S = 30.0
SESSION_MS = 6000
_numbers = itertools.count()


def start_core(directory: Path, name: str = "core") -> tuple[TidegatePart, str]:
    arguments = ["core", "--node-id", "1", "--listen", "127.0.0.1:0", "--data-dir", str(directory / "data")]
    core = TidegatePart(arguments, directory, name=name)
    return core, core.wait_ready()["listen"]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of a node that the tests of this module share; each uses topics and groups of its own."""
    process, listen = start_core(tmp_path_factory.mktemp("core"))
    with process:
        yield listen
        assert process.terminate() == 0
        assert "request_failed" not in process.output()
        assert "connection_failed" not in process.output()
        assert "connection_refused" not in process.output()


@pytest.fixture
def topic() -> str:
    return f"topic-{next(_numbers)}"


@pytest.fixture
def group() -> str:
    return f"group-{next(_numbers)}"


VALUES = [f"value-{number}".encode() * 20 for number in range(200)]
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


# kcat.


def kcat(core: str, *arguments: str, stdin: bytes = b"") -> bytes:
    command = [require_peer("kcat"), "-b", core, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("codec", CODECS)
def test_kcat_reads_what_it_wrote_in_every_codec(core: str, topic: str, codec: str) -> None:
    kcat(core, "-P", "-t", topic, "-z", codec, stdin=b"\n".join(VALUES))
    assert sorted(kcat(core, "-C", "-t", topic, "-e", "-q").split()) == sorted(VALUES)


def test_kcat_writes_idempotently_with_keys_and_headers(core: str, topic: str) -> None:
    kcat(core, "-P", "-t", topic, "-X", "enable.idempotence=true", "-K:", "-H", "a=b", stdin=b"k1:v1\nk2:v2\n")
    output = kcat(core, "-C", "-t", topic, "-e", "-q", "-f", "%k %s %h\n")
    assert sorted(output.split(b"\n")) == [b"", b"k1 v1 a=b", b"k2 v2 a=b"]


def test_kcat_lists_the_cluster(core: str, topic: str) -> None:
    kcat(core, "-P", "-t", topic, stdin=b"x")
    listing = kcat(core, "-L").decode()
    assert "broker 1 at 127.0.0.1" in listing
    assert f'topic "{topic}" with 4 partitions' in listing
    assert "leader 1, replicas: 1, isrs: 1" in listing


def test_kcat_reads_in_a_group_and_goes_on_where_it_stopped(core: str, topic: str, group: str) -> None:
    options = ("-q", "-X", "auto.offset.reset=earliest", "-G", group, topic)
    kcat(core, "-P", "-t", topic, "-p", "0", stdin=b"1\n2\n3\n")
    assert kcat(core, "-c", "3", *options).split() == [b"1", b"2", b"3"]
    kcat(core, "-P", "-t", topic, "-p", "0", stdin=b"4\n5\n")
    assert kcat(core, "-c", "2", *options).split() == [b"4", b"5"]


def test_kcat_finds_offsets_by_time(core: str, topic: str) -> None:
    kcat(core, "-P", "-t", topic, "-p", "0", stdin=b"1\n2\n")
    assert kcat(core, "-Q", "-t", f"{topic}:0:0").strip().endswith(b"offset 0")
    assert kcat(core, "-Q", "-t", f"{topic}:0:-1").strip().endswith(b"offset 2")


# confluent-kafka (librdkafka).


def make_topic(core: str, topic: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": core})
    result_of(admin.create_topics([of_admin.NewTopic(topic, partitions, 1)]))


def result_of(futures: dict[Any, Future[Any]]) -> Any:
    (future,) = futures.values()
    return future.result(TIMEOUT_S)


def produce(core: str, topic: str, values: list[bytes], partition: int = -1, **config: Any) -> None:
    producer = Producer({"bootstrap.servers": core, "linger.ms": 5} | config)
    errors: list[Any] = []
    for value in values:
        producer.produce(
            topic, value, partition=partition, on_delivery=lambda error, _: errors.append(error) if error else None
        )
    assert producer.flush(TIMEOUT_S) == 0
    assert errors == []


def consumer_of(core: str, group: str, **config: Any) -> Consumer:
    defaults = {
        "bootstrap.servers": core,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "session.timeout.ms": SESSION_MS,
        "heartbeat.interval.ms": 300,
    }
    return Consumer(defaults | config)


def read(consumer: Consumer, count: int) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + TIMEOUT_S
    while len(messages) < count:
        assert time.monotonic() < deadline, f"{len(messages)} of {count} messages"
        for message in consumer.consume(count - len(messages), 0.2):
            assert message.error() is None, message.error()
            messages.append(message)
    return messages


def values_of(messages: list[Message]) -> list[bytes | None]:
    values = []
    for message in messages:
        value = message.value()
        assert value is None or isinstance(value, bytes)
        values.append(value)
    return values


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("is_idempotent", [False, True])
def test_confluent_reads_what_it_wrote(core: str, topic: str, group: str, codec: str, is_idempotent: bool) -> None:
    config = {"compression.type": codec, "enable.idempotence": is_idempotent}
    produce(core, topic, VALUES, 0, **config)
    consumer = consumer_of(core, group)
    consumer.subscribe([topic])
    try:
        assert values_of(read(consumer, len(VALUES))) == VALUES
    finally:
        consumer.close()


@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_confluent_writes_with_any_acks(core: str, topic: str, group: str, acks: str) -> None:
    make_topic(core, topic, 1)
    produce(core, topic, VALUES, 0, acks=acks)
    consumer = consumer_of(core, group)
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        assert values_of(read(consumer, len(VALUES))) == VALUES
    finally:
        consumer.close()


def test_confluents_admin_client_makes_describes_changes_and_deletes_topics(core: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": core})
    result_of(admin.create_topics([of_admin.NewTopic(topic, 2, 1, config={"retention.ms": "5000"})]))
    with pytest.raises(KafkaException, match="TOPIC_ALREADY_EXISTS"):
        result_of(admin.create_topics([of_admin.NewTopic(topic, 2, 1)]))
    described = admin.list_topics(topic, TIMEOUT_S).topics[topic]
    assert len(described.partitions) == 2
    resource = of_admin.ConfigResource(of_admin.ResourceType.TOPIC, topic)
    assert result_of(admin.describe_configs([resource]))["retention.ms"].value == "5000"
    change = of_admin.ConfigEntry("retention.ms", "7000", incremental_operation=of_admin.AlterConfigOpType.SET)
    changed = of_admin.ConfigResource(of_admin.ResourceType.TOPIC, topic, incremental_configs=[change])
    result_of(admin.incremental_alter_configs([changed]))
    assert result_of(admin.describe_configs([resource]))["retention.ms"].value == "7000"
    result_of(admin.create_partitions([of_admin.NewPartitions(topic, 5)]))
    assert len(admin.list_topics(topic, TIMEOUT_S).topics[topic].partitions) == 5
    produce(core, topic, VALUES, 0)
    result_of(admin.delete_records([TopicPartition(topic, 0, 50)]))
    assert result_of(admin.list_offsets({TopicPartition(topic, 0): of_admin.OffsetSpec.earliest()})).offset == 50
    assert result_of(admin.list_offsets({TopicPartition(topic, 0): of_admin.OffsetSpec.latest()})).offset == len(VALUES)
    cluster = admin.describe_cluster().result(TIMEOUT_S)
    assert [node.id for node in cluster.nodes] == [1]
    result_of(admin.delete_topics([topic]))
    wait_until(lambda: topic not in admin.list_topics(timeout=TIMEOUT_S).topics, TIMEOUT_S, "the topic is gone")


def test_confluents_admin_client_lists_describes_and_deletes_groups(core: str, topic: str, group: str) -> None:
    produce(core, topic, VALUES, 0)
    consumer = consumer_of(core, group)
    consumer.subscribe([topic])
    read(consumer, len(VALUES))
    consumer.commit(asynchronous=False)
    admin = AdminClient({"bootstrap.servers": core})
    listed = admin.list_consumer_groups().result(TIMEOUT_S)
    assert group in {one.group_id for one in listed.valid}
    described = result_of(admin.describe_consumer_groups([group]))
    assert described.state.name == "STABLE"
    assert [one.topic for one in described.members[0].assignment.topic_partitions] == [topic] * 4
    consumer.close()

    def is_empty() -> bool:
        state: str = result_of(admin.describe_consumer_groups([group])).state.name
        return state == "EMPTY"

    wait_until(is_empty, TIMEOUT_S, "the member left")
    result_of(admin.delete_consumer_groups([group]))
    again = consumer_of(core, group)
    again.subscribe([topic])
    try:
        assert len(read(again, len(VALUES))) == len(VALUES)
    finally:
        again.close()


class GroupMember:
    """A confluent consumer that polls in a thread of its own, as applications do."""

    def __init__(self, core: str, group: str, topic: str, **config: Any) -> None:
        self.consumer = consumer_of(core, group, **config)
        self.assigned: set[int] = set()
        self.rebalances = 0
        self.values: list[bytes] = []
        self._stopping = threading.Event()
        self.consumer.subscribe([topic], on_assign=self._on_assign, on_revoke=self._on_revoke)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _on_assign(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalances += 1
        self.assigned |= {one.partition for one in partitions}

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self.assigned -= {one.partition for one in partitions}

    def _run(self) -> None:
        while not self._stopping.is_set():
            message = self.consumer.poll(0.05)
            if message is not None and message.error() is None:
                value = message.value()
                assert isinstance(value, bytes)
                self.values.append(value)
                self.consumer.commit(message=message, asynchronous=False)

    def stop(self, *, leaves: bool = True) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        if leaves:
            self.consumer.close()


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_confluent_consumers_share_a_group_and_take_over_from_each_other(
    core: str, topic: str, group: str, strategy: str
) -> None:
    produce(core, topic, [])
    make_topic(core, topic, 4)
    members = [GroupMember(core, group, topic, **{"partition.assignment.strategy": strategy}) for _ in range(2)]
    try:
        wait_until(
            lambda: [len(member.assigned) for member in members] == [2, 2], TIMEOUT_S, "two partitions for each member"
        )
        for partition in range(4):
            produce(core, topic, [f"{partition}-{number}".encode() for number in range(50)], partition)
        wait_until(lambda: sum(len(member.values) for member in members) >= 200, TIMEOUT_S, "200 values")
        members[0].stop()
        wait_until(lambda: len(members[1].assigned) == 4, TIMEOUT_S, "the other member takes over")
        for partition in range(4):
            produce(core, topic, [f"{partition}-{number}".encode() for number in range(50, 60)], partition)
        wait_until(lambda: sum(len(member.values) for member in members) >= 240, TIMEOUT_S, "40 more values")
        seen = members[0].values + members[1].values
        assert sorted(seen) == sorted(f"{p}-{n}".encode() for p in range(4) for n in range(60))
    finally:
        for member in members:
            member.stop()


def test_a_static_member_comes_back_without_a_rebalance_of_the_others(core: str, topic: str, group: str) -> None:
    make_topic(core, topic, 4)
    first = GroupMember(core, group, topic, **{"group.instance.id": "one"})
    second = GroupMember(core, group, topic, **{"group.instance.id": "two"})
    members = [first, second]
    try:
        wait_until(lambda: len(first.assigned) == len(second.assigned) == 2, TIMEOUT_S, "two partitions each")
        assigned, rebalances = set(second.assigned), first.rebalances
        second.stop()  # a static member does not leave when it is closed
        third = GroupMember(core, group, topic, **{"group.instance.id": "two"})
        members.append(third)
        wait_until(lambda: third.assigned == assigned, TIMEOUT_S, "the same partitions again")
        assert first.rebalances == rebalances
        produce(core, topic, [b"x"], min(assigned))
        wait_until(lambda: third.values == [b"x"], TIMEOUT_S, "it reads them")
    finally:
        for member in members:
            member.stop()


def is_fatal(error: KafkaError) -> bool:
    return error.fatal() or error.code() in {KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID}


def test_a_second_static_member_with_the_same_name_fences_the_first(core: str, topic: str, group: str) -> None:
    make_topic(core, topic, 1)
    fatal = threading.Event()
    first = consumer_of(
        core,
        group,
        **{"group.instance.id": "one", "error_cb": lambda error: fatal.set() if is_fatal(error) else None},
    )
    first.subscribe([topic])
    second = consumer_of(core, group, **{"group.instance.id": "one"})
    try:
        wait_until(lambda: first.poll(0.1) is None and bool(first.assignment()), TIMEOUT_S, "the first is assigned")
        second.subscribe([topic])
        wait_until(lambda: second.poll(0.1) is None and bool(second.assignment()), TIMEOUT_S, "so is the second")

        def first_is_fenced() -> bool:
            message = first.poll(0.1)
            error = None if message is None else message.error()
            return fatal.is_set() or (error is not None and is_fatal(error))

        wait_until(first_is_fenced, TIMEOUT_S, "the first is told that it was fenced")
    finally:
        first.close()
        second.close()


def test_confluent_commits_and_resumes(core: str, topic: str, group: str) -> None:
    produce(core, topic, VALUES, 0)
    consumer = consumer_of(core, group)
    consumer.subscribe([topic])
    messages = read(consumer, 120)
    consumer.commit(message=messages[99], asynchronous=False)
    consumer.close()
    consumer = consumer_of(core, group)
    (committed,) = consumer.committed([TopicPartition(topic, 0)], TIMEOUT_S)
    assert committed.offset == 100
    consumer.subscribe([topic])
    try:
        assert values_of(read(consumer, 100)) == VALUES[100:]
    finally:
        consumer.close()


def test_confluent_finds_offsets_for_times(core: str, topic: str, group: str) -> None:
    producer = Producer({"bootstrap.servers": core})
    start_ms = 1_700_000_000_000
    for number in range(100):
        producer.produce(topic, b"%d" % number, partition=0, timestamp=start_ms + number * 1000)
        if number % 10 == 9:
            assert producer.flush(TIMEOUT_S) == 0
    consumer = consumer_of(core, group)
    try:
        for time_ms, offset in (
            (0, 0),
            (start_ms + 41_500, 42),
            (start_ms + 99_000, 99),
            (start_ms + 99_001, OFFSET_END),
        ):
            (found,) = consumer.offsets_for_times([TopicPartition(topic, 0, time_ms)], TIMEOUT_S)
            assert found.offset == offset
        assert consumer.get_watermark_offsets(TopicPartition(topic, 0), TIMEOUT_S) == (0, 100)
    finally:
        consumer.close()


def test_a_transactional_producer_of_confluent_is_refused_at_once(core: str) -> None:
    producer = Producer({"bootstrap.servers": core, "transactional.id": "tx"})
    with pytest.raises(KafkaException) as refused:
        producer.init_transactions(TIMEOUT_S)
    assert refused.value.args[0].name() in {"TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "_UNSUPPORTED_FEATURE"}


# aiokafka.


@pytest.mark.parametrize("codec", [None, "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("is_idempotent", [False, True])
async def test_aiokafka_reads_what_it_wrote(core: str, topic: str, codec: str | None, is_idempotent: bool) -> None:
    async with aiokafka.AIOKafkaProducer(
        bootstrap_servers=core, compression_type=codec, enable_idempotence=is_idempotent, linger_ms=5
    ) as producer:
        sent = [await producer.send(topic, value, partition=0) for value in VALUES]
        offsets = [(await one).offset for one in sent]
    assert offsets == list(range(len(VALUES)))
    async with aiokafka.AIOKafkaConsumer(topic, bootstrap_servers=core, auto_offset_reset="earliest") as consumer:
        assert await _aio_values(consumer, len(VALUES)) == VALUES


async def _aio_values(consumer: Any, count: int) -> list[bytes]:
    async with asyncio.timeout(TIMEOUT_S):
        return [(await consumer.getone()).value for _ in range(count)]


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # the client offers no event for it
            await asyncio.sleep(0.02)


async def test_aiokafka_consumers_share_a_group_commit_and_resume(core: str, topic: str, group: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=core)
    await admin.start()
    try:
        await admin.create_topics([AioNewTopic(topic, 4, 1)])

        def member() -> Any:
            return aiokafka.AIOKafkaConsumer(
                topic,
                bootstrap_servers=core,
                group_id=group,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                session_timeout_ms=SESSION_MS,
                heartbeat_interval_ms=300,
            )

        async with member() as first:
            await _eventually(lambda: len(first.assignment()) == 4)
            async with member() as second:
                await _eventually(lambda: len(first.assignment()) == len(second.assignment()) == 2)
            await _eventually(lambda: len(first.assignment()) == 4)
            async with aiokafka.AIOKafkaProducer(bootstrap_servers=core) as producer:
                for number in range(10):
                    await producer.send_and_wait(topic, b"%d" % number, partition=number % 4)
            assert len(await _aio_values(first, 10)) == 10
            await first.commit()
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=core) as producer:
            await producer.send_and_wait(topic, b"more")
        async with member() as third:
            assert await _aio_values(third, 1) == [b"more"]
        assert (group, "consumer") in await admin.list_consumer_groups()
    finally:
        await admin.close()


async def test_aiokafkas_admin_client_makes_describes_and_deletes_topics(core: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=core)
    await admin.start()
    try:
        await admin.create_topics([AioNewTopic(topic, 3, 1)])
        (described,) = await admin.describe_topics([topic])
        assert len(described["partitions"]) == 3
        assert [broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]] == [1]
        await admin.delete_topics([topic])
        assert topic not in await admin.list_topics()
    finally:
        await admin.close()


# kafka-python.


@pytest.mark.parametrize("codec", [None, "gzip", "lz4", "zstd"])  # it takes snappy from a package that is not here
@pytest.mark.parametrize("is_idempotent", [False, True])
def test_kafka_python_reads_what_it_wrote(core: str, topic: str, codec: str | None, is_idempotent: bool) -> None:
    producer = KafkaProducer(bootstrap_servers=core, compression_type=codec, enable_idempotence=is_idempotent)
    sent = [producer.send(topic, value, partition=0) for value in VALUES]
    producer.flush(TIMEOUT_S)
    assert [one.get(TIMEOUT_S).offset for one in sent] == list(range(len(VALUES)))
    producer.close()
    consumer = KafkaConsumer(topic, bootstrap_servers=core, auto_offset_reset="earliest", consumer_timeout_ms=20_000)
    assert [message.value for message in itertools.islice(consumer, len(VALUES))] == VALUES
    consumer.close()


class KafkaPythonMember:
    """A kafka-python consumer that polls in a thread of its own; a poll may last for a whole rebalance."""

    def __init__(self, core: str, group: str, topic: str) -> None:
        self.consumer = KafkaConsumer(
            topic,
            bootstrap_servers=core,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=300,
        )
        self.assigned = 0
        self.values: list[bytes] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for messages in self.consumer.poll(timeout_ms=500).values():
                self.values += [message.value for message in messages]
                self.consumer.commit()
            self.assigned = len(self.consumer.assignment())
        self.consumer.close()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


def test_kafka_python_consumers_share_a_group_commit_and_resume(core: str, topic: str, group: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=core)
    admin.create_topics([KafkaPythonTopic(topic, 4, 1)])
    producer = KafkaProducer(bootstrap_servers=core)
    members = [KafkaPythonMember(core, group, topic) for _ in range(2)]
    first, second = members
    try:
        wait_until(lambda: first.assigned == second.assigned == 2, TIMEOUT_S, "two partitions each")
        for number in range(20):
            producer.send(topic, b"%d" % number, partition=number % 4)
        producer.flush(TIMEOUT_S)
        wait_until(lambda: len(first.values + second.values) == 20, TIMEOUT_S, "20 values")
        second.stop()
        wait_until(lambda: first.assigned == 4, TIMEOUT_S, "the other takes over")
        producer.send(topic, b"more").get(TIMEOUT_S)
        wait_until(lambda: b"more" in first.values, TIMEOUT_S, "one more value")
        first.stop()
        producer.send(topic, b"last").get(TIMEOUT_S)
        third = KafkaPythonMember(core, group, topic)
        members.append(third)
        wait_until(lambda: third.values == [b"last"], TIMEOUT_S, "it goes on where the others stopped")
        third.stop()
        offsets = admin.list_group_offsets([group])[group]
        assert sum(offset.offset for offset in offsets.values()) == 22
    finally:
        for member in members:
            member.stop()
        producer.close()
        admin.close()


def test_kafka_pythons_admin_client_makes_describes_and_deletes_topics(core: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=core)
    try:
        admin.create_topics([KafkaPythonTopic(topic, 3, 1, topic_configs={"retention.ms": "5000"})])
        (described,) = admin.describe_topics([topic])
        assert len(described["partitions"]) == 3
        assert [broker["broker_id"] for broker in admin.describe_cluster()["brokers"]] == [1]
        admin.delete_topics([topic])
        assert topic not in admin.list_topics()
    finally:
        admin.close()


# kill -9.


def test_nothing_acknowledged_is_lost_by_kill_9_and_groups_resume(tmp_path: Path) -> None:
    process, listen = start_core(tmp_path)
    port = listen.rpartition(":")[2]
    arguments = ["core", "--node-id", "1", "--listen", f"127.0.0.1:{port}", "--data-dir", str(tmp_path / "data")]
    with process:
        make_topic(listen, "t", 2)
        acknowledged: list[bytes] = []

        def on_delivery(error: Any, message: Message) -> None:
            assert error is None, error
            value = message.value()
            assert isinstance(value, bytes)
            acknowledged.append(value)

        producer = Producer({"bootstrap.servers": listen, "enable.idempotence": True, "linger.ms": 1})
        member = GroupMember(listen, "g", "t")
        try:
            for number in range(3000):
                producer.produce("t", b"%d" % number, partition=number % 2, on_delivery=on_delivery)
                producer.poll(0.001)
                if number in (700, 1800):
                    assert len(acknowledged) > 100
                    process.kill()
                    process = TidegatePart(arguments, tmp_path, name=f"core-{number}")
                    process.__enter__()
                    process.wait_ready()
            assert producer.flush(TIMEOUT_S) == 0
            wait_until(lambda: len(set(member.values)) == 3000, TIMEOUT_S, "the group reads everything")
        finally:
            member.stop()
            producer.purge()
            producer.flush(1)
        assert sorted(acknowledged) == sorted(b"%d" % number for number in range(3000))
        consumer = consumer_of(listen, "other")
        consumer.assign([TopicPartition("t", index, 0) for index in range(2)])
        messages = read(consumer, 3000)
        for partition in range(2):
            in_order = [int(value or b"") for value in values_of([m for m in messages if m.partition() == partition])]
            assert in_order == list(range(partition, 3000, 2))  # each once, in order
        (low, high) = consumer.get_watermark_offsets(TopicPartition("t", 0), TIMEOUT_S)
        assert (low, high) == (0, 1500)
        consumer.close()
        assert process.terminate() == 0
