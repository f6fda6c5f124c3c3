"""Batches that have no final answer yet, and the chains in which the core expects them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tidegate_edge.event_log.cuts import CutBatch
from tidegate_wire.identifiers import ProducerEpoch, ProducerId


class ChainKey(NamedTuple):
    """What numbers batches without gaps: a producer, in a partition."""

    producer_id: ProducerId
    producer_epoch: ProducerEpoch
    stream: str
    partition: int

    @classmethod
    def of(cls, batch: CutBatch) -> ChainKey:
        """The chain that a batch is part of."""
        return cls(batch.producer_id, batch.producer_epoch, batch.stream, batch.partition)


Fate = Literal["stored", "returned", "refused"]


@dataclass(slots=True, eq=False)
class Flight:
    """A batch between being written down and its cut being settled."""

    batch: CutBatch
    tries: int
    """Transmissions, in this process or an earlier one."""
    is_sent: bool = False
    """On its way, as far as we know; False again when it has to be sent (again)."""
    first_sent_ms: float | None = None
    """On this connection."""
    sent_ms: float = 0.0
    confirmed_ms: float | None = None
    """When the broker had it: the time for the core's answer runs from here, whatever the link's speed."""
    out_of_order_tries: int = 0
    """How many transmissions were answered with `out_of_order_sequence_number` while it was the chain's first."""
    out_of_order_try: int = 0
    fate: Fate | None = None
    reason: str = ""


@dataclass(slots=True, eq=False)
class Chain:
    """A chain's batches without a final answer, in the order of their base sequences."""

    key: ChainKey
    flights: deque[Flight] = field(default_factory=deque)
    retries: int = 0
    """Rounds of sending again since the last answer that says stored."""
    not_before_ms: float = 0.0
    is_broken: bool = False
    """A batch of it was refused for good or returned: what follows it can't be stored any more."""

    def first_unsent(self) -> Flight | None:
        """What is to be sent next."""
        return next((flight for flight in self.flights if not flight.is_sent), None)

    def first_sent(self) -> Flight | None:
        """What has been on its way for longest."""
        return next((flight for flight in self.flights if flight.is_sent), None)


@dataclass(slots=True, eq=False)
class Cut:
    """The batches that were cut from the same rows; the rows leave the log together."""

    number: int
    ordinal: int
    """Counts the stream's cuts."""
    stream: str
    producer_id: ProducerId
    flights: list[Flight] = field(default_factory=list)
    is_settling: bool = False

    def is_resolved(self) -> bool:
        """Whether each batch has its final answer."""
        return all(flight.fate is not None for flight in self.flights)

    def has_returned(self) -> bool:
        """Whether rows of it have to be cut again."""
        return any(flight.fate == "returned" for flight in self.flights)


@dataclass(slots=True, eq=False)
class StreamWindow:
    """What the window knows of a stream."""

    name: str
    by_device: bool
    partitions: int = 0
    """0 until a welcome grants the stream."""
    is_held: bool = False
    """The bridge will not take it: its rows and batches wait until a later welcome grants it."""
    uncut_rows: int = 0
    uncut_since_ms: float = 0.0
    event_bytes: float = 200.0
    """What an event takes in a batch, before compression, as of the last cut."""
    compression: float = 1.0
    """How many times smaller a batch is than its records, as of the last cut."""
    cuts: dict[int, Cut] = field(default_factory=dict)
    """Those that are not settled, in the order of cutting."""
    cuts_made: int = 0

    @property
    def span(self) -> int:
        """Cuts from the oldest one that is not settled on, settled ones included: how far back a batch may have to be
        recognised.
        """
        oldest = next(iter(self.cuts.values()), None)
        return 0 if oldest is None else self.cuts_made - oldest.ordinal
