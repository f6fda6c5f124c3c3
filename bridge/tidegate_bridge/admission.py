"""The door between what was received and what is sent: whose producer id, which stream, which partition.

Nearly always all of it is known, and a batch goes through at once. Where something has to be asked of the core first, a
batch waits, and every later batch of that producer id waits behind it, so that none overtakes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from tidegate_bridge.backoff import Backoff, Chance
from tidegate_bridge.batch_checks import CheckedBatch, check_partition, check_stream, refuse
from tidegate_bridge.errors import CoreRefused
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_bridge.lane import Settled
from tidegate_bridge.producers import Producers
from tidegate_bridge.streams import StreamPolicy
from tidegate_wire.errors import TidegateError
from tidegate_wire.kafka.messages import ErrorCode
from tidegate_wire.uplink.messages import AckError

UNKNOWN_PRODUCER: Final = "unknown_producer_id"
RETRY: Final = Backoff(first_ms=50, longest_ms=1_000)

_log = structlog.get_logger()

Submit = Callable[[CheckedBatch, Settled], None]


class Admission:
    """Passes good batches on to `submit`, settles the others."""

    def __init__(
        self,
        client: KafkaClient,
        producers: Producers,
        policy: StreamPolicy,
        submit: Submit,
        *,
        retry_ms: int,
        chance: Chance,
    ) -> None:
        self._client = client
        self._producers = producers
        self._policy = policy
        self._submit = submit
        self._retry_ms = retry_ms
        self._chance = chance
        self._queues: dict[int, deque[tuple[CheckedBatch, Settled]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def admit(self, batch: CheckedBatch, settled: Settled) -> None:
        """Check the batch and pass it on, now or when what is missing is known."""
        producer_id = batch.header.producer_id
        queue = self._queues.get(producer_id)
        if queue is not None:
            queue.append((batch, settled))
        elif self._is_known(batch):
            self._decide(batch, settled)
        else:
            self._queues[producer_id] = deque([(batch, settled)])
            task = asyncio.create_task(self._work(producer_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop asking; what waits is not settled."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_known(self, batch: CheckedBatch) -> bool:
        """Whether a decision needs nothing from the core."""
        owner = self._producers.owner(batch.header.producer_id)
        if owner is None:
            return False
        if owner != batch.edge or self._policy.refusal(batch.stream) is not None:
            return True
        partitions = self._client.partition_count(batch.stream)
        return partitions is not None and batch.partition < partitions

    def _decide(self, batch: CheckedBatch, settled: Settled) -> None:
        error = self._refusal(batch)
        if error is None:
            self._submit(batch, settled)
        else:
            settled(None, error)

    def _refusal(self, batch: CheckedBatch) -> AckError | None:
        owner = self._producers.owner(batch.header.producer_id)
        if owner is None:
            return refuse(UNKNOWN_PRODUCER, f"nobody was given the producer id {batch.header.producer_id}")
        if owner != batch.edge:
            return refuse(UNKNOWN_PRODUCER, f"the producer id {batch.header.producer_id} is not this edge's")
        error = check_stream(batch, self._policy)
        if error is not None:
            return error
        return check_partition(batch, self._client.partition_count(batch.stream) or 0)

    async def _work(self, producer_id: int) -> None:
        queue = self._queues[producer_id]
        while queue:
            failure = None if self._is_known(queue[0][0]) else await self._ask(queue[0][0])
            if failure is None:
                self._decide(*queue.popleft())
                continue
            # The core does not answer: the edge is to send all of them again, those behind the first too.
            given_up = list(queue)
            queue.clear()
            for _, settled in given_up:
                settled(None, failure)
        del self._queues[producer_id]

    async def _ask(self, batch: CheckedBatch) -> AckError | None:
        """Ask the core for what is missing; an error if it does not say within the time for tries."""
        failures = 0
        failure = AckError(code=ErrorCode.network_exception.name, reason="the core does not answer", retriable=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._retry_ms / 1000):
                while True:
                    try:
                        await self._learn(batch)
                    except TidegateError as error:
                        code = error.code if isinstance(error, CoreRefused) else ErrorCode.network_exception
                        failure = AckError(code=code.name, reason=str(error), retriable=True)
                        failures += 1
                        await asyncio.sleep(RETRY.delay_ms(failures, self._chance) / 1000)
                    else:
                        return None
        return failure

    async def _learn(self, batch: CheckedBatch) -> None:
        if self._producers.owner(batch.header.producer_id) is None:
            await self._producers.read_to_end()
        if self._producers.owner(batch.header.producer_id) is not None:
            await self._find_stream(batch.stream)

    async def _find_stream(self, stream: str) -> None:
        if self._policy.refusal(stream) is not None:
            return
        found = (await self._client.ensure_topics({stream: self._policy.spec(stream)}))[stream]
        if isinstance(found, CoreRefused):
            raise found
