"""The connection against a peer that does what no healthy Kafka does; the healthy case is tested with a real core."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from kio.schema.api_versions.v0.response import ApiVersion, ApiVersionsResponse
from kio.static.primitive import i16, i32Timedelta

from tests.bridge.conftest import Stage, stop
from tests.bridge.waiting import eventually
from tests.support.processes import free_port
from tidegate_bridge.errors import CoreRefused, CoreTooOld, CoreUnreachable
from tidegate_bridge.kafka import api
from tidegate_bridge.kafka.client import KafkaClient
from tidegate_bridge.kafka.connection import RESPONSE_BYTES_MAX, KafkaConnection
from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import ErrorCode, decode_request_header, encode_response

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
"""Does what the scripted peer does with a request other than ApiVersions, given its correlation id."""


def _versions(left_out: int | None = None) -> ApiVersionsResponse:
    return ApiVersionsResponse(
        error_code=ErrorCode.none,
        api_keys=tuple(
            [
                ApiVersion(api_key=i16(key), min_version=i16(0), max_version=i16(version))
                for key, version in api.VERSIONS_NEEDED.items()
                if key != left_out
            ]
        ),
    )


@asynccontextmanager
async def _peer(answer: Answer, *, versions: ApiVersionsResponse | None = None) -> AsyncIterator[Address]:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4))
                header = decode_request_header(await reader.readexactly(size))
                if header.api_key == 18:
                    writer.write(encode_response(versions or _versions(), header.correlation_id))
                else:
                    await answer(header.correlation_id, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()
        await asyncio.sleep(0)


@asynccontextmanager
async def _connected(address: Address, *, request_timeout_ms: int = 5_000) -> AsyncIterator[KafkaConnection]:
    connection = await KafkaConnection.open(
        address, client_id="test", connect_timeout_ms=2_000, request_timeout_ms=request_timeout_ms
    )
    try:
        yield connection
    finally:
        connection.close()
        await asyncio.sleep(0)


async def _call(connection: KafkaConnection) -> Any:
    return await connection.call(api.metadata_request([]), api.METADATA_RESPONSE)


async def _say_nothing(_: int, __: asyncio.StreamWriter) -> None:
    pass


async def test_a_request_without_an_answer_times_out_and_takes_the_ones_behind_it_along() -> None:
    async with _peer(_say_nothing) as address, _connected(address, request_timeout_ms=50) as connection:
        calls = [asyncio.create_task(_call(connection)) for _ in range(3)]
        produced = connection.produce("telemetry", 0, b"batch", 1_000)
        for waiting in (*calls, produced):
            with pytest.raises(CoreUnreachable, match=r"did not answer in 0\.05 s"):
                await waiting
        assert connection.closed


async def test_a_connection_closed_by_the_core_fails_what_is_on_it_and_whatever_comes_later() -> None:
    async def hang_up(_: int, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with _peer(hang_up) as address, _connected(address) as connection:
        with pytest.raises(CoreUnreachable, match="was lost"):
            await _call(connection)
        with pytest.raises(CoreUnreachable, match="was closed"):
            await connection.produce("telemetry", 0, b"batch", 1_000)


@pytest.mark.parametrize(
    ("garbage", "complaint"),
    [
        (b"\0\0\0\x08" + (999).to_bytes(4) + b"\0\0\0\0", "answer 999 where 2 was next"),
        (b"\xff\xff\xff\xff", "a response of -1 bytes"),
        ((RESPONSE_BYTES_MAX + 1).to_bytes(4), "a response of"),
        (b"\0\0\0\x05" + (2).to_bytes(4) + b"\0", "not a MetadataResponse"),
        (b"HTTP/1.1 400 Bad Request\r\n", "a response of"),
    ],
)
async def test_an_answer_that_makes_no_sense_ends_the_connection(garbage: bytes, complaint: str) -> None:
    async def answer(_: int, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)

    async with _peer(answer) as address, _connected(address) as connection:
        with pytest.raises(CoreUnreachable, match=complaint):
            await _call(connection)
        assert connection.closed


async def test_an_answer_to_no_request_ends_the_connection() -> None:
    async def answer(correlation_id: int, writer: asyncio.StreamWriter) -> None:
        frame = encode_response(_metadata(), correlation_id)
        writer.write(frame + frame)

    async with _peer(answer) as address, _connected(address) as connection:
        assert (await _call(connection)).topics == ()
        await eventually(lambda: connection.closed, "the connection is closed")


async def test_answers_are_read_however_the_network_cuts_them() -> None:
    async def answer(correlation_id: int, writer: asyncio.StreamWriter) -> None:
        for byte in encode_response(_metadata(), correlation_id):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)

    async with _peer(answer) as address, _connected(address) as connection:
        answers = await asyncio.gather(*(_call(connection) for _ in range(5)))
        assert len(answers) == 5


async def test_a_caller_that_gives_up_does_not_disturb_the_order_of_answers() -> None:
    gate = asyncio.Event()

    async def answer(correlation_id: int, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(encode_response(_metadata(), correlation_id))

    async with _peer(answer) as address, _connected(address) as connection:
        impatient, patient = asyncio.create_task(_call(connection)), asyncio.create_task(_call(connection))
        await asyncio.sleep(0)
        impatient.cancel()
        gate.set()
        assert (await patient).topics == ()
        with pytest.raises(asyncio.CancelledError):
            await impatient


async def test_a_core_without_a_needed_version_is_named_as_too_old() -> None:
    async with _peer(_say_nothing, versions=_versions(left_out=0)) as address:
        with pytest.raises(CoreTooOld, match="API 0 version 8"):
            async with _connected(address):
                pass


async def test_a_port_that_takes_connections_and_says_nothing_is_given_up() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        handled.set()

    handled = asyncio.Event()
    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    with pytest.raises(CoreUnreachable, match="no answer in time"):
        await KafkaConnection.open(address, client_id="test", connect_timeout_ms=50, request_timeout_ms=5_000)
    await handled.wait()
    server.close()
    await server.wait_closed()


async def test_a_client_finds_the_one_bootstrap_address_that_answers(stage: Stage) -> None:
    dead = [Address("127.0.0.1", free_port()) for _ in range(3)]
    core = await stage.core()
    client = KafkaClient([*dead, core], request_timeout_ms=5_000, chance=Random(2).random)
    try:
        found = await client.ensure_topics({"telemetry": api.TopicSpec(partitions=2, configs={})})
        assert found == {"telemetry": 2}
    finally:
        await client.close()


async def test_a_client_comes_back_after_the_core_did(stage: Stage) -> None:
    core = Address("127.0.0.1", free_port())
    task = await stage.restartable_core(str(core))
    client = KafkaClient([core], request_timeout_ms=5_000, chance=Random(2).random)
    try:
        first, _ = await client.init_producer_id()
        await stop(task)
        with pytest.raises(CoreUnreachable):
            await client.init_producer_id()
        await stage.restartable_core(str(core))
        second, _ = await client.init_producer_id()
        assert second != first
    finally:
        await client.close()


async def test_a_topic_that_can_not_be_is_refused_with_the_cores_words(stage: Stage) -> None:
    client = KafkaClient([await stage.core()], request_timeout_ms=5_000, chance=Random(2).random)
    try:
        spec = api.TopicSpec(partitions=1, configs={"no.such.setting": "1"})
        found = await client.ensure_topics({"telemetry": spec, "fine": api.TopicSpec(partitions=1, configs={})})
        assert found["fine"] == 1
        refusal = found["telemetry"]
        assert isinstance(refusal, CoreRefused)
        assert refusal.code is ErrorCode.invalid_config
        with pytest.raises(CoreRefused, match="unknown_topic_or_partition"):
            await client.leader("nowhere", 0)
    finally:
        await client.close()


def _metadata() -> Any:
    return api.METADATA_RESPONSE(throttle_time=i32Timedelta.parse(timedelta(0)), brokers=(), topics=())
