"""What devices published and had acknowledged, against what a consumer read: lost, duplicated, out of order.

Without I/O. An event is named by (device, sequence). Memory is three bits an event, and what it takes to tell devices
and partitions apart, so that ten million events fit in a few megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tidegate_wire.ledger import LedgerEntry

EXAMPLES_MAX: Final = 10
"""Enough to see a pattern; a million lost events must not fill the terminal."""

_CHUNK_BITS: Final = 1 << 15
"""A stray sequence number costs 4 KiB, not a bitmap from 0 up to it."""


class SequenceSet:
    """A set of non-negative integers in runs, one bit each."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Put a number in; False if it was there."""
        index, bit = divmod(number, _CHUNK_BITS)
        chunk = self._chunks.get(index)
        if chunk is None:
            chunk = self._chunks[index] = bytearray(_CHUNK_BITS // 8)
        mask = 1 << (bit & 7)
        byte = chunk[bit >> 3]
        chunk[bit >> 3] = byte | mask
        return not byte & mask

    def __contains__(self, number: int) -> bool:
        index, bit = divmod(number, _CHUNK_BITS)
        chunk = self._chunks.get(index)
        return chunk is not None and bool(chunk[bit >> 3] & (1 << (bit & 7)))

    def __len__(self) -> int:
        return sum(int.from_bytes(chunk, "little").bit_count() for chunk in self._chunks.values())

    def missing_from(self, other: SequenceSet) -> SequenceSet:
        """The numbers that are here and not in `other`."""
        result = SequenceSet()
        for index, chunk in self._chunks.items():
            bits = int.from_bytes(chunk, "little")
            bits &= ~int.from_bytes(other._chunks.get(index, b""), "little")
            if bits:
                result._chunks[index] = bytearray(bits.to_bytes(len(chunk), "little"))
        return result

    def __iter__(self) -> Iterator[int]:
        for index in sorted(self._chunks):
            bits = int.from_bytes(self._chunks[index], "little")
            while bits:
                lowest = bits & -bits
                yield index * _CHUNK_BITS + lowest.bit_length() - 1
                bits ^= lowest


@dataclass(frozen=True, slots=True, kw_only=True)
class LostEvent:
    """Acknowledged to its device, and not read."""

    device: str
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicatedEvent:
    """Read again, here."""

    device: str
    sequence: int
    stream: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MisplacedEvent:
    """Read for the first time here, in a partition where a higher sequence of its device was read before it."""

    device: str
    sequence: int
    stream: str
    partition: int
    offset: int
    after_sequence: int
    after_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The comparison's outcome."""

    published: int
    """Events that the ledger says were sent."""
    acknowledged: int
    read: int
    """Events of the ledger that were read, each counted once."""
    lost: int
    duplicated: int
    """Readings beyond the first of an event."""
    out_of_order: int
    """First readings of an event after a higher sequence of its device, in the same partition."""
    not_in_ledger: int
    """Events read that the ledger does not know: other devices', or not a simulated device's at all."""
    lost_examples: tuple[LostEvent, ...] = ()
    duplicated_examples: tuple[DuplicatedEvent, ...] = ()
    out_of_order_examples: tuple[MisplacedEvent, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every acknowledged event was read, once, and in order."""
        return not (self.lost or self.duplicated or self.out_of_order)

    def to_json(self) -> str:
        """All of it as one JSON object."""
        return json.dumps(asdict(self) | {"holds": self.holds})


@dataclass(slots=True)
class _Device:
    published: SequenceSet = field(default_factory=SequenceSet)
    acknowledged: SequenceSet = field(default_factory=SequenceSet)
    read: SequenceSet = field(default_factory=SequenceSet)
    highest: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """For each (stream, partition) the highest sequence read, and its offset."""


class Verification:
    """Feed it the whole ledger, then all that was read, partition by partition in offset order; then ask."""

    def __init__(self) -> None:
        self._devices: dict[str, _Device] = {}
        self._duplicated = 0
        self._out_of_order = 0
        self._not_in_ledger = 0
        self._duplicated_examples: list[DuplicatedEvent] = []
        self._out_of_order_examples: list[MisplacedEvent] = []

    def add_ledger_entry(self, entry: LedgerEntry) -> None:
        """One line of a ledger; an acknowledged event was published, whether or not that line survived."""
        device = self._devices.get(entry.device)
        if device is None:
            device = self._devices[entry.device] = _Device()
        device.published.add(entry.sequence)
        if entry.state == "acknowledged":
            device.acknowledged.add(entry.sequence)

    def add_read(self, payload: bytes, stream: str, partition: int, offset: int) -> None:
        """One event that was read; its name stands in the payload's keys `device` and `sequence`."""
        name, sequence = _event_name(payload)
        device = self._devices.get(name)
        if device is None or sequence not in device.published:
            self._not_in_ledger += 1
            return
        if not device.read.add(sequence):
            self._duplicated += 1
            if len(self._duplicated_examples) < EXAMPLES_MAX:
                self._duplicated_examples.append(
                    DuplicatedEvent(device=name, sequence=sequence, stream=stream, partition=partition, offset=offset)
                )
            return
        highest, highest_offset = device.highest.get((stream, partition), (-1, -1))
        if sequence > highest:
            device.highest[stream, partition] = (sequence, offset)
            return
        self._out_of_order += 1
        if len(self._out_of_order_examples) < EXAMPLES_MAX:
            self._out_of_order_examples.append(
                MisplacedEvent(
                    device=name,
                    sequence=sequence,
                    stream=stream,
                    partition=partition,
                    offset=offset,
                    after_sequence=highest,
                    after_offset=highest_offset,
                )
            )

    def verdict(self) -> Verdict:
        """What the comparison has found so far."""
        published = acknowledged = read = lost = 0
        lost_examples: list[LostEvent] = []
        for name in sorted(self._devices):
            device = self._devices[name]
            published += len(device.published)
            acknowledged += len(device.acknowledged)
            read += len(device.read)
            missing = device.acknowledged.missing_from(device.read)
            lost += len(missing)
            room = EXAMPLES_MAX - len(lost_examples)
            lost_examples += [LostEvent(device=name, sequence=number) for number, _ in zip(missing, range(room))]  # noqa: B905 # one of the two is longer
        return Verdict(
            published=published,
            acknowledged=acknowledged,
            read=read,
            lost=lost,
            duplicated=self._duplicated,
            out_of_order=self._out_of_order,
            not_in_ledger=self._not_in_ledger,
            lost_examples=tuple(lost_examples),
            duplicated_examples=tuple(self._duplicated_examples),
            out_of_order_examples=tuple(self._out_of_order_examples),
        )


def _event_name(payload: bytes) -> tuple[str, int]:
    """Device and sequence of a payload; `("", -1)`, which no ledger holds, where it has none."""
    try:
        fields: Any = json.loads(payload)
        device, sequence = fields["device"], fields["sequence"]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return "", -1
    if type(device) is not str or type(sequence) is not int or sequence < 0:
        return "", -1
    return device, sequence
