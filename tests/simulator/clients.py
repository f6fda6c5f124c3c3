"""Clients of a simulated cluster: they speak the Kafka protocol, write down what they were told, and never wait for
more than their time. The histories are those of `tests.support`, and so are their checkers.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Final, NamedTuple

from tests.simulator.cluster import Cluster, SimulatedNode
from tests.simulator.invariants import ACKNOWLEDGED_STAYS, Violation
from tests.simulator.network import CLIENT, LinkBroken
from tests.support.history import Commit, CommittedSeen, History, Read, Sent
from tests.support.linearizability import Operation
from tests.support.topics_history import create, delete, see
from tidegate_core.protocol.translate import compose
from tidegate_core.protocol.versions import Api, newest
from tidegate_wire.identifiers import BatchSequence, ProducerEpoch, ProducerId
from tidegate_wire.kafka.messages import ErrorCode, decode_response, encode_request, request_type, response_type
from tidegate_wire.records import BatchHeader, RecordBatchBuilder, iter_batches, read_records

TIMEOUT_S: Final = 3.0
RETRY_S: Final = 0.1
GROUP: Final = "group"

_LENGTH_BYTES: Final = 4
_REPEATED: Final = ErrorCode.duplicate_sequence_number
_NEVER: Final = frozenset(
    {
        ErrorCode.out_of_order_sequence_number,
        ErrorCode.unknown_producer_id,
        ErrorCode.invalid_producer_epoch,
        ErrorCode.corrupt_message,
    }
)
"""Told to a producer that keeps the rules, these say that something acknowledged is gone."""


class Place(NamedTuple):
    topic: str
    partition: int


def seconds(count: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=count)


class Clients:
    """All of them; what they recorded is checked after `stop`."""

    def __init__(
        self, cluster: Cluster, chance: Random, *, places: Sequence[Place], admin_topics: Sequence[str]
    ) -> None:
        self.history = History()
        self.topics: dict[str, list[Operation]] = {name: [] for name in admin_topics}
        self.places = list(places)
        """Their positions are the partitions' numbers in the history."""
        self._cluster = cluster
        self._chance = chance
        self._is_stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    # --- one request

    async def ask(self, node: SimulatedNode, api: Api, version: int | None = None, **fields: Any) -> Any:
        """A node's answer; None: none came, and nobody knows what was done."""
        version = newest(api) if version is None else version
        frame = encode_request(compose(request_type(api, version), fields), 1, CLIENT)[_LENGTH_BYTES:]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._cluster.network.ask(CLIENT, node.address, frame, may_double=api is Api.PRODUCE)
        except (TimeoutError, LinkBroken):
            return None
        return decode_response(response_type(api, version), answer)[1]

    def any_node(self) -> SimulatedNode:
        return self._chance.choice(list(self._cluster.nodes.values()))

    async def until(self, attempt: Callable[[], Awaitable[bool]]) -> bool:
        """Try again and again; False: the client was stopped before it worked."""
        while not await attempt():
            if self._is_stopping:
                return False
            await asyncio.sleep(self._chance.uniform(0, 2 * RETRY_S))
        return True

    async def leader_of(self, place: Place) -> SimulatedNode | None:
        """Who leads a partition, as any node knows."""
        wanted = [{"name": place.topic}]
        answer = await self.ask(self.any_node(), Api.METADATA, 9, topics=wanted, allow_auto_topic_creation=False)
        if answer is None:
            return None
        for partition in answer.topics[0].partitions:
            if partition.partition_index == place.partition:
                return self._cluster.nodes.get(partition.leader_id)
        return None

    async def make_topic(self, name: str, partitions: int, replicas: int, **configs: str) -> ErrorCode | None:
        topic = {
            "name": name,
            "num_partitions": partitions,
            "replication_factor": replicas,
            "assignments": [],
            "configs": [{"name": key.replace("_", "."), "value": value} for key, value in configs.items()],
        }
        answer = await self.ask(self.any_node(), Api.CREATE_TOPICS, topics=[topic], timeout=seconds(TIMEOUT_S))
        return None if answer is None else ErrorCode(answer.topics[0].error_code)

    # --- life

    def start(self, *, producers: int, readers: int, admins: int, committers: int) -> None:
        """Begin."""
        work = [self._produce(f"device-{number}") for number in range(producers)]
        work += [self._consume(f"reader-{number}") for number in range(readers)]
        work += [self._administer(f"admin-{number}") for number in range(admins)]
        work += [self._commit(number) for number in range(committers)]
        work += [self._look_at_offsets(number) for number in range(committers)]
        self._tasks = [asyncio.create_task(one) for one in work]

    async def stop(self) -> None:
        """Let each finish what it is at: what was sent is sent again until it is acknowledged."""
        self._is_stopping = True
        await asyncio.gather(*self._tasks)

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- producers

    async def _produce(self, device: str) -> None:
        """An idempotent producer: one batch at a time, sent again, byte for byte, until it is acknowledged."""
        number = self._chance.randrange(len(self.places))
        place = self.places[number]
        producer_id = -1
        sequence = 0
        leader: SimulatedNode | None = None
        while not self._is_stopping:
            if producer_id < 0:
                producer_id = await self._producer_id()
                continue
            builder = RecordBatchBuilder(ProducerId(producer_id), ProducerEpoch(0), BatchSequence(sequence))
            events = [
                Sent(device, sequence + ahead, number, self._cluster.loop.time())
                for ahead in range(self._chance.randint(1, 5))
            ]
            for event in events:
                padding = "." * self._chance.choice((0, 0, 100, 900))
                builder.append(1_700_000_000_000, None, f"{device}:{event.sequence}:{padding}".encode())
            self.history.sent += events
            batch = builder.build()
            while events[0].acked_s is None:
                if leader is None:
                    leader = await self.leader_of(place)
                if leader is None or not await self._send(leader, place, batch, events):
                    leader = None
                    await asyncio.sleep(self._chance.uniform(0, 2 * RETRY_S))
            sequence += len(events)
            await asyncio.sleep(self._chance.expovariate(1) * self._chance.choice((0.01, 0.05, 0.2)))

    async def _producer_id(self) -> int:
        answer = await self.ask(self.any_node(), Api.INIT_PRODUCER_ID, transaction_timeout=seconds(1))
        if answer is None or answer.error_code is not ErrorCode.none:
            await asyncio.sleep(RETRY_S)
            return -1
        return int(answer.producer_id)

    async def _send(self, leader: SimulatedNode, place: Place, batch: bytes, events: Sequence[Sent]) -> bool:
        answer = await self.ask(
            leader,
            Api.PRODUCE,
            acks=-1,
            timeout=seconds(TIMEOUT_S / 2),
            topic_data=[{"name": place.topic, "partition_data": [{"index": place.partition, "records": batch}]}],
        )
        if answer is None:
            return False
        result = answer.responses[0].partition_responses[0]
        code = ErrorCode(result.error_code)
        if code in _NEVER:
            raise Violation(ACKNOWLEDGED_STAYS, f"{leader.life} answers {code.name} to {events[0]}")
        if code not in (ErrorCode.none, _REPEATED):
            return False
        for ahead, event in enumerate(events):
            event.acked_s = self._cluster.loop.time()
            event.offset = int(result.base_offset) + ahead if code is ErrorCode.none else None
        return True

    # --- consumers

    async def _consume(self, reader: str) -> None:
        """Reads what it can, from whoever leads."""
        positions = [0] * len(self.places)
        while not self._is_stopping:
            number = self._chance.randrange(len(self.places))
            place = self.places[number]
            leader = await self.leader_of(place)
            if leader is not None:
                read = await self.fetch(leader, place, positions[number])
                if read is not None:
                    positions[number], events = read
                    self.history.reads += [Read(reader, number, *event) for event in events]
            await asyncio.sleep(self._chance.uniform(0, 0.5))

    async def fetch(
        self, node: SimulatedNode, place: Place, offset: int
    ) -> tuple[int, list[tuple[int, str, int]]] | None:
        """What a node gives from `offset` on: where to go on, and the events before that; None: it gives nothing."""
        part = {"partition": place.partition, "fetch_offset": offset, "partition_max_bytes": 2**20}
        wanted = [{"topic": place.topic, "partitions": [part]}]
        answer = await self.ask(node, Api.FETCH, 11, topics=wanted, max_bytes=2**24, min_bytes=0)
        if answer is None or answer.responses[0].partitions[0].error_code is not ErrorCode.none:
            return None
        records = bytes(answer.responses[0].partitions[0].records or b"")
        events = [event for event in events_of(records) if event[0] >= offset]
        for batch in iter_batches(records):
            offset = BatchHeader.parse(batch).last_offset + 1
        return offset, events

    # --- groups

    async def coordinator(self, group: str) -> SimulatedNode | None:
        answer = await self.ask(self.any_node(), Api.FIND_COORDINATOR, key_type=0, coordinator_keys=[group])
        if answer is None or answer.coordinators[0].error_code is not ErrorCode.none:
            return None
        return self._cluster.nodes.get(answer.coordinators[0].node_id)

    async def _commit(self, number: int) -> None:
        """Commits ever higher offsets."""
        offset = 0
        while not self._is_stopping:
            offset += self._chance.randint(1, 10)
            node = await self.coordinator(f"{GROUP}-{number}")
            if node is not None:
                await self._commit_once(node, number, offset)
            await asyncio.sleep(self._chance.uniform(0, 0.5))

    async def _commit_once(self, node: SimulatedNode, number: int, offset: int) -> None:
        place = self.places[number]
        part = {"partition_index": place.partition, "committed_offset": offset, "committed_metadata": ""}
        answer = await self.ask(
            node,
            Api.OFFSET_COMMIT,
            group_id=f"{GROUP}-{number}",
            generation_id_or_member_epoch=-1,
            member_id="",
            topics=[{"name": place.topic, "partitions": [part]}],
        )
        if answer is not None and answer.topics[0].partitions[0].error_code is ErrorCode.none:
            self.history.commits.append(Commit(number, offset, self._cluster.loop.time()))

    async def _look_at_offsets(self, number: int) -> None:
        while not self._is_stopping:
            asked_s = self._cluster.loop.time()
            node = await self.coordinator(f"{GROUP}-{number}")
            offset = None if node is None else await self.committed_offset(node, number)
            if offset is not None:
                self.history.committed_seen.append(CommittedSeen(number, offset, asked_s, self._cluster.loop.time()))
            await asyncio.sleep(self._chance.uniform(0, 0.5))

    async def committed_offset(self, node: SimulatedNode, number: int) -> int | None:
        place = self.places[number]
        wanted = [{"name": place.topic, "partition_indexes": [place.partition]}]
        answer = await self.ask(node, Api.OFFSET_FETCH, groups=[{"group_id": f"{GROUP}-{number}", "topics": wanted}])
        if answer is None or answer.groups[0].error_code is not ErrorCode.none:
            return None
        part = answer.groups[0].topics[0].partitions[0]
        return int(part.committed_offset) if part.error_code is ErrorCode.none else None

    # --- administrators

    async def _administer(self, admin: str) -> None:
        """Makes, deletes and looks at topics, through any node."""
        while not self._is_stopping:
            name = self._chance.choice(list(self.topics))
            action = self._chance.choice((create(self._chance.randint(1, 3)), delete(), see(), see()))
            node = self.any_node()
            session = str(node.life)
            called_s = self._cluster.loop.time()
            outcome = await self._carry_out(node, name, action)
            if outcome is not None or action != see():
                self.topics[name].append(
                    Operation(
                        client=admin,
                        action=action,
                        outcome=outcome,
                        called_s=called_s,
                        returned_s=self._cluster.loop.time(),
                        session=session if action == see() else None,
                    )
                )
            await asyncio.sleep(self._chance.uniform(0, 1))

    async def _carry_out(self, node: SimulatedNode, name: str, action: tuple[str, int]) -> str | int | None:
        if action == see():
            answer = await self.ask(node, Api.METADATA, 9, topics=[{"name": name}], allow_auto_topic_creation=False)
            if answer is None:
                return None
            found = ErrorCode(answer.topics[0].error_code)
            if found is ErrorCode.unknown_topic_or_partition:
                return "absent"
            return len(answer.topics[0].partitions) if found is ErrorCode.none else None
        if action == delete():
            answer = await self.ask(node, Api.DELETE_TOPICS, topics=[{"name": name}], timeout=seconds(TIMEOUT_S))
            code = None if answer is None else ErrorCode(answer.responses[0].error_code)
        else:
            replicas = min(3, len(self._cluster.nodes))
            topic = {"name": name, "num_partitions": action[1], "replication_factor": replicas}
            answer = await self.ask(node, Api.CREATE_TOPICS, topics=[topic], timeout=seconds(TIMEOUT_S))
            code = None if answer is None else ErrorCode(answer.topics[0].error_code)
        outcomes = {
            ErrorCode.none: "done",
            ErrorCode.topic_already_exists: "exists",
            ErrorCode.unknown_topic_or_partition: "missing",
        }
        return None if code is None else outcomes.get(code)


def events_of(records: bytes | memoryview) -> list[tuple[int, str, int]]:
    """Offset, device and sequence of each event in whole batches."""
    events: list[tuple[int, str, int]] = []
    for batch in iter_batches(records):
        if BatchHeader.parse(batch).is_control:
            continue
        for record in read_records(batch):
            assert record.value is not None
            device, sequence, _ = record.value.decode().split(":")
            events.append((record.offset, device, int(sequence)))
    return events
