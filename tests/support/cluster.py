"""A core cluster of real processes: nodes that are killed, frozen, wiped and started again, each with its own port."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support.kafka_requests import ClusterView, view_caught_up, view_cluster
from tests.support.processes import TidegatePart, wait_until
from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import MessageError

SERVES_TIMEOUT_S: Final = 30.0
"""For a cluster to have leaders after its processes run; far above what it takes, so that only a hang fails."""

_STABLE_PORTS: Final = range(15_000, 32_000)
"""Below those that the kernel takes for outgoing connections: a port stays free while its node is down."""

_OUTPUT_SHOWN: Final = 6_000
"""Characters of each node's output that a failure shows."""


@dataclass(slots=True, kw_only=True)
class NodePlan:
    """How a node is started; a test may change it between two starts."""

    address: Address
    data_dir: Path
    options: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    wrapper: list[str] = field(default_factory=list)
    """Command that the node's is appended to; it has to end in an exec, as `ip netns exec NAME` does."""


class Cluster:
    """Nodes 1 to `size`, all of them voters; nothing runs before `start`."""

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        *,
        hosts: Mapping[int, str] | None = None,
        data_dirs: Mapping[int, Path] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        hosts, data_dirs = hosts or {}, data_dirs or {}
        self.directory = directory
        self.node_ids = tuple(range(1, size + 1))
        ports = stable_ports(size)
        self.plans = {
            node_id: NodePlan(
                address=Address(hosts.get(node_id, "127.0.0.1"), port),
                data_dir=data_dirs.get(node_id, directory / f"core-{node_id}"),
                options=list(options),
            )
            for node_id, port in zip(self.node_ids, ports, strict=True)
        }
        self.voters = ",".join(f"{node_id}@{plan.address}" for node_id, plan in self.plans.items())
        self._parts: dict[int, TidegatePart] = {}
        self._frozen: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill(*self.running())
        if error is None:
            return
        for node_id, part in self._parts.items():
            sys.stderr.write(f"--- end of the output of node {node_id}\n{part.output()[-_OUTPUT_SHOWN:]}\n")

    @property
    def bootstrap(self) -> str:
        """All nodes' addresses, for clients."""
        return self.addresses(self.node_ids)

    def addresses(self, node_ids: Iterable[int]) -> str:
        return ",".join(str(self.plans[node_id].address) for node_id in node_ids)

    # Processes.

    def start(self, *node_ids: int) -> None:
        """Start nodes, by default all, at once; returns when each says that it serves."""
        chosen = node_ids or self.node_ids
        for node_id in chosen:
            self.launch(node_id)
        for node_id in chosen:
            self._parts[node_id].wait_ready()

    def launch(self, node_id: int) -> TidegatePart:
        """Start a node without waiting for it."""
        assert node_id not in self.running(), f"node {node_id} runs"
        plan = self.plans[node_id]
        arguments = ["core", "--node-id", str(node_id), "--listen", str(plan.address)]
        arguments += ["--data-dir", str(plan.data_dir), *self._voter_options(), *plan.options]
        name = f"node-{node_id}"
        self._parts[node_id] = TidegatePart(arguments, self.directory, name=name, env=plan.env, wrapper=plan.wrapper)
        return self._parts[node_id]

    def _voter_options(self) -> list[str]:
        return ["--voters", self.voters] if len(self.node_ids) > 1 else []

    def part(self, node_id: int) -> TidegatePart:
        return self._parts[node_id]

    def output(self, node_id: int) -> str:
        """What the node has said, over all its starts."""
        return self._parts[node_id].output()

    def running(self) -> tuple[int, ...]:
        """Nodes whose process is there, frozen ones too."""
        return tuple(node_id for node_id, part in self._parts.items() if part.running())

    def kill(self, *node_ids: int) -> None:
        """kill -9, all of them before any is waited for."""
        for node_id in node_ids:
            self._parts[node_id].send_signal(signal.SIGKILL)
        for node_id in node_ids:
            self._parts[node_id].kill()
            self._frozen.discard(node_id)

    def stop(self, *node_ids: int) -> None:
        """SIGTERM; each node has to end by itself, with exit code 0."""
        for node_id in node_ids:
            self._parts[node_id].send_signal(signal.SIGTERM)
        for node_id in node_ids:
            code = self._parts[node_id].wait(30)
            assert code == 0, f"node {node_id} ended with {code}:\n{self.output(node_id)[-_OUTPUT_SHOWN:]}"

    def freeze(self, *node_ids: int) -> None:
        """SIGSTOP; returns when the processes stand still."""
        for node_id in node_ids:
            self._parts[node_id].send_signal(signal.SIGSTOP)
            self._frozen.add(node_id)
        for node_id in node_ids:
            wait_until(lambda node_id=node_id: self._stands_still(node_id), 10, f"node {node_id} stands still")  # type: ignore[misc]  # the default argument binds the loop's value

    def _stands_still(self, node_id: int) -> bool:
        """Every thread is stopped, none is still in a system call that writes."""
        tasks = Path(f"/proc/{self._parts[node_id].pid}/task").iterdir()
        states = [(task / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] for task in tasks]
        return set(states) <= {"T", "t"}

    def thaw(self, *node_ids: int) -> None:
        """SIGCONT."""
        for node_id in node_ids:
            self._parts[node_id].send_signal(signal.SIGCONT)
            self._frozen.discard(node_id)

    def wipe(self, node_id: int) -> None:
        """Remove all data of a node that does not run, as a new disk does."""
        assert node_id not in self.running(), f"node {node_id} runs"
        shutil.rmtree(self.plans[node_id].data_dir)

    # What the nodes say.

    def view(self, node_id: int, topic: str) -> ClusterView | None:
        """One node's picture; None if it gives none."""
        try:
            return view_cluster(self.plans[node_id].address, topic)
        except (OSError, MessageError):
            return None

    def leaders(self, topic: str, *asked: int) -> dict[int, int]:
        """Leader by partition where one is known, from the newest epoch that any of the asked nodes tells of.

        By default all nodes that run are asked.
        """
        newest: dict[int, tuple[int, int]] = {}
        for node_id in asked or tuple(node_id for node_id in self.running() if node_id not in self._frozen):
            view = self.view(node_id, topic)
            for index, partition in ((view and view.partitions) or {}).items():
                newest[index] = max(newest.get(index, (-1, -1)), (partition.leader_epoch, partition.leader))
        return {index: leader for index, (_, leader) in newest.items() if leader >= 0}

    def leader(self, topic: str, partition: int) -> int:
        """Who leads a partition, waited for."""
        wait_until(lambda: partition in self.leaders(topic), SERVES_TIMEOUT_S, f"{topic}-{partition} has a leader")
        return self.leaders(topic)[partition]

    def controller(self) -> int:
        """Who leads the metadata, as most of the nodes that answer say; waited for."""
        found = -1

        def is_known() -> bool:
            nonlocal found
            views = [self.view(node_id, "") for node_id in self.running() if node_id not in self._frozen]
            told = [view.controller for view in views if view is not None]
            found = max(told, key=told.count, default=-1)
            return found >= 0 and told.count(found) * 2 > len(self.node_ids)

        wait_until(is_known, SERVES_TIMEOUT_S, "most nodes know the controller")
        return found

    def wait_serving(
        self, topic: str, partitions: int, timeout_s: float = SERVES_TIMEOUT_S, *, without: Iterable[int] = ()
    ) -> None:
        """Return when every partition has a leader that runs and is none of `without`."""
        excluded = set(without)

        def serves() -> bool:
            leaders = self.leaders(topic, *(set(self.running()) - self._frozen - excluded))
            usable = set(self.running()) - self._frozen - excluded
            return len(leaders) == partitions and set(leaders.values()) <= usable

        wait_until(serves, timeout_s, f"all of {topic} has leaders")

    def wait_in_step(self, topic: str, partitions: int, timeout_s: float = SERVES_TIMEOUT_S) -> None:
        """Return when every node had everything of every partition at some moment after this call."""
        since_ms = int(time.time() * 1000)
        behind = set(range(partitions))

        def all_there() -> bool:
            leaders = self.leaders(topic)
            for index in behind & leaders.keys():
                try:
                    caught_up = view_caught_up(self.plans[leaders[index]].address, topic, index) or {}
                except (OSError, MessageError):
                    continue
                if all(caught_up.get(node_id, -1) >= since_ms for node_id in self.node_ids):
                    behind.discard(index)
            return not behind

        wait_until(all_there, timeout_s, f"all replicas of {topic} are in step")

    # Topics.

    def create_topic(self, name: str, partitions: int, replicas: int | None = None, **settings: str) -> None:
        """Make a topic, on all nodes by default; settings by Kafka's names with _ for the dot."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        config = {key.replace("_", "."): value for key, value in settings.items()}
        topic = NewTopic(name, partitions, replicas or len(self.node_ids), config=config)
        deadline = time.monotonic() + SERVES_TIMEOUT_S
        while True:
            try:
                admin.create_topics([topic], request_timeout=10)[name].result(15)
            except KafkaException as error:
                if error.args[0].name() != "TOPIC_ALREADY_EXISTS" and time.monotonic() > deadline:
                    raise
                if error.args[0].name() == "TOPIC_ALREADY_EXISTS":
                    break
                time.sleep(0.1)  # the cluster has no controller yet, or has just lost it
            else:
                break
        self.wait_serving(name, partitions)


def stable_ports(count: int) -> list[int]:
    """TCP ports that were free a moment ago and that no outgoing connection will take."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for port in random.SystemRandom().sample(_STABLE_PORTS, 50 * count):
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise AssertionError("no free ports")
