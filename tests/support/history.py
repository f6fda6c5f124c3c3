"""What clients of a cluster saw, and whether it keeps the promise: acknowledged = read, once, in order.

Sans-IO: `load` records while it runs, tests of the checker write histories by hand. Times are seconds of one clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

EXAMPLES_MAX: Final = 5
"""Of each kind of fault in a verdict's text."""

Event = tuple[str, int]
"""Device and its sequence number, which rises by one from 0."""

Place = tuple[int, int]
"""Partition and offset."""


@dataclass(slots=True)
class Sent:
    """An event that a producer was given."""

    device: str
    sequence: int
    partition: int
    sent_s: float
    acked_s: float | None = None
    offset: int | None = None
    """Where it is, if the acknowledgement said so: one of a repeat that is recognised late does not."""
    failure: str | None = None
    """The producer gave up: it may be in the log or not."""


@dataclass(frozen=True, slots=True)
class Read:
    """An event that a consumer was given."""

    consumer: str
    partition: int
    offset: int
    device: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A group's offset was stored, said the coordinator."""

    partition: int
    offset: int
    done_s: float


@dataclass(frozen=True, slots=True)
class CommittedSeen:
    """A group's offset that was asked for."""

    partition: int
    offset: int
    asked_s: float
    answered_s: float


@dataclass(slots=True)
class History:
    """Everything that was recorded, each list in the order of its recorder."""

    sent: list[Sent] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    """By members of the group, while faults happened: an event may come twice to them, but never differently."""
    commits: list[Commit] = field(default_factory=list)
    committed_seen: list[CommittedSeen] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        return sum(event.acked_s is not None for event in self.sent)


Log = Mapping[int, Sequence[tuple[int, str, int]]]
"""By partition, its records from first to last: offset, device, sequence."""


@dataclass(slots=True)
class Verdict:
    """Counts, and texts of the first faults of each kind."""

    sent: int = 0
    acknowledged: int = 0
    failed: int = 0
    """The producer reported a failure; no fault of the log."""
    unresolved: int = 0
    """Neither acknowledged nor failed."""
    lost: int = 0
    """Acknowledged, and not in the log."""
    doubled: int = 0
    """Further copies of events in the log."""
    reordered: int = 0
    """An event of a device behind a later one of the same device."""
    misplaced: int = 0
    """Acknowledged with another place than where it is."""
    invented: int = 0
    """In the log, but never sent."""
    changed: int = 0
    """Read once at a place where the log now has something else, or nothing."""
    unread: int = 0
    """Acknowledged, and never given to the group."""
    offsets_fell: int = 0
    """A committed offset below one that was committed, or seen, before."""
    examples: list[str] = field(default_factory=list)

    FAULTS = ("lost", "doubled", "reordered", "misplaced", "invented", "changed", "unread", "offsets_fell")

    @property
    def holds(self) -> bool:
        """Whether there is no fault at all. Failures that the producer was told of are none."""
        return not any(getattr(self, name) for name in self.FAULTS)

    def add(self, fault: str, example: str) -> None:
        """Count a fault."""
        count = getattr(self, fault) + 1
        setattr(self, fault, count)
        if count <= EXAMPLES_MAX:
            self.examples.append(f"{fault}: {example}")

    def __str__(self) -> str:
        counts = ", ".join(
            f"{part.name} {getattr(self, part.name)}" for part in fields(self) if part.name != "examples"
        )
        return "\n  ".join([counts, *self.examples])


def check(history: History, log: Log, *, group_is_done: bool = True) -> Verdict:
    """Compare what was recorded with the log as it is at the end.

    `group_is_done` says that the group has had the time to read everything.
    """
    verdict = Verdict(sent=len(history.sent))
    places = _check_log(history, log, verdict)
    _check_acknowledged(history, places, verdict)
    _check_reads(history, log, verdict)
    if group_is_done:
        _check_all_read(history, verdict)
    _check_offsets(history, verdict)
    return verdict


def _check_log(history: History, log: Log, verdict: Verdict) -> dict[Event, Place]:
    """Once and in order; returns where each event is first."""
    known = {(event.device, event.sequence) for event in history.sent}
    places: dict[Event, Place] = {}
    for partition, records in log.items():
        newest: dict[str, int] = {}
        for offset, device, sequence in records:
            event = (device, sequence)
            if event not in known:
                verdict.add("invented", f"{event} at {partition}:{offset}")
            elif event in places:
                verdict.add("doubled", f"{event} at {_text(places[event])} and {partition}:{offset}")
            else:
                places[event] = (partition, offset)
                if sequence < newest.get(device, -1):
                    verdict.add("reordered", f"{event} at {partition}:{offset} behind {newest[device]}")
            newest[device] = max(sequence, newest.get(device, -1))
    return places


def _check_acknowledged(history: History, places: Mapping[Event, Place], verdict: Verdict) -> None:
    for event in history.sent:
        name = (event.device, event.sequence)
        if event.acked_s is None:
            verdict.failed += event.failure is not None
            verdict.unresolved += event.failure is None
            continue
        verdict.acknowledged += 1
        place = places.get(name)
        told = (event.partition, event.offset if event.offset is not None else -1)
        if place is None:
            verdict.add("lost", f"{name}, acknowledged at {_text(told)}, {event.acked_s:.3f} s")
        elif place[0] != told[0] or (event.offset is not None and place != told):
            verdict.add("misplaced", f"{name}, acknowledged at {_text(told)}, is at {_text(place)}")


def _check_reads(history: History, log: Log, verdict: Verdict) -> None:
    contents = {
        (partition, offset): (device, sequence)
        for partition, records in log.items()
        for offset, device, sequence in records
    }
    for read in history.reads:
        now = contents.get((read.partition, read.offset))
        if now != (read.device, read.sequence):
            place = f"{read.partition}:{read.offset}"
            verdict.add("changed", f"{read.consumer} read {(read.device, read.sequence)} at {place}; now {now}")


def _check_all_read(history: History, verdict: Verdict) -> None:
    read = {(read.device, read.sequence) for read in history.reads}
    for event in history.sent:
        if event.acked_s is not None and (event.device, event.sequence) not in read:
            verdict.add("unread", f"{(event.device, event.sequence)} at {event.partition}:{event.offset}")


def _check_offsets(history: History, verdict: Verdict) -> None:
    """What is seen is at least what was stored, or seen, before it was asked for."""
    known: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for commit in history.commits:
        known[commit.partition].append((commit.done_s, commit.offset))
    for seen in history.committed_seen:
        known[seen.partition].append((seen.answered_s, seen.offset))
    highest = {partition: _rising(offsets) for partition, offsets in known.items()}
    for seen in history.committed_seen:
        before = [offset for time_s, offset in highest[seen.partition] if time_s < seen.asked_s]
        if before and seen.offset < before[-1]:
            verdict.add(
                "offsets_fell", f"partition {seen.partition} at {seen.asked_s:.3f} s: {before[-1]} to {seen.offset}"
            )


def _rising(offsets: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """The moments at which the highest known offset rose."""
    rises: list[tuple[float, int]] = []
    for time_s, offset in sorted(offsets):
        if not rises or offset > rises[-1][1]:
            rises.append((time_s, offset))
    return rises


def _text(place: Place) -> str:
    return f"{place[0]}:{place[1]}"
