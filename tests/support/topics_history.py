"""Clients that make, delete and look at topics through any node, and what a topic is to the linearizability checker."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final, Self

from tests.support.kafka_requests import create_topic, delete_topic, view_cluster
from tests.support.linearizability import Explanation, Operation, explain
from tidegate_wire.address import Address
from tidegate_wire.kafka.messages import ErrorCode, MessageError

TopicState = int
"""How many partitions a topic has, drawn at random for each: it tells one life of a name from another."""

ABSENT: Final[TopicState] = 0

Action = tuple[str, int]

REQUEST_TIMEOUT_S: Final = 5.0


def create(partitions: int) -> Action:
    return ("create", partitions)


def delete() -> Action:
    return ("delete", 0)


def see() -> Action:
    return ("see", 0)


def topic_step(state: TopicState, operation: Operation) -> Iterable[TopicState]:
    """A topic as an atomic object. Outcomes: done, exists, missing; what is seen is a state, or absent."""
    kind, partitions = operation.action
    match kind, operation.outcome:
        case "create", "done" | None if state == ABSENT:
            yield partitions
        case "create", "exists" if state != ABSENT:
            yield state
        case "delete", "done" | None if state != ABSENT:
            yield ABSENT
        case "delete", "missing" if state == ABSENT:
            yield state
        case "see", outcome if outcome == (state or "absent"):
            yield state


class TopicsLoad:
    """Threads that change and look at a few topics, each request sent once, to a random node, and its outcome kept."""

    def __init__(
        self, nodes: Sequence[Address], *, replicas: int, chance: random.Random, clients: int = 4, names: int = 3
    ) -> None:
        self.histories: dict[str, list[Operation]] = {f"topic-{number}": [] for number in range(names)}
        self._nodes = list(nodes)
        self._replicas = replicas
        self._running = threading.Event()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(f"client-{number}", random.Random(chance.random())), name="topics")
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        self._running.set()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.clear()
        for thread in self._threads:
            thread.join(30)
        if error is None:
            assert not self._failures, self._failures

    @property
    def known(self) -> int:
        """How many changes have a known outcome so far."""
        return sum(
            operation.outcome in {"done", "exists", "missing"}
            for history in self.histories.values()
            for operation in list(history)
        )

    def explain(self) -> dict[str, Explanation[TopicState]]:
        """By topic, whether its history is linearizable; to be called after the load's end."""
        return {name: explain(history, ABSENT, topic_step) for name, history in self.histories.items()}

    def _run(self, client: str, chance: random.Random) -> None:
        try:
            while self._running.is_set():
                name = chance.choice(list(self.histories))
                action = chance.choice((create(chance.randint(1, 6)), delete(), see(), see()))
                node = chance.choice(self._nodes)
                called_s = time.monotonic()
                outcome = _carry_out(node, name, action, self._replicas)
                operation = Operation(
                    client=client,
                    action=action,
                    outcome=outcome,
                    called_s=called_s,
                    returned_s=time.monotonic(),
                    session=str(node) if action == see() else None,
                )
                if outcome is not None or action != see():  # a look that gave nothing says nothing
                    self.histories[name].append(operation)
                time.sleep(chance.uniform(0, 0.05))
        except BaseException as error:  # it is the test's, which looks at the end
            self._failures.append(error)


def _carry_out(node: Address, name: str, action: Action, replicas: int) -> str | int | None:
    """The outcome; None: nobody knows."""
    try:
        if action == see():
            partitions = view_cluster(node, name).partitions
            return "absent" if partitions is None else len(partitions)
        if action == delete():
            code = delete_topic(node, name, REQUEST_TIMEOUT_S)
        else:
            code = create_topic(node, name, action[1], replicas, REQUEST_TIMEOUT_S)
    except (OSError, MessageError):
        return None
    outcomes = {
        ErrorCode.none: "done",
        ErrorCode.topic_already_exists: "exists",
        ErrorCode.unknown_topic_or_partition: "missing",
    }
    return outcomes.get(code)
