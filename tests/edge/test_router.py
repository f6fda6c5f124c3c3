"""Which stream takes an event, and when it happened."""

from __future__ import annotations

import pytest

from tidegate_edge.event_log import Event
from tidegate_edge.router import Route, Router
from tidegate_wire.mqtt import ReceivedMessage
from tidegate_wire.mqtt.errors import MqttError

NOW_MS = 1_800_000_000_000


def router() -> Router:
    return Router(
        [
            Route(stream="alarms", filters=("+/alarm", "site/+/alarm/#")),
            Route(stream="telemetry", filters=("site/#",)),
        ],
        "events",
    )


@pytest.mark.parametrize(
    ("topic", "stream"),
    [
        ("pump/alarm", "alarms"),
        ("site/7/alarm", "alarms"),
        ("site/7/alarm/fire/1", "alarms"),
        ("site", "telemetry"),
        ("site/7/temperature", "telemetry"),
        ("siteX/7", "events"),
        ("a/b/alarm", "events"),
        ("/alarm", "alarms"),
        ("$SYS/uptime", None),
        ("tidegate/v1/edge-1/batch", None),
        ("tidegate", None),
        ("tidegates/x", "events"),
    ],
)
def test_the_first_route_that_matches_takes_a_topic(topic: str, stream: str | None) -> None:
    routes = router()
    assert [routes.stream_of(topic) for _ in range(2)] == [stream, stream]


def test_a_filter_that_is_none_is_refused() -> None:
    with pytest.raises(MqttError):
        Router([Route(stream="x", filters=("a/#/b",))], "events")


def one(**fields: object) -> Event:
    message = ReceivedMessage(client_id="d1", topic="t", payload=b"p", **fields)  # type: ignore[arg-type]  # by name
    (event,) = router().events([message], NOW_MS)
    return event


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("1700000000123", 1_700_000_000_123),
        ("2023-11-14T22:13:20.123Z", 1_700_000_000_123),
        ("2023-11-14T23:13:20.123+01:00", 1_700_000_000_123),
        ("2023-11-14T22:13:20", 1_700_000_000_000),
        ("1700000000", NOW_MS),  # seconds
        ("0", NOW_MS),
        ("-5", NOW_MS),
        ("yesterday", NOW_MS),
        ("", NOW_MS),
        ("9" * 400, NOW_MS),
        ("1969-12-31T23:59:59Z", NOW_MS),
        ("\u0661" * 13, NOW_MS),
    ],
)
def test_the_event_time_is_the_devices_where_it_can_be(text: str, time_ms: int) -> None:
    event = one(user_properties=(("unit", "C"), ("time", text)))
    assert (event.event_time_ms, event.receive_time_ms) == (time_ms, NOW_MS)


def test_user_properties_are_kept_as_they_came() -> None:
    assert one(user_properties=(("a", "\u00b0"), ("a", "2"))).headers == '[["a", "\u00b0"], ["a", "2"]]'
    assert one().headers is None


def test_what_the_log_needs_to_know_a_repeat_is_kept() -> None:
    event = one(packet_id=7, dup=True, qos=1)
    assert (event.packet_id, event.dup, event.device) == (7, True, "d1")


def test_topics_without_end_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate_edge.router.TOPICS_REMEMBERED", 10)
    routes = router()
    for number in range(100):
        assert routes.stream_of(f"site/{number}") == "telemetry"
    assert len(routes._known) <= 10
