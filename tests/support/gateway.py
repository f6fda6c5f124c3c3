"""A whole gateway of real processes: core, bridges, edge and fleets, on ports that stay the same over restarts."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.support.processes import Process, TidegatePart, free_port, wait_until
from tidegate import Consumer, Event
from tidegate.errors import UnknownStreamError
from tidegate_wire.uplink.event import LOSS_STREAM

PartName = Literal["core", "bridge", "bridge-2", "edge"]
PARTS: tuple[PartName, ...] = ("core", "bridge", "bridge-2", "edge")

DEFAULT_STREAM = "events"


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss record."""

    stream: str
    first_sequence: int
    last_sequence: int
    count: int
    reason: str


@dataclass(slots=True)
class Wiring:
    """What differs from a gateway with one bridge that listens itself."""

    options: dict[PartName, list[str]] = field(default_factory=dict)
    """Further arguments of a part."""
    data_dirs: dict[PartName, Path] = field(default_factory=dict)
    uplink_port: int | None = None
    """Where the edge's uplink goes instead of to the bridge: a relay, or a broker."""
    broker_port: int | None = None
    """The bridges subscribe at this broker instead of listening; the edge's uplink goes there too."""


class Gateway:
    """Start, kill and restart the parts of one gateway; each keeps its data directory and its port."""

    def __init__(self, directory: Path, wiring: Wiring | None = None) -> None:
        self.directory = directory
        self.wiring = wiring or Wiring()
        self.ports: dict[PartName, int] = {name: free_port() for name in PARTS}
        self._parts: dict[PartName, TidegatePart] = {}
        self._ledgers: list[Path] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def address(self, name: PartName) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def data_dir(self, name: PartName) -> Path:
        return self.wiring.data_dirs.get(name, self.directory / name)

    def _arguments(self, name: PartName) -> list[str]:
        wiring = self.wiring
        listen = ["--listen", self.address(name)]
        data = ["--data-dir", str(self.data_dir(name))]
        options = wiring.options.get(name, [])
        if name == "core":
            return ["core", "--node-id", "1", *listen, *data, *options]
        if name != "edge":
            if wiring.broker_port is not None:
                listen = ["--broker", f"mqtt://127.0.0.1:{wiring.broker_port}"]
            return ["bridge", *listen, "--core", self.address("core"), *options]
        uplink_port = wiring.uplink_port or wiring.broker_port or self.ports["bridge"]
        return ["edge", "--id", "edge-1", *listen, "--uplink", f"mqtt://127.0.0.1:{uplink_port}", *data, *options]

    def start(self, *names: PartName) -> None:
        """Start the named parts, in this order, each ready before the next."""
        for name in names:
            self.launch(name).wait_ready()

    def launch(self, name: PartName) -> TidegatePart:
        """Start a part, without waiting for it."""
        part = self._stack.enter_context(TidegatePart(self._arguments(name), self.directory, name=name))
        self._parts[name] = part
        return part

    def kill(self, name: PartName) -> None:
        """kill -9."""
        self._parts[name].kill()

    def stop(self, name: PartName) -> None:
        """SIGTERM; the part has to end by itself, with exit code 0."""
        part = self._parts[name]
        code = part.terminate()
        assert code == 0, f"{name} ended with {code}:\n{part.output()[-4000:]}"

    def part(self, name: PartName) -> TidegatePart:
        return self._parts[name]

    def start_fleet(
        self,
        *,
        devices: int,
        rate_hz: float,
        seconds: float,
        name: str = "d",
        arguments: tuple[str, ...] = (),
    ) -> Process:
        """Devices whose names begin with `name`, which publish to the edge and write a ledger of their own."""
        ledger = self.directory / f"ledger-{name}.jsonl"
        if ledger not in self._ledgers:
            self._ledgers.append(ledger)
        command = [sys.executable, "-m", "tidegate", "sim", "--target", f"mqtt://{self.address('edge')}"]
        command += ["--devices", str(devices), "--rate", str(rate_hz), "--seconds", str(seconds), "--name", name]
        command += ["--ledger", str(ledger), "--reconnect-seconds-max", "1", *arguments]
        return self._stack.enter_context(Process(command, self.directory / f"sim-{name}.log"))

    def published(self, name: str = "d") -> int:
        """How many events a fleet has published up to now."""
        return self._ledger_lines(name, '"published"')

    def acknowledged(self, name: str = "d") -> int:
        """How many events a fleet has had acknowledged up to now."""
        return self._ledger_lines(name, '"acknowledged"')

    def _ledger_lines(self, name: str, state: str) -> int:
        try:
            return (self.directory / f"ledger-{name}.jsonl").read_text(encoding="utf-8").count(state)
        except FileNotFoundError:
            return 0

    def verify(self, *streams: str) -> dict[str, Any]:
        """`tidegate verify --json` of all ledgers, now: the six counts and examples."""
        command = [sys.executable, "-m", "tidegate", "verify", "--core", self.address("core"), "--json"]
        for ledger in self._ledgers:
            command += ["--ledger", str(ledger)]
        for stream in streams:
            command += ["--stream", stream]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode in {0, 5}, result.stderr
        counts: dict[str, Any] = json.loads(result.stdout)
        return counts

    def verify_when_drained(self, timeout_s: float, *streams: str) -> dict[str, Any]:
        """The six counts once nothing acknowledged is missing, or after `timeout_s`."""
        counts = self.verify(*streams)

        def complete() -> bool:
            nonlocal counts
            counts = self.verify(*streams)
            return bool(counts["lost"] == 0)

        try:
            wait_until(complete, timeout_s, "everything acknowledged arrives")
        except AssertionError:
            return counts
        return counts

    def assert_holds(self, timeout_s: float, *streams: str, context: str = "") -> dict[str, Any]:
        """Everything acknowledged is read once and in order, within `timeout_s`; returns the counts."""
        counts = self.verify_when_drained(timeout_s, *streams)
        assert counts["holds"], f"{context} {counts}"
        assert counts["acknowledged"] > 0, f"{context} {counts}"
        return counts

    def read(self, *streams: str) -> list[Event]:
        """All events of streams that the core has now, each partition in order; a stream that is missing is empty."""

        async def consume() -> list[Event]:
            async with Consumer(*streams, core=self.address("core"), until_end=True) as consumer:
                return [event async for event in consumer]

        try:
            return asyncio.run(consume())
        except UnknownStreamError:
            return []

    def losses(self) -> list[Loss]:
        """The loss records that the core has now."""
        return [
            Loss(
                stream=fields["stream"],
                first_sequence=fields["first_sequence"],
                last_sequence=fields["last_sequence"],
                count=fields["count"],
                reason=fields["reason"],
            )
            for fields in (event.json() for event in self.read(LOSS_STREAM))
        ]

    def query_edge(self, statement: str) -> list[tuple[Any, ...]]:
        """What an SQL statement gives on the edge's event log; the edge may be running."""
        path = self.data_dir("edge") / "event-log.db"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as connection:
            return connection.execute(statement).fetchall()

    def backlog(self) -> int:
        """Events in the edge's log."""
        return int(self.query_edge("SELECT count(*) FROM all_events")[0][0])

    def wait_drained(self, timeout_s: float) -> None:
        """Return when the edge's log is empty."""
        wait_until(lambda: self.backlog() == 0, timeout_s, "the edge's log is empty")
