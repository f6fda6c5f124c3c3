"""Real processes for tests: started on free ports, watched, killed by their pid, their output shown on failure."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

READY_TIMEOUT_S = 30.0


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago; for programs that can't listen on port 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll `condition` until it holds; an AssertionError names `what` never came."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


def accepts_connections(port: int) -> bool:
    """Whether something listens on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A program under test; stdout and stderr go to a file beside its data."""

    def __init__(self, command: list[str], log_path: Path, env: dict[str, str] | None = None) -> None:
        self.command = command
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | (env or {}),
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def running(self) -> bool:
        return self._popen.poll() is None

    def output(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def send_signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the kernel to have cleaned up."""
        self._popen.kill()
        self._popen.wait(timeout=10)

    def terminate(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, as an init system sends it; returns the exit code, and fails if the process does not end."""
        self._popen.terminate()
        return self.wait(timeout_s)

    def wait(self, timeout_s: float) -> int:
        try:
            return self._popen.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.command} did not end in {timeout_s} s:\n{self.output()}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running():
            self.kill()
        if error is not None:
            sys.stderr.write(f"--- output of {' '.join(self.command)}\n{self.output()[-8000:]}\n")


class TidegatePart(Process):
    """`tidegate core|bridge|edge|sim ...`, started with `--ready-file`."""

    def __init__(
        self,
        arguments: list[str],
        directory: Path,
        *,
        name: str | None = None,
        env: dict[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        """`wrapper` stands before the command; it has to end in an exec, so that signals reach the part."""
        name = name or arguments[0]
        self.ready_path = directory / f"{name}.ready.json"
        self.ready_path.unlink(missing_ok=True)
        super().__init__(
            [*wrapper, sys.executable, "-m", "tidegate", *arguments, "--ready-file", str(self.ready_path)],
            directory / f"{name}.log",
            env,
        )

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """What the part announced, at least `listen` as HOST:PORT."""
        deadline = time.monotonic() + timeout_s
        while not self.ready_path.exists():
            assert self.running(), f"{self.command} ended:\n{self.output()}"
            assert time.monotonic() < deadline, f"{self.command} is not ready after {timeout_s} s:\n{self.output()}"
            time.sleep(0.02)
        facts: dict[str, Any] = json.loads(self.ready_path.read_text(encoding="utf-8"))
        return facts


@contextmanager
def mosquitto_broker(
    program: str, directory: Path, *, port: int | None = None, allow_anonymous: bool = True, extra_config: str = ""
) -> Iterator[int]:
    """A mosquitto of the test's own on a port of 127.0.0.1, by default a free one; yields the port."""
    port = port or free_port()
    config = directory / "mosquitto.conf"
    anonymous = "true" if allow_anonymous else "false"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous {anonymous}\npersistence false\n{extra_config}\n")
    with Process([program, "-c", str(config)], directory / "mosquitto.log"):
        wait_until(lambda: accepts_connections(port), 10, "mosquitto listens")
        yield port
