"""A network of a test's own: a namespace for each node and one for the clients, with links that are cut and healed.

All namespaces hang on one switch: a bridge in the clients' namespace, or, for delay and loss, the `link_emulator`. The
machine's own network is not touched. Needs root, iproute2 and nftables.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

from tests.support import link_emulator
from tests.support.link_emulator import Impairment
from tests.support.peers import require_peer

CLIENTS: Final = 0
"""Where the test and its clients are; nodes count from 1."""

_PREFIX: Final = "tidegate"
_NAME: Final = re.compile(_PREFIX + r"-(?P<pid>\d+)-\d+-\d+")
_serials = itertools.count()

_RULES: Final = """
table inet faults {
  set unheard { type ipv4_addr; }
  chain input { type filter hook input priority 0; policy accept; ip saddr @unheard counter drop; }
}
"""


class Network:
    """Nodes 1 to `size` and the clients; all packets pass until `cut`."""

    def __init__(self, size: int, impairment: Impairment | None = None, *, seed: int = 1) -> None:
        """With an `impairment` packets between nodes suffer it from the start; those of clients never do."""
        self._places = range(size + 1)
        self._impairment = impairment
        self._seed = seed
        self._serial = next(_serials)
        self._emulator: subprocess.Popen[str] | None = None
        self._stack = ExitStack()
        self.hosts = {place: f"10.213.0.{place + 1}" for place in self._places if place != CLIENTS}

    def __enter__(self) -> Self:
        for program in ("ip", "nft"):
            require_peer(program)
        _remove_leftovers()
        with ExitStack() as stack:
            for place in self._places:
                name = self.namespace(place)
                made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
                if made.returncode != 0:
                    pytest.skip(f"network namespaces can't be made here: {made.stderr.strip()}")
                stack.callback(subprocess.run, ["ip", "netns", "delete", name], check=False)
                _run("ip", "-n", name, "link", "set", "lo", "up")
                self._load_rules(place, _RULES)
            if self._impairment is None:
                self._join_by_bridge()
            else:
                self._join_by_emulator(stack, self._impairment)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def namespace(self, place: int) -> str:
        return f"{_PREFIX}-{os.getpid()}-{self._serial}-{place}"

    def wrapper(self, node_id: int) -> list[str]:
        """What stands before a command that is to run at a node's place."""
        return ["ip", "netns", "exec", self.namespace(node_id)]

    @contextmanager
    def inside(self, place: int = CLIENTS) -> Iterator[None]:
        """The calling thread, and every thread and process that it starts, is at `place`."""
        with namespace_of_thread(self.namespace(place)):
            yield

    # Faults.

    def cut_one_way(self, source: int, target: int) -> None:
        """What `source` sends does not reach `target` any more; the way back stays."""
        self._nft(target, f"add element inet faults unheard {{ {self._address(source)} }}")

    def cut(self, one: int, other: int) -> None:
        """Nothing passes between two places."""
        self.cut_one_way(one, other)
        self.cut_one_way(other, one)

    def isolate(self, place: int, others: Iterable[int] | None = None) -> None:
        """Cut a place off from others, by default from all, clients too."""
        for other in self._places if others is None else others:
            if other != place:
                self.cut(place, other)

    def deafen(self, place: int, others: Iterable[int] | None = None) -> None:
        """A place goes on sending, but hears nothing from others, by default from all, clients too."""
        for other in self._places if others is None else others:
            if other != place:
                self.cut_one_way(other, place)

    def heal(self) -> None:
        """All packets pass again."""
        for place in self._places:
            self._nft(place, "flush set inet faults unheard")

    def impair(self, impairment: Impairment) -> None:
        """Change what happens to packets between nodes; only with an emulated switch."""
        assert self._emulator is not None, "the network was made with a bridge"
        assert self._emulator.stdin is not None
        self._emulator.stdin.write(json.dumps(asdict(impairment)) + "\n")
        self._emulator.stdin.flush()

    # Making it.

    def _address(self, place: int) -> str:
        return f"10.213.0.{place + 1}"

    def _join_by_bridge(self) -> None:
        hub = self.namespace(CLIENTS)
        _run("ip", "-n", hub, "link", "add", "switch", "type", "bridge")
        _run("ip", "-n", hub, "addr", "add", f"{self._address(CLIENTS)}/24", "dev", "switch")
        _run("ip", "-n", hub, "link", "set", "switch", "up")
        for place in self._places:
            if place == CLIENTS:
                continue
            node, port = self.namespace(place), f"port{place}"
            _run("ip", "-n", hub, "link", "add", port, "type", "veth", "peer", "name", "net0", "netns", node)
            _run("ip", "-n", hub, "link", "set", port, "master", "switch", "up")
            _run("ip", "-n", node, "addr", "add", f"{self._address(place)}/24", "dev", "net0")
            _run("ip", "-n", node, "link", "set", "net0", "up")

    def _join_by_emulator(self, stack: ExitStack, impairment: Impairment) -> None:
        places = [f"{self.namespace(place)}={self._address(place)}" for place in self._places]
        # By its path: a test may run from any directory.
        command = [sys.executable, str(Path(link_emulator.__file__)), str(self._seed), self._address(CLIENTS), *places]
        emulator = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(_end, emulator)
        assert emulator.stdout is not None
        assert emulator.stdout.readline() == "up\n", "the link emulator did not start"
        self._emulator = emulator
        for place in self._places:
            name = self.namespace(place)
            _run("ip", "-n", name, "addr", "add", f"{self._address(place)}/24", "dev", link_emulator.DEVICE)
            _run("ip", "-n", name, "link", "set", link_emulator.DEVICE, "up", "mtu", str(link_emulator.MTU_BYTES))
        self.impair(impairment)

    def _load_rules(self, place: int, rules: str) -> None:
        subprocess.run([*self.wrapper(place), "nft", "-f", "-"], input=rules, text=True, check=True)

    def _nft(self, place: int, command: str) -> None:
        _run(*self.wrapper(place), "nft", command)


@contextmanager
def namespace_of_thread(name: str) -> Iterator[None]:
    """Move the calling thread into a network namespace, and back at the end."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            set_namespace(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            set_namespace(home)
    finally:
        os.close(home)


def set_namespace(descriptor: int) -> None:
    """setns(2), which the standard library has from Python 3.12 on."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, link_emulator.CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _remove_leftovers() -> None:
    """Delete namespaces of test runs that were killed."""
    for path in Path("/run/netns").glob(f"{_PREFIX}-*"):
        match = _NAME.fullmatch(path.name)
        if match is not None and not Path("/proc", match["pid"]).exists():
            subprocess.run(["ip", "netns", "delete", path.name], check=False)
