"""A whole gateway of real processes: core, bridge, edge and a fleet, on ports that stay the same over restarts."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.support.processes import Process, TidegatePart, free_port, wait_until

PartName = Literal["core", "bridge", "edge"]


class Gateway:
    """Start, kill and restart the parts of one gateway; each keeps its data directory and its port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports: dict[PartName, int] = {"core": free_port(), "bridge": free_port(), "edge": free_port()}
        self._parts: dict[PartName, TidegatePart] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def address(self, name: PartName) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def _arguments(self, name: PartName) -> list[str]:
        listen = ["--listen", self.address(name)]
        data = ["--data-dir", str(self.directory / name)]
        if name == "core":
            return ["core", "--node-id", "1", *listen, *data]
        if name == "bridge":
            return ["bridge", *listen, "--core", self.address("core")]
        return ["edge", "--id", "edge-1", *listen, "--uplink", f"mqtt://{self.address('bridge')}", *data]

    def start(self, *names: PartName) -> None:
        """Start the named parts, in this order, each ready before the next."""
        for name in names:
            part = self._stack.enter_context(TidegatePart(self._arguments(name), self.directory, name=name))
            self._parts[name] = part
            part.wait_ready()

    def kill(self, name: PartName) -> None:
        """kill -9."""
        self._parts[name].kill()

    def part(self, name: PartName) -> TidegatePart:
        return self._parts[name]

    def start_fleet(self, *, devices: int, rate_hz: float, seconds: float, arguments: tuple[str, ...] = ()) -> Process:
        """Devices that publish to the edge and write `ledger_path`."""
        command = [sys.executable, "-m", "tidegate", "sim", "--target", f"mqtt://{self.address('edge')}"]
        command += ["--devices", str(devices), "--rate", str(rate_hz), "--seconds", str(seconds)]
        command += ["--ledger", str(self.ledger_path), *arguments]
        return self._stack.enter_context(Process(command, self.directory / "sim.log"))

    @property
    def ledger_path(self) -> Path:
        return self.directory / "ledger.jsonl"

    def verify(self) -> dict[str, Any]:
        """`tidegate verify --json` now: the six counts."""
        command = [sys.executable, "-m", "tidegate", "verify", "--core", self.address("core")]
        command += ["--ledger", str(self.ledger_path), "--json"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode in {0, 5}, result.stderr
        counts: dict[str, Any] = json.loads(result.stdout)
        return counts

    def verify_when_drained(self, timeout_s: float) -> dict[str, Any]:
        """The six counts once nothing acknowledged is missing, or after `timeout_s`."""
        counts = self.verify()

        def complete() -> bool:
            nonlocal counts
            counts = self.verify()
            return bool(counts["lost"] == 0)

        try:
            wait_until(complete, timeout_s, "everything acknowledged arrives")
        except AssertionError:
            return counts
        return counts
