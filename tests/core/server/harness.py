"""A core node in this process, and a client that sends it single requests in any version."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from tests.support.cluster import stable_ports
from tidegate_core.protocol.translate import compose
from tidegate_core.protocol.versions import Api, newest
from tidegate_core.service import run
from tidegate_core.settings import CoreSettings
from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import decode_response, encode_request, request_type, response_type
from tidegate_wire.records import BatchHeader, RecordBatchBuilder, iter_batches, read_records

REPLY_TIMEOUT_S = 20.0


@asynccontextmanager
async def running_core(directory: Path, **settings: Any) -> AsyncIterator[Address]:
    """A node on a free port; stopped cleanly at the end."""
    ready = directory / "ready.json"
    ready.unlink(missing_ok=True)
    chosen: dict[str, Any] = {"listen": "127.0.0.1:0", "data_dir": directory / "data", "ready_file": ready} | settings
    task = asyncio.create_task(run(CoreSettings(**chosen)))
    try:
        deadline = asyncio.get_running_loop().time() + REPLY_TIMEOUT_S
        while not ready.exists():
            assert asyncio.get_running_loop().time() < deadline, "the node is not ready"
            if task.done():
                await task
            await asyncio.sleep(0.005)
        yield Address.parse(json.loads(ready.read_text())["listen"])
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def running_cluster(directory: Path, size: int = 3, **settings: Any) -> AsyncIterator[ClusterNodes]:
    """Nodes 1 to `size`, which all vote on the metadata, in this process."""
    ports = dict(zip(range(1, size + 1), stable_ports(size), strict=True))
    nodes = ClusterNodes(
        directory, ports, {"election_timeout_ms": 500, "heartbeat_ms": 100, "shutdown_timeout_s": 0.5} | settings
    )
    try:
        async with asyncio.TaskGroup() as starting:
            for node_id in ports:
                starting.create_task(nodes.start(node_id))
        yield nodes
    finally:
        for node_id in list(nodes.running):
            await nodes.stop(node_id)


class ClusterNodes:
    """Nodes that are started and stopped one by one; the first time all at once, as a cluster begins."""

    def __init__(self, directory: Path, ports: dict[int, int], settings: dict[str, Any]) -> None:
        self.addresses = {node_id: Address("127.0.0.1", port) for node_id, port in ports.items()}
        self.running: dict[int, AsyncExitStack] = {}
        self._directory = directory
        self._settings = settings

    async def start(self, node_id: int, **settings: Any) -> None:
        directory = self._directory / str(node_id)
        directory.mkdir(exist_ok=True)
        voters = tuple(f"{voter}@{address}" for voter, address in self.addresses.items())
        chosen = {"node_id": node_id, "listen": str(self.addresses[node_id]), "voters": voters}
        stack = AsyncExitStack()
        await stack.enter_async_context(running_core(directory, **chosen | self._settings | settings))
        self.running[node_id] = stack

    async def stop(self, node_id: int) -> None:
        await self.running.pop(node_id).aclose()

    async def controller(self) -> int:
        """The node that all running ones take for the controller."""
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            while True:
                said = set()
                for node_id in self.running:
                    async with RawClient.connect(self.addresses[node_id]) as client:
                        said.add((await client.ask(Api.DESCRIBE_CLUSTER)).controller_id)
                if len(said) == 1 and said <= self.running.keys():
                    return int(said.pop())
                await asyncio.sleep(0.02)


class RawClient:
    """One connection; requests by API and the newest version's field names."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.correlation_id = 0

    @classmethod
    @asynccontextmanager
    async def connect(cls, address: Address) -> AsyncIterator[Self]:
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=2**26)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(self, api: Api, version: int | None = None, **fields: Any) -> tuple[Api, int]:
        """Write a request; hand what this returns to `receive`."""
        version = newest(api) if version is None else version
        self.correlation_id += 1
        request = compose(request_type(api, version), fields)
        self.writer.write(encode_request(request, self.correlation_id, "raw"))
        return api, version

    async def receive(self, sent: tuple[Api, int]) -> Any:
        frame = await self.receive_frame()
        _, response = decode_response(response_type(*sent), frame)
        return response

    async def receive_frame(self) -> bytes:
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            (length,) = struct.unpack(">i", await self.reader.readexactly(4))
            return await self.reader.readexactly(length)

    async def ask(self, api: Api, version: int | None = None, **fields: Any) -> Any:
        sent = self.send(api, version, **fields)
        await self.writer.drain()
        return await self.receive(sent)

    async def closed_by_peer(self) -> bool:
        """Whether the node closes the connection, whatever it still sends before."""
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                while await self.reader.read(65536):
                    pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    # Shorthands.

    async def create_topic(self, name: str, partitions: int = 1, **settings: str) -> None:
        configs = [{"name": key.replace("_", "."), "value": value} for key, value in settings.items()]
        response = await self.ask(
            Api.CREATE_TOPICS,
            topics=[
                {
                    "name": name,
                    "num_partitions": partitions,
                    "replication_factor": 1,
                    "assignments": [],
                    "configs": configs,
                }
            ],
        )
        assert response.topics[0].error_code == 0, response

    async def produce(self, topic: str, batch: bytes, *, partition: int = 0, version: int = 9, acks: int = -1) -> Any:
        response = await self.ask(Api.PRODUCE, version, **produce_fields(topic, batch, partition=partition, acks=acks))
        return response.responses[0].partition_responses[0]

    async def fetch(self, topic: str, offset: int, *, partition: int = 0, version: int = 12, **fields: Any) -> Any:
        response = await self.ask(Api.FETCH, version, **fetch_fields(topic, offset, partition=partition) | fields)
        return response.responses[0].partitions[0]


def seconds(count: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=count)


def produce_fields(topic: str, batch: bytes, *, partition: int = 0, acks: int = -1) -> dict[str, Any]:
    return {
        "acks": acks,
        "timeout": seconds(30),
        "topic_data": [{"name": topic, "partition_data": [{"index": partition, "records": batch}]}],
    }


def fetch_fields(topic: str, offset: int, *, partition: int = 0, **part: Any) -> dict[str, Any]:
    wanted = {"partition": partition, "fetch_offset": offset, "partition_max_bytes": 2**20} | part
    return {"topics": [{"topic": topic, "partitions": [wanted]}], "max_bytes": 2**24, "min_bytes": 0}


def batch_of(*values: bytes, timestamp_ms: int = 1_700_000_000_000, key: bytes | None = None) -> bytes:
    builder = RecordBatchBuilder()
    for number, value in enumerate(values):
        builder.append(timestamp_ms + number, key, value)
    return builder.build()


def values_of(records: bytes | None) -> list[bytes | None]:
    """What a consumer gets: control records are the log's own."""
    batches = (batch for batch in iter_batches(records or b"") if not BatchHeader.parse(batch).is_control)
    return [record.value for batch in batches for record in read_records(batch)]
