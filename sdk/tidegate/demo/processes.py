"""The demo's processes: each part for itself, started with `--ready-file`, and gone when the demo is."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tidegate.demo.errors import PartFailedError
from tidegate_wire.address import Address

READY_TIMEOUT_S: Final = 20.0
"""From start to ready; two slow cores import a part in some two seconds."""

STOP_TIMEOUT_S: Final = 5.0
"""From SIGTERM to SIGKILL."""

LOG_LINES_SHOWN: Final = 15

_POLL_INTERVAL_S: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)


def _die_with(parent: int) -> None:
    """In the child: be killed when the demo, process `parent`, is gone, however it went (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone already
        os._exit(1)


class Part:
    """One process of the demo; its output goes to a log file."""

    def __init__(self, name: str, arguments: Sequence[str], directory: Path) -> None:
        self.name = name
        self._command = [sys.executable, *arguments]
        self._log_path = directory / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process, in a session of its own: Ctrl-C is the demo's to handle."""
        with self._log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(_die_with, os.getpid()),
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    async def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def wait(self) -> int:
        """The exit code, once the process ended."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for what does not end by it."""
        if self._process is None or not self.running:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    def failure(self, what: str) -> PartFailedError:
        """The error that this part failed, with the end of its log."""
        try:
            log = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            log = []
        shown = "".join(f"\n  {line}" for line in log[-LOG_LINES_SHOWN:])
        return PartFailedError(
            f"{self.name} {what}{shown and ':'}{shown}",
            hint="these are the last lines of its log; the demo needs nothing but free ports of 127.0.0.1",
        )


class ListeningPart(Part):
    """A `tidegate` part that announces where it listens."""

    def __init__(self, name: str, arguments: Sequence[str], directory: Path) -> None:
        self._ready_path = directory / f"{name}.ready.json"
        super().__init__(name, ["-m", "tidegate", *arguments, "--ready-file", str(self._ready_path)], directory)

    async def start(self) -> None:
        """Start the process; what an earlier one announced is forgotten."""
        self._ready_path.unlink(missing_ok=True)
        await super().start()

    async def ready(self) -> Address:
        """The address it listens on.

        Raises:
            PartFailedError: it ended, or is not ready in time.
        """
        deadline_s = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while not self._ready_path.exists():
            if not self.running:
                raise self.failure("ended before it was ready")
            if asyncio.get_running_loop().time() > deadline_s:
                raise self.failure(f"is not ready after {READY_TIMEOUT_S:.0f} s")
            await asyncio.sleep(_POLL_INTERVAL_S)
        facts: dict[str, Any] = json.loads(self._ready_path.read_text(encoding="utf-8"))
        return Address.parse(facts["listen"])


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that were free a moment ago: nodes have to know of each other before they listen."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Processes:
    """All processes of the demo; leaving the context ends every one of them, the last started first."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    async def start(self, part: Part) -> None:
        """Start a part, and remember to end it."""
        if part not in self._parts:
            self._parts.append(part)
        await part.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in reversed(self._parts):
            await part.stop()
