"""A model of everything around the window: log, broker, bridges and core, in memory, driven by one random source."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tidegate_edge.event_log import CutBatch
from tidegate_edge.uplink.outputs import (
    CutWanted,
    Output,
    Reconnect,
    SendBatch,
    SendHello,
    Settle,
    TakeProducer,
)
from tidegate_edge.uplink.window import Window
from tidegate_wire.identifiers import BatchSequence, EventSequence, ProducerId
from tidegate_wire.uplink.event import partition_for
from tidegate_wire.uplink.messages import Ack, AckError, StreamInfo, Welcome

DEVICES = ("d1", "d2", "d3", "d4", "d5")


@dataclass
class ModelLog:
    """The event log without a disk: rows of streams, cuts, the last producer id. Survives a crash of the edge."""

    rows: dict[str, dict[int, str]]
    first_uncut: dict[str, int]
    next_sequence: dict[str, int]
    batches: dict[int, CutBatch] = field(default_factory=dict)
    next_batch: int = 1
    producer: ProducerId | None = None
    lost: list[tuple[str, int]] = field(default_factory=list)

    def append(self, stream: str, device: str) -> None:
        self.rows[stream][self.next_sequence[stream]] = device
        self.next_sequence[stream] += 1

    def uncut(self, stream: str) -> list[int]:
        return [sequence for sequence in self.rows[stream] if sequence >= self.first_uncut[stream]]

    def records(self, batch: CutBatch) -> tuple[tuple[int, str], ...]:
        """The records of a batch, as encoding it again would give them."""
        found = tuple(
            (sequence, device)
            for sequence, device in self.rows[batch.stream].items()
            if batch.first_sequence <= sequence <= batch.last_sequence
            and (batch.device_partitions == 0 or partition_for(device, batch.device_partitions) == batch.partition)
        )
        assert len(found) == batch.record_count, "the same bytes again"
        return found

    def reload(self) -> None:
        """What opening the log works out: all cut rows lie below the uncut ones."""
        for stream in self.rows:
            lasts = [batch.last_sequence for batch in self.batches.values() if batch.stream == stream]
            self.first_uncut[stream] = max(lasts, default=0) + 1

    def cut(self, wanted: CutWanted, rows_max: int, edge: str) -> list[CutBatch]:
        sequences = self.uncut(wanted.stream)[:rows_max]
        if not sequences:
            return []
        assert all(
            batch.last_sequence < sequences[0] for batch in self.batches.values() if batch.stream == wanted.stream
        )
        groups: dict[int, int] = {}
        for sequence in sequences:
            key = self.rows[wanted.stream][sequence] if wanted.by_device else edge
            partition = partition_for(key, wanted.partitions)
            groups[partition] = groups.get(partition, 0) + 1
        cut = self.next_batch
        made = []
        for partition, count in sorted(groups.items()):
            made.append(
                CutBatch(
                    number=self.next_batch,
                    cut=cut,
                    stream=wanted.stream,
                    partition=partition,
                    device_partitions=wanted.partitions if wanted.by_device else 0,
                    first_sequence=EventSequence(sequences[0]),
                    last_sequence=EventSequence(sequences[-1]),
                    producer_id=wanted.producer_id,
                    producer_epoch=wanted.producer_epoch,
                    base_sequence=wanted.base_sequences.get(partition, BatchSequence(0)),
                    record_count=count,
                    size_bytes=100 * count,
                    crc=0,
                )
            )
            self.next_batch += 1
        self.batches.update({batch.number: batch for batch in made})
        self.first_uncut[wanted.stream] = sequences[-1] + 1
        return made

    def settle(self, settle: Settle) -> None:
        members = [batch for batch in self.batches.values() if batch.cut == settle.cut]
        assert members, "a cut is settled once"
        stream = members[0].stream
        if settle.returned:
            above = [b for b in self.batches.values() if b.stream == stream and b.number > members[-1].number]
            assert not above, "uncut rows stay above all cut ones"
        for batch in members:
            if batch.number in settle.returned:
                continue
            for sequence, _ in self.records(batch):
                if batch.number in settle.refused:
                    self.lost.append((stream, sequence))
                del self.rows[stream][sequence]
        for batch in members:
            del self.batches[batch.number]
        if settle.returned:
            self.first_uncut[stream] = min(self.first_uncut[stream], members[0].first_sequence)


@dataclass
class ModelCore:
    """Partitions with Kafka's rules for idempotent producers; it remembers `remembered` batches of each."""

    remembered: int
    partitions: dict[tuple[str, int], list[tuple[int, str]]] = field(default_factory=dict)
    producers: dict[tuple[str, int, int], list[tuple[int, int]]] = field(default_factory=dict)
    next_producer_id: int = 100
    known_producers: set[int] = field(default_factory=set)

    def new_producer_id(self) -> int:
        self.next_producer_id += 1
        self.known_producers.add(self.next_producer_id)
        return self.next_producer_id

    def forget_producers(self) -> None:
        """As a bridge's map of producers to edges that was lost: answers `unknown_producer_id` from now on."""
        self.known_producers.clear()

    def produce(self, batch: CutBatch, records: tuple[tuple[int, str], ...]) -> AckError | None:
        history = self.producers.setdefault((batch.stream, batch.partition, batch.producer_id), [])
        span = (batch.base_sequence, batch.record_count)
        if span in history[-self.remembered :]:
            return None
        if batch.producer_id not in self.known_producers:  # said of what is not stored only: the edge relies on it
            return AckError(code="unknown_producer_id", reason="", retriable=False)
        expected = history[-1][0] + history[-1][1] if history else 0
        if batch.base_sequence != expected:
            return AckError(code="out_of_order_sequence_number", reason=f"{expected}", retriable=True)
        history.append(span)
        self.partitions.setdefault((batch.stream, batch.partition), []).extend(records)
        return None


@dataclass
class World:
    """An edge's window in a bad neighbourhood."""

    chance: random.Random
    by_device: dict[str, bool]
    partitions: int
    faults: bool = True
    now_ms: float = 1000.0
    connected: bool = False
    window_batches_max: int = 5
    refuse_share: float = 0.0

    def __post_init__(self) -> None:
        names = list(self.by_device)
        self.log = ModelLog({n: {} for n in names}, dict.fromkeys(names, 1), dict.fromkeys(names, 1))
        self.core = ModelCore(remembered=5)
        self.appended: list[tuple[str, int, str]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._generation = 0
        self._sessions = 0
        self.refused_records: set[tuple[str, int]] = set()
        self.start_edge()

    def at(self, delay_ms: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now_ms + delay_ms, self._count, action))

    def start_edge(self) -> None:
        """A new process over the same log."""
        self._generation += 1
        self.connected = False
        self.log.reload()
        self.window = Window(
            streams=list(self.by_device.items()),
            in_flight=list(self.log.batches.values()),
            last_producer_id=self.log.producer,
            linger_ms=20,
        )
        self._report_rows()

    def connect(self) -> None:
        if not self.connected:
            self.connected = True
            self._sessions += 1
            self.window.connected(self.now_ms, f"s{self._sessions}")
            self.carry_out()

    def disconnect(self) -> None:
        if self.connected:
            self.connected = False
            self.window.disconnected(self.now_ms)
            self.carry_out()

    def append(self, stream: str) -> None:
        device = self.chance.choice(DEVICES)
        self.appended.append((stream, self.log.next_sequence[stream], device))
        self.log.append(stream, device)
        self._report_rows()

    def _report_rows(self) -> None:
        for stream in self.by_device:
            self.window.rows_available(self.now_ms, stream, len(self.log.uncut(stream)))
        self.carry_out()

    def _of_this_process(self, action: Callable[[], None]) -> Callable[[], None]:
        generation = self._generation

        def run() -> None:
            if generation == self._generation:
                action()

        return run

    def carry_out(self) -> None:
        for output in self.window.take_outputs():
            self._carry_out(output)

    def _carry_out(self, output: Output) -> None:
        later = self.chance.uniform(0, 5)
        match output:
            case SendHello():
                self._to_bridge(lambda: self._answer_hello(output))
            case SendBatch():
                batch = self.log.batches[output.number]
                records = self.log.records(batch)
                self._to_bridge(lambda: self._produce(batch, records))
                self.at(
                    later,
                    self._of_this_process(
                        lambda: self._if_connected(lambda: self.window.confirmed(self.now_ms, output.number))
                    ),
                )
            case TakeProducer():

                def take() -> None:
                    assert output.producer_id != self.log.producer
                    self.log.producer = output.producer_id
                    self.window.producer_taken(self.now_ms)

                self.at(later, self._of_this_process(take))
            case CutWanted():
                self.at(later, self._of_this_process(lambda: self._cut(output)))
            case Settle():

                def settle() -> None:
                    self.log.settle(output)
                    self._report_rows()
                    self.window.settled(self.now_ms, output.cut)

                # The log's writer applies changes in the order in which they were given to it.
                self.at(5.0, self._of_this_process(settle))
            case Reconnect():
                self.at(0, self._of_this_process(self.disconnect))
            case _:
                pass

    def _cut(self, wanted: CutWanted) -> None:
        made = self.log.cut(wanted, self.chance.randint(1, 20), "edge-1")
        self._report_rows()
        if made:
            self.window.cut_made(self.now_ms, wanted.stream, made, 100 * sum(batch.record_count for batch in made))
        else:
            self.window.cut_failed(self.now_ms, wanted.stream)

    def _if_connected(self, action: Callable[[], None]) -> None:
        if self.connected:
            action()

    def _copies(self) -> int:
        """How often a message arrives."""
        if not self.faults:
            return 1
        return self.chance.choices((0, 1, 2), (10, 85, 5))[0]

    def _delay_ms(self) -> float:
        return self.chance.expovariate(1 / 300) if self.faults and self.chance.random() < 0.1 else 10.0

    def _to_bridge(self, action: Callable[[], None]) -> None:
        for _ in range(self._copies()):
            self.at(self._delay_ms(), action)  # reaches the bridge even if the edge dies meanwhile

    def _to_edge(self, action: Callable[[], None]) -> None:
        for _ in range(self._copies()):
            self.at(self._delay_ms(), lambda: self._if_connected(action))

    def _answer_hello(self, hello: SendHello) -> None:
        bridges = 2 if self.faults and self.chance.random() < 0.2 else 1
        for _ in range(bridges):
            welcome = Welcome(
                session=hello.session,
                producer_id=self.core.new_producer_id() if hello.wants_producer_id else None,
                producer_epoch=0,
                streams=tuple(StreamInfo(name=name, partitions=self.partitions) for name in self.by_device),
                batch_bytes_max=10_000,
                window_batches_max=self.window_batches_max,
            )
            self._to_edge(lambda welcome=welcome: self.window.welcome(self.now_ms, welcome))  # type: ignore[misc]  # a default binds it

    def _produce(self, batch: CutBatch, records: tuple[tuple[int, str], ...]) -> None:
        error: AckError | None
        keys = {(batch.stream, sequence) for sequence, _ in records}
        if self.faults and self.chance.random() < 0.05:
            error = AckError(code="not_leader_or_follower", reason="", retriable=True)
        elif keys & self.refused_records or (
            self.chance.random() < self.refuse_share and not self._is_stored(batch, records)
        ):
            self.refused_records |= keys  # what is refused once is refused whenever it comes
            error = AckError(code="corrupt_message", reason="so it is", retriable=False)
        else:
            error = self.core.produce(batch, records)
        ack = Ack(
            stream=batch.stream,
            partition=batch.partition,
            producer_id=batch.producer_id,
            producer_epoch=batch.producer_epoch,
            base_sequence=batch.base_sequence,
            offset=None if error else 1,
            error=error,
        )
        self._to_edge(lambda: self.window.ack(self.now_ms, ack))

    def _is_stored(self, batch: CutBatch, records: tuple[tuple[int, str], ...]) -> bool:
        return records[0] in self.core.partitions.get((batch.stream, batch.partition), [])

    def run(self, until_ms: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass."""
        while self.now_ms < until_ms and not done():
            times = [until_ms]
            if self._events:
                times.append(self._events[0][0])
            if (deadline_ms := self.window.next_deadline_ms()) is not None:
                times.append(max(deadline_ms, self.now_ms + 0.01))
            self.now_ms = max(self.now_ms, min(times))
            while self._events and self._events[0][0] <= self.now_ms:
                heapq.heappop(self._events)[2]()
                self.carry_out()
            self.window.tick(self.now_ms)
            self.carry_out()

    def is_drained(self) -> bool:
        return not any(self.log.rows.values()) and not self.log.batches

    def check(self) -> None:
        """Every event is in the core once, in order for each device, or was refused and written down as lost."""
        stored: dict[tuple[str, int], Any] = {}
        for (stream, _), records in self.core.partitions.items():
            last: dict[str, int] = {}
            for sequence, device in records:
                assert (stream, sequence) not in stored, f"{stream} {sequence} is there twice"
                stored[stream, sequence] = device
                assert sequence > last.get(device, 0), f"{stream} {sequence} came after {last[device]}"
                last[device] = sequence
        lost = set(self.log.lost)
        assert len(lost) == len(self.log.lost)
        assert not lost & stored.keys(), "lost, they say, but there"
        for stream, sequence, device in self.appended:
            if (stream, sequence) not in lost and sequence not in self.log.rows[stream]:
                assert stored.get((stream, sequence)) == device, f"{stream} {sequence} is nowhere"
