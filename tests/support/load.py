"""Load on a cluster that records what it saw: idempotent producers, a consumer group, an eye on committed offsets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Final, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tests.support.history import Commit, CommittedSeen, History, Log, Read, Sent, Verdict, check
from tests.support.kafka_requests import produce
from tests.support.processes import wait_until
from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import ErrorCode, MessageError

Settings = dict[str, str | int | float | bool]

QUICK: Final[Settings] = {
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 200,
    "retry.backoff.ms": 50,
    "retry.backoff.max.ms": 100,
    "topic.metadata.refresh.fast.interval.ms": 50,
    "topic.metadata.refresh.interval.ms": 1000,
    "socket.connection.setup.timeout.ms": 2000,
    "log.connection.close": False,
    "log_level": 0,
}
"""A client that looks for the new leader at once; a fault's time is then the cluster's own."""

REQUEST_TIMEOUT_MS: Final = 2000
"""For which a producer waits for an answer of a node that is frozen or cut off, before it turns to the new leader:
librdkafka asks nobody else while requests are under way. It is part of the measured times, with such faults."""

GROUP: Final = "readers"

_TICK_S: Final = 0.02
_OBSERVE_S: Final = 0.25


class Load:
    """Devices that publish at a rate and a group that reads, on threads of their own, while a test makes faults.

    Device n writes to partition n modulo `partitions` with an own sequence from 0. All threads are started by the one
    that enters, so they live in its network namespace.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        partitions: int,
        devices: int = 8,
        rate_hz: float = 25.0,
        producers: int = 2,
        consumers: int = 2,
        settings: Mapping[str, str | int | float | bool] | None = None,
    ) -> None:
        self.topic = topic
        self.partitions = partitions
        self.history = History()
        self._clients: Settings = {"bootstrap.servers": bootstrap, **QUICK, **(settings or {})}
        self._rate_hz = rate_hz
        self._devices = [(f"d{number}", number % partitions) for number in range(devices)]
        self._producing = threading.Event()
        self._reading = threading.Event()
        self.client_errors: list[str] = []
        """Why a producer gave up for good: it was told something that can't be, as a sequence that nobody knows."""
        self._failures: list[BaseException] = []
        names = [self._devices[number::producers] for number in range(producers)]
        self._producers = [self._thread(partial(self._produce, devices)) for devices in names if devices]
        self._readers = [self._thread(partial(self._read, f"reader-{number}")) for number in range(consumers)]
        if consumers:
            self._readers.append(self._thread(self._observe))

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # it is the test's, which looks at the end
                self._failures.append(error)

        return threading.Thread(target=run, name="load")

    def __enter__(self) -> Self:
        self._producing.set()
        self._reading.set()
        for thread in [*self._producers, *self._readers]:
            thread.start()
        wait_until(lambda: self.history.acknowledged > 0 or bool(self._failures), 30, "an event is acknowledged")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._producing.clear()
        self._reading.clear()
        for thread in [*self._producers, *self._readers]:
            thread.join(30)
        if error is None:
            assert not any(thread.is_alive() for thread in [*self._producers, *self._readers]), "a client hangs"
            assert not self._failures, self._failures

    # While faults happen.

    def first_ack_after(self, since_s: float) -> dict[int, float]:
        """By partition, when an event was first acknowledged that was sent after `since_s`."""
        first: dict[int, float] = {}
        for event in reversed(self.history.sent):
            if (
                event.sent_s < since_s - 1.0
            ):  # lists of several producers, one behind the other's time at most by a tick
                break
            if event.acked_s is not None and event.sent_s >= since_s:
                first[event.partition] = min(event.acked_s, first.get(event.partition, event.acked_s))
        return first

    def wait_progress(
        self, since_s: float, timeout_s: float, partitions: Iterable[int] | None = None, what: str = "the fault"
    ) -> float:
        """Seconds from `since_s` until each partition, by default all, acknowledged what was sent after it; the worst.

        An event that was on its way is no progress: only what was sent after `since_s` counts.
        """
        wanted = set(range(self.partitions) if partitions is None else partitions)
        deadline_s = since_s + timeout_s
        while not wanted <= (first := self.first_ack_after(since_s)).keys():
            assert time.monotonic() < deadline_s, (
                f"no acknowledged produce within {timeout_s} s after {what} on {sorted(wanted - first.keys())}"
            )
            assert not self._failures, self._failures
            assert not self.client_errors, self.client_errors
            time.sleep(_TICK_S)
        return max(first[index] for index in wanted) - since_s

    def produce_directly(self, address: Address, partition: int, timeout_s: float) -> bool:
        """Send one event, of a device of its own, to a node that may lead the partition; says if it is acknowledged."""
        event = Sent(f"direct-{len(self.history.sent)}", 0, partition, time.monotonic())
        self.history.sent.append(event)
        value = encode(event.device, event.sequence)
        try:
            key = event.device.encode()
            code, offset = produce(address, self.topic, partition, key=key, value=value, timeout_s=timeout_s)
        except (OSError, MessageError) as error:
            event.failure = repr(error)
            return False
        if code is not ErrorCode.none:
            event.failure = code.name
            return False
        event.offset, event.acked_s = offset, time.monotonic()
        return True

    # At the end.

    def finish(self, timeout_s: float = 30.0) -> Verdict:
        """Stop publishing, wait for acknowledgements and for the group, and compare with the log."""
        self._producing.clear()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._producers:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._producers), f"no verdict on all events in {timeout_s} s"
        with contextlib.suppress(AssertionError):  # the verdict says what is missing
            wait_until(self._group_has_read_all, max(1.0, deadline_s - time.monotonic()), "the group reads everything")
        self._reading.clear()
        for thread in self._readers:
            thread.join(30)
        log = self.read_log(max(10.0, deadline_s - time.monotonic()))
        return check(self.history, log, group_is_done=bool(self._readers))

    def _group_has_read_all(self) -> bool:
        if not self._readers:
            return True
        read = {(read.device, read.sequence) for read in list(self.history.reads)}
        return all((event.device, event.sequence) in read for event in self.history.sent if event.acked_s is not None)

    def read_log(self, timeout_s: float) -> Log:
        """Each partition from its start, until everything acknowledged has been read or time is up."""
        ends = {
            index: max(
                (event.offset for event in self.history.sent if event.partition == index and event.offset is not None),
                default=-1,
            )
            for index in range(self.partitions)
        }
        return _read_log(self._clients, self.topic, ends, timeout_s)

    # The threads.

    def _produce(self, devices: list[tuple[str, int]]) -> None:
        producer = Producer(
            {
                "enable.idempotence": True,
                "linger.ms": 5,
                "request.timeout.ms": REQUEST_TIMEOUT_MS,
                "socket.timeout.ms": REQUEST_TIMEOUT_MS,
                "message.timeout.ms": 120_000,
                "message.send.max.retries": 1_000_000,
                "queue.buffering.max.messages": 1_000_000,
                **self._clients,
            }
        )
        try:
            self._publish(producer, devices)
            while len(producer) and self._reading.is_set():
                producer.poll(0.1)
        except KafkaException as error:
            self.client_errors.append(str(error.args[0]))
        while len(producer):
            producer.purge()
            with contextlib.suppress(KafkaException):
                producer.poll(0.1)

    def _publish(self, producer: Producer, devices: list[tuple[str, int]]) -> None:
        sequence = 0
        next_s = time.monotonic()
        while self._producing.is_set():
            if time.monotonic() < next_s:
                producer.poll(min(_TICK_S, max(0.0, next_s - time.monotonic())))
                continue
            next_s += 1 / self._rate_hz
            for device, index in devices:
                event = Sent(device, sequence, index, time.monotonic())
                self.history.sent.append(event)
                producer.produce(
                    self.topic,
                    partition=index,
                    key=device.encode(),
                    value=encode(device, sequence),
                    on_delivery=partial(_delivered, event),
                )
            sequence += 1

    def _read(self, name: str) -> None:
        consumer = Consumer(
            {
                "group.id": GROUP,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 6000,
                "heartbeat.interval.ms": 500,
                **self._clients,
            }
        )
        with contextlib.closing(consumer):
            consumer.subscribe([self.topic])
            while self._reading.is_set():
                messages = consumer.consume(500, timeout=0.1)
                ends: dict[int, int] = {}
                for message in messages:
                    if message.error() is not None:
                        continue  # librdkafka goes on by itself, with what it has to
                    self.history.reads.append(_read_of(name, message))
                    ends[_partition(message)] = _offset(message) + 1
                if ends:
                    self._commit(consumer, ends)

    def _commit(self, consumer: Consumer, ends: Mapping[int, int]) -> None:
        """One at a time: librdkafka sends a commit again that got no answer, and be it after a later one."""
        positions = [TopicPartition(self.topic, index, end) for index, end in ends.items()]
        try:
            committed = consumer.commit(offsets=positions, asynchronous=False) or []
        except KafkaException:
            return  # nobody knows
        now_s = time.monotonic()
        for position in committed:
            if position.error is None:
                self.history.commits.append(Commit(position.partition, position.offset, now_s))

    def _observe(self) -> None:
        """Ask for the group's offsets, again and again, without being a member."""
        consumer = Consumer({"group.id": GROUP, **self._clients})
        positions = [TopicPartition(self.topic, index) for index in range(self.partitions)]
        with contextlib.closing(consumer):
            while self._reading.is_set():
                asked_s = time.monotonic()
                try:
                    answers = consumer.committed(positions, timeout=2.0)
                except KafkaException:
                    answers = []
                answered_s = time.monotonic()
                for answer in answers:
                    if answer.error is None and answer.offset >= 0:
                        seen = CommittedSeen(answer.partition, answer.offset, asked_s, answered_s)
                        self.history.committed_seen.append(seen)
                time.sleep(_OBSERVE_S)


def _read_log(clients: Settings, topic: str, ends: Mapping[int, int], timeout_s: float) -> Log:
    """What the partitions have, from their start to at least the offset that `ends` names and to their end then.

    Stops after `timeout_s` with what there is: a log that ends too early is for the checker to find.
    """
    log: dict[int, list[tuple[int, str, int]]] = {index: [] for index in ends}
    consumer = Consumer({"group.id": "whole-log", "enable.auto.commit": False, "enable.partition.eof": True, **clients})
    consumer.assign([TopicPartition(topic, index, OFFSET_BEGINNING) for index in ends])
    open_partitions = set(ends)
    deadline_s = time.monotonic() + timeout_s
    with contextlib.closing(consumer):
        while open_partitions and time.monotonic() < deadline_s:
            for message in consumer.consume(1000, timeout=0.2):
                error = message.error()
                index = _partition(message)
                if error is None:
                    read = _read_of("log", message)
                    log[index].append((read.offset, read.device, read.sequence))
                elif error.code() == KafkaError._PARTITION_EOF and _offset(message) > ends[index]:
                    open_partitions.discard(index)
    return log


def encode(device: str, sequence: int) -> bytes:
    """An event's payload."""
    return b"%s:%d" % (device.encode(), sequence)


def _delivered(event: Sent, error: KafkaError | None, message: Message) -> None:
    if error is not None:
        event.failure = error.name()
        return
    offset = message.offset()
    event.offset = offset if offset is not None and offset >= 0 else None
    event.acked_s = time.monotonic()


def _read_of(consumer: str, message: Message) -> Read:
    device, _, sequence = (message.value() or b"").decode().partition(":")
    return Read(consumer, _partition(message), _offset(message), device, int(sequence))


def _partition(message: Message) -> int:
    partition = message.partition()
    assert partition is not None
    return partition


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None
    return offset
