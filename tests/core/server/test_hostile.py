"""Clients that are broken, slow or malicious: they are refused, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.server.harness import (
    REPLY_TIMEOUT_S,
    RawClient,
    batch_of,
    fetch_fields,
    produce_fields,
    running_core,
    seconds,
    values_of,
)
from tidegate_core.protocol import translate
from tidegate_core.protocol.versions import VERSIONS, Api
from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import ErrorCode, encode_request, request_type

MIB = 1024 * 1024


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Address]:
    async with running_core(tmp_path) as address:
        yield address


async def is_serving(address: Address) -> bool:
    async with RawClient.connect(address) as client:
        return (await client.ask(Api.API_VERSIONS, 3)).error_code is ErrorCode.none


@pytest.mark.parametrize(
    "sent",
    [
        b"\x7f\xff\xff\xff" + b"x" * 1000,
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        struct.pack(">i", 101 * MIB),
        b"GET / HTTP/1.1\r\nHost: core\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\x05" + b"\0\x12\0\x03\0",
        b"\0\0\0\x0a" + b"\0\x63" + b"\0\0" + b"\0\0\0\1" + b"\xff\xff",
        b"\0\0\0\x0a" + b"\0\x03" + b"\0\x63" + b"\0\0\0\1" + b"\xff\xff",
        b"\0\0\0\x0a" + b"\0\x03" + b"\xff\xff" + b"\0\0\0\1" + b"\xff\xff",
        b"\0\0\0\x0c" + b"\0\x03" + b"\0\x01" + b"\0\0\0\1" + b"\x7f\xff" + b"ab",
        b"\0\0\0\x0e" + b"\0\x03" + b"\0\x01" + b"\0\0\0\1" + b"\xff\xff" + b"\x7f\xff\xff\xff",
        b"\0\0\0\x0e" + b"\0\x00" + b"\0\x03" + b"\0\0\0\1" + b"\xff\xff" + b"\x7f\xff\xff\xff",
    ],
    ids=[
        "2 GiB",
        "a negative length",
        "an empty frame",
        "above the limit",
        "HTTP",
        "TLS",
        "half a header",
        "an unknown API",
        "an unknown version",
        "a negative version",
        "a client id longer than the frame",
        "an array of two thousand million topics",
        "a cut Produce request",
    ],
)
async def test_what_is_no_request_closes_its_connection_only(core: Address, sent: bytes) -> None:
    async with RawClient.connect(core) as honest:
        assert (await honest.ask(Api.API_VERSIONS, 3)).error_code is ErrorCode.none
        async with RawClient.connect(core) as hostile:
            hostile.writer.write(sent)
            assert await hostile.closed_by_peer()
        assert (await honest.ask(Api.API_VERSIONS, 3)).error_code is ErrorCode.none


async def test_requests_arrive_however_they_are_cut(core: Address) -> None:
    async with RawClient.connect(core) as client:
        await client.create_topic("t")
        frames = bytearray()
        for number in range(20):
            fields = produce_fields("t", batch_of(b"%d" % number * (number * 50 + 1)))
            request = translate.compose(request_type(Api.PRODUCE, 3 + number % 9), fields)
            frames += encode_request(request, number, "client")
        chance = random.Random(7)
        while frames:
            size = chance.choice([1, 1, 2, 3, 5, 100, 1000])
            client.writer.write(frames[:size])
            del frames[:size]
            await client.writer.drain()
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        for number in range(20):
            assert struct.unpack(">i", (await client.receive_frame())[:4]) == (number,)
        part = await client.fetch("t", 0)
        assert values_of(part.records) == [b"%d" % number * (number * 50 + 1) for number in range(20)]


async def test_a_large_request_arrives_in_pieces_and_small_ones_behind_it(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address, RawClient.connect(address) as client:
        await client.create_topic("t", 1, max_message_bytes="20000000")
        large = bytes(random.Random(1).randbytes(5 * MIB))
        sent = [client.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(value))) for value in (b"a", large, b"b")]
        for one in sent:
            answer = (await client.receive(one)).responses[0].partition_responses[0]
            assert answer.error_code is ErrorCode.none, answer
        values: list[bytes | None] = []
        while len(values) < 3:
            values += values_of((await client.fetch("t", len(values), max_wait=seconds(5))).records)
        assert values == [b"a", large, b"b"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=300))
async def test_any_bytes_leave_the_node_serving(core: Address, sent: bytes) -> None:
    async with RawClient.connect(core) as hostile:
        hostile.writer.write(sent)
        hostile.writer.write_eof()
        assert await hostile.closed_by_peer()
    assert await is_serving(core)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(VERSIONS)), st.data(), st.binary(max_size=100))
async def test_any_body_behind_a_real_header_is_answered_or_closes_the_connection(
    core: Address, api: int, data: st.DataObject, body: bytes
) -> None:
    low, high = VERSIONS[api]
    version = data.draw(st.integers(low, high))
    frame = struct.pack(">hhih", api, version, 1, -1) + body
    async with RawClient.connect(core) as hostile:
        hostile.writer.write(struct.pack(">i", len(frame)) + frame)
        hostile.writer.write_eof()
        assert await hostile.closed_by_peer()
    assert await is_serving(core)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
async def test_real_requests_with_wrong_bytes_leave_the_node_serving(core: Address, seed: int) -> None:
    chance = random.Random(seed)
    topic = f"t{seed}"
    requests = [
        (Api.PRODUCE, chance.randint(3, 11), produce_fields(topic, batch_of(b"value" * 10))),
        (Api.FETCH, chance.randint(4, 12), fetch_fields(topic, 0)),
        (Api.METADATA, chance.randint(0, 12), {"topics": [{"name": topic}]}),
        (Api.JOIN_GROUP, chance.randint(0, 9), {"group_id": "g", "protocol_type": "c"}),
    ]
    async with RawClient.connect(core) as hostile:
        for api, version, fields in requests:
            request = translate.compose(request_type(api, version), fields)
            frame = bytearray(encode_request(request, 1, "client"))
            for _ in range(chance.randint(1, 4)):
                frame[chance.randrange(4, len(frame))] = chance.randrange(256)
            hostile.writer.write(frame)
        hostile.writer.write_eof()
        assert await hostile.closed_by_peer()
    assert await is_serving(core)


# Many, slow and silent clients.


async def test_a_thousand_idle_connections_cost_little_and_do_not_slow_the_others(core: Address) -> None:
    before = resident_bytes()
    async with contextlib.AsyncExitStack() as idle:
        for _ in range(1000):
            await idle.enter_async_context(RawClient.connect(core))
        async with RawClient.connect(core) as client:
            await client.create_topic("t")
            assert (await client.produce("t", batch_of(b"a"))).error_code is ErrorCode.none
        grown = resident_bytes() - before
        assert grown < 60 * MIB  # both ends of each connection: clients live in this process too


async def test_lying_lengths_cost_little_memory(core: Address) -> None:
    before = resident_bytes()
    async with contextlib.AsyncExitStack() as liars:
        for _ in range(200):
            liar = await liars.enter_async_context(RawClient.connect(core))
            liar.writer.write(struct.pack(">i", 99 * MIB) + b"\0\0\0\x09")
            await liar.writer.drain()
        assert await is_serving(core)
        assert resident_bytes() - before < 100 * MIB
        async with RawClient.connect(core) as client:
            await client.create_topic("t")
            assert (await client.produce("t", batch_of(b"x" * 500_000))).error_code is ErrorCode.none


async def test_more_connections_than_allowed_are_closed_and_room_is_used_again(tmp_path: Path) -> None:
    async with running_core(tmp_path, connections_max=3) as address:
        async with contextlib.AsyncExitStack() as open_clients:
            clients = [await open_clients.enter_async_context(RawClient.connect(address)) for _ in range(3)]
            for client in clients:
                await client.ask(Api.API_VERSIONS, 3)
            async with RawClient.connect(address) as one_more:
                assert await one_more.closed_by_peer()
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            while True:
                try:
                    assert await is_serving(address)
                    break
                except (OSError, asyncio.IncompleteReadError):
                    await asyncio.sleep(0.01)  # the node has not seen the others go yet


async def test_a_client_that_stops_in_the_middle_of_a_request_is_closed(tmp_path: Path) -> None:
    async with running_core(tmp_path, connection_stall_s=0.2) as address, RawClient.connect(address) as client:
        client.writer.write(struct.pack(">i", 1000) + b"\0\x03")
        assert await client.closed_by_peer()


async def test_an_idle_client_is_closed_and_one_that_waits_for_records_is_not(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, connection_idle_s=0.3) as address,
        RawClient.connect(address) as idle,
        RawClient.connect(address) as waiting,
    ):
        await waiting.create_topic("t")
        sent = waiting.send(Api.FETCH, 12, **fetch_fields("t", 0) | {"max_wait": seconds(1.5), "min_bytes": 1})
        assert await idle.closed_by_peer()
        assert (await waiting.receive(sent)).error_code is ErrorCode.none


async def eventually(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + REPLY_TIMEOUT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


def peers_of(address: Address) -> int:
    """How many connections the node has, as the kernel counts them."""
    at_port = f":{address.port:04X}"
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for fields in lines if fields[1].endswith(at_port) and fields[3] == "01")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _client_that_reads_nothing(address: Address) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((address.host, address.port))
    return sock


async def test_a_client_that_does_not_take_its_answers_is_held_back_and_closed(tmp_path: Path) -> None:
    async with running_core(tmp_path, connection_stall_s=1.0) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
        for _ in range(8):
            await client.produce("t", batch_of(random.Random(1).randbytes(900_000)))
        before = resident_bytes()
        request = translate.compose(request_type(Api.FETCH, 12), fetch_fields("t", 0, partition_max_bytes=8 * MIB))
        frame = encode_request(request, 1, "slow")
        slow = [_client_that_reads_nothing(address) for _ in range(5)]
        try:
            for sock in slow:
                sock.sendall(frame * 20)
            for _ in range(5):
                assert (await client.fetch("t", 7)).error_code is ErrorCode.none
            # 5 clients asked for 20 answers of 7 MiB each; each holds one.
            assert resident_bytes() - before < 200 * MIB
            await eventually(lambda: peers_of(address) == 1)
        finally:
            for sock in slow:
                sock.close()


async def test_a_client_that_sends_without_end_and_reads_nothing_is_held_back(tmp_path: Path) -> None:
    limits = {"requests_in_flight_max": 10, "connection_bytes_max": 100_000, "connection_stall_s": 60.0}
    async with running_core(tmp_path, **limits) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
        sent = 0
        request = translate.compose(request_type(Api.METADATA, 12), {"topics": [{"name": "t"}]})
        frame = encode_request(request, 1, "flood") * 100
        flood = _client_that_reads_nothing(address)
        flood.setblocking(False)
        try:
            before = resident_bytes()
            loop = asyncio.get_running_loop()
            with contextlib.suppress(TimeoutError):
                while sent < 200 * MIB:
                    await asyncio.wait_for(loop.sock_sendall(flood, frame), 0.5)
                    sent += len(frame)
            assert sent < 100 * MIB
            assert resident_bytes() - before < 50 * MIB
            assert (await client.produce("t", batch_of(b"a"))).error_code is ErrorCode.none
        finally:
            flood.close()


async def test_pipelining_beyond_the_limit_waits_and_everything_is_answered(tmp_path: Path) -> None:
    limits = {"requests_in_flight_max": 5, "connection_bytes_max": 2000}
    async with running_core(tmp_path, **limits) as address, RawClient.connect(address) as client:
        await client.create_topic("t")
        sent = [
            client.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(b"%d" % number * 100))) for number in range(500)
        ]
        answers = [(await client.receive(one)).responses[0].partition_responses[0] for one in sent]
        assert [answer.base_offset for answer in answers] == list(range(500))


async def test_when_memory_is_short_everybody_waits_and_is_served(tmp_path: Path) -> None:
    async with running_core(tmp_path, memory_bytes_max=MIB) as address:
        async with RawClient.connect(address) as admin:
            await admin.create_topic("t", 4)

        async def produce(partition: int) -> None:
            async with RawClient.connect(address) as client:
                sent = [
                    client.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(bytes(300_000)), partition=partition))
                    for _ in range(10)
                ]
                for one in sent:
                    answer = (await client.receive(one)).responses[0].partition_responses[0]
                    assert answer.error_code is ErrorCode.none

        async with asyncio.timeout(60):
            await asyncio.gather(*(produce(number % 4) for number in range(8)))


async def test_when_memory_is_short_pipelined_requests_of_every_kind_are_answered(tmp_path: Path) -> None:
    async with running_core(tmp_path, memory_bytes_max=MIB, fetch_bytes_max=MIB) as address:
        async with RawClient.connect(address) as admin:
            await admin.create_topic("t")
            for _ in range(4):
                await admin.produce("t", batch_of(random.Random(1).randbytes(200_000)))
        names = [{"name": "t"}, *({"name": f"{number}" * 200} for number in range(100))]

        async def ask() -> None:
            async with RawClient.connect(address) as client:
                sent = []
                for _ in range(20):
                    sent.append(client.send(Api.METADATA, 12, topics=names, allow_auto_topic_creation=False))
                    sent.append(client.send(Api.FETCH, 12, **fetch_fields("t", 0)))
                for one in sent:
                    await client.receive(one)

        async with asyncio.timeout(60):
            await asyncio.gather(*(ask() for _ in range(20)))


async def test_clients_that_fill_the_memory_with_half_requests_do_not_stop_the_others(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, memory_bytes_max=MIB, connection_stall_s=60.0) as address,
        contextlib.AsyncExitStack() as hostile,
    ):
        async with RawClient.connect(address) as admin:
            await admin.create_topic("t")
        for _ in range(8):
            liar = await hostile.enter_async_context(RawClient.connect(address))
            liar.writer.write(struct.pack(">i", 50 * MIB) + bytes(400_000))
            await asyncio.wait_for(liar.writer.drain(), REPLY_TIMEOUT_S)
        async with RawClient.connect(address) as client:
            for size in (10, 500_000, 10, 500_000):
                assert (await client.produce("t", batch_of(bytes(size)))).error_code is ErrorCode.none


async def test_a_client_that_goes_away_while_it_waits_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running_core(tmp_path) as address:
        async with RawClient.connect(address) as client:
            await client.create_topic("t")
            client.send(Api.FETCH, 12, **fetch_fields("t", 0) | {"max_wait": seconds(60), "min_bytes": 1})
            await client.writer.drain()
        async with RawClient.connect(address) as client:
            for _ in range(3):
                client.send(Api.PRODUCE, 9, **produce_fields("t", batch_of(b"a")))
            await client.writer.drain()
        await eventually(lambda: not any(task.get_name() == "kafka 127.0.0.1" for task in asyncio.all_tasks()))
        assert await is_serving(address)
