"""One TCP connection to a core node: requests go out as they come, answers come back in the same order.

A Kafka node answers the requests of one connection in order, so the requests on their way are a queue, and its head
alone is timed. Whatever goes wrong closes the connection and fails every request on it: nothing is known then of what
the node did with them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self, TypeVar

from tidegate_bridge.errors import CoreTooOld, CoreUnreachable
from tidegate_bridge.kafka import api
from tidegate_bridge.kafka.produce import ProduceResult, decode_produce_response, encode_produce
from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import MessageError, decode_response, encode_request

RESPONSE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Fetch asks for 1 MiB, but gets a whole batch however large; Metadata of 10,000 partitions takes less than 1 MiB."""

WRITE_BUFFER_BYTES_MAX: Final = 4 * 1024 * 1024
"""Above this, `writable` is false until the node has taken some: several batches, and a second of a slow link."""

_LENGTH_BYTES: Final = 4
_CORRELATION_ID_MAX: Final = 2**31 - 1

R = TypeVar("R")


class _Request:
    __slots__ = ("correlation_id", "decode", "future", "sent_at")

    def __init__(
        self, correlation_id: int, decode: Callable[[memoryview], Any], future: asyncio.Future[Any], sent_at: float
    ) -> None:
        self.correlation_id = correlation_id
        self.decode = decode
        self.future = future
        self.sent_at = sent_at


class KafkaConnection(asyncio.Protocol):
    """An open connection. `open` makes one; after `closed` turned true another one is needed."""

    def __init__(self, address: Address, *, client_id: str, request_timeout_ms: int) -> None:
        self.address = address
        self.closed = False
        self.writable = True
        self._client_id = client_id
        self._client_id_bytes = client_id.encode()
        self._timeout_s = request_timeout_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes | memoryview] = []
        self._received = bytearray()
        self._needed_bytes = _LENGTH_BYTES
        self._requests: deque[_Request] = deque()
        self._correlation_id = 0
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, address: Address, *, client_id: str, connect_timeout_ms: int, request_timeout_ms: int) -> Self:
        """Connect, and check that the node speaks the versions that are needed.

        Raises:
            CoreUnreachable: no connection, or no answer.
            CoreTooOld: a version is missing.
        """
        loop = asyncio.get_running_loop()
        connection = cls(address, client_id=client_id, request_timeout_ms=request_timeout_ms)
        try:
            async with asyncio.timeout(connect_timeout_ms / 1000):
                await loop.create_connection(lambda: connection, address.host, address.port)
                versions = await connection.call(api.API_VERSIONS_REQUEST, api.API_VERSIONS_RESPONSE)
        except (OSError, TimeoutError) as error:
            connection.close()
            reason = str(error) or "no answer in time"
            raise CoreUnreachable(f"the core at {address} can't be reached: {reason}") from error
        except BaseException:
            connection.close()
            raise
        missing = api.missing_versions(versions)
        if missing:
            connection.close()
            listed = ", ".join(f"API {key} version {version}" for key, version in missing.items())
            raise CoreTooOld(f"the core at {address} does not speak {listed}", hint="Apache Kafka 2.4 is old enough")
        return connection

    async def call(self, request: Any, response_type: type[R]) -> R:
        """Send a request and wait for its answer.

        Raises:
            CoreUnreachable: the connection was lost, or the answer did not come in time or makes no sense.
        """
        correlation_id = self._next_correlation_id()
        frame = encode_request(request, correlation_id, self._client_id)
        response: R = await self._send([frame], correlation_id, lambda frame: decode_response(response_type, frame)[1])
        return response

    def produce(
        self, topic: str, partition: int, batch: bytes | memoryview, timeout_ms: int
    ) -> asyncio.Future[ProduceResult]:
        """Send one record batch now; the future fails with CoreUnreachable if it is not known what became of it."""
        correlation_id = self._next_correlation_id()
        head = encode_produce(
            correlation_id,
            self._client_id_bytes,
            topic.encode(),
            partition=partition,
            batch_bytes=len(batch),
            timeout_ms=timeout_ms,
        )
        return self._send([head, batch], correlation_id, decode_produce_response)

    async def drained(self) -> None:
        """Return when `writable` is true again, or the connection is closed."""
        while not self.writable and not self.closed:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def close(self, error: CoreUnreachable | None = None) -> None:
        """Close the socket; every request without an answer fails with `error`."""
        if self.closed:
            return
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        failure = error or CoreUnreachable(f"the connection to {self.address} was closed")
        requests, self._requests = self._requests, deque()
        for request in requests:
            if not request.future.done():
                request.future.set_exception(failure)
        self._wake_drained()

    def _next_correlation_id(self) -> int:
        self._correlation_id = (self._correlation_id + 1) & _CORRELATION_ID_MAX
        return self._correlation_id

    def _send(
        self, buffers: list[bytes | memoryview], correlation_id: int, decode: Callable[[memoryview], Any]
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed or self._transport is None:
            future.set_exception(CoreUnreachable(f"the connection to {self.address} was closed"))
            return future
        now = self._loop.time()
        self._requests.append(_Request(correlation_id, decode, future, now))
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._timeout_s, self._check_timeout)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += buffers
        return future

    def _flush(self) -> None:
        """Write what this turn of the event loop brought together: one system call for many small requests."""
        if self._transport is not None and not self.closed:
            self._transport.writelines(self._unsent)
        self._unsent.clear()

    def _check_timeout(self) -> None:
        self._timer = None
        if not self._requests:
            return
        due = self._requests[0].sent_at + self._timeout_s
        if due <= self._loop.time():
            self.close(CoreUnreachable(f"the core at {self.address} did not answer in {self._timeout_s:g} s"))
        else:
            self._timer = self._loop.call_at(due, self._check_timeout)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the socket is connected."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(WRITE_BUFFER_BYTES_MAX)
        self._transport = transport
        if self.closed:  # given up while it was connecting
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the socket is gone."""
        self.close(CoreUnreachable(f"the connection to {self.address} was lost: {exc or 'closed by the core'}"))

    def pause_writing(self) -> None:
        """asyncio: the socket takes less than is written."""
        self.writable = False

    def resume_writing(self) -> None:
        """asyncio: most of what was written is sent."""
        self.writable = True
        self._wake_drained()

    def _wake_drained(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came in."""
        self._received += data
        if len(self._received) < self._needed_bytes:
            return
        try:
            taken = self._take_frames(memoryview(bytes(self._received)))
        except MessageError as error:
            self.close(CoreUnreachable(f"the core at {self.address} does not answer as Kafka does: {error}"))
        else:
            del self._received[:taken]

    def _take_frames(self, received: memoryview) -> int:
        """Hand every whole frame on; returns how many bytes they take."""
        start = 0
        self._needed_bytes = _LENGTH_BYTES
        while len(received) - start >= _LENGTH_BYTES:
            length = int.from_bytes(received[start : start + _LENGTH_BYTES], signed=True)
            if not _LENGTH_BYTES <= length <= RESPONSE_BYTES_MAX:
                raise MessageError(f"a response of {length} bytes")
            after = start + _LENGTH_BYTES + length
            if after > len(received):
                self._needed_bytes = after - start
                break
            self._answer(received[start + _LENGTH_BYTES : after])
            start = after
        return start

    def _answer(self, frame: memoryview) -> None:
        if not self._requests:
            raise MessageError("an answer to no request")
        request = self._requests[0]
        correlation_id = int.from_bytes(frame[:4])
        if correlation_id != request.correlation_id:
            raise MessageError(f"answer {correlation_id} where {request.correlation_id} was next")
        message = request.decode(frame)
        self._requests.popleft()
        if not request.future.done():
            request.future.set_result(message)
