"""Settings that can't work are refused where they are written."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tidegate_edge.settings import EdgeSettings


def settings(**fields: Any) -> EdgeSettings:
    values: dict[str, Any] = {"id": "plant-7", "uplink": "mqtt://127.0.0.1:1884", "data_dir": "/tmp/x"}
    return EdgeSettings.model_validate(values | fields)


def stream(name: str, *topics: str) -> dict[str, Any]:
    return {"name": name, "topics": topics or (f"{name}/#",)}


def test_the_defaults_are_enough() -> None:
    assert settings().listen == "127.0.0.1:1883"
    assert settings(uplink="mqtt://broker").uplink == "mqtt://broker:1883"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "a b"}, "not an edge id"),
        ({"listen": "1883"}, "not HOST:PORT"),
        ({"uplink": "127.0.0.1:1884"}, "not mqtt://"),
        ({"default_stream": "a/b"}, "not a stream"),
        ({"default_stream": "tidegate.losses"}, "written by Tidegate itself"),
        ({"default_stream": ".."}, "not a stream"),
        ({"streams": [stream("a", "x/#/y")]}, "not a topic filter"),
        ({"streams": [{"name": "a", "topics": ()}]}, "at least 1"),
        ({"streams": [stream("alarms"), stream("Alarms")]}, "upper and lower case"),
        ({"streams": [stream("alarms"), stream("alarms", "x")]}, "there twice"),
        ({"streams": [stream("events")]}, "the default stream"),
        ({"streams": [stream(f"s{number}") for number in range(63)]}, "at most 62"),
        ({"when_full": "panic"}, "refuse"),
        ({"keepalive": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_setting_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**fields)
