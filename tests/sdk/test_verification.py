from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.verification import (
    EXAMPLES_MAX,
    DuplicatedEvent,
    LostEvent,
    MisplacedEvent,
    SequenceSet,
    Verdict,
    Verification,
)
from tidegate_wire.ledger import LedgerEntry

Reading = tuple[str, int, int]
"""device, sequence, partition; offsets count up."""


def payload(device: str, sequence: int) -> bytes:
    return json.dumps({"device": device, "sequence": sequence, "value": 1.5}).encode()


def judge(
    acknowledged: Iterable[tuple[str, int]],
    read: Iterable[Reading],
    *,
    only_published: Iterable[tuple[str, int]] = (),
) -> Verdict:
    verification = Verification()
    for device, sequence in (*only_published, *acknowledged):
        verification.add_ledger_entry(LedgerEntry(device, sequence, "published"))
    for device, sequence in acknowledged:
        verification.add_ledger_entry(LedgerEntry(device, sequence, "acknowledged"))
    for offset, (device, sequence, partition) in enumerate(read):
        verification.add_read(payload(device, sequence), "telemetry", partition, offset)
    return verification.verdict()


EVENTS = [(device, sequence) for sequence in range(1, 6) for device in ("a", "b")]
READ = [(device, sequence, 0) for device, sequence in EVENTS]


def test_everything_read_once_and_in_order_holds() -> None:
    verdict = judge(EVENTS, READ)
    assert verdict == Verdict(
        published=10, acknowledged=10, read=10, lost=0, duplicated=0, out_of_order=0, not_in_ledger=0
    )
    assert verdict.holds


def test_an_empty_ledger_against_an_empty_stream_holds() -> None:
    assert judge([], []).holds


@pytest.mark.parametrize("missing", range(len(EVENTS)))
def test_a_planted_loss_is_found_wherever_it_is(missing: int) -> None:
    verdict = judge(EVENTS, READ[:missing] + READ[missing + 1 :])
    device, sequence = EVENTS[missing]
    assert (verdict.lost, verdict.duplicated, verdict.out_of_order) == (1, 0, 0)
    assert verdict.lost_examples == (LostEvent(device=device, sequence=sequence),)
    assert not verdict.holds


@pytest.mark.parametrize("doubled", range(len(EVENTS)))
@pytest.mark.parametrize("later", [0, 1, len(EVENTS)])
def test_a_planted_double_is_found_and_is_no_disorder(doubled: int, later: int) -> None:
    device, sequence = EVENTS[doubled]
    at = min(doubled + 1 + later, len(READ))
    verdict = judge(EVENTS, [*READ[:at], (device, sequence, 0), *READ[at:]])
    assert (verdict.lost, verdict.duplicated, verdict.out_of_order, verdict.read) == (0, 1, 0, 10)
    assert verdict.duplicated_examples == (
        DuplicatedEvent(device=device, sequence=sequence, stream="telemetry", partition=0, offset=at),
    )


@pytest.mark.parametrize("first", range(4))
def test_two_events_of_a_device_swapped_are_one_out_of_order(first: int) -> None:
    own = [("a", sequence, 0) for sequence in range(1, 6)]
    own[first], own[first + 1] = own[first + 1], own[first]
    verdict = judge([("a", sequence) for sequence in range(1, 6)], own)
    assert (verdict.lost, verdict.duplicated, verdict.out_of_order) == (0, 0, 1)
    assert verdict.out_of_order_examples == (
        MisplacedEvent(
            device="a",
            sequence=first + 1,
            stream="telemetry",
            partition=0,
            offset=first + 1,
            after_sequence=first + 2,
            after_offset=first,
        ),
    )


def test_each_event_behind_a_higher_one_counts() -> None:
    events = [("a", sequence) for sequence in (1, 2, 3, 4)]
    verdict = judge(events, [("a", sequence, 0) for sequence in (4, 1, 2, 3)])
    assert verdict.out_of_order == 3
    assert {example.after_sequence for example in verdict.out_of_order_examples} == {4}


def test_devices_may_interleave() -> None:
    assert judge(EVENTS, sorted(READ)).holds


def test_order_is_asked_for_within_a_partition_only() -> None:
    events = [("a", sequence) for sequence in (1, 2, 3, 4)]
    assert judge(events, [("a", 3, 1), ("a", 1, 0), ("a", 4, 1), ("a", 2, 0)]).holds


def test_the_same_event_in_two_partitions_is_a_double() -> None:
    assert judge([("a", 1)], [("a", 1, 0), ("a", 1, 1)]).duplicated == 1


def test_a_published_event_without_acknowledgement_may_be_read_or_not() -> None:
    assert judge(EVENTS, [*READ, ("c", 1, 0)], only_published=[("c", 1), ("c", 2)]) == Verdict(
        published=12, acknowledged=10, read=11, lost=0, duplicated=0, out_of_order=0, not_in_ledger=0
    )


def test_a_double_of_an_unacknowledged_event_counts_too() -> None:
    assert judge([], [("c", 1, 0), ("c", 1, 0)], only_published=[("c", 1)]).duplicated == 1


def test_gaps_in_what_was_read_are_no_disorder() -> None:
    verdict = judge([("a", 1), ("a", 9)], [("a", 1, 0), ("a", 9, 0)])
    assert verdict.holds


def test_events_of_others_are_counted_and_judged_not() -> None:
    verdict = judge(EVENTS, [("x", 2, 0), ("x", 2, 0), ("x", 1, 0), *READ, ("a", 77, 0)])
    assert (verdict.not_in_ledger, verdict.holds) == (4, True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"17",
        b'"text"',
        b"{}",
        b'{"device": "a"}',
        b'{"device": "a", "sequence": "1"}',
        b'{"device": "a", "sequence": true}',
        b'{"device": "a", "sequence": 1.0}',
        b'{"device": "a", "sequence": -1}',
        b'{"device": ["a"], "sequence": 1}',
        b"[" * 100_000,
    ],
)
def test_payloads_that_name_no_event_are_not_in_the_ledger(content: bytes) -> None:
    verification = Verification()
    verification.add_ledger_entry(LedgerEntry("a", 1, "acknowledged"))
    verification.add_read(content, "telemetry", 0, 0)
    verdict = verification.verdict()
    assert (verdict.not_in_ledger, verdict.read, verdict.lost) == (1, 0, 1)


def test_an_acknowledged_line_is_enough_for_published() -> None:
    verification = Verification()
    verification.add_ledger_entry(LedgerEntry("a", 1, "acknowledged"))
    assert verification.verdict().published == 1


def test_entries_may_come_twice_as_from_two_ledgers() -> None:
    assert judge(EVENTS + EVENTS, READ) == judge(EVENTS, READ)


def test_examples_are_few_however_many_there_are() -> None:
    many = [("a", sequence) for sequence in range(1, 101)]
    lost = judge(many, [])
    assert lost.lost == 100
    assert [example.sequence for example in lost.lost_examples] == list(range(1, EXAMPLES_MAX + 1))
    reversed_and_doubled = [("a", sequence, 0) for sequence in range(100, 0, -1)] * 2
    bad = judge(many, reversed_and_doubled)
    assert (bad.duplicated, bad.out_of_order, bad.read) == (100, 99, 100)
    assert len(bad.duplicated_examples) == len(bad.out_of_order_examples) == EXAMPLES_MAX


def test_the_json_names_the_six_counts_and_the_examples() -> None:
    fields = json.loads(judge(EVENTS, [*READ[1:], READ[3]]).to_json())
    assert {name: fields[name] for name in ("published", "acknowledged", "read")} == {
        "published": 10,
        "acknowledged": 10,
        "read": 9,
    }
    assert (fields["lost"], fields["duplicated"], fields["out_of_order"], fields["holds"]) == (1, 1, 0, False)
    assert fields["lost_examples"] == [{"device": "a", "sequence": 1}]
    assert fields["duplicated_examples"][0]["offset"] == 9


def test_a_million_events_fit_in_a_few_megabytes() -> None:
    tracemalloc.start()
    try:
        verification = Verification()
        for device in ("a", "b"):
            for sequence in range(1, 100_001):
                verification.add_ledger_entry(LedgerEntry(device, sequence, "acknowledged"))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200_000  # one byte an event; three bits are wanted


@given(st.lists(st.integers(0, 200_000)), st.lists(st.integers(0, 200_000)))
def test_a_sequence_set_is_a_set(here: list[int], there: list[int]) -> None:
    left, right = SequenceSet(), SequenceSet()
    seen: set[int] = set()
    for number in here:
        assert left.add(number) == (number not in seen)
        seen.add(number)
    for number in there:
        right.add(number)
    assert list(left) == sorted(seen)
    assert len(left) == len(seen)
    assert all(number in left for number in here)
    assert all((number in left) == (number in seen) for number in there)
    assert list(left.missing_from(right)) == sorted(seen - set(there))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5)), max_size=12),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 5), st.integers(0, 1)), max_size=16),
)
def test_the_verdict_is_that_of_the_plain_definition(acknowledged: list[tuple[str, int]], read: list[Reading]) -> None:
    known = set(acknowledged)
    seen: set[tuple[str, int]] = set()
    duplicated = out_of_order = 0
    for index, (device, sequence, partition) in enumerate(read):
        if (device, sequence) not in known:
            continue
        if (device, sequence) in seen:
            duplicated += 1
            continue
        seen.add((device, sequence))
        # A double of an event first read in another partition is not part of this one's order.
        firsts = _first_readings(read, known)
        before = [s for i, (d, s, p) in enumerate(read[:index]) if (d, p) == (device, partition) and i in firsts]
        out_of_order += any(earlier > sequence for earlier in before)
    verdict = judge(acknowledged, read)
    assert verdict.lost == len(known - seen)
    assert verdict.read == len(seen)
    assert (verdict.duplicated, verdict.out_of_order) == (duplicated, out_of_order)


def _first_readings(read: list[Reading], known: set[tuple[str, int]]) -> set[int]:
    firsts: dict[tuple[str, int], int] = {}
    for index, (device, sequence, _) in enumerate(read):
        if (device, sequence) in known:
            firsts.setdefault((device, sequence), index)
    return set(firsts.values())
