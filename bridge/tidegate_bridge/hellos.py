"""Answers hellos: looks up or creates streams, gives out a producer id where one is wanted, and says welcome.

One hello of an edge is worked on at a time; of those that come meanwhile only the newest counts, because an edge that
says hello again has forgotten the one before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from tidegate_bridge.backoff import Backoff, Chance
from tidegate_bridge.errors import CoreRefused
from tidegate_bridge.kafka.api import TopicSpec
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_bridge.producers import Producers
from tidegate_bridge.streams import StreamPolicy
from tidegate_wire.errors import TidegateError
from tidegate_wire.uplink.messages import Hello, StreamInfo, Welcome

EDGES_AT_ONCE_MAX: Final = 2_000
"""Edges whose hello is being answered; beyond it a hello is passed over, and the edge says it again."""

STREAMS_MAX: Final = 1_000
"""Streams of one edge: what a welcome of less than 100 kB can name."""

ANSWER_MS: Final = 15_000
"""How long a hello is tried while the core does not answer; by then the edge says hello again."""

RETRY: Final = Backoff(first_ms=100, longest_ms=2_000)

_log = structlog.get_logger()

Answer = Callable[[str, Welcome], None]
"""Sends a welcome to the edge named first."""


class Hellos:
    """Works on hellos, many edges at a time."""

    def __init__(
        self,
        client: KafkaClient,
        producers: Producers,
        policy: StreamPolicy,
        answer: Answer,
        *,
        bridge: str,
        batch_bytes_max: int,
        window_batches_max: int,
        chance: Chance,
    ) -> None:
        self._client = client
        self._producers = producers
        self._policy = policy
        self._answer = answer
        self._bridge = bridge
        self._batch_bytes_max = batch_bytes_max
        self._window_batches_max = window_batches_max
        self._chance = chance
        self._newest: dict[str, Hello] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def put(self, hello: Hello) -> bool:
        """Take a hello; False if too many edges are being answered."""
        if hello.edge not in self._tasks:
            if len(self._tasks) >= EDGES_AT_ONCE_MAX:
                return False
            self._tasks[hello.edge] = asyncio.create_task(self._work(hello.edge))
        self._newest[hello.edge] = hello
        return True

    async def close(self) -> None:
        """Stop answering."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, edge: str) -> None:
        try:
            while (hello := self._newest.pop(edge, None)) is not None:
                await self._answer_hello(hello)
        finally:
            del self._tasks[edge]

    async def _answer_hello(self, hello: Hello) -> None:
        try:
            async with asyncio.timeout(ANSWER_MS / 1000):
                welcome = await self._try_until_answered(hello)
        except TimeoutError:
            _log.warning("hello_not_answered", edge=hello.edge, after_ms=ANSWER_MS)
            return
        if welcome is None:
            return
        self._answer(hello.edge, welcome)
        _log.info(
            "edge_welcomed",
            edge=hello.edge,
            producer_id=welcome.producer_id,
            streams=len(welcome.streams),
            refused=sorted(welcome.refused_streams),
        )

    async def _try_until_answered(self, hello: Hello) -> Welcome | None:
        """The welcome; None if the edge said hello again meanwhile."""
        failures = 0
        while hello.edge not in self._newest:
            try:
                return await self._welcome(hello)
            except TidegateError as error:
                failures += 1
                if failures == 1:
                    _log.warning("hello_delayed", edge=hello.edge, reason=str(error))
                await asyncio.sleep(RETRY.delay_ms(failures, self._chance) / 1000)
        return None

    async def _welcome(self, hello: Hello) -> Welcome:
        refused: dict[str, str] = {}
        specs: dict[str, TopicSpec] = {}
        for stream in dict.fromkeys(hello.streams[:STREAMS_MAX]):
            reason = self._policy.refusal(stream)
            if reason is None:
                specs[stream] = self._policy.spec(stream)
            else:
                refused[stream] = reason
        found = await self._client.ensure_topics(specs) if specs else {}
        streams: list[StreamInfo] = []
        for stream in specs:
            result = found[stream]
            if isinstance(result, CoreRefused):
                refused[stream] = str(result)
            else:
                streams.append(StreamInfo(name=stream, partitions=result))
        producer_id, producer_epoch = None, -1
        if hello.wants_producer_id:
            producer_id, producer_epoch = await self._producers.give_out(hello.edge)
        return Welcome(
            session=hello.session,
            producer_id=producer_id,
            producer_epoch=producer_epoch,
            streams=tuple(streams),
            refused_streams=refused,
            batch_bytes_max=self._batch_bytes_max,
            window_batches_max=self._window_batches_max,
            bridge=self._bridge,
        )
