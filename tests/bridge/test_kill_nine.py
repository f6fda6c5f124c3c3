"""kill -9 of the bridge at the worst moment: the core has the batch, the edge does not know it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

from tests.bridge.batches import cut
from tests.bridge.conftest import Stage
from tests.bridge.fake_edge import FakeEdge
from tests.bridge.waiting import eventually
from tests.support.processes import TidegatePart, free_port
from tidegate_wire.address import Address


class Gate:
    """A TCP relay in front of the core that can keep the core's answers to itself."""

    def __init__(self) -> None:
        self.core: Address | None = None
        self.holds_answers = False
        self.held_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def open(self, port: int) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        try:
            yield
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in list(self._writers):
                writer.close()
            await server.wait_closed()
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.core is not None
        core_reader, core_writer = await asyncio.open_connection(self.core.host, self.core.port)
        self._writers |= {writer, core_writer}
        self._start(self._relay(reader, core_writer, answers=False))
        self._start(self._relay(core_reader, writer, answers=True))

    def _start(self, relay: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(relay)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if answers and self.holds_answers:
                    self.held_bytes += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


async def test_a_bridge_killed_between_the_cores_answer_and_its_own_leaves_exactly_one_copy(
    stage: Stage, tmp_path: Path
) -> None:
    gate = Gate()
    gate_port = free_port()
    core = await stage.core(advertise=f"127.0.0.1:{gate_port}")
    gate.core = core
    arguments = ["bridge", "--listen", "127.0.0.1:0", "--core", f"127.0.0.1:{gate_port}"]
    async with gate.open(gate_port):
        with TidegatePart(arguments, tmp_path, name="doomed") as doomed:
            facts = await asyncio.to_thread(doomed.wait_ready)
            async with FakeEdge("edge-1", Address.parse(facts["listen"]).port) as edge:
                producer_id = (await edge.say_hello("telemetry")).producer_id
                assert producer_id is not None
                batches = [cut(producer_id, i, [b"event %d" % i]) for i in range(6)]
                assert (await edge.send_and_wait(batches[0])).error is None
                gate.holds_answers = True
                for record_batch in batches[1:5]:
                    edge.send(record_batch)
                await eventually(lambda: gate.held_bytes > 0, "the core answers")
                doomed.kill()
                assert len(edge.acks) == 1
        gate.holds_answers = False
        with TidegatePart(arguments, tmp_path, name="heir") as heir:
            facts = await asyncio.to_thread(heir.wait_ready)
            async with FakeEdge("edge-1", Address.parse(facts["listen"]).port) as edge:
                for record_batch in batches[1:]:
                    edge.send(record_batch)
                await edge.wait_for_stored(range(1, 6))
            assert await asyncio.to_thread(heir.terminate) == 0
        assert [record.value for record in await stage.read(core, "telemetry")] == [b"event %d" % i for i in range(6)]
