"""An event as a consumer sees it: one Kafka record, laid out as `tidegate_wire.uplink.event` says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from tidegate.errors import PayloadError
from tidegate_wire.uplink.event import HEADER_EDGE, HEADER_RECEIVED, HEADER_SEQUENCE, HEADER_TOPIC

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class StreamPartition(NamedTuple):
    """One partition of a stream."""

    stream: str
    partition: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: what a device published, where it came in, and where it stands in its stream.

    Records that were not written by Tidegate are events too: `device` is then the record's key (empty if it has
    none), `edge` and `topic` are empty, `sequence` and `receive_time` are None.
    """

    stream: str
    partition: int
    offset: int
    """The event's position in its partition, from 0."""
    device: str
    """The MQTT client id of the device (the record's key; bytes that are not UTF-8 show as `\\xNN`)."""
    event_time_ms: int
    """When it happened, in ms since the Unix epoch (the record's timestamp)."""
    payload: bytes
    """What the device published, untouched; empty for a record without a value."""
    headers: Sequence[tuple[str, bytes | None]] = ()
    """All headers of the record: Tidegate's own, then the MQTT 5 user properties as they came."""

    @property
    def edge(self) -> str:
        """The id of the edge that took the event in."""
        return self._own_header(HEADER_EDGE).decode(errors="backslashreplace")

    @property
    def topic(self) -> str:
        """The MQTT topic it was published to."""
        return self._own_header(HEADER_TOPIC).decode(errors="backslashreplace")

    @property
    def sequence(self) -> int | None:
        """The edge's number for it in its stream, from 1, never reused."""
        return _number(self._own_header(HEADER_SEQUENCE))

    @property
    def receive_time_ms(self) -> int | None:
        """When the edge took it in, in ms since the Unix epoch."""
        return _number(self._own_header(HEADER_RECEIVED))

    @property
    def event_time(self) -> datetime:
        """When it happened, in UTC.

        Raises:
            PayloadError: the device's clock names a year that datetime can't (`event_time_ms` has the number).
        """
        return self._datetime(self.event_time_ms)

    @property
    def receive_time(self) -> datetime | None:
        """When the edge took it in, in UTC.

        Raises:
            PayloadError: the header names a year that datetime can't.
        """
        time_ms = self.receive_time_ms
        return None if time_ms is None else self._datetime(time_ms)

    def json(self) -> Any:
        """The payload as JSON.

        Raises:
            PayloadError: it is not JSON.
        """
        try:
            return json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise PayloadError(f"{self._name()}: the payload is not JSON: {error}") from error

    def _own_header(self, name: str) -> bytes:
        """The first header of that name: the edge writes its own before those that a device may choose."""
        for key, value in self.headers:
            if key == name:
                return value or b""
        return b""

    def _datetime(self, time_ms: int) -> datetime:
        try:
            return _EPOCH + timedelta(milliseconds=time_ms)
        except OverflowError as error:
            raise PayloadError(f"{self._name()}: {time_ms} ms since 1970 is outside the years 1 to 9999") from error

    def _name(self) -> str:
        return f"{self.stream}[{self.partition}] offset {self.offset}"


def _number(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) <= len(str(2**63)) else None
