"""One client connection: frames in, answers out in the same order.

Bytes land in a buffer that all connections share, and are cut into frames there; a frame that goes on beyond it is read
straight into a buffer of its own. Produce requests are begun as they arrive, so that one sync commits many of them;
everything else is done by one task a connection, one request after the other, as Kafka does. That task also writes the
answers. Reading stops while too much is in flight, on this connection or in all.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import structlog

from tidegate_core.handlers.produce import ProduceInFlight, begin_produce
from tidegate_core.protocol.produce import is_produce
from tidegate_core.replication.messages import PEER_API
from tidegate_wire.kafka.messages import MessageError, decode_request_header

if TYPE_CHECKING:
    from tidegate_core.server import KafkaServer

_LENGTH: Final = struct.Struct(">i")
LENGTH_BYTES: Final = _LENGTH.size
FRAME_BYTES_FIRST: Final = 64 * 1024
"""What is set aside for a frame before its bytes come; it doubles as they do, so that a length alone costs little."""

PASSAGE_S: Final = 1.0
"""How long a request is read on although there is no room, before the one nearest to its end is chosen anew: enough for
a megabyte over a slow link, and not long for those who wait."""

WRITE_BYTES_HIGH: Final = 128 * 1024
"""What asyncio may hold of an answer, beyond what the kernel does, before the connection's task waits: little, as it
may be held for every connection, and enough to keep a socket busy."""

JOINED_BYTES_MAX: Final = 64 * 1024
"""Answers up to here go to the socket in one piece; joining larger ones costs more than the system calls it saves."""

_log = structlog.get_logger()


class _Request(NamedTuple):
    """A request that waits for its turn."""

    size_bytes: int
    frame: memoryview


class Connection(asyncio.BufferedProtocol):
    """Owned by the server. `progress_at` is when the peer last did something for it (loop's clock)."""

    def __init__(self, server: KafkaServer) -> None:
        self._server = server
        self._settings = server.settings
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", None)
        self._host = ""
        self._queue: deque[_Request | ProduceInFlight] = deque()
        self._queued_bytes = 0
        self._unstarted = 0
        """Requests in the queue that are not Produce requests begun already."""
        self._rest = bytearray()
        """Bytes that were read and are not cut into frames yet."""
        self._frame: bytearray | None = None
        self._frame_bytes = 0
        self._filled = 0
        self._held_bytes = 0
        """Of requests that are not answered."""
        self._is_reading = True
        self._is_node = False
        """Another node of the cluster: it is read on although clients take all memory, since what they wait for is
        often that a follower's next fetch says what it has."""
        self._passage: asyncio.TimerHandle | None = None
        """Set while the request on its way is read although there is no room for it."""
        self._has_work = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._worker: asyncio.Task[None] | None = None
        self.progress_at = self._loop.time()
        self._unsent_bytes = 0

    # Called by the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept, or close at once where there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self._host = str(peer[0]) if peer else ""
        if not self._server.admit(self):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WRITE_BYTES_HIGH)
        self._worker = self._loop.create_task(self._work(), name=f"kafka {self._host}")

    def connection_lost(self, _error: Exception | None) -> None:
        """Forget everything that waits; what Produce wrote stays written."""
        self._server.dismiss(self)
        if self._worker is not None:
            self._worker.cancel()
        self._queue.clear()
        self._is_reading = False
        if self._frame is not None:
            self._end_frame(self._frame)
        held_bytes, self._held_bytes = self._held_bytes, 0
        self._server.requests.give_back(held_bytes)

    def get_buffer(self, _size_hint: int) -> memoryview:
        """Where the next bytes go: into the frame that is on its way, or into the shared buffer."""
        if self._frame is not None:
            return memoryview(self._frame)[self._filled :]
        return self._server.landing

    def buffer_updated(self, size_bytes: int) -> None:
        """Bytes came."""
        self.progress_at = self._loop.time()
        try:
            if self._frame is not None:
                self._filled += size_bytes
                self._fill_frame(self._frame)
            elif self._rest:
                self._rest += self._server.landing[:size_bytes]
                self._take_rest()
            else:
                landed = self._server.landing[:size_bytes]
                taken = self._cut(landed)
                if taken < size_bytes:
                    self._rest += landed[taken:]
        except MessageError as error:
            self._refuse(error)
            return
        if self._is_reading and self._must_pause():
            self._pause()

    def pause_writing(self) -> None:
        """The peer does not take its answers."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._can_write.set()

    # Frames.

    def _cut(self, data: memoryview) -> int:
        """Begin the requests of whole frames in `data`; returns how many of its bytes are done with."""
        position, end = 0, len(data)
        request_bytes_max = self._settings.request_bytes_max
        while end - position >= LENGTH_BYTES and not self._has_enough():
            (length,) = _LENGTH.unpack_from(data, position)
            if not 0 < length <= request_bytes_max:
                raise MessageError(f"a request of {length} bytes; at most {request_bytes_max} are taken")
            start = position + LENGTH_BYTES
            if start + length > end:
                self._begin_frame(length, data[start:])
                return end
            self._hold(length)
            self._take(memoryview(bytearray(data[start : start + length])))
            position = start + length
        return position

    def _take_rest(self) -> None:
        rest, self._rest = self._rest, bytearray()
        taken = self._cut(memoryview(rest))
        self._rest = rest[taken:]

    def _begin_frame(self, length: int, first: memoryview) -> None:
        size = min(length, max(FRAME_BYTES_FIRST, 2 * len(first)))
        self._frame = bytearray(size)
        self._frame[: len(first)] = first
        self._frame_bytes = length
        self._filled = len(first)
        self._server.half_read.take(size)

    def _fill_frame(self, frame: bytearray) -> None:
        if self._filled == self._frame_bytes:
            self._end_frame(frame)
            self._hold(len(frame))
            self._take(memoryview(frame))
        elif self._filled == len(frame):
            grown = bytearray(min(self._frame_bytes, 2 * len(frame)))
            grown[: len(frame)] = frame
            self._server.half_read.take(len(grown) - len(frame))
            self._frame = grown

    def _end_frame(self, frame: bytearray) -> None:
        """The frame is whole, or will never be."""
        self._frame = None
        self._server.half_read.give_back(len(frame))
        if self._passage is not None:
            self._passage.cancel()
            self._end_passage()

    def _hold(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        self._server.requests.take(size_bytes)

    def _release(self, size_bytes: int) -> None:
        if self._held_bytes:  # else the connection is lost, and everything was given back
            self._held_bytes -= size_bytes
            self._server.requests.give_back(size_bytes)

    # Requests.

    def _take(self, frame: memoryview) -> None:
        request: _Request | ProduceInFlight
        node = self._server.node
        if not self._unstarted and node is not None and is_produce(frame):
            request = begin_produce(node, frame)
            if not request.is_answered:
                self._release(request.size_bytes)
                _check_unanswered(request)
                return
        else:
            self._unstarted += 1
            request = _Request(len(frame), frame)
        self._queued_bytes += request.size_bytes
        if not self._queue:
            self._has_work.set()
        self._queue.append(request)

    async def _work(self) -> None:
        """Answer requests, one after the other."""
        try:
            while True:
                while not self._queue:
                    self._has_work.clear()
                    await self._has_work.wait()
                await self._answer_next()
        except MessageError as error:
            self._refuse(error)
        except Exception:
            _log.exception("connection_failed", host=self._host)
            self._transport.abort()

    async def _answer_next(self) -> None:
        out: list[bytes | memoryview] = []
        released = 0
        while self._queue:
            request = self._queue[0]
            if isinstance(request, ProduceInFlight):
                if not request.is_committed:
                    if out:
                        break  # first send what is there
                    await request.committed()
                out.append(request.encode())
            else:
                if out:
                    break
                out += await self._answer(request.frame)
                self._unstarted -= 1
            self._queue.popleft()
            self._queued_bytes -= request.size_bytes
            released += request.size_bytes
        if out:
            await self._send(out)
        self._release(released)
        self._resume()

    async def _answer(self, frame: memoryview) -> Sequence[bytes | memoryview]:
        header = decode_request_header(frame)
        if header.api_key == PEER_API:  # neither waits for room: the cluster would stop for a client that does not read
            buffers = await self._server.peers.answer(header, frame)
            self._is_node = True
            return buffers
        dispatcher = await asyncio.shield(self._server.dispatcher)
        if is_produce(frame):
            assert self._server.node is not None
            produce = begin_produce(self._server.node, frame)
            if not produce.is_answered:
                _check_unanswered(produce)
                return []
            await produce.committed()
            return [produce.encode()]
        await self._server.answers.room()
        return await dispatcher.answer(header, frame, self._host)

    async def _send(self, buffers: list[bytes | memoryview]) -> None:
        """Write an answer; returns when the peer took so much of it that there is room for the next."""
        size_bytes = sum(map(len, buffers))
        if size_bytes <= JOINED_BYTES_MAX and self._can_write.is_set():
            self._transport.writelines(buffers)
            return
        self._server.answers.take(size_bytes)
        try:
            for buffer in buffers:
                await self._can_write.wait()
                self._transport.write(buffer)
            await self._can_write.wait()
        finally:
            self._server.answers.give_back(size_bytes)

    def _refuse(self, error: MessageError) -> None:
        self._server.refused(self._host, str(error))
        self._transport.abort()

    # Flow control.

    def _has_enough(self) -> bool:
        settings = self._settings
        return len(self._queue) >= settings.requests_in_flight_max or self._queued_bytes > settings.connection_bytes_max

    def _must_pause(self) -> bool:
        if self._frame is not None:
            return not self._is_node and self._passage is None and self._server.half_read.is_full
        return self._has_enough() or (not self._is_node and self._server.requests.is_full)

    def _pause(self) -> None:
        self._is_reading = False
        self._transport.pause_reading()
        if self._frame is not None:
            self._server.half_read.when_room(self._frame_bytes - self._filled, self._resume_frame)
        elif not self._has_enough():
            self._server.requests.when_room(self._resume)

    def _resume_frame(self) -> bool:
        """Read on in the middle of a request; says whether there is one."""
        if self._frame is None or self._transport.is_closing():
            return False
        if self._server.half_read.is_full:
            self._passage = self._loop.call_later(PASSAGE_S, self._interrupt_passage)
        self._is_reading = True
        self._transport.resume_reading()
        return True

    def _interrupt_passage(self) -> None:
        self._pause()
        self._end_passage()

    def _end_passage(self) -> None:
        self._passage = None
        self._server.half_read.end_passage()

    def _resume(self) -> None:
        """Cut what was read already into requests, then read on, if there is room."""
        if self._is_reading or self._frame is not None or self._transport.is_closing():
            return
        if self._rest and not self._has_enough():
            try:
                self._take_rest()
            except MessageError as error:
                self._refuse(error)
                return
        self._is_reading = True
        if self._must_pause():
            self._pause()
        else:
            self._transport.resume_reading()

    # Asked by the server.

    def is_stalled(self, now: float) -> bool:
        """Whether the peer stopped in the middle of a request, does not take its answers, or is idle for too long."""
        settings = self._settings
        unsent = self._transport.get_write_buffer_size()
        if unsent != self._unsent_bytes:
            self._unsent_bytes = unsent
            self.progress_at = now
        silent_s = now - self.progress_at
        if unsent or self._frame is not None or (self._rest and not self._queue):
            return silent_s > settings.connection_stall_s
        return not self._queue and silent_s > settings.connection_idle_s

    def close(self) -> None:
        """Close without waiting for answers."""
        self._transport.abort()

    @property
    def host(self) -> str:
        """The peer's address."""
        return self._host

    @property
    def worker(self) -> asyncio.Task[None] | None:
        """The task that answers; ends soon after the connection is lost."""
        return self._worker


def _check_unanswered(produce: ProduceInFlight) -> None:
    if produce.has_errors:  # the client learns of it in the only way it can, as with Kafka
        raise MessageError("records sent without asking for an answer were refused")
