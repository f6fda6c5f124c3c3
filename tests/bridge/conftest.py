"""A core and bridges inside the test's own event loop, on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.bridge.waiting import eventually
from tidegate_bridge import service as bridge_service
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_bridge.settings import BridgeSettings
from tidegate_core import service as core_service
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.identifiers import Offset
from tidegate_wire.records import Record, iter_batches, read_records


class Stage:
    """Starts and stops cores and bridges; whatever still runs at the end is stopped in reverse order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._stack = AsyncExitStack()
        self._count = 0

    async def core(self, *, listen: str = "127.0.0.1:0", **settings: Any) -> Address:
        """Start a core whose data is in this test's directory; the address it listens on."""
        facts, _ = await self._start(
            lambda ready: core_service.run(
                CoreSettings(listen=listen, data_dir=self.directory / "core", ready_file=ready, **settings)
            )
        )
        return Address.parse(facts["listen"])

    async def restartable_core(self, listen: str, **settings: Any) -> asyncio.Task[None]:
        """Start a core on a given address; cancel the task to stop it."""
        _, task = await self._start(
            lambda ready: core_service.run(
                CoreSettings(listen=listen, data_dir=self.directory / "core", ready_file=ready, **settings)
            )
        )
        return task

    async def bridge(self, core: Address, **settings: Any) -> dict[str, Any]:
        """Start a bridge; what it announced."""
        if "broker" not in settings:
            settings = {"listen": "127.0.0.1:0"} | settings
        facts, _ = await self._start(
            lambda ready: bridge_service.run(BridgeSettings(core=(str(core),), ready_file=ready, **settings))
        )
        return facts

    async def bridge_port(self, core: Address, **settings: Any) -> int:
        """Start a bridge that listens; its port."""
        return Address.parse((await self.bridge(core, **settings))["listen"]).port

    async def read(self, core: Address, topic: str, partition: int = 0) -> list[Record]:
        """Every record of a partition; none if there is no such topic."""
        return [record for batch in await self.read_batches(core, topic, partition) for record in read_records(batch)]

    async def read_batches(self, core: Address, topic: str, partition: int = 0) -> list[bytes]:
        """Every batch of a partition, as the core keeps it."""
        client = KafkaClient([core], request_timeout_ms=5_000, chance=Random(1).random)
        batches: list[bytes] = []
        try:
            metadata = (await client.refresh([topic])).topics[topic]
            if partition >= len(metadata.leaders):
                return []
            offset = Offset(0)
            while True:
                fetched = await client.fetch(topic, partition, offset)
                found = [bytes(batch) for batch in iter_batches(fetched.records)]
                if not found:
                    return batches
                batches += found
                offset = Offset(list(read_records(found[-1]))[-1].offset + 1)
        finally:
            await client.close()

    async def close(self) -> None:
        await self._stack.aclose()

    async def _start(self, run: Any) -> tuple[dict[str, Any], asyncio.Task[None]]:
        self._count += 1
        ready = self.directory / f"ready-{self._count}.json"
        task: asyncio.Task[None] = asyncio.create_task(run(ready))
        await self._stack.enter_async_context(_stopped_at_the_end(task))
        await eventually(lambda: ready.exists() or task.done(), "the part is ready")
        if task.done():
            task.result()
        facts: dict[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
        return facts, task


@asynccontextmanager
async def _stopped_at_the_end(task: asyncio.Task[None]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await stop(task)


async def stop(task: asyncio.Task[None]) -> None:
    """Cancel a part and wait for its end; what it failed with before is raised."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Where a test starts its core and bridges."""
    stage = Stage(tmp_path)
    try:
        yield stage
    finally:
        await stage.close()
