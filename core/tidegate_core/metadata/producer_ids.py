"""Gives out producer ids on this node, from blocks that the controller allocates."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tidegate_wire.identifiers import ProducerId


class ProducerIds:
    """`allocate` takes the next block from the controller, wherever that is."""

    def __init__(self, allocate: Callable[[], Awaitable[range]]) -> None:
        self._allocate = allocate
        self._block = iter(range(0))
        self._taking = asyncio.Lock()

    async def take(self) -> ProducerId:
        """A producer id that nobody was ever given.

        Raises:
            KafkaError, PartitionError: no more could be allocated.
        """
        async with self._taking:
            taken = next(self._block, None)
            if taken is None:
                self._block = iter(await self._allocate())
                taken = next(self._block)
            return ProducerId(taken)
