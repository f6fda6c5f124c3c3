"""Streams to read from: written with an ordinary Kafka producer, in the layout that an edge writes."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from tidegate import Event

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Core:
    """A running core."""

    address: str

    def new_stream(self, partitions: int = 4, **settings: str) -> str:
        """A stream that no other test uses."""
        name = f"stream-{next(_numbers)}-{time.monotonic_ns()}"
        config = {key.replace("_", "."): value for key, value in settings.items()}
        admin = self._admin()
        admin.create_topics([NewTopic(name, partitions, 1, config=config)])[name].result(10)
        return name

    def add_partitions(self, stream: str, total: int) -> None:
        admin = self._admin()
        admin.create_partitions([NewPartitions(stream, total)])[stream].result(10)

    def delete(self, stream: str) -> None:
        admin = self._admin()
        admin.delete_topics([stream])[stream].result(10)

    def delete_before(self, stream: str, partition: int, offset: int) -> None:
        admin = self._admin()
        wanted = TopicPartition(stream, partition, offset)
        admin.delete_records([wanted])[wanted].result(10)

    def _admin(self) -> AdminClient:
        """To be held until the answer is there: it ends its requests when it is collected."""
        return AdminClient({"bootstrap.servers": self.address})

    def produce(
        self,
        stream: str,
        count: int,
        *,
        partitions: int = 4,
        first: int = 1,
        compression: str = "none",
        time_ms: int | None = None,
    ) -> None:
        """Events numbered from `first`; the device `d-N` is in partition N."""
        producer = self.producer(compression)
        for number in range(first, first + count):
            device = f"d-{number % partitions}"
            payload = json.dumps({"device": device, "sequence": number}).encode()
            producer.produce(
                stream,
                key=device.encode(),
                value=payload,
                partition=number % partitions,
                timestamp=time_ms if time_ms is not None else 1_700_000_000_000 + number,
                headers=[
                    ("edge", b"plant-7"),
                    ("topic", f"plant/7/{device}".encode()),
                    ("sequence", str(number).encode()),
                    ("received", str(1_700_000_001_000 + number).encode()),
                    ("unit", b"C"),
                ],
            )
        assert producer.flush(20) == 0

    def producer(self, compression: str = "none") -> Producer:
        return Producer({"bootstrap.servers": self.address, "compression.type": compression})


def numbers(events: Iterable[Event]) -> list[int]:
    """The events' numbers, in the order in which they came."""
    return [event.json()["sequence"] for event in events]


def assert_in_order(events: Iterable[Event]) -> None:
    """Offsets of each partition come one by one."""
    last: dict[tuple[str, int], int] = {}
    for event in events:
        place = (event.stream, event.partition)
        assert place not in last or event.offset == last[place] + 1, event
        last[place] = event.offset


async def until(condition: Callable[[], bool], timeout_s: float = 40) -> None:
    """Wait for something that another task, thread or process brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 # nobody sets an event for it
            await asyncio.sleep(0.01)
