"""A TCP relay with faults: what a bad link does to an uplink, at the test's command."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

CHUNK_BYTES: Final = 16_384

_NO_LINGER: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: close sends RST, and what was not sent is gone."""

_MQTT_PUBLISH: Final = 0x30


class Relay:
    """Passes connections on to a port of 127.0.0.1, on a thread of its own, until told to do worse.

    "Up" is from the client to the target, "down" is the way back. A connection that has had bytes swallowed stays dead
    after `mend`, as one does whose packets were lost for too long; new ones pass.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.connections = 0
        """How many came, refused ones not counted."""
        self.bytes_swallowed = 0
        self.packets_dropped = 0
        self._target_port = target_port
        self._is_cut = False
        self._swallows_up = False
        self._swallows_down = False
        self._drops_topic: bytes | None = None
        self._bytes_until_reset: Callable[[], int] | None = None
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay")

    def cut(self) -> None:
        """Reset every connection, and every new one."""

        def work() -> None:
            self._is_cut = True
            self._reset_all()

        self._call(work)

    def mend(self) -> None:
        """New connections pass, as do old ones that lost nothing."""

        def work() -> None:
            self._is_cut = self._swallows_up = self._swallows_down = False
            self._drops_topic = None
            self._bytes_until_reset = None
            for link in self._links:
                link.bytes_until_reset = None

        self._call(work)

    def swallow(self, *, up: bool = False, down: bool = False) -> None:
        """Let bytes of a direction, or both, vanish; connections stay open."""

        def work() -> None:
            self._swallows_up, self._swallows_down = up, down
            for link in self._links:
                link.is_dead_up |= up
                link.is_dead_down |= down

        self._call(work)

    def drop_publishes(self, topic_end: bytes) -> None:
        """Let MQTT PUBLISH packets vanish on the way down whose topic ends so; all else passes."""

        def work() -> None:
            self._drops_topic = topic_end

        self._call(work)

    def reset_after(self, bytes_up: Callable[[], int]) -> None:
        """Reset each connection when it has passed so many bytes up; the number is drawn anew for each."""

        def work() -> None:
            self._bytes_until_reset = bytes_up
            for link in self._links:
                link.bytes_until_reset = bytes_up()

        self._call(work)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10), "the relay did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Callable[[], None]) -> None:
        """Do `work` on the relay's thread, and return when it is done."""
        done = threading.Event()

        def call() -> None:
            work()
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(10), "the relay's thread is gone"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        self._reset_all()
        await asyncio.gather(*(link.over.wait() for link in self._links))

    def _reset_all(self) -> None:
        for link in self._links:
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            _reset(writer)
            return
        link = _Link(self, writer)
        link.is_dead_up, link.is_dead_down = self._swallows_up, self._swallows_down
        if self._bytes_until_reset is not None:
            link.bytes_until_reset = self._bytes_until_reset()
        self.connections += 1
        self._links.add(link)
        try:
            await link.run(reader, self._target_port)
        finally:
            self._links.discard(link)
            link.reset()
            link.over.set()


class _Link:
    """One connection through the relay."""

    def __init__(self, relay: Relay, client: asyncio.StreamWriter) -> None:
        self.is_dead_up = False
        self.is_dead_down = False
        self.bytes_until_reset: int | None = None
        self.over = asyncio.Event()
        self._relay = relay
        self._writers = [client]
        self._ways: set[asyncio.Task[None]] = set()
        self._is_reset = False

    def reset(self) -> None:
        self._is_reset = True
        for way in self._ways:
            way.cancel()
        for writer in self._writers:
            _reset(writer)

    async def run(self, reader: asyncio.StreamReader, target_port: int) -> None:
        try:
            target_reader, target = await asyncio.open_connection("127.0.0.1", target_port)
        except OSError:
            return
        self._writers.append(target)
        if self._is_reset:
            return
        ways = self._ways = {
            asyncio.create_task(self._up(reader, target)),
            asyncio.create_task(self._down(target_reader, self._writers[0])),
        }
        _, pending = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in pending:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.is_dead_up:
                self._relay.bytes_swallowed += len(data)
                continue
            if self.bytes_until_reset is not None:
                data = data[: self.bytes_until_reset]
                self.bytes_until_reset -= len(data)
            writer.write(data)
            await writer.drain()
            if self.bytes_until_reset == 0:
                await asyncio.sleep(0.001)  # the last bytes leave the transport before RST
                return
        await self._ended(self.is_dead_up)

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting = b""
        while data := await reader.read(CHUNK_BYTES):
            if self.is_dead_down:
                self._relay.bytes_swallowed += len(data)
                continue
            packets, waiting = _split_packets(waiting + data)
            kept = [packet for packet in packets if not self._is_dropped(packet)]
            self._relay.packets_dropped += len(packets) - len(kept)
            writer.write(b"".join(kept))
            await writer.drain()
        await self._ended(self.is_dead_down)

    async def _ended(self, is_dead: bool) -> None:
        """A FIN on a way that swallows does not arrive either: the other side hears nothing."""
        if is_dead:
            await asyncio.Event().wait()

    def _is_dropped(self, packet: bytes) -> bool:
        wanted = self._relay._drops_topic
        if wanted is None or packet[0] & 0xF0 != _MQTT_PUBLISH:
            return False
        start = 2 + next(index for index in range(4) if packet[1 + index] < 0x80)
        length = int.from_bytes(packet[start : start + 2], "big")
        return packet[start + 2 : start + 2 + length].endswith(wanted)


def _split_packets(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole MQTT packets at the start of `data`, and what is left."""
    packets: list[bytes] = []
    position = 0
    while True:
        length, shift, index = 0, 0, position + 1
        while index < len(data):
            byte = data[index]
            length |= (byte & 0x7F) << shift
            shift += 7
            index += 1
            if byte < 0x80:
                break
        else:
            return packets, data[position:]
        if index + length > len(data):
            return packets, data[position:]
        packets.append(data[position : index + length])
        position = index + length


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
