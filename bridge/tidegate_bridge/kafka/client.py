"""The core as a whole: a connection to each node that is needed, and who leads which partition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import structlog

from tidegate_bridge.backoff import Backoff, Chance
from tidegate_bridge.errors import CoreRefused, CoreUnreachable
from tidegate_bridge.kafka import api
from tidegate_bridge.kafka.cluster import ClusterView
from tidegate_bridge.kafka.connection import KafkaConnection
from tidegate_wire.address import Address
from tidegate_wire.errors import TidegateError
from tidegate_wire.identifiers import Offset, ProducerEpoch, ProducerId
from tidegate_wire.kafka.messages import ErrorCode

CLIENT_ID: Final = "tidegate-bridge"
CONNECT_TIMEOUT_MS: Final = 5_000
"""TCP retries a lost SYN after 1 and 3 seconds; a node that took neither is not there."""
FETCH_BYTES_MAX: Final = 1024 * 1024
"""Of a compacted topic read at start: a round trip for some ten thousand small records."""
TOPIC_CREATION_TIMEOUT_MS: Final = 10_000
"""From CreateTopics until each partition has a leader; a healthy cluster takes well under a second."""

RECONNECT: Final = Backoff(first_ms=50, longest_ms=5_000)
TOPIC_POLL: Final = Backoff(first_ms=20, longest_ms=500)

_log = structlog.get_logger()
R = TypeVar("R")


class _Node:
    """One address: its connection, or how often connecting failed."""

    __slots__ = ("address", "connecting", "connection", "failures", "retry_at")

    def __init__(self, address: Address) -> None:
        self.address = address
        self.connection: KafkaConnection | None = None
        self.connecting: asyncio.Task[KafkaConnection] | None = None
        self.failures = 0
        self.retry_at = 0.0


class KafkaClient:
    """Talks to a core through any of its nodes; all of its methods belong to one event loop."""

    def __init__(self, bootstrap: Sequence[Address], *, request_timeout_ms: int, chance: Chance) -> None:
        self._bootstrap = tuple(bootstrap)
        self._request_timeout_ms = request_timeout_ms
        self._chance = chance
        self._view = ClusterView()
        self._nodes: dict[Address, _Node] = {}
        self._wanted_topics: set[str] = set()
        self._next_refresh: asyncio.Task[api.ClusterMetadata] | None = None
        self._refreshes: set[asyncio.Task[api.ClusterMetadata]] = set()
        self._refreshing = asyncio.Lock()

    async def close(self) -> None:
        """Close every connection; requests without an answer fail."""
        tasks: list[asyncio.Task[Any]] = [*self._refreshes]
        for node in self._nodes.values():
            if node.connecting is not None:
                tasks.append(node.connecting)
            if node.connection is not None:
                node.connection.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports' connection_lost

    def partition_count(self, topic: str) -> int | None:
        """How many partitions `topic` had when it was last looked up; None if it never was."""
        return self._view.partition_count(topic)

    def ready_leader(self, topic: str, partition: int) -> KafkaConnection | None:
        """An open connection with room to write to the partition's leader, if there is one now."""
        address = self._view.leader(topic, partition)
        node = None if address is None else self._nodes.get(address)
        if node is None or node.connection is None or node.connection.closed or not node.connection.writable:
            return None
        return node.connection

    async def leader(self, topic: str, partition: int) -> KafkaConnection:
        """A connection to the partition's leader with room to write, looked up and opened as needed.

        Raises:
            CoreUnreachable: there is no leader, or it can't be connected to.
            CoreRefused: the core says that there is no such topic.
        """
        address = self._view.leader(topic, partition)
        if address is None:
            metadata = (await self.refresh([topic])).topics.get(topic)
            address = self._view.leader(topic, partition)
            if address is None:
                if metadata is not None and metadata.error_code is not ErrorCode.none:
                    raise CoreRefused(f"topic {topic}: {metadata.error_code.name}", metadata.error_code)
                raise CoreUnreachable(f"partition {partition} of {topic} has no leader")
        try:
            connection = await self._connection(address)
        except CoreUnreachable:
            self._view.forget_leader(topic, partition)
            raise
        await connection.drained()
        return connection

    def forget_leader(self, topic: str, partition: int) -> None:
        """The leader answered that it is none, or not at all: look it up again before the next request."""
        self._view.forget_leader(topic, partition)

    async def refresh(self, topics: Iterable[str]) -> api.ClusterMetadata:
        """Ask for the metadata of `topics`; calls that come while one request is on its way share the next.

        Raises:
            CoreUnreachable: no node answered.
        """
        self._wanted_topics.update(topics)
        if self._next_refresh is None:
            self._next_refresh = asyncio.create_task(self._refresh())
            self._refreshes.add(self._next_refresh)
            self._next_refresh.add_done_callback(self._refreshed)
        return await asyncio.shield(self._next_refresh)

    def _refreshed(self, task: asyncio.Task[api.ClusterMetadata]) -> None:
        self._refreshes.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; if nobody does any more, it is not worth a warning

    async def _refresh(self) -> api.ClusterMetadata:
        async with self._refreshing:
            topics, self._wanted_topics = self._wanted_topics, set()
            self._next_refresh = None
            response = await self._call_any(api.metadata_request(topics), api.METADATA_RESPONSE)
            metadata = api.read_metadata(response)
            self._view.update(metadata)
            return metadata

    async def ensure_topics(self, specs: Mapping[str, api.TopicSpec]) -> dict[str, int | CoreRefused]:
        """Look up topics, and create those that are missing.

        Returns:
            For each topic its number of partitions, or why it can't be had.

        Raises:
            CoreUnreachable: the core does not answer, or new partitions got no leader in time.
        """
        topics = (await self.refresh(specs)).topics
        missing = {
            name: spec
            for name, spec in specs.items()
            if name not in topics or topics[name].error_code is ErrorCode.unknown_topic_or_partition
        }
        refused: dict[str, int | CoreRefused] = {}
        if missing:
            refused.update(await self._create_topics(missing))
            created = missing.keys() - refused.keys()
            topics = topics | await self._wait_for_leaders(created)
        found: dict[str, int | CoreRefused] = {}
        for name in specs.keys() - refused.keys():
            topic = topics[name]
            if topic.leaders:
                found[name] = len(topic.leaders)
            else:
                found[name] = CoreRefused(f"topic {name}: {topic.error_code.name}", topic.error_code)
        return found | refused

    async def _create_topics(self, specs: Mapping[str, api.TopicSpec]) -> dict[str, CoreRefused]:
        request = api.create_topics_request(specs, self._request_timeout_ms)
        controller = self._view.controller_address()
        if controller is None:
            response = await self._call_any(request, api.CREATE_TOPICS_RESPONSE)
        else:
            response = await (await self._connection(controller)).call(request, api.CREATE_TOPICS_RESPONSE)
        refused: dict[str, CoreRefused] = {}
        for topic in response.topics:
            if topic.error_code is ErrorCode.none:
                _log.info("topic_created", topic=topic.name, partitions=specs[topic.name].partitions)
            elif topic.error_code is ErrorCode.topic_already_exists:
                continue  # another bridge was faster
            elif topic.error_code.retriable:
                raise CoreUnreachable(f"topic {topic.name} can't be created now: {topic.error_code.name}")
            else:
                text = f"topic {topic.name}: {topic.error_message or topic.error_code.name}"
                refused[topic.name] = CoreRefused(text, topic.error_code)
        return refused

    async def _wait_for_leaders(self, names: Iterable[str]) -> dict[str, api.TopicMetadata]:
        wanted = set(names)
        failures = 0
        try:
            async with asyncio.timeout(TOPIC_CREATION_TIMEOUT_MS / 1000):
                while True:
                    topics = (await self.refresh(wanted)).topics
                    found = {name: topics[name] for name in wanted if name in topics}
                    if len(found) == len(wanted) and all(
                        topic.leaders and None not in topic.leaders for topic in found.values()
                    ):
                        return found
                    failures += 1
                    await asyncio.sleep(TOPIC_POLL.delay_ms(failures, self._chance) / 1000)
        except TimeoutError as error:
            raise CoreUnreachable(f"topics without a leader: {', '.join(sorted(wanted))}") from error

    async def init_producer_id(self) -> tuple[ProducerId, ProducerEpoch]:
        """A producer id that nobody ever had.

        Raises:
            CoreUnreachable: no answer, or no producer ids to be had right now.
            CoreRefused: the core does not give one.
        """
        response = await self._call_any(api.init_producer_id_request(), api.INIT_PRODUCER_ID_RESPONSE)
        code, producer_id, producer_epoch = api.read_producer_id(response)
        _raise_for(code, "a producer id")
        return producer_id, producer_epoch

    async def earliest_offset(self, topic: str, partition: int) -> Offset:
        """Where the partition's log begins.

        Raises:
            CoreUnreachable: no leader, or no answer.
            CoreRefused: the core does not say.
        """
        return await self._ask_leader(
            topic,
            partition,
            api.earliest_offset_request(topic, partition),
            api.LIST_OFFSETS_RESPONSE,
            api.read_offset,
        )

    async def fetch(self, topic: str, partition: int, offset: Offset) -> api.Fetched:
        """What the partition has from `offset` on; OFFSET_OUT_OF_RANGE is left to the caller.

        Raises:
            CoreUnreachable: no leader, or no answer.
            CoreRefused: the core refuses.
        """

        def read(response: Any) -> tuple[ErrorCode, api.Fetched]:
            fetched = api.read_fetched(response)
            code = ErrorCode.none if fetched.error_code is ErrorCode.offset_out_of_range else fetched.error_code
            return code, fetched

        request = api.fetch_request(topic, partition, offset, FETCH_BYTES_MAX)
        return await self._ask_leader(topic, partition, request, api.FETCH_RESPONSE, read)

    async def produce(self, topic: str, partition: int, batch: bytes) -> Offset:
        """Write one batch of the bridge's own, without a second try.

        Raises:
            CoreUnreachable: no leader, or no answer, or a passing trouble of the core.
            CoreRefused: the core refuses the batch.
        """
        connection = await self.leader(topic, partition)
        try:
            result = await connection.produce(topic, partition, batch, self._request_timeout_ms)
        except CoreUnreachable:
            self.forget_leader(topic, partition)
            raise
        if result.error_code is not ErrorCode.none:
            self.forget_leader(topic, partition)
        _raise_for(result.error_code, f"partition {partition} of {topic}", result.message)
        return Offset(result.base_offset)

    async def _ask_leader(
        self, topic: str, partition: int, request: Any, response_type: type[Any], read: Callable[[Any], tuple[Any, R]]
    ) -> R:
        connection = await self.leader(topic, partition)
        try:
            code, answer = read(await connection.call(request, response_type))
        except CoreUnreachable:
            self.forget_leader(topic, partition)
            raise
        if code is not ErrorCode.none:
            self.forget_leader(topic, partition)
        _raise_for(code, f"partition {partition} of {topic}")
        return answer

    async def _call_any(self, request: Any, response_type: type[R]) -> R:
        last_error: TidegateError | None = None
        for address in self._candidates():
            try:
                connection = await self._connection(address)
                return await connection.call(request, response_type)
            except TidegateError as error:
                last_error = error
        assert last_error is not None, "at least one bootstrap address"
        raise last_error

    def _candidates(self) -> list[Address]:
        """Every known address: those with a connection first, then those whose next try is due first."""

        def order(address: Address) -> tuple[bool, float, float]:
            node = self._nodes.get(address)
            connected = node is not None and node.connection is not None and not node.connection.closed
            return not connected, 0.0 if node is None else node.retry_at, self._chance()

        return sorted({*self._view.addresses(), *self._bootstrap}, key=order)

    async def _connection(self, address: Address) -> KafkaConnection:
        node = self._nodes.setdefault(address, _Node(address))
        if node.connection is not None and not node.connection.closed:
            return node.connection
        if node.connecting is None:
            node.connecting = asyncio.create_task(self._connect(node))
            node.connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(node.connecting)

    async def _connect(self, node: _Node) -> KafkaConnection:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(max(0.0, node.retry_at - loop.time()))
            node.connection = await KafkaConnection.open(
                node.address,
                client_id=CLIENT_ID,
                connect_timeout_ms=CONNECT_TIMEOUT_MS,
                request_timeout_ms=self._request_timeout_ms,
            )
        except TidegateError as error:
            node.failures += 1
            node.retry_at = loop.time() + RECONNECT.delay_ms(node.failures, self._chance) / 1000
            if node.failures == 1:
                _log.warning("core_unreachable", address=str(node.address), reason=str(error))
            raise
        else:
            _log.info("core_connected", address=str(node.address), after_failures=node.failures)
            node.failures = 0
            return node.connection
        finally:
            node.connecting = None


def _raise_for(code: ErrorCode, what: str, message: str = "") -> None:
    if code is ErrorCode.none:
        return
    text = f"{what}: {message or code.name}"
    if code.retriable:
        raise CoreUnreachable(text)
    raise CoreRefused(text, code)
