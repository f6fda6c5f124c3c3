"""Nodes that speak to each other over TCP: answers on each lane, broken links, and peers that send anything."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.core.replication.wires import (
    CLUSTER,
    Answer,
    Served,
    answer_frame,
    asking,
    bare_server,
    read_request,
    serving,
)
from tidegate_core.handlers.peer import NAMES_MAX
from tidegate_core.raft.messages import ReplicaKey
from tidegate_core.replication.codec import encode
from tidegate_core.replication.messages import (
    PEER_API,
    Done,
    FetchedReplica,
    Forward,
    Forwarded,
    Hello,
    Lane,
    Leaderships,
    PeerRequest,
    PeerResponse,
    Refused,
    ReplicaFetch,
    ReplicaFetched,
    Votes,
    Welcome,
)
from tidegate_core.replication.peers import (
    ANSWER_BYTES_MAX,
    REQUESTS_MAX,
    PeerError,
    PeerName,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    TcpPeerNetwork,
)
from tidegate_wire.address import Address
from tidegate_wire.identifiers import LeaderEpoch, NodeId, Offset
from tidegate_wire.kafka.messages import ErrorCode, MessageError, RequestHeader, decode_request_header

NODE_2 = NodeId(2)
LONG_S = 20.0
SHORT_S = 0.05
FETCH = ReplicaFetch(1, 0, 250, 2**23, ())
KEY = ReplicaKey(UUID(int=5), 0)


def done_body() -> bytes:
    return b"".join(encode(Done()))


async def done(_sender: NodeId, _message: PeerRequest) -> PeerResponse:
    return Done()


async def never(_sender: NodeId, _message: PeerRequest) -> PeerResponse:
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def pair(directory: Path, answer: Answer, **served: Any) -> AsyncIterator[tuple[TcpPeerNetwork, Served]]:
    """Node 1's network, and node 2."""
    async with serving(directory, answer, **served) as node, asking((2, node.address)) as network:
        yield network, node


async def until(condition: Any) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110  # what it looks at sets no event
            await asyncio.sleep(0.002)


# Questions and answers.


@pytest.mark.parametrize("lane", list(Lane))
async def test_a_request_is_answered_on_each_lane_and_says_who_sends_it(tmp_path: Path, lane: Lane) -> None:
    senders: list[tuple[NodeId, PeerRequest]] = []

    async def answer(sender: NodeId, message: PeerRequest) -> PeerResponse:
        senders.append((sender, message))
        return Done()

    async with pair(tmp_path, answer) as (network, _):
        for _ in range(3):
            assert await network.request(NODE_2, lane, Leaderships(()), LONG_S) == Done()
    assert senders == [(NodeId(1), Leaderships(()))] * 3


async def test_no_lane_waits_behind_another_one(tmp_path: Path) -> None:
    async def answer(sender: NodeId, message: PeerRequest) -> PeerResponse:
        return await (done if isinstance(message, Votes) else never)(sender, message)

    async with pair(tmp_path, answer) as (network, _):
        waiting = [
            asyncio.create_task(network.request(NODE_2, Lane.FETCH, FETCH, LONG_S)),
            asyncio.create_task(network.request(NODE_2, Lane.FORWARD, Forward(b"x", "h"), LONG_S)),
        ]
        await asyncio.sleep(0)
        assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()
        for task in waiting:
            assert not task.done()
            task.cancel()


async def test_answers_in_another_order_find_their_requests() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        numbers = [(await read_request(reader))[0] for _ in range(3)]
        for number in reversed(numbers):
            body = b"".join(encode(Forwarded(str(number).encode())))
            writer.write(answer_frame(number, body))

    async with bare_server(connected) as address, asking((2, address)) as network:
        requests = (network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) for _ in range(3))
        assert await asyncio.gather(*requests) == [Forwarded(b"1"), Forwarded(b"2"), Forwarded(b"3")]


@pytest.mark.parametrize("sizes", [(2**23,), (2**16,) * 64, (100,) * 300, (2**25,)])
async def test_records_come_through_whole_whatever_their_size(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    sent = [bytes([index % 251]) * size for index, size in enumerate(sizes)]
    replicas = [
        FetchedReplica(KEY, ErrorCode.none, LeaderEpoch(1), None, Offset(9), Offset(0), buffers=(data,))
        for data in sent
    ]

    async def answer(_sender: NodeId, _message: PeerRequest) -> PeerResponse:
        return ReplicaFetched(ErrorCode.none, replicas)

    async with pair(tmp_path, answer) as (network, _):
        for _ in range(2):
            answered = await network.request(NODE_2, Lane.FETCH, FETCH, LONG_S)
            assert isinstance(answered, ReplicaFetched)
            assert [b"".join(replica.buffers) for replica in answered.replicas] == sent


async def test_a_large_request_comes_through(tmp_path: Path) -> None:
    frame = bytes(range(256)) * 2**14

    async def answer(_sender: NodeId, message: PeerRequest) -> PeerResponse:
        assert isinstance(message, Forward)
        return Forwarded(message.frame)

    async with pair(tmp_path, answer) as (network, _):
        assert await network.request(NODE_2, Lane.FORWARD, Forward(frame, "h"), LONG_S) == Forwarded(frame)


@pytest.mark.parametrize("step", [1, 3])
async def test_answers_that_come_byte_by_byte_are_put_together(step: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            number, _ = await read_request(reader)
            answer = answer_frame(number, b"".join(encode(Forwarded(b"one")))) + answer_frame(9999, done_body())
            for start in range(0, len(answer), step):
                writer.write(answer[start : start + step])
                await writer.drain()
                await asyncio.sleep(0)

    async with bare_server(connected) as address, asking((2, address)) as network:
        for _ in range(2):
            assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Forwarded(b"one")


async def test_an_answer_of_no_says_why(tmp_path: Path) -> None:
    async def answer(_sender: NodeId, _message: PeerRequest) -> PeerResponse:
        return Refused(ErrorCode.not_controller, "node 2 is not the controller")

    async with pair(tmp_path, answer) as (network, _):
        with pytest.raises(PeerRefused, match="node 2: node 2 is not the controller") as caught:
            await network.request(NODE_2, Lane.FORWARD, Forward(b"x", "h"), LONG_S)
    assert caught.value.error is ErrorCode.not_controller


# Who is who.


@pytest.mark.parametrize(("mine", "theirs"), [("another", CLUSTER), ("", CLUSTER), (CLUSTER, None)])
async def test_a_node_of_another_cluster_or_of_none_yet_is_refused(
    tmp_path: Path, mine: str, theirs: str | None
) -> None:
    async def answer(_sender: NodeId, _message: PeerRequest) -> PeerResponse:
        raise AssertionError("a stranger's request was handled")

    async with (
        serving(tmp_path, answer, cluster_id=theirs) as node,
        asking((2, node.address), cluster_id=mine) as network,
    ):
        with pytest.raises(PeerRefused, match="this is cluster") as caught:
            await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S)
        assert caught.value.error is ErrorCode.inconsistent_cluster_id
        assert not node.peers.heard


async def test_a_hello_is_answered_whatever_cluster_it_comes_from(tmp_path: Path) -> None:
    hello = Hello(
        cluster_id=None,
        node_id=NodeId(1),
        directory_id=UUID(int=7),
        incarnation=UUID(int=8),
        voters=(NodeId(1), NodeId(2)),
    )
    async with serving(tmp_path, never) as node, asking((2, node.address), cluster_id="") as network:
        welcome = await network.request(NODE_2, Lane.CONTROL, hello, LONG_S)
    assert isinstance(welcome, Welcome)
    assert welcome.node_id == NODE_2


async def test_a_node_that_is_reached_under_the_address_of_another_does_not_answer_for_it(tmp_path: Path) -> None:
    async def answer(_sender: NodeId, _message: PeerRequest) -> PeerResponse:
        raise AssertionError("a request to node 2 was handled by node 3")

    async with serving(tmp_path, answer, node_id=3) as node, asking((2, node.address)) as network:
        with pytest.raises(PeerRefused, match="this is node 3, not node 2"):
            await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S)
        assert not node.peers.heard


async def test_who_asks_is_remembered_and_strangers_do_not_fill_the_memory(tmp_path: Path) -> None:
    async with serving(tmp_path, done) as node:
        for sender in range(NAMES_MAX + 50):
            frame = request_frame(PeerName(NodeId(sender), UUID(int=sender), CLUSTER).asking(NODE_2))
            await node.peers.answer(*header_and(frame))
        assert len(node.peers.heard) <= NAMES_MAX


@pytest.mark.parametrize(
    "client_id",
    [
        "",
        "kcat",
        "tidegate-node",
        "tidegate-node/1/2",
        f"tidegate-node/x/2/{UUID(int=1)}/c",
        "tidegate-node/1/2/no-uuid/c",
        f"tidegate-node/-1/2/{UUID(int=1)}/c",
        f"tidegate-node/1/{2**31}/{UUID(int=1)}/c",
        f"other/1/2/{UUID(int=1)}/c",
    ],
)
async def test_who_is_not_a_node_is_sent_away(tmp_path: Path, client_id: str) -> None:
    with pytest.raises(MessageError, match="is not a node of a cluster"):
        PeerName.parse(client_id)
    async with serving(tmp_path, done) as node:
        reader, writer = await asyncio.open_connection(node.address.host, node.address.port)
        writer.write(request_frame(client_id))
        assert await reader.read() == b""
        writer.close()


def test_a_name_is_read_as_it_was_written() -> None:
    name = PeerName(NodeId(2**31 - 1), UUID(int=2**127), "a/b cluster")
    assert PeerName.parse(name.asking(NodeId(0))) == (name, NodeId(0))


def request_frame(client_id: str, body: bytes | None = None) -> bytes:
    name = client_id.encode()
    body = b"".join(encode(Votes(()))) if body is None else body
    frame = struct.pack(">hhih", PEER_API, 0, 1, len(name)) + name + body
    return struct.pack(">i", len(frame)) + frame


def header_and(frame: bytes) -> tuple[RequestHeader, memoryview]:
    view = memoryview(frame)[4:]
    return decode_request_header(view), view


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x02\x05", b"\x01\x7f", b"\x01\x05\x7f\xff\xff\xff", bytes(100)])
async def test_a_node_that_sends_no_message_is_cut_off_and_others_are_not(tmp_path: Path, body: bytes) -> None:
    async with pair(tmp_path, done) as (network, node):
        reader, writer = await asyncio.open_connection(node.address.host, node.address.port)
        writer.write(request_frame(PeerName(NodeId(3), UUID(int=3), CLUSTER).asking(NODE_2), body))
        assert await reader.read() == b""
        writer.close()
        assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()


# Links that break.


async def test_a_request_that_is_not_answered_in_time_ends_and_the_next_is_answered(tmp_path: Path) -> None:
    numbers = count()

    async def answer(sender: NodeId, message: PeerRequest) -> PeerResponse:
        return await (done if next(numbers) else never)(sender, message)

    async with pair(tmp_path, answer) as (network, node):
        with pytest.raises(PeerTimeout, match="node 2 did not answer within"):
            await network.request(NODE_2, Lane.FETCH, FETCH, SHORT_S)
        assert await network.request(NODE_2, Lane.FETCH, FETCH, LONG_S) == Done()
        assert node.handler.cancelled == 1


async def test_a_link_that_went_dead_is_left_for_a_new_one() -> None:
    connections = count()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_dead = next(connections) == 0
        while True:
            number, _ = await read_request(reader)
            if not is_dead:
                writer.write(answer_frame(number, done_body()))

    async with bare_server(connected) as address, asking((2, address)) as network:
        with pytest.raises(PeerTimeout):
            await network.request(NODE_2, Lane.CONTROL, Votes(()), SHORT_S)
        assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()
        assert next(connections) == 2


async def test_requests_beside_one_that_takes_too_long_are_answered_on_their_connection() -> None:
    connections = count()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        next(connections)
        while True:
            number, frame = await read_request(reader)
            if frame.endswith(b"".join(encode(Votes(())))):
                writer.write(answer_frame(number, done_body()))

    async with bare_server(connected) as address, asking((2, address)) as network:
        slow = asyncio.create_task(network.request(NODE_2, Lane.CONTROL, Leaderships(()), 10 * SHORT_S))
        while not slow.done():
            assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()
            await asyncio.sleep(SHORT_S / 2)
        with pytest.raises(PeerTimeout):
            await slow
        assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()
    assert next(connections) == 1


async def test_a_node_that_dies_is_told_from_one_that_is_silent(tmp_path: Path) -> None:
    async with serving(tmp_path, never) as node, asking((2, node.address)) as network:
        waiting = asyncio.create_task(network.request(NODE_2, Lane.FETCH, FETCH, LONG_S))
        await until(lambda: node.peers.heard)
        await node.server.close()
        with pytest.raises(PeerUnreachable, match="the connection broke") as broken:
            await waiting
        assert broken.value.is_down
        assert broken.value.was_sent
        with pytest.raises(PeerUnreachable) as refused:
            await network.request(NODE_2, Lane.FETCH, FETCH, LONG_S)
        assert refused.value.is_down
        assert not refused.value.was_sent


async def test_a_node_that_starts_again_is_reached_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, done) as node:
        address = node.address
        async with asking((2, address)) as network:
            assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()
            await node.server.close()
            with pytest.raises(PeerUnreachable):
                await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S)
            async with serving(tmp_path / "again", done, port=address.port):
                assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()


async def test_a_name_of_several_addresses_that_all_refuse_is_a_node_that_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:  # bound, and not listening: it refuses
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def both(*_: object, **__: object) -> list[Any]:
            return [
                (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))
                for host in ("127.0.0.1", "127.0.0.2")
            ]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
        async with asking((2, Address("node-2.example", port))) as network:
            with pytest.raises(PeerUnreachable) as caught:
                await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S)
            assert caught.value.is_down


async def test_a_node_without_an_address_is_not_down() -> None:
    async with asking() as network:
        with pytest.raises(PeerUnreachable, match="the address of node 2 is not known") as caught:
            await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S)
        assert not caught.value.is_down


async def test_a_node_that_moves_is_asked_at_its_new_address_and_is_not_down(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "old", never) as old,
        serving(tmp_path / "new", done) as new,
        asking((2, old.address)) as network,
    ):
        waiting = asyncio.create_task(network.request(NODE_2, Lane.FETCH, FETCH, LONG_S))
        await until(lambda: old.peers.heard)
        network.set_addresses({NODE_2: new.address})
        with pytest.raises(PeerUnreachable) as caught:
            await waiting
        assert not caught.value.is_down
        assert await network.request(NODE_2, Lane.FETCH, FETCH, LONG_S) == Done()


async def test_a_node_that_moves_while_it_is_connected_to_is_asked_at_its_new_address(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "old", never) as old,
        serving(tmp_path / "new", done) as new,
        asking((2, old.address)) as network,
    ):
        connecting = asyncio.create_task(network.request(NODE_2, Lane.FETCH, FETCH, LONG_S))
        await asyncio.sleep(0)
        network.set_addresses({NODE_2: new.address})
        assert await network.request(NODE_2, Lane.FETCH, FETCH, LONG_S) == Done()
        assert not old.peers.heard
        with pytest.raises(PeerError):
            await connecting


async def test_a_connection_that_fails_after_nobody_waits_is_nobodys_error(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as full:  # nobody accepts, and the queue is full: connecting takes until its timeout
        full.bind(("127.0.0.1", 0))
        port = full.getsockname()[1]
        network = TcpPeerNetwork(PeerName(NodeId(1), UUID(int=1), CLUSTER))
        network.set_addresses({NODE_2: Address("127.0.0.1", port)})
        with pytest.raises(PeerError):
            await network.request(NODE_2, Lane.CONTROL, Votes(()), 0.0)
        with caplog.at_level(logging.ERROR, "asyncio"):
            await asyncio.sleep(SHORT_S)
            gc.collect()
            await network.close()
        assert not caplog.records


async def test_closing_ends_what_waits(tmp_path: Path) -> None:
    async with pair(tmp_path, never) as (network, node):
        waiting = asyncio.create_task(network.request(NODE_2, Lane.FETCH, FETCH, LONG_S))
        await until(lambda: node.peers.heard)
        await network.close()
        with pytest.raises(PeerUnreachable) as caught:
            await waiting
        assert not caught.value.is_down
        await until(lambda: node.handler.cancelled == 1)


async def test_no_more_requests_wait_on_a_connection_than_are_allowed() -> None:
    asked = 0

    async def connected(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            await read_request(reader)
            asked += 1

    async with bare_server(connected) as address, asking((2, address)) as network:
        waiting = [
            asyncio.create_task(network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S)) for _ in range(REQUESTS_MAX)
        ]
        await until(lambda: asked == REQUESTS_MAX)
        with pytest.raises(PeerError, match=f"{REQUESTS_MAX} requests wait"):
            await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


# Peers that send anything.


@pytest.mark.parametrize(
    "reply",
    [
        struct.pack(">i", -1),
        struct.pack(">i", 0),
        struct.pack(">i", 3) + b"abc",
        struct.pack(">i", ANSWER_BYTES_MAX + 1),
        struct.pack(">i", 2**31 - 1),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        answer_frame(1, b""),
        answer_frame(1, b"\x63\x01"),
        answer_frame(1, b"\x01\x7f"),
        answer_frame(1, done_body() + b"more"),
    ],
)
async def test_an_answer_that_is_none_is_an_error_at_once_and_not_a_node_that_is_down(reply: bytes) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(reply)
        await asyncio.Event().wait()

    async with bare_server(connected) as address, asking((2, address)) as network:
        with pytest.raises(PeerUnreachable) as caught:
            await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S)
        assert not caught.value.is_down


@pytest.mark.parametrize("size", [1, 3, 7, 100])
async def test_an_answer_that_is_cut_by_the_end_of_the_connection_is_an_error_at_once(size: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, _ = await read_request(reader)
        writer.write(answer_frame(number, bytes(2**20))[:size])
        await writer.drain()
        writer.close()

    async with bare_server(connected) as address, asking((2, address)) as network:
        with pytest.raises(PeerUnreachable):
            await network.request(NODE_2, Lane.FETCH, FETCH, LONG_S)


async def test_an_answer_to_nobody_is_passed_over() -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, _ = await read_request(reader)
        writer.write(answer_frame(number + 77, bytes(2**20)) + answer_frame(number, done_body()))
        await asyncio.Event().wait()

    async with bare_server(connected) as address, asking((2, address)) as network:
        assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()


# Clients in the way.


async def test_nodes_are_answered_while_clients_requests_take_all_memory(tmp_path: Path) -> None:
    """What clients wait for is often just this: that a follower's next fetch says what it has."""
    async with pair(tmp_path, done) as (network, node):
        held_bytes = node.server.requests.bytes_max + 1
        node.server.requests.take(held_bytes)
        node.server.half_read.take(node.server.half_read.bytes_max + 1)
        node.server.answers.take(node.server.answers.bytes_max + 1)
        for _ in range(5):
            assert await network.request(NODE_2, Lane.FETCH, FETCH, LONG_S / 4) == Done()
        node.server.requests.give_back(held_bytes)


async def test_a_node_that_does_not_take_its_answer_holds_up_nobody_else(tmp_path: Path) -> None:
    size = 2**25
    replica = FetchedReplica(
        KEY, ErrorCode.none, LeaderEpoch(1), None, Offset(9), Offset(0), buffers=(bytes(size // 4),) * 4
    )

    async def answer(_sender: NodeId, message: PeerRequest) -> PeerResponse:
        return ReplicaFetched(ErrorCode.none, [replica]) if isinstance(message, ReplicaFetch) else Done()

    async with pair(tmp_path, answer) as (network, node):
        _, writer = await asyncio.open_connection(node.address.host, node.address.port, limit=2**16)
        client_id = PeerName(NodeId(3), UUID(int=3), CLUSTER).asking(NODE_2)
        writer.write(request_frame(client_id, b"".join(encode(FETCH))))
        await until(lambda: node.server.answers.used_bytes > size)
        assert await network.request(NODE_2, Lane.CONTROL, Votes(()), LONG_S) == Done()
        assert node.server.answers.used_bytes > size
        writer.transport.abort()
        await until(lambda: node.server.answers.used_bytes == 0)
