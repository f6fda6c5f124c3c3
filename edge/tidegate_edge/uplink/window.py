"""The uplink's window: what to send, to send again, to cut and to free. No I/O; time comes in as milliseconds.

A batch is written down before it is first sent, and stays in the window until every batch cut from the same rows has a
final answer and the log has settled the cut:

    stored      the core has it: the rows are freed
    refused     it will never be taken: kept for the operator, a loss record for the consumers
    returned    the core certainly does not have it, and can't take it under this producer id: its rows are cut again

Batches of one producer in one partition are a chain, which the core takes in order only. A retriable error or a missing
answer sends the chain again from there on, the same bytes (go-back-N). After a refusal or an answer that says that the
producer id is gone, the rest of the chain is not given up unheard: each batch is sent until it is answered, because an
earlier transmission may have been stored. Only then a fresh producer id is asked for (ADR 0003).

A bridge may hand batches to a Kafka cluster that recognises a producer's last five batches only. So no batch is cut
that is further than the bridge's window from the stream's oldest unsettled one, even if those between are settled.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate_edge.event_log.cuts import CutBatch
from tidegate_edge.uplink.flights import Chain, ChainKey, Cut, Fate, Flight, StreamWindow
from tidegate_edge.uplink.flow import FlowLimit
from tidegate_edge.uplink.outputs import (
    CutWanted,
    Notice,
    Output,
    Reconnect,
    SendBatch,
    SendHello,
    Settle,
    TakeProducer,
)
from tidegate_edge.uplink.rtt import RetransmissionTimeout
from tidegate_wire.identifiers import BatchSequence, ProducerEpoch, ProducerId
from tidegate_wire.records import SEQUENCE_MAX
from tidegate_wire.uplink.messages import Ack, AckError, Welcome

OUT_OF_ORDER: Final = "out_of_order_sequence_number"
STREAM_NOT_ALLOWED: Final = "stream_not_allowed"
PRODUCER_GONE: Final = frozenset({"unknown_producer_id", "invalid_producer_epoch", "producer_fenced"})
"""Answers that say nothing against the batch: the core has no state of its producer id, and has not stored it."""

HELLO_TIMEOUT_MS: Final = 2_000.0
HELLO_TIMEOUT_MAX_MS: Final = 60_000.0
HELLO_TRIES_MAX: Final = 5
"""Hellos without a welcome on one connection, before another connection is tried."""

RECHECK_MS: Final = 60_000.0
"""How long a stream that the bridge would not take waits for the next hello."""

CONFIRM_STALL_MS: Final = 60_000.0
"""A broker that confirms nothing for so long, while batches wait, is as good as gone."""

SILENT_ROUNDS_MAX: Final = 3
"""Rounds of sending again without any ack, before another connection is tried."""

RETRY_MS: Final = 200.0
RETRY_MAX_MS: Final = 30_000.0
"""Pause after a retriable error, doubled each time: a partition between two leaders needs seconds."""

OUT_OF_ORDER_TRIES_MAX: Final = 8
OUT_OF_ORDER_TRIES_BROKEN_MAX: Final = 2
"""Transmissions of a chain's first batch that are answered `out_of_order_sequence_number` until it counts as returned:
in a healthy chain that needs a core that lost its memory, in a broken one it is the expected answer."""

ROWS_MIN: Final = 64
ROWS_MARGIN: Final = 1.25
"""How many rows are read for a cut: a quarter more than fill it, by the size of the last one's, and a few."""

COMPRESSION_MAX: Final = 10.0
"""How far a cut trusts that its records compress as the last one's did: should they not, the batch is ten times what
the link was found good for, and the next cut knows."""

PRODUCERS_REMEMBERED: Final = 64


@dataclass(slots=True)
class _PendingHello:
    session: str
    wants_producer_id: bool
    deadline_ms: float


class Window:
    """One edge's window over all its streams. Call an input, then carry out `take_outputs()`."""

    def __init__(
        self,
        *,
        streams: Iterable[tuple[str, bool]],
        in_flight: Sequence[CutBatch] = (),
        last_producer_id: ProducerId | None = None,
        linger_ms: float,
    ) -> None:
        """`streams` are names, each with whether it is partitioned by device; `in_flight` is what the log had."""
        self._streams = {name: StreamWindow(name, by_device) for name, by_device in streams}
        self._turns = deque(self._streams)
        self._linger_ms = linger_ms
        self._chains: OrderedDict[ChainKey, Chain] = OrderedDict()
        self._by_number: dict[int, Flight] = {}
        self._cutting: str | None = None
        self._returning: set[str] = set()
        """Streams with returned rows that wait until no other answer is open."""
        self._producer: tuple[ProducerId, ProducerEpoch] | None = None
        self._taking: tuple[ProducerId, ProducerEpoch] | None = None
        self._used: deque[ProducerId] = deque(maxlen=PRODUCERS_REMEMBERED)
        self._next_base: dict[tuple[str, int], BatchSequence] = {}
        self._timeout = RetransmissionTimeout()
        self._flow = FlowLimit()
        self._sent_count = 0
        self._sent_bytes = 0
        self._session = ""
        self._is_connected = False
        self._welcome: Welcome | None = None
        self._hello: _PendingHello | None = None
        self._hello_count = 0
        self._hello_tries = 0
        self._recheck_ms: float | None = None
        self._last_ack_ms = 0.0
        self._last_confirm_ms = 0.0
        self._now_ms = 0.0
        self._outputs: list[Output] = []
        if last_producer_id is not None:
            self._used.append(last_producer_id)
        for batch in in_flight:
            self._used.append(batch.producer_id)
            self._add(batch, tries=1)

    # Inputs ---------------------------------------------------------------------------------------------------------

    def connected(self, now_ms: float, session: str) -> None:
        """The broker took our subscriptions; `session` is a random word for this connection."""
        self._is_connected = True
        self._session = session
        self._hello_count = self._hello_tries = 0
        self._last_ack_ms = self._last_confirm_ms = now_ms
        for chain in self._chains.values():
            chain.retries = 0
            chain.not_before_ms = 0.0
        self._pump(now_ms)

    def disconnected(self, now_ms: float) -> None:
        """The connection is gone; what was on its way may have arrived or not."""
        self._is_connected = False
        self._welcome = self._hello = self._recheck_ms = None
        if any(flight.is_sent and flight.confirmed_ms is None for flight in self._by_number.values()):
            self._flow.failed()
        for flight in self._by_number.values():
            flight.first_sent_ms = None
        for chain in self._chains.values():
            self._send_again(chain.flights)
        self._pump(now_ms)

    def welcome(self, now_ms: float, welcome: Welcome) -> None:
        """A bridge answered; a welcome to another hello than the last is passed over."""
        hello = self._hello
        if hello is None or hello.session != welcome.session:
            return
        if hello.wants_producer_id and not self._take_producer(welcome):
            return  # asked again when the hello's time is over
        self._hello = None
        self._hello_tries = 0
        self._welcome = welcome
        granted = {info.name: info.partitions for info in welcome.streams if info.name not in welcome.refused_streams}
        self._recheck_ms = None
        for stream in self._streams.values():
            was_held, stream.is_held = stream.is_held, stream.name not in granted
            stream.partitions = granted.get(stream.name, 0)
            if stream.is_held:
                self._recheck_ms = now_ms + RECHECK_MS
                if not was_held:
                    reason = welcome.refused_streams.get(stream.name, "the bridge did not name it")
                    self._notice("uplink.stream_not_granted", stream=stream.name, reason=reason)
        self._pump(now_ms)

    def producer_taken(self, now_ms: float) -> None:
        """The producer id is written down; it may be used."""
        assert self._taking is not None
        self._producer, self._taking = self._taking, None
        self._next_base.clear()
        self._pump(now_ms)

    def confirmed(self, now_ms: float, number: int) -> None:
        """The broker has a batch."""
        self._last_confirm_ms = now_ms
        flight = self._by_number.get(number)
        if flight is not None and flight.is_sent and flight.confirmed_ms is None:
            flight.confirmed_ms = now_ms
            self._flow.confirmed(flight.batch.size_bytes, now_ms - flight.sent_ms)
        self._pump(now_ms)

    def ack(self, now_ms: float, ack: Ack) -> None:
        """A bridge's answer to a batch; one for a batch that has its final answer is passed over."""
        self._last_ack_ms = now_ms
        key = ChainKey(ProducerId(ack.producer_id), ProducerEpoch(ack.producer_epoch), ack.stream, ack.partition)
        chain = self._chains.get(key)
        if chain is not None:
            flight = next((item for item in chain.flights if item.batch.base_sequence == ack.base_sequence), None)
            if flight is not None and ack.error is None:
                self._stored(now_ms, chain, flight)
            elif flight is not None and ack.error is not None:
                self._failed(now_ms, chain, flight, ack.error)
        self._pump(now_ms)

    def rows_available(self, now_ms: float, stream: str, count: int) -> None:
        """How many uncut rows a stream has now."""
        state = self._streams[stream]
        if state.uncut_rows == 0 and count > 0:
            state.uncut_since_ms = now_ms
        state.uncut_rows = count
        self._pump(now_ms)

    def cut_made(self, now_ms: float, stream: str, batches: Sequence[CutBatch], encoded_bytes: int) -> None:
        """The batches asked for are written down; they took `encoded_bytes` before compression."""
        assert self._cutting == stream
        self._cutting = None
        state = self._streams[stream]
        records = sum(batch.record_count for batch in batches)
        state.event_bytes = max(1.0, encoded_bytes / records)
        size_bytes = sum(batch.size_bytes for batch in batches)
        state.compression = min(COMPRESSION_MAX, max(1.0, encoded_bytes / size_bytes))
        state.uncut_since_ms = now_ms
        for batch in batches:
            self._add(batch, tries=0)
            if self._producer is not None and batch.producer_id == self._producer[0]:
                following = (batch.base_sequence + batch.record_count) % (SEQUENCE_MAX + 1)
                self._next_base[stream, batch.partition] = BatchSequence(following)
        self._pump(now_ms)

    def cut_failed(self, now_ms: float, stream: str) -> None:
        """Nothing was cut: the rows were dropped meanwhile, or the only one was too large."""
        assert self._cutting == stream
        self._cutting = None
        self._pump(now_ms)

    def settled(self, now_ms: float, cut: int) -> None:
        """The log has settled a cut."""
        for stream in self._streams.values():
            if (done := stream.cuts.pop(cut, None)) is not None:
                for flight in done.flights:
                    del self._by_number[flight.batch.number]
        self._pump(now_ms)

    def tick(self, now_ms: float) -> None:
        """Time has passed; call it when `next_deadline_ms` comes."""
        if self._is_connected:
            for chain in list(self._chains.values()):
                self._check_answer_time(now_ms, chain)
            self._check_confirmations(now_ms)
        self._pump(now_ms)

    # What the shell asks ---------------------------------------------------------------------------------------------

    def take_outputs(self) -> list[Output]:
        """What to do, in order; each is given once."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def next_deadline_ms(self) -> float | None:
        """When `tick` has to be called next; None while only other inputs can change anything."""
        if not self._is_connected:
            return None
        times: list[float] = []
        if self._hello is not None:
            times.append(self._hello.deadline_ms)
        elif self._recheck_ms is not None:
            times.append(self._recheck_ms)
        if self._welcome is not None:
            for chain in self._chains.values():
                first = chain.first_sent()
                if first is not None:
                    times.append(self._answer_deadline_ms(chain, first))
                if chain.not_before_ms > self._now_ms:
                    times.append(chain.not_before_ms)
            lingering = [stream for stream in self._streams.values() if stream.uncut_rows > 0]
            ends = (stream.uncut_since_ms + self._linger_ms for stream in lingering)
            times += [end for end in ends if end > self._now_ms]  # one that has passed waits for room, not for time
        return min(times, default=None)

    @property
    def is_welcomed(self) -> bool:
        """Whether a bridge answered on this connection."""
        return self._welcome is not None

    @property
    def batches_in_flight(self) -> int:
        """Batches without a final answer."""
        return sum(len(chain.flights) for chain in self._chains.values())

    # Answers ---------------------------------------------------------------------------------------------------------

    def _stored(self, now_ms: float, chain: Chain, flight: Flight) -> None:
        if flight.tries == 1 and flight.is_sent:  # Karn: otherwise nobody knows which transmission was answered
            self._timeout.measured(now_ms - (flight.confirmed_ms or flight.sent_ms))
        chain.retries = 0
        chain.not_before_ms = 0.0
        self._resolve(chain, flight, "stored")

    def _failed(self, now_ms: float, chain: Chain, flight: Flight, error: AckError) -> None:
        if error.code in PRODUCER_GONE:
            self._notice("uplink.producer_gone", producer_id=chain.key.producer_id, code=error.code)
            self._break(chain)
            self._resolve(chain, flight, "returned")
        elif error.code == OUT_OF_ORDER:
            self._out_of_order(now_ms, chain, flight)
        elif error.code == STREAM_NOT_ALLOWED:
            stream = self._streams[chain.key.stream]
            if not stream.is_held:
                self._notice("uplink.stream_not_allowed", stream=stream.name, reason=error.reason)
            stream.is_held = True
            self._recheck_ms = now_ms + RECHECK_MS
            self._send_again(chain.flights)
        elif error.retriable:
            self._retry_from(now_ms, chain, flight)
        else:
            batch = flight.batch
            self._notice(
                "uplink.batch_refused",
                stream=batch.stream,
                first_sequence=batch.first_sequence,
                last_sequence=batch.last_sequence,
                records=batch.record_count,
                code=error.code,
                reason=error.reason,
            )
            flight.reason = f"{error.code}: {error.reason}"
            self._break(chain)
            self._resolve(chain, flight, "refused")

    def _out_of_order(self, now_ms: float, chain: Chain, flight: Flight) -> None:
        if chain.flights[0] is flight and flight.out_of_order_try != flight.tries:
            flight.out_of_order_try = flight.tries
            flight.out_of_order_tries += 1
            tries_max = OUT_OF_ORDER_TRIES_BROKEN_MAX if chain.is_broken else OUT_OF_ORDER_TRIES_MAX
            if flight.out_of_order_tries >= tries_max:
                if not chain.is_broken:
                    self._notice("uplink.sequence_lost", stream=chain.key.stream, producer_id=chain.key.producer_id)
                    self._break(chain)
                self._resolve(chain, flight, "returned")
                return
        self._retry_from(now_ms, chain, flight)

    def _break(self, chain: Chain) -> None:
        """The core will not take what follows in this chain under this producer id; hear it out, then leave the id."""
        chain.is_broken = True
        if self._producer is not None and self._producer[0] == chain.key.producer_id:
            self._producer = None
        for flight in chain.flights:
            flight.out_of_order_tries = 0
        self._send_again(chain.flights)

    def _resolve(self, chain: Chain, flight: Flight, fate: Fate) -> None:
        self._unsend(flight)
        flight.fate = fate
        chain.flights.remove(flight)
        if not chain.flights:
            del self._chains[chain.key]
        stream = self._streams[chain.key.stream]
        cut = stream.cuts[flight.batch.cut]
        if cut.is_resolved() and not cut.has_returned():
            self._settle(cut)
        if fate == "returned":
            self._returning.add(stream.name)

    def _settle_returned(self) -> None:
        """Rows go back in descending order, once no answer is open, so that uncut rows stay above all cut ones."""
        for name in sorted(self._returning):
            cuts = self._streams[name].cuts
            if self._cutting != name and all(cut.is_resolved() for cut in cuts.values()):
                self._returning.discard(name)
                for number in sorted(cuts, reverse=True):
                    if not cuts[number].is_settling:
                        self._settle(cuts[number])

    def _settle(self, cut: Cut) -> None:
        cut.is_settling = True
        flights = cut.flights
        self._outputs.append(
            Settle(
                cut=cut.number,
                returned=frozenset(item.batch.number for item in flights if item.fate == "returned"),
                refused={item.batch.number: item.reason for item in flights if item.fate == "refused"},
            )
        )

    # Sending again ---------------------------------------------------------------------------------------------------

    def _retry_from(self, now_ms: float, chain: Chain, flight: Flight) -> None:
        if not flight.is_sent:
            return  # an answer to an earlier transmission: it waits to be sent again already
        pause_ms = min(RETRY_MAX_MS, RETRY_MS * 2 ** min(chain.retries, 16))
        chain.retries += 1
        chain.not_before_ms = now_ms + pause_ms
        position = chain.flights.index(flight)
        self._send_again(list(chain.flights)[position:])

    def _send_again(self, flights: Iterable[Flight]) -> None:
        for flight in flights:
            self._unsend(flight)

    def _unsend(self, flight: Flight) -> None:
        if flight.is_sent:
            flight.is_sent = False
            flight.confirmed_ms = None
            self._sent_count -= 1
            self._sent_bytes -= flight.batch.size_bytes

    def _answer_deadline_ms(self, chain: Chain, first: Flight) -> float:
        if first.confirmed_ms is None:  # the link is slow, or dead: the keep-alive will tell
            return max(first.sent_ms, self._last_confirm_ms) + CONFIRM_STALL_MS
        return first.confirmed_ms + self._timeout.timeout_ms(chain.retries)

    def _check_answer_time(self, now_ms: float, chain: Chain) -> None:
        first = chain.first_sent()
        if first is None or first.confirmed_ms is None or now_ms < self._answer_deadline_ms(chain, first):
            return
        assert first.first_sent_ms is not None
        if chain.retries + 1 >= SILENT_ROUNDS_MAX and self._last_ack_ms <= first.first_sent_ms:
            self._reconnect(f"the broker takes batches, but no bridge acknowledged one for {SILENT_ROUNDS_MAX} rounds")
            return
        chain.retries += 1
        self._send_again(chain.flights)

    def _check_confirmations(self, now_ms: float) -> None:
        for chain in self._chains.values():
            first = chain.first_sent()
            if first is None or first.confirmed_ms is not None:
                continue
            if now_ms >= self._answer_deadline_ms(chain, first):
                self._reconnect(f"the broker confirmed no batch for {CONFIRM_STALL_MS / 1000:.0f} s")
                return

    def _reconnect(self, reason: str) -> None:
        if not any(isinstance(output, Reconnect) for output in self._outputs):
            self._outputs.append(Reconnect(reason=reason))

    # What comes next -------------------------------------------------------------------------------------------------

    def _pump(self, now_ms: float) -> None:
        """Do what the state allows: give up what was never sent, say hello, send, ask for a cut."""
        self._now_ms = now_ms
        self._return_unsent()
        self._settle_returned()
        if not self._is_connected:
            return
        self._say_hello(now_ms)
        if self._welcome is not None:
            self._send(now_ms, self._welcome)
            self._ask_for_cut(now_ms, self._welcome)

    def _return_unsent(self) -> None:
        """What was cut for a producer id that is left by now, and never sent, needs no answer."""
        current = None if self._producer is None else self._producer[0]
        for chain in [chain for chain in self._chains.values() if chain.key.producer_id != current]:
            for flight in [flight for flight in chain.flights if flight.tries == 0]:
                self._resolve(chain, flight, "returned")

    def _say_hello(self, now_ms: float) -> None:
        if self._hello is not None:
            if now_ms < self._hello.deadline_ms:
                return
            if self._hello_tries >= HELLO_TRIES_MAX:
                self._reconnect(f"no bridge answered {HELLO_TRIES_MAX} hellos")
                return
        wants_producer_id = self._producer is None and self._taking is None and not self._has_open_cuts()
        is_due = self._recheck_ms is not None and now_ms >= self._recheck_ms
        if self._hello is None and self._welcome is not None and not wants_producer_id and not is_due:
            return
        self._hello_count += 1
        timeout_ms = min(HELLO_TIMEOUT_MAX_MS, HELLO_TIMEOUT_MS * 2**self._hello_tries)
        self._hello_tries += 1
        # A word for each hello: a late copy of an earlier welcome must not bring an earlier producer id back.
        session = f"{self._session}-{self._hello_count}"
        self._hello = _PendingHello(session, wants_producer_id, now_ms + timeout_ms)
        self._outputs.append(SendHello(session=session, wants_producer_id=wants_producer_id))

    def _has_open_cuts(self) -> bool:
        """Whether a cut waits for its answer or to be settled, in a stream that the bridge takes."""
        return self._cutting is not None or any(stream.cuts and not stream.is_held for stream in self._streams.values())

    def _take_producer(self, welcome: Welcome) -> bool:
        if welcome.producer_id is None:
            return False
        producer_id = ProducerId(welcome.producer_id)
        if producer_id in self._used:
            self._notice("uplink.producer_id_used_before", producer_id=producer_id, bridge=welcome.bridge)
            return False
        self._used.append(producer_id)
        self._taking = (producer_id, ProducerEpoch(welcome.producer_epoch))
        self._outputs.append(
            TakeProducer(producer_id=producer_id, producer_epoch=ProducerEpoch(welcome.producer_epoch))
        )
        return True

    def _send(self, now_ms: float, welcome: Welcome) -> None:
        """Send what waits, a batch of each chain in turn, as far as window and flow allow."""
        waiting = [
            chain
            for chain in self._chains.values()
            if now_ms >= chain.not_before_ms and not self._streams[chain.key.stream].is_held
        ]
        while waiting:
            for chain in list(waiting):
                flight = chain.first_unsent()
                if flight is None:
                    waiting.remove(chain)
                    continue
                if not self._has_room(welcome, flight.batch.size_bytes):
                    return
                self._chains.move_to_end(chain.key)
                self._transmit(now_ms, flight)

    def _transmit(self, now_ms: float, flight: Flight) -> None:
        flight.is_sent = True
        flight.tries += 1
        flight.sent_ms = now_ms
        flight.confirmed_ms = None
        if flight.first_sent_ms is None:
            flight.first_sent_ms = now_ms
        self._sent_count += 1
        self._sent_bytes += flight.batch.size_bytes
        self._outputs.append(SendBatch(number=flight.batch.number))

    def _has_room(self, welcome: Welcome, size_bytes: int) -> bool:
        if self._sent_count == 0:
            return True
        return self._sent_count < welcome.window_batches_max and self._sent_bytes + size_bytes <= self._flow.bytes_max

    def _ask_for_cut(self, now_ms: float, welcome: Welcome) -> None:
        if self._cutting is not None or self._producer is None or not self._has_room(welcome, 0):
            return
        for name in list(self._turns):
            stream = self._streams[name]
            if stream.uncut_rows == 0 or not self._may_cut(stream):
                continue
            target_bytes = min(welcome.batch_bytes_max, int(self._flow.batch_bytes * stream.compression))
            # Nagle: at once if nothing of the stream is on its way, otherwise a full batch or none for `linger_ms`.
            is_full = stream.uncut_rows * stream.event_bytes >= target_bytes
            if stream.cuts and not is_full and now_ms < stream.uncut_since_ms + self._linger_ms:
                continue
            self._turns.remove(name)
            self._turns.append(name)
            self._cutting = name
            self._outputs.append(
                CutWanted(
                    stream=name,
                    partitions=stream.partitions,
                    by_device=stream.by_device,
                    producer_id=self._producer[0],
                    producer_epoch=self._producer[1],
                    base_sequences={partition: base for (of, partition), base in self._next_base.items() if of == name},
                    target_bytes=target_bytes,
                    rows_max=ROWS_MIN + int(ROWS_MARGIN * target_bytes / stream.event_bytes),
                    batch_bytes_max=welcome.batch_bytes_max,
                )
            )
            return

    def _may_cut(self, stream: StreamWindow) -> bool:
        """Whether a further cut of the stream fits: none of another producer is open, and others keep room."""
        if stream.is_held or self._producer is None or self._welcome is None or self._cutting is not None:
            return False
        if any(cut.producer_id != self._producer[0] for cut in stream.cuts.values()):
            return False
        if any(not flight.is_sent for cut in stream.cuts.values() for flight in cut.flights if flight.fate is None):
            return False
        if stream.span >= self._welcome.window_batches_max:
            return False
        active = sum(1 for other in self._streams.values() if other.cuts or other.uncut_rows > 0)
        return len(stream.cuts) < max(1, self._welcome.window_batches_max - (active - 1))

    def _add(self, batch: CutBatch, tries: int) -> None:
        if batch.stream not in self._streams:  # in the log from an earlier configuration
            self._streams[batch.stream] = StreamWindow(batch.stream, batch.device_partitions > 0)
            self._turns.append(batch.stream)
        flight = Flight(batch, tries)
        self._by_number[batch.number] = flight
        key = ChainKey.of(batch)
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = Chain(key)
        chain.flights.append(flight)
        cuts = self._streams[batch.stream].cuts
        cut = cuts.get(batch.cut)
        if cut is None:
            stream = self._streams[batch.stream]
            cut = cuts[batch.cut] = Cut(batch.cut, stream.cuts_made, batch.stream, batch.producer_id)
            stream.cuts_made += 1
        cut.flights.append(flight)

    def _notice(self, event: str, **facts: object) -> None:
        self._outputs.append(Notice(event=event, facts=facts))
