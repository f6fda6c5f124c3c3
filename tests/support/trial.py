"""One fault tried on a loaded cluster: what was acknowledged, lost and doubled, and how long nothing was acknowledged.

Each trial prints its line; with TIDEGATE_FAULT_REPORT=FILE it is appended there too, for `tests.faults.report`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tests.support.cluster import Cluster
from tests.support.history import Verdict
from tests.support.load import Load

TOPIC: Final = "events"
PARTITIONS: Final = 6
"""Of the topic under load: each of three nodes leads some."""

HEALED_S: Final = 15.0
"""Progress within this time after a fault is over: generous, for a small machine that does other things too."""


def rounds(short: int) -> int:
    """How often a fault is repeated within a test: TIDEGATE_FAULT_ROUNDS, by default `short`."""
    return int(os.environ.get("TIDEGATE_FAULT_ROUNDS", short))


def round_timeout_s(short: int, round_s: float) -> float:
    """For `pytest.mark.timeout`: what a test with so many rounds may take at most."""
    return 120 + rounds(short) * round_s


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trial's line."""

    fault: str
    times: int
    """How often the fault was made."""
    acknowledged: int
    failed: int
    """Events whose producer was told of a failure."""
    lost: int
    doubled: int
    other: int
    """Further breaks of the promise: order, places, what a group read, offsets."""
    recovery_s: list[float] = field(default_factory=list)
    """From each fault, or where that stops everything from its end, to the next acknowledged produce."""

    @classmethod
    def of(cls, fault: str, times: int, verdict: Verdict, recovery_s: list[float]) -> Outcome:
        faults = sum(getattr(verdict, name) for name in Verdict.FAULTS)
        return cls(
            fault=fault,
            times=times,
            acknowledged=verdict.acknowledged,
            failed=verdict.failed,
            lost=verdict.lost,
            doubled=verdict.doubled,
            other=faults - verdict.lost - verdict.doubled,
            recovery_s=[round(seconds, 3) for seconds in recovery_s],
        )

    def __str__(self) -> str:
        recoveries = ", ".join(f"{seconds:.2f}" for seconds in self.recovery_s) or "-"
        return (
            f"{self.fault}: {self.times} times, acknowledged {self.acknowledged}, failed {self.failed}, "
            f"lost {self.lost}, doubled {self.doubled}, otherwise wrong {self.other}; recovery [s]: {recoveries}"
        )


class Trial:
    """A cluster under load, whatever happens to it."""

    def __init__(self, fault: str, cluster: Cluster, load: Load) -> None:
        self.fault = fault
        self.cluster = cluster
        self.load = load
        self.times = 0
        self.recovery_s: list[float] = []

    def led_by(self, node_id: int) -> list[int]:
        """Partitions of the topic that a node leads now."""
        return [index for index, leader in self.cluster.leaders(TOPIC).items() if leader == node_id]

    def hit(self) -> float:
        """The fault was made; returns when."""
        self.times += 1
        return time.monotonic()

    def recovered(
        self, since_s: float, partitions: Iterable[int] | None = None, *, within_s: float = HEALED_S
    ) -> float:
        """Wait for progress on partitions, by default all, and note how long after `since_s` it came."""
        took_s = self.load.wait_progress(since_s, within_s, partitions, self.fault)
        self.recovery_s.append(took_s)
        return took_s

    def recovered_elsewhere(self, since_s: float, partitions: Iterable[int], *, without: int) -> float:
        """As `recovered`, as a client sees it that asks only other nodes than `without`.

        librdkafka first waits for its requests to a silent node to time out; a cut-off node that clients still reach
        tells them truly that it knows no leader, yet it may go on asking, since it prefers who answered last.
        """
        others = [node_id for node_id in self.cluster.node_ids if node_id != without]
        waiting = set(partitions)
        while waiting:
            assert time.monotonic() < since_s + HEALED_S, f"nothing on {waiting} within {HEALED_S} s after {self.fault}"
            leaders = self.cluster.leaders(TOPIC, *others)
            for index in [index for index in waiting if leaders.get(index, without) != without]:
                if self.load.produce_directly(self.cluster.plans[leaders[index]].address, index, timeout_s=2.0):
                    waiting.discard(index)
        took_s = time.monotonic() - since_s
        self.recovery_s.append(took_s)
        return took_s

    def healed(self) -> None:
        """The fault is over: all goes on, and every replica catches up."""
        self.load.wait_progress(time.monotonic(), HEALED_S, None, f"the end of: {self.fault}")
        self.cluster.wait_in_step(TOPIC, PARTITIONS)

    def finish(self, timeout_s: float = 40.0) -> Verdict:
        """End the load, tell what it saw, and require that the promise was kept."""
        verdict = self.load.finish(timeout_s)
        outcome = Outcome.of(self.fault, self.times, verdict, self.recovery_s)
        sys.stdout.write(f"{outcome}\n")
        report = os.environ.get("TIDEGATE_FAULT_REPORT")
        if report is not None:
            with Path(report).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        assert verdict.holds, f"{self.fault}\n{verdict}"
        assert not self.load.client_errors, self.load.client_errors
        assert verdict.acknowledged > 0
        assert verdict.unresolved == 0, verdict
        return verdict


@contextmanager
def trial(
    fault: str,
    cluster: Cluster,
    *,
    rate_hz: float = 25.0,
    clients: AbstractContextManager[None] | None = None,
    settings: Mapping[str, str | int | float | bool] | None = None,
) -> Iterator[Trial]:
    """Start the cluster, make the topic, and load it; `clients` is where its clients live, by default here."""
    with clients or nullcontext(), cluster:
        cluster.start()
        cluster.create_topic(TOPIC, PARTITIONS)
        load = Load(cluster.bootstrap, TOPIC, partitions=PARTITIONS, devices=12, rate_hz=rate_hz, settings=settings)
        with load:
            cluster.wait_in_step(TOPIC, PARTITIONS)
            yield Trial(fault, cluster, load)
