"""The window step by step: what it asks for after each input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

from tidegate_edge.event_log import CutBatch
from tidegate_edge.uplink.flow import FLIGHT_BYTES_MIN, FlowLimit
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
from tidegate_edge.uplink.rtt import MAX_MS, MIN_MS, START_MS, RetransmissionTimeout
from tidegate_edge.uplink.window import (
    CONFIRM_STALL_MS,
    HELLO_TIMEOUT_MS,
    HELLO_TRIES_MAX,
    RECHECK_MS,
    RETRY_MS,
    Window,
)
from tidegate_wire.identifiers import BatchSequence, EventSequence, ProducerEpoch, ProducerId
from tidegate_wire.records import SEQUENCE_MAX
from tidegate_wire.uplink.messages import Ack, AckError, StreamInfo, Welcome

LINGER_MS = 50.0


def a_batch(number: int, *, base: int = 0, records: int = 10, producer_id: int = 9, stream: str = "events") -> CutBatch:
    return CutBatch(
        number=number,
        cut=number,
        stream=stream,
        partition=0,
        device_partitions=0,
        first_sequence=EventSequence(number * 100),
        last_sequence=EventSequence(number * 100 + records - 1),
        producer_id=ProducerId(producer_id),
        producer_epoch=ProducerEpoch(0),
        base_sequence=BatchSequence(base),
        record_count=records,
        size_bytes=1000,
        crc=0,
    )


class Script:
    """A window, and the clock."""

    def __init__(self, *in_flight: CutBatch, streams: tuple[str, ...] = ("events",), **fields: Any) -> None:
        self.now_ms = 1000.0
        self.window = Window(
            streams=[(name, False) for name in streams], in_flight=in_flight, linger_ms=LINGER_MS, **fields
        )
        self.streams = streams
        self._numbers: Iterator[int] = count(50)

    def outputs(self) -> list[Output]:
        return self.window.take_outputs()

    def connect(self) -> SendHello:
        self.window.connected(self.now_ms, "word")
        (hello,) = self.outputs()
        assert isinstance(hello, SendHello)
        return hello

    def welcome(self, hello: SendHello, *, producer_id: int | None = None, **fields: Any) -> list[Output]:
        welcome = Welcome(
            session=hello.session,
            producer_id=producer_id,
            producer_epoch=0,
            streams=tuple(StreamInfo(name=name, partitions=1) for name in self.streams),
            batch_bytes_max=100_000,
            window_batches_max=5,
        )
        self.window.welcome(self.now_ms, replace(welcome, **fields))
        return self.outputs()

    def greet(self, producer_id: int = 10) -> None:
        outputs = self.welcome(self.connect(), producer_id=producer_id)
        assert outputs == [TakeProducer(producer_id=ProducerId(producer_id), producer_epoch=ProducerEpoch(0))]
        self.window.producer_taken(self.now_ms)
        assert self.outputs() == []

    def rows(self, rows: int, stream: str = "events") -> list[Output]:
        self.window.rows_available(self.now_ms, stream, rows)
        return self.outputs()

    def cut(self, wanted: Output, left: int = 0, records: int = 10) -> tuple[CutBatch, list[Output]]:
        assert isinstance(wanted, CutWanted)
        batch = a_batch(
            next(self._numbers),
            base=wanted.base_sequences.get(0, 0),
            records=records,
            producer_id=wanted.producer_id,
            stream=wanted.stream,
        )
        self.window.rows_available(self.now_ms, wanted.stream, left)
        self.window.cut_made(self.now_ms, wanted.stream, [batch], 1000)
        return batch, self.outputs()

    def ack(self, batch: CutBatch, code: str | None = None, *, retriable: bool = False) -> list[Output]:
        error = None if code is None else AckError(code=code, reason="a test", retriable=retriable)
        ack = Ack(
            stream=batch.stream,
            partition=batch.partition,
            producer_id=batch.producer_id,
            producer_epoch=batch.producer_epoch,
            base_sequence=batch.base_sequence,
            offset=1,
            error=error,
        )
        self.window.ack(self.now_ms, ack)
        return self.outputs()

    def confirm(self, batch: CutBatch) -> None:
        self.window.confirmed(self.now_ms, batch.number)

    def wait(self, ms: float) -> list[Output]:
        self.now_ms += ms
        self.window.tick(self.now_ms)
        return self.outputs()


def test_a_first_event_is_sent_at_once_and_the_next_ones_wait_for_company() -> None:
    script = Script()
    script.greet()
    (wanted,) = script.rows(1)
    first, outputs = script.cut(wanted)
    assert outputs == [SendBatch(number=first.number)]
    assert script.rows(3) == []
    assert script.window.next_deadline_ms() is not None
    (later,) = script.wait(LINGER_MS)
    assert isinstance(later, CutWanted)


def test_an_ack_frees_the_cut_and_lets_the_next_one_go() -> None:
    script = Script()
    script.greet()
    (wanted,) = script.rows(1)
    first, _ = script.cut(wanted)
    script.rows(3)
    assert script.ack(first) == [Settle(cut=first.cut)]
    script.window.settled(script.now_ms, first.cut)
    (following,) = script.outputs()
    assert isinstance(following, CutWanted)
    assert following.base_sequences == {0: 10}


def test_base_sequences_wrap_after_the_largest_int32() -> None:
    script = Script()
    script.greet()
    (wanted,) = script.rows(1)
    first, _ = script.cut(wanted, records=SEQUENCE_MAX - 4)
    script.ack(first)
    script.window.settled(script.now_ms, first.cut)
    script.outputs()
    (wanted,) = script.rows(20)
    second, _ = script.cut(wanted, records=10)
    assert second.base_sequence == SEQUENCE_MAX - 4
    script.ack(second)
    script.window.settled(script.now_ms, second.cut)
    script.outputs()
    (wanted,) = script.rows(1)
    assert isinstance(wanted, CutWanted)
    assert wanted.base_sequences == {0: 5}


def test_batches_of_an_earlier_life_go_first_and_only_then_a_producer_id_is_asked_for() -> None:
    script = Script(a_batch(1), a_batch(2, base=10))
    hello = script.connect()
    assert not hello.wants_producer_id
    assert script.rows(5) == []
    assert script.welcome(hello) == [SendBatch(number=1), SendBatch(number=2)]
    script.ack(a_batch(1))
    script.window.settled(script.now_ms, 1)
    assert script.outputs() == []
    assert script.ack(a_batch(2, base=10)) == [Settle(cut=2)]
    script.window.settled(script.now_ms, 2)
    (again,) = script.outputs()
    assert isinstance(again, SendHello)
    assert again.wants_producer_id
    assert again.session != hello.session


def test_a_producer_id_that_was_used_before_is_not_taken() -> None:
    script = Script(last_producer_id=ProducerId(10))
    (notice,) = script.welcome(script.connect(), producer_id=10)
    assert isinstance(notice, Notice)
    (again,) = script.wait(HELLO_TIMEOUT_MS)
    assert isinstance(again, SendHello)
    assert script.welcome(again, producer_id=11) == [
        TakeProducer(producer_id=ProducerId(11), producer_epoch=ProducerEpoch(0))
    ]


def test_a_welcome_to_an_earlier_hello_is_passed_over() -> None:
    script = Script()
    first = script.connect()
    (second,) = script.wait(HELLO_TIMEOUT_MS)
    assert isinstance(second, SendHello)
    assert script.welcome(first, producer_id=10) == []
    assert len(script.welcome(second, producer_id=11)) == 1
    assert script.welcome(second, producer_id=12) == []  # a second bridge answered, too


def test_a_bridge_that_never_answers_leads_to_another_connection() -> None:
    script = Script()
    script.connect()
    outputs: list[Output] = []
    for _ in range(HELLO_TRIES_MAX):
        deadline_ms = script.window.next_deadline_ms()
        assert deadline_ms is not None
        outputs = script.wait(deadline_ms - script.now_ms)
    (reconnect,) = outputs
    assert isinstance(reconnect, Reconnect)


def test_a_retriable_error_sends_the_chain_again_from_there_in_order() -> None:
    batches = [a_batch(1), a_batch(2, base=10), a_batch(3, base=20)]
    script = Script(*batches)
    script.welcome(script.connect())
    assert script.ack(batches[1], "not_leader_or_follower", retriable=True) == []
    assert script.ack(batches[2], "out_of_order_sequence_number", retriable=True) == []
    assert script.wait(RETRY_MS - 1) == []
    assert script.wait(1) == [SendBatch(number=2), SendBatch(number=3)]
    assert script.ack(batches[1], "not_leader_or_follower", retriable=True) == []
    assert script.wait(RETRY_MS) == []
    assert script.wait(RETRY_MS) == [SendBatch(number=2), SendBatch(number=3)]


def test_a_missing_answer_sends_again_and_silence_leads_to_another_connection() -> None:
    script = Script(a_batch(1), a_batch(2, base=10))
    script.welcome(script.connect())
    for number in (1, 2):
        script.confirm(a_batch(number))
    assert script.wait(START_MS - 1) == []
    assert script.wait(1) == [SendBatch(number=1), SendBatch(number=2)]
    script.confirm(a_batch(1))
    assert script.wait(2 * START_MS) == [SendBatch(number=1), SendBatch(number=2)]
    script.confirm(a_batch(1))
    (reconnect,) = script.wait(4 * START_MS)
    assert isinstance(reconnect, Reconnect)
    assert "no bridge acknowledged" in reconnect.reason


def test_the_time_for_an_answer_does_not_run_while_a_slow_link_takes_the_batch() -> None:
    script = Script(a_batch(1))
    script.welcome(script.connect())
    assert script.wait(CONFIRM_STALL_MS - 1) == []
    script.confirm(a_batch(1))
    assert script.wait(START_MS - 1) == []
    assert script.wait(1) == [SendBatch(number=1)]


def test_a_broker_that_confirms_nothing_leads_to_another_connection() -> None:
    script = Script(a_batch(1))
    script.welcome(script.connect())
    (reconnect,) = script.wait(CONFIRM_STALL_MS)
    assert isinstance(reconnect, Reconnect)
    assert "confirmed no batch" in reconnect.reason


def test_after_a_refusal_the_rest_is_heard_out_before_it_is_cut_again() -> None:
    batches = [a_batch(1), a_batch(2, base=10), a_batch(3, base=20)]
    script = Script(*batches)
    script.welcome(script.connect())
    notice, *outputs = script.ack(batches[0], "corrupt_message")
    assert isinstance(notice, Notice)
    assert outputs == [
        Settle(cut=1, refused={1: "corrupt_message: a test"}),
        SendBatch(number=2),
        SendBatch(number=3),
    ]
    assert script.ack(batches[2]) == [Settle(cut=3)]  # an earlier copy of it was stored
    script.ack(batches[1], "out_of_order_sequence_number", retriable=True)
    outputs = script.wait(RETRY_MS)
    assert outputs == [SendBatch(number=2)]
    assert script.ack(batches[1], "out_of_order_sequence_number", retriable=True) == [
        Settle(cut=2, returned=frozenset({2}))
    ]


def test_rows_go_back_newest_first() -> None:
    batches = [a_batch(1), a_batch(2, base=10)]
    script = Script(*batches)
    script.welcome(script.connect())
    script.ack(batches[0], "unknown_producer_id")
    outputs = script.ack(batches[1], "unknown_producer_id")
    assert [output for output in outputs if isinstance(output, Settle)] == [
        Settle(cut=2, returned=frozenset({2})),
        Settle(cut=1, returned=frozenset({1})),
    ]


def test_a_stream_that_may_not_be_written_waits_while_others_go_on() -> None:
    script = Script(streams=("events", "alarms"))
    hello = script.connect()
    outputs = script.welcome(hello, producer_id=10, refused_streams={"alarms": "not yours"})
    assert any(isinstance(output, Notice) and output.facts["reason"] == "not yours" for output in outputs)
    script.window.producer_taken(script.now_ms)
    assert script.rows(5, "alarms") == []
    (wanted,) = script.rows(5, "events")
    assert isinstance(wanted, CutWanted)
    assert wanted.stream == "events"
    (recheck,) = script.wait(RECHECK_MS)
    assert isinstance(recheck, SendHello)
    assert not recheck.wants_producer_id


def test_a_reconnect_sends_what_was_on_its_way_again_and_keeps_the_producer_id() -> None:
    script = Script()
    script.greet()
    (wanted,) = script.rows(1)
    batch, _ = script.cut(wanted)
    script.window.disconnected(script.now_ms)
    assert script.window.next_deadline_ms() is None
    hello = script.connect()
    assert not hello.wants_producer_id
    assert script.welcome(hello) == [SendBatch(number=batch.number)]


def test_streams_take_turns() -> None:
    script = Script(streams=("events", "alarms"))
    script.greet()
    script.window.rows_available(script.now_ms, "events", 10_000)
    script.window.rows_available(script.now_ms, "alarms", 10)
    (first,) = script.outputs()
    assert isinstance(first, CutWanted)
    assert first.stream == "events"
    _, outputs = script.cut(first, left=9_000)
    assert [output.stream for output in outputs if isinstance(output, CutWanted)] == ["alarms"]


def test_no_cut_is_further_from_the_oldest_open_one_than_the_bridge_allows() -> None:
    script = Script()
    script.greet()
    (wanted,) = script.rows(100_000)
    oldest, outputs = script.cut(wanted, left=100_000)
    for _ in range(4):
        (wanted,) = [output for output in outputs if isinstance(output, CutWanted)]
        batch, outputs = script.cut(wanted, left=100_000)
        outputs += script.ack(batch)
        script.window.settled(script.now_ms, batch.cut)
        outputs += script.outputs()
    assert not [output for output in outputs if isinstance(output, CutWanted)]
    script.ack(oldest)
    script.window.settled(script.now_ms, oldest.cut)
    assert [output for output in script.outputs() if isinstance(output, CutWanted)]


def test_the_timeout_follows_the_round_trips() -> None:
    timeout = RetransmissionTimeout()
    assert (timeout.timeout_ms(), timeout.timeout_ms(1), timeout.timeout_ms(40)) == (START_MS, 2 * START_MS, MAX_MS)
    for _ in range(50):
        timeout.measured(10.0)
    assert timeout.timeout_ms() == MIN_MS
    for _ in range(50):
        timeout.measured(3000.0)
    assert 3000 < timeout.timeout_ms() < 6000


def test_the_flow_grows_on_a_fast_link_and_shrinks_on_a_slow_one() -> None:
    flow = FlowLimit()
    start = flow.bytes_max
    flow.confirmed(50_000, 100.0)
    assert flow.bytes_max == start + 50_000
    for _ in range(20):
        flow.confirmed(50_000, 10_000.0)
    assert flow.bytes_max == FLIGHT_BYTES_MIN
    assert flow.batch_bytes == FLIGHT_BYTES_MIN
