"""`tidegate demo`: it proves what it shows, and leaves nothing behind, however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.processes import wait_until
from tidegate.demo.counts import GroupCounts
from tidegate.demo.proof import Proof
from tidegate.demo.relay import Relay
from tidegate_wire.address import Address

SHORT = ["--seconds", "6", "--devices", "10", "--outage", "2"]
SIX_COUNTS = {"published", "acknowledged", "read", "lost", "duplicated", "out_of_order"}


class Demo:
    """`tidegate demo` as a process whose descendants can be found by a mark in their environment."""

    def __init__(self, directory: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.directory = directory
        self._mark = f"TIDEGATE_TEST_MARK={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidegate", "demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {name: value, "TMPDIR": str(directory)} | (env or {}),
        )

    def finish(self, timeout_s: float = 90) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        try:
            stdout, stderr = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            stdout, stderr = self.process.communicate()
            raise AssertionError(f"the demo did not end in {timeout_s} s:\n{stdout}\n{stderr}") from None
        return self.process.returncode, stdout, stderr

    def processes(self) -> list[int]:
        """The pids of what the demo started, and its own."""
        found: list[int] = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment = path.read_bytes()
            except OSError:
                continue
            if self._mark.encode() in environment.split(b"\0"):
                found.append(int(path.parent.name))
        return found

    def assert_nothing_left(self) -> None:
        assert self.processes() == []
        assert list(self.directory.iterdir()) == []


@pytest.mark.slow
def test_demo_proves_the_promise_through_outage_and_kill(tmp_path: Path) -> None:
    demo = Demo(tmp_path, *SHORT)
    code, stdout, stderr = demo.finish()
    assert code == 0, stdout + stderr
    for word in (
        "the uplink is cut",
        "kill -9",
        "the uplink is back",
        "published",
        "buffered",
        "committed",
        "consumed",
    ):
        assert word in stdout
    assert "Every acknowledged event was read exactly once, in order." in stdout
    assert "\x1b" not in stdout, "no terminal, no control sequences"
    demo.assert_nothing_left()


@pytest.mark.slow
def test_demo_with_json_prints_one_object_with_the_six_counts(tmp_path: Path) -> None:
    demo = Demo(tmp_path, *SHORT, "--json")
    code, stdout, stderr = demo.finish()
    assert code == 0, stdout + stderr
    counts = json.loads(stdout)
    assert stdout.count("\n") == 1
    assert set(counts) == SIX_COUNTS
    assert counts["published"] == counts["acknowledged"] == counts["read"] == 6 * 10 * 20
    assert (counts["lost"], counts["duplicated"], counts["out_of_order"]) == (0, 0, 0)
    assert "the uplink is cut" in stderr
    demo.assert_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    demo = Demo(tmp_path, "--seconds", "60")
    wait_until(lambda: len(demo.processes()) >= 7, 40, "the parts run")
    demo.process.send_signal(number)
    code, _, _ = demo.finish(40)
    assert code == 130
    demo.assert_nothing_left()


@pytest.mark.slow
def test_demo_killed_with_kill_nine_takes_its_processes_along(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--seconds", "60")
    wait_until(lambda: len(demo.processes()) >= 7, 40, "the parts run")
    demo.process.kill()
    demo.finish()
    wait_until(lambda: demo.processes() == [], 10, "the processes are gone")


@pytest.mark.slow
def test_a_part_that_does_not_come_up_is_shown_with_its_log(tmp_path: Path) -> None:
    demo = Demo(tmp_path, *SHORT, "--json", env={"TIDEGATE_BRIDGE_WINDOW_BATCHES_MAX": "0"})
    code, stdout, stderr = demo.finish()
    assert code == 3, stderr
    assert stdout == ""
    assert "bridge ended before it was ready" in stderr
    assert "TIDEGATE_BRIDGE_WINDOW_BATCHES_MAX" in stderr, "the end of the bridge's log"
    demo.assert_nothing_left()


def proof(**changes: int) -> Proof:
    counts = {
        "published": 10,
        "acknowledged": 10,
        "read": 10,
        "lost": 0,
        "duplicated": 0,
        "out_of_order": 0,
        "missed_by_group": 0,
    }
    return Proof(**counts | changes)


@pytest.mark.parametrize("name", ["lost", "duplicated", "out_of_order", "missed_by_group"])
def test_one_broken_promise_breaks_the_proof(name: str) -> None:
    assert proof().holds
    assert not proof(**{name: 1}).holds
    assert set(json.loads(proof().to_json())) == SIX_COUNTS


def test_a_proof_of_nothing_does_not_hold() -> None:
    assert not proof(published=0, acknowledged=0, read=0).holds


def test_group_counts_take_whole_lines_only_and_each_event_once(tmp_path: Path) -> None:
    first, second = tmp_path / "member-0.txt", tmp_path / "member-1.txt"
    counts = GroupCounts([first, second])
    assert counts.read() == 0
    first.write_text("d-0001 1\nd-0001 2\nd-00", encoding="utf-8")
    assert counts.read() == 2
    first.write_text("d-0001 1\nd-0001 2\nd-0002 1\n", encoding="utf-8")
    second.write_text("d-0001 2\n", encoding="utf-8")
    assert counts.read() == 3
    assert counts.seen == {("d-0001", 1), ("d-0001", 2), ("d-0002", 1)}


@pytest.fixture
async def echo() -> AsyncIterator[Address]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])


async def test_relay_passes_on_until_it_is_cut_and_again_when_it_is_mended(echo: Address) -> None:
    async with Relay() as relay:
        address = await relay.start()
        relay.target = echo
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"x" * 200_000)
        assert await reader.readexactly(200_000) == b"x" * 200_000

        relay.cut()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        assert await answer(address) == b""

        relay.mend()
        assert await answer(address) == b"ping"


async def answer(address: Address) -> bytes:
    """What comes back for a `ping` on a new connection; nothing if it is reset."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(b"ping")
        return await reader.read(4)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()
