from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import UTC, datetime

import pytest

from tidegate import Event
from tidegate.errors import PayloadError, TidegateError


def make(payload: bytes = b"{}", headers: tuple[tuple[str, bytes | None], ...] = (), time_ms: int = 0) -> Event:
    return Event(
        stream="telemetry",
        partition=2,
        offset=17,
        device="d-1",
        event_time_ms=time_ms,
        payload=payload,
        headers=headers,
    )


OWN_HEADERS = (("edge", b"plant-7"), ("topic", b"plant/7/temp"), ("sequence", b"42"), ("received", b"1700000000123"))


def test_the_facts_that_the_edge_wrote_are_read_from_the_headers() -> None:
    event = make(headers=(*OWN_HEADERS, ("unit", b"C")), time_ms=1_700_000_000_000)
    assert (event.edge, event.topic, event.sequence) == ("plant-7", "plant/7/temp", 42)
    assert event.receive_time_ms == 1_700_000_000_123
    assert event.receive_time == datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC)
    assert event.event_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert event.headers[-1] == ("unit", b"C")


def test_a_user_property_can_not_pose_as_the_edge() -> None:
    event = make(headers=(*OWN_HEADERS, ("edge", b"other"), ("sequence", b"1")))
    assert (event.edge, event.sequence) == ("plant-7", 42)


def test_a_record_of_someone_else_is_an_event_with_less_in_it() -> None:
    event = make()
    assert (event.edge, event.topic, event.sequence, event.receive_time_ms, event.receive_time) == (
        "",
        "",
        None,
        None,
        None,
    )


@pytest.mark.parametrize("value", [b"", b"-1", b"1e3", b"abc", b"\xb2", b"9" * 5000, None])
def test_headers_that_only_look_like_ours_are_no_numbers(value: bytes | None) -> None:
    assert make(headers=(("sequence", value),)).sequence is None


def test_header_bytes_that_are_not_utf8_are_shown_escaped() -> None:
    assert make(headers=(("topic", b"a\xff"),)).topic == "a\\xff"


def test_json_reads_the_payload() -> None:
    assert make(b'{"device": "d-1", "value": 1.5}').json() == {"device": "d-1", "value": 1.5}


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[" * 200_000])
def test_a_payload_that_is_not_json_is_named(payload: bytes) -> None:
    with pytest.raises(PayloadError, match=r"telemetry\[2\] offset 17") as raised:
        make(payload).json()
    assert isinstance(raised.value, TidegateError)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("time_ms", [2**62, -(2**62)])
def test_a_clock_beyond_all_years_is_an_error_of_ours(time_ms: int) -> None:
    with pytest.raises(PayloadError, match="outside the years"):
        _ = make(time_ms=time_ms).event_time


def test_times_before_1970_are_times() -> None:
    assert make(time_ms=-1).event_time == datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC)


def test_an_event_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        make().offset = 3  # type: ignore[misc] # that is the point
